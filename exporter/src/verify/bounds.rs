//! How far graphs may be from the reference.

use lfm2vl_graphs::{Activations, Precision};

/// The bounds of one graph. Quantized graphs are compared with the reference on the weights that they
/// have, so what is left is how inputs are rounded: to float32, to float16, to 8 bits with a scale for each
/// block, or to 8 bits with one scale in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    /// The largest absolute difference over the reference's largest magnitude, where that exceeds 1.
    pub(super) error: f32,
    /// The least cosine similarity.
    pub(super) cosine: f64,
    /// Whether the best token must be the reference's at every position.
    pub(super) top1: bool,
}

impl Bounds {
    pub(super) fn of(precision: Precision, activations: Activations) -> Self {
        match (activations, precision) {
            (Activations::Tensor, _) => Bounds { error: 0.3, cosine: 0.99, top1: false },
            (Activations::Int8, _) => Bounds { error: 0.1, cosine: 0.999, top1: false },
            (Activations::Float, Precision::Fp16 | Precision::Q4F16) => {
                Bounds { error: 2e-2, cosine: 0.99999, top1: false }
            }
            (Activations::Float, Precision::Fp32 | Precision::Q8 | Precision::Q4) => {
                Bounds { error: 5e-5, cosine: 0.999_999_999, top1: true }
            }
        }
    }
}
