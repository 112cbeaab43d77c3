//! The decoder: a prompt or some tokens at a time.

use lfm2vl_graphs::{Graph, GraphSpec, IN_PLACE};
use ndarray::{Array0, Array2, Array3, ArrayView3, Axis, Ix3, concatenate, s};
use ort::{
    session::SessionOutputs,
    value::{DynTensor, Tensor},
};

use super::{
    DecoderState, GraphSession, Logits,
    check::{NUM_LOGITS, POSITION_IDS},
    logits::{CANDIDATES, LOGITS},
    memory::{DeviceMemory, Place, on_host, reads_in_place},
    recorded::Recorder,
    state::{fixed_places, gives_rows},
};
use crate::{Error, Provider, TensorRt};

const EMBEDDINGS: &str = "inputs_embeds";
const LAST_HIDDEN_STATE: &str = "last_hidden_state";

/// Tokens that go through the decoder in one run at most. More make it no faster.
const MAX_TOKENS: usize = 256;

/// The decoder graph, and the one for prompts where sizes are fixed.
pub(crate) struct Decoder {
    session: GraphSession,
    prefill: Option<GraphSession>,
    spec: GraphSpec,
    /// Whether it writes keys and values into the buffers of the old ones.
    in_place: bool,
    /// Where its state lies; `None` is the host's memory.
    memory: Option<DeviceMemory>,
    /// For steps over one token, where the graph takes only these and writes in place.
    recorder: Option<Recorder>,
}

/// What a run of the decoder gives.
pub(crate) struct Step {
    /// Logits of the positions that were kept, row after row.
    pub(crate) logits: Vec<Logits>,
    /// Hidden states [tokens, hidden] of the first row after the last norm, where the graph gives
    /// them.
    pub(crate) last_hidden_state: Option<Array2<f32>>,
}

impl Decoder {
    /// A decoder of which `spec` are the inputs and outputs.
    pub(crate) fn new(
        session: GraphSession,
        prefill: Option<GraphSession>,
        spec: GraphSpec,
    ) -> Result<Self, Error> {
        // TensorRT does not say that inputs and outputs may share memory.
        let may_share = session.provider() != Provider::TensorRt(TensorRt::default()).name();
        // Where the graph gives rows, this program writes, where it can.
        let states = spec.outputs.iter().filter(|output| output.name.starts_with("present"));
        let state = states.map(|output| &output.name).next().filter(|_| !gives_rows(&spec));
        let (in_place, place) = session.with(|session| {
            let in_place = session.metadata()?.custom(IN_PLACE).as_deref() == Some("true");
            let place = state.map(|name| Place::of_output(session, name)).transpose()?;
            Ok((in_place && may_share, place.flatten()))
        })?;
        // A recording writes into what its session's allocator believes to be free.
        let allocating = prefill.as_ref().unwrap_or(&session);
        let memory = match place {
            Some(place) => allocating.with(|session| Ok(DeviceMemory::at(place, session)))?,
            None => None,
        };
        let reads_in_place = session.with(|session| reads_in_place(session, memory.as_ref()))?;
        let has_steps = in_place && reads_in_place && fixed_places(&spec).is_some();
        let has_steps = has_steps && session.fixed_size(EMBEDDINGS, 1) == Some(1);
        if session.records && !(has_steps && prefill.is_some()) {
            return Err(Error::NothingToRecord);
        }
        let recorder = has_steps.then(|| Recorder::new(memory.clone(), session.records));
        Ok(Decoder { session, prefill, spec, in_place, memory, recorder })
    }

    /// Every session.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &GraphSession> {
        [&self.session].into_iter().chain(&self.prefill)
    }

    /// Where its state lies.
    pub(crate) fn memory(&self) -> Option<&DeviceMemory> {
        self.memory.as_ref()
    }

    /// Most tokens of a state, where the graph has a limit.
    pub(crate) fn fixed_places(&self) -> Option<usize> {
        fixed_places(&self.spec)
    }

    /// The state before any token.
    pub(crate) fn new_state(&self) -> Result<DecoderState, Error> {
        self.checked(DecoderState::new(&self.spec, self.in_place, self.memory.clone()))
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
        embeddings: ArrayView3<'_, f32>,
        state: &mut DecoderState,
    ) -> Result<Step, Error> {
        let (mut logits, mut hidden_states) = (Vec::new(), Vec::new());
        let mut rest = embeddings;
        while rest.len_of(Axis(1)) > 0 {
            let (session, size) = self.session_for(rest.len_of(Axis(1)), state.tokens());
            let piece;
            (piece, rest) = rest.split_at(Axis(1), size.tokens);
            let mut padded = Array3::zeros((piece.dim().0, size.padded, piece.dim().2));
            padded.slice_mut(s![.., ..size.tokens, ..]).assign(&piece);
            let padded = self.checked(Tensor::from_array(padded))?.upcast();
            let step = match &self.recorder {
                Some(recorder) if size.padded == 1 => self.step(recorder, &padded, state)?,
                _ => self.run_session(session, padded, size, state, 1)?,
            };
            logits = step.logits;
            hidden_states.extend(step.last_hidden_state);
        }
        let views: Vec<_> = hidden_states.iter().map(|hidden| hidden.view()).collect();
        Ok(Step { logits, last_hidden_state: concatenate(Axis(0), &views).ok() })
    }

    /// As [`run`](Self::run), over as many tokens as one run takes. Gives the logits of the last `keep`
    /// positions; all but one of them can be dropped from the state. More than one need a
    /// speculative decoder.
    pub(crate) fn run_keeping(
        &self,
        embeddings: DynTensor,
        state: &mut DecoderState,
        keep: usize,
    ) -> Result<Step, Error> {
        let tokens = embeddings.shape().get(1).map_or(0, |&tokens| tokens.max(0) as usize);
        let takes = self.session.fixed_size(EMBEDDINGS, 1);
        if takes.is_some_and(|takes| takes != tokens) {
            let embeddings = self.checked(on_host(&embeddings))?;
            let view = self.checked(embeddings.try_extract_array::<f32>())?;
            let view = view.into_dimensionality::<Ix3>();
            let view =
                view.map_err(|_| self.session.contract_error("embeddings of another rank"))?;
            return self.run(view, state);
        }
        match &self.recorder {
            Some(recorder) => self.step(recorder, &embeddings, state),
            None => self.run_session(&self.session, embeddings, Size::of(tokens), state, keep),
        }
    }

    /// Runs over the embedding [1, 1, hidden] of one token, in buffers that stay where they are.
    fn step(
        &self,
        recorder: &Recorder,
        embedding: &DynTensor,
        state: &mut DecoderState,
    ) -> Result<Step, Error> {
        let mask = self.mask(state, Size::of(1));
        let gives_candidates = self.session.gives_candidates();
        let mut outputs = vec![LOGITS];
        outputs.extend(CANDIDATES.iter().filter(|_| gives_candidates));
        self.session.with(|session| {
            let mask = Tensor::from_array(mask)?.upcast();
            state.step(session, recorder, [embedding, &mask], &outputs, |outputs| {
                let logits = Logits::of_run(outputs, 1, gives_candidates)?;
                Ok(Step { logits, last_hidden_state: None })
            })
        })
    }

    /// Which tokens there are, for a run over `size` more.
    fn mask(&self, state: &DecoderState, Size { tokens, padded }: Size) -> Array2<i64> {
        let rows = state.rows();
        match self.fixed_places() {
            // The new tokens stand behind the buffers.
            Some(places) => Array2::from_shape_fn((rows.len(), places + padded), |(row, place)| {
                i64::from(place < rows[row] || (places..places + tokens).contains(&place))
            }),
            None => Array2::from_shape_fn((rows.len(), state.tokens() + tokens), |(row, place)| {
                i64::from(place < rows[row] + tokens)
            }),
        }
    }

    /// What to run the next of so many tokens with, and how many of them.
    fn session_for(&self, tokens: usize, covered: usize) -> (&GraphSession, Size) {
        let of = |session: &GraphSession| session.fixed_size(EMBEDDINGS, 1);
        let Some(takes) = of(&self.session) else {
            return (&self.session, Size::of(tokens.min(MAX_TOKENS)));
        };
        let places = self.fixed_places().unwrap_or_default();
        let prefill = self.prefill.as_ref().and_then(|session| Some((session, of(session)?)));
        // Padding needs a place, too.
        match prefill.filter(|(_, padded)| tokens > 1 && covered + padded <= places) {
            Some((session, padded)) => (session, Size { tokens: tokens.min(padded), padded }),
            None => (&self.session, Size { tokens: tokens.min(takes), padded: takes }),
        }
    }

    /// Runs a session over embeddings [rows, padded, hidden].
    fn run_session(
        &self,
        session: &GraphSession,
        embeddings: DynTensor,
        size: Size,
        state: &mut DecoderState,
        keep: usize,
    ) -> Result<Step, Error> {
        let (tokens, rows) = (size.tokens, state.rows());
        let positions =
            Array2::from_shape_fn((rows.len(), tokens), |(row, i)| (rows[row] + i) as i64);
        let mask = self.mask(state, size);
        session.with(|ort_session| {
            let mut inputs: Vec<(&str, DynTensor)> = vec![
                (EMBEDDINGS, embeddings),
                ("attention_mask", Tensor::from_array(mask)?.upcast()),
            ];
            if session.has_input(POSITION_IDS) {
                inputs.push((POSITION_IDS, Tensor::from_array(positions)?.upcast()));
            }
            if session.has_input(NUM_LOGITS) {
                let count = Array0::from_elem((), keep as i64);
                inputs.push((NUM_LOGITS, Tensor::from_array(count)?.upcast()));
            }
            let gives_hidden = session.has_output(LAST_HIDDEN_STATE);
            let gives_candidates = session.gives_candidates();
            // With candidates the rest is seldom wanted, and stays where it is.
            let place = self.memory.as_ref().filter(|_| gives_candidates);
            let mut outputs = vec![(LOGITS, place)];
            outputs.extend(CANDIDATES.map(|name| (name, None)).iter().filter(|_| gives_candidates));
            outputs.extend(gives_hidden.then_some((LAST_HIDDEN_STATE, None)));
            state.run(ort_session, tokens, inputs, &outputs, |outputs| {
                let logits = Logits::of_run(outputs, keep, gives_candidates)?;
                let hidden = gives_hidden.then(|| batch_of(outputs, LAST_HIDDEN_STATE));
                let hidden = hidden.transpose()?.map(|h| h.index_axis(Axis(0), 0).to_owned());
                Ok(Step { logits, last_hidden_state: hidden })
            })
        })
    }
}

/// How many tokens a run is over, and how many with padding.
#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    padded: usize,
}

impl Size {
    fn of(tokens: usize) -> Self {
        Size { tokens, padded: tokens }
    }
}

/// An output [batch, positions, size].
fn batch_of<'o>(outputs: &'o SessionOutputs<'_>, name: &str) -> ort::Result<ArrayView3<'o, f32>> {
    let value = outputs.get(name).ok_or_else(|| ort::Error::new(format!("no output {name}")))?;
    let array = value.try_extract_array::<f32>()?.into_dimensionality::<Ix3>();
    array.map_err(|_| ort::Error::new(format!("{name} is not [batch, positions, size]")))
}
