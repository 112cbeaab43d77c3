//! A graph of ours, opened in ONNX Runtime with its inputs and outputs at hand.

use std::{collections::HashMap, path::Path};

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, Graph, GraphSpec};
use lfm2vl_onnxruntime::{LibraryError, environment, with_cpu};
use ndarray::{Array0, Array2, ArrayD, ArrayView, ArrayView2, Axis, Dimension, arr0, arr1, s};
use ort::{
    session::{Session, SessionInputValue},
    value::Value,
};

/// Why a graph cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// ONNX Runtime is not available.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The buffers of keys and values are too short.
    #[error(
        "the decoder has place for {places} tokens and verifying it takes {wanted}; give more 'past_sequence' in the recipe's sizes, or leave --verify out"
    )]
    Place {
        /// Tokens that the buffers have place for.
        places: usize,
        /// Tokens, padding included, that were run.
        wanted: usize,
    },
    /// ONNX Runtime refused the graph, or failed to run it.
    #[error(
        "ONNX Runtime cannot run {graph} ({message}); report this with the model's config.json"
    )]
    Run {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's message.
        message: String,
    },
}

/// Of how many of the last positions a decoder gives logits and conv states, int64 scalar.
const NUM_LOGITS: &str = "num_logits_to_keep";
const INPUT_IDS: &str = "input_ids";
const SEQLENS_K: &str = "seqlens_k";
const TOTAL_SEQUENCE_LENGTH: &str = "total_sequence_length";

/// An input of a graph.
#[derive(Clone)]
pub(crate) enum Tensor {
    Floats(ArrayD<f32>),
    Ints(ArrayD<i64>),
    Int32(ArrayD<i32>),
    Bytes(ArrayD<u8>),
}

impl Tensor {
    /// A copy of a float array.
    pub(crate) fn floats<D: Dimension>(array: &ArrayView<'_, f32, D>) -> Self {
        Tensor::Floats(array.to_owned().into_dyn())
    }

    /// A copy of an integer array.
    pub(crate) fn ints<D: Dimension>(array: &ArrayView<'_, i64, D>) -> Self {
        Tensor::Ints(array.to_owned().into_dyn())
    }
}

/// A session for one graph.
pub(crate) struct GraphSession {
    spec: GraphSpec,
    session: Session,
}

impl GraphSession {
    pub(crate) fn open(spec: GraphSpec, path: &Path) -> Result<Self, SessionError> {
        let environment = environment()?;
        let session = Session::builder(environment)
            .and_then(|builder| with_cpu(environment, builder))
            .and_then(|mut builder| builder.commit_from_file(path))
            .map_err(run_error(spec.graph))?;
        Ok(GraphSession { spec, session })
    }

    fn has_input(&self, name: &str) -> bool {
        self.spec.inputs.iter().any(|tensor| tensor.name == name)
    }

    /// The size of one axis of an input, where the model or the contract fixes it.
    pub(crate) fn fixed_size(&self, input: &str, axis: usize) -> Option<usize> {
        let tensor = self.spec.inputs.iter().find(|tensor| tensor.name == input)?;
        match tensor.shape.get(axis) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        }
    }

    /// Zero conv states, and keys and values of length 0.
    pub(crate) fn empty_state(&self) -> Vec<(String, Tensor)> {
        let states = self.spec.inputs.iter().filter(|tensor| tensor.name.starts_with("past_"));
        states
            .map(|tensor| {
                let size = |dim: &Dim| match dim {
                    Dim::Fixed(size) => *size,
                    Dim::Free(name) => usize::from(name == "batch_size"),
                };
                let shape: Vec<usize> = tensor.shape.iter().map(size).collect();
                (tensor.name.clone(), Tensor::Floats(ArrayD::zeros(shape)))
            })
            .collect()
    }

    /// Runs the graph; all outputs of the contract that are floats by name.
    pub(crate) fn run(
        &mut self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<HashMap<String, ArrayD<f32>>, SessionError> {
        let run_error = run_error(self.spec.graph);
        let inputs = inputs
            .into_iter()
            .map(|(name, tensor)| {
                let is_half =
                    self.spec.inputs.iter().any(|t| t.name == name && t.dtype == Dtype::Float16);
                let value: SessionInputValue<'static> = match tensor {
                    Tensor::Floats(array) if is_half => {
                        Value::from_array(array.mapv(f16::from_f32)).map_err(&run_error)?.into()
                    }
                    Tensor::Floats(array) => Value::from_array(array).map_err(&run_error)?.into(),
                    Tensor::Ints(array) => Value::from_array(array).map_err(&run_error)?.into(),
                    Tensor::Int32(array) => Value::from_array(array).map_err(&run_error)?.into(),
                    Tensor::Bytes(array) => Value::from_array(array).map_err(&run_error)?.into(),
                };
                Ok((name, value))
            })
            .collect::<Result<Vec<_>, SessionError>>()?;
        let outputs = self.session.run(inputs).map_err(&run_error)?;
        let is_float = |dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16);
        let floats = self.spec.outputs.iter().filter(|tensor| is_float(tensor.dtype));
        floats
            .map(|tensor| {
                let output = &outputs[tensor.name.as_str()];
                let array = match tensor.dtype {
                    Dtype::Float16 => {
                        let halves = output.try_extract_array::<f16>().map_err(&run_error)?;
                        halves.mapv(f16::to_f32)
                    }
                    _ => output.try_extract_array::<f32>().map_err(&run_error)?.to_owned(),
                };
                Ok((tensor.name.clone(), array))
            })
            .collect()
    }
}

fn run_error(graph: Graph) -> impl Fn(ort::Error) -> SessionError {
    move |error| SessionError::Run { graph, message: error.to_string() }
}

/// The input that a decoder takes an output of state as, in the next run.
fn past_of(output: &str) -> Option<String> {
    match output.split_once('.')? {
        ("present_conv", layer) => Some(format!("past_conv.{layer}")),
        ("present", rest) => Some(format!("past_key_values.{rest}")),
        _ => None,
    }
}

/// A decoder with its state: the prompt first, then some tokens at a time.
pub(crate) struct DecoderSession {
    session: GraphSession,
    state: Vec<(String, Tensor)>,
    tokens: usize,
}

impl DecoderSession {
    pub(crate) fn new(session: GraphSession) -> Self {
        let state = session.empty_state();
        DecoderSession { session, state, tokens: 0 }
    }

    /// Forgets all tokens.
    pub(crate) fn restart(&mut self) {
        self.state = self.session.empty_state();
        self.tokens = 0;
    }

    /// Runs over embeddings [tokens, hidden]; the outputs of the graph.
    pub(crate) fn run(
        &mut self,
        embeddings: ArrayView2<'_, f32>,
    ) -> Result<HashMap<String, ArrayD<f32>>, SessionError> {
        if let Some(sequence) = self.session.fixed_size("inputs_embeds", 1) {
            let pieces = embeddings.axis_chunks_iter(Axis(0), sequence);
            return pieces
                .map(|piece| self.run_padded(piece, sequence))
                .last()
                .unwrap_or_else(|| Ok(HashMap::new()));
        }
        self.tokens += embeddings.nrows();
        let floats = Tensor::floats(&embeddings.insert_axis(Axis(0)));
        let mut inputs = vec![("inputs_embeds".to_owned(), floats)];
        if self.session.has_input(INPUT_IDS) {
            // The embeddings count.
            let none = Array2::from_elem((1, embeddings.nrows()), -1);
            inputs.push((INPUT_IDS.to_owned(), Tensor::ints(&none.view())));
        }
        if self.session.has_input(SEQLENS_K) {
            let tokens = i32::try_from(self.tokens).unwrap_or(i32::MAX);
            inputs.push((SEQLENS_K.to_owned(), Tensor::Int32(arr1(&[tokens - 1]).into_dyn())));
            inputs.push((TOTAL_SEQUENCE_LENGTH.to_owned(), Tensor::Int32(arr0(tokens).into_dyn())));
        } else {
            let mask = Array2::<i64>::ones((1, self.tokens));
            inputs.push(("attention_mask".to_owned(), Tensor::ints(&mask.view())));
        }
        inputs.append(&mut self.state);
        if self.session.has_input(NUM_LOGITS) {
            let all = Array0::from_elem((), embeddings.nrows() as i64);
            inputs.push((NUM_LOGITS.to_owned(), Tensor::ints(&all.view())));
        }
        let mut outputs = self.session.run(inputs)?;
        for (name, array) in &mut outputs {
            let Some(past) = past_of(name) else { continue };
            for axis in [1, 2] {
                // Where conv states of all positions are given, that of the last one counts.
                let Some(size) = self.session.fixed_size(&past, axis) else { continue };
                let given = array.len_of(Axis(axis));
                array.slice_axis_inplace(Axis(axis), (given - size..).into());
            }
            self.state.push((past, Tensor::Floats(array.clone())));
        }
        Ok(outputs)
    }

    /// Runs over at most `sequence` embeddings where that is the number of the graph's tokens, and
    /// keys and values lie in buffers of a fixed length. Of these the outputs have what is valid.
    fn run_padded(
        &mut self,
        embeddings: ArrayView2<'_, f32>,
        sequence: usize,
    ) -> Result<HashMap<String, ArrayD<f32>>, SessionError> {
        let (cached, new) = (self.tokens, embeddings.nrows());
        let total = self.session.fixed_size("attention_mask", 1).unwrap_or_default();
        let places = total - sequence;
        if cached + sequence > places {
            return Err(SessionError::Place { places, wanted: cached + sequence });
        }
        let mut padded = Array2::zeros((sequence, embeddings.ncols()));
        padded.slice_mut(s![..new, ..]).assign(&embeddings);
        let mask = Array2::from_shape_fn((1, total), |(_, place)| {
            i64::from(place < cached || (places..places + new).contains(&place))
        });
        let mut inputs = vec![
            ("inputs_embeds".to_owned(), Tensor::floats(&padded.view().insert_axis(Axis(0)))),
            ("attention_mask".to_owned(), Tensor::ints(&mask.view())),
        ];
        let state = std::mem::take(&mut self.state);
        let copies = state.iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
        inputs.extend(copies);
        let mut buffers: HashMap<String, Tensor> = state.into_iter().collect();
        let mut outputs = self.session.run(inputs)?;
        self.tokens += new;
        for (name, array) in &mut outputs {
            let Some(past) = past_of(name) else { continue };
            let Some(Tensor::Floats(mut buffer)) = buffers.remove(&past) else { continue };
            if buffer.shape() == array.shape() {
                buffer.assign(array);
            } else {
                let rows = array.slice_axis(Axis(2), (..new).into());
                buffer.slice_axis_mut(Axis(2), (cached..cached + new).into()).assign(&rows);
            }
            if name.starts_with("present.") {
                *array = buffer.slice_axis(Axis(2), (..self.tokens).into()).to_owned();
            }
            self.state.push((past, Tensor::Floats(buffer)));
        }
        Ok(outputs)
    }

    /// Runs over embeddings [tokens, hidden]; logits [vocab] of the last one.
    pub(crate) fn step(
        &mut self,
        embeddings: ArrayView2<'_, f32>,
    ) -> Result<Vec<f32>, SessionError> {
        let logits = self.run(embeddings)?.remove("logits").unwrap_or_default();
        let last = logits.len_of(Axis(1)).saturating_sub(1);
        Ok(logits.index_axis(Axis(1), last).iter().copied().collect())
    }
}
