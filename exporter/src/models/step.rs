//! What the layers of one run of the decoder share.

use crate::onnx::Value;

/// What the layers of one run share.
#[derive(Clone, Copy)]
pub(super) struct Step<'g> {
    /// [batch, sequence, -1] as a shape vector.
    pub(super) shape: Value<'g>,
    pub(super) kept: Kept<'g>,
    pub(super) attention: AttentionInputs<'g>,
}

/// Which of the positions are in the outputs.
#[derive(Clone, Copy)]
pub(super) enum Kept<'g> {
    /// The last one; the places from which it and its conv state reach to the end, int64 [1].
    Last { logits: Value<'g>, conv: Value<'g> },
    /// Those from a place on that is counted from the end, int64 [1]: of the positions whose logits
    /// are computed, and of the inputs that conv states hold.
    From { logits: Value<'g>, conv: Value<'g> },
    /// Those in these places, int64 [1] and of as many as a conv state holds.
    At { logits: Value<'g>, conv: Value<'g> },
}

impl<'g> Kept<'g> {
    /// Of the hidden states [batch, sequence, hidden].
    pub(super) fn of_positions(self, hidden: Value<'g>) -> Value<'g> {
        match self {
            Kept::Last { logits, .. } | Kept::From { logits, .. } => hidden.slice_at(1, logits),
            Kept::At { logits, .. } => hidden.gather(logits, 1),
        }
    }

    /// Of conv states and what follows them, along the axis of these inputs.
    pub(super) fn of_inputs(self, history: Value<'g>, axis: i64) -> Value<'g> {
        match self {
            Kept::Last { conv, .. } | Kept::From { conv, .. } => history.slice_at(axis, conv),
            Kept::At { conv, .. } => history.gather(conv, axis),
        }
    }
}

/// The inputs of attention besides queries, keys and values, for each set of operators.
#[derive(Clone, Copy)]
pub(super) enum AttentionInputs<'g> {
    /// `GroupQueryAttention`: tokens of each row less one, int32 [batch]; tokens of the longest
    /// row, int32 scalar; how queries and keys are rotated.
    Fused { last_position: Value<'g>, total: Value<'g>, rotary: Rotary<'g> },
    /// Standard operators: which keys each query sees, as float32 [batch, 1, 1, sequence, total]
    /// added to the scores; which new positions are tokens, [batch * sequence, 1];
    /// float32 rotary factors of the new positions [sequence, head_dim / 2].
    Standard { bias: Value<'g>, tokens: Value<'g>, cos: Value<'g>, sin: Value<'g> },
    /// Standard operators with keys and values in buffers of a fixed length.
    Buffered(Buffered<'g>),
}

/// What rotates queries and keys.
#[derive(Clone, Copy)]
pub(super) enum Rotary<'g> {
    /// `RotaryEmbedding`: rotary factors of the new positions [batch * sequence, head_dim / 2], and which
    /// of these rows each position has, int64 [batch, sequence].
    Node { cos: Value<'g>, sin: Value<'g>, rows: Value<'g> },
    /// `GroupQueryAttention`: rotary factors of all positions [max_position_embeddings, head_dim / 2].
    Attention { cos: Value<'g>, sin: Value<'g> },
}

/// What attention is given besides queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Buffered<'g> {
    /// New tokens, padding included.
    pub(super) sequence: usize,
    /// Which cached keys are seen, as float32 [1, 1, 1, past_sequence] added to the scores.
    pub(super) bias: Value<'g>,
    /// Which new keys each new query sees, as float32 [sequence, sequence] added to the scores; `None`
    /// for one token, which sees itself.
    pub(super) causal: Option<Value<'g>>,
    /// float32 rotary factors of the new positions [sequence, head_dim / 2].
    pub(super) cos: Value<'g>,
    pub(super) sin: Value<'g>,
    /// Where in the buffers the new keys and values go, int64 [1, kv_heads, sequence, 3]; `None` where
    /// the client puts them there.
    pub(super) places: Option<Value<'g>>,
}

/// Rotary embedding on x [batch, heads, sequence, head_dim], halves rotated against each other.
pub(super) fn rotate<'g>(x: Value<'g>, cos: Value<'g>, sin: Value<'g>) -> Value<'g> {
    let [first, second] = x.split(3);
    (first * cos - second * sin).concat(&[second * cos + first * sin], 3)
}
