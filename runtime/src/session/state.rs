//! The decoder's hybrid state: conv states, keys and values, as the last run left them.

use std::fmt::Debug;

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, GraphSpec, Tensor as Input};
use ndarray::{ArrayD, Axis, Slice};
use ort::{
    memory::{Allocator, MemoryInfo},
    session::{IoBinding, Session, SessionOutputs},
    value::{DynTensor, DynValue, PrimitiveTensorElementType, TensorElementType, Value},
};

/// Tokens by which buffers of keys and values grow at least. Memory that is never written is never
/// taken from the system, so this costs nothing.
const GROWTH: usize = 1024;

/// State after some tokens, bound to a session.
pub(crate) struct DecoderState {
    binding: IoBinding,
    tensors: Vec<StateTensor>,
    /// Tokens that the state covers.
    tokens: usize,
    /// Tokens that the buffers of keys and values have place for; `None` where each run makes new
    /// ones.
    capacity: Option<usize>,
}

struct StateTensor {
    past: String,
    present: String,
    /// Conv states [batch, hidden, width], or keys or values [batch, kv_heads, tokens, head_dim].
    /// Where ONNX Runtime made it, a run takes it without a copy.
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
    /// The state before any token: zero conv states, no keys and values. With `in_place` the graph
    /// writes new keys and values into the buffers of the old ones.
    pub(crate) fn new(session: &Session, decoder: &GraphSpec, in_place: bool) -> ort::Result<Self> {
        let tensors = decoder.inputs.iter().filter_map(|input| {
            let present = match input.name.split_once('.')? {
                ("past_conv", layer) => format!("present_conv.{layer}"),
                ("past_key_values", rest) => format!("present.{rest}"),
                _ => return None,
            };
            let value = zeros(input);
            Some(value.map(|value| StateTensor { past: input.name.clone(), present, value }))
        });
        Ok(DecoderState {
            binding: session.create_binding()?,
            tensors: tensors.collect::<ort::Result<_>>()?,
            tokens: 0,
            capacity: in_place.then_some(0),
        })
    }

    /// Tokens that the state covers.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Runs the session over `tokens` more tokens with these inputs besides the state, moves the
    /// state on, and gives the other outputs to `read`.
    pub(crate) fn run<T>(
        &mut self,
        session: &mut Session,
        tokens: usize,
        inputs: Vec<(&str, DynValue)>,
        outputs: &[&str],
        read: impl FnOnce(&SessionOutputs<'_>) -> ort::Result<T>,
    ) -> ort::Result<T> {
        self.reserve(self.tokens + tokens)?;
        let in_place = self.capacity.is_some();
        let (binding, tensors) = (&mut self.binding, &mut self.tensors);
        let memory = MemoryInfo::default();
        for (name, value) in &inputs {
            binding.bind_input(*name, value)?;
        }
        for tensor in tensors.iter_mut() {
            binding.bind_input(&tensor.past, &tensor.value)?;
            match in_place && !tensor.is_conv() {
                true => binding.bind_output(&tensor.present, &mut tensor.value)?,
                // Without this the run would write into what the last one gave.
                false => binding.bind_output_to_device(&tensor.present, &memory)?,
            }
        }
        for name in outputs {
            binding.bind_output_to_device(*name, &memory)?;
        }
        let mut made = session.run_binding(binding)?;
        for tensor in tensors.iter_mut().filter(|tensor| !in_place || tensor.is_conv()) {
            tensor.value = made
                .remove(&tensor.present)
                .ok_or_else(|| ort::Error::new(format!("no output {}", tensor.present)))?;
        }
        let result = read(&made);
        self.tokens += tokens;
        result
    }

    /// Makes place for keys and values of so many tokens.
    fn reserve(&mut self, tokens: usize) -> ort::Result<()> {
        let Some(capacity) = self.capacity.filter(|&capacity| capacity < tokens) else {
            return Ok(());
        };
        let capacity = tokens.max(capacity * 3 / 2).next_multiple_of(GROWTH);
        for tensor in self.tensors.iter_mut().filter(|tensor| !tensor.is_conv()) {
            tensor.value = match is_half(&tensor.value) {
                true => with_place_for::<f16>(&tensor.value, self.tokens, capacity)?,
                false => with_place_for::<f32>(&tensor.value, self.tokens, capacity)?,
            };
        }
        self.capacity = Some(capacity);
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
            if tensor.is_conv() {
                let earlier = conv.next();
                let missing = || ort::Error::new("a conv state is missing");
                tensor.value = copy(earlier.ok_or_else(missing)?, None)?;
            } else if self.capacity.is_none() {
                tensor.value = copy(&tensor.value, Some(checkpoint.tokens))?;
            }
        }
        self.tokens = checkpoint.tokens;
        Ok(())
    }
}

/// The first value of an input for a batch of one; sizes that grow are 0.
fn zeros(input: &Input) -> ort::Result<DynValue> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(name) => usize::from(name == "batch_size"),
    };
    let shape: Vec<usize> = input.shape.iter().map(size).collect();
    match input.dtype {
        Dtype::Float16 => {
            Value::from_array(ArrayD::from_elem(shape, f16::ZERO)).map(Value::into_dyn)
        }
        _ => Value::from_array(ArrayD::<f32>::zeros(shape)).map(Value::into_dyn),
    }
}

fn is_half(value: &DynValue) -> bool {
    value.dtype().tensor_type() == Some(TensorElementType::Float16)
}

/// The first `tokens` of keys or values [batch, kv_heads, tokens, head_dim] in a buffer for
/// `capacity` of them. What is in the other places is never read.
fn with_place_for<T>(value: &DynValue, tokens: usize, capacity: usize) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + Clone + Debug + 'static,
{
    let old = value.try_extract_array::<T>()?;
    let mut shape = old.shape().to_vec();
    shape[2] = capacity;
    let mut new = DynTensor::new(&Allocator::default(), T::into_tensor_element_type(), shape)?;
    let kept = Slice::from(..tokens);
    new.try_extract_array_mut::<T>()?
        .slice_axis_mut(Axis(2), kept)
        .assign(&old.slice_axis(Axis(2), kept));
    Ok(new.into_dyn())
}

/// A copy of a state, or of the first `tokens` of keys or values.
fn copy(value: &DynValue, tokens: Option<usize>) -> ort::Result<DynValue> {
    match is_half(value) {
        true => copy_of::<f16>(value, tokens),
        false => copy_of::<f32>(value, tokens),
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
