//! The exported folder: graphs, the files that clients need beside them, and the manifest.

mod bundles;
mod card;
mod files;
mod folder;
mod genai;
mod reference;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use lfm2vl_graphs::{
    Contract, Graph, GraphFiles, GraphSpec, MANIFEST, Manifest, ManifestFile, Method, Module,
    Precision, Recipe, TiedWeights, YamlError,
};

use crate::{
    calibrate::{calibrate, read_samples},
    checkpoint::Checkpoint,
    error::ExportError,
    models::{self, Build},
    onnx::{Floats, Model, Plan, WrittenFile, write_file},
    quantize::Quantizer,
};

use folder::NewFolder;
use serde_json::{Map, Value, json};

/// A part of the model that `--graphs` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The vision tower (with the projector, where the recipe fuses them).
    Vision,
    /// The projector (with the vision tower, where the recipe fuses them).
    Projector,
    /// The token embedding.
    Embedding,
    /// The decoder.
    Decoder,
}

impl Part {
    fn includes(self, graph: Graph) -> bool {
        match self {
            Part::Vision => matches!(graph, Graph::VisionEncoder | Graph::VisionTower),
            Part::Projector => matches!(graph, Graph::VisionEncoder | Graph::Projector),
            Part::Embedding => graph.weights() == Graph::EmbedTokens,
            Part::Decoder => graph.weights() == Graph::Decoder,
        }
    }
}

/// Where the weights of the graphs are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// In data files beside the graphs.
    #[default]
    Written,
    /// In the checkpoint's own files, which the folder gets hard links to: nothing is written.
    Reference,
}

/// What to export and how.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How graphs are built.
    pub recipe: Recipe,
    /// Precisions of the weights, each giving its own set of graphs.
    pub precisions: Vec<Precision>,
    /// Parts of the model; all when empty.
    pub parts: Vec<Part>,
    /// Where the weights are.
    pub weights: Weights,
    /// A folder of images and prompts to calibrate on, for recipes with a method that does.
    pub calibration: Option<PathBuf>,
    /// Whether to replace an earlier export.
    pub force: bool,
}

/// What was exported.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The manifest that was written.
    pub manifest: Manifest,
    /// Bytes of all files that were written.
    pub bytes: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

/// How far an export is, in bytes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written so far.
    pub written: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A complete export that does not have its name yet; it vanishes when dropped.
pub struct Draft {
    folder: NewFolder,
    report: Report,
}

impl Draft {
    /// Where the files are for now.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What was written.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Gives the folder its name, in place of an earlier export.
    ///
    /// # Errors
    /// [`ExportError::Write`] when the folder cannot be renamed.
    pub fn publish(self) -> Result<Report, ExportError> {
        self.folder.publish()?;
        Ok(self.report)
    }
}

/// Exports `checkpoint`; the folder `out` appears when the [`Draft`] is published.
///
/// `on_progress` is called as weights are written; it stops the export by breaking.
///
/// # Errors
/// [`ExportError`]; nothing is left behind, and an earlier export stays as it was.
pub fn export(
    checkpoint: &Checkpoint,
    out: &Path,
    options: &ExportOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Draft, ExportError> {
    let start = Instant::now();
    if options.weights == Weights::Reference && options.precisions != [Precision::Fp32] {
        return Err(ExportError::ReferencePrecision);
    }
    let contract = Contract::builtin(&options.recipe.contract)?;
    let bundles = bundles::recommended(&options.precisions);
    let graphs = wanted_graphs(options);
    let built: Vec<(Graph, Precision)> = options
        .precisions
        .iter()
        .flat_map(|&precision| graphs.iter().map(move |&graph| (graph, precision)))
        .collect();
    let plan = Plan::new(models(&contract, checkpoint, options, &built)?);

    let config = checkpoint.config();
    let folder = NewFolder::create(out, options.force)?;
    let external = external_data(options, &built);
    let mut files =
        files::write_client_files(checkpoint.folder(), config, external, folder.path())?;
    let has = |graph| built.iter().any(|(built, _)| *built == graph);
    if has(Graph::VisionEncoder) && has(Graph::GenaiEmbeddings) && has(Graph::GenaiDecoder) {
        files.extend(genai::write(config, &bundles[0], folder.path())?);
    }
    let onnx = folder.create_subfolder("onnx")?;
    // Links are in the folder, but were not written.
    let links = match options.weights {
        Weights::Written => Vec::new(),
        Weights::Reference => reference::link(checkpoint, &onnx)?,
    };
    let linked: u64 = links.iter().map(|link| link.bytes).sum();
    let (mut written, total) = (0, plan.bytes());
    let mut on_bytes = |bytes| {
        written += bytes;
        on_progress(Progress { written, total })
    };
    let quantizer = quantizer(checkpoint, options, &built, folder.path(), &mut || on_bytes(0))?;
    let graph_files = plan.write(checkpoint, &quantizer, &onnx, &mut on_bytes)?;
    let built = built.into_iter().zip(graph_files);
    let graph_files = built
        .map(|((graph, precision), files)| {
            let files = files.into_iter().map(|f| manifest_file("onnx/", f)).collect();
            GraphFiles { graph, precision, files }
        })
        .collect();

    let mut manifest = Manifest {
        exporter: format!("lfm2vl-export {}", env!("CARGO_PKG_VERSION")),
        contract: contract.name.clone(),
        contract_version: contract.version,
        recipe: options.recipe.clone(),
        source_fingerprint: checkpoint.fingerprint().to_owned(),
        graphs: graph_files,
        bundles,
        files: files
            .into_iter()
            .map(|f| manifest_file("", f))
            .chain(links.into_iter().map(|f| manifest_file("onnx/", f)))
            .collect(),
    };
    let specs = graphs
        .into_iter()
        .map(|graph| spec(&contract, checkpoint, &options.recipe, graph, Precision::Fp32))
        .collect::<Result<Vec<_>, _>>()?;
    let generation = files::read_settings(folder.path(), "generation_config.json")?;
    let card = card::card(&manifest, &specs, &generation);
    let card = write_file(folder.path(), "README.md", card.as_bytes())?;
    manifest.files.push(manifest_file("", card));
    let text = serde_yaml::to_string(&manifest)
        .map_err(|source| YamlError::Invalid { what: MANIFEST.into(), source })?;
    write_file(folder.path(), MANIFEST, text.as_bytes())?;

    let bytes = manifest.all_files().map(|file| file.bytes).sum::<u64>() - linked;
    let report = Report { manifest, bytes, seconds: start.elapsed().as_secs_f64() };
    Ok(Draft { folder, report })
}

/// The graphs that the options ask for.
fn wanted_graphs(options: &ExportOptions) -> Vec<Graph> {
    let is_wanted = |graph: &Graph| {
        options.parts.is_empty() || options.parts.iter().any(|part| part.includes(*graph))
    };
    Contract::graphs(&options.recipe).into_iter().filter(is_wanted).collect()
}

/// The graphs, built.
fn models(
    contract: &Contract,
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    wanted: &[(Graph, Precision)],
) -> Result<Vec<Model>, ExportError> {
    let recipe = &options.recipe;
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
            Ok(Model {
                stem: format!("{graph}{}", precision.suffix()),
                data: format!("{data_graph}{}.onnx_data", precision.suffix()),
                graph: models::build(spec, build(checkpoint, recipe, precision, &floats)).finish(),
                metadata: metadata(checkpoint, contract, recipe, precision),
            })
        })
        .collect()
}

/// Which graphs have a data file beside them, as Transformers.js wants to be told; `None` where
/// their weights are elsewhere.
fn external_data(options: &ExportOptions, built: &[(Graph, Precision)]) -> Option<Value> {
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

fn floats(precision: Precision) -> Floats {
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
fn quantizer(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    wanted: &[(Graph, Precision)],
    folder: &Path,
    on_stage: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Quantizer, ExportError> {
    let mut quantizer = Quantizer::default();
    for &precision in &options.precisions {
        let floats = floats(precision);
        let build = build(checkpoint, &options.recipe, precision, &floats);
        let modules = checkpoint.config().quantizable_modules();
        let is_calibrated = |vision: bool| {
            let linear = modules.iter().filter(|module| !module.name().ends_with("embed_tokens"));
            let of_side = linear.filter(|module| is_vision(module) == vision);
            let formats = of_side.filter_map(|module| build.block_format(module.name()));
            formats.into_iter().any(|(_, format)| format.method == Method::Gptq)
        };
        let wants = |graph| wanted.iter().any(|(wanted, _)| *wanted == graph);
        let vision = wants(Graph::VisionEncoder) || wants(Graph::VisionTower);
        if !(vision && is_calibrated(true) || wants(Graph::Decoder) && is_calibrated(false)) {
            continue;
        }
        let samples = options.calibration.as_ref().ok_or(ExportError::NoCalibration(precision))?;
        let samples = read_samples(samples, folder)?;
        let write_error = |source| ExportError::Write { path: folder.to_owned(), source };
        let stage = tempfile::tempdir_in(folder).map_err(write_error)?;
        calibrate(checkpoint, build, &samples, &mut quantizer, stage.path(), on_stage)?;
    }
    Ok(quantizer)
}

/// Whether a linear layer is one of the vision graphs. (The token embedding is never calibrated.)
fn is_vision(module: &Module) -> bool {
    !module.name().starts_with("language_model.") && module.name() != "lm_head"
}

/// Inputs and outputs of a graph.
fn spec(
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
fn metadata(
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

fn manifest_file(prefix: &str, file: WrittenFile) -> ManifestFile {
    ManifestFile { path: format!("{prefix}{}", file.name), bytes: file.bytes, sha256: file.sha256 }
}
