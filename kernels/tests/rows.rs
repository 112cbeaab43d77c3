//! What lies between products, against its definition in double precision.

mod common;

use std::num::NonZero;

use common::{available, numbers};
use lfm2vl_kernels::{RmsNorm, Scoped, ShortConv, swiglu};
use proptest::prelude::*;

fn two() -> Scoped {
    Scoped::new(NonZero::new(2).unwrap())
}

fn assert_near(found: f32, expected: f64, size: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 2e-6 * size.max(1e-37), "{what}: {found} instead of {expected}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn norms(
        (size, rows, repeats) in (1usize..1100, 1usize..5, 1usize..20),
        magnitude in prop::sample::select(vec![1e-12f32, 1e-3, 1.0, 1e4]),
        seed in any::<u64>(),
    ) {
        let weight = numbers(size, 2.0, seed ^ 1);
        let input = numbers(rows * repeats * size, magnitude, seed ^ 2);
        let skip = numbers(rows * size, magnitude, seed ^ 3);
        for instructions in available() {
            let mut sum = vec![f32::NAN; input.len()];
            let mut normed = sum.clone();
            let norm = RmsNorm { weight: &weight, epsilon: 1e-5 };
            norm.of_sum(instructions, &input, &skip, &mut sum, &mut normed, &two());
            for row in 0..rows * repeats {
                let x: Vec<f64> = (0..size)
                    .map(|i| f64::from(input[row * size + i] + skip[row % rows * size + i]))
                    .collect();
                let square = x.iter().map(|x| x * x).sum::<f64>() / size as f64;
                let factor = 1.0 / (square + f64::from(1e-5f32)).sqrt();
                for i in 0..size {
                    prop_assert_eq!(f64::from(sum[row * size + i]), x[i]);
                    let expected = x[i] * factor * f64::from(weight[i]);
                    assert_near(normed[row * size + i], expected, expected.abs(), "normed");
                }
            }
        }
    }

    #[test]
    fn gates(len in 1usize..40_000, seed in any::<u64>()) {
        let (mut gate, up) = (numbers(len, 30.0, seed), numbers(len, 3.0, seed ^ 4));
        for (x, special) in gate.iter_mut().zip([-500.0, 500.0, -87.5, 0.0, -0.0, 1e-30]) {
            *x = special;
        }
        for instructions in available() {
            let mut output = vec![f32::NAN; len];
            swiglu(instructions, &gate, &up, &mut output, &two());
            for i in 0..len {
                let (x, up) = (f64::from(gate[i]), f64::from(up[i]));
                let expected = x / (1.0 + (-x).exp()) * up;
                // Powers of e below those of a float are cut off.
                let size = expected.abs() + 1e-28;
                assert_near(output[i], expected, size, &format!("{instructions} {x} {up}"));
            }
        }
    }

    #[test]
    fn convolutions(
        (batch, rows, channels, width, gate) in (1usize..4, 0usize..40, 1usize..300, 1usize..6, 0usize..3),
        (keeps_width, kept) in (any::<bool>(), 0usize..50),
        seed in any::<u64>(),
    ) {
        let kept = if keeps_width { width } else { kept.min(width + rows) };
        let weight = numbers(channels * width, 1.0, seed ^ 5);
        let inputs = numbers(batch * rows * 3 * channels, 2.0, seed ^ 6);
        let past = numbers(batch * channels * width, 1.0, seed ^ 7);
        let conv = ShortConv { weight: &weight, channels, width, gate };
        for instructions in available() {
            let mut output = vec![f32::NAN; batch * rows * channels];
            let mut present = vec![f32::NAN; batch * channels * kept];
            conv.run(instructions, batch, &inputs, &past, &mut output, &mut present, &two());
            for sequence in 0..batch {
                for channel in 0..channels {
                    let state = (sequence * channels + channel) * width;
                    let third = |row: usize, third: usize| {
                        inputs[((sequence * rows + row) * 3 + third) * channels + channel]
                    };
                    let [a, b] = [(gate + 1) % 3, (gate + 2) % 3];
                    let mut history = past[state..][..width].to_vec();
                    history.extend((0..rows).map(|row| third(row, a) * third(row, b)));
                    let own = &present[(sequence * channels + channel) * kept..][..kept];
                    prop_assert_eq!(own, &history[width + rows - kept..]);
                    for row in 0..rows {
                        let terms = (0..width).map(|k| {
                            f64::from(weight[channel * width + k]) * f64::from(history[row + 1 + k])
                        });
                        let gate = f64::from(third(row, gate));
                        let size = terms.clone().map(f64::abs).sum::<f64>() * gate.abs();
                        let found = output[(sequence * rows + row) * channels + channel];
                        assert_near(found, terms.sum::<f64>() * gate, size, "convolved");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for instructions in available() {
        for at in [3, 37] {
            let mut gate = vec![1.0; 38];
            gate[at] = f32::NAN;
            let mut output = vec![0.0; 38];
            swiglu(instructions, &gate, &[1.0; 38], &mut output, &two());
            let is_nan: Vec<_> = output.iter().map(|x| x.is_nan()).collect();
            let expected: Vec<_> = (0..38).map(|i| i == at).collect();
            assert_eq!(is_nan, expected, "{instructions}");

            let (mut sum, mut normed) = (vec![0.0; 38], vec![0.0; 38]);
            let norm = RmsNorm { weight: &[1.0; 38], epsilon: 1e-5 };
            norm.of_sum(instructions, &gate, &[1.0; 38], &mut sum, &mut normed, &two());
            assert!(normed.iter().all(|x| x.is_nan()), "{instructions}");
        }
    }
}
