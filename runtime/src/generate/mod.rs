//! Choosing tokens, turning them into text, and knowing when to stop.

mod constraint;
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

pub use constraint::Constraint;
pub(crate) use constraint::{Grammars, MaskTime};
pub use event::{Event, FinishReason, Part};
pub use history::History;
pub use logprobs::{TokenLogprob, TokenLogprobs};
pub use options::GenerationOptions;
pub use sampler::{LogitsProcessor, NoToken, Sampler};
pub(crate) use sequence::{Accepted, NextError, Sequence, SequenceLimits};
