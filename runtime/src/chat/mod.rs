//! From messages to token ids and back, as `Lfm2VlProcessor` of transformers 5.24 does it. Needs
//! no ONNX Runtime.

mod cover;
mod error;
mod expand;
mod json;
mod large_numbers;
mod message;
mod methods;
mod python;
mod reply;
mod template;
mod text_stream;
mod token_bytes;
mod tokenizer;
mod tool;

pub(crate) use cover::Cover;
pub use error::ChatError;
pub use expand::ImageTokens;
#[cfg(feature = "onnxruntime")]
pub(crate) use message::text_bytes;
pub use message::{Content, Message, Part, Role};
pub use reply::{MalformedCalls, Reply};
pub use template::{ChatTemplate, RenderOptions};
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use tool::{Tool, ToolCall};
