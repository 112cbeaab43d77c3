//! A step whose inputs and outputs are bound once: nothing has to be bound again, and a device can record
//! it and replay it, for which CUDA graphs want the same addresses each time.

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::DynTensor,
};

use super::{Outputs, Run, asked_for};
use crate::backend::{
    DeviceMemory, TensorSlice, alias, copy_part, inputs_on_host, new_tensor, shape, slice,
};

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

/// Outputs of a step, and the inputs of the next one that they are, where a graph has them.
const FEEDBACK: [(&str, &str); 2] = [("next_ids", "input_ids"), ("next_seqlens_k", "seqlens_k")];

/// What steps of up to some number of sequences read and write besides the state. Steps take turns with two sets
/// of buffers, so that what one gave is there while the next one runs.
pub(super) struct StepBuffers {
    turns: [TurnBuffers; 2],
    /// Whether a step writes what the next one reads.
    feeds_back: bool,
}

struct TurnBuffers {
    inputs: Vec<(&'static str, DynTensor)>,
    outputs: Vec<(&'static str, DynTensor)>,
}

impl StepBuffers {
    /// For inputs and outputs as those of `run`, of up to `most` sequences.
    pub(super) fn new(
        session: &Session,
        run: &Run<'_>,
        most: usize,
        memory: Option<&DeviceMemory>,
    ) -> ort::Result<Self> {
        let on_host = inputs_on_host(session)?;
        let buffers = || TurnBuffers::new(session, run, most, memory, &on_host);
        let gives = |name| session.outputs().iter().any(|output| output.name() == name);
        let takes = |name| run.inputs.iter().any(|(input, _)| *input == name);
        let feeds_back = FEEDBACK.iter().all(|(output, input)| gives(*output) && takes(*input));
        Ok(StepBuffers { turns: [buffers()?, buffers()?], feeds_back })
    }

    /// Whether a step writes what the next one reads.
    pub(super) fn feeds_back(&self) -> bool {
        self.feeds_back
    }

    /// Where a step of `rows` sequences whose turn it is reads an input.
    pub(super) fn input(
        &mut self,
        turn: usize,
        name: &str,
        rows: usize,
    ) -> ort::Result<Option<TensorSlice<'_>>> {
        let mut inputs = self.turns[turn].inputs.iter_mut();
        let Some((_, buffer)) = inputs.find(|(input, _)| *input == name) else { return Ok(None) };
        let sizes = sizes_of_rows(buffer, rows);
        // SAFETY: nothing is bound to the part longer than it lives, but the steps, which do not run meanwhile.
        unsafe { slice(buffer, 0, &sizes).map(Some) }
    }

    /// Writes the inputs of `run`, but for those that are there already.
    fn write(&mut self, turn: usize, run: &Run<'_>) -> ort::Result<()> {
        for (name, from) in &run.inputs {
            let mut inputs = self.turns[turn].inputs.iter_mut();
            let (_, into) = inputs
                .find(|(input, _)| input == name)
                .ok_or_else(|| ort::Error::new(format!("steps have no input {name}")))?;
            if from.data_ptr() != into.data_ptr() {
                copy_part(from, 0, into, 0, shape(from).iter().product())?;
            }
        }
        Ok(())
    }
}

impl TurnBuffers {
    fn new(
        session: &Session,
        run: &Run<'_>,
        most: usize,
        memory: Option<&DeviceMemory>,
        on_host: &[String],
    ) -> ort::Result<Self> {
        let sizes_of_most = |sizes: &[i64]| -> Vec<i64> {
            let of = |(axis, &size): (usize, &i64)| match (axis, size) {
                (0, _) => most as i64,
                // Free sizes are those of a step.
                (_, ..=0) => 1,
                (_, size) => size,
            };
            sizes.iter().enumerate().map(of).collect()
        };
        let inputs = run.inputs.iter().map(|(name, value)| {
            let memory = memory.filter(|_| !on_host.iter().any(|other| other == name));
            let sizes = sizes_of_most(&value.shape()[..]);
            Ok((*name, new_tensor(*value.data_type(), &sizes, memory)?))
        });
        let outputs = run.outputs.iter().map(|&(name, _)| {
            let outlet = session.outputs().iter().find(|outlet| outlet.name() == name);
            let dtype = outlet.map(ort::value::Outlet::dtype);
            match dtype.and_then(|dtype| dtype.tensor_type().zip(dtype.tensor_shape())) {
                Some((dtype, shape)) => {
                    Ok((name, new_tensor(dtype, &sizes_of_most(&shape[..]), memory)?))
                }
                None => Err(ort::Error::new(format!("no output {name}"))),
            }
        });
        Ok(TurnBuffers {
            inputs: inputs.collect::<ort::Result<_>>()?,
            outputs: outputs.collect::<ort::Result<_>>()?,
        })
    }

    fn input(&self, name: &str) -> ort::Result<&DynTensor> {
        let found = self.inputs.iter().find(|(input, _)| *input == name);
        found.map(|(_, buffer)| buffer).ok_or_else(|| ort::Error::new(format!("no input {name}")))
    }
}

/// The first rows of a buffer. A scalar has none, and is the same for all.
///
/// # Safety
/// As of [`alias`].
unsafe fn rows_of(buffer: &DynTensor, rows: usize) -> ort::Result<DynTensor> {
    // SAFETY: the caller's.
    unsafe { alias(buffer, 0, &sizes_of_rows(buffer, rows)) }
}

fn sizes_of_rows(buffer: &DynTensor, rows: usize) -> Vec<usize> {
    let mut sizes = shape(buffer);
    if let Some(first) = sizes.first_mut() {
        *first = rows;
    }
    sizes
}

/// A step over one token of each of some sequences.
pub(super) struct BoundStep {
    binding: IoBinding,
    turn: usize,
    /// Those of a step that is recorded.
    options: Option<RunOptions>,
}

impl BoundStep {
    /// A step of `rows` sequences with the buffers of this turn, whose state `bind` binds. With a number it is
    /// recorded.
    ///
    /// # Safety
    /// It must not be run when the buffers are no more.
    pub(super) unsafe fn new(
        session: &Session,
        rows: usize,
        buffers: &StepBuffers,
        turn: usize,
        recording: Option<u32>,
        bind: impl FnOnce(&mut IoBinding) -> ort::Result<()>,
    ) -> ort::Result<Self> {
        let mut binding = session.create_binding()?;
        let (own, next) = (&buffers.turns[turn], &buffers.turns[1 - turn]);
        for (name, buffer) in &own.inputs {
            // SAFETY: the caller's; it is written only between runs, and by those of the other turn.
            binding.bind_input(*name, &unsafe { rows_of(buffer, rows) }?)?;
        }
        for (name, buffer) in &own.outputs {
            // SAFETY: as above.
            binding.bind_output(*name, &mut unsafe { rows_of(buffer, rows) }?)?;
        }
        for (name, input) in FEEDBACK.iter().filter(|_| buffers.feeds_back) {
            // SAFETY: as above.
            let mut into = unsafe { rows_of(next.input(input)?, rows) }?;
            binding.bind_output(*name, &mut into)?;
        }
        bind(&mut binding)?;
        let options = recording.map(|recording| {
            let mut options = RunOptions::new()?;
            options.set(RECORDING, recording.to_string())?;
            Ok::<_, ort::Error>(options)
        });
        Ok(BoundStep { binding, turn, options: options.transpose()? })
    }

    /// Runs with the inputs of `run`, and what is in the buffers that it is bound to.
    pub(super) fn run(
        &self,
        session: &mut Session,
        buffers: &mut StepBuffers,
        run: &Run<'_>,
    ) -> ort::Result<Outputs> {
        buffers.write(self.turn, run)?;
        let options = self.options.as_ref().unwrap_or(run.options);
        let mut made = session.run_binding_with_options(&self.binding, options)?;
        asked_for(&mut made, run)
    }
}
