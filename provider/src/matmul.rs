//! The kernel of `com.microsoft.MatMulNBits`.
//! (Operator: ONNX Runtime's `docs/ContribOperators.md`.)

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::{Mutex, OnceLock, PoisonError},
};

use lfm2vl_kernels::{Bits, BlockWeights, Instructions, PackedWeights, Scoped};
use ort_sys::{
    ONNXTensorElementDataType as Element, OrtKernelContext, OrtKernelInfo, OrtStatusPtr, OrtValue,
};

use crate::{
    api::{Api, KernelTable, Opaque, VERSION},
    node::{Node, Operator},
    state::State,
    status::{self, check, failure},
    tensor,
    threads::SessionThreads,
};

pub(crate) const OPERATOR: Operator = Operator {
    name: c"MatMulNBits",
    domain: c"com.microsoft",
    version: 1,
    types: &[(c"T1", Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)],
};

/// The operator's inputs.
const INPUT: usize = 0;
const VALUES: usize = 1;
const SCALES: usize = 2;
const ZERO_POINTS: usize = 3;
const GROUP_INDEX: usize = 4;
const BIAS: usize = 5;

/// The accuracy level that lets inputs be rounded to 8 bits.
const INT8_INPUTS: i64 = 4;

/// In larger blocks ONNX Runtime does not round inputs.
const LARGEST_BLOCK: usize = 256;

/// Whether the kernel computes what the node asks for.
pub(crate) fn is_supported(node: &Node) -> Result<bool, OrtStatusPtr> {
    if !node.is(OPERATOR.name, OPERATOR.domain)?
        || node.int(c"accuracy_level", 0)? != INT8_INPUTS
        || node.int(c"weight_prepacked", 0)? != 0
        || node.has_input(GROUP_INDEX)
    {
        return Ok(false);
    }
    let byte = Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
    for input in [VALUES, SCALES, ZERO_POINTS] {
        if (node.has_input(input) || input != ZERO_POINTS) && !node.is_constant(input)? {
            return Ok(false);
        }
    }
    let has_types = node.element(VALUES)? == byte
        && (!node.has_input(ZERO_POINTS) || node.element(ZERO_POINTS)? == byte);
    let size = |name| node.int(name, 0).map(|size| usize::try_from(size).unwrap_or_default());
    let (outputs, inputs, block_size) = (size(c"N")?, size(c"K")?, size(c"block_size")?);
    Ok(has_types
        && Bits::new(node.int(c"bits", 4)?).is_some()
        && block_size <= LARGEST_BLOCK
        && BlockWeights::check_sizes(outputs, inputs, block_size).is_ok())
}

/// The kernel of one node.
#[repr(C)]
struct MatMul {
    table: KernelTable<MatMul>,
    /// Of this node; its own copy.
    info: *mut OrtKernelInfo,
    instructions: Instructions,
    outputs: usize,
    inputs: usize,
    bits: Bits,
    block_size: usize,
    /// Packed before the first run, or in it where the session does not pack ahead.
    weights: OnceLock<PackedWeights>,
    packing: Mutex<()>,
}

pub(crate) unsafe extern "system" fn create(
    state: *mut c_void,
    info: *const OrtKernelInfo,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    status::of(|| {
        let ort = Api::get().ort;
        let int = |name: &CStr| {
            let mut value = 0;
            // SAFETY: ONNX Runtime's.
            let get = unsafe { (*ort).KernelInfoGetAttribute_int64 };
            // SAFETY: as above.
            check(unsafe { get(info, name.as_ptr(), &mut value) })?;
            Ok::<i64, OrtStatusPtr>(value)
        };
        let size = |name: &CStr| int(name).map(|size| usize::try_from(size).unwrap_or_default());
        let bits = int(c"bits")?;
        let bits = Bits::new(bits).ok_or_else(|| failure(format!("weights of {bits} bits")))?;
        let (outputs, inputs, block_size) = (size(c"N")?, size(c"K")?, size(c"block_size")?);
        let mut own_info = ptr::null_mut();
        // SAFETY: ONNX Runtime's.
        check(unsafe { ((*ort).CopyKernelInfo)(info, &mut own_info) })?;
        let kernel = Box::new(MatMul {
            table: KernelTable {
                version: VERSION,
                flags: 0,
                compute,
                release,
                pre_pack: Some(pre_pack),
                set_shared: ptr::null(),
            },
            info: own_info,
            // SAFETY: the provider's, which outlives its kernels.
            instructions: unsafe { (*state.cast::<State>()).instructions },
            outputs,
            inputs,
            bits,
            block_size,
            weights: OnceLock::new(),
            packing: Mutex::new(()),
        });
        // SAFETY: ONNX Runtime's.
        unsafe { *out = Box::into_raw(kernel).cast() };
        Ok(())
    })
}

impl Drop for MatMul {
    fn drop(&mut self) {
        // SAFETY: copied for this kernel, and released once.
        unsafe { ((*Api::get().ort).ReleaseKernelInfo)(self.info) };
    }
}

unsafe extern "system" fn release(kernel: *mut MatMul) {
    // SAFETY: from `create`, and released once.
    drop(unsafe { Box::from_raw(kernel) });
}

/// Packs the weights when the integers come, and lets ONNX Runtime free all parts.
unsafe extern "system" fn pre_pack(
    kernel: *mut MatMul,
    _tensor: *const OrtValue,
    input: c_int,
    _allocator: *mut Opaque,
    _shared: *mut Opaque,
    is_packed: *mut bool,
) -> OrtStatusPtr {
    status::of(|| {
        // SAFETY: ONNX Runtime's.
        unsafe {
            let input = usize::try_from(input).unwrap_or_default();
            *is_packed = [VALUES, SCALES, ZERO_POINTS].contains(&input);
            if input == VALUES {
                (*kernel).packed()?;
            }
        }
        Ok(())
    })
}

unsafe extern "system" fn compute(
    kernel: *mut MatMul,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's. Several threads may compute at a time, so the kernel is only read.
    status::of(|| unsafe { (*kernel).multiply(context) })
}

impl MatMul {
    /// The packed weights, which are packed on the first call.
    fn packed(&self) -> Result<&PackedWeights, OrtStatusPtr> {
        if let Some(packed) = self.weights.get() {
            return Ok(packed);
        }
        // One at a time, and only once.
        let _packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = self.weights.get() {
            return Ok(packed);
        }
        // SAFETY: the node's inputs are constant and of these types, or it was not claimed.
        let packed = unsafe {
            let values = self.constant(VALUES)?.ok_or_else(|| failure("there are no weights"))?;
            let scales = self.constant(SCALES)?.ok_or_else(|| failure("there are no scales"))?;
            let zero_points = self.constant(ZERO_POINTS)?;
            let weights = BlockWeights {
                outputs: self.outputs,
                inputs: self.inputs,
                bits: self.bits,
                block_size: self.block_size,
                values: tensor::elements(values)?,
                scales: tensor::elements(scales)?,
                zero_points: zero_points.map(|points| tensor::elements(points)).transpose()?,
            };
            PackedWeights::pack(&weights, &Scoped::all())
                .map_err(|error| failure(format!("the weights of a MatMulNBits: {error}")))?
        };
        Ok(self.weights.get_or_init(|| packed))
    }

    /// A constant input, if there is one.
    fn constant(&self, input: usize) -> Result<Option<*const OrtValue>, OrtStatusPtr> {
        let ort = Api::get().ort;
        let (mut count, mut is_constant, mut value) = (0, 0, ptr::null());
        // SAFETY: ONNX Runtime's.
        unsafe {
            check(((*ort).KernelInfo_GetInputCount)(self.info, &mut count))?;
            if input >= count {
                return Ok(None);
            }
            let get = (*ort).KernelInfoGetConstantInput_tensor;
            let found = get(self.info, input, &mut is_constant, &mut value);
            if !found.0.is_null() {
                // An input that is left out is an error in some versions.
                ((*ort).ReleaseStatus)(found.0);
                return Ok(None);
            }
        }
        Ok((is_constant != 0 && !value.is_null()).then_some(value))
    }

    unsafe fn multiply(&self, context: *mut OrtKernelContext) -> Result<(), OrtStatusPtr> {
        let weights = self.packed()?;
        // SAFETY: ONNX Runtime's; inputs and output are tensors of floats.
        unsafe {
            let input =
                tensor::input(context, INPUT)?.ok_or_else(|| failure("there is no input"))?;
            let mut dimensions = tensor::dimensions(input)?;
            match dimensions.last_mut() {
                Some(last) if *last == self.inputs => *last = self.outputs,
                _ => {
                    let message = format!("{dimensions:?} times weights of {} inputs", self.inputs);
                    return Err(failure(message));
                }
            }
            let bias = tensor::input(context, BIAS)?;
            let bias: Option<&[f32]> = bias.map(|bias| tensor::elements(bias)).transpose()?;
            if bias.is_some_and(|bias| bias.len() != self.outputs) {
                return Err(failure(format!("a bias that is not of {} outputs", self.outputs)));
            }
            let output = tensor::output(context, 0, &dimensions)?;
            let threads = SessionThreads(context);
            weights.multiply(self.instructions, tensor::elements(input)?, bias, output, &threads);
        }
        Ok(())
    }
}
