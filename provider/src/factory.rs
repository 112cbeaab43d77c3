//! `OrtEpFactory`: offers the processor as a device, and makes providers for sessions.

use std::{
    ffi::{CStr, c_char},
    mem, ptr,
};

use lfm2vl_kernels::Instructions;
use ort_sys::{OrtHardwareDevice, OrtSessionOptions, OrtStatusPtr};

use crate::{
    NAME, NONE,
    api::{Api, FactoryTable, Opaque, VERSION},
    provider::Provider,
    status::{self, check, failure},
};

/// The setting of a session that names the instructions to use.
const INSTRUCTIONS: &CStr = c"ep.lfm2vlexecutionprovider.instructions";

/// The setting that with 0 leaves out what is computed as a group of nodes.
const GROUPS: &CStr = c"ep.lfm2vlexecutionprovider.groups";

#[repr(C)]
pub struct Factory {
    table: FactoryTable<Factory>,
}

impl Factory {
    pub(crate) fn new() -> Self {
        Factory {
            table: FactoryTable {
                version: VERSION,
                name,
                vendor,
                supported_devices,
                create_ep,
                release_ep,
                vendor_id,
                library_version,
                validate_compiled_model: NONE,
                create_allocator,
                release_allocator,
                create_data_transfer,
                is_stream_aware,
                others: [NONE; 16],
            },
        }
    }
}

unsafe extern "system" fn name(_: *const Factory) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "system" fn vendor(_: *const Factory) -> *const c_char {
    c"lfm2vl".as_ptr()
}

/// A PCI vendor's number, which this has none of.
unsafe extern "system" fn vendor_id(_: *const Factory) -> u32 {
    0
}

unsafe extern "system" fn library_version(_: *const Factory) -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

unsafe extern "system" fn supported_devices(
    factory: *mut Factory,
    devices: *const *const OrtHardwareDevice,
    count: usize,
    out: *mut *mut Opaque,
    most: usize,
    found: *mut usize,
) -> OrtStatusPtr {
    status::of(|| {
        let api = Api::get();
        // SAFETY: ONNX Runtime's; the type of a device is read as a number, since there may be
        // newer ones than are known here.
        unsafe {
            *found = 0;
            let kind: unsafe extern "system" fn(*const OrtHardwareDevice) -> i32 =
                mem::transmute((*api.ort).HardwareDevice_Type);
            const CPU: i32 = 0;
            for index in 0..count {
                let device = *devices.add(index);
                if kind(device) == CPU && *found < most {
                    let mut added = ptr::null_mut();
                    check(((*api.ep).create_ep_device)(
                        factory.cast(),
                        device,
                        ptr::null(),
                        ptr::null(),
                        &mut added,
                    ))?;
                    *out.add(*found) = added;
                    *found += 1;
                }
            }
        }
        Ok(())
    })
}

unsafe extern "system" fn create_ep(
    _: *mut Factory,
    _devices: *const *const OrtHardwareDevice,
    _metadata: *const *const Opaque,
    _count: usize,
    options: *const OrtSessionOptions,
    logger: *const Opaque,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    status::of(|| {
        // SAFETY: ONNX Runtime's.
        unsafe {
            let instructions = instructions(options)?;
            let takes_groups = takes_groups(options)?;
            let provider = Provider::new(instructions, takes_groups, logger.cast())?;
            *out = Box::into_raw(provider).cast();
        }
        Ok(())
    })
}

unsafe extern "system" fn release_ep(_: *mut Factory, ep: *mut Opaque) {
    // SAFETY: from `create_ep`, and released once.
    drop(unsafe { Box::from_raw(ep.cast::<Provider>()) });
}

/// Whether groups of nodes may be computed as one: not where the session says so, or does not let
/// providers compile anything, or wants a file of what they have compiled.
unsafe fn takes_groups(options: *const OrtSessionOptions) -> Result<bool, OrtStatusPtr> {
    let is = |name: &CStr, value: &str| {
        // SAFETY: the caller's.
        let found = unsafe { setting(options, name)? };
        Ok::<_, OrtStatusPtr>(found.is_some_and(|found| found == value))
    };
    Ok(!is(GROUPS, "0")?
        && !is(c"session.disable_model_compile", "1")?
        && !is(c"ep.context_enable", "1")?)
}

/// A setting of a session.
unsafe fn setting(
    options: *const OrtSessionOptions,
    name: &CStr,
) -> Result<Option<String>, OrtStatusPtr> {
    let mut value = [0u8; 64];
    let mut size = value.len();
    let mut is_set = 0;
    let ort = Api::get().ort;
    // SAFETY: ONNX Runtime's; the value is written where there is room for it.
    unsafe {
        check(((*ort).HasSessionConfigEntry)(options, name.as_ptr(), &mut is_set))?;
        if is_set == 0 {
            return Ok(None);
        }
        let get = (*ort).GetSessionConfigEntry;
        check(get(options, name.as_ptr(), value.as_mut_ptr().cast(), &mut size))?;
    }
    let value = CStr::from_bytes_until_nul(&value).unwrap_or_default();
    Ok(Some(value.to_string_lossy().into_owned()))
}

/// What the session asks for, or the best that the processor has: none where that is plain code, which
/// is slower than ONNX Runtime's.
unsafe fn instructions(
    options: *const OrtSessionOptions,
) -> Result<Option<Instructions>, OrtStatusPtr> {
    // SAFETY: the caller's.
    let Some(name) = (unsafe { setting(options, INSTRUCTIONS)? }) else {
        return Ok(Some(Instructions::best()).filter(|best| *best > Instructions::Portable));
    };
    let named: Instructions = name.parse().map_err(|error| failure(format!("{error}")))?;
    if named.are_available() {
        Ok(Some(named))
    } else {
        Err(failure(format!("this processor has no {named}; leave 'instructions' out")))
    }
}

/// All memory is the host's, which ONNX Runtime allocates itself.
unsafe extern "system" fn create_allocator(
    _: *mut Factory,
    _memory: *const Opaque,
    _options: *const Opaque,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    unsafe { *out = ptr::null_mut() };
    status::OK
}

unsafe extern "system" fn release_allocator(_: *mut Factory, _allocator: *mut Opaque) {}

/// Nothing needs to be copied. ONNX Runtime 1.32 calls the function without asking whether it is there.
unsafe extern "system" fn create_data_transfer(
    _: *mut Factory,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    unsafe { *out = ptr::null_mut() };
    status::OK
}

unsafe extern "system" fn is_stream_aware(_: *const Factory) -> bool {
    false
}
