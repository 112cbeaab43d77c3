//! From messages to token ids and back, as `Lfm2VlProcessor` of transformers 5.23 does it. Needs
//! no ONNX Runtime.

mod error;
mod expand;
mod json;
mod message;
mod python;
mod template;
mod text_stream;
mod tokenizer;

pub use error::ChatError;
pub use expand::ImageTokens;
pub use message::{Content, Message, Part, Role};
pub use template::{ChatTemplate, RenderOptions};
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
