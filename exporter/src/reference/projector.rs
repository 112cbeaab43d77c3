//! `Lfm2VlMultiModalProjector`, one view at a time.

use ndarray::{Array2, ArrayView2, s};

use super::{ReferenceModel, ops};
use crate::checkpoint::CheckpointError;

/// Default of `torch.nn.LayerNorm`.
const EPSILON: f32 = 1e-5;

impl ReferenceModel<'_> {
    /// Image features [rows * cols / factor^2, hidden] of one view's patches [rows * cols, values].
    ///
    /// # Errors
    /// [`CheckpointError`] when a weight cannot be read.
    pub fn image_features(
        &self,
        patches: ArrayView2<'_, f32>,
        rows: usize,
        cols: usize,
    ) -> Result<Array2<f32>, CheckpointError> {
        let hidden = self.vision_tower(patches, rows, cols)?;
        let projector = &self.config().projector;
        let mut tokens = pixel_unshuffle(&hidden, rows, cols, projector.downsample_factor);
        let name = "multi_modal_projector";
        if projector.use_layernorm {
            tokens = self.layer_norm(&format!("{name}.layer_norm"), &tokens, EPSILON)?;
        }
        let inner = self.linear(&format!("{name}.linear_1"), &tokens)?.mapv(ops::gelu);
        self.linear(&format!("{name}.linear_2"), &inner)
    }
}

/// Joins blocks of factor x factor patches into tokens, row by row.
fn pixel_unshuffle(hidden: &Array2<f32>, rows: usize, cols: usize, factor: usize) -> Array2<f32> {
    let size = hidden.ncols();
    let (rows, token_cols) = (rows / factor, cols / factor);
    let mut tokens = Array2::zeros((rows * token_cols, size * factor * factor));
    for (t, mut token) in tokens.rows_mut().into_iter().enumerate() {
        let (top, left) = (t / token_cols * factor, t % token_cols * factor);
        for part in 0..factor * factor {
            let patch = (top + part / factor) * cols + left + part % factor;
            token.slice_mut(s![part * size..(part + 1) * size]).assign(&hidden.row(patch));
        }
    }
    tokens
}
