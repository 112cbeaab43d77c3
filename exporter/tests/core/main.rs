//! The exporter's library against goldens, independent readers, a local hub, and bad input.

mod bad_input;
mod common;
mod export;
mod family;
mod hub;
mod onnx_reader;
mod reference;
