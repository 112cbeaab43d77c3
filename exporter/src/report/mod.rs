//! The quality report: what each precision loses against float32 on sample images and prompts, for
//! every module and every graph.

mod graphs;
mod html;
mod modules;

use std::{
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use lfm2vl_graphs::{Graph, Manifest, Precision, Recipe};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{ExportError, ExportOptions, calibrate::read_samples, checkpoint::Checkpoint, export};

/// What all precisions lose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// Program and version that wrote the graphs.
    pub exporter: String,
    /// Which checkpoint they were made from.
    pub source_fingerprint: String,
    /// Prompts that were run.
    pub samples: usize,
    /// One entry for each graph and precision but float32.
    pub graphs: Vec<GraphQuality>,
    /// One entry for each quantized module and precision.
    pub modules: Vec<ModuleQuality>,
}

/// What a graph gives on the inputs that float32 graphs give, beside the float32 graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphQuality {
    /// Which graph.
    pub graph: Graph,
    /// Its precision.
    pub precision: Precision,
    /// Size on disk with its weights.
    pub bytes: u64,
    /// The same of the float32 graph.
    pub float_bytes: u64,
    /// Cosine similarity of the outputs, the mean of all rows; none where no sample has an image.
    pub cosine: Option<f64>,
    /// The least of any row.
    pub least_cosine: Option<f64>,
    /// How the next token's distribution differs; for the decoder.
    pub next_token: Option<NextToken>,
}

/// How the distributions of next tokens differ from float32's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NextToken {
    /// Positions that were compared: those that predict the answer.
    pub positions: usize,
    /// Mean Kullback-Leibler divergence, in nats.
    pub mean_kl: f64,
    /// The largest one.
    pub max_kl: f64,
    /// Share of positions whose most likely token is the same.
    pub same_first: f64,
}

/// What a weight loses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleQuality {
    /// Canonical name.
    pub module: String,
    /// The graph that has it.
    pub graph: Graph,
    /// The precision of that graph.
    pub precision: Precision,
    /// How the weight is stored, such as "4 bits, blocks of 32".
    pub format: String,
    /// Root mean square of the weight's error over that of the weight.
    pub weight_error: f64,
    /// Cosine similarity of the outputs for the inputs that the module has in float32; none for
    /// the token embedding.
    pub output_cosine: Option<f64>,
}

/// Whether there can be a report on an export with this recipe.
///
/// # Errors
/// [`ExportError::ReportSizes`] and [`ExportError::ReportPacked`].
pub fn check(recipe: &Recipe) -> Result<(), ExportError> {
    if recipe.sizes.is_some() {
        return Err(ExportError::ReportSizes);
    }
    if recipe.packed_qkv { Err(ExportError::ReportPacked) } else { Ok(()) }
}

/// Compares an export in `folder` with float32 on the samples in `samples` (see
/// [`read_samples`]).
///
/// `on_step` is told of each layer and graph, and may stop.
///
/// # Errors
/// [`ExportError`] when the samples cannot be read or a graph cannot be run.
pub fn measure(
    checkpoint: &Checkpoint,
    folder: &Path,
    manifest: &Manifest,
    samples: &Path,
    on_step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<QualityReport, ExportError> {
    check(&manifest.recipe)?;
    let samples = read_samples(samples, folder)?;
    // On the disk that has room for an export.
    let scratch = tempfile::Builder::new().prefix(".report-").tempdir_in(folder);
    let write_error = |source| ExportError::Write { path: folder.to_owned(), source };
    let scratch = scratch.map_err(write_error)?;
    let options = ExportOptions {
        precisions: vec![Precision::Fp32],
        ..ExportOptions::new(manifest.recipe.clone())
    };
    let float = export(checkpoint, &scratch.path().join("float"), &options, &mut |_| on_step())?;
    let modules =
        modules::measure(checkpoint, folder, manifest, &samples, scratch.path(), on_step)?;
    let graphs = graphs::measure(checkpoint, folder, manifest, &float, &samples, on_step)?;
    drop(float);
    // It is not to be published with the folder.
    scratch.close().map_err(write_error)?;
    Ok(QualityReport {
        exporter: manifest.exporter.clone(),
        source_fingerprint: manifest.source_fingerprint.clone(),
        samples: samples.len(),
        graphs,
        modules,
    })
}

/// The files of a report, made before there is anything to write, so that a path that cannot be
/// written is told at once; they appear under their names when they are complete.
pub struct ReportFiles {
    page: (NamedTempFile, PathBuf),
    json: (NamedTempFile, PathBuf),
}

impl ReportFiles {
    /// A page at `path`, which must end with `.html`, and JSON at the same path with `.json` added.
    ///
    /// # Errors
    /// [`ExportError::ReportName`] or [`ExportError::Write`].
    pub fn create(path: &Path) -> Result<Self, ExportError> {
        if path.extension().is_none_or(|extension| extension != "html") || path.is_dir() {
            return Err(ExportError::ReportName(path.to_owned()));
        }
        let write_error = |source| ExportError::Write { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(write_error)?;
        let folder = absolute.parent().unwrap_or(&absolute);
        let file = || NamedTempFile::new_in(folder).map_err(write_error);
        let mut json = path.as_os_str().to_owned();
        json.push(".json");
        Ok(ReportFiles { page: (file()?, path.to_owned()), json: (file()?, json.into()) })
    }

    /// Writes the report.
    ///
    /// # Errors
    /// [`ExportError::Write`].
    pub fn write(self, report: &QualityReport) -> Result<(), ExportError> {
        let json = serde_json::to_string_pretty(report)
            .map_err(|source| ExportError::Json { path: self.json.1.clone(), source })?;
        for ((mut file, path), text) in [(self.json, json), (self.page, html::page(report))] {
            let write_error = |source| ExportError::Write { path: path.clone(), source };
            file.write_all(text.as_bytes()).map_err(write_error)?;
            file.persist(&path).map_err(|error| write_error(error.error))?;
        }
        Ok(())
    }
}
