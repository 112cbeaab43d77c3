//! All sequences in common buffers [slots, ...]. The batch is the outermost axis, so neighbouring
//! slots are a tensor without a copy, and so is one: a prompt runs in the slot where it will decode, and
//! a step runs over all sequences that decode.

mod swap;

use std::{collections::BTreeMap, ops::Range};

use ort::{
    session::{IoBinding, Session},
    value::DynTensor,
};

use super::{
    Buffer, KvCache, Layout, Outputs, Run, Snapshot, asked_for, bind,
    bound_step::{BoundStep, Recordings, StepBuffers},
    layout::{Kind, StateTensor},
    no_room, take,
};
use crate::backend::{
    Copies, DeviceMemory, Piece, TensorSlice, alias, memory_info, new_tensor, slice, unwritten,
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
    /// Whether steps keep their bindings, where there is all the room at once.
    pub(crate) keeps_steps: bool,
    /// Whether they are recorded.
    pub(crate) records: bool,
}

/// Common buffers of all slots.
pub(crate) struct Slots {
    layout: Layout,
    memory: Option<DeviceMemory>,
    limits: Limits,
    /// One for each tensor of the layout, [slots, ...].
    buffers: Vec<Buffer>,
    /// Which of each pair of conv buffers has a slot's state.
    turns: Vec<usize>,
    /// Tokens that keys and values have room for.
    capacity: usize,
    /// Tokens that each slot's state covers. What is behind them is never read.
    tokens: Vec<usize>,
    /// Conv states of the last run, if it kept those after several tokens, and its slot.
    kept: Option<(usize, Vec<DynTensor>)>,
    /// Steps over the first slots that keep their bindings, by how many slots there are and by their turn.
    steps: BTreeMap<(usize, usize), BoundStep>,
    step_buffers: Option<StepBuffers>,
    /// Numbers of recordings, where steps are recorded.
    recordings: Option<Recordings>,
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
            let shape = tensor.kind.shape(limits.slots, capacity);
            let new = || unwritten(tensor.dtype, &shape, memory.as_ref());
            match tensor.kind {
                Kind::Conv { .. } => Ok(Buffer::Conv([new()?, new()?])),
                Kind::KeyValue { .. } => new().map(Buffer::Cache),
            }
        };
        let buffers = layout.tensors.iter().map(buffer).collect::<ort::Result<_>>()?;
        let mut slots = Slots {
            layout,
            memory,
            limits,
            buffers,
            turns: vec![0; limits.slots],
            capacity,
            tokens: vec![0; limits.slots],
            kept: None,
            steps: BTreeMap::new(),
            step_buffers: None,
            recordings: limits.records.then(Recordings::default),
            copied_bytes: 0,
            lost: vec![false; limits.slots],
        };
        (0..limits.slots).try_for_each(|slot| slots.clear(slot))?;
        Ok(slots)
    }

    /// Whether steps keep their bindings, for which buffers must stay where they are.
    fn keeps_steps(&self) -> bool {
        self.limits.at_once && self.limits.keeps_steps
    }

    /// The keys and values, with their heads and the size of each.
    fn caches(&mut self) -> impl Iterator<Item = (&mut DynTensor, [usize; 2])> {
        let tensors = self.layout.tensors.iter().zip(&mut self.buffers);
        tensors.filter_map(|(tensor, buffer)| match (tensor.kind, buffer) {
            (Kind::KeyValue { heads, head_dim }, Buffer::Cache(cache)) => {
                Some((cache, [heads, head_dim]))
            }
            _ => None,
        })
    }

    /// The conv states, with both buffers of each.
    fn convs(&mut self) -> impl Iterator<Item = (Kind, &mut [DynTensor; 2])> {
        let tensors = self.layout.tensors.iter().zip(&mut self.buffers);
        tensors.filter_map(|(tensor, buffer)| match buffer {
            Buffer::Conv(pair) => Some((tensor.kind, pair)),
            Buffer::Cache(_) => None,
        })
    }

    /// Which of each two conv buffers has the states of most of these slots.
    fn turn_of(&self, slots: &[usize]) -> usize {
        let second = slots.iter().filter(|&&slot| self.turns[slot] == 1).count();
        usize::from(2 * second > slots.len())
    }

    /// Brings the conv states of some slots together in one of each two buffers, and tells which.
    fn bring_together(&mut self, slots: impl IntoIterator<Item = usize>) -> ort::Result<usize> {
        let slots: Vec<usize> = slots.into_iter().collect();
        let turn = self.turn_of(&slots);
        let moved: Vec<usize> =
            slots.into_iter().filter(|&slot| self.turns[slot] != turn).collect();
        let mut copies = Copies::default();
        for (kind, [first, second]) in self.convs() {
            let length = kind.elements(0);
            let (from, into) = if turn == 0 { (second, first) } else { (first, second) };
            let pieces = moved.iter().map(|slot| Piece::at(slot * length, slot * length, length));
            copies.add_pieces(from, into, pieces)?;
        }
        copies.make()?;
        moved.into_iter().for_each(|slot| self.turns[slot] = turn);
        Ok(turn)
    }

    /// Of conv states that a run gave, those before the last `left_out` positions, where they differ.
    fn earlier(&self, convs: &[DynTensor], left_out: usize) -> ort::Result<Vec<Option<DynTensor>>> {
        let tensors = self.layout.tensors.iter().filter(|tensor| tensor.kind.is_conv());
        let earlier = |(tensor, conv): (&StateTensor, _)| {
            tensor.kind.earlier(conv, left_out, self.memory.as_ref())
        };
        tensors.zip(convs).map(earlier).collect()
    }

    /// Runs a step over the first slots, whose conv states are in buffers of this turn.
    fn step(
        &mut self,
        session: &mut Session,
        rows: usize,
        turn: usize,
        run: &Run<'_>,
    ) -> ort::Result<Outputs> {
        let Slots {
            layout,
            memory,
            limits,
            buffers,
            capacity,
            steps,
            step_buffers,
            recordings,
            ..
        } = self;
        let bound_to = match step_buffers {
            Some(bound_to) => bound_to,
            none => none.insert(StepBuffers::new(session, run, limits.slots, memory.as_ref())?),
        };
        let step = match steps.remove(&(rows, turn)) {
            Some(step) => step,
            None => {
                let recording = recordings.as_mut().map(Recordings::next);
                let bind = |binding: &mut IoBinding| {
                    for (tensor, buffer) in layout.tensors.iter().zip(buffers) {
                        let shape = tensor.kind.shape(rows, *capacity);
                        // SAFETY: these buffers stay where they are, since there is room for all
                        // tokens, and are there as long as the steps; nothing else uses them in a run.
                        let part = |buffer: &DynTensor| unsafe { alias(buffer, 0, &shape) };
                        binding.bind_input(&tensor.past, &part(buffer.past(turn))?)?;
                        binding.bind_output(&tensor.present, &mut part(buffer.present(turn))?)?;
                    }
                    Ok(())
                };
                // SAFETY: the buffers are there as long as the steps.
                unsafe { BoundStep::new(session, rows, bound_to, turn, recording, bind)? }
            }
        };
        let outputs = step.run(session, bound_to, run)?;
        // After a failure a recording may be one of half a step.
        steps.insert((rows, turn), step);
        Ok(outputs)
    }

    /// Conv states of one slot, in the order of the layout.
    fn set_conv_states(&mut self, slot: usize, states: &[DynTensor]) -> ort::Result<()> {
        let turn = self.turns[slot];
        let mut copies = Copies::default();
        for ((kind, pair), state) in self.convs().zip(states) {
            let length = kind.elements(0);
            copies.add(state, 0, &mut pair[turn], slot * length, length)?;
        }
        copies.make()
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

    fn step_capacity(&self) -> Option<usize> {
        self.keeps_steps().then_some(self.capacity)
    }

    fn step_input(
        &mut self,
        slots: &Range<usize>,
        name: &str,
    ) -> ort::Result<Option<TensorSlice<'_>>> {
        let turn = self.turn_of(&slots.clone().collect::<Vec<_>>());
        match &mut self.step_buffers {
            Some(buffers) if slots.start == 0 => buffers.input(turn, name, slots.len()),
            _ => Ok(None),
        }
    }

    fn can_follow(&self, slots: &Range<usize>) -> bool {
        let next = (slots.len(), self.turns[slots.start]);
        slots.start == 0
            && self.step_buffers.as_ref().is_some_and(StepBuffers::feeds_back)
            && self.steps.contains_key(&next)
            && self.tokens[slots.clone()].iter().all(|&tokens| tokens < self.capacity)
    }

    fn take_back(&mut self, slot: usize) {
        // The step has read the other conv buffer, and what it wrote behind the tokens is never read.
        self.turns[slot] = 1 - self.turns[slot];
        self.tokens[slot] -= 1;
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
            let (Kind::KeyValue { heads: count, head_dim }, Buffer::Cache(buffer)) =
                (tensor.kind, buffer)
            else {
                larger.push(None);
                continue;
            };
            let mut new_buffer = unwritten(tensor.dtype, &tensor.kind.shape(slots, new), memory)?;
            let pieces = self.tokens.iter().enumerate().flat_map(|(slot, &tokens)| {
                let starts = heads(slot, old, count, head_dim);
                let starts = starts.zip(heads(slot, new, count, head_dim));
                starts.map(move |(from, into)| Piece::at(from, into, tokens * head_dim))
            });
            let mut copies = Copies::default();
            copies.add_pieces(buffer, &mut new_buffer, pieces)?;
            copies.make()?;
            copied += self.tokens.iter().sum::<usize>() * count * head_dim;
            larger.push(Some(new_buffer));
        }
        for (buffer, larger) in self.buffers.iter_mut().zip(larger) {
            if let Some(larger) = larger {
                *buffer = Buffer::Cache(larger);
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
        let turn = self.bring_together(slots.clone())?;
        if run.is_step && self.keeps_steps() && slots.start == 0 {
            let outputs = self.step(session, slots.len(), turn, &run)?;
            self.turns[slots.clone()].fill(1 - turn);
            self.tokens[slots].iter_mut().for_each(|tokens| *tokens += run.tokens);
            return Ok(outputs);
        }
        let gives_history = self.layout.gives_history;
        let (rows, capacity) = (slots.len(), self.capacity);
        let memory = memory_info(self.memory.as_ref())?;
        let mut binding = bind(session, &run)?;
        let mut slices = Vec::new();
        for (tensor, buffer) in self.layout.tensors.iter().zip(&mut self.buffers) {
            let shape = tensor.kind.shape(rows, capacity);
            let start = slots.start * tensor.kind.elements(capacity);
            // SAFETY: the binding is dropped before the slices, and each is of a buffer of its own.
            let part = |buffer| unsafe { slice(buffer, start, &shape) };
            match buffer {
                Buffer::Cache(cache) => {
                    let mut cache = part(cache)?;
                    binding.bind_input(&tensor.past, &*cache)?;
                    binding.bind_output(&tensor.present, cache.tensor_mut())?;
                    slices.push(cache);
                }
                Buffer::Conv([first, second]) => {
                    let (past, present) = if turn == 0 { (first, second) } else { (second, first) };
                    let past = part(past)?;
                    binding.bind_input(&tensor.past, &*past)?;
                    slices.push(past);
                    if gives_history {
                        binding.bind_output_to_device(&tensor.present, &memory)?;
                    } else {
                        let mut present = part(present)?;
                        binding.bind_output(&tensor.present, present.tensor_mut())?;
                        slices.push(present);
                    }
                }
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

        if gives_history {
            let last = self.earlier(&convs, 0)?;
            // From here on, a failure would leave some layers moved on.
            self.lost[slots.clone()].fill(true);
            let mut copies = Copies::default();
            for (((kind, pair), conv), last) in self.convs().zip(&convs).zip(&last) {
                let length = kind.elements(0);
                let state = last.as_ref().unwrap_or(conv);
                copies.add(state, 0, &mut pair[turn], slots.start * length, rows * length)?;
            }
            copies.make()?;
            self.lost[slots.clone()].fill(false);
            self.kept = last.iter().any(Option::is_some).then_some((slots.start, convs));
        } else {
            self.turns[slots.clone()].fill(1 - turn);
        }
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
        let (tokens, turn, memory) = (self.tokens[slot], self.turns[slot], self.memory.clone());
        let tensors = self.layout.tensors.iter().filter(|tensor| tensor.kind.is_conv());
        let new = |tensor: &StateTensor| {
            unwritten(tensor.dtype, &tensor.kind.shape(1, 0), memory.as_ref())
        };
        let mut conv = tensors.map(new).collect::<ort::Result<Vec<_>>>()?;
        let mut copies = Copies::default();
        for ((kind, pair), copy) in self.convs().zip(&mut conv) {
            let length = kind.elements(0);
            copies.add(&pair[turn], slot * length, copy, 0, length)?;
        }
        copies.make()?;
        Ok(Snapshot { tokens, conv })
    }

    fn rewind(&mut self, slot: usize, snapshot: &Snapshot) -> ort::Result<()> {
        self.set_conv_states(slot, &snapshot.conv)?;
        self.tokens[slot] = snapshot.tokens;
        self.lost[slot] = false;
        Ok(())
    }

    fn copy(&mut self, from: usize, into: usize, snapshot: &Snapshot) -> ort::Result<()> {
        let (capacity, tokens) = (self.capacity, snapshot.tokens);
        // Until it goes back to the snapshot.
        self.lost[into] = true;
        let (mut copied, mut copies) = (0, Copies::default());
        for (cache, [count, head_dim]) in self.caches() {
            let starts = heads(from, capacity, count, head_dim);
            let starts = starts.zip(heads(into, capacity, count, head_dim));
            let length = tokens * head_dim;
            copies.add_within(cache, starts.map(|(from, into)| Piece::at(from, into, length)))?;
            copied += count * length;
        }
        copies.make()?;
        self.copied_bytes += (copied * self.layout.element_bytes()) as u64;
        self.rewind(into, snapshot)
    }

    fn swap(&mut self, a: usize, b: usize) -> ort::Result<()> {
        if a == b {
            return Ok(());
        }
        let (longer, shorter) = if self.tokens[a] < self.tokens[b] { (b, a) } else { (a, b) };
        let (most, least) = (self.tokens[longer], self.tokens[shorter]);
        let saved = self.room_to_swap(least)?;
        // A failure would leave them half swapped.
        let lost = [a, b].map(|slot| std::mem::replace(&mut self.lost[slot], true));
        let mut copied = self.swap_caches([longer, shorter], [most, least], saved)?;
        // Each goes to where the other one's state is not.
        let turn = self.bring_together([a, b])?;
        let mut copies = Copies::default();
        for (kind, [first, second]) in self.convs() {
            let length = kind.elements(0);
            let (from, into) = if turn == 0 { (first, second) } else { (second, first) };
            let [a, b] = [a, b].map(|slot| slot * length);
            copies.add_pieces(from, into, [Piece::at(a, b, length), Piece::at(b, a, length)])?;
            copied += 2 * length;
        }
        copies.make()?;
        (self.turns[a], self.turns[b]) = (1 - turn, 1 - turn);
        self.copied_bytes += (copied * self.layout.element_bytes()) as u64;
        self.tokens.swap(a, b);
        [self.lost[b], self.lost[a]] = lost;
        self.kept = None;
        Ok(())
    }

    fn clear(&mut self, slot: usize) -> ort::Result<()> {
        // On the host, new tensors are zero.
        let zeros = |tensor: &StateTensor| {
            new_tensor(tensor.dtype, &[tensor.kind.elements(0) as i64], None)
        };
        let tensors = self.layout.tensors.iter().filter(|tensor| tensor.kind.is_conv());
        let zeros = tensors.map(zeros).collect::<ort::Result<Vec<_>>>()?;
        self.set_conv_states(slot, &zeros)?;
        self.tokens[slot] = 0;
        self.lost[slot] = false;
        Ok(())
    }

    /// What is behind the tokens is never read, so the same.
    fn reset(&mut self, slot: usize) -> ort::Result<()> {
        self.clear(slot)
    }

    fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }
}
