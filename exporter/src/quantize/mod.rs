//! Weights as small integers in blocks along each row, packed as ONNX Runtime's `MatMulNBits` and
//! `GatherBlockQuantized` and ONNX's `DequantizeLinear` read them.

mod block;
mod encoder;
mod format;
pub(crate) mod gptq;
mod rows;

pub(crate) use encoder::Quantizer;
pub(crate) use format::{BlockFormat, Packing};
pub(crate) use rows::BlockEncoder;
