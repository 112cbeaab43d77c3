//! Runs LFM2-VL models, exported to ONNX by `lfm2vl-export`, through ONNX Runtime, with its own
//! image tiling and chat templating.
//!
//! ```no_run
//! use lfm2vl::{Engine, GenerationOptions, chat::Message, image::{Limits, open}};
//!
//! # fn main() -> Result<(), lfm2vl::Error> {
//! let engine = Engine::builder("lfm2-vl-450m").build()?;
//! let mut conversation = engine.conversation();
//! let photo = open("photo.jpg".as_ref(), &Limits::default())?;
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
//! `Lfm2VlProcessor` is in transformers.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod answer;
pub mod chat;
mod conversation;
mod engine;
mod error;
mod folder;
mod generate;
pub mod image;
mod prompter;
mod provider;
mod session;

pub use lfm2vl_graphs::{Graph, LibraryError, Manifest, Precision, library_path};

pub use answer::{Answer, Completion, Timings};
pub use conversation::Conversation;
pub use engine::{Engine, EngineBuilder, GraphInfo, TensorInfo};
pub use error::Error;
pub use folder::ModelFolder;
pub use generate::{FinishReason, GenerationOptions, Sampler};
pub use prompter::{Prompt, Prompter};
pub use provider::Provider;

/// The README's example is compiled with the documentation's own.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
