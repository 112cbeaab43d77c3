//! GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers", 2022): columns are rounded one after the other, and what each loses is made up
//! for by those that are not rounded yet, as far as the layer's inputs allow.

use ndarray::{
    Array1, Array2, ArrayView2, ArrayViewMut2, Axis, Zip, concatenate, linalg::general_mat_mul, s,
};
use rayon::prelude::*;

use super::{
    BlockFormat,
    block::Fit,
    rows::{RowWriter, write_row},
};

/// Part of the mean of the inputs' squares that is added to all of them: it keeps the problem
/// solvable, and the weights near what they were. The paper's value.
const DAMPING: f32 = 0.01;
/// Columns whose corrections of the later columns are done together.
const COLUMNS: usize = 256;
/// Rows that a thread works on together.
const ROWS: usize = 64;

/// Adds `inputs` [tokens, columns] to the Hessian [columns, columns] of a layer that is given them:
/// the sum of their products.
pub(crate) fn accumulate(hessian: &mut Array2<f32>, inputs: ArrayView2<'_, f32>) {
    let part = hessian.nrows().div_ceil(rayon::current_num_threads()).max(1);
    let parts: Vec<ArrayViewMut2<'_, f32>> = hessian.axis_chunks_iter_mut(Axis(0), part).collect();
    parts.into_par_iter().enumerate().for_each(|(index, mut rows)| {
        let columns = inputs.slice(s![.., index * part..index * part + rows.nrows()]);
        general_mat_mul(1.0, &columns.t(), &inputs, 1.0, &mut rows);
    });
}

/// The initializers of a weight [rows, columns] whose layer has the given Hessian.
pub(crate) fn solve(
    mut weight: Array2<f32>,
    hessian: Array2<f32>,
    format: BlockFormat,
) -> Vec<Vec<u8>> {
    let columns = weight.ncols();
    let factor = factor(hessian);
    let mut writer = RowWriter::new(format, columns);
    let (blocks, row_bytes) = writer.resize(weight.nrows());
    weight
        .axis_chunks_iter_mut(Axis(0), ROWS)
        .collect::<Vec<_>>()
        .into_par_iter()
        .zip(writer.packed.par_chunks_mut(ROWS * row_bytes))
        .zip(writer.scales.par_chunks_mut(ROWS * blocks))
        .zip(writer.zero_points.par_chunks_mut(ROWS * blocks))
        .for_each(|(((weight, packed), scales), zero_points)| {
            let integers = solve_rows(weight, factor.view(), format, scales, zero_points);
            for (row, integers) in integers.rows().into_iter().enumerate() {
                let packed = &mut packed[row * row_bytes..(row + 1) * row_bytes];
                let zero_points = &zero_points[row * blocks..(row + 1) * blocks];
                write_row(format, integers.as_slice().unwrap_or_default(), zero_points, packed);
            }
        });
    writer.finish()
}

/// Rounds some rows; their integers [rows, columns].
fn solve_rows(
    mut weight: ArrayViewMut2<'_, f32>,
    factor: ArrayView2<'_, f32>,
    format: BlockFormat,
    scales: &mut [f32],
    zero_points: &mut [u8],
) -> Array2<f32> {
    let (rows, columns) = weight.dim();
    let (levels, blocks) = (format.levels(), format.blocks(columns));
    let mut integers = Array2::zeros((rows, columns));
    for start in (0..columns).step_by(COLUMNS) {
        let end = columns.min(start + COLUMNS);
        let mut errors = Array2::<f32>::zeros((rows, end - start));
        for row in 0..rows {
            let mut values = weight.row_mut(row);
            let Some(values) = values.as_slice_mut() else { continue };
            for column in start..end {
                let place = row * blocks + column / format.block_size;
                if column % format.block_size == 0 {
                    let block = &values[column..columns.min(column + format.block_size)];
                    let fit = format.fit(block);
                    scales[place] = fit.scale;
                    zero_points[place] = fit.zero as u8;
                }
                let fit = Fit { scale: scales[place], zero: zero_points[place].into() };
                let mut integer = [0.0];
                levels.integers(fit, &[values[column]], &mut integer);
                integers[[row, column]] = integer[0];
                let lost = values[column] - (integer[0] - fit.zero) * fit.scale;
                let error = lost / factor[[column, column]];
                errors[[row, column - start]] = error;
                let weights = factor.slice(s![column, column + 1..end]);
                let later = values[column + 1..end].iter_mut();
                later.zip(weights).for_each(|(value, weight)| *value -= error * weight);
            }
        }
        let (weights, mut later) =
            (factor.slice(s![start..end, end..]), weight.slice_mut(s![.., end..]));
        general_mat_mul(-1.0, &errors, &weights, 1.0, &mut later);
    }
    integers
}

/// The upper triangular R with `R^T R` the inverse of the damped Hessian.
fn factor(mut hessian: Array2<f32>) -> Array2<f32> {
    let mean = hessian.diag().mean().unwrap_or_default();
    // Inputs that were never other than zero say nothing.
    let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
    hessian.diag_mut().mapv_inplace(|square| square + damping);
    // In reverse order of columns: the inverse of a lower triangle becomes an upper one.
    let reversed = hessian.slice(s![..;-1, ..;-1]);
    inverse_cholesky(reversed).slice(s![..;-1, ..;-1]).to_owned()
}

/// The inverse of the lower triangular L with `L L^T` the given matrix, by halves, so that most of
/// the work is matrix products.
fn inverse_cholesky(matrix: ArrayView2<'_, f32>) -> Array2<f32> {
    let size = matrix.nrows();
    if size <= 32 {
        return inverse_cholesky_small(matrix);
    }
    let half = size / 2;
    let first = inverse_cholesky(matrix.slice(s![..half, ..half]));
    let below = matrix.slice(s![half.., ..half]).dot(&first.t());
    let rest = &matrix.slice(s![half.., half..]) - &below.dot(&below.t());
    let second = inverse_cholesky(rest.view());
    let corner = -second.dot(&below).dot(&first);
    let zeros = Array2::zeros((half, size - half));
    let join = |axis, a: &Array2<f32>, b: &Array2<f32>| {
        concatenate(Axis(axis), &[a.view(), b.view()]).unwrap_or_default()
    };
    join(0, &join(1, &first, &zeros), &join(1, &corner, &second))
}

fn inverse_cholesky_small(matrix: ArrayView2<'_, f32>) -> Array2<f32> {
    let size = matrix.nrows();
    let matrix = matrix.mapv(f64::from);
    let mut lower = Array2::<f64>::zeros((size, size));
    for row in 0..size {
        for column in 0..=row {
            let known = lower.slice(s![row, ..column]).dot(&lower.slice(s![column, ..column]));
            let left = matrix[[row, column]] - known;
            lower[[row, column]] = if row == column {
                // Rounding may leave less than nothing of a column that others determine.
                left.max(1e-12 * matrix[[row, row]].abs()).sqrt()
            } else {
                left / lower[[column, column]]
            };
        }
    }
    let mut inverse = Array2::<f64>::zeros((size, size));
    for column in 0..size {
        let mut unit = Array1::<f64>::zeros(size);
        unit[column] = 1.0;
        for row in column..size {
            let known = lower.slice(s![row, ..row]).dot(&inverse.slice(s![..row, column]));
            inverse[[row, column]] = (unit[row] - known) / lower[[row, row]];
        }
    }
    let mut single = Array2::zeros((size, size));
    Zip::from(&mut single).and(&inverse).for_each(|to, from| *to = *from as f32);
    single
}

#[cfg(test)]
mod tests {
    use lfm2vl_graphs::Method;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::{
        exported::ExportedWeight,
        quantize::{BlockEncoder, Packing},
    };

    fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        let mut random = SmallRng::seed_from_u64(seed);
        Array2::from_shape_simple_fn((rows, columns), || {
            (0..6).map(|_| random.random_range(-0.5..0.5_f32)).sum()
        })
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let inputs = noise(300, 100, 1);
        let mut hessian = Array2::zeros((100, 100));
        accumulate(&mut hessian, inputs.slice(s![..120, ..]));
        accumulate(&mut hessian, inputs.slice(s![120.., ..]));
        approx::assert_abs_diff_eq!(
            hessian[[3, 7]],
            inputs.column(3).dot(&inputs.column(7)),
            epsilon = 1e-3
        );
        let r = factor(hessian.clone());
        let damping = DAMPING * hessian.diag().mean().unwrap();
        hessian.diag_mut().mapv_inplace(|v| v + damping);
        let identity = r.t().dot(&r).dot(&hessian);
        for ((row, column), value) in identity.indexed_iter() {
            let expected = if row == column { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-2, "{row} {column} {value}");
            assert!(row <= column || r[[row, column]] == 0.0);
        }
    }

    /// On inputs that are correlated, the outputs are nearer than those of the best rounding of
    /// each weight for itself; on other inputs of the same kind, too.
    #[test]
    fn outputs_are_nearer_than_those_of_the_search() {
        let mixing = noise(96, 200, 2);
        let inputs = |seed| noise(500, 96, seed).dot(&mixing) + noise(500, 200, seed + 1) * 0.1;
        let (seen, unseen) = (inputs(3), inputs(5));
        let weight = noise(64, 200, 7);
        for (block_size, symmetric) in [(32, false), (128, true)] {
            let format = BlockFormat {
                bits: 4,
                block_size,
                symmetric,
                method: Method::Search,
                half_scales: false,
                packing: Packing::MATMUL,
            };
            let mut hessian = Array2::zeros((200, 200));
            accumulate(&mut hessian, seen.view());
            let solved = solve(weight.clone(), hessian, format);
            let mut encoder = BlockEncoder::new(format, 200);
            let mut packed = Vec::new();
            encoder.push(weight.as_slice().unwrap(), &mut packed);
            let searched = [vec![packed], encoder.finish().split_off(1)].concat();

            let error = |parts: Vec<Vec<u8>>| {
                let exported = ExportedWeight::from_parts(parts, format, [64, 200]);
                (unseen.dot(&(&exported.matrix() - &weight).t())).mapv(|v| v * v).mean().unwrap()
            };
            let (compensated, searched) = (error(solved), error(searched));
            assert!(compensated < 0.6 * searched, "{compensated} {searched}");
        }
    }
}
