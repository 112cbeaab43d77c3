//! Elementary operations.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip};

/// Root-mean-square norm of each row.
pub(super) fn rms_norm(x: &Array2<f32>, weight: &Array1<f32>, epsilon: f32) -> Array2<f32> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let mean_square = row.dot(&row) / row.len() as f32;
        let scale = (mean_square + epsilon).sqrt().recip();
        Zip::from(&mut row).and(weight).for_each(|value, &w| *value *= scale * w);
    }
    y
}

/// Layer norm of each row.
pub(super) fn layer_norm(
    x: &Array2<f32>,
    weight: &Array1<f32>,
    bias: &Array1<f32>,
    epsilon: f32,
) -> Array2<f32> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let count = row.len() as f32;
        let mean = row.sum() / count;
        row -= mean;
        let scale = (row.dot(&row) / count + epsilon).sqrt().recip();
        Zip::from(&mut row).and(weight).and(bias).for_each(|v, &w, &b| *v = *v * scale * w + b);
    }
    y
}

/// Attention of one head: queries [s, d], keys and values [t, d]; `first_hidden` says for each
/// query how many of the keys it sees.
pub(super) fn attention(
    query: ArrayView2<'_, f32>,
    keys: ArrayView2<'_, f32>,
    values: ArrayView2<'_, f32>,
    seen: impl Fn(usize) -> usize,
) -> Array2<f32> {
    let mut scores = query.dot(&keys.t()) * (query.ncols() as f32).sqrt().recip();
    for (i, mut row) in scores.axis_iter_mut(Axis(0)).enumerate() {
        let seen = seen(i);
        let largest = row.iter().take(seen).copied().fold(f32::NEG_INFINITY, f32::max);
        for (j, score) in row.iter_mut().enumerate() {
            *score = if j < seen { (*score - largest).exp() } else { 0.0 };
        }
        let sum = row.sum();
        row /= sum;
    }
    scores.dot(&values)
}

/// GELU by its definition with the error function.
pub(super) fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
}

/// GELU with the tanh approximation.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// `x / (1 + e^-x)`.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// Weights of `table` cells for position `index` of `length`, as bilinear interpolation with
/// antialiasing has them (`upsample_bilinear2d_aa` of PyTorch, one axis of it).
pub(super) fn resize_weights(table: usize, length: usize, index: usize) -> Array1<f32> {
    let scale = table as f32 / length as f32;
    let support = scale.max(1.0);
    let centre = scale * (index as f32 + 0.5);
    let first = ((centre - support + 0.5) as isize).max(0) as usize;
    let end = ((centre + support + 0.5) as usize).min(table);
    let mut weights = Array1::zeros(table);
    for cell in first..end {
        let distance = (cell as f32 - centre + 0.5) / support;
        weights[cell] = (1.0 - distance.abs()).max(0.0);
    }
    let sum = weights.sum();
    weights / sum
}

/// Rotates pairs (i, i + d/2) of a head by `position * theta^(-2i/d)`.
pub(super) fn rotate(head: ArrayView1<'_, f32>, position: usize, theta: f64) -> Array1<f32> {
    let half = head.len() / 2;
    let mut rotated = head.to_owned();
    for i in 0..half {
        let inverse_frequency = 1.0 / (theta as f32).powf((2 * i) as f32 / head.len() as f32);
        let (sin, cos) = (position as f32 * inverse_frequency).sin_cos();
        rotated[i] = head[i] * cos - head[i + half] * sin;
        rotated[i + half] = head[i + half] * cos + head[i] * sin;
    }
    rotated
}

/// The error function, by its Maclaurin series near 0 and its continued fraction further out;
/// better than 1e-12 everywhere (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum
    } else {
        let mut fraction = z;
        for k in (1..60).rev() {
            fraction = z + f64::from(k) / 2.0 / fraction;
        }
        1.0 - (-z * z).exp() / (std::f64::consts::PI.sqrt() * fraction)
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn erf_of_tabulated_values() {
        // Abramowitz and Stegun, table 7.1, and symmetry.
        let table = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.6, 0.999_763_965_583_470_7),
            (-1.0, -0.842_700_792_949_714_9),
        ];
        for (x, expected) in table {
            assert_abs_diff_eq!(erf(x), expected, epsilon = 1e-12);
        }
    }
}
