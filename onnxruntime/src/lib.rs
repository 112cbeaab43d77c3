//! Where the ONNX Runtime library is found, and how it is loaded: what the caller names, what
//! `ORT_DYLIB_PATH` names, what lies beside the program, or that of the active Python.
//!
//! ```no_run
//! # fn main() -> Result<(), lfm2vl_onnxruntime::LibraryError> {
//! // Else the first session looks for one.
//! lfm2vl_onnxruntime::set_library("/opt/onnxruntime/lib/libonnxruntime.so".into())?;
//! println!("{}", lfm2vl_onnxruntime::library_path()?.display());
//! # Ok(())
//! # }
//! ```

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod library;
mod trust;

pub use library::{
    DEVICES, LibraryError, Untrusted, environment, library_path, search_library_above, set_library,
    with_cpu,
};
pub use trust::written_by_others;
