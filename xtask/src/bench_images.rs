//! `cargo xtask bench-images`: image processing beside transformers', on the same files and
//! cores, in turns.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{root, setup};

const PHOTOS: [&str; 3] = ["4000x3000.jpg", "1280x720.jpg", "512x512.png"];

pub(crate) fn run(repeat: usize) -> Result<()> {
    let photos = setup::photos()?;
    setup::build_release(&["--package", "lfm2vl", "--example", "preprocess_peer"])?;
    let ours = setup::release_program("examples/preprocess_peer")?;
    let mut ours = Peer::start(&mut Command::new(ours))?;
    let mut theirs = Peer::start(&mut setup::peer("preprocess.py")?)?;

    println!("milliseconds, medians of {repeat} runs in turns: transformers / ours = ratio");
    println!("{:<16}{:>26}{:>26}{:>26}", "", "load", "after loading", "in all");
    let mut rows = Vec::new();
    for photo in PHOTOS {
        let path = photos.join(photo);
        let (mut our_times, mut their_times) = (Times::default(), Times::default());
        // The first runs of each warm up.
        for warm in [false, false].into_iter().chain(vec![true; repeat.max(1)]) {
            let (a, b) = (theirs.time(&path)?, ours.time(&path)?);
            if warm {
                their_times.push(a);
                our_times.push(b);
            }
        }
        let (theirs, ours) = (their_times.medians(), our_times.medians());
        let cell =
            |i: usize| format!("{:.2} / {:.2} = {:.1}", theirs[i], ours[i], theirs[i] / ours[i]);
        println!("{photo:<16}{:>26}{:>26}{:>26}", cell(0), cell(1), cell(2));
        rows.push(serde_json::json!({"image": photo, "transformers_ms": theirs, "ours_ms": ours}));
    }
    let report = root().join("demo/bench-images.json");
    fs::write(&report, format!("{:#}\n", Value::from(rows)))?;
    println!("written to {}", report.display());
    Ok(())
}

/// Milliseconds of loading, of the rest, and in all.
type Run = [f64; 3];

#[derive(Default)]
struct Times(Vec<Run>);

impl Times {
    fn push(&mut self, run: Run) {
        self.0.push(run);
    }

    fn medians(&self) -> Run {
        std::array::from_fn(|i| {
            let mut times: Vec<f64> = self.0.iter().map(|run| run[i]).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    }
}

/// A program that answers each path with a line of times.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("the peer has no input")?;
        let output = BufReader::new(child.stdout.take().context("the peer has no output")?);
        Ok(Peer { child, input, output })
    }

    fn time(&mut self, image: &Path) -> Result<Run> {
        writeln!(self.input, "{}", image.display())?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a peer stopped ({})", self.child.wait()?);
        let times: Value = serde_json::from_str(&line)?;
        let time = |key: &str| times[key].as_f64().with_context(|| format!("no {key} in {line}"));
        let (decode, process) = (time("decode_ms")?, time("process_ms")?);
        Ok([decode, process, decode + process])
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
