//! Each sequence in tensors of its own, which runs replace or this program writes. A run is over one
//! sequence.

use std::ops::Range;

use ort::{session::Session, value::DynTensor};

use super::{
    KvCache, Layout, Outputs, Run, Snapshot, asked_for, bind,
    layout::{Kind, StateTensor},
    take,
};
use crate::backend::{
    DeviceMemory, axis_2, bytes, copy_of, copy_part, memory_info, new_tensor, shape,
};

/// How runs change keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Update {
    /// A run gives old and new ones, one behind the other.
    Concatenated,
    /// A run gives buffers of a fixed length with all of them.
    Replaced,
    /// A run gives the new ones, and this program writes them into buffers of a fixed length.
    Rows,
}

/// States in tensors of their own.
pub(crate) struct Separate {
    layout: Layout,
    memory: Option<DeviceMemory>,
    update: Update,
    /// Tokens that a slot can cover.
    limit: usize,
    slots: Vec<State>,
}

/// The state of a sequence.
#[derive(Default)]
struct State {
    tokens: usize,
    /// In the order of the layout; none before the slot is used for the first time. After a run that
    /// kept several positions, conv states have more inputs, the last position's at the end.
    values: Vec<DynTensor>,
}

impl Separate {
    pub(crate) fn new(
        layout: Layout,
        memory: Option<DeviceMemory>,
        slots: usize,
        limit: usize,
    ) -> Self {
        let update = match layout.fixed_capacity {
            None => Update::Concatenated,
            Some(_) if layout.gives_rows => Update::Rows,
            Some(_) => Update::Replaced,
        };
        let limit = limit.min(layout.fixed_capacity.unwrap_or(usize::MAX));
        let slots = (0..slots).map(|_| State::default()).collect();
        Separate { layout, memory, update, limit, slots }
    }

    /// Zeros: what is behind the tokens of a buffer is multiplied with zero, and so must be finite.
    fn zeros(&self) -> ort::Result<Vec<DynTensor>> {
        let capacity = self.layout.fixed_capacity.unwrap_or_default();
        let zeros = |tensor: &StateTensor| {
            let shape = tensor.kind.shape(1, capacity);
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            let zeros = new_tensor(tensor.dtype, &shape, None)?;
            match &self.memory {
                Some(memory) => memory.hold(zeros),
                None => Ok(zeros),
            }
        };
        self.layout.tensors.iter().map(zeros).collect()
    }

    /// Conv states as runs take them; those after the last `count` tokens are left out.
    fn settle(&mut self, slot: usize, count: usize) -> ort::Result<()> {
        let state = &mut self.slots[slot];
        for (tensor, value) in self.layout.tensors.iter().zip(&mut state.values) {
            if let Some(earlier) = tensor.kind.earlier(value, count, self.memory.as_ref())? {
                *value = earlier;
            }
        }
        Ok(())
    }

    /// Leaves the keys and values of the first tokens, where their number is told by their shape.
    fn shorten(&mut self, slot: usize, tokens: usize) -> ort::Result<()> {
        let memory = self.memory.clone();
        let state = &mut self.slots[slot];
        state.tokens = tokens;
        if self.update != Update::Concatenated {
            return Ok(());
        }
        for (tensor, value) in self.layout.tensors.iter().zip(&mut state.values) {
            if !tensor.kind.is_conv() {
                *value = first_tokens(value, tokens, tensor.kind, memory.as_ref())?;
            }
        }
        Ok(())
    }
}

/// The keys or values of the first tokens.
fn first_tokens(
    value: &DynTensor,
    tokens: usize,
    kind: Kind,
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    let Kind::KeyValue { heads, head_dim } = kind else { return copy(value, memory) };
    let all = axis_2(value);
    let sizes: Vec<i64> = kind.shape(1, tokens).iter().map(|&size| size as i64).collect();
    let mut first = new_tensor(*value.data_type(), &sizes, memory)?;
    for head in 0..heads {
        let length = tokens * head_dim;
        copy_part(value, head * all * head_dim, &mut first, head * length, length)?;
    }
    Ok(first)
}

fn copy(value: &DynTensor, memory: Option<&DeviceMemory>) -> ort::Result<DynTensor> {
    copy_of(value, 0, &shape(value), memory)
}

impl KvCache for Separate {
    fn tokens(&self, slot: usize) -> usize {
        self.slots[slot].tokens
    }

    fn limit(&self) -> usize {
        self.limit
    }

    fn run(
        &mut self,
        session: &mut Session,
        slots: Range<usize>,
        run: Run<'_>,
    ) -> ort::Result<Outputs> {
        let slot = slots.start;
        let covered = self.slots[slot].tokens;
        self.reserve(covered + run.tokens)?;
        if self.slots[slot].values.is_empty() {
            self.clear(slot)?;
        }
        self.settle(slot, 0)?;
        let values = &self.slots[slot].values;
        let memory = memory_info(self.memory.as_ref())?;
        let mut binding = bind(session, &run)?;
        for (tensor, value) in self.layout.tensors.iter().zip(values) {
            binding.bind_input(&tensor.past, value)?;
            binding.bind_output_to_device(&tensor.present, &memory)?;
        }
        let mut made = session.run_binding_with_options(&binding, run.options)?;
        let outputs = asked_for(&mut made, &run)?;
        let new = self.layout.tensors.iter().map(|tensor| take(&mut made, &tensor.present));
        let new = new.collect::<ort::Result<Vec<_>>>()?;
        let state = &mut self.slots[slot];
        for ((tensor, value), new) in self.layout.tensors.iter().zip(&mut state.values).zip(new) {
            match (self.update, tensor.kind) {
                (Update::Rows, Kind::KeyValue { heads, head_dim }) => {
                    let (given, all) = (axis_2(&new), axis_2(value));
                    for head in 0..heads {
                        let into = (head * all + covered) * head_dim;
                        let length = run.tokens * head_dim;
                        copy_part(&new, head * given * head_dim, value, into, length)?;
                    }
                }
                _ => *value = new,
            }
        }
        state.tokens += run.tokens;
        Ok(outputs)
    }

    fn truncate_last(&mut self, slot: usize, count: usize) -> ort::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.settle(slot, count)?;
        self.shorten(slot, self.slots[slot].tokens - count)
    }

    fn snapshot(&mut self, slot: usize) -> ort::Result<Snapshot> {
        self.settle(slot, 0)?;
        let state = &self.slots[slot];
        let convs = self.layout.tensors.iter().zip(&state.values);
        let convs = convs.filter(|(tensor, _)| tensor.kind.is_conv());
        let conv = convs.map(|(_, value)| copy(value, self.memory.as_ref()));
        Ok(Snapshot { tokens: state.tokens, conv: conv.collect::<ort::Result<_>>()? })
    }

    fn rewind(&mut self, slot: usize, snapshot: &Snapshot) -> ort::Result<()> {
        let convs = self.layout.tensors.iter().zip(&mut self.slots[slot].values);
        let convs = convs.filter(|(tensor, _)| tensor.kind.is_conv());
        for ((_, value), earlier) in convs.zip(&snapshot.conv) {
            *value = copy(earlier, self.memory.as_ref())?;
        }
        self.shorten(slot, snapshot.tokens)
    }

    fn copy(&mut self, from: usize, into: usize, snapshot: &Snapshot) -> ort::Result<()> {
        let values = self.slots[from].values.iter();
        let values = values.map(|value| copy(value, self.memory.as_ref()));
        self.slots[into].values = values.collect::<ort::Result<_>>()?;
        self.rewind(into, snapshot)
    }

    fn swap(&mut self, a: usize, b: usize) -> ort::Result<()> {
        self.slots.swap(a, b);
        Ok(())
    }

    fn clear(&mut self, slot: usize) -> ort::Result<()> {
        if self.update == Update::Concatenated || self.slots[slot].values.is_empty() {
            return self.reset(slot);
        }
        let state = &mut self.slots[slot];
        for (tensor, value) in self.layout.tensors.iter().zip(&mut state.values) {
            if let Kind::Conv { .. } = tensor.kind {
                let zeros: Vec<i64> = tensor.kind.shape(1, 0).iter().map(|&n| n as i64).collect();
                let zeros = new_tensor(tensor.dtype, &zeros, None)?;
                *value = match &self.memory {
                    Some(memory) => memory.hold(zeros)?,
                    None => zeros,
                };
            }
        }
        state.tokens = 0;
        Ok(())
    }

    fn reset(&mut self, slot: usize) -> ort::Result<()> {
        self.slots[slot] = State { tokens: 0, values: self.zeros()? };
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.slots.iter().flat_map(|state| &state.values).map(bytes).sum()
    }
}
