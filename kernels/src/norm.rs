//! The root-mean-square norm of a residual stream and what is added to it.

use crate::{
    Instructions, Threads,
    pack::Shared,
    vector::{self, Vector, Work},
};

/// Numbers of a part: what takes a few microseconds.
const PART: usize = 1 << 14;

/// `x / sqrt(mean(x^2) + epsilon) * weight` of each row of a sum `x`.
/// (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.)
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// \[size\]: one for each number of a row.
    pub weight: &'a [f32],
    /// What is added to the mean of squares.
    pub epsilon: f32,
}

impl RmsNorm<'_> {
    /// Writes `sum = input + skip` and its `normed` rows, all [rows, size]; `skip` may have fewer rows,
    /// which are repeated then.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the processor does not have the instructions.
    pub fn of_sum(
        &self,
        instructions: Instructions,
        input: &[f32],
        skip: &[f32],
        sum: &mut [f32],
        normed: &mut [f32],
        threads: &dyn Threads,
    ) {
        let size = self.weight.len();
        if input.is_empty() {
            return;
        }
        assert!(size > 0 && input.len().is_multiple_of(size), "inputs of whole rows");
        assert!(!skip.is_empty() && skip.len().is_multiple_of(size), "whole rows to be added");
        assert!(input.len().is_multiple_of(skip.len()), "rows to be added to each");
        assert_eq!([sum.len(), normed.len()], [input.len(); 2], "outputs of as many rows");
        assert!(instructions.are_available(), "this processor has no {instructions}");
        let (sum, normed) = (Shared(sum.as_mut_ptr()), Shared(normed.as_mut_ptr()));
        let (rows, skip_rows) = (input.len() / size, skip.len() / size);
        let parts = (input.len() / PART).clamp(1, rows);
        threads.run(parts, &|part| {
            for row in rows * part / parts..rows * (part + 1) / parts {
                let row = Row {
                    norm: self,
                    input: &input[row * size..][..size],
                    skip: &skip[row % skip_rows * size..][..size],
                    sum: sum.get().wrapping_add(row * size),
                    normed: normed.get().wrapping_add(row * size),
                };
                // SAFETY: the lengths and instructions were checked, and each row is in one part.
                unsafe { vector::run(instructions, &row) };
            }
        });
    }
}

struct Row<'a> {
    norm: &'a RmsNorm<'a>,
    input: &'a [f32],
    skip: &'a [f32],
    /// As many numbers each.
    sum: *mut f32,
    normed: *mut f32,
}

impl Work for Row<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        let &Row { norm: RmsNorm { weight, epsilon }, input, skip, sum, normed } = self;
        let size = weight.len();
        let whole = size / V::LANES * V::LANES;
        // SAFETY: the caller's; all is within the rows.
        unsafe {
            let mut squares = V::splat(0.0);
            for at in (0..whole).step_by(V::LANES) {
                let x = V::load(input.as_ptr().add(at)).add(V::load(skip.as_ptr().add(at)));
                x.store(sum.add(at));
                squares = x.mul_add(x, squares);
            }
            let mut total = squares.sum();
            for at in whole..size {
                let x = input[at] + skip[at];
                *sum.add(at) = x;
                total += x * x;
            }
            let factor = 1.0 / (total / size as f32 + epsilon).sqrt();
            for at in (0..whole).step_by(V::LANES) {
                let x = V::load(sum.add(at)).mul(V::splat(factor));
                x.mul(V::load(weight.as_ptr().add(at))).store(normed.add(at));
            }
            for at in whole..size {
                *normed.add(at) = *sum.add(at) * factor * weight[at];
            }
        }
    }
}
