//! What the program takes.

use std::path::PathBuf;

use clap::{
    Parser,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;
use lfm2vl_exporter::{Part, Weights};
use lfm2vl_graphs::Precision;

/// Build ONNX graphs of an LFM2-VL model from its safetensors checkpoint.
#[derive(Parser)]
#[command(name = "lfm2vl-export", version, after_help = EXAMPLES)]
#[command(override_usage = "lfm2vl-export [OPTIONS] <CHECKPOINT> -o <DIR>")]
pub(crate) struct Arguments {
    /// Folder of the checkpoint, or its id on the Hugging Face hub (LiquidAI/LFM2-VL-450M).
    #[arg(required_unless_present = "list_recipes")]
    pub(crate) checkpoint: Option<String>,
    /// Folder to write; it appears only when the export is complete.
    #[arg(short, long, value_name = "DIR")]
    #[arg(required_unless_present_any = ["check_provider", "list_recipes"])]
    pub(crate) output: Option<PathBuf>,
    /// Folder of a LoRA adapter, as peft saves it, to merge into the weights. (One that lies in the
    /// checkpoint's folder is merged without being asked for.) Not an id on the hub: download it first. The
    /// tokenizer and the chat template remain the checkpoint's.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Precision of the weights; several make several sets of graphs. Without it, what the recipe
    /// says: fp32.
    #[arg(long, value_delimiter = ',', value_name = "PRECISION,...", value_parser = precision())]
    pub(crate) precision: Vec<Precision>,
    /// How graphs are built: default, portable, split, features, cuda, cuda-graph, tensorrt, coreml,
    /// directml, or a YAML file. See --list-recipes.
    #[arg(long, value_name = "NAME|FILE.yaml", default_value = "default")]
    pub(crate) recipe: String,
    /// Build only these graphs.
    #[arg(long, value_delimiter = ',', value_name = "PART,...", value_parser = part())]
    pub(crate) graphs: Vec<Part>,
    /// Where the weights are: written beside the graphs, or left in the checkpoint's own files, to
    /// which the folder gets hard links.
    #[arg(long, default_value_t, value_parser = weights())]
    pub(crate) weights: Weights,
    /// Let image_processor.onnx take settings for each image, as optional inputs (ONNX Runtime warns
    /// of each when it loads the graph).
    #[arg(long)]
    pub(crate) image_inputs: bool,
    /// Images and prompts to calibrate on: a folder with a samples.json, or just with images.
    #[arg(long, value_name = "DIR")]
    pub(crate) calibration: Option<PathBuf>,
    /// Run every graph and compare it with an independent implementation of the model.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Write a page (and JSON beside it) on what each precision loses against float32.
    #[arg(long, value_name = "FILE.html", requires = "samples")]
    pub(crate) report: Option<PathBuf>,
    /// Images and prompts that the report runs, as for --calibration; better not the same ones.
    #[arg(long, value_name = "DIR", requires = "report")]
    pub(crate) samples: Option<PathBuf>,
    /// Tell which nodes of each graph an execution provider will take, and write nothing: cpu, cuda,
    /// tensorrt, coreml, directml, openvino, webgpu or ggml.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["output", "verify", "report"])]
    pub(crate) check_provider: Option<String>,
    /// Tell what each built-in recipe is for, and the oldest ONNX Runtime that loads its graphs.
    #[arg(long, conflicts_with_all = ["checkpoint", "output", "check_provider"])]
    pub(crate) list_recipes: bool,
    /// Replace an earlier export.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print what a shell needs to complete these arguments.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub(crate) completions: Option<Shell>,
    /// Write the manual page to this folder, such as ~/.local/share/man/man1.
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub(crate) man: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  lfm2vl-export LiquidAI/LFM2-VL-450M -o lfm2-vl-450m --verify
  lfm2vl-export ./checkpoint -o ./exported --recipe portable --force";

fn precision() -> impl TypedValueParser<Value = Precision> {
    let names = ["fp32", "fp16", "q8", "q4", "q4f16"];
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Precision>())
}

fn part() -> impl TypedValueParser<Value = Part> {
    let names = Part::ALL.map(|part| PossibleValue::new(part.name()).help(describe_part(part)));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Part>())
}

fn describe_part(part: Part) -> &'static str {
    match part {
        Part::Vision => "The vision tower (with the projector, where the recipe fuses them)",
        Part::Projector => "The projector (with the vision tower, where the recipe fuses them)",
        Part::Embedding => "The token embedding",
        Part::Decoder => "The decoder",
        Part::ImageProcessor => "The image processor",
    }
}

fn weights() -> impl TypedValueParser<Value = Weights> {
    let names =
        Weights::ALL.map(|place| PossibleValue::new(place.name()).help(describe_weights(place)));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Weights>())
}

fn describe_weights(weights: Weights) -> &'static str {
    match weights {
        Weights::Written => "In data files beside the graphs",
        Weights::Reference => "In the checkpoint's own files, to which the folder gets hard links",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_taken() {
        let precisions = Precision::ALL.map(|precision| precision.to_string()).join(",");
        let parts = Part::ALL.map(Part::name).join(",");
        for weights in Weights::ALL {
            let line = ["lfm2vl-export", "c", "-o", "m", "--precision", &precisions];
            let more = ["--graphs", &parts, "--weights", weights.name()];
            let arguments = Arguments::try_parse_from(line.iter().chain(&more)).unwrap();
            assert_eq!(arguments.precision, Precision::ALL);
            assert_eq!(arguments.graphs, Part::ALL);
            assert_eq!(arguments.weights, weights);
        }
    }
}
