//! Builds deployable ONNX graphs of LFM2-VL straight from safetensors checkpoints.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod calibrate;
pub mod checkpoint;
mod error;
mod exported;
pub mod hub;
mod metrics;
mod models;
mod onnx;
mod package;
mod partition;
mod processor;
mod progress;
mod quantize;
pub mod report;
mod session;
mod verify;

pub use calibrate::{Sample, SamplesError, View, read_samples};
pub use error::ExportError;
pub use package::{
    Draft, ExportOptions, LeftOut, Part, Progress, RecipeSummary, Report, Weights, builtin_recipes,
    export,
};
pub use partition::{Left, Partition, partitions};
pub use progress::ProgressDisplay;
pub use session::SessionError;
pub use verify::{GraphCheck, Verification, VerifyError, reference, verify};
