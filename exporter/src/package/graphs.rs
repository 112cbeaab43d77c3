//! Which graphs an export consists of, built, and with their weights calibrated where the recipe
//! wants that.

use std::{ops::ControlFlow, path::Path};

use lfm2vl_graphs::{Contract, Graph, GraphSpec, IN_PLACE, Precision, Recipe, TiedWeights};
use serde_json::{Map, Value, json};

use super::{ExportOptions, Part, Weights};
use crate::{
    calibrate::{Sides, calibrate, read_samples},
    checkpoint::Checkpoint,
    error::ExportError,
    models::{self, Build},
    onnx::{Floats, Model},
    quantize::Quantizer,
};

/// The graphs that the options ask for.
pub(super) fn wanted_graphs(options: &ExportOptions) -> Vec<Graph> {
    let is_wanted = |graph: &Graph| {
        options.parts.is_empty() || options.parts.iter().any(|part| part.includes(*graph))
    };
    Contract::graphs(&options.recipe).into_iter().filter(is_wanted).collect()
}

/// Inputs and outputs of the image processor, if the options ask for it, or for everything and the checkpoint has a
/// tokenizer.
pub(super) fn image_processor_spec(
    contract: &Contract,
    checkpoint: &Checkpoint,
    options: &ExportOptions,
) -> Result<Option<GraphSpec>, ExportError> {
    let has_tokenizer = checkpoint.folder().join("tokenizer.json").exists();
    let is_asked_for = options.parts.contains(&Part::ImageProcessor);
    if !(is_asked_for || options.parts.is_empty() && has_tokenizer) {
        return Ok(None);
    }
    let recipe = &options.recipe;
    let mut spec = spec(contract, checkpoint, recipe, Graph::ImageProcessor, Precision::Fp32)?;
    if !options.image_inputs {
        spec.inputs.retain(|input| input.name == "pixels");
    }
    Ok(Some(spec))
}

/// The graphs, built.
pub(super) fn models(
    contract: &Contract,
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    wanted: &[(Graph, Precision)],
) -> Result<Vec<Model>, ExportError> {
    let recipe = &options.recipe;
    let factor = checkpoint.config().projector.downsample_factor;
    let patches = recipe.sizes.and_then(|sizes| sizes.patches);
    if let Some(patches) = patches.filter(|patches| !patches.is_multiple_of(factor * factor)) {
        return Err(ExportError::Patches { patches, factor });
    }
    let has_decoder = wanted.iter().any(|(graph, _)| *graph == Graph::Decoder);
    wanted
        .iter()
        .map(|&(graph, precision)| {
            let floats = match options.weights {
                Weights::Written => floats(precision),
                Weights::Reference => Floats::InPlace(checkpoint.dtypes()),
            };
            let spec = spec(contract, checkpoint, recipe, graph, precision)?;
            let shares = recipe.tied_weights == TiedWeights::Shared
                && graph.weights() == Graph::EmbedTokens
                && has_decoder;
            let data_graph = if shares { Graph::Decoder } else { graph.weights() };
            let build = build(checkpoint, recipe, precision, &floats);
            if recipe.packed_qkv
                && graph.weights() == Graph::Decoder
                && let Some(why) = build.keeps_projections_apart()
            {
                return Err(ExportError::Packed(why));
            }
            let mut metadata = metadata(checkpoint, contract, recipe, precision);
            if graph.weights() == Graph::Decoder && build.is_in_place() {
                metadata.push((IN_PLACE.to_owned(), "true".to_owned()));
            }
            Ok(Model {
                stem: format!("{graph}{}", precision.suffix()),
                data: format!("{data_graph}{}.onnx_data", precision.suffix()),
                graph: models::build(spec, build).finish(),
                metadata,
            })
        })
        .collect()
}

/// Which graphs have a data file beside them, as Transformers.js wants to be told; `None` where
/// their weights are elsewhere.
pub(super) fn external_data(
    options: &ExportOptions,
    built: &[(Graph, Precision)],
) -> Option<Value> {
    match (options.weights, options.recipe.tied_weights) {
        (Weights::Reference, _) => None,
        (Weights::Written, TiedWeights::Separate) => Some(json!(1)),
        (Weights::Written, TiedWeights::Shared) => {
            let graphs = built.iter().map(|(graph, _)| *graph);
            let has_decoder = graphs.clone().any(|graph| graph == Graph::Decoder);
            let own =
                graphs.filter(|&g| g == g.weights() && !(has_decoder && g == Graph::EmbedTokens));
            Some(own.map(|graph| (graph.to_string(), json!(1))).collect::<Map<_, _>>().into())
        }
    }
}

pub(super) fn floats(precision: Precision) -> Floats {
    if precision.is_half() { Floats::Half } else { Floats::Single }
}

fn build<'a>(
    checkpoint: &'a Checkpoint,
    recipe: &'a Recipe,
    precision: Precision,
    floats: &'a Floats,
) -> Build<'a> {
    Build {
        config: checkpoint.config(),
        recipe,
        quantization: recipe.quantization.get(&precision),
        floats,
        tied_head: !checkpoint.has_lm_head(),
    }
}

/// Calibrates what the recipe wants calibrated; `folder` is that of the export.
pub(super) fn quantizer(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    folder: &Path,
    on_stage: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Quantizer, ExportError> {
    let wanted = wanted_graphs(options);
    let wants = |graph| wanted.contains(&graph);
    let wanted = Sides {
        vision: wants(Graph::VisionEncoder) || wants(Graph::VisionTower) || wants(Graph::Projector),
        decoder: wants(Graph::Decoder),
    };
    let mut quantizer = Quantizer::new(folder);
    for &precision in &options.precisions {
        let floats = floats(precision);
        let build = build(checkpoint, &options.recipe, precision, &floats);
        let sides = wanted.calibrated(build);
        if !sides.any() {
            continue;
        }
        let samples = options.calibration.as_ref().ok_or(ExportError::NoCalibration(precision))?;
        let samples = read_samples(samples, folder)?;
        let write_error = |source| ExportError::Write { path: folder.to_owned(), source };
        let stage = tempfile::tempdir_in(folder).map_err(write_error)?;
        calibrate(checkpoint, build, sides, &samples, &mut quantizer, stage.path(), on_stage)?;
        stage.close().map_err(write_error)?;
    }
    Ok(quantizer)
}

/// Inputs and outputs of a graph.
pub(super) fn spec(
    contract: &Contract,
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    graph: Graph,
    precision: Precision,
) -> Result<GraphSpec, ExportError> {
    contract
        .resolve(graph, &checkpoint.config().dims(), recipe, precision.state_dtype())
        .ok_or_else(|| ExportError::NotInContract { contract: contract.name.clone(), graph })
}

/// What each `.onnx` file says of itself.
pub(super) fn metadata(
    checkpoint: &Checkpoint,
    contract: &Contract,
    recipe: &Recipe,
    precision: Precision,
) -> Vec<(String, String)> {
    [
        ("source_model_type", "lfm2_vl".to_owned()),
        ("source_fingerprint", checkpoint.fingerprint().to_owned()),
        ("exporter_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("contract", format!("{} {}", contract.name, contract.version)),
        ("recipe", recipe.name.clone()),
        ("precision", precision.to_string()),
    ]
    .map(|(key, value)| (format!("lfm2vl.{key}"), value))
    .to_vec()
}
