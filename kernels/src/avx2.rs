//! AVX2, with or without VNNI. The sixteen rows of a group are two vectors of eight.

use std::{arch::x86_64::*, marker::PhantomData, ops::Range};

use crate::{
    Bits, PackedWeights,
    kernel::{Kernels, Output, PANEL_GROUPS, Panel, Unpacked},
    pack::{LANES, Record},
    quantize::{Form, QuantizedRows, scale},
};

/// Vectors of a group.
const HALVES: usize = 2;
/// Lanes of a vector.
const HALF: usize = LANES / HALVES;

/// How far ahead of the arithmetic weights are asked for, in bytes.
const AHEAD: usize = 1024;

pub(crate) struct Avx2<D>(PhantomData<D>);

/// Sums of four products of bytes in each lane.
///
/// # Safety
/// Its functions need AVX2, and [`Vnni`]'s AVX-VNNI, too.
pub(crate) unsafe trait Dot {
    /// Whether [`signed`](Self::signed) takes inputs to which 128 was added.
    const UNSIGNED: bool;

    /// Adds the products of weights below 16 with inputs of -127..=127: even ones, and odd ones.
    unsafe fn halves(total: __m256i, weights: [__m256i; 2], inputs: [__m256i; 2]) -> __m256i;

    /// Adds the products of weights of -128..=127 with inputs.
    unsafe fn signed(total: __m256i, weights: __m256i, inputs: __m256i) -> __m256i;
}

/// One instruction.
pub(crate) struct Vnni;

/// Products to sums of two in 16 bits, then to sums of four in 32.
pub(crate) struct Maddubs;

// SAFETY: the caller has AVX-VNNI.
unsafe impl Dot for Vnni {
    const UNSIGNED: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,avxvnni")]
    unsafe fn halves(total: __m256i, weights: [__m256i; 2], inputs: [__m256i; 2]) -> __m256i {
        let total = _mm256_dpbusd_avx_epi32(total, weights[0], inputs[0]);
        _mm256_dpbusd_avx_epi32(total, weights[1], inputs[1])
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avxvnni")]
    unsafe fn signed(total: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(total, inputs, weights)
    }
}

// SAFETY: the caller has AVX2.
unsafe impl Dot for Maddubs {
    const UNSIGNED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn halves(total: __m256i, weights: [__m256i; 2], inputs: [__m256i; 2]) -> __m256i {
        // Four products of 15 * 127 at most are far from the end of 16 bits.
        let even = _mm256_maddubs_epi16(weights[0], inputs[0]);
        let odd = _mm256_maddubs_epi16(weights[1], inputs[1]);
        let sums = _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
        _mm256_add_epi32(total, sums)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn signed(total: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
        // The weight's sign goes to the input, which has no -128: two products of 128 * 127 at most
        // just fit into 16 bits.
        let inputs = _mm256_sign_epi8(inputs, weights);
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), inputs);
        _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The kernels with one way to multiply. The functions below are inlined into these, which have its
/// instructions.
macro_rules! kernels {
    ($dot:ident, $features:literal) => {
        // SAFETY: the caller has the instructions; what pointers must be is said at the trait.
        unsafe impl Kernels for Avx2<$dot> {
            const FEW: usize = 4;
            const TILE_ROWS: usize = 3;
            const UNSIGNED_FEW: bool = $dot::UNSIGNED;
            const UNSIGNED_MANY: bool = $dot::UNSIGNED;

            #[target_feature(enable = $features)]
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

            #[target_feature(enable = $features)]
            unsafe fn few(
                weights: &PackedWeights,
                groups: Range<usize>,
                rows: &QuantizedRows,
                to: &Output,
            ) {
                // SAFETY: the caller's.
                unsafe { few_groups::<$dot>(weights, groups, rows, to) }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack(
                weights: &PackedWeights,
                group: usize,
                blocks: Range<usize>,
                to: Unpacked,
            ) {
                // SAFETY: the caller's.
                unsafe { unpack(weights, group, blocks, to) }
            }

            #[target_feature(enable = $features)]
            unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
                // SAFETY: the caller's.
                unsafe { many_rows::<$dot>(panel, rows, range, to) }
            }
        }
    };
}

kernels!(Maddubs, "avx2,fma");
kernels!(Vnni, "avx2,fma,avxvnni");

/// Lanes of one half of a group that there are, each all ones or zeros.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask(lanes: usize, half: usize) -> __m256i {
    let lanes = lanes.saturating_sub(half * HALF) as i32;
    _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Eight inputs from a column on, zeros after the last.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn eight(input: *const f32, column: usize, inputs: usize) -> __m256 {
    let mask = mask(inputs.saturating_sub(column), 0);
    // SAFETY: only lanes within the row are read.
    unsafe { _mm256_maskload_ps(input.wrapping_add(column), mask) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn quantize(input: *const f32, inputs: usize, form: Form, to: &QuantizedRows, row: usize) {
    let no_sign = _mm256_set1_epi32(i32::MAX);
    // Even ones of eight, then odd ones.
    let halves = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    for block in 0..to.blocks {
        let start = block * to.block_size;
        // SAFETY: the caller's; what is read is within the row, and what is written is this block's.
        unsafe {
            let mut largest = _mm256_setzero_si256();
            for column in (start..start + to.block_size).step_by(HALF) {
                let x = _mm256_castps_si256(eight(input, column, inputs));
                largest = _mm256_max_epu32(largest, _mm256_and_si256(x, no_sign));
            }
            let largest: [u32; HALF] = std::mem::transmute(largest);
            let (scale, factor) = scale(largest.into_iter().max().unwrap_or_default());
            let factor = _mm256_set1_ps(factor);
            let mut sums = _mm256_setzero_si256();
            for column in (start..start + to.block_size).step_by(HALF) {
                let x = _mm256_mul_ps(eight(input, column, inputs), factor);
                let integers = _mm256_cvtps_epi32(x);
                sums = _mm256_add_epi32(sums, integers);
                let low = _mm256_castsi256_si128(integers);
                let words = _mm_packs_epi32(low, _mm256_extracti128_si256::<1>(integers));
                let bytes = _mm_packs_epi16(words, words);
                let bytes = if form.by_halves { _mm_shuffle_epi8(bytes, halves) } else { bytes };
                let sign = _mm_set1_epi8(if form.unsigned { i8::MIN } else { 0 });
                let place = to.values(row, block).add(column - start);
                _mm_storel_epi64(place.cast(), _mm_xor_si128(bytes, sign));
            }
            let sums: [i32; HALF] = std::mem::transmute(sums);
            *to.scales(row, block) = scale;
            *to.sums(row, block) = sums.into_iter().fold(0, i32::wrapping_add);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn few_groups<D: Dot>(
    weights: &PackedWeights,
    groups: Range<usize>,
    rows: &QuantizedRows,
    to: &Output,
) {
    for group in groups {
        // SAFETY: the caller's.
        unsafe {
            match rows.rows {
                1 => few::<D, 1>(weights, group, rows, to),
                2 => few::<D, 2>(weights, group, rows, to),
                3 => few::<D, 3>(weights, group, rows, to),
                _ => few::<D, 4>(weights, group, rows, to),
            }
        }
    }
}

/// Scales of half a block of 4-bit weights.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scales4(start: *const u8, record: &Record, block: usize, half: usize) -> __m256 {
    let lane = block * LANES + half * HALF;
    // SAFETY: the caller's; within the group's record.
    unsafe {
        let scales = start.add(record.scales);
        if record.half_scales {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(scales.add(2 * lane).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        } else {
            _mm256_loadu_ps(scales.add(4 * lane).cast())
        }
    }
}

/// Zero points of half a block of 4-bit weights.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn points4(start: *const u8, record: &Record, block: usize, half: usize) -> __m256i {
    if record.points == 0 {
        return _mm256_set1_epi32(8);
    }
    // SAFETY: the caller's; within the group's record.
    let pairs = unsafe { _mm_loadl_epi64(start.add(record.points + block * HALF).cast()) };
    let points = if half == 0 { pairs } else { _mm_srli_epi16::<4>(pairs) };
    _mm256_cvtepu8_epi32(_mm_and_si128(points, _mm_set1_epi8(0x0F)))
}

/// One group with `M` rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn few<D: Dot, const M: usize>(
    weights: &PackedWeights,
    group: usize,
    rows: &QuantizedRows,
    to: &Output,
) {
    let lanes = to.lanes(group);
    let masks = [mask(lanes, 0), mask(lanes, 1)];
    let (record, size) = (weights.record(), weights.block_size());
    let start = weights.group(group);
    let low_mask = _mm256_set1_epi8(0x0F);
    // SAFETY: the caller's; all is within the group's record, the quantized rows and the output.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); HALVES]; M];
        if let Some(bias) = to.bias(group) {
            for half in 0..HALVES {
                let bias = _mm256_maskload_ps(bias.wrapping_add(half * HALF), masks[half]);
                for sums in &mut sums {
                    sums[half] = bias;
                }
            }
        }
        for block in 0..weights.blocks() {
            let at = block * LANES;
            let mut totals = [[_mm256_setzero_si256(); HALVES]; M];
            for half in 0..HALVES {
                let lane = at + half * HALF;
                let points = match (weights.bits(), record.points) {
                    (Bits::Four, _) => points4(start, &record, block, half),
                    (Bits::Eight, 0) => _mm256_setzero_si256(),
                    (Bits::Eight, points) => {
                        _mm256_cvtepi8_epi32(_mm_loadl_epi64(start.add(points + lane).cast()))
                    }
                };
                let offsets = match weights.bits() {
                    Bits::Eight if D::UNSIGNED => {
                        _mm256_loadu_si256(start.add(record.offsets + 4 * lane).cast())
                    }
                    _ => _mm256_setzero_si256(),
                };
                for m in 0..M {
                    let sum = _mm256_set1_epi32(*rows.sums(m, block));
                    let excess = _mm256_mullo_epi32(points, sum);
                    totals[m][half] = _mm256_sub_epi32(offsets, excess);
                }
            }
            match weights.bits() {
                Bits::Four => {
                    let values = start.add(block * size * LANES / 2);
                    for word in 0..size / 8 {
                        let values = values.add(word * 64);
                        _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(AHEAD).cast());
                        for half in 0..HALVES {
                            let pairs = _mm256_loadu_si256(values.add(half * 32).cast());
                            let even = _mm256_and_si256(pairs, low_mask);
                            let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low_mask);
                            for m in 0..M {
                                let x = rows.values(m, block).add(word * 8).cast::<i32>();
                                let x = [
                                    _mm256_set1_epi32(x.read_unaligned()),
                                    _mm256_set1_epi32(x.add(1).read_unaligned()),
                                ];
                                totals[m][half] = D::halves(totals[m][half], [even, odd], x);
                            }
                        }
                    }
                }
                Bits::Eight => {
                    let values = start.add(block * size * LANES);
                    for word in 0..size / 4 {
                        let values = values.add(word * 64);
                        _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(AHEAD).cast());
                        for half in 0..HALVES {
                            let values = _mm256_loadu_si256(values.add(half * 32).cast());
                            for m in 0..M {
                                let x = rows.values(m, block).add(word * 4).cast::<i32>();
                                let x = _mm256_set1_epi32(x.read_unaligned());
                                totals[m][half] = D::signed(totals[m][half], values, x);
                            }
                        }
                    }
                }
            }
            for half in 0..HALVES {
                let scales = match weights.bits() {
                    Bits::Four => scales4(start, &record, block, half),
                    Bits::Eight => {
                        let scales = start.add(record.scales + 4 * (at + half * HALF));
                        _mm256_loadu_ps(scales.cast())
                    }
                };
                for m in 0..M {
                    let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*rows.scales(m, block)));
                    let total = _mm256_cvtepi32_ps(totals[m][half]);
                    sums[m][half] = _mm256_fmadd_ps(total, scale, sums[m][half]);
                }
            }
        }
        for m in 0..M {
            for half in 0..HALVES {
                let output = to.row(m, group).wrapping_add(half * HALF);
                _mm256_maskstore_ps(output, masks[half], sums[m][half]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn unpack(weights: &PackedWeights, group: usize, blocks: Range<usize>, to: Unpacked) {
    let (record, size) = (weights.record(), weights.block_size());
    let start = weights.group(group);
    let low = _mm256_set1_epi8(0x0F);
    let ones = _mm256_set1_epi16(1);
    for (index, block) in blocks.enumerate() {
        for half in 0..HALVES {
            let lane = half * HALF;
            // SAFETY: the caller's.
            unsafe {
                let points = points4(start, &record, block, half);
                let points = _mm256_mullo_epi32(points, _mm256_set1_epi32(0x0101_0101));
                let mut sums = _mm256_setzero_si256();
                for word in 0..size / 8 {
                    let from = start.add((block * size / 8 + word) * 64 + half * 32);
                    let pairs = _mm256_loadu_si256(from.cast());
                    let even = _mm256_sub_epi8(_mm256_and_si256(pairs, low), points);
                    let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low);
                    let odd = _mm256_sub_epi8(odd, points);
                    // Sums of two of -15..=15, then of four.
                    let both = _mm256_add_epi8(even, odd);
                    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), both);
                    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
                    let values = to.values.add((index * size / 4 + 2 * word) * 64 + half * 32);
                    _mm256_storeu_si256(values.cast(), even);
                    _mm256_storeu_si256(values.add(64).cast(), odd);
                }
                let sums = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-128));
                _mm256_storeu_si256(to.offsets.add(index * LANES + lane).cast(), sums);
                let scales = scales4(start, &record, block, half);
                _mm256_storeu_ps(to.scales.add(index * LANES + lane), scales);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn many_rows<D: Dot>(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
    // SAFETY: the caller's.
    unsafe {
        match range.len() {
            1 => many::<D, 1>(panel, rows, range.start, to),
            2 => many::<D, 2>(panel, rows, range.start, to),
            _ => many::<D, 3>(panel, rows, range.start, to),
        }
    }
}

/// `M` rows with a panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn many<D: Dot, const M: usize>(
    panel: &Panel,
    rows: &QuantizedRows,
    row: usize,
    to: &Output,
) {
    // One half of both groups at a time: more would not stay in registers.
    for half in 0..HALVES {
        let lane = half * HALF;
        let masks = [0, 1].map(|slot| mask(to.lanes(panel.group + slot), half));
        // SAFETY: the caller's; masked lanes are not touched.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); PANEL_GROUPS]; M];
            for slot in 0..PANEL_GROUPS {
                for m in 0..M {
                    sums[m][slot] = match (panel.first_block, to.bias(panel.group + slot)) {
                        (0, None) => _mm256_setzero_ps(),
                        (0, Some(bias)) => _mm256_maskload_ps(bias.wrapping_add(lane), masks[slot]),
                        _ => _mm256_load_ps(panel.sums(row + m).add(slot * LANES + lane)),
                    };
                }
            }
            for index in 0..panel.blocks {
                let block = panel.first_block + index;
                let at = index * LANES + lane;
                let mut totals = [[_mm256_setzero_si256(); PANEL_GROUPS]; M];
                for slot in 0..PANEL_GROUPS {
                    let offsets = if D::UNSIGNED {
                        _mm256_loadu_si256(panel.offsets[slot].add(at).cast())
                    } else {
                        _mm256_setzero_si256()
                    };
                    for m in 0..M {
                        totals[m][slot] = offsets;
                    }
                    if !panel.points[slot].is_null() {
                        let points = _mm_loadl_epi64(panel.points[slot].add(at).cast());
                        let points = _mm256_cvtepi8_epi32(points);
                        for m in 0..M {
                            let sum = _mm256_set1_epi32(*rows.sums(row + m, block));
                            let excess = _mm256_mullo_epi32(points, sum);
                            totals[m][slot] = _mm256_sub_epi32(totals[m][slot], excess);
                        }
                    }
                }
                let place = index * rows.block_size * LANES + half * 32;
                let values = panel.values.map(|values| values.add(place));
                let input = rows.values(row, block);
                for four in 0..rows.block_size / 4 {
                    let weights =
                        values.map(|values| _mm256_loadu_si256(values.add(four * 64).cast()));
                    for m in 0..M {
                        let x = input.add(m * rows.stride + four * 4).cast::<i32>();
                        let x = _mm256_set1_epi32(x.read_unaligned());
                        for slot in 0..PANEL_GROUPS {
                            totals[m][slot] = D::signed(totals[m][slot], weights[slot], x);
                        }
                    }
                }
                for slot in 0..PANEL_GROUPS {
                    let scales = _mm256_loadu_ps(panel.scales[slot].add(at));
                    for m in 0..M {
                        let scale = _mm256_set1_ps(*rows.scales(row + m, block));
                        let total = _mm256_cvtepi32_ps(totals[m][slot]);
                        let scale = _mm256_mul_ps(scales, scale);
                        sums[m][slot] = _mm256_fmadd_ps(total, scale, sums[m][slot]);
                    }
                }
            }
            for m in 0..M {
                for slot in 0..PANEL_GROUPS {
                    if panel.is_last {
                        let output = to.row(row + m, panel.group + slot).wrapping_add(lane);
                        _mm256_maskstore_ps(output, masks[slot], sums[m][slot]);
                    } else {
                        let between = panel.sums(row + m).add(slot * LANES + lane);
                        _mm256_store_ps(between, sums[m][slot]);
                    }
                }
            }
        }
    }
}
