//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU: a horizontal pass rounded to 8 bits, then a
//! vertical one. Both are products of matrices in which every sum is exact.

use lfm2vl::image::Resample;

use super::{
    Processor, Size,
    filter::{BLOCK, Filter, Kernel, MIDDLE},
};
use crate::onnx::{DataType, Value};

impl<'g> Processor<'g> {
    /// An image uint8 [from.height, from.width, 3], given as its columns [from.width, 3 * from.height] and
    /// [ones](Self::with_ones), as uint8 [to.height, 3 * to.width].
    pub(super) fn resize(
        self,
        name: &str,
        columns: Value<'g>,
        from: Size<'g>,
        to: Size<'g>,
    ) -> Value<'g> {
        let _scope = self.g.enter(name);
        let across = self.resample(columns, from.width, to.width);
        let sizes = [to.width, self.int(3), from.height];
        let rows = across.reshape_to_sizes(&sizes).transpose(&[2, 0, 1]).flatten();
        self.resample(self.with_ones(rows), from.height, to.height)
    }

    /// Levels uint8 [inputs, values] with the row behind them that a [`Filter`] expects.
    pub(super) fn with_ones(self, levels: Value<'g>) -> Value<'g> {
        let shape = self.g.vector(&[self.int(1), levels.dim(1)]);
        levels.concat(&[self.g.byte(1).expand(shape)], 0)
    }

    /// From uint8 [inputs + 1, values] to uint8 [outputs, values].
    fn resample(self, levels: Value<'g>, inputs: Value<'g>, outputs: Value<'g>) -> Value<'g> {
        let nearest = |shift| levels.gather(self.nearest(shift, inputs, outputs), 0);
        let kernel = match self.settings.resample {
            Resample::NearestExact => return nearest(0.5),
            Resample::Nearest => return nearest(0.0),
            Resample::Lanczos => Kernel::Lanczos,
            Resample::Bilinear => Kernel::Triangle,
            Resample::Bicubic => Kernel::Keys,
        };
        let g = self.g;
        let Filter { inputs, weights, parts } = self.filter(kernel, inputs, outputs);
        // Block by block: what is made in between stays in the processor's cache.
        let rows = (DataType::Uint8, 2);
        // Both round and cut off in the same way. Few images need the second, which is slower.
        let in_f32 = || {
            g.for_each(
                [(inputs, DataType::Int64), (weights.to_f32(), DataType::Float)],
                rows,
                |inputs, weights| {
                    let sums = weights.matmul(levels.gather(inputs, 0).bytes_to_f32());
                    sums.quantize(g.float(1.0), g.byte(MIDDLE))
                },
            )
        };
        let in_f64 = || {
            g.for_each(
                [(inputs, DataType::Int64), (weights, DataType::Double)],
                rows,
                |inputs, weights| {
                    let sums = weights.matmul(levels.gather(inputs, 0).to_f64());
                    let middle = g.double(f64::from(MIDDLE) + 0.5);
                    (sums + middle).clip(g.double(0.0), g.double(255.0)).to_u8()
                },
            )
        };
        let fits = g.double(kernel.most_parts_in_f32()).greater_or_equal(parts);
        let [blocks, values] = [inputs.dim(0), levels.dim(1)];
        let rounded = g.either(
            blocks.greater(self.int(0)),
            DataType::Uint8,
            || g.either(fits, DataType::Uint8, in_f32, in_f64),
            || g.byte(0).expand(g.vector(&[blocks, self.int(BLOCK), values])),
        ); // [blocks, BLOCK, values]
        let rounded = rounded.reshape_to_sizes(&[blocks * self.int(BLOCK), values]);
        if self.settings.token_side().is_multiple_of(BLOCK) {
            rounded
        } else {
            rounded.take(0, g.vector(&[outputs]))
        }
    }
}
