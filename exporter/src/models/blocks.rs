//! Blocks that more than one graph uses.

use lfm2vl_graphs::Operators;

use super::Model;
use crate::onnx::{Attribute, Op, Value};

/// A residual stream whose last update has not been added yet, so that the addition and the norm
/// that follows can be one operator.
#[derive(Clone, Copy)]
pub(super) struct Residual<'g> {
    sum: Value<'g>,
    update: Option<Value<'g>>,
}

/// The two kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// Root-mean-square norm, with a weight.
    Rms,
    /// Layer norm, with a weight and a bias.
    Layer,
}

impl<'g> Residual<'g> {
    pub(super) fn new(x: Value<'g>) -> Self {
        Residual { sum: x, update: None }
    }

    pub(super) fn add(self, update: Value<'g>) -> Self {
        debug_assert!(self.update.is_none(), "an update is normed before the next one");
        Residual { sum: self.sum, update: Some(update) }
    }
}

impl<'g> Model<'g> {
    /// The linear layer `name` of the current module on x [n, inputs] -> [n, outputs].
    pub(super) fn linear(
        self,
        x: Value<'g>,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Value<'g> {
        let _scope = self.g.enter(name);
        let weight = self.g.weight("weight", &[outputs, inputs]);
        x.linear(weight, bias.then(|| self.g.weight("bias", &[outputs])))
    }

    /// Adds the pending update and applies the norm `name` of the current module.
    /// Returns the normed stream [n, size] and the stream itself.
    pub(super) fn norm(
        self,
        x: Residual<'g>,
        kind: Norm,
        name: &str,
        size: usize,
        epsilon: f32,
    ) -> (Value<'g>, Residual<'g>) {
        let _scope = self.g.enter(name);
        let weight = self.g.weight("weight", &[size]);
        let bias = (kind == Norm::Layer).then(|| self.g.weight("bias", &[size]));
        if let (Some(update), Operators::OnnxRuntime) = (x.update, self.operators) {
            let fused = match kind {
                Norm::Rms => "SkipSimplifiedLayerNormalization",
                Norm::Layer => "SkipLayerNormalization",
            };
            let inputs: Vec<_> = [x.sum, update, weight].into_iter().chain(bias).collect();
            let [normed, _mean, _inverse_std, sum] = self.g.node_with_outputs(
                Op::microsoft(fused),
                &inputs,
                &[("epsilon", Attribute::Float(epsilon))],
            );
            return (normed, Residual::new(sum));
        }
        let sum = x.update.map_or(x.sum, |update| x.sum + update);
        let normed = match bias {
            None => sum.rms_norm(weight, epsilon),
            Some(bias) => sum.layer_norm(weight, bias, epsilon),
        };
        (normed, Residual::new(sum))
    }

    /// Scaled dot-product attention from standard operators: queries [.., s, d], keys and values
    /// [.., t, d], `bias` added to the scores and broadcast over them.
    pub(super) fn attend(
        self,
        query: Value<'g>,
        keys: Value<'g>,
        values: Value<'g>,
        bias: Value<'g>,
        head_dim: usize,
        transpose_keys: &[i64],
    ) -> Value<'g> {
        // The scale goes on the query, which is the smaller operand.
        let query = query * self.g.float((head_dim as f32).powf(-0.5));
        let scores = query.matmul(keys.transpose(transpose_keys)) + bias;
        scores.softmax().matmul(values)
    }

    /// 0 where `keep` is true, and the lowest finite float where it is false: what is added to
    /// attention scores to leave positions out.
    pub(super) fn attention_bias(self, keep: Value<'g>) -> Value<'g> {
        keep.select(self.g.float(0.0), self.g.float(f32::MIN))
    }
}
