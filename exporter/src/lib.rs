//! Builds deployable ONNX graphs of LFM2-VL straight from safetensors checkpoints.

pub mod checkpoint;
mod error;
mod models;
mod onnx;
mod package;

pub use error::ExportError;
pub use package::{ExportOptions, Part, Progress, Report, export};
