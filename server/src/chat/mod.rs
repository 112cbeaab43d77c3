//! Chat completions: from a request to answers.

mod abandoned;
mod answers;
mod completion;
mod deltas;
mod grammar;
mod handler;
mod logprobs;
mod messages;
mod options;
mod start;
mod stream;
mod tools;

pub(crate) use completion::complete;
pub(crate) use handler::{__path_chat_completions, chat_completions};
pub use start::check_request;
pub(crate) use start::prepare;
