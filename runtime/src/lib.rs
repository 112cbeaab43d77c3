//! Runs exported LFM2-VL graphs through ONNX Runtime.
pub mod chat;
pub mod image;
