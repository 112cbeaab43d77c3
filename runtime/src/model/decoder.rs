//! The decoder: a chunk of a prompt, or a token of each sequence.

use std::ops::Range;

use lfm2vl_graphs::{Graph, GraphSpec, IN_PLACE};
use ndarray::{Array0, Array1, Array2, Array3, Axis, Ix3};
use ort::{
    session::RunOptions,
    value::{DynTensor, Tensor},
};
use rayon::ThreadPool;

use super::{
    check::{NUM_LOGITS, POSITION_IDS},
    embedding::Embeddings,
    logits::{CANDIDATES, LOGITS, RunLogits},
    tokens::Tokens,
};
use crate::{
    Error,
    backend::{
        DeviceMemory, GraphSession, Location, TensorSlice,
        provider::{Provider, TensorRt},
        reads_in_place, shape,
    },
    kv_cache::{
        InPlace, KvCache, Layout, Limits, Outputs, Run, Separate, Slots, Snapshot,
        without_recording,
    },
};

const EMBEDDINGS: &str = "inputs_embeds";
/// Tokens, where a graph can look them up; where negative, their embeddings count.
const INPUT_IDS: &str = "input_ids";
const ATTENTION_MASK: &str = "attention_mask";
/// Tokens of each row less one, and of the longest row, where a graph is given these instead of a mask.
const SEQLENS_K: &str = "seqlens_k";
const TOTAL_SEQUENCE_LENGTH: &str = "total_sequence_length";
const LAST_HIDDEN_STATE: &str = "last_hidden_state";

/// Tokens of a prompt that go through the decoder in one run at most. On the host more make it no faster; on
/// a device every run waits for its start.
const MAX_CHUNK: usize = 256;
const MAX_CHUNK_ON_DEVICE: usize = 4096;

/// Tokens that a slot on a device has room for, where nothing else is said: memory there is taken at
/// once.
const DEVICE_CAPACITY: usize = 4096;

/// How large the state of all sequences may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheSettings {
    /// Sequences.
    pub(crate) slots: usize,
    /// Tokens of the model's context.
    pub(crate) context: usize,
    /// Tokens that each slot has room for from the beginning, and at most.
    pub(crate) capacity: Option<usize>,
    /// Most bytes of keys and values.
    pub(crate) memory: Option<usize>,
}

/// The decoder graph with the state of its sequences, and the graph for prompts where sizes are fixed.
pub(crate) struct Decoder {
    session: GraphSession,
    prefill: Option<GraphSession>,
    cache: Box<dyn KvCache>,
    slots: usize,
    /// Tokens that the graph's own buffers have room for, where it fixes that.
    fixed_capacity: Option<usize>,
    /// Where the state lies; `None` is the host's memory.
    memory: Option<DeviceMemory>,
    /// Whether steps over one token keep their bindings.
    has_steps: bool,
}

/// What a run is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Logits of the last positions, of so many.
    Logits(usize),
    /// The hidden states of all positions, where the graph gives them, and logits.
    HiddenStates,
}

/// How many tokens a run is over, and how many with padding.
#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    padded: usize,
}

impl Size {
    const ONE: Self = Size { tokens: 1, padded: 1 };
}

impl Decoder {
    /// A decoder of which `spec` are the inputs and outputs. Where its steps are recorded, what stays in a device's
    /// memory is allocated by another session there, one of `others` that record nothing: a recording writes into
    /// what its own session's allocator believes to be free.
    pub(crate) fn new(
        session: GraphSession,
        prefill: Option<GraphSession>,
        others: &[&GraphSession],
        spec: &GraphSpec,
        settings: CacheSettings,
    ) -> Result<Self, Error> {
        let layout = Layout::of(spec);
        // TensorRT does not say that inputs and outputs may share memory.
        let may_share = session.provider() != Provider::TensorRt(TensorRt::default()).name();
        // Where the graph gives rows, this program writes, where it can.
        let state = layout.tensors.last().filter(|_| !layout.gives_rows);
        let (in_place, location) = session.ask(|session| {
            let in_place = session.metadata()?.custom(IN_PLACE).as_deref() == Some("true");
            let location =
                state.map(|tensor| Location::of_output(session, &tensor.present)).transpose()?;
            Ok((in_place && may_share, location.flatten()))
        })?;
        let allocating: Vec<&GraphSession> = match session.records() {
            true => prefill.iter().chain(others.iter().copied()).collect(),
            false => vec![&session],
        };
        let memory = location.and_then(|location| {
            allocating.iter().find_map(|session| {
                session.ask(|session| Ok(DeviceMemory::at(location.clone(), session))).ok()?
            })
        });
        let fixed_capacity = layout.fixed_capacity;
        let of_host = [TOTAL_SEQUENCE_LENGTH];
        let reads_in_place =
            session.ask(|session| reads_in_place(session, memory.as_ref(), &of_host))?;
        let has_steps = in_place
            && reads_in_place
            && fixed_capacity.is_some()
            && session.fixed_size(EMBEDDINGS, 1) == Some(1);
        // A mask would have another size each time.
        let keeps_steps = in_place
            && reads_in_place
            && fixed_capacity.is_none()
            && session.has_input(SEQLENS_K)
            && !layout.gives_history;
        let has_recordings = memory.is_some() && (keeps_steps || (has_steps && prefill.is_some()));
        if session.records() && !has_recordings {
            return Err(Error::NothingToRecord);
        }
        // In the memory of other devices, an address is no number that can be added to.
        let has_addresses = memory.as_ref().is_none_or(DeviceMemory::has_addresses);
        let shares_runs = in_place && fixed_capacity.is_none();
        let slots = if shares_runs && !has_addresses { 1 } else { settings.slots };
        if slots < settings.slots {
            let memory = memory.as_ref().map_or("", DeviceMemory::name);
            tracing::warn!(memory, "there is one slot only, since this memory has no addresses");
        }
        let limit = limit(&layout, &settings, slots, memory.is_some() && shares_runs)?;
        let (records, of_memory) = (session.records(), memory.clone());
        let cache: Box<dyn KvCache> = match (fixed_capacity, in_place) {
            (None, true) => {
                let at_once = settings.capacity.is_some() || memory.is_some();
                let limits = Limits { slots, tokens: limit, at_once, keeps_steps, records };
                Box::new(session.ask(|_| Slots::new(layout, of_memory, limits))?)
            }
            (Some(_), true) if !layout.gives_rows => {
                Box::new(InPlace::new(layout, of_memory, slots, limit, records))
            }
            _ => Box::new(Separate::new(layout, of_memory, slots, limit)),
        };
        Ok(Decoder { session, prefill, cache, slots, fixed_capacity, memory, has_steps })
    }

    /// Every session.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &GraphSession> {
        [&self.session].into_iter().chain(&self.prefill)
    }

    /// Where its state lies.
    pub(crate) fn memory(&self) -> Option<&DeviceMemory> {
        self.memory.as_ref()
    }

    /// How many sequences have room.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether one run can be over several sequences.
    pub(crate) fn shares_runs(&self) -> bool {
        self.cache.shares_runs()
    }

    /// Most tokens that a slot can cover.
    pub(crate) fn limit(&self) -> usize {
        self.cache.limit()
    }

    /// Whether tokens can be dropped after a run.
    pub(crate) fn is_speculative(&self) -> bool {
        self.session.graph() == Graph::SpeculativeDecoder
    }

    /// Bytes of the state's buffers, and bytes that were copied between slots or to larger buffers.
    pub(crate) fn state_bytes(&self) -> (usize, u64) {
        (self.cache.bytes(), self.cache.copied_bytes())
    }

    /// Tokens that a slot's state covers.
    pub(crate) fn tokens(&self, slot: usize) -> usize {
        self.cache.tokens(slot)
    }

    /// Changes the states, with an error told as the decoder's.
    pub(crate) fn state<T>(
        &mut self,
        change: impl FnOnce(&mut dyn KvCache) -> ort::Result<T>,
    ) -> Result<T, Error> {
        change(&mut *self.cache).map_err(|error| Error::of_run(self.session.graph(), error))
    }

    /// Remembers the state of a slot.
    pub(crate) fn snapshot(&mut self, slot: usize) -> Result<Snapshot, Error> {
        self.state(|cache| cache.snapshot(slot))
    }

    /// Options of a run, by which it can be ended.
    pub(crate) fn run_options(&self) -> Result<RunOptions, Error> {
        self.session.ask(|_| {
            let mut options = RunOptions::new()?;
            if self.session.records() {
                // Steps that are recorded have options of their own.
                without_recording(&mut options)?;
            }
            Ok(options)
        })
    }

    /// Which graph it is.
    pub(crate) fn graph(&self) -> Graph {
        self.session.graph()
    }

    /// How many of the next `tokens` of a slot's prompt one run is over, if about `most` at most.
    pub(crate) fn chunk(&self, slot: usize, tokens: usize, most: usize) -> usize {
        self.size(slot, even_chunk(tokens, most.min(self.max_chunk()))).tokens
    }

    /// Most tokens of a chunk.
    pub(crate) fn max_chunk(&self) -> usize {
        if self.memory.is_some() { MAX_CHUNK_ON_DEVICE } else { MAX_CHUNK }
    }

    /// Runs over the embeddings of a [`chunk`](Self::chunk) of a slot's prompt: those of these tokens among
    /// `embeddings`. Gives the logits of the last position.
    pub(crate) fn prefill(
        &mut self,
        slot: usize,
        embeddings: &mut Embeddings,
        tokens: Range<usize>,
        options: &RunOptions,
    ) -> Result<RunLogits<'_>, Error> {
        let outputs = self.run_chunk(slot, embeddings, tokens, Wanted::Logits(1), options)?;
        RunLogits::of(outputs).map_err(|error| Error::of_run(self.session.graph(), error))
    }

    /// As [`prefill`](Self::prefill). Gives the hidden states [tokens, hidden] after the last norm, where
    /// the graph does.
    pub(crate) fn hidden_states(
        &mut self,
        slot: usize,
        embeddings: &mut Embeddings,
        tokens: Range<usize>,
    ) -> Result<Array2<f32>, Error> {
        let options = self.run_options()?;
        let outputs = self.run_chunk(slot, embeddings, tokens, Wanted::HiddenStates, &options)?;
        let hidden = outputs.get(LAST_HIDDEN_STATE).ok_or(Error::NoHiddenState)?;
        self.session.ask(|_| {
            let hidden = hidden.try_extract_array::<f32>()?.into_dimensionality::<Ix3>();
            let hidden = hidden.map_err(|_| ort::Error::new("hidden states of another rank"))?;
            Ok(hidden.index_axis(Axis(0), 0).to_owned())
        })
    }

    /// Runs a step over the next tokens of sequences, which others can [follow](Steps::follow).
    pub(crate) fn steps<'d>(
        &'d mut self,
        slots: Range<usize>,
        tokens: Tokens<'_>,
        options: &'d RunOptions,
    ) -> Result<Steps<'d>, Error> {
        let outputs = self.run_step(slots.clone(), tokens, 1, options)?;
        let logits = RunLogits::of(outputs).map_err(|e| Error::of_run(self.session.graph(), e))?;
        Ok(Steps { decoder: self, slots, options, logits: Some(logits) })
    }

    /// Whether steps can [follow](Steps::follow) others.
    pub(crate) fn has_following_steps(&self) -> bool {
        self.session.has_input(INPUT_IDS) && self.cache.step_capacity().is_some()
    }

    /// Where the next [`step`](Self::step) over these slots reads its embeddings, if that is known already.
    pub(crate) fn step_embeddings(
        &mut self,
        slots: &Range<usize>,
    ) -> Result<Option<TensorSlice<'_>>, Error> {
        let graph = self.session.graph();
        let found = self.cache.step_input(slots, EMBEDDINGS);
        found.map_err(|error| Error::of_run(graph, error))
    }

    /// Runs over the next tokens of sequences. Gives the logits
    /// of the last `keep` positions; all but one of these tokens can be dropped from the state. More than
    /// one need a speculative decoder.
    pub(crate) fn step(
        &mut self,
        slots: Range<usize>,
        tokens: Tokens<'_>,
        keep: usize,
        options: &RunOptions,
    ) -> Result<RunLogits<'_>, Error> {
        let outputs = self.run_step(slots, tokens, keep, options)?;
        RunLogits::of(outputs).map_err(|error| Error::of_run(self.session.graph(), error))
    }

    fn run_step(
        &mut self,
        slots: Range<usize>,
        tokens: Tokens<'_>,
        keep: usize,
        options: &RunOptions,
    ) -> Result<Outputs, Error> {
        let count = match &tokens {
            Tokens::Embeddings(tensor) | Tokens::Mixed(_, tensor) => shape(tensor)[1],
            Tokens::Ids(ids) => ids.len() / slots.len().max(1),
            Tokens::MostLikely => 1,
        };
        let (wanted, takes) = (Wanted::Logits(keep), self.session.fixed_size(EMBEDDINGS, 1));
        match tokens {
            Tokens::Embeddings(tensor) if takes.is_some_and(|takes| takes != count) => {
                let mut embeddings = Embeddings::of(tensor);
                self.run_chunk(slots.start, &mut embeddings, 0..count, wanted, options)
            }
            tokens => {
                let size = Size { tokens: count, padded: count };
                self.run(false, slots, tokens, size, wanted, options)
            }
        }
    }

    fn run_chunk(
        &mut self,
        slot: usize,
        embeddings: &mut Embeddings,
        tokens: Range<usize>,
        wanted: Wanted,
        options: &RunOptions,
    ) -> Result<Outputs, Error> {
        let size = self.size(slot, tokens.len());
        let tokens = tokens.start..tokens.start + size.tokens;
        let is_prefill = self.prefill.is_some() && size.padded > 1;
        let slots = slot..slot + 1;
        if size.padded != size.tokens {
            let padded = self.session.ask(|_| embeddings.padded(tokens, size.padded))?;
            let padded = Tokens::Embeddings(padded);
            return self.run(is_prefill, slots, padded, size, wanted, options);
        }
        // SAFETY: what a run binds is bound no longer than the run, for which the embeddings are borrowed; steps
        // that keep their bindings copy what is not where they read it.
        let part = self.session.ask(|_| unsafe { embeddings.part(tokens) })?;
        self.run(is_prefill, slots, part, size, wanted, options)
    }

    /// How many of the next tokens of a slot one run is over.
    fn size(&self, slot: usize, tokens: usize) -> Size {
        let takes = |session: &GraphSession| session.fixed_size(EMBEDDINGS, 1);
        let Some(step) = takes(&self.session) else { return Size { tokens, padded: tokens } };
        let room = self.fixed_capacity.unwrap_or_default();
        let padded = self.prefill.as_ref().and_then(takes);
        // Padding needs room, too.
        let padded = padded.filter(|padded| tokens > 1 && self.tokens(slot) + padded <= room);
        let padded = padded.unwrap_or(step);
        Size { tokens: tokens.min(padded), padded }
    }

    /// Runs a session over tokens, with [slots, padded, hidden] embeddings.
    fn run(
        &mut self,
        is_prefill: bool,
        slots: Range<usize>,
        tokens: Tokens<'_>,
        size: Size,
        wanted: Wanted,
        options: &RunOptions,
    ) -> Result<Outputs, Error> {
        let covered: Vec<usize> = slots.clone().map(|slot| self.cache.tokens(slot)).collect();
        let may_be_step = !is_prefill && size.padded == 1 && matches!(wanted, Wanted::Logits(_));
        let capacity = self.cache.step_capacity().filter(|_| may_be_step);
        let is_step = capacity.is_some() || self.has_steps && may_be_step;
        let longest = covered.iter().max().copied().unwrap_or_default();
        let mask = match self.session.has_input(ATTENTION_MASK) {
            true => Some(self.mask(&covered, size)),
            false => None,
        };
        let follows = matches!(tokens, Tokens::MostLikely);
        let mut inputs = self.token_inputs(&slots, tokens, size)?;
        let session = match &mut self.prefill {
            Some(prefill) if is_prefill => prefill,
            _ => &mut self.session,
        };
        session.ask(|_| {
            if let Some(mask) = mask {
                inputs.push((ATTENTION_MASK, Tensor::from_array(mask)?.upcast()));
            } else {
                let last = covered.iter().map(|&tokens| (tokens + size.tokens - 1) as i32);
                if !follows {
                    inputs.push((SEQLENS_K, Tensor::from_array(Array1::from_iter(last))?.upcast()));
                }
                let total = capacity.unwrap_or(longest + size.tokens) as i32;
                let total = Tensor::from_array(Array0::from_elem((), total))?.upcast();
                inputs.push((TOTAL_SEQUENCE_LENGTH, total));
            }
            if session.has_input(POSITION_IDS) {
                let positions = Array2::from_shape_fn((covered.len(), size.tokens), |(row, i)| {
                    (covered[row] + i) as i64
                });
                inputs.push((POSITION_IDS, Tensor::from_array(positions)?.upcast()));
            }
            if session.has_input(NUM_LOGITS) {
                let keep = match wanted {
                    Wanted::Logits(keep) => keep as i64,
                    Wanted::HiddenStates => 1,
                };
                let count = Array0::from_elem((), keep);
                inputs.push((NUM_LOGITS, Tensor::from_array(count)?.upcast()));
            }
            Ok(())
        })?;
        let gives_candidates = CANDIDATES.iter().all(|name| session.has_output(name));
        // With candidates the rest is seldom wanted, and stays where it is.
        let memory = self.memory.as_ref().filter(|_| gives_candidates);
        let mut outputs = vec![(LOGITS, memory)];
        outputs.extend(CANDIDATES.map(|name| (name, None)).iter().filter(|_| gives_candidates));
        if session.has_output(LAST_HIDDEN_STATE) && wanted == Wanted::HiddenStates {
            outputs.push((LAST_HIDDEN_STATE, None));
        }
        let run = Run { inputs, outputs, tokens: size.tokens, is_step, options };
        let cache = &mut self.cache;
        session.run(|session| cache.run(session, slots, run))
    }

    /// The inputs that say which tokens a run is over, unless the step before has written them.
    fn token_inputs(
        &mut self,
        slots: &Range<usize>,
        tokens: Tokens<'_>,
        size: Size,
    ) -> Result<Vec<(&'static str, DynTensor)>, Error> {
        let Decoder { session, cache, .. } = self;
        let sizes = (slots.len(), size.padded);
        let ids = |ids: Vec<i64>| -> ort::Result<_> {
            let ids = Array2::from_shape_vec(sizes, ids);
            let ids = ids.map_err(|_| ort::Error::new("as many tokens for each slot"))?;
            Ok((INPUT_IDS, Tensor::from_array(ids)?.upcast()))
        };
        session.ask(|_| match tokens {
            Tokens::Embeddings(embeddings) => Ok(vec![(EMBEDDINGS, embeddings)]),
            Tokens::Mixed(tokens, embeddings) => {
                Ok(vec![(EMBEDDINGS, embeddings), ids(tokens.to_vec())?])
            }
            Tokens::Ids(tokens) => {
                let tokens = tokens.iter().map(|&id| i64::from(id)).collect();
                // These are not read.
                let embeddings = match cache.step_input(slots, EMBEDDINGS)? {
                    // SAFETY: the step that it is bound to is the cache's own.
                    Some(place) => unsafe { place.into_tensor() },
                    None => {
                        let hidden = session.fixed_size(EMBEDDINGS, 2).unwrap_or_default();
                        Tensor::from_array(Array3::<f32>::zeros((sizes.0, sizes.1, hidden)))?
                            .upcast()
                    }
                };
                Ok(vec![(EMBEDDINGS, embeddings), ids(tokens)?])
            }
            Tokens::MostLikely => Ok(Vec::new()),
        })
    }

    /// Which tokens there are, for a run over `size` more.
    fn mask(&self, covered: &[usize], Size { tokens, padded }: Size) -> Array2<i64> {
        match self.fixed_capacity {
            // The new tokens stand behind the buffers.
            Some(room) => Array2::from_shape_fn((covered.len(), room + padded), |(row, at)| {
                i64::from(at < covered[row] || (room..room + tokens).contains(&at))
            }),
            None => {
                let longest = covered.iter().max().copied().unwrap_or_default();
                Array2::from_shape_fn((covered.len(), longest + tokens), |(row, at)| {
                    i64::from(at < covered[row] + tokens)
                })
            }
        }
    }
}

/// Steps over some sequences that follow each other. Nothing else changes the decoder meanwhile.
pub(crate) struct Steps<'d> {
    decoder: &'d mut Decoder,
    slots: Range<usize>,
    options: &'d RunOptions,
    /// Those of the last step. The next one writes elsewhere, and the one after that where they are.
    logits: Option<RunLogits<'static>>,
}

impl Steps<'_> {
    /// Logits of the last step; none after one that failed.
    pub(crate) fn logits(&self) -> Option<&RunLogits<'_>> {
        self.logits.as_ref()
    }

    /// Whether the next step can begin before the host knows its tokens.
    pub(crate) fn can_follow(&self) -> bool {
        self.logits.is_some() && self.decoder.cache.can_follow(&self.slots)
    }

    /// Runs the next step, over the most likely tokens, while another thread reads the logits that they follow
    /// from.
    ///
    /// # Errors
    /// Where it fails, the states are as they were.
    pub(crate) fn follow(
        &mut self,
        reader: &ThreadPool,
        read: impl FnOnce(&RunLogits<'_>) + Send,
    ) -> Result<(), Error> {
        let logits = self.logits.take();
        let Steps { decoder, slots, options, .. } = self;
        // Recordings belong to the thread that made them, which is this one.
        let outputs = reader.in_place_scope(|scope| {
            scope.spawn(move |_| logits.as_ref().map(read).unwrap_or_default());
            let wanted = Wanted::Logits(1);
            decoder.run(false, slots.clone(), Tokens::MostLikely, Size::ONE, wanted, options)
        });
        let logits = RunLogits::of(outputs?).map_err(|error| {
            self.slots.clone().for_each(|slot| self.decoder.cache.take_back(slot));
            Error::of_run(self.decoder.graph(), error)
        });
        self.logits = Some(logits?);
        Ok(())
    }

    /// Undoes the last step of a row, which [followed](Self::follow) another one.
    pub(crate) fn take_back(&mut self, row: usize) {
        self.decoder.cache.take_back(self.slots.start + row);
    }
}

/// The size of a prompt's next chunk, where `left` tokens are left and it may have about `most`.
///
/// ONNX Runtime's kernels round an odd last row, and a run over a single token, in another way than other
/// rows; quantized inputs make that more than the last bits. So that a prompt's logits do not depend on how
/// large its chunks were, all but the last are even, and the last has one token only where there is no other.
fn even_chunk(left: usize, most: usize) -> usize {
    let most = (most / 2 * 2).max(2);
    match left.checked_sub(most) {
        None | Some(0) => left,
        Some(1) if most == 2 => left,
        Some(1) => most - 2,
        Some(_) => most,
    }
}

/// Most tokens of a sequence.
fn limit(
    layout: &Layout,
    settings: &CacheSettings,
    slots: usize,
    takes_memory_at_once: bool,
) -> Result<usize, Error> {
    let usual = if takes_memory_at_once { DEVICE_CAPACITY } else { usize::MAX };
    let of_memory = |bytes: usize| bytes / (slots * layout.bytes_per_token()).max(1);
    let limit = settings
        .context
        .min(settings.capacity.unwrap_or(usual))
        .min(settings.memory.map_or(usize::MAX, of_memory))
        .min(layout.fixed_capacity.unwrap_or(usize::MAX));
    match limit {
        0 | 1 => {
            let (name, value) = match (settings.capacity, settings.memory) {
                (Some(tokens @ (0 | 1)), _) => ("capacity", tokens),
                (_, memory) => ("kv_cache_memory", memory.unwrap_or_default()),
            };
            let expected = "it must be enough for some tokens in each slot";
            Err(Error::EngineSetting { name, value: value.to_string(), expected })
        }
        _ => Ok(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_even_and_no_last_one_is_single() {
        for total in 1..600 {
            for most in [1, 2, 3, 16, 33, 256] {
                let (mut left, mut sizes) = (total, Vec::new());
                while left > 0 {
                    let size = even_chunk(left, most);
                    assert!(size > 0 && size <= most.max(3), "{total} {most}: {size}");
                    sizes.push(size);
                    left -= size;
                }
                let (last, others) = sizes.split_last().unwrap();
                assert!(others.iter().all(|size| size % 2 == 0), "{total} {most}: {sizes:?}");
                assert!(*last > 1 || total == 1, "{total} {most}: {sizes:?}");
            }
        }
    }
}
