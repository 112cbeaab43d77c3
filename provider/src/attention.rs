//! The kernel of `com.microsoft.MultiHeadAttention`, as vision towers use it: queries, keys and values
//! as rows, and perhaps a mask of keys.
//! (Operator: ONNX Runtime's `docs/ContribOperators.md`.)

use std::{ffi::c_void, ptr, sync::atomic::Ordering};

use lfm2vl_kernels::{Attention, Instructions, Precision};
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
    name: c"MultiHeadAttention",
    domain: c"com.microsoft",
    version: 1,
    types: &[(c"T", Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)],
};

/// The operator's inputs.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const MASK: usize = 4;
/// A bias, and from the second on a bias of scores, earlier keys and values, and what newer versions add.
const BIAS: usize = 3;
const FIRST_OTHER: usize = 5;

/// Whether the kernel computes what the node asks for.
pub(crate) fn is_supported(node: &Node) -> Result<bool, OrtStatusPtr> {
    if !node.is(OPERATOR.name, OPERATOR.domain)?
        || node.int(c"unidirectional", 0)? != 0
        || node.int(c"num_heads", 0)? < 1
        // Masked keys count for nothing here, which is the same for a value as low as the default.
        || node.has_attribute(c"mask_filter_value")?
        || node.outputs() != 1
        || node.has_input(BIAS)
        || node.has_input_from(FIRST_OTHER)
    {
        return Ok(false);
    }
    for input in [QUERY, KEY, VALUE] {
        if node.rank(input)? != Some(3) {
            return Ok(false);
        }
    }
    // A mask of another rank has lengths of sequences.
    Ok(!node.has_input(MASK) || node.rank(MASK)? == Some(2))
}

/// The kernel of one node.
#[repr(C)]
struct MultiHeadAttention {
    table: KernelTable<MultiHeadAttention>,
    instructions: Instructions,
    precision: Precision,
    heads: usize,
    scale: Option<f32>,
}

pub(crate) unsafe extern "system" fn create(
    state: *mut c_void,
    info: *const OrtKernelInfo,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    status::of(|| {
        let ort = Api::get().ort;
        let (mut heads, mut scale) = (0, 0.0);
        // SAFETY: ONNX Runtime's; the state is the provider's, which outlives its kernels.
        unsafe {
            let state = &*state.cast::<State>();
            let is_rounded = state.rounds_inputs.load(Ordering::Relaxed);
            let int = (*ort).KernelInfoGetAttribute_int64;
            check(int(info, c"num_heads".as_ptr(), &mut heads))?;
            let found = ((*ort).KernelInfoGetAttribute_float)(info, c"scale".as_ptr(), &mut scale);
            if !found.0.is_null() {
                ((*ort).ReleaseStatus)(found.0);
            }
            let kernel = Box::new(MultiHeadAttention {
                table: KernelTable {
                    version: VERSION,
                    flags: 0,
                    compute,
                    release,
                    pre_pack: None,
                    set_shared: ptr::null(),
                },
                instructions: state.instructions,
                precision: if is_rounded { Precision::Bits16 } else { Precision::Float32 },
                heads: usize::try_from(heads).unwrap_or(1).max(1),
                // 0 asks for the default as well.
                scale: Some(scale).filter(|&scale| scale != 0.0),
            });
            *out = Box::into_raw(kernel).cast();
        }
        Ok(())
    })
}

unsafe extern "system" fn release(kernel: *mut MultiHeadAttention) {
    // SAFETY: from `create`, and released once.
    drop(unsafe { Box::from_raw(kernel) });
}

unsafe extern "system" fn compute(
    kernel: *mut MultiHeadAttention,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    status::of(|| unsafe { (*kernel).attend(context) })
}

impl MultiHeadAttention {
    unsafe fn attend(&self, context: *mut OrtKernelContext) -> Result<(), OrtStatusPtr> {
        // SAFETY: ONNX Runtime's; inputs are tensors of the types that the operator has.
        unsafe {
            let needed = |index| {
                tensor::input(context, index)?
                    .ok_or_else(|| failure(format!("MultiHeadAttention without input {index}")))
            };
            let values = [needed(QUERY)?, needed(KEY)?, needed(VALUE)?];
            let [query, key, value] = values;
            let shapes =
                [tensor::dimensions(query)?, tensor::dimensions(key)?, tensor::dimensions(value)?];
            let wrong =
                || failure(format!("MultiHeadAttention of {shapes:?}, {} heads", self.heads));
            let [query_shape, key_shape, value_shape] = &shapes;
            let (&[batch, queries, width], &[key_batch, keys, key_width]) =
                (&query_shape[..], &key_shape[..])
            else {
                return Err(wrong());
            };
            let &[value_batch, values, value_width] = &value_shape[..] else { return Err(wrong()) };
            if [key_batch, value_batch] != [batch; 2]
                || values != keys
                || key_width != width
                || !width.is_multiple_of(self.heads)
                || !value_width.is_multiple_of(self.heads)
            {
                return Err(wrong());
            }
            let mask = match tensor::input(context, MASK)? {
                None => None,
                Some(mask) if tensor::dimensions(mask)? == [batch, keys] => {
                    Some(tensor::elements(mask)?)
                }
                Some(_) => return Err(failure("MultiHeadAttention with a mask of other keys")),
            };
            let attention = Attention {
                batch,
                queries,
                keys,
                heads: self.heads,
                head_size: width / self.heads,
                value_size: value_width / self.heads,
            };
            let scale = self.scale.unwrap_or_else(|| 1.0 / (attention.head_size as f32).sqrt());
            let output = tensor::output(context, 0, &[batch, queries, value_width])?;
            attention.run(
                self.instructions,
                self.precision,
                tensor::elements(query)?,
                tensor::elements(key)?,
                tensor::elements(value)?,
                mask,
                scale,
                output,
                &SessionThreads(context),
            );
        }
        Ok(())
    }
}
