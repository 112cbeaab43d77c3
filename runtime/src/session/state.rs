//! The decoder's hybrid state: conv states, keys and values, as the last run left them.

use std::{fmt::Debug, ops::Range};

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, GraphSpec, Tensor as Input};
use ndarray::{ArrayD, Axis, Slice};
use ort::{
    memory::{Allocator, MemoryInfo},
    session::{Session, SessionOutputs},
    value::{DynTensor, DynValue, PrimitiveTensorElementType, TensorElementType, Value},
};

/// Tokens by which buffers of keys and values grow at least. Memory that is never written is never
/// taken from the system, so this costs nothing.
const GROWTH: usize = 1024;

/// State after some tokens: of one conversation, or of several as the rows of a batch.
#[derive(Default)]
pub(crate) struct DecoderState {
    tensors: Vec<StateTensor>,
    /// Tokens that the state covers, of each row.
    tokens: Vec<usize>,
    /// Tokens that the buffers of keys and values have place for; `None` where each run makes new
    /// ones.
    capacity: Option<usize>,
}

struct StateTensor {
    past: String,
    present: String,
    /// Conv states [batch, hidden, columns], or keys or values [batch, kv_heads, tokens, head_dim].
    /// Where ONNX Runtime made it, a run takes it without a copy.
    value: DynValue,
    /// Columns that a run takes of conv states; `None` for keys and values. After a run that kept
    /// several positions there are more, the last position's at the end.
    conv_width: Option<usize>,
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
    pub(crate) fn new(decoder: &GraphSpec, in_place: bool) -> ort::Result<Self> {
        let tensors = decoder.inputs.iter().filter_map(|input| {
            let (present, is_conv) = match input.name.split_once('.')? {
                ("past_conv", layer) => (format!("present_conv.{layer}"), true),
                ("past_key_values", rest) => (format!("present.{rest}"), false),
                _ => return None,
            };
            let conv_width = is_conv.then(|| size(&input.shape[2]));
            let value = zeros(input);
            let past = input.name.clone();
            Some(value.map(|value| StateTensor { past, present, value, conv_width }))
        });
        Ok(DecoderState {
            tensors: tensors.collect::<ort::Result<_>>()?,
            tokens: vec![0],
            capacity: in_place.then_some(0),
        })
    }

    /// Tokens that the state covers, of the longest row.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.iter().copied().max().unwrap_or_default()
    }

    /// Tokens that the state covers, of each row.
    pub(crate) fn rows(&self) -> &[usize] {
        &self.tokens
    }

    /// Whether rows of different lengths can be run together: keys and values then lie in buffers
    /// of one length.
    pub(crate) fn can_be_batched(&self) -> bool {
        self.capacity.is_some()
    }

    /// Runs the session over `tokens` more tokens of each row with these inputs besides the state,
    /// moves the state on, and gives the other outputs to `read`.
    pub(crate) fn run<T>(
        &mut self,
        session: &mut Session,
        tokens: usize,
        inputs: Vec<(&str, DynValue)>,
        outputs: &[&str],
        read: impl FnOnce(&SessionOutputs<'_>) -> ort::Result<T>,
    ) -> ort::Result<T> {
        self.reserve(self.tokens() + tokens)?;
        self.drop_columns(0)?;
        let in_place = self.capacity.is_some();
        let mut binding = session.create_binding()?;
        let memory = MemoryInfo::default();
        for (name, value) in &inputs {
            binding.bind_input(*name, value)?;
        }
        for tensor in &mut self.tensors {
            binding.bind_input(&tensor.past, &tensor.value)?;
            match in_place && tensor.conv_width.is_none() {
                true => binding.bind_output(&tensor.present, &mut tensor.value)?,
                false => binding.bind_output_to_device(&tensor.present, &memory)?,
            }
        }
        for name in outputs {
            binding.bind_output_to_device(*name, &memory)?;
        }
        let mut made = session.run_binding(&binding)?;
        for tensor in self.tensors.iter_mut().filter(|t| !in_place || t.conv_width.is_some()) {
            tensor.value = made
                .remove(&tensor.present)
                .ok_or_else(|| ort::Error::new(format!("no output {}", tensor.present)))?;
        }
        let result = read(&made);
        self.tokens.iter_mut().for_each(|row| *row += tokens);
        result
    }

    /// Makes place for keys and values of so many tokens.
    fn reserve(&mut self, tokens: usize) -> ort::Result<()> {
        let Some(capacity) = self.capacity.filter(|&capacity| capacity < tokens) else {
            return Ok(());
        };
        let capacity = tokens.max(capacity * 3 / 2).next_multiple_of(GROWTH);
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_none()) {
            let rows = self.tokens.iter().enumerate();
            let parts: Vec<_> =
                rows.map(|(row, &tokens)| Part { of: &tensor.value, row, at: 0..tokens }).collect();
            tensor.value = assemble(&parts, capacity)?;
        }
        self.capacity = Some(capacity);
        Ok(())
    }

    /// Drops the last `count` tokens, which the last run must have kept with one more.
    pub(crate) fn drop_last(&mut self, count: usize) -> ort::Result<()> {
        self.drop_columns(count)?;
        self.tokens.iter_mut().for_each(|row| *row -= count);
        let tokens = self.tokens();
        self.shorten(tokens)
    }

    /// Leaves one conv state of those that the last run kept, the one before the last `count`.
    fn drop_columns(&mut self, count: usize) -> ort::Result<()> {
        for tensor in &mut self.tensors {
            let Some(width) = tensor.conv_width else { continue };
            let columns = axis_2(&tensor.value);
            if columns == width && count == 0 {
                continue;
            }
            let end = columns.checked_sub(count).filter(|&end| end >= width);
            let end = end.ok_or_else(|| ort::Error::new("a conv state was not kept"))?;
            let parts: Vec<_> = (0..self.tokens.len())
                .map(|row| Part { of: &tensor.value, row, at: end - width..end })
                .collect();
            tensor.value = assemble(&parts, width)?;
        }
        Ok(())
    }

    /// Leaves the keys and values of the first tokens, where their number is told by their shape.
    fn shorten(&mut self, tokens: usize) -> ort::Result<()> {
        if self.capacity.is_some() {
            return Ok(());
        }
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_none()) {
            tensor.value = assemble(&[Part { of: &tensor.value, row: 0, at: 0..tokens }], tokens)?;
        }
        Ok(())
    }

    /// Remembers this state.
    pub(crate) fn checkpoint(&self) -> ort::Result<Checkpoint> {
        let conv = self.tensors.iter().filter(|tensor| tensor.conv_width.is_some());
        let conv = conv.map(|tensor| copy(&tensor.value)).collect::<ort::Result<_>>()?;
        Ok(Checkpoint { tokens: self.tokens(), conv })
    }

    /// Goes back to an earlier state of the same tokens.
    pub(crate) fn rewind(&mut self, checkpoint: &Checkpoint) -> ort::Result<()> {
        let conv = self.tensors.iter_mut().filter(|tensor| tensor.conv_width.is_some());
        for (tensor, earlier) in conv.zip(&checkpoint.conv) {
            tensor.value = copy(earlier)?;
        }
        self.tokens = vec![checkpoint.tokens];
        self.shorten(checkpoint.tokens)
    }

    /// A copy of the state, with no more memory than it needs.
    pub(crate) fn copy(&self) -> ort::Result<DecoderState> {
        self.select(&[(self, 0)], self.tokens())
    }

    /// A copy of the state for runs up to so many tokens.
    pub(crate) fn with_place_for(&self, tokens: usize) -> ort::Result<DecoderState> {
        self.select(&[(self, 0)], tokens.next_multiple_of(GROWTH))
    }

    /// Bytes of the state's buffers.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |tensor: &StateTensor| {
            let size = if is_half(&tensor.value) { 2 } else { 4 };
            size * shape(&tensor.value).iter().product::<usize>()
        };
        self.tensors.iter().map(bytes).sum()
    }

    /// Adds the row of another state.
    pub(crate) fn join(&mut self, row: DecoderState) -> ort::Result<()> {
        if self.tokens.is_empty() {
            *self = row;
            return self.drop_columns(0);
        }
        let mut rows: Vec<_> = (0..self.tokens.len()).map(|row| (&*self, row)).collect();
        rows.push((&row, 0));
        let capacity = self.capacity.max(row.capacity).unwrap_or_default();
        *self = self.select(&rows, capacity)?;
        Ok(())
    }

    /// Takes out a row; those after it move up.
    pub(crate) fn leave(&mut self, row: usize) -> ort::Result<DecoderState> {
        let capacity = self.capacity.unwrap_or_default();
        let left = self.select(&[(self, row)], capacity)?;
        let rest: Vec<_> =
            (0..self.tokens.len()).filter(|&r| r != row).map(|row| (&*self, row)).collect();
        *self = match rest.is_empty() {
            true => DecoderState::default(),
            false => self.select(&rest, capacity)?,
        };
        Ok(left)
    }

    /// A state of these rows of states that are like this one.
    fn select<'s>(&self, rows: &[(&'s DecoderState, usize)], capacity: usize) -> ort::Result<Self> {
        let tensors = self.tensors.iter().enumerate().map(|(index, tensor)| {
            let part = |&(state, row): &(&'s DecoderState, usize)| {
                let of = &state.tensors[index].value;
                let at = match tensor.conv_width {
                    Some(width) => axis_2(of) - width..axis_2(of),
                    None => 0..state.tokens[row],
                };
                Part { of, row, at }
            };
            let parts: Vec<_> = rows.iter().map(part).collect();
            let places = match self.capacity {
                Some(_) => capacity,
                None => parts.iter().map(|part| part.at.len()).max().unwrap_or_default(),
            };
            let value = assemble(&parts, tensor.conv_width.unwrap_or(places))?;
            let (past, present) = (tensor.past.clone(), tensor.present.clone());
            Ok(StateTensor { past, present, value, conv_width: tensor.conv_width })
        });
        Ok(DecoderState {
            tensors: tensors.collect::<ort::Result<_>>()?,
            tokens: rows.iter().map(|(state, row)| state.tokens[*row]).collect(),
            capacity: self.capacity.map(|_| capacity),
        })
    }
}

/// The first value of an input for a batch of one; sizes that grow are 0.
fn zeros(input: &Input) -> ort::Result<DynValue> {
    let shape: Vec<usize> = input.shape.iter().map(size).collect();
    match input.dtype {
        Dtype::Float16 => {
            Value::from_array(ArrayD::from_elem(shape, f16::ZERO)).map(Value::into_dyn)
        }
        _ => Value::from_array(ArrayD::<f32>::zeros(shape)).map(Value::into_dyn),
    }
}

fn size(dim: &Dim) -> usize {
    match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(name) => usize::from(name == "batch_size"),
    }
}

fn is_half(value: &DynValue) -> bool {
    value.dtype().tensor_type() == Some(TensorElementType::Float16)
}

fn shape(value: &DynValue) -> Vec<usize> {
    let shape = value.shape().iter();
    shape.map(|&size| size.max(0) as usize).collect()
}

/// Columns of conv states; tokens that keys or values have place for.
fn axis_2(value: &DynValue) -> usize {
    shape(value).get(2).copied().unwrap_or_default()
}

/// Places `at` on the third axis of one row of a state's tensor.
struct Part<'v> {
    of: &'v DynValue,
    row: usize,
    at: Range<usize>,
}

/// A new tensor of which each row begins with a part, and has `capacity` places on its third axis.
/// What is in the other places is never read.
fn assemble(parts: &[Part<'_>], capacity: usize) -> ort::Result<DynValue> {
    match parts.iter().any(|part| is_half(part.of)) {
        true => assemble_of::<f16>(parts, capacity),
        false => assemble_of::<f32>(parts, capacity),
    }
}

fn assemble_of<T>(parts: &[Part<'_>], capacity: usize) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + Clone + Debug + 'static,
{
    let mut shape = parts.first().map_or_else(Vec::new, |part| shape(part.of));
    let no_rows = || ort::Error::new("a state needs a row");
    *shape.first_mut().ok_or_else(no_rows)? = parts.len();
    *shape.get_mut(2).ok_or_else(no_rows)? = capacity;
    let mut new = DynTensor::new(&Allocator::default(), T::into_tensor_element_type(), shape)?;
    let mut rows = new.try_extract_array_mut::<T>()?;
    for (mut row, part) in rows.outer_iter_mut().zip(parts) {
        let from = part.of.try_extract_array::<T>()?;
        let from = from.index_axis(Axis(0), part.row);
        row.slice_axis_mut(Axis(1), Slice::from(..part.at.len()))
            .assign(&from.slice_axis(Axis(1), Slice::from(part.at.clone())));
    }
    Ok(new.into_dyn())
}

/// A copy of a state of one row.
fn copy(value: &DynValue) -> ort::Result<DynValue> {
    let columns = axis_2(value);
    assemble(&[Part { of: value, row: 0, at: 0..columns }], columns)
}
