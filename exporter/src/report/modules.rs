//! What each module loses: its weight, and its outputs for the inputs that it has in float32.

use std::{collections::HashMap, ops::ControlFlow, path::Path};

use half::f16;
use lfm2vl_graphs::{Graph, Manifest, Module, Precision, Recipe, VisionLayout};
use ndarray::Array2;

use super::ModuleQuality;
use crate::{
    calibrate::{Activations, Sample, StageRun},
    checkpoint::{Checkpoint, CheckpointError},
    error::ExportError,
    exported::ExportedWeights,
    metrics::Comparison,
    models::{Build, Stage},
    onnx::Floats,
    quantize::Quantizer,
};

/// Rows of inputs that a module is compared on at most.
const ROWS: usize = 512;

pub(super) fn measure(
    checkpoint: &Checkpoint,
    folder: &Path,
    manifest: &Manifest,
    samples: &[Sample],
    scratch: &Path,
    on_step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<ModuleQuality>, ExportError> {
    let exported = Exported::open(checkpoint, folder, manifest)?;
    let mut found = exported.measure("language_model.embed_tokens", None)?;
    let float = Build {
        config: checkpoint.config(),
        recipe: &manifest.recipe,
        quantization: None,
        floats: &Floats::Single,
        tied_head: !checkpoint.has_lm_head(),
    };
    let run = StageRun { checkpoint, folder: scratch };
    let (vision, decoder) = Stage::all(checkpoint.config());
    let mut activations = Activations::of_patches(samples);
    let mut stages = |stages: Vec<Stage>, activations: &mut Activations| {
        for stage in stages {
            let (session, taps) = run.open(stage, float, &Quantizer::new(scratch), true)?;
            let inputs = activations.advance_with_taps(stage, session, ROWS)?;
            for tap in taps {
                for module in &tap.modules {
                    found.extend(exported.measure(module, inputs.get(&tap.output))?);
                }
            }
            if on_step().is_break() {
                return Err(ExportError::Interrupted);
            }
        }
        Ok(())
    };
    stages(vision, &mut activations)?;
    let mut activations = activations.into_prompts(checkpoint, samples)?;
    stages(decoder, &mut activations)?;
    Ok(found)
}

/// The weights of all exported graphs.
struct Exported<'a> {
    checkpoint: &'a Checkpoint,
    recipe: &'a Recipe,
    graphs: HashMap<(Graph, Precision), ExportedWeights>,
}

impl<'a> Exported<'a> {
    fn open(
        checkpoint: &'a Checkpoint,
        folder: &Path,
        manifest: &'a Manifest,
    ) -> Result<Self, ExportError> {
        let mut graphs = HashMap::new();
        for files in manifest.graphs.iter().filter(|f| f.precision != Precision::Fp32) {
            let path = folder.join(&files.files[0].path);
            let weights = ExportedWeights::open(&path)
                .map_err(|source| ExportError::Read { path, source })?;
            graphs.insert((files.graph, files.precision), weights);
        }
        Ok(Exported { checkpoint, recipe: &manifest.recipe, graphs })
    }

    /// What a module loses in every precision, on `inputs` [rows, columns].
    fn measure(
        &self,
        module: &str,
        inputs: Option<&Array2<f32>>,
    ) -> Result<Vec<ModuleQuality>, ExportError> {
        let graph = graph_of(module, self.recipe);
        let module = self.checkpoint.config().module(module);
        let tensor = match (module.name(), self.checkpoint.has_lm_head()) {
            ("lm_head", false) => "language_model.embed_tokens.weight".to_owned(),
            (name, _) => format!("{name}.weight"),
        };
        let run = StageRun { checkpoint: self.checkpoint, folder: Path::new("") };
        let weight = run.matrix(&tensor)?;
        let outputs = inputs.map(|inputs| inputs.dot(&weight.t()));
        let mut found = Vec::new();
        for precision in Precision::ALL {
            let Some(exported) = self.graphs.get(&(graph, precision)) else { continue };
            let shape = [weight.nrows(), weight.ncols()];
            let read = exported.quantized(&tensor, shape);
            let read = read.map_err(|source| CheckpointError::Read {
                path: self.checkpoint.folder().to_owned(),
                source,
            })?;
            let theirs = match &read {
                Some(quantized) => quantized.matrix(),
                None if precision.is_half() => weight.mapv(|value| f16::from_f32(value).to_f32()),
                None => continue,
            };
            let lost = (&theirs - &weight).iter().map(|e| f64::from(*e).powi(2)).sum::<f64>();
            let all = weight.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
            let output_cosine = inputs.zip(outputs.as_ref()).map(|(inputs, outputs)| {
                let mut comparison = Comparison::default();
                comparison.add(&inputs.dot(&theirs.t()), outputs);
                comparison.cosine()
            });
            found.push(ModuleQuality {
                module: module.name().to_owned(),
                graph,
                precision,
                format: self.format(&module, precision, read.is_some()),
                weight_error: (lost / all.max(f64::MIN_POSITIVE)).sqrt(),
                output_cosine,
            });
        }
        Ok(found)
    }

    fn format(&self, module: &Module, precision: Precision, quantized: bool) -> String {
        let quantization = self.recipe.quantization.get(&precision);
        match quantization.and_then(|q| q.format_of(module)).filter(|_| quantized) {
            Some(format)
                if format.activations == lfm2vl_graphs::Activations::Tensor
                    && !module.name().ends_with("embed_tokens") =>
            {
                "8 bits, one scale for each row".to_owned()
            }
            Some(format) => {
                let symmetric = if format.symmetric { "symmetric" } else { "zero points" };
                let (bits, block) = (format.bits.get(), format.block_size.get());
                format!("{bits} bits, blocks of {block}, {symmetric}, {:?}", format.method)
            }
            None => "16 bits".to_owned(),
        }
    }
}

fn graph_of(module: &str, recipe: &Recipe) -> Graph {
    let split = recipe.vision == VisionLayout::Split;
    match module.split('.').next().unwrap_or_default() {
        "vision_tower" if split => Graph::VisionTower,
        "multi_modal_projector" if split => Graph::Projector,
        "vision_tower" | "multi_modal_projector" => Graph::VisionEncoder,
        _ if module.ends_with("embed_tokens") => Graph::EmbedTokens,
        _ => Graph::Decoder,
    }
}
