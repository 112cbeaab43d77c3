//! The decoder where every size is fixed: keys and values lie in buffers of one length, the cached
//! tokens' first, and a mask tells which places count.

use lfm2vl_graphs::Operators;

use super::{
    Model,
    blocks::LEFT_OUT,
    step::{AttentionInputs, Buffered, Kept, Rotary, Step, rotate},
};
use crate::onnx::Value;

impl<'g> Model<'g> {
    /// What layers share in a run of so many tokens. Its parts come from the mask
    /// [1, past_sequence + sequence] alone.
    pub(super) fn fixed_step(self, attention_mask: Value<'g>, sequence: usize) -> Step<'g> {
        let total = self.g.fixed_size("attention_mask", 1).unwrap_or(sequence);
        let places = (total - sequence) as i64;
        let cached = attention_mask.slice(1, 0, places);
        let new = attention_mask.slice_from(1, places);
        let past = cached.sum(1).squeeze(&[1]); // [1]
        let kept = match sequence {
            1 => self.kept(),
            _ => {
                let tokens = new.sum(1).squeeze(&[1]); // [1]
                Kept::At {
                    logits: tokens - self.g.int_vector(&[1]),
                    conv: tokens + self.g.counting(self.conv_state_length()),
                }
            }
        };
        let attention = match self.attention_operators() {
            // Padding is written as if it were tokens, and overwritten by those.
            Operators::OnnxRuntime => AttentionInputs::Fused {
                last_position: (past + self.g.int_vector(&[sequence as i64 - 1])).to_i32(),
                total: self.g.ints(&[(total - sequence) as i64], &[]).to_i32(),
                rotary: {
                    let (cos, sin) = self.rotary_factors(past + self.g.counting(sequence));
                    Rotary::Node {
                        cos: cos.to_graph_floats(),
                        sin: sin.to_graph_floats(),
                        rows: self.g.counting(sequence).unsqueeze(&[0]),
                    }
                },
            },
            Operators::Standard => {
                let positions = past + self.g.counting(sequence); // [sequence]
                let (cos, sin) = self.rotary_factors(positions);
                AttentionInputs::Buffered(Buffered {
                    sequence,
                    bias: self.attention_bias(cached.to_f32()).unsqueeze(&[1, 2]),
                    causal: (sequence > 1).then(|| self.causal_bias(sequence)),
                    cos,
                    sin,
                    places: self.updates_cache(sequence).then(|| self.places(positions)),
                })
            }
        };
        Step { shape: self.g.int_vector(&[1, sequence as i64, -1]), kept, attention }
    }

    /// Whether the graph gives whole buffers.
    fn updates_cache(self, sequence: usize) -> bool {
        let layers = 0..self.config.text.layer_types.len();
        let mut present =
            layers.filter_map(|layer| self.g.fixed_size(&format!("present.{layer}.key"), 2));
        present.next().is_some_and(|places| places != sequence)
    }

    /// The index of each new key in a buffer [1, kv_heads, past_sequence, head_dim].
    fn places(self, positions: Value<'g>) -> Value<'g> {
        let heads = self.config.text.num_key_value_heads;
        // Row, head and position are added up, each from a tensor that is zero for the others.
        let of_heads: Vec<i64> = (0..heads as i64).flat_map(|head| [0, head, 0]).collect();
        let of_heads = self.g.ints(&of_heads, &[1, heads, 1, 3]);
        let of_positions = positions.unsqueeze(&[0, 1, 3]) * self.g.int_vector(&[0, 0, 1]);
        of_heads + of_positions
    }

    /// Attention over cached and new tokens; q, k and v have one head of one token in each row.
    /// Gives the attended values [1, sequence, heads * head_dim], and keys and values to be output.
    pub(super) fn buffered_attention(
        self,
        step: Buffered<'g>,
        [query, keys, values]: [Value<'g>; 3],
        [past_keys, past_values]: [Value<'g>; 2],
    ) -> (Value<'g>, Value<'g>, Value<'g>) {
        let text = &self.config.text;
        let (heads, kv_heads, head_dim) =
            (text.num_attention_heads, text.num_key_value_heads, text.head_dim);
        let Buffered { sequence, bias, causal, cos, sin, places } = step;
        let by_head = |value: Value<'g>, heads: usize| {
            let shape = [1, sequence, heads, head_dim].map(|size| size as i64);
            value.reshape(&shape).transpose(&[0, 2, 1, 3])
        };
        let rotated = |value: Value<'g>, heads| {
            rotate(by_head(value, heads).to_exact(), cos, sin).to_graph_floats()
        };
        let (query, keys) = (rotated(query, heads), rotated(keys, kv_heads));
        let values = by_head(values, kv_heads);

        // Queries that share keys and values stand below each other: [1, kv_heads, group * sequence, dim].
        let rows = heads / kv_heads * sequence;
        let query = query.reshape(&[1, kv_heads as i64, rows as i64, head_dim as i64]);
        let query = query * self.g.float((head_dim as f32).powf(-0.5)).to_graph_floats();
        let scores = |keys: Value<'g>| query.matmul(keys.transpose(&[0, 1, 3, 2])).to_exact();
        let past_sequence = self.g.fixed_size("attention_mask", 1).unwrap_or(sequence) - sequence;
        // The two parts are not joined, which would copy the buffers.
        let past_scores = scores(past_keys) + bias;
        let new_scores = match causal {
            Some(causal) => {
                let [kv_heads, group, sequence] =
                    [kv_heads, heads / kv_heads, sequence].map(|size| size as i64);
                let by_query = scores(keys).reshape(&[kv_heads, group, sequence, sequence]);
                (by_query + causal).reshape(&[1, kv_heads, group * sequence, sequence])
            }
            None => scores(keys),
        };
        let weights = past_scores.concat(&[new_scores], 3).softmax().to_graph_floats();
        let [past_weights, new_weights] = weights.split_into([past_sequence, sequence], 3);
        let attended = past_weights.matmul(past_values) + new_weights.matmul(values);
        let attended = attended
            .reshape(&[1, heads as i64, sequence as i64, head_dim as i64])
            .transpose(&[0, 2, 1, 3]);

        match places {
            Some(places) => {
                let [keys, values] = [(past_keys, keys), (past_values, values)]
                    .map(|(past, new)| past.with_rows(places, new));
                (attended, keys, values)
            }
            None => (attended, keys, values),
        }
    }

    fn causal_bias(self, sequence: usize) -> Value<'g> {
        let of_query =
            |query| (0..sequence).map(move |key| if key > query { LEFT_OUT } else { 0.0 });
        let bias: Vec<f32> = (0..sequence).flat_map(of_query).collect();
        self.g.floats(&bias, &[sequence, sequence])
    }
}
