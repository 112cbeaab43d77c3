//! Builds deployable ONNX graphs of LFM2-VL straight from safetensors checkpoints.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

pub mod checkpoint;
mod error;
mod exported;
pub mod hub;
mod models;
mod onnx;
mod package;
mod quantize;
mod verify;

pub use error::ExportError;
pub use package::{Draft, ExportOptions, Part, Progress, Report, export};
pub use verify::{GraphCheck, Verification, VerifyError, reference, verify};
