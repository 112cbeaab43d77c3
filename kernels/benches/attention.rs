//! `cargo bench --package lfm2vl-kernels --bench attention [-- INSTRUCTIONS...]`: attention of a layer for a
//! tile of LFM2-VL-450M and one of 3B, on all processors. Medians of rounds in which all take turns; errors
//! are the largest of some rows, beside the definition in double precision.

use std::{num::NonZero, time::Instant};

use lfm2vl_kernels::{Attention, Instructions, Precision, Scoped};

const ROUNDS: usize = 15;
const PATCHES: usize = 1024;
/// Heads and the size of each.
const SHAPES: [[usize; 2]; 2] = [[12, 64], [16, 72]];

fn main() {
    let names: Vec<String> =
        std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let is_wanted =
        |i: &Instructions| names.is_empty() || names.iter().any(|name| name == i.name());
    let mut wanted: Vec<(Instructions, Precision)> = Instructions::ALL
        .into_iter()
        .filter(|i| i.are_available() && is_wanted(i))
        .map(|instructions| (instructions, Precision::Float32))
        .collect();
    if let Some(&(Instructions::Amx, _)) = wanted.last() {
        wanted.push((Instructions::Amx, Precision::Bits16));
    }
    let count = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    println!("{count} threads");
    println!("| heads | instructions | precision | ms | GOP/s | largest error |");
    println!("|---|---|---|---|---|---|");
    for [heads, size] in SHAPES {
        let sizes = Attention {
            batch: 1,
            queries: PATCHES,
            keys: PATCHES,
            heads,
            head_size: size,
            value_size: size,
        };
        let numbers = |seed: u32| -> Vec<f32> {
            let number = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761).wrapping_mul(i | 1);
            let count = (PATCHES * heads * size) as u32;
            (0..count).map(|i| (number(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
        };
        let (query, key, value) = (numbers(1), numbers(2), numbers(3));
        let scale = 1.0 / (size as f32).sqrt();
        let mut times = vec![Vec::new(); wanted.len()];
        let mut errors = vec![0.0f64; wanted.len()];
        for _ in 0..ROUNDS {
            for (i, &(instructions, precision)) in wanted.iter().enumerate() {
                let mut output = vec![0.0; query.len()];
                let threads = Scoped::new(count);
                let start = Instant::now();
                let [query, key, value] = [&query[..], &key, &value];
                sizes.run(
                    instructions,
                    precision,
                    query,
                    key,
                    value,
                    None,
                    scale,
                    &mut output,
                    &threads,
                );
                times[i].push(start.elapsed());
                for place in [0, PATCHES / 2 * heads + 1, PATCHES * heads - 1] {
                    let expected = expected(sizes, query, key, value, place);
                    for (found, expected) in output[place * size..].iter().zip(expected) {
                        errors[i] = errors[i].max((f64::from(*found) - expected).abs());
                    }
                }
            }
        }
        for (((instructions, precision), times), error) in wanted.iter().zip(&mut times).zip(errors)
        {
            times.sort();
            let seconds = times[ROUNDS / 2].as_secs_f64();
            let operations = (4 * PATCHES * PATCHES * heads * size) as f64;
            let (ms, speed) = (1e3 * seconds, operations / seconds / 1e9);
            println!(
                "| {heads} of {size} | {instructions} | {precision:?} | {ms:.2} | {speed:.0} | {error:.1e} |"
            );
        }
    }
}

/// The output of the head and query at `place`.
fn expected(sizes: Attention, query: &[f32], key: &[f32], value: &[f32], place: usize) -> Vec<f64> {
    let (size, heads) = (sizes.head_size, sizes.heads);
    let head = place % heads;
    let row = |all: &[f32], row: usize| -> Vec<f64> {
        all[(row * heads + head) * size..][..size].iter().map(|&x| f64::from(x)).collect()
    };
    let query = row(query, place / heads);
    let scale = 1.0 / (size as f64).sqrt();
    let powers: Vec<f64> = (0..sizes.keys)
        .map(|i| (query.iter().zip(row(key, i)).map(|(a, b)| a * b).sum::<f64>() * scale).exp())
        .collect();
    let total: f64 = powers.iter().sum();
    let mut output = vec![0.0; size];
    for (i, power) in powers.iter().enumerate() {
        output.iter_mut().zip(row(value, i)).for_each(|(sum, x)| *sum += power / total * x);
    }
    output
}
