//! `Lfm2Model` and its head, with the hybrid cache.

use lfm2vl_graphs::LayerKind;
use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};

use super::{ReferenceModel, ops};
use crate::checkpoint::{CheckpointError, Config};

/// State of every layer after some tokens.
#[derive(Debug, Clone)]
pub struct ReferenceState {
    layers: Vec<LayerState>,
    tokens: usize,
}

#[derive(Debug, Clone)]
enum LayerState {
    /// The last columns of the gated input, [hidden, conv_L_cache].
    Conv(Array2<f32>),
    /// [kv heads, tokens, head_dim] each, keys after the rotary embedding.
    Attention { keys: Array3<f32>, values: Array3<f32> },
}

impl ReferenceState {
    /// The state before any token.
    pub fn new(config: &Config) -> Self {
        let text = &config.text;
        let layer = |kind: &LayerKind| match kind {
            LayerKind::Conv => {
                LayerState::Conv(Array2::zeros((text.hidden_size, text.conv_l_cache)))
            }
            LayerKind::FullAttention => {
                let empty = Array3::zeros((text.num_key_value_heads, 0, text.head_dim));
                LayerState::Attention { keys: empty.clone(), values: empty }
            }
        };
        ReferenceState { layers: text.layer_types.iter().map(layer).collect(), tokens: 0 }
    }

    /// Layer index and state [hidden, conv_L_cache] of each conv layer.
    pub fn conv_states(&self) -> impl Iterator<Item = (usize, &Array2<f32>)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| match layer {
            LayerState::Conv(state) => Some((i, state)),
            LayerState::Attention { .. } => None,
        })
    }

    /// Layer index, keys and values [kv heads, tokens, head_dim] of each attention layer.
    pub fn keys_and_values(&self) -> impl Iterator<Item = (usize, &Array3<f32>, &Array3<f32>)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| match layer {
            LayerState::Conv(_) => None,
            LayerState::Attention { keys, values } => Some((i, keys, values)),
        })
    }
}

impl ReferenceModel<'_> {
    /// Embeddings [ids, hidden] of token ids.
    ///
    /// # Errors
    /// [`CheckpointError`] when a row cannot be read.
    pub fn embed(&self, ids: &[u32]) -> Result<Array2<f32>, CheckpointError> {
        let size = self.config().text.hidden_size;
        let mut embeddings = Array2::zeros((ids.len(), size));
        let name = "language_model.embed_tokens.weight";
        let quantized = self.quantized(name)?;
        let mut row = vec![0.0; size];
        for (&id, mut embedding) in ids.iter().zip(embeddings.rows_mut()) {
            let first = id as usize * size;
            match &quantized {
                Some(table) => row = table.row(id as usize),
                None => self.checkpoint.read(name, first..first + size, &mut row)?,
            }
            embedding.iter_mut().zip(&row).for_each(|(to, from)| *to = *from);
        }
        Ok(embeddings)
    }

    /// Logits [new tokens, vocab] for embeddings [new tokens, hidden] that follow `state`.
    ///
    /// # Errors
    /// [`CheckpointError`] when a weight cannot be read.
    pub fn forward(
        &self,
        embeddings: ArrayView2<'_, f32>,
        state: &mut ReferenceState,
    ) -> Result<Array2<f32>, CheckpointError> {
        let hidden = self.last_hidden_state(embeddings, state)?;
        let own = self.checkpoint.has_lm_head();
        let head = if own { "lm_head.weight" } else { "language_model.embed_tokens.weight" };
        Ok(hidden.dot(&self.matrix(head)?.t()))
    }

    /// Hidden states [new tokens, hidden] after the last norm.
    ///
    /// # Errors
    /// [`CheckpointError`] when a weight cannot be read.
    pub fn last_hidden_state(
        &self,
        embeddings: ArrayView2<'_, f32>,
        state: &mut ReferenceState,
    ) -> Result<Array2<f32>, CheckpointError> {
        let epsilon = self.config().text.norm_eps;
        let past = state.tokens;
        let mut x = embeddings.to_owned();
        for (i, layer_state) in state.layers.iter_mut().enumerate() {
            let layer = format!("language_model.layers.{i}");
            let normed = self.rms_norm(&format!("{layer}.operator_norm"), &x, epsilon)?;
            x += &match layer_state {
                LayerState::Conv(state) => self.short_conv(&layer, &normed, state)?,
                LayerState::Attention { keys, values } => {
                    self.self_attention(&layer, &normed, past, keys, values)?
                }
            };
            let normed = self.rms_norm(&format!("{layer}.ffn_norm"), &x, epsilon)?;
            let gate = self.linear(&format!("{layer}.feed_forward.w1"), &normed)?.mapv(ops::silu);
            let up = self.linear(&format!("{layer}.feed_forward.w3"), &normed)?;
            x += &self.linear(&format!("{layer}.feed_forward.w2"), &(gate * up))?;
        }
        state.tokens += embeddings.nrows();
        self.rms_norm("language_model.embedding_norm", &x, epsilon)
    }

    fn short_conv(
        &self,
        layer: &str,
        x: &Array2<f32>,
        state: &mut Array2<f32>,
    ) -> Result<Array2<f32>, CheckpointError> {
        let size = x.ncols();
        let width = state.ncols();
        let gates = self.linear(&format!("{layer}.conv.in_proj"), x)?;
        let gated = &gates.slice(s![.., ..size]) * &gates.slice(s![.., 2 * size..]);
        let kernel = self.checkpoint.load(&format!("{layer}.conv.conv.weight"))?;
        let bias = format!("{layer}.conv.conv.bias");
        let bias = match self.checkpoint.tensor(&bias) {
            Some(_) => self.vector(&bias)?,
            None => ndarray::Array1::zeros(size),
        };
        let mut convolved = Array2::zeros(gated.raw_dim());
        for (t, input) in gated.rows().into_iter().enumerate() {
            for channel in 0..size {
                for column in 1..width {
                    state[[channel, column - 1]] = state[[channel, column]];
                }
                state[[channel, width - 1]] = input[channel];
                convolved[[t, channel]] = bias[channel]
                    + (0..width)
                        .map(|k| kernel[[channel, 0, k]] * state[[channel, k]])
                        .sum::<f32>();
            }
        }
        let y = &gates.slice(s![.., size..2 * size]) * &convolved;
        self.linear(&format!("{layer}.conv.out_proj"), &y)
    }

    fn self_attention(
        &self,
        layer: &str,
        x: &Array2<f32>,
        past: usize,
        keys: &mut Array3<f32>,
        values: &mut Array3<f32>,
    ) -> Result<Array2<f32>, CheckpointError> {
        let text = &self.config().text;
        let (heads, kv_heads, width) =
            (text.num_attention_heads, text.num_key_value_heads, text.head_dim);
        let attention = format!("{layer}.self_attn");
        let query = self.heads(&attention, "q", x, heads, past)?;
        let new_keys = self.heads(&attention, "k", x, kv_heads, past)?;
        let new_values = split_heads(&self.linear(&format!("{attention}.v_proj"), x)?, kv_heads);
        *keys = append(keys, &new_keys);
        *values = append(values, &new_values);

        let mut attended = Array2::zeros((x.nrows(), heads * width));
        for head in 0..heads {
            let shared = head / (heads / kv_heads);
            let one = ops::attention(
                query.index_axis(Axis(0), head),
                keys.index_axis(Axis(0), shared),
                values.index_axis(Axis(0), shared),
                |i| past + i + 1,
            );
            attended.slice_mut(s![.., head * width..(head + 1) * width]).assign(&one);
        }
        self.linear(&format!("{attention}.out_proj"), &attended)
    }

    /// Projected, normed and rotated queries ("q") or keys ("k"): [heads, tokens, head_dim].
    fn heads(
        &self,
        attention: &str,
        which: &str,
        x: &Array2<f32>,
        heads: usize,
        past: usize,
    ) -> Result<Array3<f32>, CheckpointError> {
        let text = &self.config().text;
        let projected = self.linear(&format!("{attention}.{which}_proj"), x)?;
        let mut split = split_heads(&projected, heads);
        for mut head in split.outer_iter_mut() {
            let norm = format!("{attention}.{which}_layernorm");
            let normed = self.rms_norm(&norm, &head.to_owned(), text.norm_eps)?;
            for (t, (mut row, normed)) in head.rows_mut().into_iter().zip(normed.rows()).enumerate()
            {
                row.assign(&ops::rotate(normed, past + t, text.rope_theta));
            }
        }
        Ok(split)
    }
}

/// [tokens, heads * width] -> [heads, tokens, width].
fn split_heads(x: &Array2<f32>, heads: usize) -> Array3<f32> {
    let width = x.ncols() / heads;
    Array3::from_shape_fn((heads, x.nrows(), width), |(h, t, d)| x[[t, h * width + d]])
}

fn append(cache: &Array3<f32>, new: &Array3<f32>) -> Array3<f32> {
    // Both have the same heads and width, so they join.
    concatenate(Axis(1), &[cache.view(), new.view()]).unwrap_or_default()
}
