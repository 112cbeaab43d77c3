//! `--verify`: every exported graph, run in ONNX Runtime, against the reference implementation
//! in [`reference`], on the same inputs.

mod metrics;
pub mod reference;
mod sample;
mod session;

use std::{fmt, path::Path};

use lfm2vl_graphs::{Contract, Graph, GraphSpec, LibraryError, Manifest, Precision, YamlError};
use ndarray::{Array2, Axis, concatenate};

use crate::checkpoint::{Checkpoint, CheckpointError};
use metrics::Comparison;
use reference::{ReferenceModel, ReferenceState};
use sample::Sample;
use session::{Tensor, TestSession};

/// Cached decode steps after the prompt.
const DECODE_STEPS: usize = 6;

/// How far a float32 graph may be from the reference: largest absolute difference over the
/// reference's largest magnitude, where that exceeds 1.
const MAX_ERROR: f32 = 1e-3;
/// The least cosine similarity.
const MIN_COSINE: f64 = 0.9999;

/// Why a graph could not be verified, or did not pass.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// ONNX Runtime is not available.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A weight could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The contract is not valid.
    #[error(transparent)]
    Contract(#[from] YamlError),
    /// ONNX Runtime refused a graph, or failed to run it.
    #[error(
        "ONNX Runtime cannot run {graph} ({message}); report this with the model's config.json"
    )]
    Run {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's message.
        message: String,
    },
    /// A graph is too far from the reference.
    #[error(
        "{graph} in {precision} differs from the reference (error {error:.2e}, cosine {cosine:.6}), so nothing was written; report this with the model's config.json"
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
            // Written so that NaN fails.
            let close = c.scaled_error <= MAX_ERROR && c.cosine >= MIN_COSINE;
            !close || c.top1.is_some_and(|(agree, all)| agree < all)
        };
        self.graphs.iter().find(fails).map_or(Ok(()), |c| {
            Err(VerifyError::Differs {
                graph: c.graph,
                precision: c.precision,
                error: c.scaled_error,
                cosine: c.cosine,
            })
        })
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22} {:<6} {:>9} {:>10} {:>7}",
            "graph", "", "max error", "cosine", "top-1"
        )?;
        for c in &self.graphs {
            let top1 = c.top1.map_or(String::new(), |(agree, all)| format!("{agree}/{all}"));
            writeln!(
                f,
                "{:<22} {:<6} {:>9.1e} {:>10.7} {:>7}",
                c.graph.name(),
                c.precision.to_string(),
                c.max_abs_error,
                c.cosine,
                top1
            )?;
        }
        writeln!(f, "bounds: scaled error {MAX_ERROR:.0e}, cosine {MIN_COSINE}, top-1 all")
    }
}

/// Runs every graph of the exported `folder` and compares it with the reference: a ragged batch
/// of views for the vision graphs, a prompt with image features and several cached steps for the
/// decoder.
///
/// # Errors
/// [`VerifyError`] when a graph cannot be run. Whether it is close enough is for
/// [`Verification::check`] to say.
pub fn verify(
    checkpoint: &Checkpoint,
    folder: &Path,
    manifest: &Manifest,
) -> Result<Verification, VerifyError> {
    let model = ReferenceModel::new(checkpoint);
    let sample = Sample::new(checkpoint.config());
    let contract = Contract::builtin(&manifest.contract)?;
    let mut graphs = Vec::new();
    for files in &manifest.graphs {
        let Some(spec) =
            contract.resolve(files.graph, &checkpoint.config().dims(), &manifest.recipe)
        else {
            continue;
        };
        let path = format!("onnx/{}{}.onnx", files.graph, files.precision.suffix());
        let mut session = TestSession::open(spec, &folder.join(path))?;
        let (comparison, top1) = match files.graph {
            Graph::EmbedTokens => (embedding(&mut session, &model, &sample)?, None),
            Graph::VisionEncoder => (vision(&mut session, &model, &sample)?, None),
            Graph::VisionTower => (tower(&mut session, &model, &sample)?, None),
            Graph::Projector => (projector(&mut session, &model, &sample)?, None),
            Graph::Decoder => {
                let (comparison, top1) = decoder(&mut session, &model, &sample)?;
                (comparison, Some(top1))
            }
        };
        graphs.push(GraphCheck {
            graph: files.graph,
            precision: files.precision,
            max_abs_error: comparison.max_abs_error(),
            scaled_error: comparison.scaled_error(),
            cosine: comparison.cosine(),
            top1,
        });
    }
    Ok(Verification { graphs })
}

fn named(inputs: impl IntoIterator<Item = (&'static str, Tensor)>) -> Vec<(String, Tensor)> {
    inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// A row of token ids as the graph takes them, int64 [1, sequence].
fn token_row(ids: &[u32]) -> Array2<i64> {
    Array2::from_shape_fn((1, ids.len()), |(_, i)| i64::from(ids[i]))
}

fn embedding(
    session: &mut TestSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let ids = [&sample.before[..], &sample.after].concat();
    let outputs = session.run(named([("input_ids", Tensor::ints(&token_row(&ids).view()))]))?;
    let mut comparison = Comparison::default();
    comparison.add(&outputs["inputs_embeds"], &model.embed(&ids)?);
    Ok(comparison)
}

fn vision(
    session: &mut TestSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let (pixels, mask, shapes) = sample.padded();
    let outputs = session.run(named([
        ("pixel_values", Tensor::floats(&pixels.view())),
        ("pixel_attention_mask", Tensor::ints(&mask.view())),
        ("spatial_shapes", Tensor::ints(&shapes.view())),
    ]))?;
    let mut comparison = Comparison::default();
    comparison.add(&outputs["image_features"], &reference_features(model, sample)?);
    Ok(comparison)
}

fn tower(
    session: &mut TestSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let (pixels, mask, shapes) = sample.padded();
    let outputs = session.run(named([
        ("pixel_values", Tensor::floats(&pixels.view())),
        ("pixel_attention_mask", Tensor::ints(&mask.view())),
        ("spatial_shapes", Tensor::ints(&shapes.view())),
    ]))?;
    let mut comparison = Comparison::default();
    for (hidden, view) in outputs["last_hidden_state"].outer_iter().zip(&sample.views) {
        let valid = hidden.slice_axis(Axis(0), (..view.rows * view.cols).into());
        let expected = model.vision_tower(view.patches.view(), view.rows, view.cols)?;
        comparison.add(&valid, &expected);
    }
    Ok(comparison)
}

fn projector(
    session: &mut TestSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let (_, mask, shapes) = sample.padded();
    let mut hidden =
        ndarray::Array3::zeros((mask.nrows(), mask.ncols(), model.config().vision.hidden_size));
    for (mut padded, view) in hidden.outer_iter_mut().zip(&sample.views) {
        let states = model.vision_tower(view.patches.view(), view.rows, view.cols)?;
        padded.slice_axis_mut(Axis(0), (..states.nrows()).into()).assign(&states);
    }
    let outputs = session.run(named([
        ("last_hidden_state", Tensor::floats(&hidden.view())),
        ("spatial_shapes", Tensor::ints(&shapes.view())),
    ]))?;
    let mut comparison = Comparison::default();
    comparison.add(&outputs["image_features"], &reference_features(model, sample)?);
    Ok(comparison)
}

/// The reference's image features of all views in order.
fn reference_features(
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Array2<f32>, VerifyError> {
    let features = sample
        .views
        .iter()
        .map(|view| model.image_features(view.patches.view(), view.rows, view.cols))
        .collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = features.iter().map(|f| f.view()).collect();
    // All features have the width of the language model, so they join.
    Ok(concatenate(Axis(0), &views).unwrap_or_default())
}

/// Prefill of text, image features and text, then cached steps along the reference's greedy
/// tokens; compares logits and every state.
fn decoder(
    session: &mut TestSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<(Comparison, (usize, usize)), VerifyError> {
    let before = model.embed(&sample.before)?;
    let features = reference_features(model, sample)?;
    let after = model.embed(&sample.after)?;
    let prompt = concatenate(Axis(0), &[before.view(), features.view(), after.view()]);
    let mut embeds = prompt.unwrap_or_default();

    let mut reference_state = ReferenceState::new(model.config());
    let mut state = empty_state(session.spec());
    let (mut comparison, mut agreeing, mut past) = (Comparison::default(), 0, 0);
    for _ in 0..=DECODE_STEPS {
        let sequence = embeds.nrows();
        let mask = Array2::<i64>::ones((1, past + sequence));
        let mut inputs = named([
            ("inputs_embeds", Tensor::floats(&embeds.view().insert_axis(Axis(0)))),
            ("attention_mask", Tensor::ints(&mask.view())),
        ]);
        inputs.append(&mut state);
        let mut outputs = session.run(inputs)?;

        let expected = model.forward(embeds.view(), &mut reference_state)?;
        let logits = outputs.remove("logits").unwrap_or_default();
        let positions = logits.shape()[1];
        let expected = expected.slice_axis(Axis(0), (sequence - positions..).into());
        comparison.add(&logits, expected);
        let last = expected.index_axis(Axis(0), positions - 1).to_vec();
        let ours = logits.index_axis(Axis(1), positions - 1).iter().copied().collect::<Vec<_>>();
        let token = metrics::argmax(&last);
        agreeing += usize::from(metrics::argmax(&ours) == token);

        for (layer, conv) in reference_state.conv_states() {
            comparison.add(&outputs[&format!("present_conv.{layer}")], conv);
        }
        for (layer, keys, values) in reference_state.keys_and_values() {
            comparison.add(&outputs[&format!("present.{layer}.key")], keys);
            comparison.add(&outputs[&format!("present.{layer}.value")], values);
        }
        state = outputs
            .into_iter()
            .filter_map(|(name, array)| {
                let past = match name.split_once('.')? {
                    ("present_conv", layer) => format!("past_conv.{layer}"),
                    ("present", rest) => format!("past_key_values.{rest}"),
                    _ => return None,
                };
                Some((past, Tensor::Floats(array)))
            })
            .collect();
        past += sequence;
        embeds = model.embed(&[token as u32])?;
    }
    Ok((comparison, (agreeing, DECODE_STEPS + 1)))
}

/// Zero conv states, and keys and values of length 0.
fn empty_state(spec: &GraphSpec) -> Vec<(String, Tensor)> {
    spec.inputs
        .iter()
        .filter(|tensor| tensor.name.starts_with("past_"))
        .map(|tensor| {
            let shape: Vec<usize> = tensor
                .shape
                .iter()
                .map(|dim| match dim {
                    lfm2vl_graphs::Dim::Fixed(size) => *size,
                    lfm2vl_graphs::Dim::Free(name) => usize::from(name == "batch"),
                })
                .collect();
            (tensor.name.clone(), Tensor::Floats(ndarray::ArrayD::zeros(shape)))
        })
        .collect()
}
