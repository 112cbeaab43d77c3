//! The decoder's hybrid state: conv states, keys and values, as the last run left them.

use std::fmt::Debug;

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, GraphSpec};
use ndarray::{ArrayD, Axis, Slice};
use ort::{
    session::SessionOutputs,
    value::{DynValue, PrimitiveTensorElementType, TensorElementType, Value},
};

/// State after some tokens. The values stay where ONNX Runtime made them; a step hands them back
/// without a copy.
pub(crate) struct DecoderState {
    /// Input name, the output that replaces it, and its value.
    tensors: Vec<StateTensor>,
    /// Tokens that the state covers.
    tokens: usize,
}

struct StateTensor {
    past: String,
    present: String,
    value: DynValue,
}

impl StateTensor {
    fn is_conv(&self) -> bool {
        self.past.starts_with("past_conv.")
    }
}

/// What it takes to go back to an earlier state: keys and values of a longer state begin with
/// those of a shorter one, but conv states do not.
pub(crate) struct Checkpoint {
    tokens: usize,
    conv: Vec<DynValue>,
}

impl Checkpoint {
    /// Tokens that the state covered.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }
}

impl DecoderState {
    /// The state before any token: zero conv states, keys and values of length 0.
    pub(crate) fn new(decoder: &GraphSpec) -> ort::Result<Self> {
        let tensors = decoder.inputs.iter().filter_map(|input| {
            let present = match input.name.split_once('.')? {
                ("past_conv", layer) => format!("present_conv.{layer}"),
                ("past_key_values", rest) => format!("present.{rest}"),
                _ => return None,
            };
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Free(name) => usize::from(name == "batch_size"),
            };
            let shape: Vec<usize> = input.shape.iter().map(size).collect();
            let value = match input.dtype {
                Dtype::Float16 => {
                    Value::from_array(ArrayD::from_elem(shape, f16::ZERO)).map(Value::into_dyn)
                }
                _ => Value::from_array(ArrayD::<f32>::zeros(shape)).map(Value::into_dyn),
            };
            Some(value.map(|value| StateTensor { past: input.name.clone(), present, value }))
        });
        Ok(DecoderState { tensors: tensors.collect::<ort::Result<_>>()?, tokens: 0 })
    }

    /// Tokens that the state covers.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The inputs of the next run.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = (&str, &DynValue)> {
        self.tensors.iter().map(|tensor| (tensor.past.as_str(), &tensor.value))
    }

    /// Takes the new state out of a run over `tokens` more tokens.
    pub(crate) fn update(
        &mut self,
        outputs: &mut SessionOutputs<'_>,
        tokens: usize,
    ) -> ort::Result<()> {
        for tensor in &mut self.tensors {
            tensor.value = outputs
                .remove(&tensor.present)
                .ok_or_else(|| ort::Error::new(format!("no output {}", tensor.present)))?;
        }
        self.tokens += tokens;
        Ok(())
    }

    /// Remembers this state.
    pub(crate) fn checkpoint(&self) -> ort::Result<Checkpoint> {
        let conv = self.tensors.iter().filter(|tensor| tensor.is_conv());
        let conv = conv.map(|tensor| copy(&tensor.value, None)).collect::<ort::Result<_>>()?;
        Ok(Checkpoint { tokens: self.tokens, conv })
    }

    /// Goes back to an earlier state of the same tokens.
    pub(crate) fn rewind(&mut self, checkpoint: &Checkpoint) -> ort::Result<()> {
        let mut conv = checkpoint.conv.iter();
        for tensor in &mut self.tensors {
            tensor.value = match tensor.is_conv() {
                true => {
                    let earlier = conv.next();
                    let missing = || ort::Error::new("a conv state is missing");
                    copy(earlier.ok_or_else(missing)?, None)?
                }
                false => copy(&tensor.value, Some(checkpoint.tokens))?,
            };
        }
        self.tokens = checkpoint.tokens;
        Ok(())
    }
}

/// A copy of a state, or of the first `tokens` of keys or values [batch, kv_heads, tokens,
/// head_dim].
fn copy(value: &DynValue, tokens: Option<usize>) -> ort::Result<DynValue> {
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float16) => copy_of::<f16>(value, tokens),
        _ => copy_of::<f32>(value, tokens),
    }
}

fn copy_of<T>(value: &DynValue, tokens: Option<usize>) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + Clone + Debug + 'static,
{
    let mut array = value.try_extract_array::<T>()?;
    if let Some(tokens) = tokens {
        array.slice_axis_inplace(Axis(2), Slice::from(..tokens));
    }
    // A slice keeps the strides of the whole.
    Ok(Value::from_array(array.as_standard_layout().into_owned())?.into_dyn())
}
