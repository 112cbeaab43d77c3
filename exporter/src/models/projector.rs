//! Multimodal projector: pixel-unshuffle, then two linear layers.

use super::{
    Model,
    blocks::{Norm, Residual},
};
use crate::onnx::{Gelu, Value};

/// `torch.nn.LayerNorm`'s default; the projector's norm has no setting of its own.
const LAYER_NORM_EPSILON: f32 = 1e-5;

impl<'g> Model<'g> {
    /// Hidden states [views, patches, vision hidden] -> image features [image tokens, hidden] of
    /// the valid patches of all views in order.
    pub(super) fn projector(self, hidden: Value<'g>, spatial_shapes: Value<'g>) -> Value<'g> {
        let (text, projector) = (&self.config.text, &self.config.projector);
        let _scope = self.g.enter("multi_modal_projector");

        let tokens = self.pixel_unshuffle(hidden, spatial_shapes);
        let size = self.config.vision.hidden_size * projector.downsample_factor.pow(2);
        let tokens = if projector.use_layernorm {
            self.norm(Residual::new(tokens), Norm::Layer, "layer_norm", size, LAYER_NORM_EPSILON).0
        } else {
            tokens
        };
        let inner = self.linear(tokens, "linear_1", size, projector.hidden_size, projector.bias);
        let inner = self.gelu(inner, Gelu::Exact);
        self.linear(inner, "linear_2", projector.hidden_size, text.hidden_size, projector.bias)
    }

    /// Joins each block of `factor` x `factor` patches into one token, row by row: hidden
    /// [views, patches, size] -> [image tokens, factor^2 * size].
    ///
    /// Views differ in shape, so the patches of every token are found by index arithmetic and
    /// fetched with one Gather.
    fn pixel_unshuffle(self, hidden: Value<'g>, spatial_shapes: Value<'g>) -> Value<'g> {
        let factor = self.config.projector.downsample_factor as i64;
        let size = self.config.vision.hidden_size as i64;
        let _scope = self.g.enter("pixel_unshuffle");

        let blocks = spatial_shapes / self.g.ints(&[factor], &[]); // [views, 2]
        let block_cols = blocks.slice(1, 1, 2).squeeze(&[1]); // [views]
        let counts = blocks.slice(1, 0, 1).squeeze(&[1]) * block_cols;
        // The tokens of all views before each: a sum, since few providers have CumSum of integers.
        let view = counts.dim(0).range();
        let before =
            view.unsqueeze(&[1]).greater_or_equal((view + self.g.ints(&[1], &[])).unsqueeze(&[0])); // [views, views]
        let starts = (before.to_i64() * counts.unsqueeze(&[0])).sum(1).squeeze(&[1]);
        let token = counts.sum_all().range(); // [tokens]

        // The view of a token is how many views end at or before it.
        let ended = token.unsqueeze(&[1]).greater_or_equal((starts + counts).unsqueeze(&[0]));
        let view = ended.to_i64().sum(1).squeeze(&[1]); // [tokens]
        let place = token - starts.gather(view, 0);
        let cols = block_cols.gather(view, 0);
        let (row, col) = (place / cols, place.modulo(cols));

        // The first patch of the token's block in the flattened batch, and the others from it.
        let factor_value = self.g.ints(&[factor], &[]);
        let patch_cols = cols * factor_value;
        let first = view * hidden.dim(1) + row * factor_value * patch_cols + col * factor_value;
        let (down, right): (Vec<i64>, Vec<i64>) =
            (0..factor * factor).map(|i| (i / factor, i % factor)).unzip();
        let patches = first.unsqueeze(&[1])
            + self.g.int_vector(&down) * patch_cols.unsqueeze(&[1])
            + self.g.int_vector(&right); // [tokens, factor^2]

        let flat = hidden.reshape(&[-1, size]);
        flat.gather(patches, 0).reshape(&[-1, factor * factor * size])
    }
}
