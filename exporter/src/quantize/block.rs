//! Scale and zero point of one block: `value = (integer - zero point) * scale`.
//!
//! Sums are taken in the same order on every processor, so that an export has the same bytes
//! wherever it is made.

use lfm2vl_graphs::Method;

/// Values that are computed together. Blocks are padded with zeros to a multiple, which changes no
/// sum.
pub(super) const LANES: usize = 16;
/// Fits that are tried side by side.
const CANDIDATES: usize = 16;

/// The integers of a format: `0..=max`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels {
    /// The largest integer: 15 or 255.
    pub(super) max: f32,
    /// Whether the zero point is always the middle, `(max + 1) / 2`.
    pub(super) symmetric: bool,
}

/// Scale and zero point of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    pub(super) scale: f32,
    /// An integer.
    pub(super) zero: f32,
}

impl Levels {
    fn middle(self) -> f32 {
        (self.max + 1.0) / 2.0
    }

    /// The fit of a block by one of the methods that look at nothing else.
    #[inline(always)]
    pub(super) fn fit(self, method: Method, block: &[f32]) -> Fit {
        match method {
            Method::Nearest => self.nearest(block),
            Method::Hqq => self.half_quadratic(block),
            // GPTQ's blocks start from the best fit of their values, too.
            Method::Search | Method::Gptq => self.search(block),
        }
    }

    /// The range of the block, which includes zero, over all integers.
    #[inline(always)]
    fn nearest(self, block: &[f32]) -> Fit {
        let (low, high) = range(block);
        if self.symmetric {
            // The middle has one more integer below it; the larger end goes there.
            let end = if -low > high { low } else { high };
            return Fit { scale: -end / self.middle(), zero: self.middle() };
        }
        let scale = (high - low) / self.max;
        Fit { scale, zero: round(-low * inverse(scale)) }
    }

    /// The least squared error among ranges around the block's own, each with the best scale for
    /// the integers that it gives.
    #[inline(always)]
    fn search(self, block: &[f32]) -> Fit {
        let (low, high) = range(block);
        // With many integers narrower ranges only lose.
        let step = if self.max > 15.0 { 0.004 } else { 0.033 };
        let mut fits = Fits { scales: [0.0; CANDIDATES], zeros: [self.middle(); CANDIDATES] };
        if self.symmetric {
            let size = 1.1 * max(-low, high) / self.middle();
            for lane in 0..CANDIDATES {
                fits.scales[lane] = size * SIGN[lane] * (1.0 + step * PAIRED_WIDTH[lane]);
            }
        } else {
            let nearest = round(-low * inverse((high - low) / self.max));
            for lane in 0..CANDIDATES {
                let zero = max(min(nearest + OFFSET[lane], self.max), 0.0);
                let below = if zero > 0.0 { -low / zero } else { 0.0 };
                let above = if zero < self.max { high / (self.max - zero) } else { 0.0 };
                fits.zeros[lane] = zero;
                fits.scales[lane] = max(below, above) * (1.0 + step * WIDTH[lane]);
            }
        }
        let mut best = Best { explained: 0.0, fit: Fit { scale: 0.0, zero: self.middle() } };
        best.try_fits(block, self, &fits);
        // The best scale may move values to other integers, which have a better scale again.
        for lane in 0..CANDIDATES {
            fits.scales[lane] = best.fit.scale * (1.0 + 0.006 * (lane as f32 - 8.0));
            fits.zeros[lane] = best.fit.zero;
        }
        best.try_fits(block, self, &fits);
        best.fit
    }

    /// Half-quadratic quantization: the scale of the range, and the zero point found by turns of
    /// shrinking the error and averaging.
    #[inline(always)]
    fn half_quadratic(self, block: &[f32]) -> Fit {
        const NORM: f32 = 0.7;
        let start = self.nearest(block);
        if self.symmetric || start.scale == 0.0 {
            return start;
        }
        let (scale, mut zero) = (start.scale, start.zero);
        let mut beta = 10.0;
        for _ in 0..20 {
            let mut sum = 0.0;
            for &x in block {
                let integer = round(x / scale + zero).clamp(0.0, self.max);
                let error = x - (integer - zero) * scale;
                let shrunk = error.abs() - error.abs().max(1e-8).powf(NORM - 1.0) / beta;
                let outlier = error.signum() * shrunk.max(0.0);
                sum += integer - (x - outlier) / scale;
            }
            zero = sum / block.len() as f32;
            beta *= 1.01;
        }
        Fit { scale, zero: round(zero).clamp(0.0, self.max) }
    }

    /// The one of the two nearest bfloat16 to a fit's scale that leaves the smaller squared error.
    #[inline(always)]
    pub(super) fn with_short_scale(self, fit: Fit, block: &[f32]) -> Fit {
        // Towards 0 and away from it.
        let towards = fit.scale.to_bits() & 0xFFFF_0000;
        let away = if fit.scale.to_bits() == towards { towards } else { towards + 0x1_0000 };
        let [towards, away] =
            [towards, away].map(|bits| Fit { scale: f32::from_bits(bits), ..fit });
        if self.squared_error(away, block) < self.squared_error(towards, block) {
            away
        } else {
            towards
        }
    }

    #[inline(always)]
    fn squared_error(self, fit: Fit, block: &[f32]) -> f32 {
        let inverse = inverse(fit.scale);
        let mut sums = [0.0_f32; LANES];
        for values in block.chunks_exact(LANES) {
            for lane in 0..LANES {
                let x = values[lane];
                let integer = max(min(round(x * inverse) + fit.zero, self.max), 0.0);
                let error = x - (integer - fit.zero) * fit.scale;
                sums[lane] += error * error;
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
        }
        sums[0]
    }

    /// The integers of a block, as small floats.
    #[inline(always)]
    pub(super) fn integers(self, fit: Fit, block: &[f32], out: &mut [f32]) {
        let inverse = inverse(fit.scale);
        for (out, &x) in out.iter_mut().zip(block) {
            *out = max(min(round(x * inverse) + fit.zero, self.max), 0.0);
        }
    }
}

/// Eight widths of the range around the nearest zero point, four around each of its neighbours: zero
/// points away from the nearest, and steps of the width from a little wider to much narrower.
const OFFSET: [f32; CANDIDATES] =
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
const WIDTH: [f32; CANDIDATES] =
    [1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, 1.0, -1.0, -3.0, -5.0, 1.0, -1.0, -3.0, -5.0];
/// The same eight widths with either sign of the scale: either end may be the one that has an integer
/// more.
const SIGN: [f32; CANDIDATES] =
    [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
const PAIRED_WIDTH: [f32; CANDIDATES] =
    [1.0, 1.0, 0.0, 0.0, -1.0, -1.0, -2.0, -2.0, -3.0, -3.0, -4.0, -4.0, -5.0, -5.0, -6.0, -6.0];

/// Fits that are tried side by side, a lane for each.
struct Fits {
    scales: [f32; CANDIDATES],
    zeros: [f32; CANDIDATES],
}

struct Best {
    /// How much of the block's sum of squares the fit explains.
    explained: f32,
    fit: Fit,
}

impl Best {
    /// Takes one of several fits, if it is better: the integers that it gives, with the scale that
    /// is best for these. All are tried side by side, a lane for each.
    #[inline(always)]
    fn try_fits(&mut self, block: &[f32], levels: Levels, fits: &Fits) {
        let (mut inverses, mut low, mut high) =
            ([0.0; CANDIDATES], [0.0; CANDIDATES], [0.0; CANDIDATES]);
        for lane in 0..CANDIDATES {
            inverses[lane] = inverse(fits.scales[lane]);
            low[lane] = -fits.zeros[lane];
            high[lane] = levels.max - fits.zeros[lane];
        }
        let (mut products, mut squares) = ([0.0_f32; CANDIDATES], [0.0_f32; CANDIDATES]);
        for &x in block {
            for lane in 0..CANDIDATES {
                let steps = max(min(round(x * inverses[lane]), high[lane]), low[lane]);
                // One rounding on every processor; those without the instruction are slow here.
                products[lane] = x.mul_add(steps, products[lane]);
                squares[lane] = steps.mul_add(steps, squares[lane]);
            }
        }
        // sum (x - s d)^2 is least for s = sum x d / sum d^2, and then sum x^2 - explained.
        let (mut scales, mut explained) = ([0.0_f32; CANDIDATES], [0.0_f32; CANDIDATES]);
        for lane in 0..CANDIDATES {
            scales[lane] = products[lane] / squares[lane];
            explained[lane] = products[lane] * scales[lane];
        }
        let mut first = None;
        for (lane, &explained) in explained.iter().enumerate() {
            if explained > self.explained {
                (self.explained, first) = (explained, Some(lane));
            }
        }
        if let Some(lane) = first {
            self.fit = Fit { scale: scales[lane], zero: fits.zeros[lane] };
        }
    }
}

/// Smallest and largest value, zero among them.
#[inline(always)]
fn range(block: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for values in block.chunks_exact(LANES) {
        for lane in 0..LANES {
            low[lane] = min(low[lane], values[lane]);
            high[lane] = max(high[lane], values[lane]);
        }
    }
    // By halves, which are computed together, too.
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            low[lane] = min(low[lane], low[lane + half]);
            high[lane] = max(high[lane], high[lane + half]);
        }
    }
    (low[0], high[0])
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    // A block of zeros, or of values so small that nothing is left of them.
    if scale.abs() >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// Nearest integer, ties to even, of numbers below 2^22: adding a number that has no bits for
/// fractions rounds, in two instructions.
#[inline(always)]
fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

// `f32::min` and `f32::max` treat NaN in a way that takes several instructions; there is none here.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Values with a bell-shaped distribution around `mean`.
    fn blocks(count: usize, size: usize, mean: f32) -> Vec<Vec<f32>> {
        let mut random = SmallRng::seed_from_u64(1);
        let mut value =
            || mean + (0..6).map(|_| random.random_range(-1.0..1.0_f32)).sum::<f32>() / 50.0;
        (0..count).map(|_| (0..size).map(|_| value()).collect()).collect()
    }

    fn error(levels: Levels, fit: Fit, block: &[f32]) -> f64 {
        let mut integers = vec![0.0; block.len()];
        levels.integers(fit, block, &mut integers);
        let value = |integer: f32| (integer - fit.zero) * fit.scale;
        integers.iter().zip(block).map(|(&q, &x)| f64::from(x - value(q)).powi(2)).sum()
    }

    #[test]
    fn the_search_is_near_the_best_of_all_scales_and_zero_points() {
        for symmetric in [true, false] {
            let levels = Levels { max: 15.0, symmetric };
            let (mut found, mut best, mut nearest) = (0.0, 0.0, 0.0);
            for block in blocks(20, 32, 0.005) {
                found += error(levels, levels.search(&block), &block);
                nearest += error(levels, levels.nearest(&block), &block);
                let largest = block.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                let zeros = if symmetric { 8..=8 } else { 0..=15 };
                let fits = zeros.flat_map(|zero| {
                    (1..2000).flat_map(move |i| {
                        let scale = largest / 4.0 * i as f32 / 2000.0;
                        [scale, -scale].map(|scale| Fit { scale, zero: zero as f32 })
                    })
                });
                best += fits.map(|fit| error(levels, fit, &block)).fold(f64::MAX, f64::min);
            }
            assert!(found < 1.03 * best, "{symmetric}: {found} {best}");
            assert!(found < 0.9 * nearest, "{symmetric}: {found} {nearest}");
        }
    }

    #[test]
    fn every_method_keeps_values_within_a_step() {
        for max in [15.0, 255.0] {
            for symmetric in [true, false] {
                let levels = Levels { max, symmetric };
                for block in blocks(10, 64, 0.01) {
                    let (low, high) = range(&block);
                    let step = (high - low) as f64 / f64::from(max);
                    for method in [Method::Nearest, Method::Search, Method::Hqq] {
                        let fit = levels.fit(method, &block);
                        assert_eq!(fit.zero, fit.zero.round());
                        assert!((0.0..=max).contains(&fit.zero));
                        let rms = (error(levels, fit, &block) / 64.0).sqrt();
                        assert!(rms < step, "{method:?} {levels:?}: {rms} {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_and_constants_are_exact() {
        for method in [Method::Nearest, Method::Search, Method::Hqq] {
            for symmetric in [true, false] {
                let levels = Levels { max: 15.0, symmetric };
                for value in [0.0, 0.75, -3.0, 1e-30] {
                    let block = [value; 32];
                    let error = error(levels, levels.fit(method, &block), &block).sqrt();
                    assert!(error <= 1e-6, "{method:?} {symmetric} {value}: {error}");
                }
            }
        }
    }
}
