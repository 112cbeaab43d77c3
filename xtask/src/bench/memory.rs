//! How fast memory is read, and how much of it a program takes.

use std::{
    fs,
    hint::black_box,
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

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

/// Runs a program; what it prints, and its largest resident size in bytes (0 where there is no
/// `/proc`).
pub(super) fn run(command: &mut Command) -> Result<(Vec<u8>, u64)> {
    let name = format!("{command:?}");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    let mut stdout = child.stdout.take().context("the program has no output")?;
    let reader = thread::spawn(move || {
        let mut output = Vec::new();
        stdout.read_to_end(&mut output).map(|_| output)
    });
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let status = loop {
        let status = fs::read_to_string(&status_file).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(1024 * kilobytes.unwrap_or(0_u64));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "{name} failed ({status})");
    let output = reader.join().ok().context("the output could not be read")??;
    Ok((output, peak))
}
