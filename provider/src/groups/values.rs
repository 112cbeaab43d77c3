//! The values of a group in a run.

use ort_sys::{OrtKernelContext, OrtStatusPtr, OrtValue};

use crate::{status::failure, tensor, threads::SessionThreads};

/// The values of a group in a run, by their places in the group.
pub(crate) struct Values<'a> {
    /// That of the run.
    pub(crate) context: *mut OrtKernelContext,
    /// Where the node that stands for the group has them.
    pub(crate) inputs: &'a [usize],
    pub(crate) outputs: &'a [usize],
}

impl Values<'_> {
    /// An input.
    ///
    /// # Safety
    /// The context is that of the run.
    pub(super) unsafe fn input(&self, index: usize) -> Result<*const OrtValue, OrtStatusPtr> {
        // SAFETY: the caller's.
        unsafe { tensor::input(self.context, self.inputs[index])? }
            .ok_or_else(|| failure("a group of nodes without an input"))
    }

    /// The elements of an output of floats, which is made with this shape.
    ///
    /// # Safety
    /// The context is that of the run.
    pub(super) unsafe fn output<'r>(
        &self,
        index: usize,
        dimensions: &[usize],
    ) -> Result<&'r mut [f32], OrtStatusPtr> {
        // SAFETY: the caller's.
        unsafe { tensor::output(self.context, self.outputs[index], dimensions) }
    }

    pub(super) fn threads(&self) -> SessionThreads {
        SessionThreads(self.context)
    }
}
