//! Each sequence in buffers of a fixed length, which runs write in place. Steps over one token keep their
//! bindings.

use std::ops::Range;

use ort::{
    session::{IoBinding, Session},
    value::DynTensor,
};

use super::{
    Buffer, KvCache, Layout, Outputs, Run, Snapshot, asked_for, bind,
    bound_step::{BoundStep, Recordings, StepBuffers},
    layout::{Kind, StateTensor},
    take,
};
use crate::backend::{DeviceMemory, TensorSlice, copy_of, new_tensor, overwrite, shape};

/// States in buffers that stay where they are.
pub(crate) struct InPlace {
    layout: Layout,
    memory: Option<DeviceMemory>,
    capacity: usize,
    limit: usize,
    /// Whether steps are to be recorded.
    records: bool,
    recordings: Recordings,
    slots: Vec<State>,
}

/// The state of a sequence, and what its steps are bound to.
#[derive(Default)]
struct State {
    tokens: usize,
    /// In the order of the layout; none before the slot is used for the first time.
    buffers: Vec<Buffer>,
    /// Which of each pair of conv buffers has the state.
    turn: usize,
    /// Steps from the first conv buffers to the second, and back.
    steps: [Option<BoundStep>; 2],
    step_buffers: Option<StepBuffers>,
}

impl InPlace {
    pub(crate) fn new(
        layout: Layout,
        memory: Option<DeviceMemory>,
        slots: usize,
        limit: usize,
        records: bool,
    ) -> Self {
        let capacity = layout.fixed_capacity.unwrap_or_default();
        let slots = (0..slots).map(|_| State::default()).collect();
        let limit = limit.min(capacity);
        InPlace {
            layout,
            memory,
            capacity,
            limit,
            records,
            recordings: Recordings::default(),
            slots,
        }
    }

    /// Zeros on the host.
    fn zeros(&self, tensor: &StateTensor) -> ort::Result<DynTensor> {
        let sizes = tensor.kind.shape(1, self.capacity);
        let sizes: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        new_tensor(tensor.dtype, &sizes, None)
    }

    fn buffers(&self) -> ort::Result<Vec<Buffer>> {
        let zeros = |tensor: &StateTensor| {
            let zeros = self.zeros(tensor)?;
            match &self.memory {
                Some(memory) => memory.hold(zeros),
                None => Ok(zeros),
            }
        };
        let buffer = |tensor: &StateTensor| match tensor.kind {
            Kind::Conv { .. } => Ok(Buffer::Conv([zeros(tensor)?, zeros(tensor)?])),
            Kind::KeyValue { .. } => Ok(Buffer::Cache(zeros(tensor)?)),
        };
        self.layout.tensors.iter().map(buffer).collect()
    }

    fn step(&mut self, session: &mut Session, slot: usize, run: &Run<'_>) -> ort::Result<Outputs> {
        let InPlace { layout, memory, slots, records, recordings, .. } = self;
        let State { buffers, turn, steps, step_buffers, .. } = &mut slots[slot];
        let bound_to = match step_buffers {
            Some(bound_to) => bound_to,
            none => none.insert(StepBuffers::new(session, run, 1, memory.as_ref())?),
        };
        let step = match steps[*turn].take() {
            Some(step) => step,
            None => {
                let recording = records.then(|| recordings.next());
                let bind = |binding: &mut IoBinding| {
                    for (tensor, buffer) in layout.tensors.iter().zip(buffers) {
                        binding.bind_input(&tensor.past, &*buffer.past(*turn))?;
                        binding.bind_output(&tensor.present, buffer.present(*turn))?;
                    }
                    Ok(())
                };
                // SAFETY: the buffers are there as long as the slot's steps.
                unsafe { BoundStep::new(session, 1, bound_to, *turn, recording, bind)? }
            }
        };
        let outputs = step.run(session, bound_to, run)?;
        // After a failure a recording may be one of half a step.
        steps[*turn] = Some(step);
        Ok(outputs)
    }

    fn run_once(
        &mut self,
        session: &mut Session,
        slot: usize,
        run: &Run<'_>,
    ) -> ort::Result<Outputs> {
        let state = &mut self.slots[slot];
        let mut binding = bind(session, run)?;
        for (tensor, buffer) in self.layout.tensors.iter().zip(&mut state.buffers) {
            binding.bind_input(&tensor.past, &*buffer.past(state.turn))?;
            binding.bind_output(&tensor.present, buffer.present(state.turn))?;
        }
        let mut made = session.run_binding_with_options(&binding, run.options)?;
        // Where the session computes elsewhere, this is where its copies go back.
        for tensor in &self.layout.tensors {
            take(&mut made, &tensor.present)?;
        }
        asked_for(&mut made, run)
    }
}

impl KvCache for InPlace {
    fn tokens(&self, slot: usize) -> usize {
        self.slots[slot].tokens
    }

    fn limit(&self) -> usize {
        self.limit
    }

    fn step_input(
        &mut self,
        slots: &Range<usize>,
        name: &str,
    ) -> ort::Result<Option<TensorSlice<'_>>> {
        let State { turn, step_buffers, .. } = &mut self.slots[slots.start];
        match step_buffers {
            Some(buffers) => buffers.input(*turn, name, 1),
            None => Ok(None),
        }
    }

    fn run(
        &mut self,
        session: &mut Session,
        slots: Range<usize>,
        run: Run<'_>,
    ) -> ort::Result<Outputs> {
        let slot = slots.start;
        self.reserve(self.slots[slot].tokens + run.tokens)?;
        if self.slots[slot].buffers.is_empty() {
            self.clear(slot)?;
        }
        let outputs = if run.is_step {
            self.step(session, slot, &run)?
        } else {
            self.run_once(session, slot, &run)?
        };
        let state = &mut self.slots[slot];
        state.turn = 1 - state.turn;
        state.tokens += run.tokens;
        Ok(outputs)
    }

    fn truncate_last(&mut self, _: usize, count: usize) -> ort::Result<()> {
        match count {
            0 => Ok(()),
            _ => Err(ort::Error::new("a conv state was not kept")),
        }
    }

    fn snapshot(&mut self, slot: usize) -> ort::Result<Snapshot> {
        let State { tokens, turn, buffers, .. } = &mut self.slots[slot];
        let conv = buffers.iter().filter_map(|buffer| match buffer {
            Buffer::Conv(pair) => Some(&pair[*turn]),
            Buffer::Cache(_) => None,
        });
        let conv = conv.map(|value| copy_of(value, 0, &shape(value), self.memory.as_ref()));
        Ok(Snapshot { tokens: *tokens, conv: conv.collect::<ort::Result<_>>()? })
    }

    fn rewind(&mut self, slot: usize, snapshot: &Snapshot) -> ort::Result<()> {
        let state = &mut self.slots[slot];
        let turn = state.turn;
        let convs = state.buffers.iter_mut().filter(|buffer| matches!(buffer, Buffer::Conv(_)));
        for (buffer, earlier) in convs.zip(&snapshot.conv) {
            overwrite(buffer.past(turn), earlier)?;
        }
        state.tokens = snapshot.tokens;
        Ok(())
    }

    fn copy(&mut self, from: usize, into: usize, snapshot: &Snapshot) -> ort::Result<()> {
        if self.slots[into].buffers.is_empty() {
            self.clear(into)?;
        }
        if let Ok([from, into]) = self.slots.get_disjoint_mut([from, into]) {
            for (from, into) in from.buffers.iter().zip(&mut into.buffers) {
                if let (Buffer::Cache(from), Buffer::Cache(into)) = (from, into) {
                    overwrite(into, from)?;
                }
            }
        }
        self.rewind(into, snapshot)
    }

    fn swap(&mut self, a: usize, b: usize) -> ort::Result<()> {
        self.slots.swap(a, b);
        Ok(())
    }

    fn clear(&mut self, slot: usize) -> ort::Result<()> {
        if self.slots[slot].buffers.is_empty() {
            self.slots[slot].buffers = self.buffers()?;
        }
        for index in 0..self.layout.tensors.len() {
            if self.layout.tensors[index].kind.is_conv() {
                let zeros = self.zeros(&self.layout.tensors[index])?;
                let state = &mut self.slots[slot];
                overwrite(state.buffers[index].past(state.turn), &zeros)?;
            }
        }
        self.slots[slot].tokens = 0;
        Ok(())
    }

    fn reset(&mut self, slot: usize) -> ort::Result<()> {
        if self.slots[slot].buffers.is_empty() {
            return Ok(());
        }
        for index in 0..self.layout.tensors.len() {
            let zeros = self.zeros(&self.layout.tensors[index])?;
            for turn in 0..2 {
                overwrite(self.slots[slot].buffers[index].past(turn), &zeros)?;
            }
        }
        self.slots[slot].tokens = 0;
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.slots.iter().flat_map(|state| &state.buffers).map(Buffer::bytes).sum()
    }
}
