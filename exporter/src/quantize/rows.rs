//! Rows of a weight, quantized and packed.

use half::f16;
use rayon::prelude::*;

use super::format::{BlockFormat, MAX_BLOCK};

/// Packed integers, scales and zero points of rows.
pub(super) struct RowWriter {
    format: BlockFormat,
    columns: usize,
    pub(super) packed: Vec<u8>,
    pub(super) scales: Vec<f32>,
    /// One byte each until they are packed.
    pub(super) zero_points: Vec<u8>,
}

impl RowWriter {
    pub(super) fn new(format: BlockFormat, columns: usize) -> Self {
        let (packed, scales, zero_points) = (Vec::new(), Vec::new(), Vec::new());
        RowWriter { format, columns, packed, scales, zero_points }
    }

    /// Makes room for `rows` more rows; blocks and packed bytes of a row.
    pub(super) fn resize(&mut self, rows: usize) -> (usize, usize) {
        let (blocks, row_bytes) =
            (self.format.blocks(self.columns), self.format.row_bytes(self.columns));
        self.packed.resize(self.packed.len() + rows * row_bytes, 0);
        self.scales.resize(self.scales.len() + rows * blocks, 0.0);
        self.zero_points.resize(self.zero_points.len() + rows * blocks, 0);
        (blocks, row_bytes)
    }

    /// The bytes of the integers that have not been taken, of the scales, and of the packed zero
    /// points.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        let scales = if self.format.half_scales {
            self.scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect()
        } else {
            self.scales.iter().flat_map(|s| s.to_le_bytes()).collect()
        };
        let zero_points = match (self.format.bits, self.format.packing.pads_zero_points) {
            (8, _) => self.zero_points,
            (_, false) => pack(&self.zero_points),
            (_, true) => {
                let blocks = self.format.blocks(self.columns);
                self.zero_points.chunks_exact(blocks).flat_map(pack).collect()
            }
        };
        let packed =
            if self.format.packs_at_end(self.columns) { pack(&self.packed) } else { self.packed };
        vec![packed, scales, zero_points]
    }
}

/// A weight that is being quantized, some rows at a time.
pub(crate) struct BlockEncoder(RowWriter);

impl BlockEncoder {
    /// Starts a weight whose rows have `columns` values.
    pub(crate) fn new(format: BlockFormat, columns: usize) -> Self {
        BlockEncoder(RowWriter::new(format, columns))
    }

    /// Quantizes whole rows, and appends their packed integers to `packed`.
    pub(crate) fn push(&mut self, rows: &[f32], packed: &mut Vec<u8>) {
        let (format, columns) = (self.0.format, self.0.columns);
        let done = self.0.scales.len();
        let kept = self.0.packed.len();
        let (blocks, row_bytes) = self.0.resize(rows.len() / columns);
        rows.par_chunks_exact(columns)
            .zip(self.0.packed[kept..].par_chunks_exact_mut(row_bytes))
            .zip(self.0.scales[done..].par_chunks_exact_mut(blocks))
            .zip(self.0.zero_points[done..].par_chunks_exact_mut(blocks))
            .with_min_len(8)
            .for_each(|(((values, packed), scales), zero_points)| {
                Row { values, packed, scales, zero_points }.quantize(format);
            });
        if !format.packs_at_end(columns) {
            packed.append(&mut self.0.packed);
        }
    }

    /// What is left of the first initializer, and the others.
    pub(crate) fn finish(self) -> Vec<Vec<u8>> {
        self.0.finish()
    }
}

/// Two 4-bit integers to a byte.
fn pack(integers: &[u8]) -> Vec<u8> {
    integers.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)).collect()
}

/// One row and where its parts go.
struct Row<'a> {
    values: &'a [f32],
    packed: &'a mut [u8],
    scales: &'a mut [f32],
    zero_points: &'a mut [u8],
}

impl Row<'_> {
    fn quantize(self, format: BlockFormat) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has AVX-512 and FMA.
                return unsafe { self.quantize_avx512(format) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2 and FMA.
                return unsafe { self.quantize_avx2(format) };
            }
        }
        self.quantize_on(format);
    }

    /// The same code, compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn quantize_avx2(self, format: BlockFormat) {
        self.quantize_on(format);
    }

    /// And for the widest ones.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,fma")]
    fn quantize_avx512(self, format: BlockFormat) {
        self.quantize_on(format);
    }

    #[inline(always)]
    fn quantize_on(self, format: BlockFormat) {
        let mut integers = [0.0; MAX_BLOCK];
        let bits = format.written_bits(self.values.len());
        for (index, block) in self.values.chunks(format.block_size).enumerate() {
            let fit = format.fit(block);
            format.levels().integers(fit, block, &mut integers);
            // Padding is zero when read.
            integers[block.len()..].fill(fit.zero);
            write_integers(&integers, bits, block_of(format, bits, self.packed, index));
            self.scales[index] = fit.scale;
            self.zero_points[index] = fit.zero as u8;
        }
    }
}

/// Packs a row whose integers are known.
pub(super) fn write_row(format: BlockFormat, row: &[f32], zero_points: &[u8], packed: &mut [u8]) {
    let mut integers = [0.0; MAX_BLOCK];
    for (index, block) in row.chunks(format.block_size).enumerate() {
        integers[..block.len()].copy_from_slice(block);
        integers[block.len()..].fill(zero_points[index].into());
        let bits = format.written_bits(row.len());
        write_integers(&integers, bits, block_of(format, bits, packed, index));
    }
}

/// The bytes of a block in those of its row.
fn block_of(format: BlockFormat, bits: u32, packed: &mut [u8], index: usize) -> &mut [u8] {
    let bytes = format.block_size * bits as usize / 8;
    let end = packed.len().min((index + 1) * bytes);
    &mut packed[index * bytes..end]
}

/// Packs integers of 4 or 8 bits.
#[inline(always)]
fn write_integers(integers: &[f32], bits: u32, out: &mut [u8]) {
    match bits {
        4 => {
            for (byte, pair) in out.iter_mut().zip(integers.chunks_exact(2)) {
                *byte = pair[0] as u8 | (pair[1] as u8) << 4;
            }
        }
        _ => {
            for (byte, &integer) in out.iter_mut().zip(integers) {
                *byte = integer as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lfm2vl_graphs::Method;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::{exported::ExportedWeight, quantize::Packing};

    /// What is packed here is what the operators' documentation says of the bytes, for rows that are
    /// no multiple of anything, too.
    #[test]
    fn packed_weights_read_as_what_they_were() {
        let mut random = SmallRng::seed_from_u64(3);
        for columns in [17, 96, 100, 255, 320, 4304] {
            let weight: Vec<f32> =
                (0..5 * columns).map(|_| random.random_range(-1.0..1.0)).collect();
            for (bits, block_size) in [(4, 16), (4, 32), (4, 128), (4, 256), (8, 32), (8, 64)] {
                let gather = Packing::gather(columns, block_size);
                for packing in [Packing::MATMUL, Packing::DEQUANTIZE, gather] {
                    if packing == gather && !(columns * bits as usize).is_multiple_of(8) {
                        continue;
                    }
                    for symmetric in [true, false] {
                        let method = Method::Search;
                        let half_scales = false;
                        let format = BlockFormat {
                            bits,
                            block_size,
                            symmetric,
                            method,
                            half_scales,
                            packing,
                        };
                        let mut encoder = BlockEncoder::new(format, columns);
                        let mut packed = Vec::new();
                        let (first, rest) = weight.split_at(2 * columns);
                        encoder.push(first, &mut packed);
                        encoder.push(rest, &mut packed);
                        let mut parts = encoder.finish();
                        packed.append(&mut parts[0]);
                        parts[0] = packed;
                        let is_bfloat16 = |scale: &[u8]| scale[..2] == [0, 0];
                        let are_bfloat16 = parts[1].chunks(4).all(is_bfloat16);
                        assert_eq!(are_bfloat16, bits == 4, "{format:?}");
                        let read = ExportedWeight::from_parts(parts, format, [5, columns]).matrix();
                        let largest = read
                            .iter()
                            .zip(&weight)
                            .fold(0.0_f32, |largest, (a, b)| largest.max((a - b).abs()));
                        let step = 2.0 / ((1 << bits) - 1) as f32;
                        assert!(largest < 1.5 * step, "{columns} {format:?}: {largest}");
                    }
                }
            }
        }
    }
}
