//! The decoder: a prompt or one token at a time.

use lfm2vl_graphs::{GraphSpec, IN_PLACE};
use ndarray::{Array0, Array2, Array3, ArrayView3, Axis, Ix3, concatenate};
use ort::{
    session::SessionOutputs,
    value::{DynValue, Value},
};

use super::{
    Checkpoint, DecoderState, GraphSession,
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
    /// Logits [vocab] of the last position.
    pub(crate) logits: Vec<f32>,
    /// Hidden states [tokens, hidden] after the last norm, where the graph gives them.
    pub(crate) last_hidden_state: Option<Array2<f32>>,
}

impl Decoder {
    /// The state before any token.
    pub(crate) fn new_state(&self) -> Result<DecoderState, Error> {
        self.session.with(|session| {
            let in_place = session.metadata()?.custom(IN_PLACE).as_deref() == Some("true");
            DecoderState::new(session, &self.spec, in_place)
        })
    }

    /// Remembers a state.
    pub(crate) fn checkpoint(&self, state: &DecoderState) -> Result<Checkpoint, Error> {
        self.session.with(|_| state.checkpoint())
    }

    /// Goes back to an earlier state.
    pub(crate) fn rewind(
        &self,
        state: &mut DecoderState,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        self.session.with(|_| state.rewind(checkpoint))
    }

    /// Runs over embeddings [1, tokens, hidden] that follow `state`, and moves the state on.
    ///
    /// Long prompts go through in pieces, so that memory does not grow with them.
    pub(crate) fn run(
        &self,
        embeddings: Array3<f32>,
        state: &mut DecoderState,
    ) -> Result<Step, Error> {
        if embeddings.len_of(Axis(1)) <= MAX_TOKENS {
            return self.run_piece(embeddings, state);
        }
        let (mut logits, mut hidden_states) = (Vec::new(), Vec::new());
        for piece in embeddings.axis_chunks_iter(Axis(1), MAX_TOKENS) {
            let step = self.run_piece(piece.to_owned(), state)?;
            logits = step.logits;
            hidden_states.extend(step.last_hidden_state);
        }
        let views: Vec<_> = hidden_states.iter().map(|hidden| hidden.view()).collect();
        Ok(Step { logits, last_hidden_state: concatenate(Axis(0), &views).ok() })
    }

    fn run_piece(&self, embeddings: Array3<f32>, state: &mut DecoderState) -> Result<Step, Error> {
        let tokens = embeddings.len_of(Axis(1));
        let (past, total) = (state.tokens(), state.tokens() + tokens);
        let mask = Array2::<i64>::ones((1, total));
        self.session.with(|session| {
            let mut inputs: Vec<(&str, DynValue)> = vec![
                ("inputs_embeds", Value::from_array(embeddings)?.into_dyn()),
                ("attention_mask", Value::from_array(mask)?.into_dyn()),
            ];
            if self.session.has_input(POSITION_IDS) {
                let positions = Array2::from_shape_fn((1, tokens), |(_, i)| (past + i) as i64);
                inputs.push((POSITION_IDS, Value::from_array(positions)?.into_dyn()));
            }
            if self.session.has_input(NUM_LOGITS) {
                let one = Array0::from_elem((), 1_i64);
                inputs.push((NUM_LOGITS, Value::from_array(one)?.into_dyn()));
            }
            let gives_hidden = self.session.has_output(LAST_HIDDEN_STATE);
            let outputs = [LOGITS, LAST_HIDDEN_STATE];
            let outputs = if gives_hidden { &outputs[..] } else { &outputs[..1] };
            state.run(session, tokens, inputs, outputs, |outputs| {
                let logits = batch_of(outputs, LOGITS)?;
                let logits = logits.index_axis(Axis(0), 0);
                let last = logits.rows().into_iter().next_back();
                let last = last.ok_or_else(|| ort::Error::new("logits have no position"))?;
                let hidden = gives_hidden.then(|| batch_of(outputs, LAST_HIDDEN_STATE));
                let hidden = hidden.transpose()?.map(|h| h.index_axis(Axis(0), 0).to_owned());
                Ok(Step { logits: last.to_vec(), last_hidden_state: hidden })
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
