//! `cargo xtask measure-quantization`: what quantization loses and costs, beside onnxruntime-genai's
//! model builder on the same checkpoints.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{make_checkpoint, measure_export, root, setup, wheel};

/// Our decoders: name and the keys of the recipe's `q4`.
const OURS: [(&str, &str); 10] = [
    ("ours nearest 32", "block_size: 32, symmetric: false, method: nearest"),
    ("ours hqq 32", "block_size: 32, symmetric: false, method: hqq"),
    ("ours search 32 (the default)", "block_size: 32, symmetric: false, method: search"),
    ("ours gptq 32", "block_size: 32, symmetric: false, method: gptq"),
    ("ours search 32 symmetric", "block_size: 32, symmetric: true, method: search"),
    ("ours search 64", "block_size: 64, symmetric: false, method: search"),
    ("ours gptq 64", "block_size: 64, symmetric: false, method: gptq"),
    ("ours nearest 128", "block_size: 128, symmetric: false, method: nearest"),
    ("ours search 128", "block_size: 128, symmetric: false, method: search"),
    ("ours gptq 128", "block_size: 128, symmetric: false, method: gptq"),
];

/// Those of them that are run with the project's own kernels, too.
const WITH_KERNELS: [&str; 3] =
    ["ours search 32 (the default)", "ours search 64", "ours search 128"];

/// The builder's: name and its arguments.
const THEIRS: [(&str, &[&str]); 4] = [
    ("genai default 32", &["--method", "default"]),
    ("genai default 32 symmetric", &["--method", "default", "--symmetric"]),
    ("genai rtn 32", &["--method", "rtn"]),
    ("genai k_quant 32", &["--method", "k_quant"]),
];

pub(crate) fn run(repeat: usize, only_speed: bool) -> Result<()> {
    let programs = setup::Programs::build()?;
    let folder = root().join("demo/quantized");
    fs::create_dir_all(&folder)?;
    if !only_speed {
        accuracy(&programs, &folder)?;
    }
    speed(&programs, &folder, repeat)
}

/// KL of the next token and answers, on `tiny-shapes`.
fn accuracy(programs: &setup::Programs, folder: &Path) -> Result<()> {
    let checkpoint = root().join("testdata/tiny-shapes");
    let samples = checkpoint.join("samples");
    let list = samples.join("samples.json");
    let all = folder.join("all-precisions");
    let mut export = programs.command("lfm2vl-export")?;
    export.arg(&checkpoint).arg("-o").arg(&all).args(["--force", "--precision"]);
    setup::quietly(export.arg("fp32,fp16,q8,q4,q4f16"))?;

    let mut decoders = Vec::new();
    for suffix in ["_fp16", "_quantized"] {
        let file = all.join(format!("onnx/decoder_model_merged{suffix}.onnx"));
        decoders.push(format!("ours{suffix}={}", file.display()));
    }
    for (name, keys) in OURS {
        let recipe = recipe(folder, keys)?;
        let out = folder.join(name.replace(' ', "-"));
        let mut export = programs.command("lfm2vl-export")?;
        export.arg(&checkpoint).arg("-o").arg(&out).args(["--force", "--precision", "q4"]);
        export.arg("--calibration").arg(checkpoint.join("calibration"));
        setup::quietly(export.args(["--graphs", "decoder", "--recipe"]).arg(&recipe))?;
        let file = out.join("onnx/decoder_model_merged_q4.onnx");
        decoders.push(format!("{name}={}", file.display()));
        if WITH_KERNELS.contains(&name) {
            decoders.push(format!("{name}, own kernels=kernels:{}", file.display()));
        }
    }
    for (name, arguments) in THEIRS {
        let out = folder.join(name.replace(' ', "-"));
        setup::quietly(
            setup::peer("genai_builder.py")?.arg(&checkpoint).arg(&out).args(arguments),
        )?;
        decoders.push(format!("{name}={}", out.join("model.onnx").display()));
    }

    let program = programs.path("lfm2vl")?;
    let questions = folder.join("questions.json");
    let mut make = programs.beside(setup::peer("make_questions.py")?);
    make.arg(&list).arg(&samples).arg(&all).arg(&questions).arg("--program").arg(&program);
    setup::run(&mut make)?;
    let kernels = wheel::installed()?;
    for (what, list) in [("the samples, all sure", &list), ("all questions", &questions)] {
        println!("\nnext token against float32, on the answers of {what}");
        let mut compare = programs.beside(setup::peer("decoder_kl.py")?);
        compare.arg(&all).arg(list).arg(&samples).args(&decoders).arg("--kernels").arg(&kernels);
        setup::run(compare.arg("--program").arg(&program))?;
    }

    let small_vision = folder.join("4-bit-vision");
    let mut export = programs.command("lfm2vl-export")?;
    export.arg(&checkpoint).arg("-o").arg(&small_vision).args(["--force", "--precision", "q4"]);
    let keys = "block_size: 32, symmetric: false, method: search";
    setup::quietly(export.arg("--recipe").arg(recipe(folder, keys)?))?;
    println!("\nanswers that stay what they are in float32 (samples, all questions)");
    let precisions = ["fp16", "q8", "q4", "q4f16", "recommended"].map(|p| (p, &all, p));
    let others = [("q4, 4-bit vision", &small_vision, "q4")];
    for (name, model, precision) in precisions.into_iter().chain(others) {
        let same = |list: &Path| unchanged(programs, model, precision, list, &samples);
        let ((same, of), (same_all, of_all)) = (same(&list)?, same(&questions)?);
        println!("{name:<17} {same:>4} of {of}   {same_all:>4} of {of_all}");
    }
    Ok(())
}

/// A recipe in which everything of the precision q4 is quantized so, vision too.
fn recipe(folder: &Path, keys: &str) -> Result<PathBuf> {
    let start = "recipe: measured\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\nlast_hidden_state: false\n";
    let q4 = format!("quantization:\n  q4: {{bits: 4, {keys}, activations: int8}}\n");
    let file = folder.join("recipe.yaml");
    fs::write(&file, format!("{start}{q4}"))?;
    Ok(file)
}

/// How many questions of a list are answered as the list says, of how many.
fn unchanged(
    programs: &setup::Programs,
    model: &Path,
    precision: &str,
    list: &Path,
    images: &Path,
) -> Result<(usize, usize)> {
    let questions: Vec<Value> = serde_json::from_slice(&fs::read(list)?)?;
    let mut same = 0;
    for question in &questions {
        let text = |key: &str| question[key].as_str().unwrap_or_default();
        let mut run = programs.command("lfm2vl")?;
        run.arg("run").arg(model).args(["--precision", precision, "--prompt", text("prompt")]);
        for image in question["images"].as_array().into_iter().flatten() {
            run.arg("--image").arg(images.join(image.as_str().unwrap_or_default()));
        }
        if let Some(system) = question["system"].as_str() {
            run.args(["--system", system]);
        }
        let output = run.output().context("cannot start lfm2vl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        same +=
            usize::from(String::from_utf8_lossy(&output.stdout).trim() == text("answer").trim());
    }
    Ok((same, questions.len()))
}

/// Time and memory of quantizing the 450M text model, in turns.
fn speed(programs: &setup::Programs, folder: &Path, repeat: usize) -> Result<()> {
    let checkpoint = root().join("demo/450m");
    if !checkpoint.is_dir() {
        let config = root().join("testdata/configs/lfm2-vl-450m.json");
        make_checkpoint::run(&config, &checkpoint, 0)?;
    }
    let (ours, theirs) = (folder.join("450m"), folder.join("genai-450m"));
    let program = programs.path("lfm2vl-export")?;
    let arguments = ["--precision", "q4", "--graphs", "embedding,decoder"];
    let (mut our_seconds, mut our_peak) = (Vec::new(), 0.0_f64);
    let (mut their_seconds, mut their_peak) = (Vec::new(), 0.0_f64);
    for _ in 0..repeat.max(1) {
        let start = Instant::now();
        let peak = measure_export::export(&program, &checkpoint, &ours, &arguments)?;
        our_seconds.push(start.elapsed());
        our_peak = our_peak.max(peak as f64 / 1e6);
        let mut builder = setup::peer("genai_builder.py")?;
        builder.arg(&checkpoint).arg(&theirs).args(["--symmetric", "--input-ids"]);
        let output = builder.stderr(Stdio::null()).output()?;
        ensure!(output.status.success(), "the builder failed ({})", output.status);
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let seconds = report["seconds"].as_f64().context("no seconds")?;
        their_seconds.push(Duration::from_secs_f64(seconds));
        their_peak = their_peak.max(report["peak_mb"].as_f64().context("no peak_mb")?);
    }
    let [ours, theirs] =
        [our_seconds, their_seconds].map(|times| measure_export::median(times).as_secs_f64());
    println!("\n450M text model to 4 bits, medians of {}", repeat.max(1));
    println!("ours (search)      {ours:>7.2} s {our_peak:>8.0} MB");
    println!("genai's builder    {theirs:>7.2} s {their_peak:>8.0} MB");
    println!("builder / ours     {:>7.1}   {:>8.1}", theirs / ours, their_peak / our_peak);
    Ok(())
}
