//! ONNX Runtime's threads, as the kernels take them.

use std::{
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use lfm2vl_kernels::Threads;
use ort_sys::OrtKernelContext;

use crate::{api::Api, status};

/// The threads of one run of a session.
pub(crate) struct SessionThreads(pub(crate) *const OrtKernelContext);

// SAFETY: ONNX Runtime calls the function once for each number, and waits.
unsafe impl Threads for SessionThreads {
    /// What ONNX Runtime does not tell: at most the processors that there are.
    fn count(&self) -> usize {
        static COUNT: LazyLock<usize> =
            LazyLock::new(|| std::thread::available_parallelism().map_or(1, |count| count.get()));
        *COUNT
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        struct Task<'a> {
            part: &'a (dyn Fn(usize) + Sync),
            failed: AtomicBool,
        }
        unsafe extern "C" fn call(task: *mut c_void, index: usize) {
            // SAFETY: the task below, which outlives the calls.
            let task = unsafe { &*task.cast::<Task<'_>>() };
            // A panic must not run into ONNX Runtime's frames.
            if catch_unwind(AssertUnwindSafe(|| (task.part)(index))).is_err() {
                task.failed.store(true, Ordering::Relaxed);
            }
        }
        if parts < 2 {
            return (0..parts).for_each(part);
        }
        let task = Task { part, failed: AtomicBool::new(false) };
        // SAFETY: the context is that of the run that this is part of; the call returns when all parts
        // are done.
        let done = unsafe {
            let task = ptr::from_ref(&task).cast_mut().cast();
            ((*Api::get().ort).KernelContext_ParallelFor)(self.0, call, parts, 0, task)
        };
        if let Err(status) = status::check(done) {
            // SAFETY: the status is this function's own.
            unsafe { ((*Api::get().ort).ReleaseStatus)(status.0) };
            panic!("ONNX Runtime does not share the work among its threads");
        }
        assert!(!task.failed.load(Ordering::Relaxed), "a part of the work failed");
    }
}
