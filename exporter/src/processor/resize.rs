//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU: a horizontal pass rounded to 8 bits, then a
//! vertical one. Both are products of integers.

use super::{
    Processor, Size,
    filter::{BLOCK, Filter},
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
    /// The image, given as `columns` uint8 [width, 3, height], as uint8 [to.height, 3 * to.width].
    pub(super) fn resize(self, name: &str, columns: Value<'g>, to: Size<'g>) -> Value<'g> {
        let _scope = self.g.enter(name);
        let [three, height] = [columns.dim(1), columns.dim(2)];
        let across = self.resample(columns.flatten(), to.width);
        let rows = across.reshape_to_sizes(&[to.width, three, height]).transpose(&[2, 0, 1]);
        self.resample(rows.flatten(), to.height)
    }

    /// From uint8 [inputs, values] to uint8 [outputs, values].
    fn resample(self, levels: Value<'g>, outputs: Value<'g>) -> Value<'g> {
        let g = self.g;
        let [inputs, values] = [levels.dim(0), levels.dim(1)];
        let Filter { inputs, weights, one } = self.filter(inputs, outputs);

        let (offset, bytes) = (g.int32(OFFSET.into()), g.int32(256));
        let low = (weights + offset).remainder(bytes);
        let high = (weights + offset - low) / bytes + offset;
        let weights = high.to_u8().concat(&[low.to_u8()], 1); // [blocks, 2 * BLOCK, inputs]
        let columns = self.int(COLUMNS);
        let padded = (values + columns - self.int(1)) / columns * columns;
        let zero = self.int(0);
        let levels = levels.pad(g.vector(&[zero, zero, zero, padded - values]));
        let levels = levels.gather(inputs, 0); // [blocks, inputs, padded]
        let products = weights.matmul_integer(g.byte(OFFSET), levels);
        let [high, low] = products.split(1);

        let sums = high * bytes + low + one / g.int32(2);
        let levels = (sums.clip(g.int32(0), one * g.int32(255)) / one).to_u8();
        let blocks = levels.dim(0);
        let levels = levels.reshape_to_sizes(&[blocks * self.int(BLOCK), padded]);
        levels.take(0, g.vector(&[outputs])).take(1, g.vector(&[values]))
    }
}
