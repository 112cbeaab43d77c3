//! ONNX Runtime's statuses: null is success.

use std::{
    ffi::{CStr, CString},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use ort_sys::{OrtErrorCode, OrtStatusPtr};

use crate::api::Api;

pub(crate) const OK: OrtStatusPtr = OrtStatusPtr(ptr::null_mut());

/// A failure that ONNX Runtime hands on to its user.
pub(crate) fn new(code: OrtErrorCode, message: &CStr) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime copies the message.
    unsafe { ((*Api::get().ort).CreateStatus)(code, message.as_ptr()) }
}

/// A failure told in words.
pub(crate) fn failure(message: impl Into<String>) -> OrtStatusPtr {
    let message = format!("lfm2vl provider: {}", message.into()).replace('\0', " ");
    let message = CString::new(message).unwrap_or_default();
    new(OrtErrorCode::ORT_FAIL, &message)
}

/// The status that a function of ONNX Runtime gave, as a result.
pub(crate) fn check(status: OrtStatusPtr) -> Result<(), OrtStatusPtr> {
    if status.0.is_null() { Ok(()) } else { Err(status) }
}

/// The status of `work`; a panic, which must not leave the library, is a failure as well.
pub(crate) fn of(work: impl FnOnce() -> Result<(), OrtStatusPtr>) -> OrtStatusPtr {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => OK,
        Ok(Err(status)) => status,
        Err(_) => failure("a kernel failed; this is a fault of the provider, please report it"),
    }
}
