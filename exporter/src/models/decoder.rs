//! The LFM2 language model: short convolutions and grouped-query attention, with their state.

use lfm2vl_graphs::{Fusion, LayerKind, Logits, Operators};

use super::{
    Model,
    blocks::{Norm, Residual},
    embedding::EMBEDDING,
    step::{AttentionInputs, Kept, Rotary, Step},
};
use crate::{
    checkpoint::Config,
    onnx::{Attribute, Op, Value},
};

impl<'g> Model<'g> {
    /// Builds the whole decoder graph: embeddings and state in; logits and new state out.
    /// Logits are of the last positions or of all; the last hidden state is an output if asked for.
    pub(super) fn decoder(self, logits: Logits, last_hidden_state: bool, tied_head: bool) {
        let text = &self.config.text;
        let size = text.hidden_size;
        let embeds = self.embeddings();

        let (hidden, kept) = {
            let _scope = self.g.enter("language_model");
            let step = match self.g.find_input("attention_mask") {
                Some(mask) => self.step(embeds, mask),
                None => self.counted_step(embeds),
            };
            let mut x = Residual::new(self.rows(embeds, size));
            for layer in 0..text.layer_types.len() {
                x = self.decoder_layer(x, layer, step);
            }
            let (normed, _) = self.norm(x, Norm::Rms, "embedding_norm", size, text.norm_eps);
            (self.by_sequence(normed, step), step.kept)
        };

        let scored = match logits {
            Logits::Last => kept.of_positions(hidden),
            Logits::All => hidden,
        };
        let logits = self.head(scored, tied_head).to_exact();
        self.g.output("logits", logits);
        if let Some(count) = self.g.fixed_size("candidate_ids", 2) {
            let [values, ids] = logits.top(count);
            self.g.output("candidate_logits", values);
            self.g.output("candidate_ids", ids);
            if self.g.find_input("input_ids").is_some() {
                self.g.output("next_ids", ids.gather(self.g.ints(&[0], &[]), 2));
                let one = self.g.ints(&[1], &[]).to_i32();
                self.g.output("next_seqlens_k", self.g.input("seqlens_k") + one);
            }
        }
        if last_hidden_state {
            self.g.output("last_hidden_state", hidden.to_exact());
        }
    }

    /// What the layers begin with: where the graph is given tokens and not their embeddings, it looks these up.
    fn embeddings(self) -> Value<'g> {
        let given = self.g.input("inputs_embeds").to_graph_floats();
        let Some(ids) = self.g.find_input("input_ids") else { return given };
        let is_token = ids.greater_or_equal(self.g.ints(&[0], &[])).unsqueeze(&[2]);
        // Where there is none, `Gather` takes a row from the end.
        is_token.select(self.embed_tokens(ids), given)
    }

    /// The rows of [batch, sequence, size] as the layers work on them.
    pub(super) fn rows(self, x: Value<'g>, size: usize) -> Value<'g> {
        if self.flat_rows { x.reshape(&[-1, size as i64]) } else { x }
    }

    /// Rows as [batch, sequence, size].
    pub(super) fn by_sequence(self, x: Value<'g>, step: Step<'g>) -> Value<'g> {
        if self.flat_rows { x.reshape_to(step.shape) } else { x }
    }

    /// One layer on the rows of the stream.
    pub(super) fn decoder_layer(
        self,
        x: Residual<'g>,
        layer: usize,
        step: Step<'g>,
    ) -> Residual<'g> {
        let text = &self.config.text;
        let size = text.hidden_size;
        let _scope = self.g.enter(format!("layers.{layer}"));
        let (normed, stream) = self.norm(x, Norm::Rms, "operator_norm", size, text.norm_eps);
        let x = stream.add(match text.layer_types[layer] {
            LayerKind::Conv => self.short_conv(normed, layer, step),
            LayerKind::FullAttention => self.self_attention(normed, layer, step),
        });
        let (normed, stream) = self.norm(x, Norm::Rms, "ffn_norm", size, text.norm_eps);
        stream.add(self.feed_forward(normed))
    }

    /// Hidden states [batch, positions, hidden] -> logits [batch, positions, vocab].
    fn head(self, hidden: Value<'g>, tied: bool) -> Value<'g> {
        let text = &self.config.text;
        let name = if tied { EMBEDDING } else { "lm_head.weight" };
        let _scope = self.g.enter("lm_head");
        let shape = [text.vocab_size, text.hidden_size];
        if self.format_of("lm_head").is_some() && !self.flat_rows {
            return self.linear_with(hidden, "lm_head", name.into(), shape, None);
        }
        let rows = hidden.reshape(&[-1, text.hidden_size as i64]);
        let logits = self.linear_with(rows, "lm_head", name.into(), shape, None);
        match self.g.fixed_size("inputs_embeds", 1) {
            Some(_) => logits.reshape(&[1, -1, text.vocab_size as i64]),
            None => logits.reshape_to(hidden.dims(0, 2).concat(&[self.g.int_vector(&[-1])], 0)),
        }
    }

    /// Masks and rotary factors, computed once for all layers.
    pub(super) fn step(self, embeds: Value<'g>, attention_mask: Value<'g>) -> Step<'g> {
        if let Some(sequence) = self.g.fixed_size("inputs_embeds", 1) {
            return self.fixed_step(attention_mask, sequence);
        }
        let shape = embeds.dims(0, 2).concat(&[self.g.int_vector(&[-1])], 0);
        let attention = match self.attention_operators() {
            Operators::OnnxRuntime => {
                let tokens = attention_mask.sum(1).squeeze(&[1]); // [batch]
                AttentionInputs::Fused {
                    last_position: (tokens - self.g.ints(&[1], &[])).to_i32(),
                    total: attention_mask.dim(1).to_i32(),
                    rotary: match self.fusion {
                        Fusion::Cpu => self.rotary(embeds, tokens),
                        Fusion::Cuda => self.rotary_tables(),
                    },
                }
            }
            Operators::Standard => {
                let total = attention_mask.dim(1);
                let past = total - embeds.dim(1);
                let positions = total.range_from(past); // [sequence]
                let (cos, sin) = self.rotary_factors(positions);
                let is_token = attention_mask.greater_or_equal(self.g.ints(&[1], &[]));
                let causal = positions.unsqueeze(&[1]).greater_or_equal(total.range());
                let seen = causal.and(is_token.unsqueeze(&[1, 2, 3]));
                let new_tokens = attention_mask.gather(positions, 1).to_f32();
                AttentionInputs::Standard {
                    bias: self.attention_bias(seen.to_f32()),
                    tokens: new_tokens.reshape(&[-1, 1]).to_graph_floats(),
                    cos,
                    sin,
                }
            }
        };
        Step { shape, kept: self.kept(), attention }
    }

    /// As [`step`](Self::step), where the graph is told how many tokens there are.
    fn counted_step(self, embeds: Value<'g>) -> Step<'g> {
        let last_position = self.g.input("seqlens_k");
        let total = self.g.input("total_sequence_length");
        if self.attention_operators() == Operators::Standard {
            let places = total.to_i64().range();
            let mask = last_position.to_i64().unsqueeze(&[1]).greater_or_equal(places);
            return self.step(embeds, mask.to_i64());
        }
        let shape = embeds.dims(0, 2).concat(&[self.g.int_vector(&[-1])], 0);
        let rotary = self.rotary_tables();
        let attention = AttentionInputs::Fused { last_position, total, rotary };
        Step { shape, kept: self.kept(), attention }
    }

    /// What is kept: as much as the graph is asked to, or that of the last position.
    pub(super) fn kept(self) -> Kept<'g> {
        let width = self.conv_state_length() as i64;
        let starts = |starts: &[i64]| self.g.int_vector(starts);
        match self.g.find_input("num_logits_to_keep") {
            Some(count) => {
                let count = count.unsqueeze(&[0]);
                Kept::From { logits: starts(&[0]) - count, conv: starts(&[1 - width]) - count }
            }
            None => Kept::Last { logits: starts(&[-1]), conv: starts(&[-width]) },
        }
    }

    /// Whether conv states are rows [batch, conv_L_cache - 1, hidden], as the convolution's operator has
    /// them, and not columns [batch, hidden, conv_L_cache].
    fn has_conv_rows(self) -> bool {
        let text = &self.config.text;
        let mut layers = 0..text.layer_types.len();
        let last = layers.find_map(|layer| self.g.fixed_size(&format!("past_conv.{layer}"), 2));
        last == Some(text.hidden_size) && self.operators == Operators::OnnxRuntime
    }

    /// How many inputs of the convolution a conv state holds.
    pub(super) fn conv_state_length(self) -> usize {
        self.config.text.conv_l_cache - usize::from(self.has_conv_rows())
    }

    pub(super) fn attention_operators(self) -> Operators {
        attention_operators(self.config, self.operators)
    }

    /// The rotation of new positions, of which the last is that of a row's last token. Where a
    /// shorter row of a first prompt is padded, its positions begin at 0 as well.
    ///
    /// `GroupQueryAttention` would rotate too, but from [tables](Self::rotary_tables) of all positions that
    /// the model can have, which take 32 MB and a tenth of the time of loading on a CPU.
    fn rotary(self, embeds: Value<'g>, tokens: Value<'g>) -> Rotary<'g> {
        let sequence = embeds.dim(1);
        let starts = (tokens - sequence).max(self.g.ints(&[0], &[]));
        let positions = (starts.unsqueeze(&[1]) + sequence.range()).reshape(&[-1]);
        let (cos, sin) = self.rotary_factors(positions);
        let rows = positions.dim(0).range().reshape_to(embeds.dims(0, 2));
        Rotary::Node { cos: cos.to_graph_floats(), sin: sin.to_graph_floats(), rows }
    }

    /// Rotary factors of all positions that the model can have, so that nothing is computed in a run: what a
    /// device computes there are 23 kernels of a few microseconds for each token, some of which wait for
    /// numbers from the host.
    fn rotary_tables(self) -> Rotary<'g> {
        let text = &self.config.text;
        let frequencies = self.inverse_frequencies();
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            let angles = (0..text.max_position_embeddings)
                .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
            angles.map(|angle| of(f64::from(angle)) as f32).collect()
        };
        let shape = [text.max_position_embeddings, text.head_dim / 2];
        let _scope = self.g.enter("rotary_emb");
        Rotary::Attention {
            cos: self.g.table("cos", &table(f64::cos), &shape),
            sin: self.g.table("sin", &table(f64::sin), &shape),
        }
    }

    fn inverse_frequencies(self) -> Vec<f32> {
        let text = &self.config.text;
        let exponent = |i: usize| -((2 * i) as f64) / text.head_dim as f64;
        (0..text.head_dim / 2).map(|i| text.rope_theta.powf(exponent(i)) as f32).collect()
    }

    /// Cosine and sine [positions, head_dim / 2] of the rotary angles of int64 `positions`.
    pub(super) fn rotary_factors(self, positions: Value<'g>) -> (Value<'g>, Value<'g>) {
        let inverse_frequencies = self.inverse_frequencies();
        let _scope = self.g.enter("rotary_emb");
        let inverse_frequencies =
            self.g.floats(&inverse_frequencies, &[1, inverse_frequencies.len()]);
        let angles = positions.to_f32().unsqueeze(&[1]) * inverse_frequencies;
        (angles.cos(), angles.sin())
    }

    /// Gated short convolution on rows x; shifts the layer's conv state.
    fn short_conv(self, x: Value<'g>, layer: usize, step: Step<'g>) -> Value<'g> {
        let text = &self.config.text;
        let (size, width, bias) = (text.hidden_size, text.conv_l_cache, text.conv_bias);
        let past = self.g.input(&format!("past_conv.{layer}"));
        let _scope = self.g.enter("conv");

        let x = match step.attention {
            // There it comes last, where the convolution does not look.
            AttentionInputs::Fused { .. } | AttentionInputs::Buffered(_) => x,
            // Padding must not leak into the convolution.
            AttentionInputs::Standard { tokens, .. } => x * tokens,
        };
        let gates = self.by_sequence(self.linear(x, "in_proj", size, 3 * size, bias), step);
        let [before, after, x] = gates.split(2); // [batch, sequence, hidden] each
        let x = before * x;
        let (convolved, present) = {
            let _scope = self.g.enter("conv");
            let weight = self.g.weight("weight", &[size, 1, width]);
            let bias = bias.then(|| self.g.weight("bias", &[size]));
            match self.operators {
                Operators::OnnxRuntime => self.causal_conv(x, past, weight, bias, step.kept),
                Operators::Standard => self.depthwise_conv(x, past, weight, bias, step.kept),
            }
        };
        self.g.output(&format!("present_conv.{layer}"), present);
        let y = self.rows(after * convolved, size);
        self.linear(y, "out_proj", size, size, text.conv_bias)
    }

    /// ONNX Runtime's convolution, which needs no transposes around x [batch, sequence, hidden]. It has
    /// states of one column less than the contract `community`, as rows.
    fn causal_conv(
        self,
        x: Value<'g>,
        past: Value<'g>,
        weight: Value<'g>,
        bias: Option<Value<'g>>,
        kept: Kept<'g>,
    ) -> (Value<'g>, Value<'g>) {
        let has_rows = self.has_conv_rows();
        let history = if has_rows { past } else { past.transpose(&[0, 2, 1]) };
        let state = if has_rows { history } else { history.slice_from(1, 1) };
        let [convolved, present] = self.g.node_with_outputs(
            Op::microsoft("CausalConvWithState"),
            &[x, weight, bias.unwrap_or(self.g.omitted()), state],
            &[("channels_last", Attribute::Int(1))],
        );
        let joined = |x: Value<'g>| kept.of_inputs(history.concat(&[x], 1), 1);
        let present = match (has_rows, kept) {
            (true, Kept::Last { .. }) => present,
            (true, _) => joined(x),
            // Where they are counted from the end, no others are needed.
            (false, Kept::Last { .. } | Kept::From { .. }) => {
                joined(kept.of_inputs(x, 1)).transpose(&[0, 2, 1])
            }
            (false, Kept::At { .. }) => joined(x).transpose(&[0, 2, 1]),
        };
        (convolved, present)
    }

    /// The same as a plain depthwise convolution over state and x.
    fn depthwise_conv(
        self,
        x: Value<'g>,
        past: Value<'g>,
        weight: Value<'g>,
        bias: Option<Value<'g>>,
        kept: Kept<'g>,
    ) -> (Value<'g>, Value<'g>) {
        let text = &self.config.text;
        let history = past.concat(&[x.transpose(&[0, 2, 1])], 2); // [batch, hidden, width + seq]
        let inputs: Vec<_> = [history.slice_from(2, 1), weight].into_iter().chain(bias).collect();
        let convolved = self.g.node(
            Op::onnx("Conv"),
            &inputs,
            &[
                ("group", Attribute::Int(text.hidden_size as i64)),
                ("kernel_shape", Attribute::Ints(vec![text.conv_l_cache as i64])),
            ],
        );
        (convolved.transpose(&[0, 2, 1]), kept.of_inputs(history, 2))
    }

    /// SwiGLU: `w2(silu(w1 x) * w3 x)`.
    fn feed_forward(self, x: Value<'g>) -> Value<'g> {
        let text = &self.config.text;
        let (size, inner) = (text.hidden_size, text.feed_forward_size);
        let _scope = self.g.enter("feed_forward");
        let gate = self.linear(x, "w1", size, inner, false);
        let up = self.linear(x, "w3", size, inner, false);
        let gate = match self.operators {
            // With a factor of 1 this is silu.
            Operators::OnnxRuntime => self.g.node(
                Op::microsoft("QuickGelu"),
                &[gate],
                &[("alpha", Attribute::Float(1.0))],
            ),
            Operators::Standard => gate * gate.sigmoid(),
        };
        self.linear(gate * up, "w2", inner, size, false)
    }
}

/// `GroupQueryAttention` rotates heads whose size is a multiple of 16 only.
pub(super) fn attention_operators(config: &Config, operators: Operators) -> Operators {
    if config.text.head_dim.is_multiple_of(16) { operators } else { Operators::Standard }
}
