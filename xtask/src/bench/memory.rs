//! How fast memory is read.

use std::{hint::black_box, thread, time::Instant};

/// Bytes that all threads read in a second: the best of some passes over this many bytes, as decoding
/// reads the same weights again and again.
pub(super) fn bandwidth(threads: usize, bytes: u64) -> f64 {
    let words = vec![1_u64; bytes as usize / 8];
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..20).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (8 * words.len()) as f64 / best
}

/// Reads from several places at a time, which is faster than front to back.
fn sum(words: &[u64]) -> u64 {
    const STREAMS: usize = 8;
    const LINE: usize = 8;
    let length = words.len() / STREAMS / LINE * LINE;
    let mut sums = [[0_u64; LINE]; STREAMS];
    for at in (0..length).step_by(LINE) {
        for (stream, sums) in sums.iter_mut().enumerate() {
            let start = stream * length + at;
            for (sum, word) in sums.iter_mut().zip(&words[start..start + LINE]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all.wrapping_add(*sum))
}
