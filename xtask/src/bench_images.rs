//! `cargo xtask bench-images`: image processing beside transformers', as Rust and as a graph, on the same
//! files and cores, in turns.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{root, setup};

/// The largest one last, for the peak of memory to be that of each.
const PHOTOS: [&str; 3] = ["512x512.png", "1280x720.jpg", "4000x3000.jpg"];

pub(crate) fn run(repeat: usize) -> Result<()> {
    let photos = setup::photos()?;
    setup::build_release(&["--package", "lfm2vl", "--example", "preprocess_peer"])?;
    let ours = setup::release_program("examples/preprocess_peer")?;
    let mut ours = Peer::start(&mut Command::new(ours))?;
    let mut theirs = Peer::start(&mut setup::peer("preprocess.py")?)?;
    let mut graph = Peer::start(setup::peer("image_graph.py")?.arg(image_processor()?))?;

    println!("milliseconds, medians of {repeat} runs in turns: transformers / ours = ratio");
    println!(
        "and of the graph in ONNX Runtime, without loading: ms / ours = ratio, its peak memory in MB"
    );
    println!("{:<16}{:>26}{:>26}{:>26}{:>26}", "", "load", "after loading", "in all", "graph");
    let mut rows = Vec::new();
    for photo in PHOTOS {
        let path = photos.join(photo);
        let [mut our_times, mut their_times, mut graph_times] = <[Times; 3]>::default();
        let mut peak = 0.0;
        // The first runs of each warm up.
        for warm in [false, false].into_iter().chain(vec![true; repeat.max(1)]) {
            let line = [theirs.time(&path)?, ours.time(&path)?, graph.time(&path)?];
            peak = line[2].peak_mb;
            if warm {
                let peers = [&mut their_times, &mut our_times, &mut graph_times];
                peers.into_iter().zip(line).for_each(|(times, run)| times.push(run.times));
            }
        }
        let [theirs, ours, graph] = [their_times, our_times, graph_times].map(|t| t.medians());
        let cell =
            |i: usize| format!("{:.2} / {:.2} = {:.1}", theirs[i], ours[i], theirs[i] / ours[i]);
        let ratio = graph[1] / ours[1];
        let of_graph = format!("{:.1} / {:.2} = {ratio:.1}, {peak:.0}", graph[1], ours[1]);
        println!("{photo:<16}{:>26}{:>26}{:>26}{of_graph:>26}", cell(0), cell(1), cell(2));
        rows.push(serde_json::json!({
            "image": photo, "transformers_ms": theirs, "ours_ms": ours, "graph_ms": graph, "graph_peak_mb": peak,
        }));
    }
    let report = root().join("demo/bench-images.json");
    fs::write(&report, format!("{:#}\n", Value::from(rows)))?;
    println!("written to {}", report.display());
    Ok(())
}

/// The image processor of the released models as a graph: of the sample model with their settings.
fn image_processor() -> Result<PathBuf> {
    setup::build_release(&["--package", "lfm2vl-exporter"])?;
    let folder = root().join("demo/image-processor");
    let checkpoint = folder.join("checkpoint");
    fs::create_dir_all(&checkpoint)?;
    for entry in fs::read_dir(root().join("testdata/tiny-shapes"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() && name != "processor_config.json" {
            fs::copy(&path, checkpoint.join(name))?;
        }
    }
    // All as transformers has it where nothing is said.
    fs::write(checkpoint.join("preprocessor_config.json"), "{}")?;
    let mut export = Command::new(setup::release_program("lfm2vl-export")?);
    export.arg(&checkpoint).arg("-o").arg(folder.join("model"));
    setup::quietly(export.args(["--graphs", "image-processor", "--force"]))?;
    Ok(folder.join("model/onnx/image_processor.onnx"))
}

/// Milliseconds of loading, of the rest, and in all.
type Millis = [f64; 3];

/// One image.
struct Run {
    times: Millis,
    /// Of the peer so far, where it tells.
    peak_mb: f64,
}

#[derive(Default)]
struct Times(Vec<Millis>);

impl Times {
    fn push(&mut self, run: Millis) {
        self.0.push(run);
    }

    fn medians(&self) -> Millis {
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
        let peak_mb = times["peak_mb"].as_f64().unwrap_or_default();
        Ok(Run { times: [decode, process, decode + process], peak_mb })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
