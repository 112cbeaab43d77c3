//! A step whose inputs and outputs are bound once: nothing has to be bound again, and a device can record
//! it and replay it, for which CUDA graphs want the same addresses each time.

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::DynTensor,
};

use super::{Outputs, Run, asked_for};
use crate::backend::{DeviceMemory, inputs_on_host, new_tensor, overwrite};

/// The setting of a run that names the recording to make or to replay.
const RECORDING: &str = "gpu_graph_id";
/// Its value for runs that are neither.
const NOT_RECORDED: &str = "-1";

/// Lets a session that records steps run once without recording.
pub(crate) fn without_recording(options: &mut RunOptions) -> ort::Result<()> {
    options.set(RECORDING, NOT_RECORDED)
}

/// Numbers of a session's recordings.
#[derive(Default)]
pub(super) struct Recordings(u32);

impl Recordings {
    /// One that no other step has.
    pub(super) fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0 - 1
    }
}

/// A step over one token of each of some sequences.
pub(super) struct BoundStep {
    /// Inputs besides the state.
    inputs: Vec<(&'static str, DynTensor)>,
    binding: IoBinding,
    options: RunOptions,
}

impl BoundStep {
    /// A step of `rows` sequences, for inputs and outputs as those of `run`, whose state `bind` binds. With a
    /// number it is recorded.
    pub(super) fn new(
        session: &Session,
        run: &Run<'_>,
        rows: usize,
        memory: Option<&DeviceMemory>,
        recording: Option<u32>,
        bind: impl FnOnce(&mut IoBinding) -> ort::Result<()>,
    ) -> ort::Result<Self> {
        let mut binding = session.create_binding()?;
        let on_host = inputs_on_host(session)?;
        let place = |name: &str| memory.filter(|_| !on_host.iter().any(|other| other == name));
        let inputs = run.inputs.iter().map(|(name, value)| {
            let own = new_tensor(*value.data_type(), &value.shape()[..], place(name))?;
            Ok((*name, own))
        });
        let mut inputs = inputs.collect::<ort::Result<Vec<_>>>()?;
        for ((name, own), (_, value)) in inputs.iter_mut().zip(&run.inputs) {
            // What is read on the host when a step is recorded stays as it is then.
            overwrite(own, value)?;
            binding.bind_input(*name, &*own)?;
        }
        bind(&mut binding)?;
        for (name, _) in &run.outputs {
            let outlet = session.outputs().iter().find(|outlet| outlet.name() == *name);
            let dtype = outlet.map(ort::value::Outlet::dtype);
            let Some((dtype, shape)) =
                dtype.and_then(|dtype| dtype.tensor_type().zip(dtype.tensor_shape()))
            else {
                return Err(ort::Error::new(format!("no output {name}")));
            };
            // Free sizes are those of a step: one of each sequence.
            let sizes = shape.iter().enumerate().map(|(axis, &size)| match (axis, size) {
                (0, ..=0) => rows as i64,
                (_, ..=0) => 1,
                (_, size) => size,
            });
            let mut own = new_tensor(dtype, &sizes.collect::<Vec<_>>(), memory)?;
            binding.bind_output(*name, &mut own)?;
        }
        let mut options = RunOptions::new()?;
        if let Some(recording) = recording {
            options.set(RECORDING, recording.to_string())?;
        }
        Ok(BoundStep { inputs, binding, options })
    }

    /// Runs with the inputs of `run`.
    pub(super) fn run(&mut self, session: &mut Session, run: &Run<'_>) -> ort::Result<Outputs> {
        for ((_, own), (_, value)) in self.inputs.iter_mut().zip(&run.inputs) {
            overwrite(own, value)?;
        }
        let mut made = session.run_binding_with_options(&self.binding, &self.options)?;
        asked_for(&mut made, run)
    }
}
