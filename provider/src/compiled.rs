//! What computes a [group](crate::groups) of nodes.

use std::{ffi::c_void, ptr};

use lfm2vl_kernels::{Instructions, ShortConv, swiglu};
use ort_sys::{OrtKernelContext, OrtNode, OrtStatusPtr, OrtValue};

use crate::{
    api::{GroupTable, Opaque, VERSION},
    groups::{self, Group, Work},
    node::Node,
    status::{self, failure},
    tensor,
    threads::SessionThreads,
};

/// A group as it is computed.
#[repr(C)]
pub(crate) struct Compiled {
    table: GroupTable<Compiled>,
    instructions: Instructions,
    work: Work,
    /// Where the fused node has the group's values.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

impl Compiled {
    /// Of a group, whose values are among those of the node that takes its place.
    ///
    /// # Safety
    /// The node is ONNX Runtime's.
    pub(crate) unsafe fn new(
        instructions: Instructions,
        groups: &[Group],
        fused: *const OrtNode,
    ) -> Result<Box<Self>, OrtStatusPtr> {
        // SAFETY: the caller's.
        let fused = unsafe { Node::new(fused)? };
        let names = |count: usize, value: &dyn Fn(usize) -> Option<_>| {
            let name = |index| value(index).map(groups::name).transpose();
            (0..count).map(name).collect::<Result<Vec<_>, _>>()
        };
        let inputs = names(fused.inputs(), &|index| fused.input(index))?;
        let outputs = names(fused.outputs(), &|index| fused.output(index))?;
        let places = |wanted: &[String], names: &[Option<String>]| {
            let place = |wanted| names.iter().position(|name| name.as_ref() == Some(wanted));
            wanted.iter().map(place).collect::<Option<Vec<_>>>()
        };
        let compiled = groups.iter().find_map(|group| {
            Some(Compiled {
                table: GroupTable { version: VERSION, create_state, compute, release_state },
                instructions,
                work: group.work,
                inputs: places(&group.inputs, &inputs)?,
                outputs: places(&group.outputs, &outputs)?,
            })
        });
        let unknown = || failure("a group of nodes that was not asked for");
        Ok(Box::new(compiled.ok_or_else(unknown)?))
    }

    unsafe fn run(&self, context: *mut OrtKernelContext) -> Result<(), OrtStatusPtr> {
        let threads = SessionThreads(context);
        // SAFETY: ONNX Runtime's; all values are tensors of floats.
        unsafe {
            let input = |index: usize| {
                tensor::input(context, self.inputs[index])?
                    .ok_or_else(|| failure("a group of nodes without an input"))
            };
            let elements = |value: *const OrtValue| tensor::elements::<f32>(value);
            match self.work {
                Work::Gate => {
                    let (gate, up) = (input(0)?, input(1)?);
                    let dimensions = tensor::dimensions(gate)?;
                    if tensor::dimensions(up)? != dimensions {
                        return Err(failure("a gate of another shape"));
                    }
                    let output = tensor::output(context, self.outputs[0], &dimensions)?;
                    swiglu(self.instructions, elements(gate)?, elements(up)?, output, &threads);
                }
                Work::ShortConv { gate } => {
                    let (inputs, weight, past) = (input(0)?, input(1)?, input(2)?);
                    let start: &[i64] = tensor::elements(input(3)?)?;
                    let shapes = [inputs, weight, past].map(|value| tensor::dimensions(value));
                    let [inputs_shape, weight_shape, past_shape] = shapes;
                    let shapes = (inputs_shape?, weight_shape?, past_shape?);
                    let (&[batch, rows, thirds], &[channels, 1, width], past_shape) =
                        (&shapes.0[..], &shapes.1[..], &shapes.2)
                    else {
                        return Err(failure(format!("a short convolution of {shapes:?}")));
                    };
                    if thirds != 3 * channels || past_shape != &[batch, channels, width] {
                        return Err(failure(format!("a short convolution of {shapes:?}")));
                    }
                    let kept = kept_columns(start, width, rows)?;
                    let output = [batch, rows, channels];
                    let output = tensor::output(context, self.outputs[0], &output)?;
                    let present = [batch, channels, kept];
                    let present = tensor::output(context, self.outputs[1], &present)?;
                    ShortConv { weight: elements(weight)?, channels, width, gate }.run(
                        self.instructions,
                        batch,
                        elements(inputs)?,
                        elements(past)?,
                        output,
                        present,
                        &threads,
                    );
                }
            }
        }
        Ok(())
    }
}

/// How many columns there are from a place on that is counted from the end: of the last new ones as
/// many as that, and of these after the state as many as that again.
fn kept_columns(start: &[i64], width: usize, rows: usize) -> Result<usize, OrtStatusPtr> {
    match start {
        &[start] if start < 0 => {
            let wanted = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
            Ok(wanted.min(width + wanted.min(rows)))
        }
        _ => Err(failure(format!("a short convolution whose state is kept from {start:?} on"))),
    }
}

unsafe extern "system" fn create_state(
    _: *mut Compiled,
    _: *mut Opaque,
    out: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    unsafe { *out = ptr::null_mut() };
    status::OK
}

unsafe extern "system" fn release_state(_: *mut Compiled, _: *mut c_void) {}

unsafe extern "system" fn compute(
    compiled: *mut Compiled,
    _: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's. Several threads may compute at a time; nothing is written but outputs.
    status::of(|| unsafe { (*compiled).run(context) })
}
