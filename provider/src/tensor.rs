//! Tensors of a run.

use std::{ptr, slice};

use ort_sys::{OrtKernelContext, OrtStatusPtr, OrtValue};

use crate::{
    api::Api,
    status::{check, failure},
};

/// An input of a run, if it is there.
///
/// # Safety
/// `context` is that of the run.
pub(crate) unsafe fn input(
    context: *const OrtKernelContext,
    index: usize,
) -> Result<Option<*const OrtValue>, OrtStatusPtr> {
    let ort = Api::get().ort;
    let (mut count, mut value) = (0, ptr::null());
    // SAFETY: the caller's.
    unsafe {
        check(((*ort).KernelContext_GetInputCount)(context, &mut count))?;
        if index < count {
            check(((*ort).KernelContext_GetInput)(context, index, &mut value))?;
        }
    }
    Ok((!value.is_null()).then_some(value))
}

/// The shape of a tensor.
///
/// # Safety
/// `value` is a tensor.
pub(crate) unsafe fn dimensions(value: *const OrtValue) -> Result<Vec<usize>, OrtStatusPtr> {
    let ort = Api::get().ort;
    let (mut shape, mut count) = (ptr::null_mut(), 0);
    // SAFETY: the caller's; the shape is released on the way out.
    unsafe {
        check(((*ort).GetTensorTypeAndShape)(value, &mut shape))?;
        let read = (|| {
            check(((*ort).GetDimensionsCount)(shape, &mut count))?;
            let mut dimensions = vec![0; count];
            check(((*ort).GetDimensions)(shape, dimensions.as_mut_ptr(), count))?;
            Ok(dimensions.into_iter().map(|d| usize::try_from(d).unwrap_or_default()).collect())
        })();
        ((*ort).ReleaseTensorTypeAndShapeInfo)(shape);
        read
    }
}

/// The elements of a tensor.
///
/// # Safety
/// `value` is a tensor of the type `T`, and lives for `'a`.
pub(crate) unsafe fn elements<'a, T>(value: *const OrtValue) -> Result<&'a [T], OrtStatusPtr> {
    let ort = Api::get().ort;
    let (mut data, mut bytes) = (ptr::null(), 0);
    // SAFETY: the caller's.
    unsafe {
        check(((*ort).GetTensorSizeInBytes)(value, &mut bytes))?;
        check(((*ort).GetTensorData)(value, &mut data))?;
        if bytes == 0 || data.is_null() {
            return Ok(&[]);
        }
        if !data.cast::<T>().is_aligned() {
            return Err(failure("a tensor that is not aligned"));
        }
        Ok(slice::from_raw_parts(data.cast(), bytes / size_of::<T>()))
    }
}

/// Where the elements of a tensor of floats are.
///
/// # Safety
/// `value` is a tensor of floats.
pub(crate) unsafe fn address(value: *const OrtValue) -> Result<*const f32, OrtStatusPtr> {
    let mut data = ptr::null();
    // SAFETY: the caller's.
    check(unsafe { ((*Api::get().ort).GetTensorData)(value, &mut data) })?;
    Ok(data.cast())
}

/// The elements of an output, which is made with this shape.
///
/// # Safety
/// `context` is that of the run, which has that output, of floats.
pub(crate) unsafe fn output<'a>(
    context: *mut OrtKernelContext,
    index: usize,
    dimensions: &[usize],
) -> Result<&'a mut [f32], OrtStatusPtr> {
    let ort = Api::get().ort;
    let (mut value, mut data) = (ptr::null_mut(), ptr::null_mut());
    let count = dimensions.iter().product();
    let dimensions: Vec<i64> = dimensions.iter().map(|&d| d as i64).collect();
    // SAFETY: the caller's; ONNX Runtime has made room for the elements.
    unsafe {
        let get = (*ort).KernelContext_GetOutput;
        check(get(context, index, dimensions.as_ptr(), dimensions.len(), &mut value))?;
        if value.is_null() {
            return Err(failure(format!("there is no output {index}")));
        }
        check(((*ort).GetTensorMutableData)(value, &mut data))?;
        match count {
            0 => Ok(&mut []),
            _ => Ok(slice::from_raw_parts_mut(data.cast(), count)),
        }
    }
}
