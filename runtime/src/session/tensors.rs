//! The tensors of the decoder's state: made, joined and cut.

use std::{fmt::Debug, ops::Range};

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, Tensor as Input};
use ndarray::{Axis, Slice};
use ort::{
    memory::Allocator,
    value::{DynTensor, PrimitiveTensorElementType, TensorElementType},
};

use super::memory::{DeviceMemory, on_host};

/// What states are made of.
trait Element: PrimitiveTensorElementType + Clone + Default + Debug + 'static {}

impl Element for f32 {}
impl Element for f16 {}

/// The first value of an input for a batch of one; sizes that grow are 0.
pub(super) fn zeros(input: &Input) -> ort::Result<DynTensor> {
    let shape: Vec<usize> = input.shape.iter().map(size).collect();
    match input.dtype {
        Dtype::Float16 => zeros_of::<f16>(shape),
        _ => zeros_of::<f32>(shape),
    }
}

fn zeros_of<T: Element>(shape: Vec<usize>) -> ort::Result<DynTensor> {
    let mut new = DynTensor::new(&Allocator::default(), T::into_tensor_element_type(), shape)?;
    new.try_extract_array_mut::<T>()?.fill(T::default());
    Ok(new)
}

pub(super) fn size(dim: &Dim) -> usize {
    match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(name) => usize::from(name == "batch_size"),
    }
}

/// Bytes of a tensor.
pub(super) fn bytes(tensor: &DynTensor) -> usize {
    shape(tensor).iter().product::<usize>() * if is_half(tensor) { 2 } else { 4 }
}

fn is_half(tensor: &DynTensor) -> bool {
    *tensor.data_type() == TensorElementType::Float16
}

fn shape(tensor: &DynTensor) -> Vec<usize> {
    tensor.shape().iter().map(|&size| size.max(0) as usize).collect()
}

/// Columns of conv states; tokens that keys or values have place for.
pub(super) fn axis_2(tensor: &DynTensor) -> usize {
    shape(tensor).get(2).copied().unwrap_or_default()
}

/// Places `at` on the third axis of one row of a state's tensor.
pub(super) struct Part<'v> {
    pub(super) of: &'v DynTensor,
    pub(super) row: usize,
    pub(super) at: Range<usize>,
}

/// What is in the places that no part has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Whatever the memory held: it is never read, and then takes no memory either.
    Unwritten,
    /// Zeros.
    Zero,
}

/// A new tensor of which each row begins with a part, and has `places` on its third axis.
pub(super) fn assemble(
    parts: &[Part<'_>],
    places: usize,
    rest: Rest,
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    let new = match parts.iter().any(|part| is_half(part.of)) {
        true => assemble_of::<f16>(parts, places, rest),
        false => assemble_of::<f32>(parts, places, rest),
    }?;
    match memory {
        Some(memory) => memory.hold(new),
        None => Ok(new),
    }
}

fn assemble_of<T: Element>(
    parts: &[Part<'_>],
    places: usize,
    rest: Rest,
) -> ort::Result<DynTensor> {
    let mut shape = parts.first().map_or_else(Vec::new, |part| shape(part.of));
    let no_rows = || ort::Error::new("a state needs a row");
    *shape.first_mut().ok_or_else(no_rows)? = parts.len();
    *shape.get_mut(2).ok_or_else(no_rows)? = places;
    let mut new = DynTensor::new(&Allocator::default(), T::into_tensor_element_type(), shape)?;
    let mut rows = new.try_extract_array_mut::<T>()?;
    for (mut row, part) in rows.outer_iter_mut().zip(parts) {
        let of = on_host(part.of)?;
        let from = of.try_extract_array::<T>()?;
        let from = from.index_axis(Axis(0), part.row);
        let (mut first, mut others) = row.view_mut().split_at(Axis(1), part.at.len());
        first.assign(&from.slice_axis(Axis(1), Slice::from(part.at.clone())));
        if rest == Rest::Zero {
            others.fill(T::default());
        }
    }
    Ok(new)
}

/// Writes the first `count` places of `new` into those of `into` from `start` on; both are on the
/// host and have one row.
pub(super) fn write(
    new: &DynTensor,
    count: usize,
    into: &mut DynTensor,
    start: usize,
) -> ort::Result<()> {
    match is_half(new) {
        true => write_of::<f16>(new, count, into, start),
        false => write_of::<f32>(new, count, into, start),
    }
}

fn write_of<T: Element>(
    new: &DynTensor,
    count: usize,
    into: &mut DynTensor,
    start: usize,
) -> ort::Result<()> {
    let new = new.try_extract_array::<T>()?;
    into.try_extract_array_mut::<T>()?
        .slice_axis_mut(Axis(2), Slice::from(start..start + count))
        .assign(&new.slice_axis(Axis(2), Slice::from(..count)));
    Ok(())
}

/// A copy of a state of one row.
pub(super) fn copy(tensor: &DynTensor, memory: Option<&DeviceMemory>) -> ort::Result<DynTensor> {
    let columns = axis_2(tensor);
    let whole = Part { of: tensor, row: 0, at: 0..columns };
    assemble(&[whole], columns, Rest::Unwritten, memory)
}
