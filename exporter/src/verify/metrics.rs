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

    /// Cosine of the angle between all values and the reference's.
    pub(crate) fn cosine(&self) -> f64 {
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
}
