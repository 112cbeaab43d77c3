//! AMX: a tile is 16 rows of 64 bytes, and one instruction multiplies 16 rows of inputs with 16 rows of
//! weights, 64 of each, into 16 x 16 sums. Rust has no stable functions for it, so they are written as
//! assembly; what is computed in floating point, and few rows, is AVX-512's.

use std::{
    arch::{asm, x86_64::*},
    ops::Range,
};

use crate::{
    PackedWeights,
    avx512::{self, Avx512},
    kernel::{Kernels, Output, PANEL_GROUPS, Panel, Unpacked},
    pack::LANES,
    quantize::{Form, QuantizedRows},
    tiles::{self, BYTES, Configuration, ROWS},
};

pub(crate) struct Amx;

/// Tiles of inputs that are multiplied with both groups of a panel.
const ROW_TILES: usize = 2;

// SAFETY: the caller has AMX; what pointers must be is said at the trait.
unsafe impl Kernels for Amx {
    const FEW: usize = 8;
    const TILE_ROWS: usize = ROW_TILES * ROWS;
    const UNSIGNED_FEW: bool = Avx512::UNSIGNED_FEW;
    const UNSIGNED_MANY: bool = false;

    unsafe fn quantize(
        input: *const f32,
        inputs: usize,
        form: Form,
        to: &QuantizedRows,
        row: usize,
    ) {
        // SAFETY: the caller's.
        unsafe { avx512::quantize(input, inputs, form, to, row) }
    }

    unsafe fn few(
        weights: &PackedWeights,
        groups: Range<usize>,
        rows: &QuantizedRows,
        to: &Output,
    ) {
        // SAFETY: the caller's.
        unsafe { Avx512::few(weights, groups, rows, to) }
    }

    unsafe fn unpack(weights: &PackedWeights, group: usize, blocks: Range<usize>, to: Unpacked) {
        // SAFETY: the caller's.
        unsafe { avx512::unpack(weights, group, blocks, to) }
    }

    unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
        // SAFETY: the caller's.
        unsafe { many(panel, rows, range, to) }
    }

    fn with_tiles(block_size: usize, work: impl FnOnce()) {
        Configuration::new(block_size.min(BYTES)).load();
        work();
        tiles::release();
    }
}

/// Sums of both groups and both tiles of rows: [group, tile of rows, 16 rows, 16 outputs].
#[repr(C, align(64))]
struct Totals([[[[i32; LANES]; ROWS]; ROW_TILES]; PANEL_GROUPS]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output) {
    let masks = [0, 1].map(|slot| avx512::mask(to.lanes(panel.group + slot)));
    let mut totals = [const { Totals([[[[0; LANES]; ROWS]; ROW_TILES]; PANEL_GROUPS]) }; 2];
    // SAFETY: the caller's; masked lanes are not touched. Rows past the last are read where there is
    // room for them, and their sums are not written.
    unsafe {
        for row in range.clone() {
            for slot in 0..PANEL_GROUPS {
                let start = avx512::start(panel, row, slot, to);
                _mm512_store_ps(panel.sums(row).add(slot * LANES), start);
            }
            if panel.is_last {
                avx512::prefetch_output(panel, row, to);
            }
        }
        // One block ahead: what a tile has stored cannot be loaded at once.
        let multiply = |index: usize, totals: &mut Totals| {
            let inputs = rows.values(range.start, panel.first_block + index).cast_const();
            let place = index * rows.block_size * LANES;
            let values = panel.values.map(|values| values.add(place));
            let steps = rows.block_size.div_ceil(BYTES);
            if range.len() > ROWS {
                two_by_two(inputs, rows.stride, values, steps, totals)
            } else {
                one_by_two(inputs, rows.stride, values, steps, totals)
            }
        };
        multiply(0, &mut totals[0]);
        for index in 0..panel.blocks {
            let block = panel.first_block + index;
            if index + 1 < panel.blocks {
                multiply(index + 1, &mut totals[(index + 1) % 2]);
            }
            let totals = &mut totals[index % 2];
            let at = index * LANES;
            if !panel.points[0].is_null() {
                subtract_points(panel, rows, range.clone(), index, totals);
            }
            let scales = panel.scales.map(|scales| _mm512_loadu_ps(scales.add(at)));
            let input_scales = rows.scales(range.start, block);
            // What the tiles of the block after next read comes from the second-level cache.
            let next = rows.values(range.start, block + 2).cast_const();
            let [first, second] = totals.0.each_ref().map(|totals| totals.as_ptr().cast::<i32>());
            let sums = panel.sums(range.start);
            for row in 0..range.len() {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(row * rows.stride));
                let input_scale = _mm512_set1_ps(*input_scales.add(row));
                for (slot, totals) in [first, second].into_iter().enumerate() {
                    let total = _mm512_load_si512(totals.add(row * LANES).cast());
                    let scale = _mm512_mul_ps(scales[slot], input_scale);
                    let sum = sums.add((row * PANEL_GROUPS + slot) * LANES);
                    let total = _mm512_cvtepi32_ps(total);
                    _mm512_store_ps(sum, _mm512_fmadd_ps(total, scale, _mm512_load_ps(sum)));
                }
            }
        }
        if panel.is_last {
            for row in range {
                for slot in 0..PANEL_GROUPS {
                    let sum = _mm512_load_ps(panel.sums(row).add(slot * LANES));
                    let output = to.row(row, panel.group + slot);
                    _mm512_mask_storeu_ps(output, masks[slot], sum);
                }
            }
        }
    }
}

/// Subtracts what zero points add to the totals of a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn subtract_points(
    panel: &Panel,
    rows: &QuantizedRows,
    range: Range<usize>,
    index: usize,
    totals: &mut Totals,
) {
    let sums = rows.sums(range.start, panel.first_block + index);
    for slot in 0..PANEL_GROUPS {
        // SAFETY: the caller's.
        unsafe {
            let points = panel.points[slot].add(index * LANES);
            let points = _mm512_cvtepi8_epi32(_mm_loadu_si128(points.cast()));
            let totals = totals.0[slot].as_mut_ptr().cast::<i32>();
            for row in 0..range.len() {
                let total = totals.add(row * LANES).cast();
                let excess = _mm512_mullo_epi32(points, _mm512_set1_epi32(*sums.add(row)));
                _mm512_store_si512(total, _mm512_sub_epi32(_mm512_load_si512(total), excess));
            }
        }
    }
}

/// 32 rows of inputs, `stride` bytes apart, with 16 weights of both groups.
#[inline(always)]
unsafe fn two_by_two(
    inputs: *const i8,
    stride: usize,
    weights: [*const i8; PANEL_GROUPS],
    steps: usize,
    totals: &mut Totals,
) {
    let second = inputs.wrapping_add(ROWS * stride);
    // SAFETY: the tiles are set up, and read and write what the caller says there is.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{inputs} + {stride}]",
            "tileloadd tmm6, [{first} + {bytes}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{second} + {stride}]",
            "tdpbssd tmm1, tmm5, tmm6",
            "tileloadd tmm7, [{other} + {bytes}]",
            "tdpbssd tmm2, tmm4, tmm7",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {inputs}, 64",
            "add {second}, 64",
            "add {first}, 1024",
            "add {other}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{totals} + {bytes}], tmm0",
            "tilestored [{totals} + {bytes} + 1024], tmm1",
            "tilestored [{totals} + {bytes} + 2048], tmm2",
            "tilestored [{totals} + {bytes} + 3072], tmm3",
            inputs = inout(reg) inputs => _,
            second = inout(reg) second => _,
            first = inout(reg) weights[0] => _,
            other = inout(reg) weights[1] => _,
            steps = inout(reg) steps => _,
            stride = in(reg) stride,
            bytes = in(reg) BYTES,
            totals = in(reg) totals,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows of inputs, `stride` bytes apart, with 16 weights of both groups.
#[inline(always)]
unsafe fn one_by_two(
    inputs: *const i8,
    stride: usize,
    weights: [*const i8; PANEL_GROUPS],
    steps: usize,
    totals: &mut Totals,
) {
    // SAFETY: the tiles are set up, and read and write what the caller says there is.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm2",
            "2:",
            "tileloadd tmm4, [{inputs} + {stride}]",
            "tileloadd tmm6, [{first} + {bytes}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{other} + {bytes}]",
            "tdpbssd tmm2, tmm4, tmm7",
            "add {inputs}, 64",
            "add {first}, 1024",
            "add {other}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{totals} + {bytes}], tmm0",
            "tilestored [{totals} + {bytes} + 2048], tmm2",
            inputs = inout(reg) inputs => _,
            first = inout(reg) weights[0] => _,
            other = inout(reg) weights[1] => _,
            steps = inout(reg) steps => _,
            stride = in(reg) stride,
            bytes = in(reg) BYTES,
            totals = in(reg) totals,
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
