//! Choosing tokens, turning them into text, and knowing when to stop.

mod event;
mod history;
mod logprobs;
mod lookup;
mod options;
mod parts;
mod penalties;
mod sampler;
mod sequence;
mod stop;

pub use event::{Event, FinishReason, Part};
pub use history::History;
pub use logprobs::{TokenLogprob, TokenLogprobs};
pub use options::GenerationOptions;
pub use sampler::{LogitsProcessor, NoToken, Sampler};
pub(crate) use sequence::{Accepted, NextError, Sequence, SequenceLimits};
