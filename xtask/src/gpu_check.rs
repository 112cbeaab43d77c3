//! `cargo xtask gpu-check`: a folder with all that measures the model on a machine with a GPU, which
//! needs no cargo there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{make_checkpoint, root, setup};

/// The newest release of the package with CUDA and TensorRT.
const LIBRARY: &str = "onnxruntime-gpu==1.31.1";

pub(crate) fn run(out: &Path) -> Result<()> {
    let programs = setup::Programs::build()?;
    let features = ["--package", "lfm2vl-cli", "--features", "cuda,tensorrt"];
    setup::build_release(&features)?;
    fs::create_dir_all(out)?;
    copy(&programs.path("lfm2vl")?, out)?;
    for script in ["gpu_check.py", "peers/transformers_model.py", "peers/genai_model.py"] {
        copy(&root().join("benches").join(script), out)?;
    }
    let library = setup::packages(".onnxruntime-gpu", LIBRARY)?.join("onnxruntime/capi");
    copy_files(&library, &out.join("lib"), |name| name.starts_with("libonnxruntime"))?;

    let checkpoint = root().join("demo/450m");
    if !checkpoint.is_dir() {
        let config = root().join("testdata/configs/lfm2-vl-450m.json");
        make_checkpoint::run(&config, &checkpoint, 0)?;
    }
    let sample_model = root().join("testdata/tiny-shapes");
    let packed = packed_recipe(out)?;
    for (checkpoint, name) in [(&sample_model, "tiny-shapes"), (&checkpoint, "450m")] {
        for (recipe, precisions, suffix) in [
            (Path::new("cuda"), "fp16,q4f16", ""),
            (Path::new("cuda-graph"), "fp16", "-graph"),
            (&packed, "fp16,q4f16", "-packed"),
        ] {
            let mut export = programs.command("lfm2vl-export")?;
            export.arg(checkpoint).arg("-o").arg(out.join(format!("{name}{suffix}")));
            export.arg("--recipe").arg(recipe).args(["--precision", precisions, "--force"]);
            setup::quietly(&mut export)?;
        }
    }
    copy_files(&sample_model.join("samples"), &out.join("samples"), |_| true)?;
    copy_files(&setup::photos()?, &out.join("photos"), |_| true)?;
    copy_files(&checkpoint, &out.join("checkpoint"), |_| true)?;
    let genai = out.join("genai");
    if !genai.is_dir() {
        let mut builder = setup::peer("genai_builder.py")?;
        builder.arg(&checkpoint).arg(&genai).args(["--precision", "fp16", "--provider", "cuda"]);
        setup::quietly(builder.arg("--input-ids"))?;
    }
    println!("copy {} to the machine and run: python3 gpu_check.py", out.display());
    Ok(())
}

/// The recipe `cuda` with its attention in the form that only devices run.
fn packed_recipe(out: &Path) -> Result<PathBuf> {
    let recipe = fs::read_to_string(root().join("graphs/recipes/cuda.yaml"))?;
    let file = out.join("cuda-packed.yaml");
    fs::write(&file, recipe + "packed_qkv: true\n")?;
    Ok(file)
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().context("a file has no name")?;
    fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

fn copy_files(from: &Path, to: &Path, wanted: fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(to)?;
    let read = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    let files: Vec<PathBuf> = read.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let is_wanted = |file: &&PathBuf| {
        file.is_file() && file.file_name().is_some_and(|name| wanted(&name.to_string_lossy()))
    };
    files.iter().filter(is_wanted).try_for_each(|file| copy(file, to))
}
