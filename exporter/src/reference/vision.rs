//! `Siglip2VisionTransformer`, one view at a time.

use ndarray::{Array2, ArrayView2, s};

use super::{ReferenceModel, ops};
use crate::checkpoint::CheckpointError;

impl ReferenceModel<'_> {
    /// Last hidden state [rows * cols, vision hidden] of one view's patches [rows * cols, values].
    ///
    /// # Errors
    /// [`CheckpointError`] when a weight cannot be read.
    pub fn vision_tower(
        &self,
        patches: ArrayView2<'_, f32>,
        rows: usize,
        cols: usize,
    ) -> Result<Array2<f32>, CheckpointError> {
        let vision = &self.config().vision;
        let epsilon = vision.layer_norm_eps;
        let embedding = "vision_tower.embeddings.patch_embedding";
        let mut x = self.linear(embedding, &patches.to_owned())?;
        x += &self.position_embeddings(rows, cols)?;
        for i in 0..vision.num_hidden_layers {
            let layer = format!("vision_tower.encoder.layers.{i}");
            let normed = self.layer_norm(&format!("{layer}.layer_norm1"), &x, epsilon)?;
            x += &self.vision_attention(&format!("{layer}.self_attn"), &normed)?;
            let normed = self.layer_norm(&format!("{layer}.layer_norm2"), &x, epsilon)?;
            let inner = self.linear(&format!("{layer}.mlp.fc1"), &normed)?.mapv(ops::gelu_tanh);
            x += &self.linear(&format!("{layer}.mlp.fc2"), &inner)?;
        }
        self.layer_norm("vision_tower.post_layernorm", &x, epsilon)
    }

    /// The position table resized to rows x cols: [rows * cols, vision hidden].
    ///
    /// # Errors
    /// [`CheckpointError`] when the table cannot be read.
    pub fn position_embeddings(
        &self,
        rows: usize,
        cols: usize,
    ) -> Result<Array2<f32>, CheckpointError> {
        let grid = self.config().vision.position_grid;
        let table = self.matrix("vision_tower.embeddings.position_embedding.weight")?;
        let mut resized = Array2::zeros((rows * cols, table.ncols()));
        for (patch, mut embedding) in resized.rows_mut().into_iter().enumerate() {
            let vertical = ops::resize_weights(grid, rows, patch / cols);
            let horizontal = ops::resize_weights(grid, cols, patch % cols);
            for (cell, row) in table.rows().into_iter().enumerate() {
                embedding.scaled_add(vertical[cell / grid] * horizontal[cell % grid], &row);
            }
        }
        Ok(resized)
    }

    fn vision_attention(
        &self,
        name: &str,
        x: &Array2<f32>,
    ) -> Result<Array2<f32>, CheckpointError> {
        let vision = &self.config().vision;
        let width = vision.hidden_size / vision.num_attention_heads;
        let query = self.linear(&format!("{name}.q_proj"), x)?;
        let keys = self.linear(&format!("{name}.k_proj"), x)?;
        let values = self.linear(&format!("{name}.v_proj"), x)?;
        let mut attended = Array2::zeros(query.raw_dim());
        for head in 0..vision.num_attention_heads {
            let columns = s![.., head * width..(head + 1) * width];
            attended.slice_mut(columns).assign(&ops::attention(
                query.slice(columns),
                keys.slice(columns),
                values.slice(columns),
                |_| keys.nrows(),
            ));
        }
        self.linear(&format!("{name}.out_proj"), &attended)
    }
}
