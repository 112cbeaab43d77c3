//! `--verify`: every exported graph, run in ONNX Runtime, against the reference implementation
//! in [`reference`](crate::reference), on the same inputs.

mod bounds;
mod graphs;
mod image_processor;
mod sample;

use std::{
    fmt, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    exported::ExportedWeights,
    metrics::Comparison,
    package::{ExportOptions, Part},
    reference::ReferenceModel,
    session::{GraphSession, SessionError},
};
use bounds::Bounds;
use lfm2vl::image::{ImageError, ImageSettings};
use lfm2vl_graphs::{Activations, Contract, Graph, GraphFiles, Manifest, Precision, YamlError};
use sample::Sample;

/// Cached decode steps after the prompt.
const DECODE_STEPS: usize = 6;

/// Why a graph could not be verified, or did not pass.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A graph cannot be run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A weight could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// None of the sample's views fits the graph.
    #[error(
        "verifying takes views of more than {patches} patches; give more 'patches' in the recipe's sizes, or leave --verify out"
    )]
    Views {
        /// Patches that the graph takes.
        patches: usize,
    },
    /// The settings of the image processor do not go together.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A decoder that the CPU does not run.
    #[error(
        "verifying runs graphs on the CPU, which does not run the decoders of a recipe with 'packed_qkv'; leave --verify or 'packed_qkv' out, or name other --graphs"
    )]
    Packed,
    /// The contract is not valid.
    #[error(transparent)]
    Contract(#[from] YamlError),
    /// An exported file cannot be read, or is damaged.
    #[error("cannot read {path}: {source}; export again")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Stopped by the user.
    #[error("the verification was interrupted; nothing was written, run it again to export")]
    Interrupted,
    /// A quantized weight is too far from the checkpoint's.
    #[error(
        "the weight {tensor} of {graph} in {precision} has lost {error:.2} of its size, so nothing was written; use more bits or smaller blocks for it"
    )]
    Weight {
        /// The graph.
        graph: Graph,
        /// Its precision.
        precision: Precision,
        /// Canonical name of the weight.
        tensor: String,
        /// Root mean square of the error over that of the weight.
        error: f64,
    },
    /// A graph is too far from the reference.
    #[error(
        "{graph} in {precision} differs from the reference (scaled error {error:.1e}, cosine 1 - {:.1e}{}), so nothing was written; report this with the model's config.json",
        1.0 - cosine,
        top1.map_or(String::new(), |(agree, all)| format!(", {agree} of {all} best tokens"))
    )]
    Differs {
        /// The graph.
        graph: Graph,
        /// Its precision.
        precision: Precision,
        /// Scaled maximum absolute error.
        error: f32,
        /// Cosine similarity.
        cosine: f64,
        /// Positions whose best token is the reference's, of how many; for the decoder.
        top1: Option<(usize, usize)>,
    },
}

/// How one graph compares.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct GraphCheck {
    /// The graph.
    pub graph: Graph,
    /// Precision of its weights.
    pub precision: Precision,
    /// Largest absolute difference of any output value.
    pub max_abs_error: f32,
    /// The same over the reference's largest magnitude, where that exceeds 1.
    pub scaled_error: f32,
    /// Cosine similarity of all outputs.
    pub cosine: f64,
    /// Positions whose best token is the reference's, of how many; for the decoder.
    pub top1: Option<(usize, usize)>,
    /// What the inputs of quantized layers are computed in; without such layers, floats.
    pub activations: Activations,
}

impl GraphCheck {
    /// Of a graph that has no tokens and whose layers take floats.
    fn of(graph: Graph, precision: Precision, comparison: &Comparison) -> Self {
        GraphCheck {
            graph,
            precision,
            max_abs_error: comparison.max_abs_error(),
            scaled_error: comparison.scaled_error(),
            cosine: comparison.cosine(),
            top1: None,
            activations: Activations::Float,
        }
    }
}

/// How all graphs compare.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Verification {
    /// One entry for each graph and precision.
    pub graphs: Vec<GraphCheck>,
}

impl Verification {
    /// Whether every graph is within the bounds.
    ///
    /// # Errors
    /// [`VerifyError::Differs`] names the first graph that is not.
    pub fn check(&self) -> Result<(), VerifyError> {
        let fails = |c: &&GraphCheck| {
            let bounds = Bounds::of(c.precision, c.activations);
            // Written so that NaN fails.
            let close = c.scaled_error <= bounds.error && c.cosine >= bounds.cosine;
            !close || (bounds.top1 && c.top1.is_some_and(|(agree, all)| agree < all))
        };
        self.graphs.iter().find(fails).map_or(Ok(()), |c| {
            Err(VerifyError::Differs {
                graph: c.graph,
                precision: c.precision,
                error: c.scaled_error,
                cosine: c.cosine,
                top1: c.top1,
            })
        })
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22} {:<6} {:>9} {:>12} {:>7} {:>10} {:>7} {:>7}",
            "graph", "", "max error", "scaled error", "bound", "1 - cosine", "bound", "top-1"
        )?;
        for c in &self.graphs {
            let Bounds { error, cosine, top1 } = Bounds::of(c.precision, c.activations);
            let agreed = c.top1.map_or(String::new(), |(agree, all)| format!("{agree}/{all}"));
            let all = if top1 && c.top1.is_some() { " (all)" } else { "" };
            writeln!(
                f,
                "{:<22} {:<6} {:>9.1e} {:>12.1e} {error:>7.0e} {:>10.1e} {:>7.0e} {agreed:>7}{all}",
                c.graph.name(),
                c.precision.to_string(),
                c.max_abs_error,
                c.scaled_error,
                1.0 - c.cosine,
                1.0 - cosine,
            )?;
        }
        Ok(())
    }
}

/// The largest root mean square of a quantized weight's error over that of the weight, for 4 and for
/// 8 bits. What methods lose is less than half of this; wrong bytes lose all.
const MAX_WEIGHT_ERROR: [(u32, f64); 2] = [(4, 0.35), (8, 0.03)];

/// Compares a graph's quantized weights with the checkpoint's.
fn check_weights(
    checkpoint: &Checkpoint,
    weights: &ExportedWeights,
    path: &Path,
    files: &GraphFiles,
) -> Result<(), VerifyError> {
    for (name, shape) in checkpoint.matrices() {
        let read_error = |source| VerifyError::Read { path: path.to_owned(), source };
        let Some(exported) = weights.quantized(&name, shape).map_err(read_error)? else { continue };
        let stored = checkpoint.load(&name)?;
        let square = |x: f32| f64::from(x).powi(2);
        let read = exported.matrix();
        let lost: f64 = read.iter().zip(&stored).map(|(a, b)| square(a - b)).sum();
        let all: f64 = stored.iter().map(|&x| square(x)).sum();
        let error = (lost / all.max(f64::MIN_POSITIVE)).sqrt();
        let bound = MAX_WEIGHT_ERROR.into_iter().find(|(bits, _)| *bits == exported.bits());
        // Written so that NaN fails.
        let close = error <= bound.map_or(0.0, |(_, bound)| bound);
        if !close {
            let (graph, precision) = (files.graph, files.precision);
            return Err(VerifyError::Weight { graph, precision, tensor: name, error });
        }
    }
    Ok(())
}

/// Whether an export with these options can be verified.
///
/// # Errors
/// [`VerifyError::Packed`].
pub fn check_verifiable(options: &ExportOptions) -> Result<(), VerifyError> {
    let has_decoder = options.parts.is_empty() || options.parts.contains(&Part::Decoder);
    if options.recipe.packed_qkv && has_decoder { Err(VerifyError::Packed) } else { Ok(()) }
}

/// Runs every graph of the exported `folder` and compares it with the reference: a ragged batch
/// of views for the vision graphs, a prompt with image features and several cached steps for the
/// decoder; and images for the image processor. Where a graph has its weights quantized, the reference takes them from there, so that
/// what they lose is not counted. `on_graph` is told of each graph before it is run, and may stop.
///
/// # Errors
/// [`VerifyError`] when a graph cannot be run. Whether it is close enough is for
/// [`Verification::check`] to say.
pub fn verify(
    checkpoint: &Checkpoint,
    folder: &Path,
    manifest: &Manifest,
    on_graph: &mut dyn FnMut(Graph) -> ControlFlow<()>,
) -> Result<Verification, VerifyError> {
    let sample = Sample::new(checkpoint.config());
    let contract = Contract::builtin(&manifest.contract)?;
    let mut checks = Vec::new();
    for files in &manifest.graphs {
        if on_graph(files.graph).is_break() {
            return Err(VerifyError::Interrupted);
        }
        if manifest.recipe.packed_qkv && files.graph.weights() == Graph::Decoder {
            return Err(VerifyError::Packed);
        }
        let dims = checkpoint.config().dims();
        let Some(spec) =
            contract.resolve(files.graph, &dims, &manifest.recipe, files.precision.state_dtype())
        else {
            continue;
        };
        let path = format!("onnx/{}{}.onnx", files.graph, files.precision.suffix());
        let path = folder.join(path);
        let mut session = GraphSession::open(spec, &path)?;
        let weights = match manifest.recipe.quantization.get(&files.precision) {
            Some(_) => Some(
                ExportedWeights::open(&path)
                    .map_err(|source| VerifyError::Read { path: path.clone(), source })?,
            ),
            None => None,
        };
        if let Some(weights) = &weights {
            check_weights(checkpoint, weights, &path, files)?;
        }
        let model = ReferenceModel::with_quantized(checkpoint, weights.as_ref());
        let (model, sample) = (&model, &sample);
        let (comparison, top1) = match files.graph {
            Graph::EmbedTokens => (graphs::embedding(&mut session, model, sample)?, None),
            Graph::GenaiEmbeddings => {
                (graphs::genai_embeddings(&mut session, model, sample)?, None)
            }
            Graph::VisionEncoder => (graphs::vision_encoder(&mut session, model, sample)?, None),
            Graph::VisionTower => (graphs::vision_tower(&mut session, model, sample)?, None),
            Graph::Projector => (graphs::projector(&mut session, model, sample)?, None),
            Graph::Decoder
            | Graph::GenaiDecoder
            | Graph::PrefillDecoder
            | Graph::SpeculativeDecoder => {
                let (comparison, top1) = graphs::decoder(session, model, sample)?;
                (comparison, Some(top1))
            }
            // It is not among the manifest's graphs.
            Graph::ImageProcessor => continue,
        };
        let activations = weights.as_ref().map(ExportedWeights::activations);
        checks.push(GraphCheck {
            top1,
            activations: activations.unwrap_or(Activations::Float),
            ..GraphCheck::of(files.graph, files.precision, &comparison)
        });
    }
    let (graph, precision) = (Graph::ImageProcessor, Precision::Fp32);
    let path = folder.join(format!("onnx/{graph}.onnx"));
    let dims = checkpoint.config().dims();
    let spec = contract.resolve(graph, &dims, &manifest.recipe, precision.state_dtype());
    if let Some(spec) = spec.filter(|_| path.exists()) {
        if on_graph(graph).is_break() {
            return Err(VerifyError::Interrupted);
        }
        let settings = ImageSettings::from_folder(checkpoint.folder())?;
        let comparison = image_processor::check(&mut GraphSession::open(spec, &path)?, settings)?;
        checks.push(GraphCheck::of(graph, precision, &comparison));
    }
    Ok(Verification { graphs: checks })
}
