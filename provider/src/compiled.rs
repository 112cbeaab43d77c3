//! What computes a [group](crate::groups) of nodes.

use std::{ffi::c_void, ptr};

use lfm2vl_kernels::Instructions;
use ort_sys::{OrtKernelContext, OrtNode, OrtStatusPtr};

use crate::{
    api::{GroupTable, Opaque, VERSION},
    groups::{self, Group, Values, Work},
    node::Node,
    status::{self, failure},
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
        let values = Values { context, inputs: &self.inputs, outputs: &self.outputs };
        // SAFETY: the caller's; the values are where the node has the group's.
        unsafe { self.work.compute(self.instructions, &values) }
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
