//! Runs LFM2-VL models, exported to ONNX by `lfm2vl-export`, through ONNX Runtime, with its own
//! image tiling and chat templating.
//!
//! ```no_run
//! use lfm2vl::{Conversation, Engine, GenerationOptions, chat::Message, image::{Limits, load}};
//!
//! # fn main() -> Result<(), lfm2vl::Error> {
//! let engine = Engine::builder("lfm2-vl-450m").build()?;
//! let mut conversation = Conversation::new();
//! let photo = load("photo.jpg", &Limits::default())?;
//! conversation.push_with_images(Message::user("What is in this photo?"), [photo])?;
//! let mut answer = engine.generate(&mut conversation, &GenerationOptions::default())?;
//! for event in &mut answer {
//!     print!("{}", event?.text);
//! }
//! conversation.push_answer(&answer.completion()?);
//!
//! // A later turn goes on from the state of the first.
//! conversation.push(Message::user("Which colours does it have?"));
//! let completion = engine.answer(&mut conversation, &GenerationOptions::default())?;
//! println!("{} ({} tokens reused)", completion.text, completion.reused_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! An [`Engine`] makes many answers at a time; clones of it can be used from any thread, and an
//! [`Answer`] can be read from another one. [`image`] and [`chat`] need no ONNX Runtime; [`Processor`]
//! joins them into what `Lfm2VlProcessor` is in transformers. Without the feature `onnxruntime` (on by
//! default) the crate is these alone.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

pub mod chat;
mod files;
pub mod image;
mod processor;

#[cfg(feature = "onnxruntime")]
mod backend;
#[cfg(feature = "onnxruntime")]
mod engine;
#[cfg(feature = "onnxruntime")]
mod error;
#[cfg(feature = "onnxruntime")]
mod generate;
#[cfg(feature = "onnxruntime")]
mod kv_cache;
#[cfg(feature = "onnxruntime")]
mod model;

pub use processor::{Processor, ProcessorError, Prompt, PromptOptions};

#[cfg(feature = "onnxruntime")]
pub use {
    backend::{
        Assignment, Skipped,
        provider::{
            ComputeUnits, CoreMl, Cuda, DeviceKind, DirectMl, Kernels, ModelFormat, OpenVino,
            Plugin, Provider, ProviderError, TensorRt, WebGpu,
        },
    },
    engine::{
        Answer, CancelHandle, Completion, Conversation, Engine, EngineBuilder, GraphInfo, Metrics,
        TensorInfo, Timings,
    },
    error::{Error, ErrorKind},
    generate::{
        Constraint, Event, FinishReason, GenerationOptions, History, LogitsProcessor, NoToken,
        Part, Sampler, TokenLogprob, TokenLogprobs,
    },
    lfm2vl_graphs::{Graph, Manifest, Precision},
    lfm2vl_onnxruntime::{LibraryError, library_path, search_library_above, set_library},
    model::ModelFolder,
};

#[cfg(feature = "stream")]
pub use engine::AnswerStream;

/// The README's example is compiled with the documentation's own.
#[cfg(all(doctest, feature = "onnxruntime"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// So is that of the page on the library.
#[cfg(all(doctest, feature = "onnxruntime"))]
#[doc = include_str!("../../docs/runtime.md")]
struct Page;
