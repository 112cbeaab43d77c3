//! The model's graphs: what they are called, what goes in and comes out.

mod check;
mod decoder;
mod embedding;
mod features;
mod folder;
mod logits;
mod tokens;
mod vision;

pub(crate) use check::{check, dims_of, state_dtype};
pub(crate) use decoder::{CacheSettings, Decoder};
pub(crate) use embedding::{EmbedTokens, Embeddings};
pub(crate) use features::Features;
pub use folder::ModelFolder;
pub(crate) use logits::{Logits, RunLogits};
pub(crate) use vision::Vision;
