//! ONNX graphs: the messages, the builder, and the writer of models with external data.

mod graph;
mod ops;
mod proto;
mod write;

pub(crate) use graph::{Attribute, GraphBuilder, Op, Value};
pub(crate) use ops::Gelu;
pub(crate) use write::{WrittenFile, external_bytes, write_file, write_model};
