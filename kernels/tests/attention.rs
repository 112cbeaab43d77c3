//! Attention of all instructions against the definition in double precision.

mod common;

use std::num::NonZero;

use common::{available, numbers};
use lfm2vl_kernels::{Attention, Instructions, Precision, Scoped};
use proptest::prelude::*;

/// What there is on this processor.
fn all() -> impl Iterator<Item = (Instructions, Precision)> {
    available()
        .flat_map(|i| [Precision::Float32, Precision::Bits16].map(|precision| (i, precision)))
}

/// One output by the definition, and the largest sum of the magnitudes of a score's products.
fn expected(
    sizes: Attention,
    parts: [&[f32]; 3],
    mask: Option<&[i32]>,
    scale: f32,
    [sequence, query, head]: [usize; 3],
) -> (Vec<f64>, f64) {
    let [queries, keys, values] = parts;
    let (width, value_width) = (sizes.heads * sizes.head_size, sizes.heads * sizes.value_size);
    let of = |all: &[f32], row: usize, width: usize, size: usize| -> Vec<f64> {
        all[row * width + head * size..][..size].iter().map(|&x| f64::from(x)).collect()
    };
    let q = of(queries, sequence * sizes.queries + query, width, sizes.head_size);
    let mut magnitude = 0.0f64;
    let lowered = |key: usize| mask.is_some_and(|mask| mask[sequence * sizes.keys + key] == 0);
    let scores: Vec<f64> = (0..sizes.keys)
        .map(|key| {
            let k = of(keys, sequence * sizes.keys + key, width, sizes.head_size);
            let magnitudes: f64 = q.iter().zip(&k).map(|(a, b)| (a * b).abs()).sum();
            magnitude = magnitude.max(magnitudes * f64::from(scale));
            let score = q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale);
            if lowered(key) { score - 10_000.0 } else { score }
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = powers.iter().sum();
    let mut output = vec![0.0; sizes.value_size];
    for (key, power) in powers.iter().enumerate() {
        let row = of(values, sequence * sizes.keys + key, value_width, sizes.value_size);
        output.iter_mut().zip(&row).for_each(|(sum, x)| *sum += power / total * x);
    }
    (output, magnitude)
}

fn check(sizes: Attention, mask: Option<Vec<i32>>, size: f32, seed: u64) {
    let (width, value_width) = (sizes.heads * sizes.head_size, sizes.heads * sizes.value_size);
    let scaled = |count: usize, seed: u64| -> Vec<f32> {
        numbers(count, 1.0, seed).into_iter().map(|x| x * size).collect()
    };
    let query = scaled(sizes.batch * sizes.queries * width, seed);
    let key = scaled(sizes.batch * sizes.keys * width, seed ^ 0x5555);
    let value = numbers(sizes.batch * sizes.keys * value_width, 1.0, seed ^ 0xAAAA);
    let scale = 1.0 / (sizes.head_size.max(1) as f32).sqrt();
    for (instructions, precision) in all() {
        let mut output = vec![f32::NAN; sizes.batch * sizes.queries * value_width];
        let threads = Scoped::new(NonZero::new(2).unwrap());
        let mask = mask.as_deref();
        let parts = [&query[..], &key, &value];
        let [q, k, v] = parts;
        sizes.run(instructions, precision, q, k, v, mask, scale, &mut output, &threads);
        for sequence in 0..sizes.batch {
            for query_index in [0, sizes.queries / 2, sizes.queries - 1] {
                for head in [0, sizes.heads - 1] {
                    let place = [sequence, query_index, head];
                    let (expected, magnitude) = expected(sizes, parts, mask, scale, place);
                    let bound = match (precision, instructions) {
                        // Rounding a factor of a score, or a power and a value.
                        (Precision::Bits16, Instructions::Amx) => {
                            2.0f64.powi(-16) * (2.0 * magnitude + 1.0)
                        }
                        _ => 3e-6 * f64::from(size.max(1.0)),
                    };
                    let row = (sequence * sizes.queries + query_index) * value_width;
                    let found = &output[row + head * sizes.value_size..][..sizes.value_size];
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error < bound,
                            "{instructions} {precision:?} {sizes:?} {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn all_instructions_attend(
        (batch, queries, keys, heads) in (1usize..3, 1usize..80, 1usize..700, 1usize..4),
        (head_size, value_size) in (1usize..80, 1usize..80),
        (seen, size) in (0u32..=4, prop::sample::select(vec![0.1f32, 1.0, 8.0])),
        seed in any::<u64>(),
    ) {
        let sizes = Attention { batch, queries, keys, heads, head_size, value_size };
        // Of four keys that many are seen; none is as all.
        let mask = (seen < 4).then(|| {
            let random = numbers(batch * keys, 1.0, seed ^ 0x1234);
            random.iter().map(|x| i32::from((x + 1.0) * 2.0 < seen as f32)).collect()
        });
        check(sizes, mask, size, seed);
    }
}

/// Tiles of LFM2-VL-450M and 3B: 64 and 72 numbers a head.
#[test]
fn shapes_of_models() {
    for head_size in [64, 72] {
        let sizes = Attention {
            batch: 1,
            queries: 1024,
            keys: 1024,
            heads: 2,
            head_size,
            value_size: head_size,
        };
        check(sizes, None, 1.0, 1);
        let mask = (0..1024).map(|key| i32::from(key < 600)).collect();
        check(sizes, Some(mask), 1.0, 2);
    }
}

/// Without numbers to compare, all keys count the same.
#[test]
fn heads_without_numbers() {
    let sizes = Attention { batch: 1, queries: 3, keys: 5, heads: 2, head_size: 0, value_size: 4 };
    check(sizes, None, 1.0, 1);
}

#[test]
fn what_is_not_a_number_stays_so() {
    let sizes = Attention { batch: 1, queries: 3, keys: 70, heads: 1, head_size: 8, value_size: 8 };
    let mut query = numbers(3 * 8, 1.0, 1);
    query[8] = f32::NAN;
    let (key, value) = (numbers(70 * 8, 1.0, 2), numbers(70 * 8, 1.0, 3));
    for (instructions, precision) in all() {
        let mut output = vec![0.0; 3 * 8];
        let threads = Scoped::new(NonZero::new(1).unwrap());
        let [query, key, value] = [&query[..], &key, &value];
        sizes.run(instructions, precision, query, key, value, None, 1.0, &mut output, &threads);
        let is_nan: Vec<bool> =
            output.chunks(8).map(|row| row.iter().all(|x| x.is_nan())).collect();
        assert_eq!(is_nan, [false, true, false], "{instructions} {precision:?}");
    }
}
