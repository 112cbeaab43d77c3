//! Steps of the decoder over one token, in buffers that stay where they are. Nothing has to be bound
//! again from step to step, and a device can record a step and replay it: CUDA graphs want the same
//! addresses each time.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use ort::{
    session::{IoBinding, RunOptions, Session, SessionOutputs},
    value::DynTensor,
};

use super::{
    memory::{DeviceMemory, new_tensor, overwrite},
    state::StateTensor,
};

/// The setting of a run that names the recording to make or to replay.
const RECORDING: &str = "gpu_graph_id";

/// Makes buffers for steps, and keeps those that are free: a recording stays with its buffers as long
/// as the session, so no more are made than conversations go on at a time.
pub(crate) struct Recorder {
    memory: Option<DeviceMemory>,
    /// Whether the provider records.
    records: bool,
    free: Arc<Mutex<Vec<Slot>>>,
    made: AtomicU32,
}

/// The buffers of a step.
struct Slot {
    embeddings: DynTensor,
    attention_mask: DynTensor,
    /// Of each tensor of the state. Keys and values are written in place; conv states go from one
    /// buffer to the other and back.
    state: Vec<Buffer>,
    /// Runs from the first conv buffers to the second, and back.
    runs: [(IoBinding, RunOptions); 2],
    /// Which of them is next.
    turn: usize,
}

enum Buffer {
    Cache(DynTensor),
    Conv([DynTensor; 2]),
}

impl Buffer {
    /// What the run number `turn` takes.
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

/// Buffers in use by a state; given back when dropped.
pub(crate) struct Lease {
    /// Always there until dropped. A mutex, since bindings are not to be shared, but states are.
    slot: Option<Mutex<Slot>>,
    free: Arc<Mutex<Vec<Slot>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let slot = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

impl Recorder {
    pub(crate) fn new(memory: Option<DeviceMemory>, records: bool) -> Self {
        Recorder { memory, records, free: Arc::default(), made: AtomicU32::new(0) }
    }

    /// Buffers with this state in them.
    pub(super) fn lease(
        &self,
        session: &Session,
        state: &[StateTensor],
        outputs: &[&str],
    ) -> ort::Result<Lease> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut slot = match free {
            Some(slot) => slot,
            None => self.slot(session, state, outputs)?,
        };
        let turn = slot.turn;
        for (tensor, buffer) in state.iter().zip(&mut slot.state) {
            overwrite(buffer.past(turn), &tensor.value)?;
        }
        Ok(Lease { slot: Some(Mutex::new(slot)), free: Arc::clone(&self.free) })
    }

    fn slot(
        &self,
        session: &Session,
        state: &[StateTensor],
        outputs: &[&str],
    ) -> ort::Result<Slot> {
        let memory = self.memory.as_ref();
        let like =
            |tensor: &DynTensor| new_tensor(*tensor.data_type(), &tensor.shape()[..], memory);
        let fixed = |outlets: &[ort::value::Outlet], name: &str| {
            let outlet = outlets.iter().find(|outlet| outlet.name() == name);
            let dtype = outlet.map(ort::value::Outlet::dtype);
            match dtype.and_then(|dtype| dtype.tensor_type().zip(dtype.tensor_shape())) {
                Some((dtype, shape)) => new_tensor(dtype, &shape[..], memory),
                None => Err(ort::Error::new(format!("no tensor {name}"))),
            }
        };
        let embeddings = fixed(session.inputs(), "inputs_embeds")?;
        let attention_mask = fixed(session.inputs(), "attention_mask")?;
        let mut buffers = state
            .iter()
            .map(|tensor| match tensor.conv_width {
                Some(_) => Ok(Buffer::Conv([like(&tensor.value)?, like(&tensor.value)?])),
                None => Ok(Buffer::Cache(like(&tensor.value)?)),
            })
            .collect::<ort::Result<Vec<_>>>()?;
        let mut read = outputs
            .iter()
            .map(|name| Ok((*name, fixed(session.outputs(), name)?)))
            .collect::<ort::Result<Vec<_>>>()?;
        let mut run = |turn: usize| -> ort::Result<(IoBinding, RunOptions)> {
            let mut binding = session.create_binding()?;
            binding.bind_input("inputs_embeds", &embeddings)?;
            binding.bind_input("attention_mask", &attention_mask)?;
            for (tensor, buffer) in state.iter().zip(&mut buffers) {
                binding.bind_input(&tensor.past, &*buffer.past(turn))?;
                binding.bind_output(&tensor.present, buffer.present(turn))?;
            }
            for (name, tensor) in &mut read {
                binding.bind_output(*name, tensor)?;
            }
            let mut options = RunOptions::new()?;
            if self.records {
                let id = self.made.fetch_add(1, Ordering::Relaxed);
                options.set(RECORDING, id.to_string())?;
            }
            Ok((binding, options))
        };
        let runs = [run(0)?, run(1)?];
        Ok(Slot { embeddings, attention_mask, state: buffers, runs, turn: 0 })
    }
}

impl Lease {
    fn slot(&mut self) -> ort::Result<&mut Slot> {
        let slot = self.slot.as_mut().map(|slot| slot.get_mut());
        let slot = slot.map(|slot| slot.unwrap_or_else(PoisonError::into_inner));
        slot.ok_or_else(|| ort::Error::new("the buffers of a step were given back"))
    }

    /// Runs a step, and gives its outputs to `read`. They are overwritten by the next step.
    pub(super) fn step<T>(
        &mut self,
        session: &mut Session,
        embeddings: &DynTensor,
        attention_mask: &DynTensor,
        read: impl FnOnce(&mut SessionOutputs<'_>) -> ort::Result<T>,
    ) -> ort::Result<T> {
        let slot = self.slot()?;
        overwrite(&mut slot.embeddings, embeddings)?;
        overwrite(&mut slot.attention_mask, attention_mask)?;
        let (binding, options) = &slot.runs[slot.turn];
        let result = read(&mut session.run_binding_with_options(binding, options)?);
        slot.turn = 1 - slot.turn;
        result
    }

    /// Copies the state back.
    pub(super) fn unload(&mut self, state: &mut [StateTensor]) -> ort::Result<()> {
        let slot = self.slot()?;
        let turn = slot.turn;
        for (tensor, buffer) in state.iter_mut().zip(&mut slot.state) {
            overwrite(&mut tensor.value, buffer.past(turn))?;
        }
        Ok(())
    }
}
