//! All sequences in common buffers [slots, ...]. The batch is the outermost axis, so neighbouring
//! slots are a tensor without a copy, and so is one: a prompt runs in the slot where it will decode, and
//! a step runs over all sequences that decode.

use std::ops::Range;

use ort::{session::Session, value::DynTensor};

use super::{
    KvCache, Layout, Outputs, Run, Snapshot, asked_for, bind,
    layout::{Kind, StateTensor},
    no_room, take,
};
use crate::backend::{
    DeviceMemory, bytes, copy_of, copy_part, copy_within, memory_info, slice, swap_within,
    unwritten, write_zeros,
};

/// Tokens by which buffers grow at least.
const GROWTH: usize = 1024;

/// How large buffers may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Sequences.
    pub(crate) slots: usize,
    /// Most tokens of a sequence.
    pub(crate) tokens: usize,
    /// Whether there is room for these from the beginning. Otherwise buffers grow, which copies all
    /// states.
    pub(crate) at_once: bool,
}

/// Common buffers of all slots.
pub(crate) struct Slots {
    layout: Layout,
    memory: Option<DeviceMemory>,
    limits: Limits,
    /// One for each tensor of the layout, [slots, ...].
    buffers: Vec<DynTensor>,
    /// Tokens that keys and values have room for.
    capacity: usize,
    /// Tokens that each slot's state covers. What is behind them is never read.
    tokens: Vec<usize>,
    /// Conv states of the last run, if it kept those after several tokens, and its slot.
    kept: Option<(usize, Vec<DynTensor>)>,
    copied_bytes: u64,
    /// Slots whose state a failed copy has spoiled.
    lost: Vec<bool>,
}

impl Slots {
    pub(crate) fn new(
        layout: Layout,
        memory: Option<DeviceMemory>,
        limits: Limits,
    ) -> ort::Result<Self> {
        let capacity = if limits.at_once { limits.tokens } else { 0 };
        let buffer = |tensor: &StateTensor| {
            unwritten(tensor.dtype, &tensor.kind.shape(limits.slots, capacity), memory.as_ref())
        };
        let buffers = layout.tensors.iter().map(buffer).collect::<ort::Result<_>>()?;
        let mut slots = Slots {
            layout,
            memory,
            limits,
            buffers,
            capacity,
            tokens: vec![0; limits.slots],
            kept: None,
            copied_bytes: 0,
            lost: vec![false; limits.slots],
        };
        (0..limits.slots).try_for_each(|slot| slots.clear(slot))?;
        Ok(slots)
    }

    /// The tensors with their buffers.
    fn tensors(&mut self) -> impl Iterator<Item = (&StateTensor, &mut DynTensor)> {
        self.layout.tensors.iter().zip(&mut self.buffers)
    }

    /// Of conv states that a run gave, those before the last `left_out` positions, where they differ.
    fn earlier(&self, convs: &[DynTensor], left_out: usize) -> ort::Result<Vec<Option<DynTensor>>> {
        let tensors = self.layout.tensors.iter().filter(|tensor| tensor.kind.is_conv());
        let earlier = |(tensor, conv): (&StateTensor, _)| {
            tensor.kind.earlier(conv, left_out, self.memory.as_ref())
        };
        tensors.zip(convs).map(earlier).collect()
    }

    /// Conv states of one slot, in the order of the layout.
    fn set_conv_states(&mut self, slot: usize, states: &[DynTensor]) -> ort::Result<()> {
        let tensors = self.tensors().filter(|(tensor, _)| tensor.kind.is_conv());
        for ((tensor, buffer), state) in tensors.zip(states) {
            let length = tensor.kind.elements(0);
            copy_part(state, 0, buffer, slot * length, length)?;
        }
        Ok(())
    }
}

/// Where the keys or values of each head of a slot begin.
fn heads(
    slot: usize,
    capacity: usize,
    heads: usize,
    head_dim: usize,
) -> impl Iterator<Item = usize> {
    (0..heads).map(move |head| (slot * heads + head) * capacity * head_dim)
}

impl KvCache for Slots {
    fn shares_runs(&self) -> bool {
        true
    }

    fn tokens(&self, slot: usize) -> usize {
        self.tokens[slot]
    }

    fn limit(&self) -> usize {
        self.limits.tokens
    }

    fn reserve(&mut self, tokens: usize) -> ort::Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        if tokens > self.limits.tokens {
            return Err(no_room(self.limits.tokens));
        }
        let (old, new) = (self.capacity, tokens.max(self.capacity * 3 / 2));
        let new = new.next_multiple_of(GROWTH).min(self.limits.tokens);
        let slots = self.limits.slots;
        let (tensors, memory, mut copied) = (&self.layout.tensors, self.memory.as_ref(), 0);
        // All of them first, so that nothing has changed where memory runs out or a copy fails.
        let mut larger = Vec::new();
        for (tensor, buffer) in tensors.iter().zip(&self.buffers) {
            let Kind::KeyValue { heads: count, head_dim } = tensor.kind else {
                larger.push(None);
                continue;
            };
            let mut new_buffer = unwritten(tensor.dtype, &tensor.kind.shape(slots, new), memory)?;
            for (slot, &tokens) in self.tokens.iter().enumerate() {
                let starts = heads(slot, old, count, head_dim);
                for (from, into) in starts.zip(heads(slot, new, count, head_dim)) {
                    copy_part(buffer, from, &mut new_buffer, into, tokens * head_dim)?;
                }
                copied += tokens * count * head_dim;
            }
            larger.push(Some(new_buffer));
        }
        for (buffer, larger) in self.buffers.iter_mut().zip(larger) {
            if let Some(larger) = larger {
                *buffer = larger;
            }
        }
        let width = self.layout.element_bytes();
        self.copied_bytes += (copied * width) as u64;
        self.capacity = new;
        Ok(())
    }

    fn run(
        &mut self,
        session: &mut Session,
        slots: Range<usize>,
        run: Run<'_>,
    ) -> ort::Result<Outputs> {
        let covered = self.tokens[slots.clone()].iter().max().copied().unwrap_or_default();
        if covered + run.tokens > self.capacity {
            return Err(no_room(self.capacity));
        }
        if self.lost[slots.clone()].contains(&true) {
            return Err(ort::Error::new("the state of a slot was lost when it was copied"));
        }
        let (rows, capacity) = (slots.len(), self.capacity);
        let memory = memory_info(self.memory.as_ref())?;
        let slices = self.layout.tensors.iter().zip(&mut self.buffers).map(|(tensor, buffer)| {
            let start = slots.start * tensor.kind.elements(capacity);
            // SAFETY: the binding is dropped before the slices.
            unsafe { slice(buffer, start, &tensor.kind.shape(rows, capacity)) }
        });
        let mut slices = slices.collect::<ort::Result<Vec<_>>>()?;
        let mut binding = bind(session, &run)?;
        for (tensor, slice) in self.layout.tensors.iter().zip(&mut slices) {
            binding.bind_input(&tensor.past, &**slice)?;
            match tensor.kind {
                Kind::KeyValue { .. } => {
                    binding.bind_output(&tensor.present, slice.tensor_mut())?
                }
                Kind::Conv { .. } => binding.bind_output_to_device(&tensor.present, &memory)?,
            }
        }
        let mut made = session.run_binding_with_options(&binding, run.options)?;
        let outputs = asked_for(&mut made, &run)?;
        let convs = self.layout.tensors.iter().filter(|tensor| tensor.kind.is_conv());
        let convs = convs.map(|tensor| take(&mut made, &tensor.present));
        let convs = convs.collect::<ort::Result<Vec<_>>>()?;
        drop(made);
        drop(binding);
        drop(slices);

        let last = self.earlier(&convs, 0)?;
        let kept_several = last.iter().any(Option::is_some);
        // From here on, a failure would leave some layers moved on.
        self.lost[slots.clone()].fill(true);
        let tensors = self.tensors().filter(|(tensor, _)| tensor.kind.is_conv());
        for (((tensor, buffer), conv), last) in tensors.zip(&convs).zip(&last) {
            let length = tensor.kind.elements(0);
            let state = last.as_ref().unwrap_or(conv);
            copy_part(state, 0, buffer, slots.start * length, rows * length)?;
        }
        self.lost[slots.clone()].fill(false);
        self.kept = kept_several.then_some((slots.start, convs));
        self.tokens[slots].iter_mut().for_each(|tokens| *tokens += run.tokens);
        Ok(outputs)
    }

    fn truncate_last(&mut self, slot: usize, count: usize) -> ort::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let kept = self.kept.take().filter(|(kept, _)| *kept == slot);
        let (_, kept) = kept.ok_or_else(|| ort::Error::new("a conv state was not kept"))?;
        let states: Vec<_> = self.earlier(&kept, count)?.into_iter().flatten().collect();
        self.set_conv_states(slot, &states)?;
        self.tokens[slot] -= count;
        Ok(())
    }

    fn snapshot(&mut self, slot: usize) -> ort::Result<Snapshot> {
        let (tokens, memory) = (self.tokens[slot], self.memory.clone());
        let tensors = self.tensors().filter(|(tensor, _)| tensor.kind.is_conv());
        let conv = tensors.map(|(tensor, buffer)| {
            let start = slot * tensor.kind.elements(0);
            copy_of(buffer, start, &tensor.kind.shape(1, 0), memory.as_ref())
        });
        Ok(Snapshot { tokens, conv: conv.collect::<ort::Result<_>>()? })
    }

    fn rewind(&mut self, slot: usize, snapshot: &Snapshot) -> ort::Result<()> {
        self.set_conv_states(slot, &snapshot.conv)?;
        self.tokens[slot] = snapshot.tokens;
        self.lost[slot] = false;
        Ok(())
    }

    fn copy(&mut self, from: usize, into: usize, snapshot: &Snapshot) -> ort::Result<()> {
        let (capacity, tokens) = (self.capacity, snapshot.tokens);
        let mut copied = 0;
        for (tensor, buffer) in self.tensors() {
            let Kind::KeyValue { heads: count, head_dim } = tensor.kind else { continue };
            let starts = heads(from, capacity, count, head_dim);
            for (from, into) in starts.zip(heads(into, capacity, count, head_dim)) {
                copy_within(buffer, from, into, tokens * head_dim)?;
            }
            copied += tokens * count * head_dim;
        }
        self.copied_bytes += (copied * self.layout.element_bytes()) as u64;
        self.rewind(into, snapshot)
    }

    fn swap(&mut self, a: usize, b: usize) -> ort::Result<()> {
        if a == b {
            return Ok(());
        }
        let (longer, shorter) = if self.tokens[a] < self.tokens[b] { (b, a) } else { (a, b) };
        let (most, least) = (self.tokens[longer], self.tokens[shorter]);
        let (capacity, memory) = (self.capacity, self.memory.clone());
        let mut copied = 0;
        for (tensor, buffer) in self.tensors() {
            let length = tensor.kind.elements(0);
            match tensor.kind {
                Kind::Conv { .. } => {
                    swap_within(buffer, a * length, b * length, length, memory.as_ref())?;
                    copied += 2 * length;
                }
                Kind::KeyValue { heads: count, head_dim } => {
                    let (both, rest) = (least * head_dim, (most - least) * head_dim);
                    let starts = heads(longer, capacity, count, head_dim);
                    for (from, into) in starts.zip(heads(shorter, capacity, count, head_dim)) {
                        swap_within(buffer, from, into, both, memory.as_ref())?;
                        copy_within(buffer, from + both, into + both, rest)?;
                    }
                    copied += (2 * both + rest) * count;
                }
            }
        }
        self.copied_bytes += (copied * self.layout.element_bytes()) as u64;
        self.tokens.swap(a, b);
        self.lost.swap(a, b);
        self.kept = None;
        Ok(())
    }

    fn clear(&mut self, slot: usize) -> ort::Result<()> {
        for (tensor, buffer) in self.tensors().filter(|(tensor, _)| tensor.kind.is_conv()) {
            let length = tensor.kind.elements(0);
            write_zeros(buffer, slot * length, length)?;
        }
        self.tokens[slot] = 0;
        self.lost[slot] = false;
        Ok(())
    }

    /// What is behind the tokens is never read, so the same.
    fn reset(&mut self, slot: usize) -> ort::Result<()> {
        self.clear(slot)
    }

    fn bytes(&self) -> usize {
        self.buffers.iter().map(bytes).sum()
    }

    fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }
}
