//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 unsigned bytes with 64 signed ones and adds each four
//! products to an i32.

use std::{arch::x86_64::*, ops::Range};

use crate::{
    Bits, PackedWeights,
    kernel::{Kernels, Output, PANEL_GROUPS, Panel, Unpacked},
    pack::{LANES, Record},
    quantize::{Form, QuantizedRows, scale},
};

pub(crate) struct Avx512;

/// How far ahead of the arithmetic weights are asked for, in bytes. Measured: without that a token
/// takes a fifth longer, and with hints other than for the first-level cache much longer.
const AHEAD: usize = 1024;

// SAFETY: the caller has AVX-512 with VNNI; what pointers must be is said at the trait.
unsafe impl Kernels for Avx512 {
    const FEW: usize = 8;
    const TILE_ROWS: usize = 7;
    const UNSIGNED_FEW: bool = true;
    const UNSIGNED_MANY: bool = true;

    unsafe fn quantize(
        input: *const f32,
        inputs: usize,
        form: Form,
        to: &QuantizedRows,
        row: usize,
    ) {
        // SAFETY: the caller's.
        unsafe { quantize(input, inputs, form, to, row) }
    }

    unsafe fn few(
        weights: &PackedWeights,
        groups: Range<usize>,
        rows: &QuantizedRows,
        to: &Output,
    ) {
        // How many groups are read side by side, so that sums stay in registers.
        let most = if rows.rows <= 2 { 4 } else { 2 };
        let mut group = groups.start;
        while group < groups.end {
            let left = groups.end - group;
            let count = [4, 2, 1].into_iter().find(|&n| n <= most && n <= left).unwrap_or(1);
            macro_rules! rows {
                ($($rows:literal)*) => {
                    match (rows.rows, count) {
                        (1, 4) => few::<4, 1>(weights, group, rows, to),
                        (2, 4) => few::<4, 2>(weights, group, rows, to),
                        $(
                            ($rows, 2) => few::<2, $rows>(weights, group, rows, to),
                            ($rows, _) => few::<1, $rows>(weights, group, rows, to),
                        )*
                        _ => unreachable!("at most 8 rows"),
                    }
                };
            }
            // SAFETY: the caller's.
            unsafe { rows!(1 2 3 4 5 6 7 8) }
            group += count;
        }
    }

    unsafe fn unpack(weights: &PackedWeights, group: usize, blocks: Range<usize>, to: Unpacked) {
        // SAFETY: the caller's.
        unsafe { unpack(weights, group, blocks, to) }
    }

    unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
        macro_rules! rows {
            ($($rows:literal)*) => {
                match range.len() {
                    $($rows => many::<$rows>(panel, rows, range.start, to),)*
                    _ => unreachable!("at most 7 rows"),
                }
            };
        }
        // SAFETY: the caller's.
        unsafe { rows!(1 2 3 4 5 6 7) }
    }
}

/// Lanes of a vector that there are.
#[inline(always)]
pub(crate) fn mask(lanes: usize) -> __mmask16 {
    // Up to 16, which leaves no bit out.
    ((1u32 << lanes) - 1) as __mmask16
}

/// Sixteen inputs from a column on, zeros after the last.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sixteen(input: *const f32, column: usize, inputs: usize) -> __m512 {
    let lanes = inputs.saturating_sub(column).min(LANES);
    // SAFETY: only lanes within the row are read.
    unsafe { _mm512_maskz_loadu_ps(mask(lanes), input.wrapping_add(column)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn quantize(
    input: *const f32,
    inputs: usize,
    form: Form,
    to: &QuantizedRows,
    row: usize,
) {
    // Even ones of each eight, then odd ones.
    let halves = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    let sign = _mm_set1_epi8(i8::MIN);
    for block in 0..to.blocks {
        let start = block * to.block_size;
        // SAFETY: the caller's; what is read is within the row, and what is written is this block's.
        unsafe {
            let mut largest = _mm512_setzero_si512();
            for column in (start..start + to.block_size).step_by(LANES) {
                let x = _mm512_abs_ps(sixteen(input, column, inputs));
                largest = _mm512_max_epu32(largest, _mm512_castps_si512(x));
            }
            let (scale, factor) = scale(_mm512_reduce_max_epu32(largest));
            let factor = _mm512_set1_ps(factor);
            let mut sums = _mm_setzero_si128();
            for column in (start..start + to.block_size).step_by(LANES) {
                let x = _mm512_mul_ps(sixteen(input, column, inputs), factor);
                let integers = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
                sums = _mm_dpbusd_epi32(sums, _mm_set1_epi8(1), integers);
                let integers =
                    if form.by_halves { _mm_shuffle_epi8(integers, halves) } else { integers };
                let integers = if form.unsigned { _mm_xor_si128(integers, sign) } else { integers };
                _mm_storeu_si128(to.values(row, block).add(column - start).cast(), integers);
            }
            let sums: [i32; 4] = std::mem::transmute(sums);
            *to.scales(row, block) = scale;
            *to.sums(row, block) = sums.iter().sum();
        }
    }
}

/// `G` groups side by side with `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few<const G: usize, const M: usize>(
    weights: &PackedWeights,
    group: usize,
    rows: &QuantizedRows,
    to: &Output,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); M]; G];
        for g in 0..G {
            if let Some(bias) = to.bias(group + g) {
                let bias = _mm512_maskz_loadu_ps(mask(to.lanes(group + g)), bias);
                sums[g] = [bias; M];
            }
        }
        match weights.bits() {
            Bits::Four => few4(weights, group, rows, &mut sums),
            Bits::Eight => few8(weights, group, rows, &mut sums),
        }
        for g in 0..G {
            let mask = mask(to.lanes(group + g));
            for m in 0..M {
                _mm512_mask_storeu_ps(to.row(m, group + g), mask, sums[g][m]);
            }
        }
    }
}

/// Scales of a block of 4-bit weights.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scales4(start: *const u8, record: &Record, block: usize) -> __m512 {
    // SAFETY: the caller's; within the group's record.
    unsafe {
        let scales = start.add(record.scales);
        if record.half_scales {
            let halves = _mm256_loadu_si256(scales.add(block * LANES * 2).cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        } else {
            _mm512_loadu_ps(scales.add(block * LANES * 4).cast())
        }
    }
}

/// Zero points of a block of 4-bit weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn points4(start: *const u8, record: &Record, block: usize) -> __m512i {
    if record.points == 0 {
        return _mm512_set1_epi32(8);
    }
    let low = _mm_set1_epi8(0x0F);
    // SAFETY: the caller's; within the group's record.
    let pairs = unsafe { _mm_loadl_epi64(start.add(record.points + block * LANES / 2).cast()) };
    let first = _mm_and_si128(pairs, low);
    let second = _mm_and_si128(_mm_srli_epi16::<4>(pairs), low);
    _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(first, second))
}

/// Asks for what the next groups have beside their integers, a part for each block of this one.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn prefetch_rest<const G: usize>(weights: &PackedWeights, group: usize, block: usize) {
    let record = weights.record();
    let next = weights.group(group).wrapping_add(G * record.len + record.scales);
    let rest = record.len - record.scales;
    // Two lines a block are more than enough.
    for line in [2 * block, 2 * block + 1] {
        if line * 64 < rest {
            for g in 0..G {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(g * record.len + line * 64).cast());
            }
        }
    }
}

/// Where weights are `AHEAD` of a place in the integers, from that place on: after the last ones come
/// those of the groups that are next.
#[inline(always)]
fn ahead<const G: usize>(weights: &PackedWeights, place: usize) -> usize {
    let record = weights.record();
    if place + AHEAD < record.scales { AHEAD } else { AHEAD + G * record.len - record.scales }
}

/// Weights of 4 bits are the unsigned ones; the zero point enters as `-zero point * sum of inputs`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few4<const G: usize, const M: usize>(
    weights: &PackedWeights,
    group: usize,
    rows: &QuantizedRows,
    sums: &mut [[__m512; M]; G],
) {
    let (record, size) = (weights.record(), weights.block_size());
    let start = weights.group(group);
    let (low_mask, high_mask) = (_mm512_set1_epi8(0x0F), _mm512_set1_epi8(0xF0u8 as i8));
    // Upper halves stay where they are, times 16, with sums of their own that are shifted once a block.
    // Beyond four rows there are no registers for that.
    let keeps_high = M <= 4;
    for block in 0..weights.blocks() {
        // SAFETY: the caller's; all is within the groups' records and the quantized rows.
        unsafe {
            let mut low = [[_mm512_setzero_si512(); M]; G];
            let mut high = [[_mm512_setzero_si512(); M]; G];
            for g in 0..G {
                let points = points4(start.add(g * record.len), &record, block);
                for m in 0..M {
                    let minus_sum = _mm512_set1_epi32(-*rows.sums(m, block));
                    low[g][m] = _mm512_mullo_epi32(points, minus_sum);
                }
            }
            prefetch_rest::<G>(weights, group, block);
            let place = block * size * LANES / 2;
            let ahead = ahead::<G>(weights, place);
            for word in 0..size / 8 {
                for g in 0..G {
                    let values = start.add(g * record.len + place + word * 64);
                    _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(ahead).cast());
                    let values = _mm512_loadu_si512(values.cast());
                    let even = _mm512_and_si512(values, low_mask);
                    let odd = if keeps_high {
                        _mm512_and_si512(values, high_mask)
                    } else {
                        _mm512_and_si512(_mm512_srli_epi16::<4>(values), low_mask)
                    };
                    for m in 0..M {
                        let x = rows.values(m, block).add(word * 8).cast::<i32>();
                        let (x_even, x_odd) = (
                            _mm512_set1_epi32(x.read_unaligned()),
                            _mm512_set1_epi32(x.add(1).read_unaligned()),
                        );
                        low[g][m] = _mm512_dpbusd_epi32(low[g][m], even, x_even);
                        if keeps_high {
                            high[g][m] = _mm512_dpbusd_epi32(high[g][m], odd, x_odd);
                        } else {
                            low[g][m] = _mm512_dpbusd_epi32(low[g][m], odd, x_odd);
                        }
                    }
                }
            }
            for g in 0..G {
                let scales = scales4(start.add(g * record.len), &record, block);
                for m in 0..M {
                    let mut total = low[g][m];
                    if keeps_high {
                        total = _mm512_add_epi32(total, _mm512_srai_epi32::<4>(high[g][m]));
                    }
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*rows.scales(m, block)));
                    sums[g][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, sums[g][m]);
                }
            }
        }
    }
}

/// Weights of 8 bits are the signed ones; 128 was added to the inputs, which the offsets make up for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few8<const G: usize, const M: usize>(
    weights: &PackedWeights,
    group: usize,
    rows: &QuantizedRows,
    sums: &mut [[__m512; M]; G],
) {
    let (record, size) = (weights.record(), weights.block_size());
    let start = weights.group(group);
    for block in 0..weights.blocks() {
        // SAFETY: the caller's; all is within the groups' records and the quantized rows.
        unsafe {
            let mut totals = [[_mm512_setzero_si512(); M]; G];
            for g in 0..G {
                let offsets = start.add(g * record.len + record.offsets + block * 64);
                totals[g] = [_mm512_loadu_si512(offsets.cast()); M];
                if record.points > 0 {
                    let points = start.add(g * record.len + record.points + block * LANES);
                    let points = _mm512_cvtepi8_epi32(_mm_loadu_si128(points.cast()));
                    for m in 0..M {
                        let sum = _mm512_set1_epi32(*rows.sums(m, block));
                        let excess = _mm512_mullo_epi32(points, sum);
                        totals[g][m] = _mm512_sub_epi32(totals[g][m], excess);
                    }
                }
            }
            prefetch_rest::<G>(weights, group, block);
            let place = block * size * LANES;
            let ahead = ahead::<G>(weights, place);
            for word in 0..size / 4 {
                for g in 0..G {
                    let values = start.add(g * record.len + place + word * 64);
                    _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(ahead).cast());
                    let values = _mm512_loadu_si512(values.cast());
                    for m in 0..M {
                        let x = rows.values(m, block).add(word * 4).cast::<i32>();
                        let x = _mm512_set1_epi32(x.read_unaligned());
                        totals[g][m] = _mm512_dpbusd_epi32(totals[g][m], x, values);
                    }
                }
            }
            for g in 0..G {
                let scales = start.add(g * record.len + record.scales + block * 64);
                let scales = _mm512_loadu_ps(scales.cast());
                for m in 0..M {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*rows.scales(m, block)));
                    let total = _mm512_cvtepi32_ps(totals[g][m]);
                    sums[g][m] = _mm512_fmadd_ps(total, scale, sums[g][m]);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn unpack(
    weights: &PackedWeights,
    group: usize,
    blocks: Range<usize>,
    to: Unpacked,
) {
    let (record, size) = (weights.record(), weights.block_size());
    let start = weights.group(group);
    let low = _mm512_set1_epi8(0x0F);
    let one_two_eight = _mm512_set1_epi8(i8::MIN);
    // The lowest byte of each u32 in all four.
    let spread = _mm512_set4_epi32(0x0C0C_0C0C, 0x0808_0808, 0x0404_0404, 0);
    for (index, block) in blocks.enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let points = _mm512_shuffle_epi8(points4(start, &record, block), spread);
            let mut sums = _mm512_setzero_si512();
            for word in 0..size / 8 {
                let from = start.add((block * size / 8 + word) * 64);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4096).cast());
                let pairs = _mm512_loadu_si512(from.cast());
                let even = _mm512_sub_epi8(_mm512_and_si512(pairs, low), points);
                let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low);
                let odd = _mm512_sub_epi8(odd, points);
                sums = _mm512_dpbusd_epi32(sums, one_two_eight, even);
                sums = _mm512_dpbusd_epi32(sums, one_two_eight, odd);
                let values = to.values.add((index * size / 4 + 2 * word) * 64);
                _mm512_storeu_si512(values.cast(), even);
                _mm512_storeu_si512(values.add(64).cast(), odd);
            }
            let sums = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
            _mm512_storeu_si512(to.offsets.add(index * LANES).cast(), sums);
            _mm512_storeu_ps(to.scales.add(index * LANES), scales4(start, &record, block));
        }
    }
}

/// Asks for the lines of the output that a row of a panel is written to, to write them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn prefetch_output(panel: &Panel, row: usize, to: &Output) {
    let output = to.row(row, panel.group).cast::<i8>();
    for line in 0..PANEL_GROUPS {
        _mm_prefetch::<_MM_HINT_ET0>(output.wrapping_add(line * 64));
    }
}

/// What the outputs of one row and group are before the panel's blocks.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn start(panel: &Panel, row: usize, slot: usize, to: &Output) -> __m512 {
    let group = panel.group + slot;
    // SAFETY: the caller's; masked lanes are not touched.
    unsafe {
        match (panel.first_block, to.bias(group)) {
            (0, None) => _mm512_setzero_ps(),
            (0, Some(bias)) => _mm512_maskz_loadu_ps(mask(to.lanes(group)), bias),
            _ => _mm512_load_ps(panel.sums(row).add(slot * LANES)),
        }
    }
}

/// `M` rows with a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn many<const M: usize>(panel: &Panel, rows: &QuantizedRows, row: usize, to: &Output) {
    let masks = [0, 1].map(|slot| mask(to.lanes(panel.group + slot)));
    // SAFETY: the caller's; masked lanes are not touched.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); PANEL_GROUPS]; M];
        for m in 0..M {
            if panel.is_last {
                prefetch_output(panel, row + m, to);
            }
            for slot in 0..PANEL_GROUPS {
                sums[m][slot] = start(panel, row + m, slot, to);
            }
        }
        for index in 0..panel.blocks {
            let block = panel.first_block + index;
            let mut totals = [[_mm512_setzero_si512(); PANEL_GROUPS]; M];
            for slot in 0..PANEL_GROUPS {
                let offsets = panel.offsets[slot].add(index * LANES);
                let offsets = _mm512_loadu_si512(offsets.cast());
                for m in 0..M {
                    totals[m][slot] = offsets;
                }
                if !panel.points[slot].is_null() {
                    let points = panel.points[slot].add(index * LANES);
                    let points = _mm512_cvtepi8_epi32(_mm_loadu_si128(points.cast()));
                    for m in 0..M {
                        let sum = _mm512_set1_epi32(*rows.sums(row + m, block));
                        let excess = _mm512_mullo_epi32(points, sum);
                        totals[m][slot] = _mm512_sub_epi32(totals[m][slot], excess);
                    }
                }
            }
            let place = index * rows.block_size * LANES;
            let values = panel.values.map(|values| values.add(place));
            let input = rows.values(row, block);
            for four in 0..rows.block_size / 4 {
                let weights = values.map(|values| _mm512_loadu_si512(values.add(four * 64).cast()));
                for m in 0..M {
                    let x = input.add(m * rows.stride + four * 4).cast::<i32>();
                    let x = _mm512_set1_epi32(x.read_unaligned());
                    for slot in 0..PANEL_GROUPS {
                        totals[m][slot] = _mm512_dpbusd_epi32(totals[m][slot], x, weights[slot]);
                    }
                }
            }
            for slot in 0..PANEL_GROUPS {
                let scales = _mm512_loadu_ps(panel.scales[slot].add(index * LANES));
                for m in 0..M {
                    let scale = _mm512_set1_ps(*rows.scales(row + m, block));
                    let total = _mm512_cvtepi32_ps(totals[m][slot]);
                    let scale = _mm512_mul_ps(scales, scale);
                    sums[m][slot] = _mm512_fmadd_ps(total, scale, sums[m][slot]);
                }
            }
        }
        for m in 0..M {
            for slot in 0..PANEL_GROUPS {
                if panel.is_last {
                    let output = to.row(row + m, panel.group + slot);
                    _mm512_mask_storeu_ps(output, masks[slot], sums[m][slot]);
                } else {
                    let between = panel.sums(row + m).add(slot * LANES);
                    _mm512_store_ps(between, sums[m][slot]);
                }
            }
        }
    }
}
