//! `cargo xtask measure-blocks`: what a random model of the 450M shape loses with blocks of each size,
//! beside rounding to nearest in blocks of 32.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{make_checkpoint, root, setup};

/// Block size and method of 4-bit language layers and 8-bit vision layers.
const FORMATS: [(usize, &str); 7] = [
    (32, "nearest"),
    (32, "search"),
    (64, "search"),
    (128, "nearest"),
    (128, "search"),
    (64, "gptq"),
    (128, "gptq"),
];

/// Prompts that GPTQ is calibrated on, and other ones that the results are compared on.
const PROMPTS: usize = 12;

pub(crate) fn run() -> Result<()> {
    let programs = setup::Programs::build()?;
    let folder = root().join("demo/blocks");
    let sample_model = root().join("testdata/tiny-shapes");
    let calibration = few(&sample_model.join("calibration"), &folder.join("calibration"))?;
    let samples = few(&sample_model.join("samples"), &folder.join("samples"))?;
    let checkpoint = root().join("demo/450m");
    if !checkpoint.is_dir() {
        let config = root().join("testdata/configs/lfm2-vl-450m.json");
        make_checkpoint::run(&config, &checkpoint, 0)?;
    }
    println!(
        "language layers in 4 bits: cosine of the layers' outputs for the same inputs (mean),"
    );
    println!("of the logits (mean), KL of the next token; vision in 8 bits: cosine of the layers'");
    println!("outputs (mean), of the image features (mean, least)");
    for (block_size, method) in FORMATS {
        let recipe = folder.join("recipe.yaml");
        let vision = "bits: 8, symmetric: true";
        let text = format!(
            "recipe: measured\ncontract: community\nvision: fused\noperators: onnxruntime\n\
             logits: last\nlast_hidden_state: false\nquantization:\n  q4: {{bits: 4, \
             block_size: {block_size}, symmetric: false, method: {method}, activations: int8, \
             exceptions: [{{modules: vision_tower.*, {vision}}}, \
             {{modules: multi_modal_projector.*, {vision}}}]}}\n"
        );
        fs::write(&recipe, text)?;
        let page = folder.join("report.html");
        let mut export = programs.command("lfm2vl-export")?;
        export.arg(&checkpoint).arg("-o").arg(folder.join("export")).arg("--force");
        export.args(["--precision", "q4", "--recipe"]).arg(&recipe);
        if method == "gptq" {
            export.arg("--calibration").arg(&calibration);
        }
        setup::quietly(export.arg("--samples").arg(&samples).arg("--report").arg(&page))?;
        let report: Value = serde_json::from_slice(&fs::read(folder.join("report.html.json"))?)?;
        print(&format!("{method} {block_size}"), &report)?;
    }
    Ok(())
}

fn print(name: &str, report: &Value) -> Result<()> {
    let graph = |name: &str| {
        let graphs = report["graphs"].as_array().into_iter().flatten();
        graphs.into_iter().find(|g| g["graph"] == name).with_context(|| format!("no graph {name}"))
    };
    let layers = |name: &str| {
        let modules = report["modules"].as_array().into_iter().flatten();
        let of_graph = modules.filter(|module| module["graph"] == name);
        let cosines: Vec<f64> = of_graph.filter_map(|m| m["output_cosine"].as_f64()).collect();
        cosines.iter().sum::<f64>() / cosines.len() as f64
    };
    let (decoder, vision) = (graph("decoder_model_merged")?, graph("vision_encoder")?);
    println!(
        "{name:<12} {:.5} {:.4} {:.4}   {:.6} {:.6} {:.6}",
        layers("decoder_model_merged"),
        decoder["cosine"].as_f64().context("no cosine")?,
        decoder["next_token"]["mean_kl"].as_f64().context("no KL")?,
        layers("vision_encoder"),
        vision["cosine"].as_f64().context("no cosine")?,
        vision["least_cosine"].as_f64().context("no cosine")?,
    );
    Ok(())
}

/// Copies `PROMPTS` prompts, spread over those of a folder, and their images.
fn few(from: &Path, to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to)?;
    let all: Vec<Value> = serde_json::from_slice(&fs::read(from.join("samples.json"))?)?;
    let some: Vec<&Value> = all.iter().step_by(all.len().div_ceil(PROMPTS)).collect();
    for image in some.iter().flat_map(|sample| sample["images"].as_array()).flatten() {
        let name = image.as_str().context("an image is no name")?;
        fs::copy(from.join(name), to.join(name))?;
    }
    fs::write(to.join("samples.json"), serde_json::to_string(&some)?)?;
    Ok(to.to_owned())
}
