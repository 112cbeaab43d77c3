//! An execution provider in a library of its own, for ONNX Runtime 1.24 and newer: on the CPU it runs
//! the nodes that `lfm2vl-kernels` has faster kernels for, and leaves the others to ONNX Runtime.
//!
//! ONNX Runtime loads the library (`RegisterExecutionProviderLibrary`) and calls
//! [`CreateEpFactories`]; everything else it reaches through tables of functions:
//! `factory` makes providers, a `provider` claims nodes and has a registry of kernels, and a
//! kernel (`matmul`, `attention`, `norm`) computes. Some `groups` of nodes are computed as one (`compiled`).
//!
//! Tables and order of functions are those of ONNX Runtime's `onnxruntime_ep_c_api.h` at version 1.24;
//! newer versions only append to them.

mod api;
mod attention;
mod compiled;
mod factory;
mod groups;
mod matmul;
mod node;
mod norm;
mod provider;
mod state;
mod status;
mod tensor;
mod threads;

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use ort_sys::{OrtApiBase, OrtErrorCode, OrtStatusPtr};

use crate::{api::Api, factory::Factory};

/// What ONNX Runtime calls when it has loaded the library.
///
/// # Safety
/// It is called by ONNX Runtime, with pointers that it documents.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn CreateEpFactories(
    _registered_name: *const c_char,
    base: *const OrtApiBase,
    _logger: *const c_void,
    factories: *mut *mut Factory,
    most: usize,
    count: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: the caller's.
    unsafe {
        *count = 0;
        if let Err(status) = Api::set(base) {
            return status;
        }
        if most == 0 {
            let message = c"there is no room for the factory of the lfm2vl provider";
            return status::new(OrtErrorCode::ORT_INVALID_ARGUMENT, message);
        }
        *factories = Box::into_raw(Box::new(Factory::new()));
        *count = 1;
    }
    status::OK
}

/// What ONNX Runtime calls before it unloads the library.
///
/// # Safety
/// It is called by ONNX Runtime, with what [`CreateEpFactories`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn ReleaseEpFactory(factory: *mut Factory) -> OrtStatusPtr {
    // SAFETY: from `Box::into_raw`, and released once.
    drop(unsafe { Box::from_raw(factory) });
    status::OK
}

/// The provider's name, as ONNX Runtime and its users write it.
const NAME: &CStr = c"Lfm2VlExecutionProvider";

/// Where a function of a table is not there.
const NONE: *const c_void = ptr::null();
