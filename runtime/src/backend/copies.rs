//! Copies from and to the memory of a device.
//!
//! `ort` makes each by a session of one node: the tensor is copied twice, and waited for twice. Where the library of
//! the provider is registered with the environment, ONNX Runtime copies a tensor itself (`CopyTensors`).

use std::{
    ptr,
    sync::atomic::{AtomicU8, Ordering},
};

use lfm2vl_onnxruntime::environment;
use ort::{AsPointer, memory::MemoryInfo, value::DynTensor};

/// Whether ONNX Runtime copies CUDA's tensors itself.
static CUDA: AtomicU8 = AtomicU8::new(NO);

/// Not, since CUDA's library is not registered.
const NO: u8 = 0;
const YES: u8 = 1;
/// Not, since it was seen to fail.
const NEVER: u8 = 2;

/// Lets ONNX Runtime copy CUDA's tensors itself, for which CUDA's library must be registered.
pub(super) fn copy_cuda_directly() {
    // Where it has failed, that stays.
    let _ = CUDA.compare_exchange(NO, YES, Ordering::Relaxed, Ordering::Relaxed);
}

/// Leaves it to `ort` for good; false where it was.
pub(super) fn stop_copying_cuda_directly() -> bool {
    let was_direct = CUDA.swap(NEVER, Ordering::Relaxed) == YES;
    if was_direct {
        tracing::warn!("ONNX Runtime does not copy CUDA's tensors itself, so copies take longer");
    }
    was_direct
}

/// Copies tensors into others of the same types and sizes, of which some are not on the host.
///
/// # Errors
/// ONNX Runtime's.
pub(super) fn copy<'t>(
    pairs: impl IntoIterator<Item = (&'t DynTensor, &'t mut DynTensor)>,
) -> ort::Result<()> {
    let mut direct = (Vec::new(), Vec::new());
    for (from, into) in pairs {
        let is_direct = CUDA.load(Ordering::Relaxed) == YES
            && is_known(from.memory_info())
            && is_known(into.memory_info());
        if !is_direct {
            from.copy_into(into)?;
            continue;
        }
        if from.data_type() != into.data_type() || from.shape()[..] != into.shape()[..] {
            return Err(ort::Error::new("tensors of different types or sizes"));
        }
        direct.0.push(from.ptr());
        direct.1.push(into.ptr());
    }
    if direct.0.is_empty() {
        return Ok(());
    }
    let environment = environment().map_err(|error| ort::Error::new(error.to_string()))?;
    // SAFETY: the environment is never dropped, and the tensors are alive, of the same sizes, and the second ones
    // borrowed mutably. Without a stream, ONNX Runtime waits for the copies.
    unsafe {
        ort::Error::result_from_status((ort::api().CopyTensors)(
            environment.ptr().cast_mut(),
            direct.0.as_ptr(),
            direct.1.as_mut_ptr(),
            ptr::null_mut(),
            direct.0.len(),
        ))
    }
}

/// Whether it is the host's memory or that of the first device, which is every thread's own unless it says otherwise.
fn is_known(memory: &MemoryInfo<'_>) -> bool {
    let is_cuda = memory.allocation_device().as_str().starts_with("Cuda");
    memory.is_cpu_accessible() || (is_cuda && memory.device_id() == 0)
}
