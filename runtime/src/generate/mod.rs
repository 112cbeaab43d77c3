//! Choosing tokens, and knowing when to stop.

mod lookup;
mod options;
mod sampler;
mod stop;

pub(crate) use lookup::{DraftLength, MAX_DRAFT};
pub use options::GenerationOptions;
pub use sampler::Sampler;
pub(crate) use stop::{Passed, StopText};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// It reached the most new tokens, or the model's context was full.
    Length,
}
