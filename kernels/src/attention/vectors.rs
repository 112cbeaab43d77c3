//! Attention of one head with vectors of floats.

use super::{SCRATCH, head::Head};
use crate::{
    buffer::{LINE, Scratch},
    vector::Vector,
};

/// Queries that meet a block of keys together: a multiple of every [`Vector::ROWS`].
const QUERIES: usize = 24;
/// Keys of a block: a multiple of every panel.
const KEYS: usize = 512;
/// Keys from where one is read to where it is asked for.
const AHEAD: usize = 64;
/// Rows of the products of a step of a decoder, which has few.
const FEW: usize = 2;

/// Computes all outputs of a head.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector>(head: &impl Head) {
    let layout = Layout::new::<V>(head);
    let mut scratch = Scratch::take(&SCRATCH, layout.bytes());
    let memory = scratch.as_mut_ptr().cast::<f32>();
    let (queries, keys) = (head.queries(), head.keys());
    // What has vectors is in no closure, since these do not have the instructions.
    // SAFETY: the caller's; the layout's parts lie within the memory.
    unsafe {
        for query in 0..layout.rows {
            let to = memory.add(layout.queries + query * head.size());
            head.write_query::<V>(query.min(queries - 1), to);
            *memory.add(layout.largest + query) = f32::NEG_INFINITY;
            *memory.add(layout.totals + query) = 0.0;
        }
        memory.add(layout.sums).write_bytes(0, layout.rows * layout.value_stride);
        for start in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - start);
            if layout.keeps_panels {
                write_panels::<V>(head, start, count, memory.add(layout.panels));
            }
            let values = match head.value_stride().filter(|_| layout.reads_values) {
                Some(stride) => Matrix { start: head.value(start).cast_mut(), stride },
                None => {
                    let copied = memory.add(layout.values);
                    copy_values(head, start, count, copied, layout.value_stride);
                    Matrix { start: copied, stride: layout.value_stride }
                }
            };
            let block = Block { start, count, values };
            for first in (0..queries).step_by(QUERIES) {
                meet::<V>(head, &layout, memory, first, &block);
            }
        }
        for query in 0..queries {
            let to = head.output(query);
            let sums = memory.add(layout.sums + query * layout.value_stride);
            let total = *memory.add(layout.totals + query);
            for column in 0..head.value_size() {
                *to.add(column) = *sums.add(column) / total;
            }
        }
    }
}

/// Some keys, and their values as rows.
struct Block {
    start: usize,
    count: usize,
    values: Matrix,
}

/// Writes keys as panels [size of a head, keys of a panel]; zeros where there are none.
#[inline(always)]
unsafe fn write_panels<V: Vector>(head: &impl Head, start: usize, count: usize, panels: *mut f32) {
    let (size, panel) = (head.size(), V::LANES * V::COLUMNS);
    let whole = size / V::LANES * V::LANES;
    // SAFETY: the caller's; within the panels and the keys.
    unsafe {
        for first in (0..count.next_multiple_of(panel)).step_by(V::LANES) {
            let to = panels.add(first / panel * panel * size + first % panel);
            if first >= count {
                (0..size).for_each(|d| to.add(d * panel).write_bytes(0, V::LANES));
                continue;
            }
            // Lanes without a key have another one's numbers, and their scores are never read.
            let mut keys = [head.key(start + first); 16];
            for lane in 1..V::LANES.min(count - first) {
                keys[lane] = head.key(start + first + lane);
            }
            for lane in 0..V::LANES {
                let next = start + first + AHEAD + lane;
                if next < head.keys() {
                    fetch(head.key(next), size);
                }
                if first + lane < count {
                    fetch(head.value(start + first + lane), head.value_size());
                }
            }
            for d in (0..whole).step_by(V::LANES) {
                V::transpose(&keys, d, to.add(d * panel), panel);
            }
            for d in whole..size {
                for lane in 0..V::LANES {
                    *to.add(d * panel + lane) = *keys[lane].add(d);
                }
            }
        }
    }
}

/// Asks for numbers that will soon be read: keys and values of earlier tokens are in no cache any more.
#[inline(always)]
fn fetch(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..count).step_by(LINE / size_of::<f32>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at).cast()) };
    }
}

/// Writes values as rows of whole vectors.
#[inline(always)]
unsafe fn copy_values(head: &impl Head, start: usize, count: usize, to: *mut f32, stride: usize) {
    let size = head.value_size();
    for index in 0..count {
        // SAFETY: the caller's; within the rows.
        unsafe {
            let to = to.add(index * stride);
            to.copy_from_nonoverlapping(head.value(start + index), size);
            to.add(size).write_bytes(0, stride - size);
        }
    }
}

/// Lets some queries, at most [`QUERIES`], meet a block of keys.
#[inline(always)]
unsafe fn meet<V: Vector>(
    head: &impl Head,
    layout: &Layout,
    memory: *mut f32,
    first: usize,
    block: &Block,
) {
    let (size, panel) = (head.size(), V::LANES * V::COLUMNS);
    let count = QUERIES.min(head.queries() - first);
    let seen = |row: usize| head.seen(first + row).saturating_sub(block.start).min(block.count);
    // Later queries see all that earlier ones do.
    let keys = seen(count - 1);
    if keys == 0 {
        return;
    }
    let is_few = count <= FEW;
    let (step, width) = (if is_few { FEW } else { V::ROWS }, layout.value_stride);
    let rows = count.next_multiple_of(step);
    let padded = keys.next_multiple_of(panel);
    // SAFETY: the caller's; all is within the layout's parts, and outputs are this head's.
    unsafe {
        let queries = memory.add(layout.queries + first * size);
        let (scores, sums) = (memory.add(layout.scores), memory.add(layout.sums + first * width));
        for start in (0..padded).step_by(panel) {
            let panels = memory.add(layout.panels);
            let keys = if layout.keeps_panels {
                panels.add(start * size)
            } else {
                let there = panel.min(block.count - start);
                write_panels::<V>(head, block.start + start, there, panels);
                panels
            };
            let keys = Matrix { start: keys, stride: panel };
            for row in (0..rows).step_by(step) {
                let of = Matrix { start: queries.add(row * size), stride: size };
                let to = Matrix { start: scores.add(row * KEYS + start), stride: KEYS };
                multiply::<V>(is_few, of, keys, to, size, V::COLUMNS, false);
            }
        }
        for row in 0..count {
            let scores = scores.add(row * KEYS);
            let seen = seen(row);
            for key in seen..padded {
                *scores.add(key) = f32::NEG_INFINITY;
            }
            let largest = memory.add(layout.largest + first + row);
            let mut top = V::splat(*largest);
            for key in (0..padded).step_by(V::LANES) {
                top = V::load(scores.add(key)).max(top);
            }
            let top = top.largest();
            let mut total = V::splat(0.0);
            for key in (0..seen.next_multiple_of(V::LANES)).step_by(V::LANES) {
                let score = V::load(scores.add(key)).add(V::splat(-top));
                let power = score.exp_of_negative();
                power.store(scores.add(key));
                total = total.add(power);
            }
            for key in seen..padded {
                *scores.add(key) = 0.0;
            }
            // What earlier blocks gave was relative to their own largest score.
            let factor = V::splat(*largest - top).exp_of_negative();
            let factor = if block.start == 0 { V::splat(0.0) } else { factor };
            let totals = memory.add(layout.totals + first + row);
            *totals = (*totals).mul_add(factor.largest(), total.sum());
            *largest = top;
            if block.start > 0 {
                let sums = sums.add(row * width);
                for column in (0..width).step_by(V::LANES) {
                    V::load(sums.add(column)).mul(factor).store(sums.add(column));
                }
            }
        }
        let mut column = 0;
        while column < width {
            let vectors = V::COLUMNS.min((width - column) / V::LANES);
            let values =
                Matrix { start: block.values.start.add(column), stride: block.values.stride };
            for row in (0..rows).step_by(step) {
                let powers = Matrix { start: scores.add(row * KEYS), stride: KEYS };
                let to = Matrix { start: sums.add(row * width + column), stride: width };
                multiply::<V>(is_few, powers, values, to, keys, vectors, true);
            }
            column += vectors * V::LANES;
        }
    }
}

/// Where the parts of the scratch memory are, in floats from its start.
struct Layout {
    /// Queries, and as many more as products compute.
    rows: usize,
    /// From row to row of the sums.
    value_stride: usize,
    /// Whether values can be read where they are, since they are whole vectors.
    reads_values: bool,
    /// Whether panels of a whole block stay, since queries meet them that are not together.
    keeps_panels: bool,
    panels: usize,
    values: usize,
    queries: usize,
    scores: usize,
    sums: usize,
    /// The largest score of each query so far, and the sum of powers relative to it.
    largest: usize,
    totals: usize,
    end: usize,
}

impl Layout {
    fn new<V: Vector>(head: &impl Head) -> Self {
        let panel = V::LANES * V::COLUMNS;
        let keys = head.keys().min(KEYS).next_multiple_of(panel);
        let keeps_panels = head.queries() > QUERIES;
        let rows = head.queries().next_multiple_of(V::ROWS);
        let value_stride = head.value_size().next_multiple_of(V::LANES);
        let reads_values = head.value_stride().is_some() && value_stride == head.value_size();
        let mut end = 0;
        let mut part = |floats: usize| {
            let start = end;
            end += floats.next_multiple_of(LINE / size_of::<f32>());
            start
        };
        Layout {
            rows,
            value_stride,
            reads_values,
            keeps_panels,
            panels: part(if keeps_panels { keys } else { panel } * head.size()),
            values: part(if reads_values { 0 } else { keys * value_stride }),
            queries: part(rows * head.size()),
            scores: part(QUERIES * KEYS),
            sums: part(rows * value_stride),
            largest: part(rows),
            totals: part(rows),
            end,
        }
    }

    fn bytes(&self) -> usize {
        self.end * size_of::<f32>()
    }
}

/// Rows of floats.
#[derive(Clone, Copy)]
struct Matrix {
    start: *mut f32,
    /// From row to row.
    stride: usize,
}

/// `to = a * b`, or `to += a * b`, for [`Vector::ROWS`] rows, or [`FEW`], of `a` of `depth` columns and up
/// to [`Vector::COLUMNS`] vectors of each row of `b`. A row's sums are the same with both.
#[inline(always)]
unsafe fn multiply<V: Vector>(
    is_few: bool,
    a: Matrix,
    b: Matrix,
    to: Matrix,
    depth: usize,
    vectors: usize,
    adds: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        match (if is_few { FEW } else { V::ROWS }, V::COLUMNS, vectors) {
            (6, 4, 4) => tile::<V, 6, 4>(a, b, to, depth, adds),
            (6, 4, 3) => tile::<V, 6, 3>(a, b, to, depth, adds),
            (6, 4, 2) => tile::<V, 6, 2>(a, b, to, depth, adds),
            (6, 4, _) => tile::<V, 6, 1>(a, b, to, depth, adds),
            (4, 2, 2) => tile::<V, 4, 2>(a, b, to, depth, adds),
            (4, 2, _) => tile::<V, 4, 1>(a, b, to, depth, adds),
            (_, 4, 4) => tile::<V, FEW, 4>(a, b, to, depth, adds),
            (_, 4, 3) => tile::<V, FEW, 3>(a, b, to, depth, adds),
            (_, _, 2) => tile::<V, FEW, 2>(a, b, to, depth, adds),
            _ => tile::<V, FEW, 1>(a, b, to, depth, adds),
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize>(
    a: Matrix,
    b: Matrix,
    to: Matrix,
    depth: usize,
    adds: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        for step in 0..depth {
            let row = b.start.add(step * b.stride);
            let mut columns = [V::splat(0.0); C];
            for c in 0..C {
                columns[c] = V::load(row.add(c * V::LANES));
            }
            for r in 0..R {
                let x = V::splat(*a.start.add(r * a.stride + step));
                for c in 0..C {
                    sums[r][c] = x.mul_add(columns[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                let to = to.start.add(r * to.stride + c * V::LANES);
                let sum = if adds { V::load(to).add(sums[r][c]) } else { sums[r][c] };
                sum.store(to);
            }
        }
    }
}
