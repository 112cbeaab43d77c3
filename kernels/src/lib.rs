//! Products with weights of 4 and 8 bits in blocks, as ONNX Runtime's `MatMulNBits` stores them, for
//! inputs that are rounded to 8 bits (its accuracy level 4).
//!
//! ```
//! use lfm2vl_kernels::{Bits, BlockWeights, Instructions, PackedWeights, Serial};
//!
//! // Two outputs of 16 inputs each: ones, and twos. The zero point is the middle, 8.
//! let values: Vec<u8> = [[0x99; 8], [0xAA; 8]].concat();
//! let weights = BlockWeights {
//!     outputs: 2,
//!     inputs: 16,
//!     bits: Bits::Four,
//!     block_size: 16,
//!     values: &values,
//!     scales: &[1.0, 1.0],
//!     zero_points: None,
//! };
//! let packed = PackedWeights::pack(&weights, &Serial).unwrap();
//! let mut output = [0.0; 2];
//! packed.multiply(Instructions::best(), &[0.5; 16], None, &mut output, &Serial);
//! assert_eq!(output, [8.0, 16.0]);
//! ```
//!
//! What runs is chosen by [`Instructions`], from plain Rust to AVX-512 and AMX. Products are the same
//! bits with all of them, for one row of inputs and for many: integers are summed exactly, and what is computed in
//! floating point is computed in one order. Processors other than x86 run the plain code.
//!
//! [`Attention`] of many queries is the other thing that takes time in vision. It is computed in 32-bit floats,
//! or with 16 bits of their fraction on AMX ([`Precision`]). What lies between a decoder's products
//! ([`GroupedAttention`], [`RmsNorm`], [`swiglu`], [`ShortConv`]) is computed in 32-bit floats, whose sums differ
//! in the last bits by instructions.
//!
//! Threads are the caller's: [`Threads`].

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
// Loops over rows and vectors of a tile say which register is meant, in several arrays at once.
#![allow(clippy::needless_range_loop)]

mod attention;
mod buffer;
mod gate;
mod instructions;
mod kernel;
mod matmul;
mod norm;
mod pack;
mod quantize;
mod short_conv;
mod threads;
mod vector;
mod weights;

mod portable;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use attention::{Attention, GroupedAttention, HeadNorms, Precision, Rotary};
pub use gate::swiglu;
pub use instructions::Instructions;
pub use norm::RmsNorm;
pub use pack::PackedWeights;
pub use short_conv::ShortConv;
pub use threads::{Scoped, Serial, Threads};
pub use weights::{Bits, BlockWeights, WeightsError};
