//! ONNX Runtime's functions for providers, which `ort-sys` leaves out, and the tables that providers
//! fill.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::OnceLock,
};

use ort_sys::{
    ONNXTensorElementDataType, OrtApi, OrtApiBase, OrtErrorCode, OrtGraph, OrtHardwareDevice,
    OrtKernelContext, OrtKernelInfo, OrtNode, OrtSessionOptions, OrtStatusPtr, OrtValue,
};

/// The version of ONNX Runtime whose functions are used.
pub(crate) const VERSION: u32 = 24;

/// ONNX Runtime's tables of functions. They may be shorter than the types say: newer versions append,
/// so no reference is made to them.
#[derive(Clone, Copy)]
pub(crate) struct Api {
    pub(crate) ort: *const OrtApi,
    pub(crate) ep: *const EpApi,
}

// SAFETY: the tables are constants of the ONNX Runtime library.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

static API: OnceLock<Api> = OnceLock::new();

impl Api {
    /// Keeps the tables of the library that loaded this one.
    ///
    /// # Safety
    /// `base` is ONNX Runtime's.
    pub(crate) unsafe fn set(base: *const OrtApiBase) -> Result<(), OrtStatusPtr> {
        // SAFETY: the caller's.
        unsafe {
            let ort = ((*base).GetApi)(VERSION);
            if ort.is_null() {
                let found = CStr::from_ptr(((*base).GetVersionString)()).to_string_lossy();
                let message = format!(
                    "the lfm2vl provider needs ONNX Runtime 1.{VERSION} or newer, this is {found}\0"
                );
                // The first functions are the same in all versions.
                let create = (*((*base).GetApi)(1)).CreateStatus;
                return Err(create(OrtErrorCode::ORT_NOT_IMPLEMENTED, message.as_ptr().cast()));
            }
            let ep = ((*ort).GetEpApi)().cast();
            if API.get_or_init(|| Api { ort, ep }).ort != ort {
                let message = c"the lfm2vl provider is in use by another ONNX Runtime library of this process; load a copy of its file";
                return Err(((*ort).CreateStatus)(OrtErrorCode::ORT_FAIL, message.as_ptr()));
            }
        }
        Ok(())
    }

    pub(crate) fn get() -> Self {
        *API.get().expect("the tables are set before anything else is called")
    }
}

/// What ONNX Runtime keeps to itself.
pub(crate) type Opaque = c_void;

type Unused = *const c_void;

/// `OrtEpApi`, as far as it is used.
#[repr(C)]
pub(crate) struct EpApi {
    pub(crate) create_ep_device: unsafe extern "system" fn(
        factory: *mut Opaque,
        device: *const OrtHardwareDevice,
        metadata: *const Opaque,
        options: *const Opaque,
        out: *mut *mut Opaque,
    ) -> OrtStatusPtr,
    release_ep_device: Unused,
    pub(crate) add_nodes_to_fuse: unsafe extern "system" fn(
        info: *mut Opaque,
        nodes: *const *const OrtNode,
        count: usize,
        options: *const Opaque,
    ) -> OrtStatusPtr,
    pub(crate) add_single_node:
        unsafe extern "system" fn(info: *mut Opaque, node: *const OrtNode) -> OrtStatusPtr,
    /// From `NodeComputeContext_NodeName` to `ReleaseHardwareDevice`.
    others: [Unused; 14],
    pub(crate) create_kernel_registry:
        unsafe extern "system" fn(out: *mut *mut Opaque) -> OrtStatusPtr,
    pub(crate) release_kernel_registry: unsafe extern "system" fn(registry: *mut Opaque),
    pub(crate) add_kernel: unsafe extern "system" fn(
        registry: *mut Opaque,
        definition: *const Opaque,
        create: CreateKernel,
        state: *mut c_void,
    ) -> OrtStatusPtr,
    pub(crate) create_kernel_def_builder:
        unsafe extern "system" fn(out: *mut *mut Opaque) -> OrtStatusPtr,
    pub(crate) release_kernel_def_builder: unsafe extern "system" fn(builder: *mut Opaque),
    pub(crate) set_operator_type:
        unsafe extern "system" fn(builder: *mut Opaque, name: *const c_char) -> OrtStatusPtr,
    pub(crate) set_domain:
        unsafe extern "system" fn(builder: *mut Opaque, name: *const c_char) -> OrtStatusPtr,
    pub(crate) set_since_version:
        unsafe extern "system" fn(builder: *mut Opaque, first: c_int, last: c_int) -> OrtStatusPtr,
    pub(crate) set_execution_provider:
        unsafe extern "system" fn(builder: *mut Opaque, name: *const c_char) -> OrtStatusPtr,
    set_input_memory: Unused,
    set_output_memory: Unused,
    pub(crate) add_type_constraint: unsafe extern "system" fn(
        builder: *mut Opaque,
        name: *const c_char,
        types: *const *const Opaque,
        count: usize,
    ) -> OrtStatusPtr,
    aliases: [Unused; 2],
    pub(crate) build_kernel_def:
        unsafe extern "system" fn(builder: *mut Opaque, out: *mut *mut Opaque) -> OrtStatusPtr,
    pub(crate) release_kernel_def: unsafe extern "system" fn(definition: *mut Opaque),
    /// From `KernelDef_GetOperatorType` to `KernelDef_GetOutputMemType`.
    kernel_def: [Unused; 6],
    pub(crate) get_tensor_data_type: unsafe extern "system" fn(
        element: ONNXTensorElementDataType,
        out: *mut *const Opaque,
    ) -> OrtStatusPtr,
    pub(crate) look_up_kernel: unsafe extern "system" fn(
        info: *mut Opaque,
        node: *const OrtNode,
        out: *mut *const Opaque,
    ) -> OrtStatusPtr,
}

/// `OrtKernelCreateFunc`.
pub(crate) type CreateKernel = unsafe extern "system" fn(
    state: *mut c_void,
    info: *const OrtKernelInfo,
    out: *mut *mut Opaque,
) -> OrtStatusPtr;

/// `OrtEpFactory`: what every one has in common, ahead of its own data.
#[repr(C)]
pub(crate) struct FactoryTable<F> {
    pub(crate) version: u32,
    pub(crate) name: unsafe extern "system" fn(*const F) -> *const c_char,
    pub(crate) vendor: unsafe extern "system" fn(*const F) -> *const c_char,
    pub(crate) supported_devices: unsafe extern "system" fn(
        *mut F,
        devices: *const *const OrtHardwareDevice,
        count: usize,
        out: *mut *mut Opaque,
        most: usize,
        found: *mut usize,
    ) -> OrtStatusPtr,
    pub(crate) create_ep: unsafe extern "system" fn(
        *mut F,
        devices: *const *const OrtHardwareDevice,
        metadata: *const *const Opaque,
        count: usize,
        options: *const OrtSessionOptions,
        logger: *const Opaque,
        out: *mut *mut Opaque,
    ) -> OrtStatusPtr,
    pub(crate) release_ep: unsafe extern "system" fn(*mut F, ep: *mut Opaque),
    pub(crate) vendor_id: unsafe extern "system" fn(*const F) -> u32,
    pub(crate) library_version: unsafe extern "system" fn(*const F) -> *const c_char,
    pub(crate) validate_compiled_model: *const c_void,
    pub(crate) create_allocator: unsafe extern "system" fn(
        *mut F,
        memory: *const Opaque,
        options: *const Opaque,
        out: *mut *mut Opaque,
    ) -> OrtStatusPtr,
    pub(crate) release_allocator: unsafe extern "system" fn(*mut F, allocator: *mut Opaque),
    pub(crate) create_data_transfer:
        unsafe extern "system" fn(*mut F, out: *mut *mut Opaque) -> OrtStatusPtr,
    pub(crate) is_stream_aware: unsafe extern "system" fn(*const F) -> bool,
    /// From `CreateSyncStreamForDevice` on.
    pub(crate) others: [*const c_void; 16],
}

/// `OrtEp`: what every one has in common, ahead of its own data.
#[repr(C)]
pub(crate) struct ProviderTable<P> {
    pub(crate) version: u32,
    pub(crate) name: unsafe extern "system" fn(*const P) -> *const c_char,
    pub(crate) capability:
        unsafe extern "system" fn(*mut P, *const OrtGraph, info: *mut Opaque) -> OrtStatusPtr,
    pub(crate) compile: unsafe extern "system" fn(
        *mut P,
        graphs: *const *const OrtGraph,
        fused: *const *const OrtNode,
        count: usize,
        out: *mut *mut Opaque,
        contexts: *mut *mut OrtNode,
    ) -> OrtStatusPtr,
    pub(crate) release_compiled:
        unsafe extern "system" fn(*mut P, compiled: *mut *mut Opaque, count: usize),
    /// From `GetPreferredDataLayout` to `GetCompiledModelCompatibilityInfo`.
    pub(crate) others: [*const c_void; 8],
    pub(crate) kernel_registry:
        unsafe extern "system" fn(*mut P, out: *mut *const Opaque) -> OrtStatusPtr,
    pub(crate) is_concurrent_run_supported:
        unsafe extern "system" fn(*mut P, out: *mut bool) -> OrtStatusPtr,
    /// From `Sync` on.
    pub(crate) newer: [*const c_void; 16],
}

/// `OrtKernelImpl`: what every one has in common, ahead of its own data.
#[repr(C)]
pub(crate) struct KernelTable<K> {
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) compute: unsafe extern "system" fn(*mut K, *mut OrtKernelContext) -> OrtStatusPtr,
    pub(crate) release: unsafe extern "system" fn(*mut K),
    pub(crate) pre_pack: Option<PrePack<K>>,
    pub(crate) set_shared: *const c_void,
}

/// `OrtNodeComputeInfo`: what every one has in common, ahead of its own data.
#[repr(C)]
pub(crate) struct GroupTable<G> {
    pub(crate) version: u32,
    pub(crate) create_state: unsafe extern "system" fn(
        *mut G,
        context: *mut Opaque,
        out: *mut *mut c_void,
    ) -> OrtStatusPtr,
    pub(crate) compute: unsafe extern "system" fn(
        *mut G,
        state: *mut c_void,
        *mut OrtKernelContext,
    ) -> OrtStatusPtr,
    pub(crate) release_state: unsafe extern "system" fn(*mut G, state: *mut c_void),
}

/// `OrtKernelImpl::PrePackWeight`.
pub(crate) type PrePack<K> = unsafe extern "system" fn(
    *mut K,
    tensor: *const OrtValue,
    input: c_int,
    allocator: *mut Opaque,
    shared: *mut Opaque,
    is_packed: *mut bool,
) -> OrtStatusPtr;
