//! Attention with vectors of floats.

use super::{Attention, Job, Part, SCRATCH};
use crate::{
    buffer::{LINE, Scratch},
    vector::Vector,
};

/// Queries that meet a block of keys together: a multiple of every [`Vector::ROWS`].
const QUERIES: usize = 24;
/// Keys of a block: a multiple of every panel.
const KEYS: usize = 512;

impl Job<'_> {
    /// Computes the part.
    #[inline(always)]
    pub(super) unsafe fn compute<V: Vector>(&self, part: Part) {
        let seen = self.seen(part.sequence);
        let layout = Layout::new::<V>(&self.sizes, seen.len());
        let mut scratch = Scratch::take(&SCRATCH, layout.bytes());
        let memory = scratch.as_mut_ptr().cast::<f32>();
        // What has vectors is in no closure, since these do not have the instructions.
        // SAFETY: the caller's; the layout's parts lie within the memory.
        unsafe {
            self.bring_together::<V>(part, &seen, &layout, memory);
            for first in (part.first..part.last).step_by(QUERIES) {
                let count = QUERIES.min(part.last - first);
                self.meet::<V>(part, first, count, &layout, memory);
            }
        }
    }

    /// Writes the keys of a head that are seen as panels [head_size, keys of a panel], and the values
    /// as rows; zeros where there are none.
    #[inline(always)]
    unsafe fn bring_together<V: Vector>(
        &self,
        part: Part,
        seen: &[usize],
        layout: &Layout,
        memory: *mut f32,
    ) {
        let sizes = &self.sizes;
        let panel = V::LANES * V::COLUMNS;
        let (key_width, value_width) =
            (sizes.heads * sizes.head_size, sizes.heads * sizes.value_size);
        for index in 0..layout.keys {
            // SAFETY: within the panels and the rows.
            let (key_to, value_to) = unsafe {
                let panels = memory.add(layout.key_panels);
                (
                    panels.add(index / panel * panel * sizes.head_size + index % panel),
                    memory.add(layout.value_rows + index * layout.value_stride),
                )
            };
            let Some(key) = seen.get(index) else {
                // SAFETY: as above.
                unsafe {
                    (0..sizes.head_size).for_each(|d| *key_to.add(d * panel) = 0.0);
                    value_to.write_bytes(0, layout.value_stride);
                }
                continue;
            };
            let row = part.sequence * sizes.keys + key;
            let from = &self.key[row * key_width + part.head * sizes.head_size..];
            for (d, &x) in from[..sizes.head_size].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *key_to.add(d * panel) = x };
            }
            let from = &self.value[row * value_width + part.head * sizes.value_size..];
            let from = &from[..sizes.value_size];
            // SAFETY: as above.
            unsafe {
                value_to.copy_from_nonoverlapping(from.as_ptr(), from.len());
                value_to.add(from.len()).write_bytes(0, layout.value_stride - from.len());
            }
        }
    }

    /// Computes some queries, at most [`QUERIES`].
    #[inline(always)]
    unsafe fn meet<V: Vector>(
        &self,
        part: Part,
        first: usize,
        count: usize,
        layout: &Layout,
        memory: *mut f32,
    ) {
        let sizes = &self.sizes;
        let panel = V::LANES * V::COLUMNS;
        let rows = count.next_multiple_of(V::ROWS);
        let width = sizes.heads * sizes.head_size;
        // SAFETY: the caller's; all is within the layout's parts, and outputs are this part's.
        unsafe {
            let queries = memory.add(layout.queries);
            for row in 0..rows {
                let to = queries.add(row * sizes.head_size);
                let at = (part.sequence * sizes.queries + first + row.min(count - 1)) * width;
                let from = &self.query[at + part.head * sizes.head_size..][..sizes.head_size];
                for (d, &x) in from.iter().enumerate() {
                    *to.add(d) = x * self.scale;
                }
            }
            let (scores, sums) = (memory.add(layout.scores), memory.add(layout.sums));
            sums.write_bytes(0, rows * layout.value_stride);
            let mut largest = [f32::NEG_INFINITY; QUERIES];
            let mut totals = [0.0f32; QUERIES];
            for block in (0..layout.keys).step_by(KEYS) {
                let keys = KEYS.min(layout.keys - block);
                for start in (0..keys).step_by(panel) {
                    let key_panel =
                        memory.add(layout.key_panels + (block + start) * sizes.head_size);
                    for row in (0..rows).step_by(V::ROWS) {
                        let a = queries.add(row * sizes.head_size);
                        let to = scores.add(row * KEYS + start);
                        multiply::<V>(
                            Matrix { start: a, stride: sizes.head_size },
                            Matrix { start: key_panel, stride: panel },
                            Matrix { start: to, stride: KEYS },
                            sizes.head_size,
                            V::COLUMNS,
                            false,
                        );
                    }
                }
                let there = layout.seen.saturating_sub(block).min(keys);
                for row in 0..rows {
                    let scores = scores.add(row * KEYS);
                    for key in there..keys {
                        *scores.add(key) = f32::NEG_INFINITY;
                    }
                    let mut top = V::splat(largest[row]);
                    for key in (0..keys).step_by(V::LANES) {
                        top = V::load(scores.add(key)).max(top);
                    }
                    let top = top.largest();
                    let mut total = V::splat(0.0);
                    for key in (0..keys).step_by(V::LANES) {
                        let score = V::load(scores.add(key)).add(V::splat(-top));
                        let power = score.exp_of_negative();
                        power.store(scores.add(key));
                        total = total.add(power);
                    }
                    // What earlier blocks gave was relative to their own largest score.
                    let factor = V::splat(largest[row] - top).exp_of_negative();
                    let factor = if block == 0 { V::splat(0.0) } else { factor };
                    totals[row] = totals[row].mul_add(factor.largest(), total.sum());
                    largest[row] = top;
                    if block > 0 {
                        let sums = sums.add(row * layout.value_stride);
                        for column in (0..layout.value_stride).step_by(V::LANES) {
                            V::load(sums.add(column)).mul(factor).store(sums.add(column));
                        }
                    }
                }
                let mut column = 0;
                while column < layout.value_stride {
                    let vectors = V::COLUMNS.min((layout.value_stride - column) / V::LANES);
                    let values =
                        memory.add(layout.value_rows + block * layout.value_stride + column);
                    for row in (0..rows).step_by(V::ROWS) {
                        let to = sums.add(row * layout.value_stride + column);
                        multiply::<V>(
                            Matrix { start: scores.add(row * KEYS), stride: KEYS },
                            Matrix { start: values, stride: layout.value_stride },
                            Matrix { start: to, stride: layout.value_stride },
                            keys,
                            vectors,
                            true,
                        );
                    }
                    column += vectors * V::LANES;
                }
            }
            let width = sizes.heads * sizes.value_size;
            for row in 0..count {
                let at = (part.sequence * sizes.queries + first + row) * width;
                let to = self.output.get().add(at + part.head * sizes.value_size);
                let sums = sums.add(row * layout.value_stride);
                for column in 0..sizes.value_size {
                    *to.add(column) = *sums.add(column) / totals[row];
                }
            }
        }
    }
}

/// Where the parts of the scratch memory are, in floats from its start.
struct Layout {
    /// Keys that are seen.
    seen: usize,
    /// The same, filled up to whole panels.
    keys: usize,
    /// From row to row of the values.
    value_stride: usize,
    key_panels: usize,
    value_rows: usize,
    queries: usize,
    scores: usize,
    sums: usize,
    end: usize,
}

impl Layout {
    fn new<V: Vector>(sizes: &Attention, seen: usize) -> Self {
        let keys = seen.next_multiple_of(V::LANES * V::COLUMNS);
        let value_stride = sizes.value_size.next_multiple_of(V::LANES);
        let mut end = 0;
        let mut part = |floats: usize| {
            let start = end;
            end += floats.next_multiple_of(LINE / size_of::<f32>());
            start
        };
        Layout {
            seen,
            keys,
            value_stride,
            key_panels: part(keys * sizes.head_size),
            value_rows: part(keys * value_stride),
            queries: part(QUERIES * sizes.head_size),
            scores: part(QUERIES * KEYS),
            sums: part(QUERIES * value_stride),
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

/// `to = a * b`, or `to += a * b`, for [`Vector::ROWS`] rows of `a` of `depth` columns and up to
/// [`Vector::COLUMNS`] vectors of each row of `b`.
#[inline(always)]
unsafe fn multiply<V: Vector>(
    a: Matrix,
    b: Matrix,
    to: Matrix,
    depth: usize,
    vectors: usize,
    adds: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        match (V::ROWS, V::COLUMNS, vectors) {
            (6, 4, 4) => tile::<V, 6, 4>(a, b, to, depth, adds),
            (6, 4, 3) => tile::<V, 6, 3>(a, b, to, depth, adds),
            (6, 4, 2) => tile::<V, 6, 2>(a, b, to, depth, adds),
            (6, 4, _) => tile::<V, 6, 1>(a, b, to, depth, adds),
            (4, 2, 2) => tile::<V, 4, 2>(a, b, to, depth, adds),
            (4, 2, _) => tile::<V, 4, 1>(a, b, to, depth, adds),
            (2, 2, 2) => tile::<V, 2, 2>(a, b, to, depth, adds),
            _ => tile::<V, 2, 1>(a, b, to, depth, adds),
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
