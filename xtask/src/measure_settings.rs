//! `cargo xtask measure-settings`: what the settings of images cost, and what is lost with them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{make_checkpoint, root, setup};

/// The program's arguments of each row.
const SETTINGS: [&[&str]; 6] = [
    &[],
    &["--no-thumbnail"],
    &["--max-tiles", "4"],
    &["--no-splitting"],
    &["--no-splitting", "--max-image-tokens", "128"],
    &["--no-splitting", "--min-image-tokens", "16", "--max-image-tokens", "64"],
];

pub(crate) fn run(repeat: usize) -> Result<()> {
    let programs = setup::Programs::build()?;
    let program = |name: &str| programs.command(name);
    let json = |command: &mut Command| -> Result<Value> {
        let output = command.stderr(Stdio::inherit()).output().context("cannot start lfm2vl")?;
        ensure!(output.status.success(), "lfm2vl failed ({})", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let photo = setup::photos()?.join("1280x720.jpg");
    let (checkpoint, large, small) = ("demo/450m", "demo/450m-onnx", "demo/tiny-shapes");
    if !root().join(checkpoint).is_dir() {
        let config = root().join("testdata/configs/lfm2-vl-450m.json");
        make_checkpoint::run(&config, &root().join(checkpoint), 0)?;
    }
    for (checkpoint, exported) in [(checkpoint, large), ("testdata/tiny-shapes", small)] {
        let mut export = program("lfm2vl-export")?;
        setup::run(export.arg(checkpoint).args(["-o", exported, "--force"]))?;
    }
    let samples = root().join("testdata/tiny-shapes/samples");
    let questions: Vec<Value> =
        serde_json::from_slice(&std::fs::read(samples.join("samples.json"))?)?;
    let tiled = |question: &&Value| {
        ["tiled.jpg", "number-tiled.png"]
            .iter()
            .any(|image| question["images"] == serde_json::json!([image]))
    };

    println!("a photo of 1280x720 at the 450M shape, medians of {repeat} runs; sample questions");
    println!("about tiled images that the sample model, trained with tiles, answers as before");
    println!(
        "{:<58}{:>8}{:>12}{:>12}{:>12}{:>12}",
        "", "tokens", "image ms", "vision ms", "prefill ms", "answers"
    );
    for settings in SETTINGS {
        let mut preprocess = program("lfm2vl")?;
        preprocess.args(["preprocess", large, "--prompt", "", "--json"]).args(settings);
        let tokens = json(preprocess.arg("--image").arg(&photo))?["image_tokens"].clone();
        let mut bench = program("lfm2vl")?;
        bench.args(["bench", large, "--prompt-tokens", "20", "--new-tokens", "2", "--json"]);
        bench.args(["--repeat", &repeat.to_string()]).args(settings);
        let times = json(bench.arg("--image").arg(&photo))?;
        let (mut right, mut asked) = (0, 0);
        for question in questions.iter().filter(tiled) {
            let text = |key: &str| question[key].as_str().unwrap_or_default();
            let mut ask = program("lfm2vl")?;
            ask.args(["run", small, "--json", "--prompt", text("prompt")]);
            ask.arg("--image")
                .arg(samples.join(question["images"][0].as_str().unwrap_or_default()));
            ask.args(scaled(settings));
            asked += 1;
            right += usize::from(json(&mut ask)?["text"] == question["answer"]);
        }
        let time = |key: &str| format!("{:.1}", times[key].as_f64().unwrap_or(f64::NAN));
        println!(
            "{:<58}{:>8}{:>12}{:>12}{:>12}{:>12}",
            if settings.is_empty() { "as the model has it".into() } else { settings.join(" ") },
            tokens.to_string(),
            time("preprocess_ms"),
            time("vision_ms"),
            time("prefill_ms"),
            format!("{right} of {asked}")
        );
    }
    Ok(())
}

/// The same for the sample model, whose views have a sixteenth of the tokens.
fn scaled(settings: &[&str]) -> Vec<String> {
    let tokens = |i: usize| i > 0 && settings[i - 1].ends_with("image-tokens");
    let scale = |(i, argument): (usize, &&str)| match argument.parse::<usize>() {
        Ok(number) if tokens(i) => (number / 16).to_string(),
        _ => argument.to_string(),
    };
    settings.iter().enumerate().map(scale).collect()
}
