//! The decoder: a prompt or some tokens at a time.

use lfm2vl_graphs::{Graph, GraphSpec, IN_PLACE};
use ndarray::{Array0, Array2, Array3, ArrayView3, Axis, Ix3, concatenate, s};
use ort::{
    session::SessionOutputs,
    value::{DynValue, Value},
};

use super::{
    DecoderState, GraphSession,
    check::{NUM_LOGITS, POSITION_IDS},
};
use crate::Error;

const LOGITS: &str = "logits";
const LAST_HIDDEN_STATE: &str = "last_hidden_state";

/// Tokens that go through the decoder in one run at most. More make it no faster.
const MAX_TOKENS: usize = 256;

/// The decoder graph.
pub(crate) struct Decoder {
    pub(crate) session: GraphSession,
    pub(crate) spec: GraphSpec,
}

/// What a run of the decoder gives.
pub(crate) struct Step {
    /// Logits [vocab] of the positions that were kept, row after row.
    pub(crate) logits: Vec<Vec<f32>>,
    /// Hidden states [tokens, hidden] of the first row after the last norm, where the graph gives
    /// them.
    pub(crate) last_hidden_state: Option<Array2<f32>>,
}

impl Decoder {
    /// The state before any token.
    pub(crate) fn new_state(&self) -> Result<DecoderState, Error> {
        self.session.with(|session| {
            let in_place = session.metadata()?.custom(IN_PLACE).as_deref() == Some("true");
            DecoderState::new(&self.spec, in_place)
        })
    }

    /// Whether tokens can be dropped after a run.
    pub(crate) fn is_speculative(&self) -> bool {
        self.session.graph() == Graph::SpeculativeDecoder
    }

    /// The result of a change of a state, with its error told as this graph's.
    pub(crate) fn checked<T>(&self, result: ort::Result<T>) -> Result<T, Error> {
        result.map_err(|error| self.session.run_error(&error))
    }

    /// Runs over embeddings [rows, tokens, hidden] that follow `state`, and moves the state on. Gives
    /// the logits of the last position.
    ///
    /// Long prompts go through in pieces, so that memory does not grow with them.
    pub(crate) fn run(
        &self,
        embeddings: Array3<f32>,
        state: &mut DecoderState,
    ) -> Result<Step, Error> {
        if embeddings.len_of(Axis(1)) <= MAX_TOKENS {
            return self.run_keeping(embeddings, state, 1);
        }
        let (mut logits, mut hidden_states) = (Vec::new(), Vec::new());
        for piece in embeddings.axis_chunks_iter(Axis(1), MAX_TOKENS) {
            let step = self.run_keeping(piece.to_owned(), state, 1)?;
            logits = step.logits;
            hidden_states.extend(step.last_hidden_state);
        }
        let views: Vec<_> = hidden_states.iter().map(|hidden| hidden.view()).collect();
        Ok(Step { logits, last_hidden_state: concatenate(Axis(0), &views).ok() })
    }

    /// As [`run`](Self::run), and gives the logits of the last `keep` positions; all but one of
    /// them can be dropped from the state. More than one need a speculative decoder.
    pub(crate) fn run_keeping(
        &self,
        embeddings: Array3<f32>,
        state: &mut DecoderState,
        keep: usize,
    ) -> Result<Step, Error> {
        let tokens = embeddings.len_of(Axis(1));
        let rows = state.rows();
        let positions =
            Array2::from_shape_fn((rows.len(), tokens), |(row, i)| (rows[row] + i) as i64);
        let mut mask = Array2::<i64>::zeros((rows.len(), state.tokens() + tokens));
        for (mut mask, row) in mask.rows_mut().into_iter().zip(rows) {
            mask.slice_mut(s![..row + tokens]).fill(1);
        }
        self.session.with(|session| {
            let mut inputs: Vec<(&str, DynValue)> = vec![
                ("inputs_embeds", Value::from_array(embeddings)?.into_dyn()),
                ("attention_mask", Value::from_array(mask)?.into_dyn()),
            ];
            if self.session.has_input(POSITION_IDS) {
                inputs.push((POSITION_IDS, Value::from_array(positions)?.into_dyn()));
            }
            if self.session.has_input(NUM_LOGITS) {
                let count = Array0::from_elem((), keep as i64);
                inputs.push((NUM_LOGITS, Value::from_array(count)?.into_dyn()));
            }
            let gives_hidden = self.session.has_output(LAST_HIDDEN_STATE);
            let outputs = [LOGITS, LAST_HIDDEN_STATE];
            let outputs = if gives_hidden { &outputs[..] } else { &outputs[..1] };
            state.run(session, tokens, inputs, outputs, |outputs| {
                let logits = batch_of(outputs, LOGITS)?;
                let first = logits.len_of(Axis(1)).checked_sub(keep);
                let first =
                    first.ok_or_else(|| ort::Error::new("logits have too few positions"))?;
                let kept = logits.slice(s![.., first.., ..]);
                let logits = kept.rows().into_iter().map(|row| row.to_vec()).collect();
                let hidden = gives_hidden.then(|| batch_of(outputs, LAST_HIDDEN_STATE));
                let hidden = hidden.transpose()?.map(|h| h.index_axis(Axis(0), 0).to_owned());
                Ok(Step { logits, last_hidden_state: hidden })
            })
        })
    }
}

/// An output [batch, positions, size].
fn batch_of<'o>(outputs: &'o SessionOutputs<'_>, name: &str) -> ort::Result<ArrayView3<'o, f32>> {
    let value = outputs.get(name).ok_or_else(|| ort::Error::new(format!("no output {name}")))?;
    let array = value.try_extract_array::<f32>()?.into_dimensionality::<Ix3>();
    array.map_err(|_| ort::Error::new(format!("{name} is not [batch, positions, size]")))
}
