//! The kernels in plain Rust: what the others must equal, bit for bit.

use std::{ops::Range, slice};

use crate::{
    Bits, PackedWeights,
    kernel::{Kernels, Output, PANEL_GROUPS, Panel, Unpacked},
    pack::{LANES, Record},
    quantize::{Form, QuantizedRows, by_halves, scale},
};

pub(crate) struct Portable;

// SAFETY: it needs no instructions; what pointers must be is said at the trait.
unsafe impl Kernels for Portable {
    const FEW: usize = 8;
    const TILE_ROWS: usize = 8;
    const UNSIGNED_FEW: bool = false;
    const UNSIGNED_MANY: bool = false;

    unsafe fn quantize(
        input: *const f32,
        inputs: usize,
        form: Form,
        to: &QuantizedRows,
        row: usize,
    ) {
        // SAFETY: the caller's.
        let input = unsafe { slice::from_raw_parts(input, inputs) };
        for block in 0..to.blocks {
            let start = block * to.block_size;
            let part = &input[start..inputs.min(start + to.block_size)];
            let magnitude = part.iter().map(|x| x.abs().to_bits()).max();
            let (scale, factor) = scale(magnitude.unwrap_or_default());
            // SAFETY: the row has this block.
            let values = unsafe { written(to.values(row, block), to.block_size) };
            let mut sum = 0;
            for column in 0..to.block_size {
                let x = part.get(column).copied().unwrap_or_default();
                let value = (x * factor).round_ties_even() as i8;
                sum += i32::from(value);
                let place = if form.by_halves { by_halves(column) } else { column };
                values[place] = if form.unsigned { value ^ i8::MIN } else { value };
            }
            // SAFETY: as above.
            unsafe {
                *to.scales(row, block) = scale;
                *to.sums(row, block) = sum;
            }
        }
    }

    unsafe fn few(
        weights: &PackedWeights,
        groups: Range<usize>,
        rows: &QuantizedRows,
        to: &Output,
    ) {
        for group in groups {
            let record = weights.record();
            for row in 0..rows.rows {
                let mut sums = [0.0; LANES];
                // SAFETY: the caller's.
                unsafe {
                    start(&mut sums, to, group);
                    let bytes = slice::from_raw_parts(weights.group(group), record.len);
                    for block in 0..rows.blocks {
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            add_block(sum, weights, bytes, rows, row, block, lane);
                        }
                    }
                    finish(&sums, to, row, group);
                }
            }
        }
    }

    unsafe fn unpack(weights: &PackedWeights, group: usize, blocks: Range<usize>, to: Unpacked) {
        let (record, size) = (weights.record(), weights.block_size());
        // SAFETY: the caller's.
        let (bytes, values, offsets, scales) = unsafe {
            (
                slice::from_raw_parts(weights.group(group), record.len),
                written(to.values, blocks.len() * size * LANES),
                written(to.offsets, blocks.len() * LANES),
                written(to.scales, blocks.len() * LANES),
            )
        };
        for (index, block) in blocks.enumerate() {
            for lane in 0..LANES {
                scales[index * LANES + lane] = scale_of(bytes, &record, block * LANES + lane);
                let zero_point = zero_point4(bytes, &record, block, lane);
                for column in 0..size / 2 {
                    // Byte `column % 4` of the u32 of eight weights.
                    let (word, byte) = (column / 4, column % 4);
                    let pair = bytes[(block * size / 8 + word) * 4 * LANES + lane * 4 + byte];
                    for (half, value) in [pair & 15, pair >> 4].into_iter().enumerate() {
                        let value = value as i8 - zero_point as i8;
                        let four = index * size / 4 + 2 * word + half;
                        values[four * 4 * LANES + lane * 4 + byte] = value;
                        offsets[index * LANES + lane] -= 128 * i32::from(value);
                    }
                }
            }
        }
    }

    unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
        for row in range {
            for slot in 0..PANEL_GROUPS {
                let group = panel.group + slot;
                let mut sums = [0.0; LANES];
                // SAFETY: the caller's.
                unsafe {
                    let between = panel.sums(row).add(slot * LANES).cast::<[f32; LANES]>();
                    match panel.first_block {
                        0 => start(&mut sums, to, group),
                        _ => sums = *between,
                    }
                    for index in 0..panel.blocks {
                        let block = panel.first_block + index;
                        let at = index * rows.block_size * LANES;
                        let input = slice::from_raw_parts(rows.values(row, block), rows.block_size);
                        let values = slice::from_raw_parts(
                            panel.values[slot].add(at),
                            rows.block_size * LANES,
                        );
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            let product = |(column, &x): (usize, &i8)| {
                                let value = values[column / 4 * 4 * LANES + lane * 4 + column % 4];
                                i32::from(x) * i32::from(value)
                            };
                            let mut total: i32 = input.iter().enumerate().map(product).sum();
                            if !panel.points[slot].is_null() {
                                let point = *panel.points[slot].add(index * LANES + lane);
                                total -= i32::from(point) * *rows.sums(row, block);
                            }
                            let scale = *panel.scales[slot].add(index * LANES + lane);
                            let scale = scale * *rows.scales(row, block);
                            *sum = (total as f32).mul_add(scale, *sum);
                        }
                    }
                    if panel.is_last { finish(&sums, to, row, group) } else { *between = sums }
                }
            }
        }
    }
}

/// Memory without content, as zeros.
unsafe fn written<'a, T>(start: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's; `T` is a number.
    unsafe {
        start.write_bytes(0, len);
        slice::from_raw_parts_mut(start, len)
    }
}

/// What the sums of outputs start from.
unsafe fn start(sums: &mut [f32; LANES], to: &Output, group: usize) {
    let lanes = to.lanes(group);
    if let Some(bias) = to.bias(group).filter(|_| lanes > 0) {
        // SAFETY: there are that many from the group's first on.
        sums[..lanes].copy_from_slice(unsafe { slice::from_raw_parts(bias, lanes) });
    }
}

unsafe fn finish(sums: &[f32; LANES], to: &Output, row: usize, group: usize) {
    let lanes = to.lanes(group);
    if lanes > 0 {
        // SAFETY: there are that many outputs from the group's first on, and no other thread has them.
        unsafe { slice::from_raw_parts_mut(to.row(row, group), lanes) }
            .copy_from_slice(&sums[..lanes]);
    }
}

/// A scale of a record, of those [blocks, 16].
fn scale_of(bytes: &[u8], record: &Record, at: usize) -> f32 {
    let scales = &bytes[record.scales..];
    if record.half_scales {
        f32::from_le_bytes([0, 0, scales[2 * at], scales[2 * at + 1]])
    } else {
        f32::from_le_bytes([0, 1, 2, 3].map(|byte| scales[4 * at + byte]))
    }
}

/// A zero point of 4-bit weights.
fn zero_point4(bytes: &[u8], record: &Record, block: usize, lane: usize) -> u8 {
    if record.points == 0 {
        return 8;
    }
    let pair = bytes[record.points + block * LANES / 2 + lane % (LANES / 2)];
    if lane < LANES / 2 { pair & 15 } else { pair >> 4 }
}

/// Adds the products of one block of packed weights.
unsafe fn add_block(
    sum: &mut f32,
    weights: &PackedWeights,
    bytes: &[u8],
    rows: &QuantizedRows,
    row: usize,
    block: usize,
    lane: usize,
) {
    let (record, size) = (weights.record(), rows.block_size);
    let at = block * LANES + lane;
    // SAFETY: the row has this block.
    let (input, input_scale, input_sum) = unsafe {
        (
            slice::from_raw_parts(rows.values(row, block), size),
            *rows.scales(row, block),
            *rows.sums(row, block),
        )
    };
    let mut total = 0i32;
    match weights.bits() {
        Bits::Four => {
            for (column, &x) in input.iter().enumerate() {
                let byte = bytes[(block * size + column) / 8 * 4 * LANES + lane * 4 + column % 4];
                let value = if column % 8 < 4 { byte & 15 } else { byte >> 4 };
                total += i32::from(x) * i32::from(value);
            }
            let zero_point = zero_point4(bytes, &record, block, lane);
            total -= i32::from(zero_point) * input_sum;
        }
        Bits::Eight => {
            for (column, &x) in input.iter().enumerate() {
                let byte = bytes[(block * size + column) / 4 * 4 * LANES + lane * 4 + column % 4];
                total += i32::from(x) * i32::from(byte as i8);
            }
            if record.points > 0 {
                total -= i32::from(bytes[record.points + at] as i8) * input_sum;
            }
        }
    }
    let scale = scale_of(bytes, &record, at) * input_scale;
    *sum = (total as f32).mul_add(scale, *sum);
}
