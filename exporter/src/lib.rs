//! Builds deployable ONNX graphs of LFM2-VL straight from safetensors checkpoints.
//!
//! ```no_run
//! use std::{ops::ControlFlow, path::Path};
//!
//! use lfm2vl_exporter::{ExportOptions, checkpoint::Checkpoint, export, verify};
//! use lfm2vl_graphs::{Precision, RecipeSource};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("LFM2-VL-450M"))?;
//! let recipe = RecipeSource::load("default")?.check(&checkpoint.config().quantizable_modules())?;
//! let options = ExportOptions { precisions: vec![Precision::Q4], ..ExportOptions::new(recipe) };
//! let mut go_on = |_| ControlFlow::Continue(());
//! let draft = export(&checkpoint, Path::new("lfm2-vl-450m"), &options, &mut go_on)?;
//! verify(&checkpoint, draft.path(), &draft.report().manifest, &mut |_| ControlFlow::Continue(()))?
//!     .check()?;
//! // The folder appears only now.
//! let report = draft.publish()?;
//! println!("{} bytes", report.bytes);
//! # Ok(())
//! # }
//! ```
//!
//! A checkpoint's tensors are read once, converted and written; a model is never in memory as a whole.
//! [`hub`] downloads checkpoints, [`report`] tells what precisions lose, [`partitions`] what an execution
//! provider takes, and [`mod@reference`] is the plain implementation that graphs are compared with.

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
pub mod reference;
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
pub use verify::{GraphCheck, Verification, VerifyError, check_verifiable, verify};
