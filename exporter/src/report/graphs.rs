//! What each graph loses, on the inputs that it has when all others are float32.

use std::{collections::HashMap, ops::ControlFlow, path::Path};

use lfm2vl_graphs::{Contract, Graph, Manifest, Precision};
use ndarray::{Array2, ArrayD, Axis, Ix2, concatenate, s};

use super::{GraphQuality, NextToken};
use crate::{
    Draft,
    calibrate::{Sample, View},
    checkpoint::Checkpoint,
    error::ExportError,
    metrics::{Comparison, argmax, divergence},
    session::{DecoderSession, GraphSession, Tensor},
};

/// Positions that are compared for a sample without an answer.
const STEPS: usize = 16;

/// What is compared: a matrix for each view or prompt.
type Rows = Vec<Array2<f32>>;

pub(super) fn measure(
    checkpoint: &Checkpoint,
    folder: &Path,
    manifest: &Manifest,
    float: &Draft,
    samples: &[Sample],
    on_step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<GraphQuality>, ExportError> {
    let float = Graphs { checkpoint, folder: float.path(), manifest: &float.report().manifest };
    let exported = Graphs { checkpoint, folder, manifest };
    let reference = Reference::new(&float, samples)?;
    let mut found = Vec::new();
    for files in manifest.graphs.iter().filter(|f| f.precision != Precision::Fp32) {
        if files.graph != files.graph.weights() {
            continue;
        }
        let session = exported.open(files.graph, files.precision)?;
        let (rows, expected) = match files.graph {
            Graph::EmbedTokens => (embeddings(session, samples)?, &reference.embeddings),
            Graph::VisionEncoder => {
                (vision(session, samples, "image_features")?, &reference.features)
            }
            Graph::VisionTower => {
                (vision(session, samples, "last_hidden_state")?, &reference.hidden)
            }
            Graph::Projector => {
                (projector(session, samples, &reference.hidden)?, &reference.features)
            }
            _ => (decoder(session, &reference.prompts)?, &reference.logits),
        };
        let cosines: Vec<f64> = rows
            .iter()
            .flat_map(|matrix| matrix.rows())
            .zip(expected.iter().flat_map(|matrix| matrix.rows()))
            .map(|(ours, float)| {
                let mut comparison = Comparison::default();
                comparison.add(ours, float);
                comparison.cosine()
            })
            .collect();
        let bytes = |manifest: &Manifest, precision| -> u64 {
            let graphs = manifest.graphs.iter();
            let same = graphs.filter(|g| g.graph == files.graph && g.precision == precision);
            same.flat_map(|g| &g.files).map(|file| file.bytes).sum()
        };
        found.push(GraphQuality {
            graph: files.graph,
            precision: files.precision,
            bytes: bytes(manifest, files.precision),
            float_bytes: bytes(float.manifest, Precision::Fp32),
            cosine: (!cosines.is_empty())
                .then(|| cosines.iter().sum::<f64>() / cosines.len() as f64),
            least_cosine: cosines.iter().copied().reduce(f64::min),
            next_token: (files.graph == Graph::Decoder).then(|| next_token(&rows, expected)),
        });
        if on_step().is_break() {
            return Err(ExportError::Interrupted);
        }
    }
    Ok(found)
}

/// Where graphs are opened from.
struct Graphs<'a> {
    checkpoint: &'a Checkpoint,
    folder: &'a Path,
    manifest: &'a Manifest,
}

impl Graphs<'_> {
    fn open(&self, graph: Graph, precision: Precision) -> Result<GraphSession, ExportError> {
        let contract = Contract::builtin(&self.manifest.contract)?;
        let (dims, recipe) = (self.checkpoint.config().dims(), &self.manifest.recipe);
        let spec = contract.resolve(graph, &dims, recipe, precision.state_dtype());
        let spec = spec
            .ok_or_else(|| ExportError::NotInContract { contract: contract.name.clone(), graph })?;
        let path = self.folder.join(format!("onnx/{graph}{}.onnx", precision.suffix()));
        Ok(GraphSession::open(spec, &path)?)
    }

    fn has(&self, graph: Graph) -> bool {
        self.manifest.graphs.iter().any(|files| files.graph == graph)
    }
}

/// A prompt as the decoder is given it, and the tokens that follow.
struct Prompt {
    embeddings: Array2<f32>,
    /// Embeddings of the answer's tokens but the last.
    answer: Array2<f32>,
}

/// What the float32 graphs give.
struct Reference {
    embeddings: Rows,
    hidden: Rows,
    features: Rows,
    prompts: Vec<Prompt>,
    logits: Rows,
}

impl Reference {
    fn new(graphs: &Graphs<'_>, samples: &[Sample]) -> Result<Self, ExportError> {
        let fp32 = Precision::Fp32;
        let embeddings = embeddings(graphs.open(Graph::EmbedTokens, fp32)?, samples)?;
        let (hidden, features) = if graphs.has(Graph::VisionEncoder) {
            (
                Vec::new(),
                vision(graphs.open(Graph::VisionEncoder, fp32)?, samples, "image_features")?,
            )
        } else {
            let hidden =
                vision(graphs.open(Graph::VisionTower, fp32)?, samples, "last_hidden_state")?;
            let session = graphs.open(Graph::Projector, fp32)?;
            let features = projector(session, samples, &hidden)?;
            (hidden, features)
        };
        let image_token = graphs.checkpoint.config().image_token_id;
        let mut views = features.iter();
        let prompts = samples
            .iter()
            .zip(&embeddings)
            .map(|(sample, embeddings)| {
                let mut embeddings = embeddings.clone();
                let features = views.by_ref().take(sample.views.len());
                sample.splice(&mut embeddings, features, image_token)?;
                let end = embeddings.nrows().saturating_sub(1).max(sample.prompt);
                Ok(Prompt {
                    answer: embeddings.slice(s![sample.prompt..end, ..]).to_owned(),
                    embeddings: embeddings.slice(s![..sample.prompt, ..]).to_owned(),
                })
            })
            .collect::<Result<Vec<Prompt>, ExportError>>()?;
        let prompts = continued(graphs, samples, prompts)?;
        let logits = decoder(graphs.open(Graph::Decoder, fp32)?, &prompts)?;
        Ok(Reference { embeddings, hidden, features, prompts, logits })
    }
}

/// Gives prompts without an answer the one that float32 gives.
fn continued(
    graphs: &Graphs<'_>,
    samples: &[Sample],
    mut prompts: Vec<Prompt>,
) -> Result<Vec<Prompt>, ExportError> {
    let mut session = DecoderSession::new(graphs.open(Graph::Decoder, Precision::Fp32)?);
    let mut embed = graphs.open(Graph::EmbedTokens, Precision::Fp32)?;
    for (sample, prompt) in samples.iter().zip(&mut prompts) {
        if sample.ids.len() > sample.prompt {
            continue;
        }
        session.restart();
        let mut answer = Vec::new();
        let mut next = prompt.embeddings.clone();
        for _ in 1..STEPS {
            let logits = session.step(next.view())?;
            next = embedded(&mut embed, &[argmax(&logits) as u32])?;
            answer.push(next.clone());
        }
        let rows: Vec<_> = answer.iter().map(|row| row.view()).collect();
        prompt.answer = concatenate(Axis(0), &rows).unwrap_or_default();
    }
    Ok(prompts)
}

fn embedded(session: &mut GraphSession, ids: &[u32]) -> Result<Array2<f32>, ExportError> {
    let row = Array2::from_shape_fn((1, ids.len()), |(_, i)| i64::from(ids[i]));
    let outputs = session.run(vec![("input_ids".into(), Tensor::ints(&row.view()))])?;
    Ok(matrix(outputs, "inputs_embeds"))
}

fn embeddings(mut session: GraphSession, samples: &[Sample]) -> Result<Rows, ExportError> {
    samples.iter().map(|sample| embedded(&mut session, &sample.ids)).collect()
}

fn views(samples: &[Sample]) -> impl Iterator<Item = &View> {
    samples.iter().flat_map(|sample| &sample.views)
}

fn shapes(view: &View) -> Tensor {
    Tensor::ints(&ndarray::arr2(&[[view.rows as i64, view.cols as i64]]).view())
}

/// An output [rows, size], or [1, rows, size], as a matrix.
fn matrix(mut outputs: HashMap<String, ArrayD<f32>>, name: &str) -> Array2<f32> {
    let output = outputs.remove(name).unwrap_or_default();
    match output.ndim() {
        3 => output.index_axis_move(Axis(0), 0).into_dimensionality::<Ix2>().unwrap_or_default(),
        _ => output.into_dimensionality::<Ix2>().unwrap_or_default(),
    }
}

/// The output `name` of a graph that is given patches: image features, or the hidden states of the
/// tower, of every view.
fn vision(mut session: GraphSession, samples: &[Sample], name: &str) -> Result<Rows, ExportError> {
    views(samples)
        .map(|view| {
            let mask = Array2::<i64>::ones((1, view.patches.nrows()));
            let patches = view.patches.view().insert_axis(Axis(0));
            let outputs = session.run(vec![
                ("pixel_values".into(), Tensor::floats(&patches)),
                ("pixel_attention_mask".into(), Tensor::ints(&mask.view())),
                ("spatial_shapes".into(), shapes(view)),
            ])?;
            Ok(matrix(outputs, name))
        })
        .collect()
}

fn projector(
    mut session: GraphSession,
    samples: &[Sample],
    hidden: &Rows,
) -> Result<Rows, ExportError> {
    views(samples)
        .zip(hidden)
        .map(|(view, hidden)| {
            let hidden = hidden.view().insert_axis(Axis(0));
            let outputs = session.run(vec![
                ("last_hidden_state".into(), Tensor::floats(&hidden)),
                ("spatial_shapes".into(), shapes(view)),
            ])?;
            Ok(matrix(outputs, "image_features"))
        })
        .collect()
}

/// Logits [positions, vocab] of the positions that predict each answer.
fn decoder(session: GraphSession, prompts: &[Prompt]) -> Result<Rows, ExportError> {
    let mut session = DecoderSession::new(session);
    prompts
        .iter()
        .map(|prompt| {
            session.restart();
            let steps = prompt.answer.axis_chunks_iter(Axis(0), 1);
            let mut logits = Vec::new();
            for embeddings in [prompt.embeddings.view()].into_iter().chain(steps) {
                logits.push(session.step(embeddings)?);
            }
            let width = logits.first().map_or(0, Vec::len);
            let shape = (logits.len(), width);
            Ok(Array2::from_shape_vec(shape, logits.concat()).unwrap_or_default())
        })
        .collect()
}

fn next_token(ours: &Rows, float: &Rows) -> NextToken {
    let (mut positions, mut sum, mut max, mut same) = (0, 0.0, 0.0_f64, 0);
    let rows = ours
        .iter()
        .flat_map(|matrix| matrix.rows())
        .zip(float.iter().flat_map(|matrix| matrix.rows()));
    for (ours, float) in rows {
        let (ours, float) = (ours.to_vec(), float.to_vec());
        let kl = divergence(&float, &ours);
        positions += 1;
        sum += kl;
        max = max.max(kl);
        same += usize::from(argmax(&ours) == argmax(&float));
    }
    let count = positions.max(1) as f64;
    NextToken { positions, mean_kl: sum / count, max_kl: max, same_first: same as f64 / count }
}
