//! `cargo bench --package lfm2vl-kernels [-- INSTRUCTIONS...]`: the speed of products at the shapes of
//! LFM2-VL-450M, beside what the processor's integer units and its memory give at most.
//!
//! Every thread has weights of its own, more than the caches hold, so that one row's products read from
//! memory as a token does. Medians of several rounds.

mod peak;

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use lfm2vl_kernels::{Bits, BlockWeights, Instructions, PackedWeights, Serial};

const ROUNDS: usize = 5;

/// Linear layers of one kind.
struct Layers {
    bits: Bits,
    block_size: usize,
    /// (outputs, inputs).
    shapes: [(usize, usize); 3],
}

/// Bytes of weights of all threads: a token of the 450M model reads 200 MB.
const OF_A_TOKEN: usize = 200_000_000;

const DECODER: [(usize, usize); 3] = [(4608, 1024), (1024, 4608), (1024, 1024)];
const VISION: [(usize, usize); 3] = [(3072, 768), (768, 3072), (768, 768)];
const LAYERS: [Layers; 4] = [
    Layers { bits: Bits::Four, block_size: 32, shapes: DECODER },
    Layers { bits: Bits::Four, block_size: 64, shapes: DECODER },
    Layers { bits: Bits::Four, block_size: 128, shapes: DECODER },
    Layers { bits: Bits::Eight, block_size: 64, shapes: VISION },
];

fn main() {
    let names: Vec<String> =
        std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wanted: Vec<Instructions> = Instructions::ALL
        .into_iter()
        .filter(|i| i.are_available())
        .filter(|i| {
            if names.is_empty() {
                *i != Instructions::Portable
            } else {
                names.iter().any(|name| name == i.name())
            }
        })
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("{threads} threads; reading memory: {:.1} GB/s", memory_speed(threads) / 1e9);
    for &instructions in &wanted {
        if let Some(peak) = peak::operations(instructions, threads) {
            println!("{instructions}: at most {:.0} GOP/s", peak / 1e9);
        }
    }
    println!();
    println!("| weights | rows | instructions | GB/s of weights | GOP/s |");
    println!("|---|---|---|---|---|");
    for Layers { bits, block_size, shapes } in LAYERS {
        for (outputs, inputs) in shapes {
            for rows in [1, 2, 4, 8, 32, 512] {
                for &instructions in &wanted {
                    let job = Job { outputs, inputs, bits, block_size, rows, instructions };
                    let (bytes, operations) = job.speed(threads, OF_A_TOKEN);
                    println!(
                        "| {outputs} x {inputs}, {} bits / {block_size} | {rows} | {instructions} | {:.1} | {:.0} |",
                        bits.get(),
                        bytes / 1e9,
                        operations / 1e9
                    );
                }
            }
        }
    }
    if let Some(&best) = wanted.last() {
        print_sizes(threads, best);
    }
}

/// How fast weights are read again that the processor's last cache may still have.
fn print_sizes(threads: usize, instructions: Instructions) {
    println!(
        "\n| weights of all threads, MB | GB/s of weights, one row, {instructions} |\n|---|---|"
    );
    for megabytes in [50, 100, 150, 200, 400] {
        let (bits, (outputs, inputs)) = (Bits::Four, DECODER[0]);
        let job = Job { outputs, inputs, bits, block_size: 64, rows: 1, instructions };
        let (bytes, _) = job.speed(threads, megabytes * 1_000_000);
        println!("| {megabytes} | {:.1} |", bytes / 1e9);
    }
}

struct Job {
    outputs: usize,
    inputs: usize,
    bits: Bits,
    block_size: usize,
    rows: usize,
    instructions: Instructions,
}

impl Job {
    /// Bytes of weights and operations (two for each weight and row) a second of all threads, which
    /// have so many bytes of weights.
    fn speed(&self, threads: usize, all_bytes: usize) -> (f64, f64) {
        let blocks = self.inputs.div_ceil(self.block_size);
        let values: Vec<u8> = (0..self.outputs * blocks * self.block_size * self.bits.get() / 8)
            .map(|i| (i * 2_654_435_761) as u8)
            .collect();
        let zero_points = vec![0x77; self.outputs * (blocks * self.bits.get()).div_ceil(8)];
        let weights = BlockWeights {
            outputs: self.outputs,
            inputs: self.inputs,
            bits: self.bits,
            block_size: self.block_size,
            values: &values,
            // As our exporter writes them, with the digits of bfloat16.
            scales: &vec![1.0 / 128.0; self.outputs * blocks],
            zero_points: (self.bits == Bits::Four).then_some(&zero_points),
        };
        let pack = || PackedWeights::pack(&weights, &Serial).expect("weights that fit together");
        let bytes = pack().bytes();
        let operations = 2 * self.rows * self.outputs * self.inputs;
        let copies = (all_bytes / threads / bytes).max(1);
        let repeats = (100_000_000_000 / operations / copies / threads).clamp(1, 3);
        let times = in_threads(
            threads,
            || {
                let weights: Vec<_> = (0..copies).map(|_| pack()).collect();
                let input: Vec<f32> =
                    (0..self.rows * self.inputs).map(|i| (i % 97) as f32 - 48.0).collect();
                (weights, input, vec![0.0; self.rows * self.outputs])
            },
            |(weights, input, output)| {
                for _ in 0..repeats {
                    for weights in weights.iter() {
                        weights.multiply(self.instructions, input, None, output, &Serial);
                    }
                }
                black_box(output);
            },
        );
        let each = times / (copies * repeats) as f64;
        (threads as f64 * bytes as f64 / each, threads as f64 * operations as f64 / each)
    }
}

/// Median seconds of a round in which each thread does `work` with what it has set up.
fn in_threads<T>(
    threads: usize,
    set_up: impl Fn() -> T + Sync,
    work: impl Fn(&mut T) + Sync,
) -> f64 {
    let barrier = Barrier::new(threads);
    let times: Vec<Vec<Duration>> = std::thread::scope(|scope| {
        let thread = || {
            let mut state = set_up();
            work(&mut state);
            let round = |_| {
                barrier.wait();
                let start = Instant::now();
                work(&mut state);
                start.elapsed()
            };
            (0..ROUNDS).map(round).collect()
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|round| times.iter().map(|times| times[round].as_secs_f64()).fold(0.0, f64::max))
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Bytes a second that all threads together read.
fn memory_speed(threads: usize) -> f64 {
    const BYTES: usize = 256 << 20;
    let seconds = in_threads(
        threads,
        || vec![1u64; BYTES / 8],
        |values| {
            // Several places at once, as kernels read several groups.
            let quarter = values.len() / 4;
            let (mut a, mut b, mut c, mut d) = (0u64, 0u64, 0u64, 0u64);
            for i in 0..quarter {
                a ^= values[i];
                b ^= values[quarter + i];
                c ^= values[2 * quarter + i];
                d ^= values[3 * quarter + i];
            }
            black_box(a ^ b ^ c ^ d);
        },
    );
    threads as f64 * BYTES as f64 / seconds
}
