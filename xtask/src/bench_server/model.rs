//! The model under load: random weights of the 450M shape with the released tokenizer, so that tokens have text
//! and masks a vocabulary of usual size.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{make_checkpoint, root, setup};

/// The checkpoint, made on the first call.
pub(super) fn checkpoint() -> Result<PathBuf> {
    let checkpoint = root().join("demo/450m-released");
    if !checkpoint.is_dir() {
        let tokenizer = root().join("demo/released-tokenizer");
        fs::create_dir_all(&tokenizer)?;
        for file in ["tokenizer_config.json", "generation_config.json"] {
            fs::copy(root().join("testdata/tiny-shapes").join(file), tokenizer.join(file))?;
        }
        for file in ["tokenizer.json", "chat_template.jinja"] {
            fs::copy(released_files()?.join(file), tokenizer.join(file))?;
        }
        let config = root().join("testdata/configs/lfm2-vl-450m.json");
        make_checkpoint::with_tokenizer(&config, &checkpoint, &tokenizer)?;
    }
    Ok(checkpoint)
}

/// The folder of the crate `lfm` that has the files of LFM2.5-VL.
fn released_files() -> Result<PathBuf> {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]);
    let output = metadata.arg(root().join("tests/lfm/Cargo.toml")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let lfm = packages.into_iter().find(|package| package["name"] == "lfm");
    let manifest = lfm.and_then(|lfm| lfm["manifest_path"].as_str()).context("lfm is missing")?;
    Ok(Path::new(manifest).with_file_name("models"))
}

/// Our export of it in 4 bits with blocks of 64, made on the first call.
pub(super) fn ours(programs: &setup::Programs, checkpoint: &Path) -> Result<PathBuf> {
    let model = root().join("demo/450m-released-q4");
    if !model.is_dir() {
        let recipe = root().join("demo/450m-released.yaml");
        let text = "recipe: bench\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\n\
                    last_hidden_state: false\nspeculation: true\nquantization:\n  \
                    q4: {bits: 4, block_size: 64, symmetric: false, activations: int8, method: search, \
                    exceptions: [{modules: vision_tower.*, bits: 8, symmetric: true}, \
                    {modules: multi_modal_projector.*, bits: 8, symmetric: true}]}\n";
        fs::write(&recipe, text)?;
        let mut command = programs.command("lfm2vl-export")?;
        command.arg(checkpoint).arg("-o").arg(&model).args(["--precision", "q4", "--recipe"]);
        setup::quietly(command.arg(recipe))?;
    }
    Ok(model)
}

/// llama.cpp's server, and the folder with its files of the model.
pub(super) struct LlamaCpp {
    pub(super) server: PathBuf,
    pub(super) models: PathBuf,
}

/// llama.cpp's files of it, made on the first call; nothing where its server is not built.
pub(super) fn llama_cpp(checkpoint: &Path) -> Result<Option<LlamaCpp>> {
    let built = setup::folder(".llama.cpp");
    let server = built.join("build/bin/llama-server");
    if !server.is_file() {
        println!(
            "llama-server is left out: python3 benches/peers/llama_cpp.py setup {} builds it\n",
            built.display()
        );
        return Ok(None);
    }
    let models = root().join("demo/450m-released-llama.cpp");
    if !models.join("text-q4_0.gguf").is_file() {
        fs::create_dir_all(&models)?;
        let mut convert = setup::peer("llama_cpp.py")?;
        convert.arg("convert").arg(&built).arg(checkpoint).arg("--models").arg(&models);
        setup::quietly(&mut convert)?;
    }
    Ok(Some(LlamaCpp { server, models }))
}
