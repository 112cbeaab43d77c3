//! Copies from and to the memory of a device.
//!
//! `ort` makes each by a session of one node: the tensor is copied twice, and waited for twice. Where the library of
//! the provider is registered with the environment, ONNX Runtime copies a tensor itself (`CopyTensors`).

use std::{
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use lfm2vl_onnxruntime::environment;
use ort::{AsPointer, memory::MemoryInfo, value::DynTensor};

/// Whether ONNX Runtime copies CUDA's tensors itself.
static COPIES_CUDA: AtomicBool = AtomicBool::new(false);

/// Sets whether ONNX Runtime is to copy CUDA's tensors itself, for which CUDA's library must be registered.
pub(super) fn copy_cuda_directly(directly: bool) {
    COPIES_CUDA.store(directly, Ordering::Relaxed);
}

/// Whether it does.
pub(super) fn copies_cuda_directly() -> bool {
    COPIES_CUDA.load(Ordering::Relaxed)
}

/// Copies a tensor into another one of the same type and size, of which one at least is not on the host.
///
/// # Errors
/// ONNX Runtime's.
pub(super) fn copy(from: &DynTensor, into: &mut DynTensor) -> ort::Result<()> {
    let is_known = |memory: &MemoryInfo<'_>| {
        memory.is_cpu_accessible() || memory.allocation_device().as_str().starts_with("Cuda")
    };
    if !(copies_cuda_directly() && is_known(from.memory_info()) && is_known(into.memory_info())) {
        return from.copy_into(into);
    }
    let environment = environment().map_err(|error| ort::Error::new(error.to_string()))?;
    let (source, mut target) = (from.ptr(), into.ptr());
    // SAFETY: the environment is never dropped, and both tensors are alive, the second one borrowed mutably; ONNX
    // Runtime checks their types and sizes. Without a stream, it waits for the copy.
    unsafe {
        ort::Error::result_from_status((ort::api().CopyTensors)(
            environment.ptr().cast_mut(),
            &raw const source,
            &raw mut target,
            ptr::null_mut(),
            1,
        ))
    }
}
