//! Weights as `MatMulNBits` stores them.

use std::fmt;

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 4: two weights a byte, the first in its lower half.
    Four,
    /// 8.
    Eight,
}

impl Bits {
    /// From a number of bits; `None` where there are no kernels for it.
    pub fn new(bits: i64) -> Option<Self> {
        match bits {
            4 => Some(Bits::Four),
            8 => Some(Bits::Eight),
            _ => None,
        }
    }

    /// As a number.
    pub fn get(self) -> usize {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// The zero point where none is stored: the middle of the integers.
    pub(crate) fn middle(self) -> u8 {
        match self {
            Bits::Four => 8,
            Bits::Eight => 128,
        }
    }
}

/// Weights [outputs, inputs] of a linear layer, as `MatMulNBits` stores them: each row in blocks that
/// share a scale and a zero point, `weight = (integer - zero point) * scale`.
/// (Format: ONNX Runtime's `docs/ContribOperators.md`, `com.microsoft.MatMulNBits`.)
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// N: rows of the weights.
    pub outputs: usize,
    /// K: columns of the weights.
    pub inputs: usize,
    /// Bits of a weight.
    pub bits: Bits,
    /// Weights of a row that share a scale: a power of 2 from 16 to 65,536. It may be larger than
    /// `inputs`; then each row has one scale.
    pub block_size: usize,
    /// The integers [outputs, blocks, block_size * bits / 8]; the last block of a row is padded.
    pub values: &'a [u8],
    /// [outputs, blocks].
    pub scales: &'a [f32],
    /// [outputs, blocks * bits / 8], each row padded to whole bytes; the middle of the integers when
    /// not given.
    pub zero_points: Option<&'a [u8]>,
}

/// What does not fit together in [`BlockWeights`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightsError {
    /// The block size is none that there are kernels for.
    BlockSize(usize),
    /// There are no weights, or more than can be counted.
    Size {
        /// N.
        outputs: usize,
        /// K.
        inputs: usize,
    },
    /// A slice has another length than the sizes say.
    Length {
        /// Which: `values`, `scales` or `zero_points`.
        name: &'static str,
        /// What it has.
        found: usize,
        /// What it should have.
        expected: usize,
    },
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightsError::BlockSize(size) => {
                write!(f, "blocks of {size} weights; use a power of 2 from 16 to 65,536")
            }
            WeightsError::Size { outputs, inputs } => {
                write!(f, "there are no kernels for weights of {outputs} x {inputs}")
            }
            WeightsError::Length { name, found, expected } => {
                write!(f, "{name} has {found} elements where the sizes ask for {expected}")
            }
        }
    }
}

impl std::error::Error for WeightsError {}

impl BlockWeights<'_> {
    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.inputs.div_ceil(self.block_size)
    }

    /// Whether the sizes are such that there are kernels, whatever the slices hold.
    ///
    /// # Errors
    /// [`WeightsError::BlockSize`] and [`WeightsError::Size`].
    pub fn check_sizes(
        outputs: usize,
        inputs: usize,
        block_size: usize,
    ) -> Result<(), WeightsError> {
        if !block_size.is_power_of_two() || !(16..=65_536).contains(&block_size) {
            return Err(WeightsError::BlockSize(block_size));
        }
        // Products of these, in bytes, are far below what a pointer of 64 bits can address.
        const _: () = assert!(usize::BITS >= 64, "weights are counted with 64 bits");
        let limit = 1 << 24;
        if !(1..=limit).contains(&outputs) || !(1..=limit).contains(&inputs) {
            return Err(WeightsError::Size { outputs, inputs });
        }
        Ok(())
    }

    /// Whether all parts fit together.
    pub(crate) fn check(&self) -> Result<(), WeightsError> {
        Self::check_sizes(self.outputs, self.inputs, self.block_size)?;
        let blocks = self.blocks();
        let values = self.outputs * blocks * (self.block_size * self.bits.get() / 8);
        let zero_points = self.outputs * self.zero_point_bytes();
        let lengths = [
            ("values", self.values.len(), values),
            ("scales", self.scales.len(), self.outputs * blocks),
            ("zero_points", self.zero_points.map_or(zero_points, <[u8]>::len), zero_points),
        ];
        match lengths.into_iter().find(|(_, found, expected)| found != expected) {
            Some((name, found, expected)) => Err(WeightsError::Length { name, found, expected }),
            None => Ok(()),
        }
    }

    /// Bytes of a row's zero points.
    fn zero_point_bytes(&self) -> usize {
        (self.blocks() * self.bits.get()).div_ceil(8)
    }

    /// The integers of one block.
    pub(crate) fn block(&self, output: usize, block: usize) -> &[u8] {
        let bytes = self.block_size * self.bits.get() / 8;
        &self.values[(output * self.blocks() + block) * bytes..][..bytes]
    }

    /// The scale of one block.
    pub(crate) fn scale(&self, output: usize, block: usize) -> f32 {
        self.scales[output * self.blocks() + block]
    }

    /// The zero point of one block.
    pub(crate) fn zero_point(&self, output: usize, block: usize) -> u8 {
        let Some(zero_points) = self.zero_points else { return self.bits.middle() };
        let row = &zero_points[output * self.zero_point_bytes()..];
        match self.bits {
            Bits::Four => (row[block / 2] >> (4 * (block % 2))) & 15,
            Bits::Eight => row[block],
        }
    }
}
