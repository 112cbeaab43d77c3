//! The language model's grouped-query attention, on what is projected from the stream.

use super::{
    Model,
    blocks::{Norm, Residual},
    step::{AttentionInputs, Rotary, Step, rotate},
};
use crate::onnx::{Attribute, Op, Value};

/// ONNX Runtime's operator of grouped-query attention.
const ATTENTION: &str = "GroupQueryAttention";

impl<'g> Model<'g> {
    /// Grouped-query self-attention on rows x; extends the layer's keys and values.
    pub(super) fn self_attention(self, x: Value<'g>, layer: usize, step: Step<'g>) -> Value<'g> {
        let text = &self.config.text;
        let (heads, head_dim) = (text.num_attention_heads, text.head_dim);
        let past_keys = self.g.input(&format!("past_key_values.{layer}.key"));
        let past_values = self.g.input(&format!("past_key_values.{layer}.value"));
        let _scope = self.g.enter("self_attn");

        let (attended, keys, values) = match step.attention {
            AttentionInputs::Fused {
                last_position,
                total,
                rotary: Rotary::Attention { cos, sin },
            } if self.packed_qkv => {
                let packed = self.by_sequence(self.packed_projections(x), step);
                let cache = [past_keys, past_values, last_position, total];
                self.packed_attention(packed, cache, [cos, sin])
            }
            _ => {
                let projected = self.projections(x, step);
                self.attention(projected, [past_keys, past_values], step)
            }
        };
        self.g.output(&format!("present.{layer}.key"), keys);
        self.g.output(&format!("present.{layer}.value"), values);

        let width = heads * head_dim;
        let attended = self.rows(attended, width);
        self.linear(attended, "out_proj", width, text.hidden_size, false)
    }

    /// Queries, keys and values of rows x, side by side.
    fn packed_projections(self, x: Value<'g>) -> Value<'g> {
        self.packed_linear(x, "qkv_proj", &self.projection_widths(), self.config.text.hidden_size)
    }

    /// Queries, keys and values of rows x: from one product where attention rotates, which is on devices, if
    /// their weights can follow each other.
    fn projections(self, x: Value<'g>, step: Step<'g>) -> [Value<'g>; 3] {
        let layers = self.projection_widths();
        let rotates = matches!(
            step.attention,
            AttentionInputs::Fused { rotary: Rotary::Attention { .. }, .. }
        );
        if rotates && self.packs_projections {
            return self.packed_projections(x).split_into(layers.map(|(_, width)| width), -1);
        }
        layers.map(|(name, width)| self.linear(x, name, self.config.text.hidden_size, width, false))
    }

    /// The projections of attention and how wide they are.
    fn projection_widths(self) -> [(&'static str, usize); 3] {
        let text = &self.config.text;
        let keys = text.num_key_value_heads * text.head_dim;
        [("q_proj", text.num_attention_heads * text.head_dim), ("k_proj", keys), ("v_proj", keys)]
    }

    /// ONNX Runtime's attention on queries, keys and values side by side [batch, sequence, width], of which it
    /// norms the former: only CUDA's and WebGPU's does. `cache` is what it is given of the past, `factors` are
    /// the [rotary tables](Self::rotary_tables). The result, and the new keys and values.
    fn packed_attention(
        self,
        packed: Value<'g>,
        cache: [Value<'g>; 4],
        factors: [Value<'g>; 2],
    ) -> (Value<'g>, Value<'g>, Value<'g>) {
        let text = &self.config.text;
        let norms = ["q_layernorm", "k_layernorm"].map(|norm| {
            let _scope = self.g.enter(norm);
            self.g.weight("weight", &[text.head_dim])
        });
        let none = self.g.omitted();
        // Between the factors and the norms are positions, a bias, a sink and scales, which it does without.
        let inputs = [&[packed, none, none][..], &cache, &factors, &[none; 5], &norms].concat();
        let mut attributes = self.attention_attributes();
        attributes.push(("do_rotary", Attribute::Int(1)));
        attributes.push(("qk_norm_epsilon", Attribute::Float(text.norm_eps)));
        self.g.node_with_outputs(Op::microsoft(ATTENTION), &inputs, &attributes).into()
    }

    /// What ONNX Runtime's attention is told in any form.
    fn attention_attributes(self) -> Vec<(&'static str, Attribute)> {
        let text = &self.config.text;
        vec![
            ("num_heads", Attribute::Int(text.num_attention_heads as i64)),
            ("kv_num_heads", Attribute::Int(text.num_key_value_heads as i64)),
            ("scale", Attribute::Float((text.head_dim as f32).powf(-0.5))),
        ]
    }

    /// Attention on projected queries, keys and values, as rows: the result, and the new keys and values.
    fn attention(
        self,
        [query, keys, values]: [Value<'g>; 3],
        [past_keys, past_values]: [Value<'g>; 2],
        step: Step<'g>,
    ) -> (Value<'g>, Value<'g>, Value<'g>) {
        let text = &self.config.text;
        let (heads, kv_heads, head_dim) =
            (text.num_attention_heads, text.num_key_value_heads, text.head_dim);
        let norm = |value: Value<'g>, name| {
            self.norm(Residual::new(value), Norm::Rms, name, head_dim, text.norm_eps).0
        };
        let normed = |value: Value<'g>, heads: usize, norm_name| {
            let sizes = [heads, head_dim].map(|size| size as i64);
            match step.attention {
                // Each row is one head of one token.
                AttentionInputs::Buffered(_) | AttentionInputs::Standard { .. } => {
                    norm(value.reshape(&[-1, sizes[1]]), norm_name)
                }
                AttentionInputs::Fused { rotary: Rotary::Node { .. }, .. } => {
                    norm(value.reshape(&[-1, sizes[1]]), norm_name).reshape_to(step.shape)
                }
                // In this form ONNX Runtime moves the norm into the attention, on CUDA: between two
                // reshapes whose last axis it knows. What is reshaped must have three axes then, and keep
                // them: where all sizes were known, both reshapes before the norm would become one.
                AttentionInputs::Fused { rotary: Rotary::Attention { .. }, .. } => {
                    let by_head =
                        self.by_sequence(value, step).reshape(&[0, 0, sizes[0], sizes[1]]);
                    norm(by_head, norm_name).reshape(&[0, 0, sizes[0] * sizes[1]])
                }
            }
        };
        let query = normed(query, heads, "q_layernorm");
        let keys = normed(keys, kv_heads, "k_layernorm");

        match step.attention {
            AttentionInputs::Fused { last_position, total, rotary } => {
                let values = self.by_sequence(values, step);
                let cache = [past_keys, past_values, last_position, total];
                let mut attributes = self.attention_attributes();
                let inputs = match rotary {
                    Rotary::Node { cos, sin, rows } => {
                        let rotated = |v: Value<'g>, heads: usize| {
                            self.g.node(
                                Op::microsoft("RotaryEmbedding"),
                                &[v, rows, cos, sin],
                                &[
                                    // The default value, but OpenVINO wants it said.
                                    ("interleaved", Attribute::Int(0)),
                                    ("num_heads", Attribute::Int(heads as i64)),
                                ],
                            )
                        };
                        let heads_of_both = [rotated(query, heads), rotated(keys, kv_heads)];
                        [&heads_of_both[..], &[values], &cache].concat()
                    }
                    Rotary::Attention { cos, sin } => {
                        attributes.push(("do_rotary", Attribute::Int(1)));
                        [&[query, keys, values][..], &cache, &[cos, sin]].concat()
                    }
                };
                self.g.node_with_outputs(Op::microsoft(ATTENTION), &inputs, &attributes).into()
            }
            AttentionInputs::Buffered(buffered) => {
                self.buffered_attention(buffered, [query, keys, values], [past_keys, past_values])
            }
            AttentionInputs::Standard { bias, cos, sin, .. } => {
                let by_head = |v: Value<'g>, heads: usize| {
                    let shape = [heads as i64, head_dim as i64];
                    let shape = step.shape.slice(0, 0, 2).concat(&[self.g.int_vector(&shape)], 0);
                    v.reshape_to(shape).transpose(&[0, 2, 1, 3])
                };
                let rotated = |v: Value<'g>, heads| {
                    rotate(by_head(v, heads).to_exact(), cos, sin).to_graph_floats()
                };
                let (query, keys) = (rotated(query, heads), rotated(keys, kv_heads));
                let keys = past_keys.concat(&[keys], 2);
                let values = past_values.concat(&[by_head(values, kv_heads)], 2);

                // Queries that share keys and values form a group: [batch, kv, group, seq, dim].
                let groups = self.g.int_vector(&[
                    0,
                    kv_heads as i64,
                    (heads / kv_heads) as i64,
                    -1,
                    head_dim as i64,
                ]);
                let attended = self.attend(
                    query.reshape_to(groups),
                    keys.unsqueeze(&[2]),
                    values.unsqueeze(&[2]),
                    bias,
                    head_dim,
                    &[0, 1, 2, 4, 3],
                );
                (attended.transpose(&[0, 3, 1, 2, 4]), keys, values)
            }
        }
    }
}
