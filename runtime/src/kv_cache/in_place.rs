//! Each sequence in buffers of a fixed length, which runs write in place. Steps over one token keep
//! their bindings: nothing has to be bound again, and a device can record a step and replay it, for
//! which CUDA graphs want the same addresses each time.

use std::ops::Range;

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::DynTensor,
};

use super::{
    KvCache, Layout, Outputs, Run, Snapshot, asked_for, bind,
    layout::{Kind, StateTensor},
    take,
};
use crate::backend::{DeviceMemory, bytes, copy_of, new_tensor, overwrite, shape};

/// The setting of a run that names the recording to make or to replay.
const RECORDING: &str = "gpu_graph_id";

/// States in buffers that stay where they are.
pub(crate) struct InPlace {
    layout: Layout,
    memory: Option<DeviceMemory>,
    capacity: usize,
    limit: usize,
    /// Whether steps are to be recorded.
    records: bool,
    recordings: u32,
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
    steps: Option<Steps>,
}

enum Buffer {
    /// Keys or values, written in place.
    Cache(DynTensor),
    /// Conv states, which go from one buffer to the other and back.
    Conv([DynTensor; 2]),
}

impl Buffer {
    /// What a run in this turn takes.
    fn past(&mut self, turn: usize) -> &mut DynTensor {
        match self {
            Buffer::Cache(cache) => cache,
            Buffer::Conv(pair) => &mut pair[turn],
        }
    }

    /// What it writes.
    fn present(&mut self, turn: usize) -> &mut DynTensor {
        match self {
            Buffer::Cache(cache) => cache,
            Buffer::Conv(pair) => &mut pair[1 - turn],
        }
    }
}

/// What steps of a slot are bound to.
struct Steps {
    /// Inputs besides the state.
    inputs: Vec<(&'static str, DynTensor)>,
    /// Runs from the first conv buffers to the second, and back.
    runs: [(IoBinding, RunOptions); 2],
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
        InPlace { layout, memory, capacity, limit, records, recordings: 0, slots }
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

    /// Binds the steps of a slot, for inputs and outputs as those of `run`.
    fn bind_steps(&mut self, session: &Session, slot: usize, run: &Run<'_>) -> ort::Result<Steps> {
        let memory = self.memory.as_ref();
        let like =
            |tensor: &DynTensor| new_tensor(*tensor.data_type(), &tensor.shape()[..], memory);
        let inputs = run.inputs.iter().map(|(name, value)| Ok((*name, like(value)?)));
        let inputs = inputs.collect::<ort::Result<Vec<_>>>()?;
        let mut outputs = run
            .outputs
            .iter()
            .map(|(name, _)| {
                let outlet = session.outputs().iter().find(|outlet| outlet.name() == *name);
                let dtype = outlet.map(ort::value::Outlet::dtype);
                match dtype.and_then(|dtype| dtype.tensor_type().zip(dtype.tensor_shape())) {
                    Some((dtype, shape)) => Ok((*name, new_tensor(dtype, &shape[..], memory)?)),
                    None => Err(ort::Error::new(format!("no output {name}"))),
                }
            })
            .collect::<ort::Result<Vec<_>>>()?;
        let state = &mut self.slots[slot];
        let mut bound = |turn: usize| -> ort::Result<(IoBinding, RunOptions)> {
            let mut binding = session.create_binding()?;
            for (name, value) in &inputs {
                binding.bind_input(*name, value)?;
            }
            for (tensor, buffer) in self.layout.tensors.iter().zip(&mut state.buffers) {
                binding.bind_input(&tensor.past, &*buffer.past(turn))?;
                binding.bind_output(&tensor.present, buffer.present(turn))?;
            }
            for (name, value) in &mut outputs {
                binding.bind_output(*name, value)?;
            }
            let mut options = RunOptions::new()?;
            if self.records {
                options.set(RECORDING, self.recordings.to_string())?;
                self.recordings += 1;
            }
            Ok((binding, options))
        };
        let runs = [bound(0)?, bound(1)?];
        Ok(Steps { inputs, runs })
    }

    fn step(&mut self, session: &mut Session, slot: usize, run: &Run<'_>) -> ort::Result<Outputs> {
        let mut steps = match self.slots[slot].steps.take() {
            Some(steps) => steps,
            None => self.bind_steps(session, slot, run)?,
        };
        for ((_, into), (_, from)) in steps.inputs.iter_mut().zip(&run.inputs) {
            overwrite(into, from)?;
        }
        let state = &mut self.slots[slot];
        let (binding, options) = &steps.runs[state.turn];
        let result = session
            .run_binding_with_options(binding, options)
            .and_then(|mut made| asked_for(&mut made, run));
        state.steps = Some(steps);
        result
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
        let buffers = self.slots.iter().flat_map(|state| &state.buffers);
        let of = |buffer: &Buffer| match buffer {
            Buffer::Cache(cache) => bytes(cache),
            Buffer::Conv(pair) => pair.iter().map(bytes).sum(),
        };
        buffers.map(of).sum()
    }
}
