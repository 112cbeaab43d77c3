//! Position embeddings of the vision tower: the learned table, resized to each view's grid as
//! `torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)` does.
//!
//! That resize is separable: the weight of table cell (r, c) for patch (y, x) is the product of
//! two hat functions, one for each axis. So the resized table is one matrix product, batched over
//! views of any shape, with no control flow.

use super::Model;
use crate::onnx::Value;

impl<'g> Model<'g> {
    /// Position embeddings [views, patches, hidden] for `spatial_shapes` [views, 2] (rows,
    /// columns); `patch` is the number of each patch, int64 [patches]. Rows past a view's own
    /// patches hold finite values that nobody reads.
    pub(super) fn position_embeddings(
        self,
        spatial_shapes: Value<'g>,
        patch: Value<'g>,
    ) -> Value<'g> {
        let vision = &self.config.vision;
        let (grid, size) = (vision.position_grid, vision.hidden_size);
        let _scope = self.g.enter("position_embedding");

        let rows = spatial_shapes.slice(1, 0, 1); // [views, 1]
        let cols = spatial_shapes.slice(1, 1, 2);
        let patch = patch.unsqueeze(&[0]); // [1, patches]
        let last_row = rows - self.g.ints(&[1], &[]);
        let y = (patch / cols).at_most(last_row); // [views, patches]
        let x = patch.modulo(cols);

        let vertical = self.hat_weights(y, rows).unsqueeze(&[3]); // [views, patches, grid, 1]
        let horizontal = self.hat_weights(x, cols).unsqueeze(&[2]); // [views, patches, 1, grid]
        let cells = grid * grid;
        let weights = (vertical * horizontal).reshape(&[0, 0, cells as i64]);
        weights.matmul(self.g.weight("weight", &[cells, size]).to_exact()).to_graph_floats()
    }

    /// Weight of each of the table's cells along one axis, [views, patches, grid], for positions
    /// [views, patches] on an axis of `length` [views, 1] patches.
    fn hat_weights(self, position: Value<'g>, length: Value<'g>) -> Value<'g> {
        let grid = self.config.vision.position_grid;
        let half = self.g.float(0.5);
        let cell_centres: Vec<f32> = (0..grid).map(|i| i as f32 + 0.5).collect();
        let cell_centres = self.g.floats(&cell_centres, &[grid]);

        let step = self.g.float(grid as f32) / length.to_f32(); // cells per patch
        let centre = (position.to_f32() + half) * step;
        // Downsampling widens the hat, which is the antialiasing; upsampling keeps it at 1 cell.
        let support = step.max(self.g.float(1.0)).unsqueeze(&[2]);
        let distance = (cell_centres - centre.unsqueeze(&[2])).magnitude() / support;
        let hat = (self.g.float(1.0) - distance).max(self.g.float(0.0));
        hat / hat.sum(-1)
    }
}
