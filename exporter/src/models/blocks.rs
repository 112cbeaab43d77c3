//! Blocks that more than one graph uses.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use lfm2vl_graphs::{Activations, Fusion, GeluForm, Operators, WeightFormat};

use super::Model;
use crate::{
    onnx::{Attribute, Gelu, Op, Stored, Value},
    quantize::{BlockFormat, Packing},
};

/// A residual stream whose last update has not been added yet, so that the addition and the norm
/// that follows can be one operator.
#[derive(Clone, Copy)]
pub(super) struct Residual<'g> {
    sum: Value<'g>,
    update: Option<Product<'g>>,
}

/// What a linear layer gives, whose bias the operator that follows may have to add.
#[derive(Clone, Copy)]
pub(super) struct Product<'g> {
    pub(super) value: Value<'g>,
    pub(super) bias: Option<Value<'g>>,
}

impl<'g> From<Value<'g>> for Product<'g> {
    fn from(value: Value<'g>) -> Self {
        Product { value, bias: None }
    }
}

impl<'g> Product<'g> {
    /// With its bias.
    fn whole(self) -> Value<'g> {
        self.bias.map_or(self.value, |bias| self.value + bias)
    }
}

/// A score whose exponential is 0: the lowest of float16, which some providers compute in.
pub(super) const LEFT_OUT: f32 = -65504.0;

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

    /// The sum with nothing pending.
    pub(super) fn value(self) -> Value<'g> {
        self.update.map_or(self.sum, |update| self.sum + update.whole())
    }

    pub(super) fn add(self, update: impl Into<Product<'g>>) -> Self {
        debug_assert!(self.update.is_none(), "an update is normed before the next one");
        Residual { sum: self.sum, update: Some(update.into()) }
    }
}

impl<'g> Model<'g> {
    /// The linear layer `name` of the current module on x [n, inputs] -> [n, outputs], quantized
    /// if the precision wants it.
    pub(super) fn linear(
        self,
        x: Value<'g>,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Value<'g> {
        let module = self.g.path(name);
        let _scope = self.g.enter(name);
        let bias = bias.then(|| self.g.weight("bias", &[outputs]));
        let weight = self.g.path("weight").into();
        self.linear_with(x, &module, weight, [outputs, inputs], bias)
    }

    /// Linear layers of the current module without biases on x [n, inputs], by name and outputs, as
    /// one product `name`: [n, all outputs]. They are quantized in the same way.
    pub(super) fn packed_linear(
        self,
        x: Value<'g>,
        name: &str,
        layers: &[(&str, usize)],
        inputs: usize,
    ) -> Value<'g> {
        let modules: Vec<String> = layers.iter().map(|(layer, _)| self.g.path(layer)).collect();
        let tensors = modules.iter().map(|module| format!("{module}.weight")).collect();
        let outputs = layers.iter().map(|(_, outputs)| outputs).sum();
        let _scope = self.g.enter(name);
        let weight = Stored { name: self.g.path("weight"), tensors };
        self.linear_with(x, &modules[0], weight, [outputs, inputs], None)
    }

    /// The same with a bias, which is left to the operator that follows where that is faster.
    pub(super) fn product(
        self,
        x: Value<'g>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Product<'g> {
        if self.fusion == Fusion::Cpu {
            return self.linear(x, name, inputs, outputs, true).into();
        }
        let value = self.linear(x, name, inputs, outputs, false);
        let _scope = self.g.enter(name);
        Product { value, bias: Some(self.g.weight("bias", &[outputs])) }
    }

    /// The linear layer `module` with a stored weight [outputs, inputs].
    pub(super) fn linear_with(
        self,
        x: Value<'g>,
        module: &str,
        weight: Stored,
        shape: [usize; 2],
        bias: Option<Value<'g>>,
    ) -> Value<'g> {
        self.g.tap(module, x);
        let Some(format) = self.format_of(module) else {
            return x.linear(self.g.stored(weight, &shape), bias);
        };
        let blocks = |packing| BlockFormat::new(format, self.g.is_half(), packing);
        match (self.operators, format.activations) {
            (Operators::OnnxRuntime, Activations::Tensor) => {
                x.to_exact().linear_int8(weight, shape, bias.map(Value::to_exact)).to_graph_floats()
            }
            (Operators::OnnxRuntime, activations) => {
                let int8_inputs = activations == Activations::Int8;
                x.linear_blocks(weight, shape, blocks(Packing::MATMUL), int8_inputs, bias)
            }
            (Operators::Standard, _) => {
                x.linear(self.g.dequantized(weight, shape, blocks(Packing::DEQUANTIZE)), bias)
            }
        }
    }

    /// How the weight of a module is quantized; `None` where it stays float.
    pub(super) fn format_of(self, module: &str) -> Option<WeightFormat> {
        self.quantization?.format_of(&self.config.module(module))
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
        let fused = match (kind, self.operators, self.fusion) {
            (_, Operators::Standard, _) => None,
            (Norm::Rms, Operators::OnnxRuntime, _) => Some("SkipSimplifiedLayerNormalization"),
            (Norm::Layer, Operators::OnnxRuntime, Fusion::Cuda) => Some("SkipLayerNormalization"),
            // It takes several times as long on a CPU as its two parts.
            (Norm::Layer, Operators::OnnxRuntime, Fusion::Cpu) => None,
        };
        if let (Some(operator), Some(update)) = (fused, x.update) {
            let mut inputs = vec![x.sum, update.value, weight];
            if kind == Norm::Layer {
                inputs.push(self.g.weight("bias", &[size]));
            }
            inputs.extend(update.bias);
            let [normed, _mean, _inverse_std, sum] = self.g.node_with_outputs(
                Op::microsoft(operator),
                &inputs,
                &[("epsilon", Attribute::Float(epsilon))],
            );
            return (normed, Residual::new(sum));
        }
        let sum = x.value();
        let normed = match kind {
            Norm::Rms => sum.rms_norm(weight, epsilon),
            Norm::Layer => sum.layer_norm(weight, self.g.weight("bias", &[size]), epsilon),
        };
        (normed, Residual::new(sum))
    }

    /// The GELU activation of a linear layer.
    pub(super) fn gelu_of(self, x: Product<'g>, kind: Gelu) -> Value<'g> {
        let Some(bias) = x.bias else { return self.gelu(x.value, kind) };
        let operator = match kind {
            Gelu::Exact => "BiasGelu",
            Gelu::Tanh => "FastGelu",
        };
        self.g.node(Op::microsoft(operator), &[x.value, bias], &[])
    }

    /// The GELU activation: the operator `Gelu`, or what it stands for.
    pub(super) fn gelu(self, x: Value<'g>, kind: Gelu) -> Value<'g> {
        let number = |value: f64| self.g.float(value as f32).to_graph_floats();
        match (self.gelu, kind) {
            (GeluForm::Operator, kind) => x.gelu(kind),
            (GeluForm::Formula, Gelu::Exact) => {
                x * number(0.5) * ((x * number(FRAC_1_SQRT_2)).erf() + number(1.0))
            }
            // (1 + tanh z) / 2 is the logistic function of 2 z.
            (GeluForm::Formula, Gelu::Tanh) => {
                let z = x * (x * x * number(0.044_715) + number(1.0));
                x * (z * number(FRAC_2_SQRT_PI * SQRT_2)).sigmoid()
            }
        }
    }

    /// Scaled dot-product attention from standard operators: queries [.., s, d], keys and values
    /// [.., t, d], float32 `bias` added to the scores and broadcast over them.
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
        let scale = self.g.float((head_dim as f32).powf(-0.5)).to_graph_floats();
        let query = query * scale;
        let scores = query.matmul(keys.transpose(transpose_keys)).to_exact() + bias;
        scores.softmax().to_graph_floats().matmul(values)
    }

    /// 0 where float32 `keep` is 1, and [`LEFT_OUT`] where it is 0: what is added to attention scores
    /// to leave positions out.
    pub(super) fn attention_bias(self, keep: Value<'g>) -> Value<'g> {
        (keep - self.g.float(1.0)) * self.g.float(-LEFT_OUT)
    }
}
