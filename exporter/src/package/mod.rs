//! The exported folder: graphs, the files that clients need beside them, and the manifest.

mod bundles;
mod card;
mod files;
mod folder;
mod genai;
mod graphs;
mod image_processor;
mod options;
mod recipes;
mod reference;
mod tokenizer;

use std::{ops::ControlFlow, path::Path, time::Instant};

use lfm2vl::chat::{self, ChatTemplate, Content, ImageTokens, Message, RenderOptions, Role};
use lfm2vl_graphs::{
    Contract, Graph, GraphFiles, MANIFEST, Manifest, ManifestFile, Precision, YamlError,
};

use crate::{
    checkpoint::Checkpoint,
    error::ExportError,
    onnx::{FinishedGraph, Plan, WrittenFile, write_file},
};

use folder::NewFolder;
pub use options::{ExportOptions, Part, Weights};
pub use recipes::{RecipeSummary, builtin_recipes};

/// What was exported.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The manifest that was written.
    pub manifest: Manifest,
    /// Bytes of all files that were written.
    pub bytes: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// A graph that could not be made; the others do not need it.
    pub left_out: Option<LeftOut>,
}

/// A graph that is not in an export.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LeftOut {
    /// Which one.
    pub graph: Graph,
    /// Why it could not be made.
    pub why: String,
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

/// The graphs that the options ask for, built.
pub(crate) fn built(
    contract: &Contract,
    checkpoint: &Checkpoint,
    options: &ExportOptions,
) -> Result<Vec<(Graph, Precision, FinishedGraph)>, ExportError> {
    let built = wanted(options);
    let models = graphs::models(contract, checkpoint, options, &built)?;
    let built = built.into_iter().zip(models);
    Ok(built.map(|((graph, precision), model)| (graph, precision, model.graph)).collect())
}

/// Which graphs in which precisions the options ask for.
fn wanted(options: &ExportOptions) -> Vec<(Graph, Precision)> {
    let graphs = graphs::wanted_graphs(options);
    let of = |&precision: &Precision| graphs.iter().map(move |&graph| (graph, precision));
    options.precisions.iter().flat_map(of).collect()
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
    if options.weights == Weights::Reference && checkpoint.adapter().is_some() {
        return Err(ExportError::ReferenceAdapter);
    }
    tokenizer::check(checkpoint.folder(), checkpoint.config())?;
    let contract = Contract::builtin(&options.recipe.contract)?;
    let bundles = bundles::recommended(&options.precisions);
    let built = wanted(options);
    let mut models = graphs::models(&contract, checkpoint, options, &built)?;
    let mut image_processor = graphs::image_processor_spec(&contract, checkpoint, options)?;
    let mut left_out = None;
    if let Some(spec) = &image_processor {
        let metadata = graphs::metadata(checkpoint, &contract, &options.recipe, Precision::Fp32);
        match image_processor::model(checkpoint, spec.clone(), metadata) {
            Ok(model) => models.push(model),
            // The model itself can be exported all the same.
            Err(error) if options.parts.is_empty() => {
                image_processor = None;
                left_out = Some(LeftOut { graph: Graph::ImageProcessor, why: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    // All have as many digits.
    let onnxruntime = models.iter().map(|model| model.graph.oldest_onnxruntime()).max();
    let plan = Plan::new(models);

    let config = checkpoint.config();
    let folder = NewFolder::create(out, options.force)?;
    let external = graphs::external_data(options, &built);
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
    let quantizer = graphs::quantizer(checkpoint, options, folder.path(), &mut || on_bytes(0))?;
    let mut graph_files = plan.write(checkpoint, &quantizer, &onnx, &mut on_bytes)?;
    let others = graph_files.split_off(built.len()).into_iter().flatten();
    let built = built.into_iter().zip(graph_files);
    let graph_files = built
        .map(|((graph, precision), files)| {
            let files = files.into_iter().map(|f| manifest_file("onnx/", f)).collect();
            GraphFiles { graph, precision, files }
        })
        .collect();

    let mut manifest = Manifest {
        format: Manifest::FORMAT,
        left_out: Vec::new(),
        exporter: format!("lfm2vl-export {}", env!("CARGO_PKG_VERSION")),
        contract: contract.name.clone(),
        contract_version: contract.version,
        recipe: options.recipe.clone(),
        onnxruntime: onnxruntime.map(str::to_owned),
        source_fingerprint: checkpoint.fingerprint().to_owned(),
        graphs: graph_files,
        bundles,
        files: files
            .into_iter()
            .map(|f| manifest_file("", f))
            .chain(links.into_iter().chain(others).map(|f| manifest_file("onnx/", f)))
            .collect(),
    };
    let mut specs = graphs::wanted_graphs(options)
        .into_iter()
        .map(|graph| graphs::spec(&contract, checkpoint, &options.recipe, graph, Precision::Fp32))
        .collect::<Result<Vec<_>, _>>()?;
    specs.extend(image_processor);
    let generation = files::read_settings(folder.path(), "generation_config.json")?;
    let prompt = plain_prompt(folder.path());
    let card = card::card(&manifest, &specs, &generation, prompt.as_deref());
    let card = write_file(folder.path(), "README.md", card.as_bytes())?;
    manifest.files.push(manifest_file("", card));
    let text = serde_yaml::to_string(&manifest)
        .map_err(|source| YamlError::Invalid { what: MANIFEST.into(), source })?;
    write_file(folder.path(), MANIFEST, text.as_bytes())?;

    let bytes = manifest.all_files().map(|file| file.bytes).sum::<u64>() - linked;
    let report = Report { manifest, bytes, seconds: start.elapsed().as_secs_f64(), left_out };
    Ok(Draft { folder, report })
}

/// The prompt of a plain question as a string with `{content}` in its place, in front of which stands `<image>`
/// for each image; nothing where the template in `folder` makes something else of it.
fn plain_prompt(folder: &Path) -> Option<String> {
    const CONTENT: &str = "{content}";
    let template = ChatTemplate::from_folder(folder).ok()?;
    let mut options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    // Where the template asks for the time, the day of the export would stay in it: no function, so it fails.
    options.variables.insert("strftime_now".to_owned(), false.into());
    let render = |parts: Vec<chat::Part>| {
        let content = Some(Content::Parts(parts));
        let message = Message { role: Role::User, content, other: serde_json::Map::new() };
        template.render(&[message], &options).ok()
    };
    let text = || chat::Part::Text(CONTENT.to_owned());
    let prompt = render(vec![text()])?;
    let with_image = render(vec![chat::Part::Image, text()])?;
    let image = ImageTokens::from_folder(folder).ok()?.image;
    let is_plain = prompt.matches(CONTENT).count() == 1
        && with_image == prompt.replace(CONTENT, &(image + CONTENT));
    is_plain.then_some(prompt)
}

fn manifest_file(prefix: &str, file: WrittenFile) -> ManifestFile {
    ManifestFile { path: format!("{prefix}{}", file.name), bytes: file.bytes, sha256: file.sha256 }
}
