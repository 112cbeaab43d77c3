//! What a decoder's state consists of, as its contract says.

use lfm2vl_graphs::{Dim, Dtype, GraphSpec};
use ort::value::{DynTensor, TensorElementType};

use crate::backend::{DeviceMemory, cut, shape};

/// The tensors of a decoder's state, and how runs change them.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) tensors: Vec<StateTensor>,
    /// Tokens that keys and values have room for, where the graph fixes that.
    pub(crate) fixed_capacity: Option<usize>,
    /// Whether runs give the keys and values of the new tokens only.
    pub(crate) gives_rows: bool,
    /// Whether runs give conv states of more inputs than they take.
    pub(crate) gives_history: bool,
}

/// A tensor of the state.
#[derive(Debug, Clone)]
pub(crate) struct StateTensor {
    /// Name of the input.
    pub(crate) past: String,
    /// Name of the output.
    pub(crate) present: String,
    pub(crate) kind: Kind,
    pub(crate) dtype: TensorElementType,
}

/// What a tensor of the state holds, with the sizes of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Conv states: the last inputs of a convolution, as columns [batch, hidden, inputs] where their
    /// axis is 2, and as rows [batch, inputs, hidden] where it is 1.
    Conv { hidden: usize, inputs: usize, axis: usize },
    /// Keys or values [batch, heads, tokens, head_dim].
    KeyValue { heads: usize, head_dim: usize },
}

impl Kind {
    /// Whether it holds conv states.
    pub(crate) fn is_conv(self) -> bool {
        matches!(self, Kind::Conv { .. })
    }

    /// Shape for `rows` sequences of room for `capacity` tokens.
    pub(crate) fn shape(self, rows: usize, capacity: usize) -> Vec<usize> {
        match self {
            Kind::Conv { hidden, inputs, axis: 1 } => vec![rows, inputs, hidden],
            Kind::Conv { hidden, inputs, .. } => vec![rows, hidden, inputs],
            Kind::KeyValue { heads, head_dim } => vec![rows, heads, capacity, head_dim],
        }
    }

    /// The state before the last `left_out` inputs of a conv state that a run gave, which may hold more
    /// inputs than runs take; `None` where it is the same.
    ///
    /// # Errors
    /// When there are not so many, or ONNX Runtime's.
    pub(crate) fn earlier(
        self,
        state: &DynTensor,
        left_out: usize,
        memory: Option<&DeviceMemory>,
    ) -> ort::Result<Option<DynTensor>> {
        let Kind::Conv { inputs, axis, .. } = self else { return Ok(None) };
        let given = shape(state).get(axis).copied().unwrap_or_default();
        if given == inputs && left_out == 0 {
            return Ok(None);
        }
        match given.checked_sub(left_out) {
            Some(end) if end >= inputs => cut(state, axis, end, inputs, memory).map(Some),
            _ => Err(ort::Error::new("a conv state was not kept")),
        }
    }

    /// Elements of a sequence of room for `capacity` tokens.
    pub(crate) fn elements(self, capacity: usize) -> usize {
        self.shape(1, capacity).iter().product()
    }
}

impl Layout {
    /// That of a decoder with these inputs and outputs.
    pub(crate) fn of(decoder: &GraphSpec) -> Self {
        let fixed = |dim: &Dim| match dim {
            Dim::Fixed(size) => Some(*size),
            Dim::Free(_) => None,
        };
        let embeds = decoder.inputs.iter().find(|input| input.name == "inputs_embeds");
        let hidden = embeds.and_then(|embeds| embeds.shape.get(2).and_then(fixed));
        let hidden = hidden.unwrap_or_default();
        let tensors = decoder.inputs.iter().filter_map(|input| {
            let (name, rest) = input.name.split_once('.')?;
            let size = |axis: usize| input.shape.get(axis).and_then(fixed).unwrap_or_default();
            let (present, kind) = match name {
                "past_conv" => {
                    let kind = match size(2) == hidden {
                        true => Kind::Conv { hidden, inputs: size(1), axis: 1 },
                        false => Kind::Conv { hidden: size(1), inputs: size(2), axis: 2 },
                    };
                    (format!("present_conv.{rest}"), kind)
                }
                "past_key_values" => {
                    let kind = Kind::KeyValue { heads: size(1), head_dim: size(3) };
                    (format!("present.{rest}"), kind)
                }
                _ => return None,
            };
            let dtype = match input.dtype {
                Dtype::Float16 => TensorElementType::Float16,
                _ => TensorElementType::Float32,
            };
            Some(StateTensor { past: input.name.clone(), present, kind, dtype })
        });
        let tokens = |prefix: &str, tensors: &[lfm2vl_graphs::Tensor]| {
            let tensor = tensors.iter().find(|tensor| tensor.name.starts_with(prefix));
            tensor.and_then(|tensor| tensor.shape.get(2)).and_then(fixed)
        };
        let fixed_capacity = tokens("past_key_values.", &decoder.inputs);
        let given = tokens("present.", &decoder.outputs);
        let mut outputs = decoder.outputs.iter();
        let conv = outputs.find(|output| output.name.starts_with("present_conv."));
        let gives_history =
            conv.is_some_and(|conv| conv.shape[1..].iter().any(|dim| fixed(dim).is_none()));
        Layout {
            tensors: tensors.collect(),
            fixed_capacity,
            gives_rows: given.is_some() && given != fixed_capacity,
            gives_history,
        }
    }

    /// Bytes of keys and values that a token takes.
    pub(crate) fn bytes_per_token(&self) -> usize {
        let caches = self.tensors.iter().filter(|tensor| !tensor.kind.is_conv());
        caches.map(|tensor| tensor.kind.elements(1)).sum::<usize>() * self.element_bytes()
    }

    /// Bytes of an element of the state.
    pub(crate) fn element_bytes(&self) -> usize {
        match self.tensors.first().map(|tensor| tensor.dtype) {
            Some(TensorElementType::Float16) => 2,
            _ => 4,
        }
    }
}
