//! The kernel of `com.microsoft.SkipSimplifiedLayerNormalization`, the norm of a residual stream.
//! (Operator: ONNX Runtime's `docs/ContribOperators.md`.)

use std::{ffi::c_void, ptr};

use lfm2vl_kernels::{Instructions, RmsNorm};
use ort_sys::{
    ONNXTensorElementDataType as Element, OrtKernelContext, OrtKernelInfo, OrtStatusPtr,
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
    name: c"SkipSimplifiedLayerNormalization",
    domain: c"com.microsoft",
    version: 1,
    types: &[(c"T", Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)],
};

/// The operator's inputs.
const INPUT: usize = 0;
const SKIP: usize = 1;
const WEIGHT: usize = 2;
const BIAS: usize = 3;
/// Its outputs; those between are for training, and ONNX Runtime computes them neither.
const NORMED: usize = 0;
const SUM: usize = 3;

/// Whether the kernel computes what the node asks for.
pub(crate) fn is_supported(node: &Node) -> Result<bool, OrtStatusPtr> {
    Ok(node.is(OPERATOR.name, OPERATOR.domain)?
        && !node.has_input(BIAS)
        && [NORMED, SUM].into_iter().all(|output| node.output(output).is_some()))
}

/// The kernel of one node.
#[repr(C)]
struct SkipNorm {
    table: KernelTable<SkipNorm>,
    instructions: Instructions,
    epsilon: f32,
}

pub(crate) unsafe extern "system" fn create(
    state: *mut c_void,
    info: *const OrtKernelInfo,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    status::of(|| {
        let mut epsilon = 0.0;
        // SAFETY: ONNX Runtime's; the state is the provider's, which outlives its kernels.
        unsafe {
            let float = (*Api::get().ort).KernelInfoGetAttribute_float;
            check(float(info, c"epsilon".as_ptr(), &mut epsilon))?;
            let kernel = Box::new(SkipNorm {
                table: KernelTable {
                    version: VERSION,
                    flags: 0,
                    compute,
                    release,
                    pre_pack: None,
                    set_shared: ptr::null(),
                },
                instructions: (*state.cast::<State>()).instructions,
                epsilon,
            });
            *out = Box::into_raw(kernel).cast();
        }
        Ok(())
    })
}

unsafe extern "system" fn release(kernel: *mut SkipNorm) {
    // SAFETY: from `create`, and released once.
    drop(unsafe { Box::from_raw(kernel) });
}

unsafe extern "system" fn compute(
    kernel: *mut SkipNorm,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    status::of(|| unsafe { (*kernel).normalize(context) })
}

impl SkipNorm {
    unsafe fn normalize(&self, context: *mut OrtKernelContext) -> Result<(), OrtStatusPtr> {
        // SAFETY: ONNX Runtime's; inputs and outputs are tensors of floats.
        unsafe {
            let needed = |index| {
                tensor::input(context, index)?
                    .ok_or_else(|| failure(format!("a norm without input {index}")))
            };
            let (input, skip) = (needed(INPUT)?, needed(SKIP)?);
            let weight: &[f32] = tensor::elements(needed(WEIGHT)?)?;
            let dimensions = tensor::dimensions(input)?;
            let skip_dimensions = tensor::dimensions(skip)?;
            // Ones before the others are repeated.
            let is_one = |&&size: &&usize| size == 1;
            let ones = skip_dimensions.iter().take_while(is_one).count();
            let own = &skip_dimensions[ones.min(skip_dimensions.len().saturating_sub(1))..];
            let is_repeated = !own.is_empty() && dimensions.ends_with(own);
            if dimensions.last() != Some(&weight.len()) || !is_repeated {
                let message = format!(
                    "a norm of {dimensions:?} and {skip_dimensions:?} with {} weights",
                    weight.len()
                );
                return Err(failure(message));
            }
            RmsNorm { weight, epsilon: self.epsilon }.of_sum(
                self.instructions,
                tensor::elements(input)?,
                tensor::elements(skip)?,
                tensor::output(context, SUM, &dimensions)?,
                tensor::output(context, NORMED, &dimensions)?,
                &SessionThreads(context),
            );
        }
        Ok(())
    }
}
