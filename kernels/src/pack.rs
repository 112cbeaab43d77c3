//! Weights in the order in which the kernels read them.
//!
//! Sixteen rows make a group, and a group is one record of bytes. A record starts with the integers:
//! a vector of 64 bytes holds one u32 of each of the sixteen rows, eight weights of 4 bits or four of
//! 8. The scales [blocks, 16] follow, then what the bits need beside them:
//!
//! - 4 bits: zero points [blocks, 8] u8, if there are any: those of rows `i` and `i + 8` in the halves of
//!   a byte. The integers are as they were: of the eight in a u32 the lower halves of the bytes are the
//!   even ones. The inputs are put in that order, which costs less than to reorder weights. Scales are
//!   bfloat16 where that is all the digits they have, and else f32: a token reads 5 % less.
//! - 8 bits: the integers less 128, as i8; what unsigned inputs add to a block's sum, `-128 * sum`
//!   [blocks, 16] i32; and zero points less 128, [blocks, 16] i8, if there are any.

use std::mem::MaybeUninit;

use crate::{
    Bits, BlockWeights, Threads, WeightsError,
    buffer::{Buffer, LINE},
};

/// Rows of a group: lanes of an AVX-512 vector of floats, and rows of an AMX tile.
pub(crate) const LANES: usize = 16;

/// Where the parts of a record are, in bytes from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) scales: usize,
    /// Whether scales are the upper halves of floats, whose lower halves are 0.
    pub(crate) half_scales: bool,
    pub(crate) offsets: usize,
    /// 0 where there are no zero points.
    pub(crate) points: usize,
    /// After the last part.
    end: usize,
    /// The record itself, whole cache lines.
    pub(crate) len: usize,
}

/// Packed weights [outputs, inputs] of a linear layer.
#[derive(Debug)]
pub struct PackedWeights {
    outputs: usize,
    inputs: usize,
    bits: Bits,
    block_size: usize,
    record: Record,
    data: Buffer,
}

impl PackedWeights {
    /// Packs weights, which can be dropped then.
    ///
    /// # Errors
    /// [`WeightsError`] where their parts do not fit together.
    pub fn pack(weights: &BlockWeights<'_>, threads: &dyn Threads) -> Result<Self, WeightsError> {
        weights.check()?;
        let &BlockWeights { outputs, inputs, bits, block_size, .. } = weights;
        let record = Record::new(weights);
        let groups = outputs.div_ceil(LANES);
        let mut data = Buffer::unwritten_to_stay(groups * record.len);
        let records = Shared(data.as_mut_ptr());
        let parts = groups.min(4 * threads.count());
        threads.run(parts, &|part| {
            for group in groups * part / parts..groups * (part + 1) / parts {
                let rows = LANES.min(outputs - group * LANES);
                // SAFETY: each group is in one part, and its record lies in the buffer.
                let bytes = unsafe {
                    let start = records.get().add(group * record.len);
                    // All but what rows that are not there would have is written below.
                    if rows < LANES {
                        start.write_bytes(0, record.len);
                    }
                    start.add(record.end).write_bytes(0, record.len - record.end);
                    std::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), record.len)
                };
                for lane in 0..rows {
                    pack_row(weights, group * LANES + lane, lane, &record, bytes);
                }
                if record.points > 0 {
                    pack_zero_points(weights, group * LANES, rows, &mut bytes[record.points..]);
                }
            }
        });
        Ok(PackedWeights { outputs, inputs, bits, block_size, record, data })
    }

    /// N: rows of the weights.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// K: columns of the weights.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bits of a weight.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn blocks(&self) -> usize {
        self.inputs.div_ceil(self.block_size)
    }

    pub(crate) fn groups(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(crate) fn record(&self) -> Record {
        self.record
    }

    /// Start of a group's record.
    pub(crate) fn group(&self, group: usize) -> *const u8 {
        debug_assert!(group < self.groups());
        self.data.as_ptr().wrapping_add(group * self.record.len)
    }
}

impl Record {
    fn new(weights: &BlockWeights<'_>) -> Self {
        let &BlockWeights { bits, block_size, .. } = weights;
        let blocks = weights.blocks();
        let is_half = |scale: &f32| scale.to_bits().trailing_zeros() >= 16;
        let half_scales = bits == Bits::Four && weights.scales.iter().all(is_half);
        let scales = blocks * block_size * LANES * bits.get() / 8;
        let scale_bytes = if half_scales { size_of::<u16>() } else { size_of::<f32>() };
        let offsets = scales + blocks * LANES * scale_bytes;
        let after = match bits {
            Bits::Four => offsets,
            Bits::Eight => offsets + blocks * LANES * size_of::<i32>(),
        };
        let (points, end) = match weights.zero_points {
            Some(_) => (after, after + blocks * LANES * bits.get() / 8),
            None => (0, after),
        };
        Record { scales, half_scales, offsets, points, end, len: end.next_multiple_of(LINE) }
    }
}

/// Writes one row of weights into its lane of the group's record.
fn pack_row(
    weights: &BlockWeights<'_>,
    row: usize,
    lane: usize,
    record: &Record,
    bytes: &mut [MaybeUninit<u8>],
) {
    // Bytes less 128, of which the upper bit is another.
    let flip = match weights.bits {
        Bits::Four => 0,
        Bits::Eight => 0x8080_8080,
    };
    let words = weights.block_size * weights.bits.get() / 32;
    for block in 0..weights.blocks() {
        let values = weights.block(row, block);
        let vectors = bytes[block * words * LINE..].chunks_exact_mut(LINE);
        for (vector, word) in vectors.zip(values.chunks_exact(4)) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) ^ flip;
            write(&mut vector[4 * lane..], word.to_le_bytes());
        }
        let at = block * LANES + lane;
        let scale = weights.scale(row, block).to_le_bytes();
        if record.half_scales {
            write(&mut bytes[record.scales + 2 * at..], [scale[2], scale[3]]);
        } else {
            write(&mut bytes[record.scales + 4 * at..], scale);
        }
        if weights.bits == Bits::Eight {
            let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
            let sum = sum - 128 * values.len() as i32;
            write(&mut bytes[record.offsets + 4 * at..], (-128 * sum).to_le_bytes());
        }
    }
}

/// Writes the zero points of a group's `rows` rows from the first on.
fn pack_zero_points(
    weights: &BlockWeights<'_>,
    first: usize,
    rows: usize,
    points: &mut [MaybeUninit<u8>],
) {
    let point = |lane: usize, block| {
        if lane < rows { weights.zero_point(first + lane, block) } else { 0 }
    };
    for block in 0..weights.blocks() {
        match weights.bits {
            Bits::Four => {
                for lane in 0..LANES / 2 {
                    let pair = point(lane, block) | point(lane + LANES / 2, block) << 4;
                    write(&mut points[block * LANES / 2 + lane..], [pair]);
                }
            }
            Bits::Eight => {
                for lane in 0..LANES {
                    // Less 128, as the integers are.
                    write(&mut points[block * LANES + lane..], [point(lane, block) ^ 0x80]);
                }
            }
        }
    }
}

fn write<const N: usize>(to: &mut [MaybeUninit<u8>], bytes: [u8; N]) {
    for (to, byte) in to[..N].iter_mut().zip(bytes) {
        to.write(byte);
    }
}

/// A pointer that threads share; each writes elsewhere.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: where it is used, threads write at places of their own.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer. A method, since closures would take the field alone, which is not `Sync`.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}
