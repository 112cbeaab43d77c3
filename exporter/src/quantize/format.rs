//! How weights are quantized and how their integers lie in memory.

use half::f16;
use lfm2vl_graphs::{Method, WeightFormat};

use super::block::{Fit, LANES, Levels};

/// Values of the largest block.
pub(super) const MAX_BLOCK: usize = 256;

/// How integers lie in memory. 4-bit integers are two to a byte, the first in the low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packing {
    /// Whether each row is padded to whole blocks.
    pub(crate) pads_rows: bool,
    /// Whether the zero points of each row start on a byte.
    pub(crate) pads_zero_points: bool,
}

impl Packing {
    /// As `MatMulNBits` reads it.
    pub(crate) const MATMUL: Packing = Packing { pads_rows: true, pads_zero_points: true };
    /// As `DequantizeLinear` reads it: all rows in one run.
    pub(crate) const DEQUANTIZE: Packing = Packing { pads_rows: false, pads_zero_points: false };

    /// As `GatherBlockQuantized` reads it. Rows of whole blocks are the same as for `MatMulNBits`, so
    /// that a table can be shared.
    pub(crate) fn gather(columns: usize, block_size: usize) -> Self {
        Packing { pads_rows: columns.is_multiple_of(block_size), pads_zero_points: true }
    }
}

/// How the weights of a linear layer or embedding [rows, columns] are quantized and packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockFormat {
    pub(crate) bits: u32,
    pub(crate) block_size: usize,
    pub(crate) symmetric: bool,
    pub(crate) method: Method,
    /// Whether scales are float16.
    pub(crate) half_scales: bool,
    pub(crate) packing: Packing,
}

impl BlockFormat {
    pub(crate) fn new(format: WeightFormat, half_scales: bool, packing: Packing) -> Self {
        BlockFormat {
            bits: format.bits.get(),
            block_size: format.block_size.get(),
            symmetric: format.symmetric,
            method: format.method,
            half_scales,
            packing,
        }
    }

    /// Blocks of a row.
    pub(crate) fn blocks(self, columns: usize) -> usize {
        columns.div_ceil(self.block_size)
    }

    /// Bytes of the integers of a row.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        let stored =
            if self.packing.pads_rows { self.blocks(columns) * self.block_size } else { columns };
        stored * self.written_bits(columns) as usize / 8
    }

    /// Bits that an integer takes until all rows are there: where rows do not end on a byte, they are
    /// packed in the end.
    pub(super) fn written_bits(self, columns: usize) -> u32 {
        if self.packs_at_end(columns) { 8 } else { self.bits }
    }

    pub(super) fn packs_at_end(self, columns: usize) -> bool {
        self.bits == 4 && !self.packing.pads_rows && !columns.is_multiple_of(2)
    }

    /// Bytes of the zero points of a row, where each row starts on a byte.
    pub(crate) fn zero_point_bytes(self, columns: usize) -> usize {
        (self.blocks(columns) * self.bits as usize).div_ceil(8)
    }

    pub(super) fn levels(self) -> Levels {
        Levels { max: ((1 << self.bits) - 1) as f32, symmetric: self.symmetric }
    }

    /// Scale and zero point of a block, as readers will have them.
    #[inline(always)]
    pub(super) fn fit(self, block: &[f32]) -> Fit {
        if block.len().is_multiple_of(LANES) {
            return self.fit_whole(block);
        }
        // Zeros change nothing.
        let mut values = [0.0; MAX_BLOCK];
        values[..block.len()].copy_from_slice(block);
        self.fit_whole(&values[..block.len().next_multiple_of(LANES)])
    }

    /// The same of whole lanes.
    #[inline(always)]
    fn fit_whole(self, block: &[f32]) -> Fit {
        let levels = self.levels();
        let mut fit = levels.fit(self.method, block);
        // To the digits that are stored, or that kernels keep of a 4-bit weight's, which is less than 2^-7 of
        // it, where a level is off by a half: 16 bits for each block are 5 % of what a token reads.
        if self.half_scales {
            fit.scale = f16::from_f32(fit.scale).to_f32();
        } else if self.bits == 4 {
            fit = levels.with_short_scale(fit, block);
        }
        fit
    }
}
