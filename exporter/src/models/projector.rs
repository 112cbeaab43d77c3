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
    /// the valid patches of all views in order, or where sizes are fixed
    /// [views, patches / factor^2, hidden] with those of the valid patches first.
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
        let inner = if projector.bias {
            self.product(tokens, "linear_1", size, projector.hidden_size)
        } else {
            self.linear(tokens, "linear_1", size, projector.hidden_size, false).into()
        };
        let inner = self.gelu_of(inner, Gelu::Exact);
        let features =
            self.linear(inner, "linear_2", projector.hidden_size, text.hidden_size, projector.bias);
        match self.fixed_views() {
            Some((views, _)) => features.reshape(&[views as i64, -1, text.hidden_size as i64]),
            None => features,
        }
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
        let patches = match self.fixed_views() {
            Some((views, patches)) => {
                let tokens = patches / (factor * factor) as usize;
                let token = self.g.counting(tokens).unsqueeze(&[0]); // [1, tokens]
                let within = self.patches_of_tokens(token, blocks.slice(1, 1, 2));
                // Those of padding are anywhere in the view.
                let within = within.at_most(self.g.ints(&[patches as i64 - 1], &[]));
                let starts: Vec<i64> = (0..views).map(|view| (view * patches) as i64).collect();
                self.g.ints(&starts, &[views, 1, 1]) + within // [views, tokens, factor^2]
            }
            None => {
                let block_cols = blocks.slice(1, 1, 2).squeeze(&[1]); // [views]
                let counts = blocks.slice(1, 0, 1).squeeze(&[1]) * block_cols;
                // The tokens of all views before each: a sum, since few providers have CumSum of
                // integers.
                let view = counts.dim(0).range();
                let next = view + self.g.ints(&[1], &[]);
                let before = view.unsqueeze(&[1]).greater_or_equal(next.unsqueeze(&[0])); // [views, views]
                let starts = (before.to_i64() * counts.unsqueeze(&[0])).sum(1).squeeze(&[1]);
                let token = counts.sum_all().range(); // [tokens]

                // The view of a token is how many views end at or before it.
                let ends = (starts + counts).unsqueeze(&[0]);
                let view = token.unsqueeze(&[1]).greater_or_equal(ends).to_i64().sum(1);
                let view = view.squeeze(&[1]); // [tokens]
                let place = token - starts.gather(view, 0);
                let within = self.patches_of_tokens(place, block_cols.gather(view, 0));
                (view * hidden.dim(1)).unsqueeze(&[1]) + within // [tokens, factor^2]
            }
        };
        let flat = hidden.reshape(&[-1, size]);
        flat.gather(patches, 0).reshape(&[-1, factor * factor * size])
    }

    /// The patches [.., factor^2] of a view's tokens by their numbers [..], in a view that is so many
    /// tokens wide.
    fn patches_of_tokens(self, token: Value<'g>, cols: Value<'g>) -> Value<'g> {
        let factor = self.config.projector.downsample_factor as i64;
        let (row, col) = (token / cols, token.modulo(cols));
        let factor_value = self.g.ints(&[factor], &[]);
        let patch_cols = cols * factor_value;
        // The first patch of the token's block, and the others from it.
        let first = row * factor_value * patch_cols + col * factor_value;
        let (down, right): (Vec<i64>, Vec<i64>) =
            (0..factor * factor).map(|i| (i / factor, i % factor)).unzip();
        first.unsqueeze(&[-1])
            + self.g.int_vector(&down) * patch_cols.unsqueeze(&[-1])
            + self.g.int_vector(&right)
    }
}
