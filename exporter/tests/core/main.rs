//! The exporter's library against goldens, peft, independent readers, a local hub, and bad input.

mod adapters;
mod bad_input;
mod common;
mod export;
mod hub;
mod onnx_reader;
mod reference;
