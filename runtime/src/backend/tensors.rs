//! Tensors that share memory, or get it without writing to it, and copies between them.

use std::{ffi::c_void, marker::PhantomData, ops::Deref, ptr};

use ort::{
    AsPointer,
    memory::{Allocator, MemoryInfo},
    value::{DynTensor, TensorElementType},
};

use super::{
    copies::copy,
    memory::{DeviceMemory, new_tensor, on_host},
};

/// Bytes of an element.
pub(crate) fn element_bytes(tensor: &DynTensor) -> usize {
    match tensor.data_type() {
        TensorElementType::Float16 => 2,
        TensorElementType::Int64 => 8,
        _ => 4,
    }
}

/// Sizes of the axes.
pub(crate) fn shape(tensor: &DynTensor) -> Vec<usize> {
    tensor.shape().iter().map(|&size| size.max(0) as usize).collect()
}

/// Bytes of a tensor.
pub(crate) fn bytes(tensor: &DynTensor) -> usize {
    shape(tensor).iter().product::<usize>() * element_bytes(tensor)
}

/// Size of the third axis: tokens that keys or values have room for.
pub(crate) fn axis_2(tensor: &DynTensor) -> usize {
    shape(tensor).get(2).copied().unwrap_or_default()
}

/// A tensor whose memory is not written, as `DynTensor::new` does on the host: the pages of a large
/// one are then only taken from the system where something is written.
pub(crate) fn unwritten(
    dtype: TensorElementType,
    shape: &[usize],
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    if memory.is_some() {
        return new_tensor(dtype, &shape, memory);
    }
    let allocator = Allocator::default();
    let mut value = ptr::null_mut();
    // SAFETY: the allocator is alive, the shape has the length that is told, and `value` is valid for
    // a write. What comes back is a tensor of that allocator.
    unsafe {
        ort::Error::result_from_status((ort::api().CreateTensorAsOrtValue)(
            allocator.ptr().cast_mut(),
            shape.as_ptr(),
            shape.len(),
            dtype.into(),
            &raw mut value,
        ))?;
        let value = ptr::NonNull::new(value).ok_or_else(|| ort::Error::new("no tensor"))?;
        Ok(DynTensor::from_ptr(value, Some(&allocator)))
    }
}

/// A tensor in a part of another one's memory, which is borrowed as long as it lives.
pub(crate) struct TensorSlice<'t> {
    tensor: DynTensor,
    whole: PhantomData<&'t mut DynTensor>,
}

impl Deref for TensorSlice<'_> {
    type Target = DynTensor;

    fn deref(&self) -> &DynTensor {
        &self.tensor
    }
}

impl TensorSlice<'_> {
    /// The tensor without the borrow.
    ///
    /// # Safety
    /// As of [`alias`].
    pub(crate) unsafe fn into_tensor(self) -> DynTensor {
        self.tensor
    }

    /// For binding it to an output. ONNX Runtime holds on to it as long as the binding lives, which
    /// must not be longer than the borrow.
    pub(crate) fn tensor_mut(&mut self) -> &mut DynTensor {
        &mut self.tensor
    }
}

/// Numbers as a tensor without a copy, which is only read. (`ort` copies what it knows to be borrowed when it is
/// bound.)
pub(crate) struct TensorView<'v> {
    tensor: DynTensor,
    numbers: PhantomData<&'v [f32]>,
}

impl Deref for TensorView<'_> {
    type Target = DynTensor;

    fn deref(&self) -> &DynTensor {
        &self.tensor
    }
}

/// Numbers as a tensor of `sizes`.
///
/// # Errors
/// When there are not as many as the sizes say.
///
/// # Safety
/// A binding that it is bound to, which keeps it, must not be used longer than this lives.
pub(crate) unsafe fn view<'v>(numbers: &'v [f32], sizes: &[usize]) -> ort::Result<TensorView<'v>> {
    if numbers.len() != sizes.iter().product::<usize>() {
        return Err(ort::Error::new("numbers of another count"));
    }
    let (data, bytes) = (numbers.as_ptr().cast_mut().cast(), size_of_val(numbers));
    // SAFETY: the numbers are borrowed as long as the tensor lives, and nothing writes inputs.
    let tensor = unsafe {
        tensor_at(&MemoryInfo::default(), data, bytes, sizes, TensorElementType::Float32)?
    };
    Ok(TensorView { tensor, numbers: PhantomData })
}

/// The tensor of `sizes` that begins `start` elements into the memory of `whole`.
///
/// # Errors
/// When it does not lie within.
///
/// # Safety
/// A binding that it is bound to, which keeps it, must not be used longer than this lives.
pub(crate) unsafe fn slice<'t>(
    whole: &'t mut DynTensor,
    start: usize,
    sizes: &[usize],
) -> ort::Result<TensorSlice<'t>> {
    Ok(TensorSlice { tensor: part(whole, start, sizes)?, whole: PhantomData })
}

/// The same without a borrow.
///
/// # Errors
/// When it does not lie within.
///
/// # Safety
/// No run may use it when `whole` is no more, or while anything else uses `whole`.
pub(crate) unsafe fn alias(
    whole: &DynTensor,
    start: usize,
    sizes: &[usize],
) -> ort::Result<DynTensor> {
    part(whole, start, sizes)
}

/// As [`alias`]: it must not be used longer than `whole`, and not be written where `whole` is borrowed as
/// shared.
fn part(whole: &DynTensor, start: usize, sizes: &[usize]) -> ort::Result<DynTensor> {
    let width = element_bytes(whole);
    let length = sizes.iter().product::<usize>();
    if (start + length) * width > bytes(whole) {
        return Err(ort::Error::new("a part that is not within its tensor"));
    }
    // SAFETY: the part was checked to lie within the tensor.
    unsafe {
        let data = whole.data_ptr().cast_mut().cast::<u8>().add(start * width);
        tensor_at(whole.memory_info(), data.cast(), length * width, sizes, *whole.data_type())
    }
}

/// A tensor in memory that is there. ONNX Runtime does not free it, and reads and writes it only where the tensor is
/// used.
///
/// # Safety
/// The memory has so many bytes, which the sizes ask for, and is there as long as the tensor is used.
unsafe fn tensor_at(
    memory: &MemoryInfo<'_>,
    data: *mut c_void,
    bytes: usize,
    sizes: &[usize],
    dtype: TensorElementType,
) -> ort::Result<DynTensor> {
    let sizes: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
    let mut value = ptr::null_mut();
    // SAFETY: the caller's; `value` is valid for a write.
    unsafe {
        ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            data,
            bytes,
            sizes.as_ptr(),
            sizes.len(),
            dtype.into(),
            &raw mut value,
        ))?;
        let value = ptr::NonNull::new(value).ok_or_else(|| ort::Error::new("no tensor"))?;
        Ok(DynTensor::from_ptr(value, Some(&Allocator::default())))
    }
}

fn is_on_host(tensor: &DynTensor) -> bool {
    tensor.memory_info().is_cpu_accessible()
}

/// A copy of the tensor of `sizes` that begins `start` elements into the memory of `whole`, in memory of
/// its own.
///
/// # Errors
/// When it does not lie within, or ONNX Runtime's.
pub(crate) fn copy_of(
    whole: &DynTensor,
    start: usize,
    sizes: &[usize],
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    let mut copy = unwritten(*whole.data_type(), sizes, memory)?;
    copy_part(whole, start, &mut copy, 0, sizes.iter().product())?;
    Ok(copy)
}

/// Copies `length` elements of `from`, from `from_start` on, to `into`, from `into_start` on.
///
/// # Errors
/// When they do not lie within, or ONNX Runtime's.
pub(crate) fn copy_part(
    from: &DynTensor,
    from_start: usize,
    into: &mut DynTensor,
    into_start: usize,
    length: usize,
) -> ort::Result<()> {
    let mut copies = Copies::default();
    copies.add(from, from_start, into, into_start, length)?;
    copies.make()
}

/// Elements that are copied: from where, to where, and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) from: usize,
    pub(crate) into: usize,
    pub(crate) length: usize,
}

impl Piece {
    /// So many from here to there.
    pub(crate) fn at(from: usize, into: usize, length: usize) -> Self {
        Piece { from, into, length }
    }
}

/// Copies that are made together, so that a device is waited for once.
#[derive(Default)]
pub(crate) struct Copies<'t> {
    pairs: Vec<(DynTensor, DynTensor)>,
    tensors: PhantomData<&'t mut DynTensor>,
}

impl<'t> Copies<'t> {
    /// Adds a copy as that of [`copy_part`].
    ///
    /// # Errors
    /// When the elements do not lie within the tensors.
    pub(crate) fn add(
        &mut self,
        from: &'t DynTensor,
        from_start: usize,
        into: &'t mut DynTensor,
        into_start: usize,
        length: usize,
    ) -> ort::Result<()> {
        self.add_pieces(from, into, [Piece::at(from_start, into_start, length)])
    }

    /// Adds copies of several pieces, of which none overlaps another one's target.
    ///
    /// # Errors
    /// When the elements do not lie within the tensors.
    pub(crate) fn add_pieces(
        &mut self,
        from: &'t DynTensor,
        into: &'t mut DynTensor,
        pieces: impl IntoIterator<Item = Piece>,
    ) -> ort::Result<()> {
        if from.data_type() != into.data_type() {
            return Err(ort::Error::new("tensors of different types"));
        }
        for Piece { from: source, into: target, length } in pieces {
            let pair = (part(from, source, &[length])?, part(into, target, &[length])?);
            if length > 0 {
                self.pairs.push(pair);
            }
        }
        Ok(())
    }

    /// The same within a tensor.
    ///
    /// # Errors
    /// When the elements do not lie within it, or overlap.
    pub(crate) fn add_within(
        &mut self,
        tensor: &'t mut DynTensor,
        pieces: impl IntoIterator<Item = Piece>,
    ) -> ort::Result<()> {
        for Piece { from, into, length } in pieces {
            let pair = parts_within(tensor, from, into, length)?;
            if length > 0 {
                self.pairs.push(pair);
            }
        }
        Ok(())
    }

    /// Makes them.
    ///
    /// # Errors
    /// ONNX Runtime's; some may have been made.
    pub(crate) fn make(self) -> ort::Result<()> {
        let mut on_devices = Vec::new();
        for (from, mut into) in self.pairs {
            if !(is_on_host(&from) && is_on_host(&into)) {
                on_devices.push((from, into));
                continue;
            }
            let count = bytes(&from);
            // SAFETY: both parts were checked to lie within their tensors, which are borrowed, the second one
            // mutably, and are on the host.
            unsafe {
                let (source, target) = (from.data_ptr(), into.data_ptr_mut());
                ptr::copy_nonoverlapping(source.cast::<u8>(), target.cast::<u8>(), count);
            }
        }
        copy(on_devices.iter_mut().map(|(from, into)| (&*from, into)))
    }
}

/// Swaps each piece of a tensor on the host with its target.
///
/// # Errors
/// When they do not lie within it or overlap.
pub(crate) fn swap_within(
    tensor: &mut DynTensor,
    pieces: impl IntoIterator<Item = Piece>,
) -> ort::Result<()> {
    if !is_on_host(tensor) {
        return Err(ort::Error::new("only tensors on the host are swapped in place"));
    }
    for Piece { from, into, length } in pieces {
        let (mut first, mut second) = parts_within(tensor, from, into, length)?;
        let count = bytes(&first);
        // SAFETY: the parts lie within the tensor, which is borrowed mutably and on the host, and do not
        // overlap.
        unsafe {
            let (first, second) = (first.data_ptr_mut(), second.data_ptr_mut());
            ptr::swap_nonoverlapping(first.cast::<u8>(), second.cast::<u8>(), count);
        }
    }
    Ok(())
}

/// Copies numbers of a tensor from `start` on to the host, as many as there is room for. A tensor on a device must have an
/// address there.
///
/// # Errors
/// When they do not lie within it or are no float32, or ONNX Runtime's.
pub(crate) fn read_part(whole: &DynTensor, start: usize, into: &mut [f32]) -> ort::Result<()> {
    let source = part(whole, start, &[into.len()])?;
    if *source.data_type() != TensorElementType::Float32 {
        return Err(ort::Error::new("numbers of another type"));
    }
    let (data, bytes) = (into.as_mut_ptr().cast(), size_of_val(into));
    // SAFETY: the numbers are borrowed mutably as long as the tensor lives.
    let mut target = unsafe {
        tensor_at(&MemoryInfo::default(), data, bytes, &[into.len()], TensorElementType::Float32)?
    };
    copy([(&source, &mut target)])
}

/// Two parts of `length` elements that do not overlap.
fn parts_within(
    tensor: &mut DynTensor,
    a: usize,
    b: usize,
    length: usize,
) -> ort::Result<(DynTensor, DynTensor)> {
    if a.abs_diff(b) >= length {
        Ok((part(tensor, a, &[length])?, part(tensor, b, &[length])?))
    } else {
        Err(ort::Error::new("parts of a tensor that overlap"))
    }
}

/// Of a tensor, what is at the `width` places of an axis before place `end`, as one of its own.
///
/// # Errors
/// When there are not so many places, or ONNX Runtime's.
pub(crate) fn cut(
    tensor: &DynTensor,
    axis: usize,
    end: usize,
    width: usize,
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    let mut sizes = shape(tensor);
    let count = sizes.get(axis).copied().unwrap_or_default();
    if end > count || width > end {
        return Err(ort::Error::new(format!("there is nothing at {width} places before {end}")));
    }
    let lines: usize = sizes[..axis].iter().product();
    let place = sizes[axis + 1..].iter().product::<usize>() * element_bytes(tensor);
    sizes[axis] = width;
    let source = on_host(tensor)?;
    let mut cut = unwritten(*tensor.data_type(), &sizes, None)?;
    let (from, into) = (source.data_ptr().cast::<u8>(), cut.data_ptr_mut().cast::<u8>());
    for line in 0..lines {
        // SAFETY: both are on the host, and have so many lines of `count` and `width` places.
        unsafe {
            let from = from.add((line * count + end - width) * place);
            ptr::copy_nonoverlapping(from, into.add(line * width * place), width * place);
        }
    }
    match memory {
        Some(memory) => memory.hold(cut),
        None => Ok(cut),
    }
}

#[cfg(test)]
mod tests {
    use lfm2vl_onnxruntime::environment;
    use ndarray::arr2;
    use ort::value::Tensor;

    use super::*;

    #[test]
    fn a_part_is_read_and_no_more() {
        environment().unwrap();
        let whole = Tensor::from_array(arr2(&[[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]])).unwrap();
        let (whole, mut numbers) = (whole.upcast(), [0.0; 2]);
        read_part(&whole, 3, &mut numbers).unwrap();
        assert_eq!(numbers, [4.0, 5.0]);
        assert!(read_part(&whole, 5, &mut numbers).is_err());
        let integers = Tensor::from_array(arr2(&[[1_i32, 2, 3]])).unwrap().upcast();
        assert!(read_part(&integers, 0, &mut numbers).is_err());
    }
}
