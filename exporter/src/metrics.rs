//! How far values are from reference values.

/// Sums over pairs of values, from which the metrics follow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Comparison {
    max_abs_error: f32,
    max_reference: f32,
    dot: f64,
    square: f64,
    reference_square: f64,
}

impl Comparison {
    /// Takes in values and the reference's for the same places; a NaN makes every metric fail.
    pub(crate) fn add<'a>(
        &mut self,
        values: impl IntoIterator<Item = &'a f32>,
        reference: impl IntoIterator<Item = &'a f32>,
    ) {
        let mut reference = reference.into_iter();
        for &value in values {
            let Some(&expected) = reference.next() else {
                self.max_abs_error = f32::NAN;
                return;
            };
            let error = (value - expected).abs();
            if error.is_nan() || error > self.max_abs_error {
                self.max_abs_error = error;
            }
            self.max_reference = self.max_reference.max(expected.abs());
            self.dot += f64::from(value) * f64::from(expected);
            self.square += f64::from(value).powi(2);
            self.reference_square += f64::from(expected).powi(2);
        }
        if reference.next().is_some() {
            self.max_abs_error = f32::NAN;
        }
    }

    /// Largest absolute difference.
    pub(crate) fn max_abs_error(&self) -> f32 {
        self.max_abs_error
    }

    /// Largest absolute difference over the reference's largest magnitude, where that exceeds 1.
    pub(crate) fn scaled_error(&self) -> f32 {
        self.max_abs_error / self.max_reference.max(1.0)
    }

    /// Cosine of the angle between all values and the reference's; 1 where all are zero.
    pub(crate) fn cosine(&self) -> f64 {
        if self.square == 0.0 && self.reference_square == 0.0 {
            return 1.0;
        }
        self.dot / (self.square * self.reference_square).sqrt()
    }
}

/// Index of the largest value; the first of equals.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// Kullback-Leibler divergence of the distribution of the logits `theirs` from that of `reference`, in
/// nats.
pub(crate) fn divergence(reference: &[f32], theirs: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted: Vec<f64> = logits.iter().map(|l| f64::from(l - largest)).collect();
        let normaliser = shifted.iter().map(|l| l.exp()).sum::<f64>().ln();
        shifted.into_iter().map(|l| l - normaliser).collect()
    };
    let (p, q) = (log_probabilities(reference), log_probabilities(theirs));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_known_values() {
        let mut comparison = Comparison::default();
        comparison.add(&[3.0, 0.0], &[4.0, 0.0]);
        comparison.add(&[0.0], &[3.0]);
        assert_eq!(comparison.max_abs_error(), 3.0);
        assert_eq!(comparison.scaled_error(), 0.75);
        assert!((comparison.cosine() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn nan_and_missing_values_are_not_close() {
        for (values, reference) in [(&[f32::NAN][..], &[1.0][..]), (&[1.0], &[1.0, 2.0])] {
            let mut comparison = Comparison::default();
            comparison.add(values, reference);
            assert!(comparison.scaled_error().is_nan());
        }
    }

    #[test]
    fn divergence_of_known_distributions() {
        let logits = |p: [f32; 2]| p.map(f32::ln).to_vec();
        assert_eq!(divergence(&logits([0.5, 0.5]), &logits([0.5, 0.5])), 0.0);
        // 0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1)
        let kl = divergence(&logits([0.5, 0.5]), &logits([0.9, 0.1]));
        approx::assert_abs_diff_eq!(kl, 0.510_826, epsilon = 1e-5);
    }
}
