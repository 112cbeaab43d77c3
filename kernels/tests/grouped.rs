//! Attention of a decoder, against its definition in double precision.

mod common;

use std::num::NonZero;

use common::{available, numbers};
use lfm2vl_kernels::{GroupedAttention, HeadNorms, Instructions, Rotary, Scoped};
use proptest::prelude::*;

/// What an attention is given.
struct Case {
    sizes: [usize; 5],
    past: Vec<usize>,
    /// Queries, keys and values of new tokens, of all sequences.
    new: [Vec<f32>; 3],
    /// Keys and values of earlier ones; what is behind them is not a number.
    caches: [Vec<f32>; 2],
    /// Weights of the norms of queries and keys, and cosines and sines [positions, head_size / 2].
    norms: Option<[Vec<f32>; 2]>,
    tables: Option<[Vec<f32>; 2]>,
}

const EPSILON: f32 = 1e-5;

impl Case {
    fn new(sizes: [usize; 5], past: Vec<usize>, has: [bool; 2], seed: u64) -> Self {
        let [tokens, heads, kv_heads, size, room] = sizes;
        let batch = past.len();
        let capacity = past.iter().max().unwrap() + tokens + room;
        let mut caches = [5, 6].map(|n| numbers(batch * kv_heads * capacity * size, 1.0, seed ^ n));
        for cache in &mut caches {
            for (head, rows) in cache.chunks_mut((capacity * size).max(1)).enumerate() {
                rows[past[head / kv_heads] * size..].fill(f32::NAN);
            }
        }
        let of = |heads: usize, n: u64| numbers(batch * tokens * heads * size, 1.0, seed ^ n);
        Case {
            sizes: [tokens, heads, kv_heads, size, capacity],
            past,
            new: [of(heads, 1), of(kv_heads, 2), of(kv_heads, 3)],
            caches,
            norms: has[0].then(|| [7, 8].map(|n| numbers(size, 1.0, seed ^ n))),
            tables: has[1].then(|| {
                let angles = numbers(capacity * size / 2, 1.0, seed ^ 9);
                [angles.iter().map(|x| x.cos()).collect(), angles.iter().map(|x| x.sin()).collect()]
            }),
        }
    }

    /// Outputs, and the caches after it.
    fn run(&self, instructions: Instructions) -> (Vec<f32>, [Vec<f32>; 2]) {
        let [tokens, heads, kv_heads, head_size, capacity] = self.sizes;
        let rows: Vec<usize> =
            self.past.iter().flat_map(|&past| (0..tokens).map(move |t| past + t)).collect();
        let attention = GroupedAttention {
            batch: self.past.len(),
            tokens,
            heads,
            kv_heads,
            head_size,
            capacity,
            scale: 0.3,
            norms: self.norms.as_ref().map(|[query, key]| HeadNorms {
                query,
                key,
                epsilon: EPSILON,
            }),
            rotary: self.tables.as_ref().map(|[cos, sin]| Rotary { cos, sin, rows: &rows }),
        };
        let [mut keys, mut values] = self.caches.clone();
        let mut output = vec![f32::NAN; self.new[0].len()];
        let new = self.new.each_ref().map(|rows| &rows[..]);
        let threads = Scoped::new(NonZero::new(2).unwrap());
        let (past, output_of) = (&self.past, &mut output);
        attention.run(instructions, new, past, &mut keys, &mut values, output_of, &threads);
        (output, [keys, values])
    }

    /// A head of a new token after norm and rotation.
    fn prepared(&self, which: usize, heads: usize, row: usize, head: usize) -> Vec<f64> {
        let [tokens, _, _, size, _] = self.sizes;
        let from = &self.new[which][(row * heads + head) * size..][..size];
        let mut x: Vec<f64> = from.iter().map(|&x| f64::from(x)).collect();
        if let Some(norms) = &self.norms {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / size as f64;
            let root = (mean + f64::from(EPSILON)).sqrt();
            x.iter_mut().zip(&norms[which]).for_each(|(x, weight)| *x *= f64::from(*weight) / root);
        }
        if let Some([cos, sin]) = &self.tables {
            let position = self.past[row / tokens] + row % tokens;
            for i in 0..size / 2 {
                let at = position * (size / 2) + i;
                let (cos, sin, a, b) =
                    (f64::from(cos[at]), f64::from(sin[at]), x[i], x[i + size / 2]);
                (x[i], x[i + size / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        x
    }

    fn check(&self, instructions: Instructions) {
        let [tokens, heads, kv_heads, size, capacity] = self.sizes;
        let (output, [keys, values]) = self.run(instructions);
        for (sequence, &past) in self.past.iter().enumerate() {
            let cached = |cache: &[f32], head: usize, token: usize| -> Vec<f64> {
                let start = ((sequence * kv_heads + head) * capacity + token) * size;
                cache[start..][..size].iter().map(|&x| f64::from(x)).collect()
            };
            for head in 0..kv_heads {
                for token in 0..tokens {
                    let row = sequence * tokens + token;
                    let expected = self.prepared(1, kv_heads, row, head);
                    let found = cached(&keys, head, past + token);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 2e-6 * (size as f64).sqrt());
                    }
                    let value = &self.new[2][(row * kv_heads + head) * size..][..size];
                    let found = cached(&values, head, past + token);
                    assert!(found.iter().zip(value).all(|(a, b)| *a == f64::from(*b)));
                }
                // The others are as they were, to the bit.
                for (cache, before) in [(&keys, &self.caches[0]), (&values, &self.caches[1])] {
                    let start = (sequence * kv_heads + head) * capacity * size;
                    let others = (0..past * size).chain((past + tokens) * size..capacity * size);
                    let bits = |all: &[f32], at: usize| all[start + at].to_bits();
                    assert!(others.into_iter().all(|at| bits(cache, at) == bits(before, at)));
                }
            }
            for token in [0, tokens / 2, tokens - 1] {
                for head in [0, heads - 1] {
                    let row = sequence * tokens + token;
                    let query = self.prepared(0, heads, row, head);
                    let kv_head = head * kv_heads / heads;
                    let scores: Vec<f64> = (0..=past + token)
                        .map(|key| {
                            let key = cached(&keys, kv_head, key);
                            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>()
                                * f64::from(0.3f32)
                        })
                        .collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                    let mut expected = vec![0.0; size];
                    for (key, score) in scores.iter().enumerate() {
                        let power = (score - top).exp() / total;
                        let value = cached(&values, kv_head, key);
                        expected.iter_mut().zip(&value).for_each(|(sum, x)| *sum += power * x);
                    }
                    let found = &output[(row * heads + head) * size..][..size];
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        let sizes = self.sizes;
                        assert!(error < 1e-5, "{instructions} {sizes:?} {found} {expected}");
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
        (tokens, kv_heads, group, half) in (1usize..70, 1usize..4, 1usize..5, 1usize..40),
        past in prop::collection::vec(0usize..700, 1..3),
        has in any::<[bool; 2]>(),
        (is_odd, room, seed) in (any::<bool>(), 0usize..3, any::<u64>()),
    ) {
        // What is rotated has two halves.
        let size = 2 * half + usize::from(is_odd && !has[1]);
        let case = Case::new([tokens, group * kv_heads, kv_heads, size, room], past, has, seed);
        available().for_each(|instructions| case.check(instructions));
    }

    /// However a prompt is cut, and whoever is computed beside it, its bits are the same.
    #[test]
    fn pieces_and_neighbours_do_not_matter(
        (first, second, kv_heads, group) in (1usize..200, 1usize..200, 1usize..3, 1usize..4),
        past in 0usize..600,
        seed in any::<u64>(),
    ) {
        let (size, tokens, heads) = (64, first + second, group * kv_heads);
        let sizes = [tokens, heads, kv_heads, size, 0];
        let whole = Case::new(sizes, vec![past, past], [true; 2], seed);
        for instructions in available() {
            let (output, caches) = whole.run(instructions);
            let capacity = whole.sizes[4];
            // The second sequence alone, in two pieces.
            let of_second = |all: &[f32]| all[all.len() / 2..].to_vec();
            let mut alone = Case {
                sizes: [first, heads, kv_heads, size, capacity],
                past: vec![past],
                new: whole.new.each_ref().map(|rows| of_second(rows)),
                caches: whole.caches.each_ref().map(|cache| of_second(cache)),
                norms: whole.norms.clone(),
                tables: whole.tables.clone(),
            };
            let rest = alone.new.each_mut().map(|rows| rows.split_off(rows.len() / tokens * first));
            let (mut pieces, caches_of_first) = alone.run(instructions);
            alone.sizes[0] = second;
            (alone.past, alone.new, alone.caches) = (vec![past + first], rest, caches_of_first);
            let (last, caches_of_pieces) = alone.run(instructions);
            pieces.extend(last);
            prop_assert!(pieces == of_second(&output), "{} {:?}", instructions, sizes);
            for (whole, pieces) in caches.iter().zip(&caches_of_pieces) {
                let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert!(bits(&of_second(whole)) == bits(pieces));
            }
        }
    }
}

#[test]
#[should_panic(expected = "room for new tokens")]
fn what_does_not_fit_is_refused() {
    let mut case = Case::new([2, 2, 1, 4, 0], vec![3], [false; 2], 1);
    case.past = vec![4];
    case.run(Instructions::Portable);
}
