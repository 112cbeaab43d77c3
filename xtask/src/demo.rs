//! `cargo xtask demo`: from the sample checkpoint to answers about the sample images.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{root, setup};

pub(crate) fn run() -> Result<()> {
    let programs = setup::Programs::build()?;
    let program = |name: &str| programs.command(name);

    let exported = Path::new("demo/tiny-shapes");
    setup::run(
        program("lfm2vl-export")?
            .arg("testdata/tiny-shapes")
            .arg("-o")
            .arg(exported)
            .args(["--verify", "--force"]),
    )?;

    let samples = root().join("testdata/tiny-shapes/samples");
    let questions: Vec<Value> =
        serde_json::from_slice(&std::fs::read(samples.join("samples.json"))?)?;
    let (mut right, mut asked) = (0, 0);
    for question in &questions {
        let text = |key: &str| question[key].as_str().unwrap_or_default();
        let images: Vec<&str> =
            question["images"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut command = program("lfm2vl")?;
        command.arg("run").arg(exported).args(["--prompt", text("prompt")]);
        for image in &images {
            command.arg("--image").arg(samples.join(image));
        }
        if let Some(system) = question["system"].as_str() {
            command.args(["--system", system]);
        }
        let output = command.stderr(Stdio::inherit()).output().context("cannot start lfm2vl")?;
        ensure!(output.status.success(), "lfm2vl failed ({})", output.status);
        let answer = String::from_utf8_lossy(&output.stdout);
        println!("{}\n  {}\n  {}", images.join(", "), text("prompt"), answer.trim());
        asked += 1;
        right += usize::from(answer.trim() == text("answer").trim());
    }
    println!("{right} of {asked} answers as expected");
    ensure!(right == asked, "{} answers differ from testdata's", asked - right);
    Ok(())
}
