//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU: a horizontal pass rounded to 8 bits, then a
//! vertical one. Both are products of integers.

use lfm2vl::image::Resample;

use super::{
    Processor, Size,
    filter::{BLOCK, Filter, Kernel},
};
use crate::onnx::Value;

/// `MatMulInteger` takes 8 bits, so weights are `256 high + low`. Each of the two is stored with this
/// added, for neither to be negative: products of unsigned numbers are exact on every processor, whereas
/// some sum signed ones up in 16 bits.
const OFFSET: u8 = 64;

/// Products have a multiple of so many columns: with AMX, ONNX Runtime 1.23 and 1.24 compute some of the
/// others wrong (its issue 26324).
const COLUMNS: usize = 16;

impl<'g> Processor<'g> {
    /// The columns of an image uint8 [height, width, 3], as [width, 3, height or a few more].
    pub(super) fn columns(self, pixels: Value<'g>) -> Value<'g> {
        self.aligned(pixels.transpose(&[1, 2, 0]), 2)
    }

    /// An image of the size `from`, given as its columns, as uint8 [to.height, 3 * to.width].
    pub(super) fn resize(
        self,
        name: &str,
        columns: Value<'g>,
        from: Size<'g>,
        to: Size<'g>,
    ) -> Value<'g> {
        let _scope = self.g.enter(name);
        let side = self.settings.token_side();
        let across = self.resample(columns.flatten(), from.width, to.width);
        let sizes = [to.width, columns.dim(1), columns.dim(2)];
        let rows = across.reshape_to_sizes(&sizes).transpose(&[2, 0, 1]).flatten();
        if side.is_multiple_of(COLUMNS) {
            return self.resample(rows, from.height, to.height);
        }
        let values = self.g.vector(&[rows.dim(1)]);
        self.resample(self.aligned(rows, 1), from.height, to.height).take(1, values)
    }

    /// Levels with zeros behind an axis, for it to have a multiple of [`COLUMNS`].
    fn aligned(self, levels: Value<'g>, axis: i64) -> Value<'g> {
        let (columns, zero) = (self.int(COLUMNS), self.int(0));
        let missing = (columns - levels.dim(axis).remainder(columns)).remainder(columns);
        levels.pad(axis, self.g.vector(&[zero, missing]))
    }

    /// From uint8 [`inputs` or more, values] to uint8 [outputs, values].
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
        let Filter { inputs, weights, one } = self.filter(kernel, inputs, outputs);
        let levels = levels.gather(inputs, 0); // [blocks, inputs, values]

        let (offset, bytes) = (g.int32(OFFSET.into()), g.int32(256));
        let low = (weights + offset).remainder(bytes);
        let high = (weights + offset - low) / bytes + offset;
        let product = |weights: Value<'g>| weights.to_u8().matmul_integer(g.byte(OFFSET), levels);
        let sums = product(high) * bytes + product(low) + one / g.int32(2);
        // Without negative weights no sum is negative, nor is one above 255 by more than what is cut off.
        let sums = if kernel.has_negative_values() {
            sums.clip(g.int32(0), one * g.int32(255))
        } else {
            sums
        };
        let rounded = (sums / one).to_u8(); // [blocks, BLOCK, values]
        let [blocks, values] = [rounded.dim(0), rounded.dim(2)];
        let rounded = rounded.reshape_to_sizes(&[blocks * self.int(BLOCK), values]);
        if self.settings.token_side().is_multiple_of(BLOCK) {
            rounded
        } else {
            rounded.take(0, g.vector(&[outputs]))
        }
    }
}
