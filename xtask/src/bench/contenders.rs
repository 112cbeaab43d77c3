//! Who takes part: our exports, and the peers that are installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{root, setup};

/// A program that takes the arguments of `lfm2vl bench` and prints its keys as JSON.
pub(super) struct Contender {
    pub(super) name: String,
    /// Whether it takes images.
    pub(super) sees: bool,
    /// Bytes of the decoder's weights, all of which a token needs.
    pub(super) decoder_bytes: Option<u64>,
    start: Start,
}

type Start = Box<dyn Fn() -> Result<Command>>;

impl Contender {
    pub(super) fn is_ours(&self) -> bool {
        self.name.starts_with("ours")
    }

    pub(super) fn command(&self) -> Result<Command> {
        (self.start)()
    }
}

/// Our exports: name, and how their `q4` is quantized. The first is what peers are compared with.
const OURS: [(&str, &str); 4] = [
    ("ours, 4-bit block 32", "bits: 4, block_size: 32, symmetric: false, activations: int8"),
    ("ours, 4-bit block 64", "bits: 4, block_size: 64, symmetric: false, activations: int8"),
    ("ours, 4-bit block 128", "bits: 4, block_size: 128, symmetric: false, activations: int8"),
    ("ours, 8-bit inputs", "bits: 8, block_size: 32, symmetric: true, activations: tensor"),
];
/// The one that is run with ONNX Runtime's own kernels, too.
const WITHOUT_KERNELS: &str = "ours, 4-bit block 64";
/// Of vision in all of them.
const VISION: &str = "exceptions: [{modules: vision_tower.*, bits: 8, symmetric: true}, \
                      {modules: multi_modal_projector.*, bits: 8, symmetric: true}]";

/// Our exports of a checkpoint, in `folder`.
pub(super) fn ours(
    programs: &setup::Programs,
    checkpoint: &Path,
    folder: &Path,
    threads: usize,
) -> Result<Vec<Contender>> {
    fs::create_dir_all(folder)?;
    let mut contenders = Vec::new();
    for (name, quantization) in OURS {
        let model = export(programs, name, quantization, checkpoint, folder)?;
        contenders.push(with_kernels(programs, name, &model, "kernels", threads)?);
        // What the kernels are compared with, on the very same files.
        if name == WITHOUT_KERNELS {
            let name = format!("{name}, plain ONNX Runtime");
            contenders.push(with_kernels(programs, &name, &model, "cpu", threads)?);
        }
    }
    Ok(contenders)
}

/// Our exports of a checkpoint, and its peers.
pub(super) fn all(
    programs: &setup::Programs,
    checkpoint: &Path,
    folder: &Path,
    threads: usize,
) -> Result<Vec<Contender>> {
    let mut contenders = ours(programs, checkpoint, folder, threads)?;
    contenders.extend(llama_cpp(checkpoint, threads)?);
    contenders.push(genai(checkpoint, folder)?);
    contenders.extend(transformers_js(folder, threads)?);
    for dtype in ["float32", "bfloat16"] {
        let (checkpoint, threads) = (checkpoint.to_owned(), threads.to_string());
        let start = move || {
            let mut command = setup::peer("transformers_model.py")?;
            command.arg(&checkpoint).args(["--dtype", dtype, "--threads", &threads]);
            Ok(command)
        };
        let name = format!("transformers, {dtype}");
        contenders.push(Contender {
            name,
            sees: true,
            decoder_bytes: None,
            start: Box::new(start),
        });
    }
    Ok(contenders)
}

/// The name of an export's folder.
fn stem(name: &str) -> String {
    name.replace([' ', ','], "-")
}

fn export(
    programs: &setup::Programs,
    name: &str,
    quantization: &str,
    checkpoint: &Path,
    folder: &Path,
) -> Result<PathBuf> {
    let stem = stem(name);
    let (recipe, model) = (folder.join(format!("{stem}.yaml")), folder.join(stem));
    let text = format!(
        "recipe: bench\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\n\
         last_hidden_state: false\nspeculation: true\nquantization:\n  q4: {{{quantization}, method: search, {VISION}}}\n"
    );
    fs::write(&recipe, text)?;
    let mut command = programs.command("lfm2vl-export")?;
    command.arg(checkpoint).arg("-o").arg(&model).args(["--force", "--precision", "q4"]);
    let output = command.arg("--recipe").arg(&recipe).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(model)
}

/// An export with the kernels of a provider.
fn with_kernels(
    programs: &setup::Programs,
    name: &str,
    model: &Path,
    provider: &'static str,
    threads: usize,
) -> Result<Contender> {
    let weights = fs::metadata(model.join("onnx/decoder_model_merged_q4.onnx_data"))?.len();
    let (program, library) = (programs.path("lfm2vl")?, programs.clone());
    let model = model.to_owned();
    let start = move || {
        let mut command = library.beside(Command::new(&program));
        command.arg("bench").arg(&model).args(["--json", "--threads", &threads.to_string()]);
        command.args(["--provider", provider]);
        Ok(command)
    };
    Ok(Contender {
        name: name.to_owned(),
        sees: true,
        decoder_bytes: Some(weights),
        start: Box::new(start),
    })
}

/// llama.cpp, where `llama_cpp.py setup` has built it.
fn llama_cpp(checkpoint: &Path, threads: usize) -> Result<Option<Contender>> {
    let folder = setup::folder(".llama.cpp");
    if !folder.join("build/bin/llama-bench").is_file() {
        println!(
            "llama.cpp is left out: python3 benches/peers/llama_cpp.py setup {} builds it",
            folder.display()
        );
        return Ok(None);
    }
    let model = folder.join("text-q4_0.gguf");
    if !model.is_file() {
        setup::run(setup::peer("llama_cpp.py")?.arg("convert").arg(&folder).arg(checkpoint))?;
    }
    let decoder_bytes = Some(fs::metadata(model)?.len());
    let start = move || {
        let mut command = setup::peer("llama_cpp.py")?;
        command.arg("bench").arg(&folder).args(["--threads", &threads.to_string()]);
        Ok(command)
    };
    let name = "llama.cpp, Q4_0 and Q8_0 vision".to_owned();
    Ok(Some(Contender { name, sees: true, decoder_bytes, start: Box::new(start) }))
}

/// Transformers.js in Node on our export with blocks of 32, where there is npm.
fn transformers_js(folder: &Path, threads: usize) -> Result<Option<Contender>> {
    let Some(packages) = setup::node_packages()? else { return Ok(None) };
    let script = packages.join("transformers_js.mjs");
    fs::copy(root().join("benches/peers/transformers_js.mjs"), &script)?;
    let model = folder.join(stem(OURS[0].0));
    let start = move || {
        let mut command = Command::new("node");
        command.arg(&script).arg(&model).args(["q4", "--threads", &threads.to_string()]);
        Ok(command)
    };
    let name = "Transformers.js, our 4-bit block 32".to_owned();
    Ok(Some(Contender { name, sees: true, decoder_bytes: None, start: Box::new(start) }))
}

/// onnxruntime-genai with what its own builder makes, which is text only.
fn genai(checkpoint: &Path, folder: &Path) -> Result<Contender> {
    let model: PathBuf = folder.join("genai");
    if !model.is_dir() {
        let mut builder = setup::peer("genai_builder.py")?;
        builder.arg(checkpoint).arg(&model).args(["--symmetric", "--input-ids"]);
        let output = builder.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let start = move || {
        let mut command = setup::peer("genai_model.py")?;
        command.arg(&model);
        Ok(command)
    };
    let name = "onnxruntime-genai, int4 block 32".to_owned();
    Ok(Contender { name, sees: false, decoder_bytes: None, start: Box::new(start) })
}
