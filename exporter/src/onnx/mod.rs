//! ONNX graphs: the messages, the builder, and the writer of models with external data.

mod graph;
mod ops;
mod proto;
mod write;

pub use graph::{Attribute, GraphBuilder, Op, Value};
pub use ops::Gelu;
pub(crate) use write::{WrittenFile, external_bytes, write_file, write_model};
