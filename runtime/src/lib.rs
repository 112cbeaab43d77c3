//! Runs LFM2-VL models, exported to ONNX by `lfm2vl-export`, through ONNX Runtime, with its own
//! image tiling and chat templating.
//!
//! ```no_run
//! use lfm2vl::{Engine, GenerationOptions, chat::Message, image::{Limits, load}};
//!
//! # fn main() -> Result<(), lfm2vl::Error> {
//! let engine = Engine::builder("lfm2-vl-450m").build()?;
//! let mut conversation = engine.conversation();
//! let photo = load("photo.jpg", &Limits::default())?;
//! conversation.push_with_images(Message::user("What is in this photo?"), &[photo])?;
//! for piece in conversation.generate(&GenerationOptions::default())? {
//!     print!("{}", piece?);
//! }
//!
//! // A later turn goes on from the state of the first.
//! conversation.push(Message::user("Which colours does it have?"));
//! let completion = conversation.generate(&GenerationOptions::default())?.finish()?;
//! println!("{} ({} tokens reused)", completion.text, completion.reused_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! [`image`] and [`chat`] need no ONNX Runtime; [`Prompter`] joins them into what
//! `Lfm2VlProcessor` is in transformers. Without the feature `onnxruntime` (on by default) the crate
//! is these alone.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

pub mod chat;
pub mod image;
mod prompter;

#[cfg(feature = "onnxruntime")]
mod answer;
#[cfg(feature = "onnxruntime")]
mod batch;
#[cfg(feature = "onnxruntime")]
mod cache;
#[cfg(feature = "onnxruntime")]
mod conversation;
#[cfg(feature = "onnxruntime")]
mod engine;
#[cfg(feature = "onnxruntime")]
mod error;
#[cfg(feature = "onnxruntime")]
mod folder;
#[cfg(feature = "onnxruntime")]
mod generate;
#[cfg(feature = "onnxruntime")]
mod provider;
#[cfg(feature = "onnxruntime")]
mod session;

pub use prompter::{Prompt, PromptError, PromptOptions, Prompter};

#[cfg(feature = "onnxruntime")]
pub use {
    answer::{Answer, Completion, Timings},
    batch::{Batch, Finished, Refused, RowId, RowStep},
    conversation::Conversation,
    engine::{Engine, EngineBuilder, GraphInfo, TensorInfo},
    error::Error,
    folder::ModelFolder,
    generate::{FinishReason, GenerationOptions, Sampler},
    lfm2vl_graphs::{Graph, LibraryError, Manifest, Precision, library_path},
    provider::{
        ComputeUnits, CoreMl, Cuda, DeviceKind, DirectMl, ModelFormat, OpenVino, Plugin, Provider,
        ProviderError, TensorRt, WebGpu,
    },
    session::{Assignment, Skipped},
};

/// The README's example is compiled with the documentation's own.
#[cfg(all(doctest, feature = "onnxruntime"))]
#[doc = include_str!("../../README.md")]
struct Readme;
