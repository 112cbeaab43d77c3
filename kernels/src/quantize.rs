//! Inputs as 8-bit integers, each block of a row with a scale of its own: `x ~ integer * scale`, the
//! integer `round(x * 127 / max |x|)`, half to even, in -127..=127. This is what ONNX Runtime computes
//! for accuracy level 4.

use crate::{Bits, PackedWeights, buffer::LINE};

/// How integers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Whether each eight are in the order of the halves of bytes: even ones, then odd ones.
    pub(crate) by_halves: bool,
    /// Whether 128 is added, which makes them unsigned.
    pub(crate) unsigned: bool,
}

/// Quantized rows of inputs, in scratch memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantizedRows {
    pub(crate) rows: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    pub(crate) block_size: usize,
    /// From row to row of `values`, in bytes. It is no multiple of 128, so that a column of rows is
    /// spread over the first-level cache.
    pub(crate) stride: usize,
    /// [rows, stride].
    pub(crate) values: *mut i8,
    /// Rows that there is room for.
    room: usize,
    /// [blocks, room].
    pub(crate) scales: *mut f32,
    /// Sums of the integers of each block, before 128 is added [blocks, room].
    pub(crate) sums: *mut i32,
}

// SAFETY: threads write different rows, and read when all are written.
unsafe impl Send for QuantizedRows {}
// SAFETY: as above.
unsafe impl Sync for QuantizedRows {}

impl QuantizedRows {
    /// From row to row, in bytes.
    pub(crate) fn stride(weights: &PackedWeights) -> usize {
        let padded = (weights.blocks() * weights.block_size()).next_multiple_of(LINE);
        if (padded / LINE).is_multiple_of(2) { padded + LINE } else { padded }
    }

    /// Bytes for that many rows.
    pub(crate) fn bytes(weights: &PackedWeights, rows: usize) -> usize {
        rows * (Self::stride(weights) + 8 * weights.blocks())
    }

    /// Rows in memory that starts at a cache line and has [`bytes`](Self::bytes).
    pub(crate) fn within(weights: &PackedWeights, rows: usize, memory: *mut u8) -> Self {
        let (blocks, stride) = (weights.blocks(), Self::stride(weights));
        let scales = memory.wrapping_add(rows * stride).cast::<f32>();
        QuantizedRows {
            rows,
            blocks,
            block_size: weights.block_size(),
            stride,
            values: memory.cast(),
            room: rows,
            scales,
            sums: scales.wrapping_add(rows * blocks).cast(),
        }
    }

    /// The integers of a row from one block on.
    #[inline(always)]
    pub(crate) fn values(&self, row: usize, block: usize) -> *mut i8 {
        self.values.wrapping_add(row * self.stride + block * self.block_size)
    }

    /// The scales of a block from one row on.
    #[inline(always)]
    pub(crate) fn scales(&self, row: usize, block: usize) -> *mut f32 {
        self.scales.wrapping_add(block * self.room + row)
    }

    /// The sums of a block from one row on.
    #[inline(always)]
    pub(crate) fn sums(&self, row: usize, block: usize) -> *mut i32 {
        self.sums.wrapping_add(block * self.room + row)
    }
}

impl Form {
    /// What few rows take. Weights of 4 bits are unsigned there, and instructions take one of each.
    pub(crate) fn few(bits: Bits, unsigned: bool) -> Self {
        let is_four = bits == Bits::Four;
        Form { by_halves: is_four, unsigned: unsigned && !is_four }
    }

    /// What many rows take, whose weights are signed.
    pub(crate) fn many(bits: Bits, unsigned: bool) -> Self {
        Form { by_halves: bits == Bits::Four, unsigned }
    }
}

/// Scale of a block, and the factor that gives its integers, from the largest magnitude: that is the
/// largest of the bits without the sign, so that a NaN is larger than all numbers.
#[inline(always)]
pub(crate) fn scale(magnitude: u32) -> (f32, f32) {
    // Below this the factor would overflow; what is that small counts as 0.
    const SMALLEST: f32 = 1e-36;
    let largest = f32::from_bits(magnitude);
    if !largest.is_finite() {
        // Every output that the block has a part in is NaN.
        (f32::NAN, 0.0)
    } else if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}

/// Where in its eight the integer of this column is written.
#[inline(always)]
pub(crate) fn by_halves(column: usize) -> usize {
    column / 8 * 8 + column % 2 * 4 + column % 8 / 2
}
