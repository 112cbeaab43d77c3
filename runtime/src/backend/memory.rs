//! Where tensors lie: in the host's memory, or in that of the device that runs a graph.

use std::{
    borrow::Cow,
    ffi::CStr,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;
use ndarray::arr1;
use ort::{
    AsPointer,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
    sys::{OrtMemoryInfo, OrtMemoryInfoDeviceType, OrtSession, OrtStatusPtr},
    value::{DynTensor, PrimitiveTensorElementType, Tensor, TensorElementType},
};

use super::copies::{copy, stop_copying_cuda_directly};

/// The memory of a device, by ONNX Runtime's name of it and the device's number.
#[derive(Debug, Clone)]
pub(crate) struct DeviceMemory {
    name: String,
    id: i32,
    allocator: Arc<Mutex<Allocator>>,
}

impl PartialEq for DeviceMemory {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.id) == (&other.name, other.id)
    }
}

impl DeviceMemory {
    /// That memory, with tensors allocated by `session`; `None` where they cannot be copied to and from
    /// it.
    pub(crate) fn at(location: Location, session: &Session) -> Option<Self> {
        // ONNX Runtime does not take the names of all plugins' memory.
        let memory = DeviceMemory::new(session, location.name, location.id).ok()?;
        let keeps_tensors = memory.keeps_tensors()
            || (memory.has_addresses() && stop_copying_cuda_directly() && memory.keeps_tensors());
        keeps_tensors.then_some(memory)
    }

    /// The host's, for tests of what is done in a device's.
    #[cfg(test)]
    pub(crate) fn of_host() -> Self {
        let allocator = Arc::new(Mutex::new(Allocator::default()));
        DeviceMemory { name: HOST.to_owned(), id: 0, allocator }
    }

    /// Whether it is where that is.
    pub(crate) fn is_at(&self, location: &Location) -> bool {
        (&self.name, self.id) == (&location.name, location.id)
    }

    fn new(session: &Session, name: String, id: i32) -> ort::Result<Self> {
        let info = info_of(&name, id)?;
        let allocator = Arc::new(Mutex::new(Allocator::new(session, info)?));
        Ok(DeviceMemory { name, id, allocator })
    }

    /// Whether a tensor comes back from it as it was.
    fn keeps_tensors(&self) -> bool {
        let there_and_back = || -> ort::Result<bool> {
            let sent = Tensor::from_array(arr1(&[1.0_f32, 2.0]))?;
            let kept = self.hold(sent.upcast())?;
            let back = on_host(&kept)?;
            Ok(back.try_extract_array::<f32>()? == arr1(&[1.0_f32, 2.0]).into_dyn())
        };
        there_and_back().unwrap_or(false)
    }

    /// A copy of a tensor in this memory; one without elements stays where it is.
    pub(crate) fn hold(&self, tensor: DynTensor) -> ort::Result<DynTensor> {
        if tensor.shape().num_elements() == 0 {
            return Ok(tensor);
        }
        let mut held = new_tensor(*tensor.data_type(), &tensor.shape()[..], Some(self))?;
        overwrite(&mut held, &tensor)?;
        Ok(held)
    }

    /// Whether a part of a tensor there is its address and a number of bytes. Elsewhere, what a tensor
    /// says is its address may be the handle of a buffer.
    pub(crate) fn has_addresses(&self) -> bool {
        is_addressable(&self.name)
    }

    /// ONNX Runtime's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

fn is_addressable(device: &str) -> bool {
    ["Cuda", "Hip"].iter().any(|name| device.starts_with(name))
}

/// Whether parts of a tensor on a device can be read by their address.
pub(crate) fn has_parts(tensor: &DynTensor) -> bool {
    is_addressable(tensor.memory_info().allocation_device().as_str())
}

/// Whether a session reads its inputs where they are, if that is `memory`, and the host's for those that
/// are named. Otherwise ONNX Runtime copies them when they are bound.
pub(crate) fn reads_in_place(
    session: &Session,
    memory: Option<&DeviceMemory>,
    of_host: &[&str],
) -> ort::Result<bool> {
    let get = ort::api().SessionGetMemoryInfoForInputs;
    let (name, id) = memory.map_or((HOST, 0), |memory| (memory.name.as_str(), memory.id));
    let locations = locations(session, session.inputs().len(), get)?;
    let is_there = |location: &Location| (location.name.as_str(), location.id) == (name, id);
    let mut all = session.inputs().iter().zip(&locations);
    Ok(all.all(|(input, location)| match of_host.contains(&input.name()) {
        true => location.is_host,
        false => is_there(location),
    }))
}

/// Names of the inputs that a session reads on the host.
pub(crate) fn inputs_on_host(session: &Session) -> ort::Result<Vec<String>> {
    let names = session.inputs().iter().map(|input| input.name().to_owned());
    let get = ort::api().SessionGetMemoryInfoForInputs;
    let locations = locations(session, session.inputs().len(), get)?;
    let on_host = names.zip(locations).filter(|(_, location)| location.is_host);
    Ok(on_host.map(|(name, _)| name).collect())
}

/// ONNX Runtime's name of the host's memory.
pub(crate) const HOST: &str = "Cpu";

/// Where an input or output of a session is.
#[derive(Clone)]
pub(crate) struct Location {
    name: String,
    id: i32,
    is_host: bool,
}

impl Location {
    /// Where a session puts the output `name`, if that is not the host's memory.
    pub(crate) fn of_output(session: &Session, name: &str) -> ort::Result<Option<Self>> {
        let outputs = session.outputs();
        let index = outputs.iter().position(|output| output.name() == name);
        let all = locations(session, outputs.len(), ort::api().SessionGetMemoryInfoForOutputs)?;
        let location = index.and_then(|index| all.into_iter().nth(index));
        Ok(location.filter(|location| !location.is_host))
    }
}

/// Where the `count` inputs or outputs of a session are.
fn locations(
    session: &Session,
    count: usize,
    get: unsafe extern "system" fn(
        *const OrtSession,
        *mut *const OrtMemoryInfo,
        usize,
    ) -> OrtStatusPtr,
) -> ort::Result<Vec<Location>> {
    let api = ort::api();
    let mut infos = vec![ptr::null(); count];
    // SAFETY: the session is alive, and there is room for all its inputs or outputs.
    unsafe {
        ort::Error::result_from_status(get(session.ptr(), infos.as_mut_ptr(), count))?;
    }
    infos
        .into_iter()
        .map(|info| {
            let mut device = OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
            let (mut id, mut name) = (0, ptr::null());
            // SAFETY: ONNX Runtime keeps `info` and its name as long as the session, and the others are
            // valid for writes.
            let name = unsafe {
                (api.MemoryInfoGetDeviceType)(info, &raw mut device);
                ort::Error::result_from_status((api.MemoryInfoGetId)(info, &raw mut id))?;
                ort::Error::result_from_status((api.MemoryInfoGetName)(info, &raw mut name))?;
                CStr::from_ptr(name).to_string_lossy().into_owned()
            };
            let is_host = device == OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
            Ok(Location { name, id, is_host })
        })
        .collect()
}

/// A tensor that can be bound to an output, with whatever the memory held.
pub(crate) fn new_tensor(
    dtype: TensorElementType,
    shape: &[i64],
    memory: Option<&DeviceMemory>,
) -> ort::Result<DynTensor> {
    match memory {
        Some(memory) => {
            let allocator = memory.allocator.lock().unwrap_or_else(PoisonError::into_inner);
            DynTensor::new(&allocator, dtype, shape.to_vec())
        }
        None => DynTensor::new(&Allocator::default(), dtype, shape.to_vec()),
    }
}

/// Copies all of a tensor into another one of its shape.
pub(crate) fn overwrite(into: &mut DynTensor, from: &DynTensor) -> ort::Result<()> {
    let on_host = |tensor: &DynTensor| tensor.memory_info().is_cpu_accessible();
    if !(on_host(into) && on_host(from)) {
        return copy([(from, into)]);
    }
    match from.data_type() {
        TensorElementType::Float32 => overwrite_on_host::<f32>(into, from),
        TensorElementType::Float16 => overwrite_on_host::<f16>(into, from),
        TensorElementType::Int64 => overwrite_on_host::<i64>(into, from),
        TensorElementType::Int32 => overwrite_on_host::<i32>(into, from),
        _ => copy([(from, into)]),
    }
}

fn overwrite_on_host<T: PrimitiveTensorElementType + Copy>(
    into: &mut DynTensor,
    from: &DynTensor,
) -> ort::Result<()> {
    let (_, from) = from.try_extract_tensor::<T>()?;
    let (_, into) = into.try_extract_tensor_mut::<T>()?;
    if from.len() == into.len() {
        into.copy_from_slice(from)
    } else {
        return Err(ort::Error::new("a tensor of another size"));
    }
    Ok(())
}

/// A description for ONNX Runtime.
pub(crate) fn memory_info(memory: Option<&DeviceMemory>) -> ort::Result<MemoryInfo<'static>> {
    match memory {
        Some(memory) => info_of(&memory.name, memory.id),
        None => Ok(MemoryInfo::default()),
    }
}

fn info_of(name: &str, id: i32) -> ort::Result<MemoryInfo<'static>> {
    let device = AllocationDevice::new(name);
    MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default)
}

/// The tensor, or a copy of it where it lies on a device.
pub(crate) fn on_host(tensor: &DynTensor) -> ort::Result<Cow<'_, DynTensor>> {
    if tensor.memory_info().is_cpu_accessible() {
        Ok(Cow::Borrowed(tensor))
    } else {
        let mut copied = new_tensor(*tensor.data_type(), &tensor.shape()[..], None)?;
        copy([(tensor, &mut copied)])?;
        Ok(Cow::Owned(copied))
    }
}
