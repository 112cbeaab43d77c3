//! `cargo xtask demo`: from the sample checkpoint to answers about the sample images.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{root, setup};

pub(crate) fn run() -> Result<()> {
    let library = setup::onnxruntime()?;
    let program = |name: &str| -> Result<Command> {
        let mut command = Command::new(setup::release_program(name)?);
        command.current_dir(root()).env("ORT_DYLIB_PATH", &library);
        Ok(command)
    };
    setup::run(Command::new(env!("CARGO")).current_dir(root()).args([
        "build",
        "--release",
        "--package",
        "lfm2vl-exporter",
        "--package",
        "lfm2vl-cli",
    ]))?;

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
