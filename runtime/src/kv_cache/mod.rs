//! The decoder's hybrid state: conv states, keys and values of many sequences, each in a slot.
//!
//! | strategy | for decoders that | sequences of a run |
//! |---|---|---|
//! | [`Slots`] | write keys and values in place, in buffers of any length | all |
//! | [`Separate`] | make new keys and values each run, or give those of new tokens | one |
//! | [`InPlace`] | have fixed sizes and write in place | one |

mod bound_step;
mod buffer;
mod in_place;
mod layout;
mod separate;
mod slots;

use std::{collections::BTreeMap, ops::Range};

use ort::{
    session::{IoBinding, RunOptions, Session, SessionOutputs},
    value::{DynTensor, DynTensorValueType},
};

use crate::backend::{DeviceMemory, TensorSlice, memory_info};

pub(crate) use bound_step::without_recording;
use buffer::Buffer;
pub(crate) use in_place::InPlace;
pub(crate) use layout::Layout;
pub(crate) use separate::Separate;
pub(crate) use slots::{Limits, Slots};

/// The states of sequences in slots, counted from 0.
pub(crate) trait KvCache: Send {
    /// Whether one run can be over several slots.
    fn shares_runs(&self) -> bool {
        false
    }

    /// Tokens that a slot's state covers.
    fn tokens(&self, slot: usize) -> usize;

    /// Most tokens that a slot can cover.
    fn limit(&self) -> usize;

    /// Tokens that all slots have room for from the beginning, where steps keep their bindings: what such
    /// a step is told of the longest sequence.
    fn step_capacity(&self) -> Option<usize> {
        None
    }

    /// Where the next step over these slots reads the input `name`, if that is known already: what is written
    /// there need not be copied.
    fn step_input(
        &mut self,
        _slots: &Range<usize>,
        _name: &str,
    ) -> ort::Result<Option<TensorSlice<'_>>> {
        Ok(None)
    }

    /// Whether after a step over these slots another one can run with what that one gave as inputs, if nothing
    /// else has changed. Steps are recorded before they follow others.
    fn can_follow(&self, _slots: &Range<usize>) -> bool {
        false
    }

    /// Undoes the last step of a slot, right after that step, which [followed](Self::can_follow) another one.
    fn take_back(&mut self, _slot: usize) {}

    /// Makes room for so many tokens in each slot.
    fn reserve(&mut self, tokens: usize) -> ort::Result<()> {
        if tokens <= self.limit() { Ok(()) } else { Err(no_room(self.limit())) }
    }

    /// Runs a session over new tokens of the sequences in `slots`, and moves their states on. Where
    /// that fails, the states are as they were.
    fn run(
        &mut self,
        session: &mut Session,
        slots: Range<usize>,
        run: Run<'_>,
    ) -> ort::Result<Outputs>;

    /// Drops the last `count` tokens of a slot, which the last run must have kept with one more.
    fn truncate_last(&mut self, slot: usize, count: usize) -> ort::Result<()>;

    /// What it takes to come back to the state of a slot as it is now.
    fn snapshot(&mut self, slot: usize) -> ort::Result<Snapshot>;

    /// Goes back to an earlier state of the same tokens.
    fn rewind(&mut self, slot: usize, snapshot: &Snapshot) -> ort::Result<()>;

    /// Makes the state of `into` that of `from` as it was at `snapshot`.
    fn copy(&mut self, from: usize, into: usize, snapshot: &Snapshot) -> ort::Result<()>;

    /// Swaps the states of two slots.
    fn swap(&mut self, a: usize, b: usize) -> ort::Result<()>;

    /// Makes the state of a slot that before any token.
    fn clear(&mut self, slot: usize) -> ort::Result<()>;

    /// As [`clear`](Self::clear), where the state may have numbers that are not finite.
    fn reset(&mut self, slot: usize) -> ort::Result<()>;

    /// Bytes of the buffers of keys, values and conv states.
    fn bytes(&self) -> usize;

    /// Bytes that were copied from slot to slot, or to larger buffers.
    fn copied_bytes(&self) -> u64 {
        0
    }
}

/// What a run is given besides the state.
pub(crate) struct Run<'r> {
    /// Inputs by name; of a step that follows another one, those that it did not give.
    pub(crate) inputs: Vec<(&'static str, DynTensor)>,
    /// Outputs by name, and where they are wanted; `None` is the host.
    pub(crate) outputs: Vec<(&'static str, Option<&'r DeviceMemory>)>,
    /// New tokens of each sequence.
    pub(crate) tokens: usize,
    /// Whether it is over one token whose inputs and outputs are the same each time, but for their contents.
    pub(crate) is_step: bool,
    pub(crate) options: &'r RunOptions,
}

/// The outputs that were asked for.
pub(crate) type Outputs = BTreeMap<&'static str, DynTensor>;

/// What it takes to go back to an earlier state: keys and values of a longer state begin with
/// those of a shorter one, but conv states do not.
pub(crate) struct Snapshot {
    pub(crate) tokens: usize,
    /// Of one sequence, in the order of the layout.
    conv: Vec<DynTensor>,
}

/// Binds what a run is given besides the state.
fn bind(session: &Session, run: &Run<'_>) -> ort::Result<IoBinding> {
    let mut binding = session.create_binding()?;
    for (name, value) in &run.inputs {
        binding.bind_input(*name, value)?;
    }
    for (name, memory) in &run.outputs {
        binding.bind_output_to_device(*name, &memory_info(*memory)?)?;
    }
    Ok(binding)
}

/// The outputs that were asked for.
fn asked_for(made: &mut SessionOutputs<'_>, run: &Run<'_>) -> ort::Result<Outputs> {
    run.outputs.iter().map(|&(name, _)| Ok((name, take(made, name)?))).collect()
}

/// An output of a run.
fn take(made: &mut SessionOutputs<'_>, name: &str) -> ort::Result<DynTensor> {
    let value = made.remove(name);
    let value = value.ok_or_else(|| ort::Error::new(format!("no output {name}")))?;
    value.downcast::<DynTensorValueType>()
}

/// What a run would need that is beyond the room for tokens.
fn no_room(capacity: usize) -> ort::Error {
    ort::Error::new(format!("the decoder's state has room for {capacity} tokens"))
}
