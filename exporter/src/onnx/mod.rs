//! ONNX graphs: the messages, the builder, and the writer of models with external data.

mod control_flow;
mod data;
mod graph;
mod ops;
mod proto;
mod quantized;
mod weight;
mod write;

pub(crate) use data::WrittenFile;
pub(crate) use graph::{Attribute, FinishedGraph, Floats, GraphBuilder, Op, Tap, Value};
pub(crate) use ops::Gelu;
pub(crate) use proto::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto};
pub(crate) use weight::{Encoding, Stored};
pub(crate) use write::{Model, Plan, write_file};
