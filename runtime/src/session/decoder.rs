//! The decoder: a prompt or one token at a time.

use std::borrow::Cow;

use lfm2vl_graphs::GraphSpec;
use ndarray::{Array0, Array2, Array3, Axis, Ix3};
use ort::{
    session::SessionInputValue,
    value::{DynValue, Value},
};

use super::{
    Checkpoint, DecoderState, GraphSession,
    check::{NUM_LOGITS, POSITION_IDS},
};
use crate::Error;

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
        self.session.with(|_| DecoderState::new(&self.spec))
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
    pub(crate) fn run(
        &self,
        embeddings: Array3<f32>,
        state: &mut DecoderState,
    ) -> Result<Step, Error> {
        let tokens = embeddings.len_of(Axis(1));
        let (past, total) = (state.tokens(), state.tokens() + tokens);
        let mask = Array2::<i64>::ones((1, total));
        self.session.with(|session| {
            let embeddings: DynValue = Value::from_array(embeddings)?.into_dyn();
            let mask: DynValue = Value::from_array(mask)?.into_dyn();
            let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![
                ("inputs_embeds".into(), embeddings.into()),
                ("attention_mask".into(), mask.into()),
            ];
            if self.session.has_input(POSITION_IDS) {
                let positions = Array2::from_shape_fn((1, tokens), |(_, i)| (past + i) as i64);
                inputs.push((POSITION_IDS.into(), Value::from_array(positions)?.into_dyn().into()));
            }
            if self.session.has_input(NUM_LOGITS) {
                let one = Value::from_array(Array0::from_elem((), 1_i64))?;
                inputs.push((NUM_LOGITS.into(), one.into_dyn().into()));
            }
            inputs.extend(state.inputs().map(|(name, value)| (name.into(), value.into())));
            let mut outputs = session.run(inputs)?;

            let logits = outputs["logits"].try_extract_array::<f32>()?;
            let rank_error = |_| ort::Error::new("logits are not [batch, positions, vocab]");
            let logits = logits.into_dimensionality::<Ix3>().map_err(rank_error)?;
            let last = logits.len_of(Axis(1)).checked_sub(1);
            let last = last.ok_or_else(|| ort::Error::new("logits have no position"))?;
            let logits = logits.index_axis(Axis(1), last).iter().copied().collect();

            let last_hidden_state = match outputs.get("last_hidden_state") {
                Some(hidden) => {
                    let hidden = hidden.try_extract_array::<f32>()?;
                    let hidden = hidden.into_dimensionality::<Ix3>().map_err(rank_error)?;
                    Some(hidden.index_axis(Axis(0), 0).to_owned())
                }
                None => None,
            };
            state.update(&mut outputs, tokens)?;
            Ok(Step { logits, last_hidden_state })
        })
    }
}
