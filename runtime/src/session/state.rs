//! The decoder's hybrid state: conv states, keys and values, as the last run left them.

use lfm2vl_graphs::{Dim, GraphSpec};
use ort::{
    session::{Session, SessionOutputs},
    value::{DynTensor, DynTensorValueType},
};

use super::{
    memory::{DeviceMemory, memory_info},
    recorded::{Lease, Recorder},
    tensors::{Part, Rest, assemble, axis_2, bytes, copy, size, write, zeros},
};

/// Tokens by which buffers of keys and values grow at least. Memory that is never written is never
/// taken from the system, so this costs nothing.
const GROWTH: usize = 1024;

/// State after some tokens: of one conversation, or of several as the rows of a batch.
#[derive(Default)]
pub(crate) struct DecoderState {
    tensors: Vec<StateTensor>,
    /// Tokens that the state covers, of each row.
    tokens: Vec<usize>,
    cache: Cache,
    /// Where the tensors are; `None` is the host's memory.
    memory: Option<DeviceMemory>,
    /// The buffers of steps, which have the state instead of the tensors while they are leased.
    lease: Option<Lease>,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Cache {
    /// Each run makes new ones.
    #[default]
    Remade,
    /// In buffers that runs write into, and that grow; with places for so many tokens.
    Growing(usize),
    /// In buffers with places for so many tokens.
    Fixed { places: usize, update: Update },
}

/// How new keys and values come into buffers of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Update {
    /// Runs write them there.
    InPlace,
    /// Runs make other buffers, with all of them.
    Remade,
    /// Runs give the new ones, and this program writes them.
    Rows,
}

pub(super) struct StateTensor {
    pub(super) past: String,
    pub(super) present: String,
    /// Conv states [batch, hidden, columns], or keys or values [batch, kv_heads, tokens, head_dim].
    /// Where ONNX Runtime made it, a run takes it without a copy.
    pub(super) value: DynTensor,
    /// Columns that a run takes of conv states; `None` for keys and values. After a run that kept
    /// several positions there are more, the last position's at the end.
    pub(super) conv_width: Option<usize>,
}

/// What it takes to go back to an earlier state: keys and values of a longer state begin with
/// those of a shorter one, but conv states do not.
pub(crate) struct Checkpoint {
    tokens: usize,
    conv: Vec<DynTensor>,
}

impl Checkpoint {
    /// Tokens that the state covered.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }
}

impl DecoderState {
    /// The state before any token: zero conv states, no keys and values. With `in_place` the graph
    /// writes new keys and values into the buffers of the old ones.
    pub(crate) fn new(
        decoder: &GraphSpec,
        in_place: bool,
        memory: Option<DeviceMemory>,
    ) -> ort::Result<Self> {
        let cache = match (fixed_places(decoder), in_place) {
            (Some(places), _) if gives_rows(decoder) => {
                Cache::Fixed { places, update: Update::Rows }
            }
            (Some(places), true) => Cache::Fixed { places, update: Update::InPlace },
            (Some(places), false) => Cache::Fixed { places, update: Update::Remade },
            (None, true) => Cache::Growing(0),
            (None, false) => Cache::Remade,
        };
        let tensors = decoder.inputs.iter().filter_map(|input| {
            let (present, is_conv) = match input.name.split_once('.')? {
                ("past_conv", layer) => (format!("present_conv.{layer}"), true),
                ("past_key_values", rest) => (format!("present.{rest}"), false),
                _ => return None,
            };
            let conv_width = is_conv.then(|| size(&input.shape[2]));
            let value = zeros(input).and_then(|value| match &memory {
                Some(memory) => memory.hold(value),
                None => Ok(value),
            });
            let past = input.name.clone();
            Some(value.map(|value| StateTensor { past, present, value, conv_width }))
        });
        let tensors = tensors.collect::<ort::Result<_>>()?;
        Ok(DecoderState { tensors, tokens: vec![0], cache, memory, lease: None })
    }

    /// Tokens that the state covers, of the longest row.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.iter().copied().max().unwrap_or_default()
    }

    /// Tokens that the state covers, of each row.
    pub(crate) fn rows(&self) -> &[usize] {
        &self.tokens
    }

    /// Whether rows of different lengths can be run together: keys and values then lie in buffers
    /// of one length.
    pub(crate) fn can_be_batched(&self) -> bool {
        matches!(self.cache, Cache::Growing(_))
    }

    /// Runs the session over `tokens` more tokens of each row with these inputs besides the state,
    /// moves the state on, and gives the other outputs to `read`, from where they are wanted.
    pub(crate) fn run<T>(
        &mut self,
        session: &mut Session,
        tokens: usize,
        inputs: Vec<(&str, DynTensor)>,
        outputs: &[(&str, Option<&DeviceMemory>)],
        read: impl FnOnce(&mut SessionOutputs<'_>) -> ort::Result<T>,
    ) -> ort::Result<T> {
        self.settle()?;
        self.reserve(self.tokens() + tokens)?;
        self.drop_columns(0)?;
        let in_place =
            matches!(self.cache, Cache::Growing(_) | Cache::Fixed { update: Update::InPlace, .. });
        let mut binding = session.create_binding()?;
        let memory = memory_info(self.memory.as_ref())?;
        for (name, value) in &inputs {
            binding.bind_input(*name, value)?;
        }
        for tensor in &mut self.tensors {
            binding.bind_input(&tensor.past, &tensor.value)?;
            match in_place && tensor.conv_width.is_none() {
                true => binding.bind_output(&tensor.present, &mut tensor.value)?,
                false => binding.bind_output_to_device(&tensor.present, &memory)?,
            }
        }
        for (name, place) in outputs {
            binding.bind_output_to_device(*name, &memory_info(*place)?)?;
        }
        let mut made = session.run_binding(&binding)?;
        let covered = self.tokens();
        for tensor in self.tensors.iter_mut().filter(|t| !in_place || t.conv_width.is_some()) {
            let new = made
                .remove(&tensor.present)
                .ok_or_else(|| ort::Error::new(format!("no output {}", tensor.present)))?;
            let new = new.downcast::<DynTensorValueType>()?;
            match self.cache {
                Cache::Fixed { update: Update::Rows, .. } if tensor.conv_width.is_none() => {
                    write(&new, tokens, &mut tensor.value, covered)?;
                }
                _ => tensor.value = new,
            }
        }
        let result = read(&mut made);
        self.tokens.iter_mut().for_each(|row| *row += tokens);
        result
    }

    /// Runs the session over one more token of a decoder whose sizes are fixed.
    pub(crate) fn step<T>(
        &mut self,
        session: &mut Session,
        recorder: &Recorder,
        [embeddings, attention_mask]: [&DynTensor; 2],
        outputs: &[&str],
        read: impl FnOnce(&mut SessionOutputs<'_>) -> ort::Result<T>,
    ) -> ort::Result<T> {
        self.reserve(self.tokens() + 1)?;
        let lease = match &mut self.lease {
            Some(lease) => lease,
            none => none.insert(recorder.lease(session, &self.tensors, outputs)?),
        };
        let result = lease.step(session, embeddings, attention_mask, read)?;
        self.tokens.iter_mut().for_each(|row| *row += 1);
        Ok(result)
    }

    /// Takes the state back from the buffers of steps, which others may use then.
    pub(crate) fn settle(&mut self) -> ort::Result<()> {
        match self.lease.take() {
            Some(mut lease) => lease.unload(&mut self.tensors),
            None => Ok(()),
        }
    }

    /// Makes place for keys and values of so many tokens.
    fn reserve(&mut self, tokens: usize) -> ort::Result<()> {
        let (places, rest) = match self.cache {
            Cache::Growing(places) if places < tokens => {
                (tokens.max(places * 3 / 2).next_multiple_of(GROWTH), Rest::Unwritten)
            }
            Cache::Fixed { places, .. } if places < tokens => {
                return Err(ort::Error::new(format!("the decoder has place for {places} tokens")));
            }
            // What is behind the tokens is multiplied with zero.
            Cache::Fixed { places, .. } => (places, Rest::Zero),
            Cache::Remade | Cache::Growing(_) => return Ok(()),
        };
        let caches = self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_none());
        for tensor in caches.filter(|tensor| axis_2(&tensor.value) < places) {
            let rows = self.tokens.iter().enumerate();
            let parts: Vec<_> =
                rows.map(|(row, &tokens)| Part { of: &tensor.value, row, at: 0..tokens }).collect();
            tensor.value = assemble(&parts, places, rest, self.memory.as_ref())?;
        }
        if let Cache::Growing(old) = &mut self.cache {
            *old = places;
        }
        Ok(())
    }

    /// Drops the last `count` tokens, which the last run must have kept with one more.
    pub(crate) fn drop_last(&mut self, count: usize) -> ort::Result<()> {
        self.settle()?;
        self.drop_columns(count)?;
        self.tokens.iter_mut().for_each(|row| *row -= count);
        let tokens = self.tokens();
        self.shorten(tokens)
    }

    /// Leaves one conv state of those that the last run kept, the one before the last `count`.
    fn drop_columns(&mut self, count: usize) -> ort::Result<()> {
        for tensor in &mut self.tensors {
            let Some(width) = tensor.conv_width else { continue };
            let columns = axis_2(&tensor.value);
            if columns == width && count == 0 {
                continue;
            }
            let end = columns.checked_sub(count).filter(|&end| end >= width);
            let end = end.ok_or_else(|| ort::Error::new("a conv state was not kept"))?;
            let parts: Vec<_> = (0..self.tokens.len())
                .map(|row| Part { of: &tensor.value, row, at: end - width..end })
                .collect();
            tensor.value = assemble(&parts, width, Rest::Unwritten, self.memory.as_ref())?;
        }
        Ok(())
    }

    /// Leaves the keys and values of the first tokens, where their number is told by their shape.
    fn shorten(&mut self, tokens: usize) -> ort::Result<()> {
        if self.cache != Cache::Remade {
            return Ok(());
        }
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_none()) {
            let first = Part { of: &tensor.value, row: 0, at: 0..tokens };
            tensor.value = assemble(&[first], tokens, Rest::Unwritten, self.memory.as_ref())?;
        }
        Ok(())
    }

    /// Remembers this state.
    pub(crate) fn checkpoint(&mut self) -> ort::Result<Checkpoint> {
        self.settle()?;
        let conv = self.tensors.iter().filter(|tensor| tensor.conv_width.is_some());
        let copies = conv.map(|tensor| copy(&tensor.value, self.memory.as_ref()));
        let conv = copies.collect::<ort::Result<_>>()?;
        Ok(Checkpoint { tokens: self.tokens(), conv })
    }

    /// Goes back to an earlier state of the same tokens.
    pub(crate) fn rewind(&mut self, checkpoint: &Checkpoint) -> ort::Result<()> {
        self.settle()?;
        let conv = self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_some());
        for (tensor, earlier) in conv.zip(&checkpoint.conv) {
            tensor.value = copy(earlier, self.memory.as_ref())?;
        }
        self.tokens = vec![checkpoint.tokens];
        self.shorten(checkpoint.tokens)
    }

    /// A copy of the state, with no more memory than it needs.
    pub(crate) fn copy(&mut self) -> ort::Result<DecoderState> {
        self.settle()?;
        self.select(&[(self, 0)], self.tokens(), Rest::Unwritten)
    }

    /// A copy of a copy, for runs up to so many tokens.
    pub(crate) fn with_place_for(&self, tokens: usize) -> ort::Result<DecoderState> {
        match self.cache {
            // As `reserve` would.
            Cache::Fixed { places, .. } => self.select(&[(self, 0)], places, Rest::Zero),
            _ => self.select(&[(self, 0)], tokens.next_multiple_of(GROWTH), Rest::Unwritten),
        }
    }

    /// Bytes of the state's buffers.
    pub(crate) fn bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| bytes(&tensor.value)).sum()
    }

    /// Adds the row of another state.
    pub(crate) fn join(&mut self, row: DecoderState) -> ort::Result<()> {
        if self.tokens.is_empty() {
            *self = row;
            return self.drop_columns(0);
        }
        let mut rows: Vec<_> = (0..self.tokens.len()).map(|row| (&*self, row)).collect();
        rows.push((&row, 0));
        let capacity = self.growing_places().max(row.growing_places());
        *self = self.select(&rows, capacity, Rest::Unwritten)?;
        Ok(())
    }

    /// Takes out a row; those after it move up.
    pub(crate) fn leave(&mut self, row: usize) -> ort::Result<DecoderState> {
        let capacity = self.growing_places();
        let left = self.select(&[(self, row)], capacity, Rest::Unwritten)?;
        let rest: Vec<_> =
            (0..self.tokens.len()).filter(|&r| r != row).map(|row| (&*self, row)).collect();
        *self = match rest.is_empty() {
            true => DecoderState::default(),
            false => self.select(&rest, capacity, Rest::Unwritten)?,
        };
        Ok(left)
    }

    /// A state of these rows of states that are like this one.
    fn select<'s>(
        &self,
        rows: &[(&'s DecoderState, usize)],
        capacity: usize,
        rest: Rest,
    ) -> ort::Result<Self> {
        let tensors = self.tensors.iter().enumerate().map(|(index, tensor)| {
            let part = |&(state, row): &(&'s DecoderState, usize)| {
                let of = &state.tensors[index].value;
                let at = match tensor.conv_width {
                    Some(width) => axis_2(of) - width..axis_2(of),
                    None => 0..state.tokens[row],
                };
                Part { of, row, at }
            };
            let parts: Vec<_> = rows.iter().map(part).collect();
            let places = match self.cache {
                Cache::Remade => parts.iter().map(|part| part.at.len()).max().unwrap_or_default(),
                Cache::Growing(_) | Cache::Fixed { .. } => capacity,
            };
            let places = tensor.conv_width.unwrap_or(places);
            let value = assemble(&parts, places, rest, self.memory.as_ref())?;
            let (past, present) = (tensor.past.clone(), tensor.present.clone());
            Ok(StateTensor { past, present, value, conv_width: tensor.conv_width })
        });
        Ok(DecoderState {
            tensors: tensors.collect::<ort::Result<_>>()?,
            tokens: rows.iter().map(|(state, row)| state.tokens[*row]).collect(),
            cache: match self.cache {
                Cache::Growing(_) => Cache::Growing(capacity),
                other => other,
            },
            memory: self.memory.clone(),
            lease: None,
        })
    }

    fn growing_places(&self) -> usize {
        if let Cache::Growing(places) = self.cache { places } else { 0 }
    }
}

/// Whether the graph gives the keys and values of new tokens only.
pub(crate) fn gives_rows(decoder: &GraphSpec) -> bool {
    let mut caches = decoder.outputs.iter().filter(|output| output.name.starts_with("present."));
    let places = caches.next().and_then(|output| output.shape.get(2));
    places
        .is_some_and(|dim| matches!(dim, Dim::Fixed(rows) if Some(*rows) != fixed_places(decoder)))
}

/// The length of the buffers of keys and values, where the graph fixes it.
pub(crate) fn fixed_places(decoder: &GraphSpec) -> Option<usize> {
    let mut caches =
        decoder.inputs.iter().filter(|input| input.name.starts_with("past_key_values."));
    match caches.next()?.shape.get(2)? {
        Dim::Fixed(places) => Some(*places),
        Dim::Free(_) => None,
    }
}
