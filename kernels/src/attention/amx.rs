//! Attention with AMX's tiles of bfloat16, for inputs of 16 bits.
//!
//! Two numbers of bfloat16, of 8 bits each, have 16 of a float's 24 bits. A product of such sums is that of
//! three pairs; the fourth, of the two rests, is below their last digit. Powers of e are cut into two such
//! numbers, too, and everything is added up in 32-bit floats. Below 1e-33 numbers have only 8 bits, and those
//! that bfloat16 has only as infinity (from 3.39e38 on) make an output that is no number.

use std::{
    arch::{asm, x86_64::*},
    mem::transmute,
};

use super::{Attention, Job, Part, SCRATCH};
use crate::{
    buffer::{LINE, Scratch},
    tiles::{self, BYTES, Configuration, ROWS},
    vector::{Sixteen, Vector, transposed},
};

/// Queries that meet a block of keys together: two tiles of rows.
const QUERIES: usize = 2 * ROWS;
/// Keys of a block.
const KEYS: usize = 256;
/// Numbers of a tile's row, so the steps of a sum.
const DEPTH: usize = BYTES / size_of::<u16>();
/// Sums of a tile's row.
const LANES: usize = BYTES / size_of::<f32>();
/// Bytes of a tile.
const TILE: usize = ROWS * BYTES;

/// Parts of a float.
const PARTS: usize = 2;
/// The parts of both factors that are multiplied, the smallest products first.
const PAIRS: [[usize; 2]; 3] = [[1, 0], [0, 1], [0, 0]];

impl Job<'_> {
    /// Computes the part.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn amx(&self, part: Part) {
        let seen = self.seen(part.sequence);
        let layout = Layout::new(&self.sizes, seen.len());
        let mut scratch = Scratch::take(&SCRATCH, layout.end);
        let memory = scratch.as_mut_ptr();
        Configuration::new(BYTES).load();
        // SAFETY: the caller's; the layout's parts lie within the memory.
        unsafe {
            self.split_keys(part, &seen, &layout, memory);
            self.split_values(part, &seen, &layout, memory);
            for first in (part.first..part.last).step_by(QUERIES) {
                let count = QUERIES.min(part.last - first);
                self.meet_tiles(part, first, count, &layout, memory);
            }
        }
        tiles::release();
    }

    /// Writes the keys of a head that are seen as tiles [part, 16 keys, 32 numbers], of which a row has two
    /// numbers of each key; zeros where there are none.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn split_keys(&self, part: Part, seen: &[usize], layout: &Layout, memory: *mut u8) {
        let size = self.sizes.head_size;
        // SAFETY: the caller's; within the tiles and the head's numbers.
        unsafe {
            for first in (0..layout.keys).step_by(LANES) {
                for step in 0..layout.head_steps {
                    let mut tiles = [[_mm512_setzero_si512(); LANES]; PARTS];
                    for lane in 0..LANES {
                        let Some(key) = seen.get(first + lane) else { break };
                        let row = part.sequence * self.sizes.keys + key;
                        let from = self.key[(row * self.sizes.heads + part.head) * size..].as_ptr();
                        let parts = split_row(from, size, step);
                        for number in 0..PARTS {
                            tiles[number][lane] = parts[number];
                        }
                    }
                    for number in 0..PARTS {
                        let tile = first / LANES * layout.head_steps + step;
                        let to = memory.add(layout.key_tiles[number] + tile * TILE);
                        for (row, pairs) in transposed(tiles[number]).into_iter().enumerate() {
                            _mm512_store_si512(to.add(row * BYTES).cast(), pairs);
                        }
                    }
                }
            }
        }
    }

    /// Writes the values of a head whose keys are seen as tiles [part, 32 keys, 16 numbers], of which a row has
    /// the numbers of two keys; zeros where there are none.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn split_values(&self, part: Part, seen: &[usize], layout: &Layout, memory: *mut u8) {
        let size = self.sizes.value_size;
        // SAFETY: the caller's; within the tiles and the head's numbers.
        unsafe {
            for pair in 0..layout.keys / 2 {
                let from = [0, 1].map(|odd| {
                    seen.get(2 * pair + odd).map(|key| {
                        let row = part.sequence * self.sizes.keys + key;
                        self.value[(row * self.sizes.heads + part.head) * size..].as_ptr()
                    })
                });
                let columns = layout.value_width / LANES;
                for column in 0..columns {
                    let mut both = [[_mm512_setzero_si512(); PARTS]; 2];
                    for odd in 0..2 {
                        if let Some(from) = from[odd] {
                            let there = size.saturating_sub(column * LANES);
                            let values = _mm512_maskz_loadu_ps(
                                lanes(there),
                                from.wrapping_add(column * LANES),
                            );
                            both[odd] = split(values);
                        }
                    }
                    for number in 0..PARTS {
                        let odd = _mm512_slli_epi32::<16>(both[1][number]);
                        let tile = pair / ROWS * columns + column;
                        let to = layout.value_tiles[number] + tile * TILE + pair % ROWS * BYTES;
                        let to = memory.add(to).cast();
                        _mm512_store_si512(to, _mm512_or_si512(both[0][number], odd));
                    }
                }
            }
        }
    }

    /// Computes some queries, at most [`QUERIES`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn meet_tiles(
        &self,
        part: Part,
        first: usize,
        count: usize,
        layout: &Layout,
        memory: *mut u8,
    ) {
        // SAFETY: the caller's; all is within the layout's parts, and outputs are this part's.
        unsafe {
            self.split_queries(part, first, count, layout, memory);
            let scores = memory.add(layout.scores).cast::<f32>();
            let sums = memory.add(layout.sums).cast::<f32>();
            let products = memory.add(layout.products).cast::<f32>();
            let mut largest = [f32::NEG_INFINITY; QUERIES];
            let mut totals = [0.0f32; QUERIES];
            for block in (0..layout.keys).step_by(KEYS) {
                let keys = KEYS.min(layout.keys - block);
                for start in (0..keys).step_by(2 * LANES) {
                    let tile = (block + start) / LANES * layout.head_steps * TILE;
                    let pairs = PAIRS.map(|[a, b]| {
                        [memory.add(layout.queries[a]), memory.add(layout.key_tiles[b] + tile)]
                    });
                    Product {
                        pairs,
                        steps: layout.head_steps,
                        a_stride: layout.head_steps * BYTES,
                        b_column: layout.head_steps * TILE,
                        b_step: TILE,
                        to: scores.add(start),
                        to_stride: KEYS * size_of::<f32>(),
                    }
                    .compute();
                }
                let there = layout.seen.saturating_sub(block).min(keys);
                for row in 0..QUERIES {
                    let scores = scores.add(row * KEYS);
                    for key in there..keys {
                        *scores.add(key) = f32::NEG_INFINITY;
                    }
                    let mut top = Sixteen::splat(largest[row]);
                    for key in (0..keys).step_by(LANES) {
                        top = Sixteen::load(scores.add(key)).max(top);
                    }
                    let top = top.largest();
                    let lowered = Sixteen::splat(-top);
                    let mut total = Sixteen::splat(0.0);
                    for key in (0..keys).step_by(DEPTH) {
                        let low = Sixteen::load(scores.add(key)).add(lowered).exp_of_negative();
                        let high = Sixteen::load(scores.add(key + LANES));
                        let high = high.add(lowered).exp_of_negative();
                        total = total.add(low.add(high));
                        for (number, part) in cut_two(low.0, high.0).into_iter().enumerate() {
                            let to = layout.powers[number] + (row * KEYS + key) * size_of::<u16>();
                            _mm512_store_si512(memory.add(to).cast(), part);
                        }
                    }
                    // What earlier blocks gave was relative to their own largest score.
                    let factor = Sixteen::splat(largest[row] - top).exp_of_negative();
                    let factor = if block == 0 { Sixteen::splat(0.0) } else { factor };
                    totals[row] = totals[row].mul_add(factor.largest(), total.sum());
                    largest[row] = top;
                    if block > 0 {
                        let sums = sums.add(row * layout.value_width);
                        for column in (0..layout.value_width).step_by(LANES) {
                            Sixteen::load(sums.add(column)).mul(factor).store(sums.add(column));
                        }
                    }
                }
                let to = if block == 0 { sums } else { products };
                let columns = layout.value_width / LANES;
                for column in (0..columns).step_by(2) {
                    let tile = (block / DEPTH * columns + column) * TILE;
                    let pairs = PAIRS.map(|[a, b]| {
                        [memory.add(layout.powers[a]), memory.add(layout.value_tiles[b] + tile)]
                    });
                    Product {
                        pairs,
                        steps: keys / DEPTH,
                        a_stride: KEYS * size_of::<u16>(),
                        b_column: TILE,
                        b_step: columns * TILE,
                        to: to.add(column * LANES),
                        to_stride: layout.value_width * size_of::<f32>(),
                    }
                    .compute();
                }
                if block > 0 {
                    for at in (0..QUERIES * layout.value_width).step_by(LANES) {
                        let product = Sixteen::load(products.add(at));
                        Sixteen::load(sums.add(at)).add(product).store(sums.add(at));
                    }
                }
            }
            let width = self.sizes.heads * self.sizes.value_size;
            for row in 0..count {
                let at = (part.sequence * self.sizes.queries + first + row) * width;
                let to = self.output.get().add(at + part.head * self.sizes.value_size);
                let sums = sums.add(row * layout.value_width);
                for column in 0..self.sizes.value_size {
                    *to.add(column) = *sums.add(column) / totals[row];
                }
            }
        }
    }

    /// Writes scaled queries as rows [part, query, numbers]. Those past the last are the last once more.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn split_queries(
        &self,
        part: Part,
        first: usize,
        count: usize,
        layout: &Layout,
        memory: *mut u8,
    ) {
        let size = self.sizes.head_size;
        // SAFETY: the caller's; within the rows and the head's numbers.
        unsafe {
            let scaled = memory.add(layout.sums).cast::<f32>();
            for row in 0..QUERIES {
                let query = part.sequence * self.sizes.queries + first + row.min(count - 1);
                let from = &self.query[(query * self.sizes.heads + part.head) * size..][..size];
                for (d, &x) in from.iter().enumerate() {
                    *scaled.add(d) = x * self.scale;
                }
                for step in 0..layout.head_steps {
                    let parts = split_row(scaled, size, step);
                    for (number, part) in parts.into_iter().enumerate() {
                        let to = layout.queries[number] + (row * layout.head_steps + step) * BYTES;
                        _mm512_store_si512(memory.add(to).cast(), part);
                    }
                }
            }
        }
    }
}

/// A mask of the first `count` lanes.
fn lanes(count: usize) -> u16 {
    if count < LANES { (1 << count) - 1 } else { u16::MAX }
}

/// The parts of the numbers of a row from `DEPTH * step` on, 32 of each; zeros from `size` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn split_row(from: *const f32, size: usize, step: usize) -> [__m512i; PARTS] {
    let [low, high] = [0, LANES].map(|half| step * DEPTH + half);
    // SAFETY: the caller's; what is masked is not read.
    unsafe {
        let low = _mm512_maskz_loadu_ps(lanes(size.saturating_sub(low)), from.wrapping_add(low));
        let high = _mm512_maskz_loadu_ps(lanes(size.saturating_sub(high)), from.wrapping_add(high));
        split_two(low, high)
    }
}

/// The parts of 32 floats, in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn split_two(mut low: __m512, mut high: __m512) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        // SAFETY: both are 64 bytes.
        *part = unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        let halves = [_mm512_castsi512_si256(*part), _mm512_extracti64x4_epi64::<1>(*part)];
        let [taken_low, taken_high] = halves.map(|half| float(_mm512_cvtepu16_epi32(half)));
        (low, high) = (_mm512_sub_ps(low, taken_low), _mm512_sub_ps(high, taken_high));
    }
    parts
}

/// As [`split_two`], but the first part is cut off and not rounded, which takes half as long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn cut_two(low: __m512, high: __m512) -> [__m512i; PARTS] {
    let upper_halves = _mm512_set1_epi32(0xFFFF_0000u32 as i32);
    let [cut_low, cut_high] =
        [low, high].map(|x| _mm512_and_si512(_mm512_castps_si512(x), upper_halves));
    let places: [u16; 32] = std::array::from_fn(|i| 2 * i as u16 + 1);
    // SAFETY: all are 64 bytes.
    unsafe {
        let places = _mm512_loadu_si512(places.as_ptr().cast());
        let first = _mm512_permutex2var_epi16(cut_low, places, cut_high);
        let low = _mm512_sub_ps(low, _mm512_castsi512_ps(cut_low));
        let high = _mm512_sub_ps(high, _mm512_castsi512_ps(cut_high));
        [first, transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))]
    }
}

/// The parts of 16 floats, each in the lower half of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn split(mut values: __m512) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        // SAFETY: both are 32 bytes.
        let rounded = unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) };
        *part = _mm512_cvtepu16_epi32(rounded);
        values = _mm512_sub_ps(values, float(*part));
    }
    parts
}

/// Numbers of bfloat16 in the lower halves of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn float(bits: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}

/// 32 x 32 sums of products of rows `a` and tiles `b`.
#[repr(C)]
struct Product {
    /// Where `a` and `b` begin, for each pair of parts.
    pairs: [[*mut u8; 2]; PAIRS.len()],
    /// Tiles that are added up.
    steps: usize,
    /// Bytes from row to row of `a`.
    a_stride: usize,
    /// Bytes from a tile of `b` to that of the next columns.
    b_column: usize,
    /// Bytes from a tile of `b` to the next that is added.
    b_step: usize,
    to: *mut f32,
    /// Bytes from row to row of `to`.
    to_stride: usize,
}

impl Product {
    #[inline(always)]
    unsafe fn compute(&self) {
        // SAFETY: the tiles are set up, and read and write what the caller says there is.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "mov {a}, [{pair}]",
                "mov {b}, [{pair} + 8]",
                "mov {a2}, {stride}",
                "shl {a2}, 4",
                "add {a2}, {a}",
                "mov {b2}, [{product} + {b_column}]",
                "add {b2}, {b}",
                "mov {steps}, [{product} + {first_steps}]",
                "3:",
                "tileloadd tmm4, [{a} + {stride}]",
                "tileloadd tmm6, [{b} + {bytes}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a2} + {stride}]",
                "tdpbf16ps tmm1, tmm5, tmm6",
                "tileloadd tmm7, [{b2} + {bytes}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {a2}, 64",
                "add {b}, [{product} + {b_step}]",
                "add {b2}, [{product} + {b_step}]",
                "dec {steps}",
                "jnz 3b",
                "add {pair}, 16",
                "dec {count}",
                "jnz 2b",
                "mov {a}, [{product} + {to}]",
                "mov {b}, [{product} + {to_stride}]",
                "mov {a2}, {b}",
                "shl {a2}, 4",
                "add {a2}, {a}",
                "tilestored [{a} + {b}], tmm0",
                "tilestored [{a} + {b} + 64], tmm2",
                "tilestored [{a2} + {b}], tmm1",
                "tilestored [{a2} + {b} + 64], tmm3",
                product = in(reg) self,
                pair = inout(reg) self.pairs.as_ptr() => _,
                count = inout(reg) self.pairs.len() => _,
                stride = in(reg) self.a_stride,
                bytes = in(reg) BYTES,
                a = out(reg) _,
                a2 = out(reg) _,
                b = out(reg) _,
                b2 = out(reg) _,
                steps = out(reg) _,
                first_steps = const std::mem::offset_of!(Product, steps),
                b_column = const std::mem::offset_of!(Product, b_column),
                b_step = const std::mem::offset_of!(Product, b_step),
                to = const std::mem::offset_of!(Product, to),
                to_stride = const std::mem::offset_of!(Product, to_stride),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Where the parts of the scratch memory are, in bytes from its start.
struct Layout {
    /// Keys that are seen.
    seen: usize,
    /// The same, filled up to whole tiles of both products.
    keys: usize,
    /// Tiles along a head's numbers.
    head_steps: usize,
    /// Columns of the sums.
    value_width: usize,
    scores: usize,
    sums: usize,
    products: usize,
    key_tiles: [usize; PARTS],
    value_tiles: [usize; PARTS],
    queries: [usize; PARTS],
    powers: [usize; PARTS],
    end: usize,
}

impl Layout {
    fn new(sizes: &Attention, seen: usize) -> Self {
        const FLOAT: usize = size_of::<f32>();
        const NUMBER: usize = size_of::<u16>();
        let keys = seen.next_multiple_of(DEPTH);
        // (One step for heads without numbers, whose scores are 0.)
        let head_steps = sizes.head_size.div_ceil(DEPTH).max(1);
        let head_width = head_steps * DEPTH;
        let value_width = sizes.value_size.next_multiple_of(2 * LANES);
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(LINE);
            start
        };
        let scores = part(QUERIES * KEYS * FLOAT);
        // A scaled query waits in their place, too.
        let sums = part((QUERIES * value_width).max(head_width) * FLOAT);
        let products = part(QUERIES * value_width * FLOAT);
        let mut parts = |bytes| std::array::from_fn(|_| part(bytes));
        let key_tiles = parts(keys * head_width * NUMBER);
        let value_tiles = parts(keys * value_width * NUMBER);
        let queries = parts(QUERIES * head_width * NUMBER);
        let powers = parts(QUERIES * KEYS * NUMBER);
        Layout {
            seen,
            keys,
            head_steps,
            value_width,
            scores,
            sums,
            products,
            key_tiles,
            value_tiles,
            queries,
            powers,
            end,
        }
    }
}
