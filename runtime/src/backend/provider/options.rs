//! Settings of each execution provider, and the keys by which ONNX Runtime knows them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A setting as ONNX Runtime takes it.
pub(super) type Setting = (&'static str, String);

/// NVIDIA GPUs through CUDA. Keys: `OrtCUDAProviderOptionsV2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cuda {
    /// Which GPU.
    pub device_id: u32,
    /// Most bytes of device memory that the provider's arena takes.
    pub memory_limit: Option<u64>,
    /// Records the kernels of the decoder's steps as CUDA graphs and replays them, for folders of the
    /// recipes `cuda` (two recordings for each number of answers that go on together) and `cuda-graph`
    /// (two for each slot). The first two steps of each number take longer. While a recording is made,
    /// CUDA wants no other thread to allocate memory, so this is for programs that use the GPU from one
    /// thread.
    pub graph_capture: bool,
    /// Whether float32 products may use TF32; ONNX Runtime's choice when not given.
    pub tf32: Option<bool>,
}

impl Cuda {
    pub(super) fn settings(&self) -> Vec<Setting> {
        settings([
            Some(("device_id", self.device_id.to_string())),
            self.memory_limit.map(|bytes| ("gpu_mem_limit", bytes.to_string())),
            self.graph_capture.then(|| ("enable_cuda_graph", flag(true))),
            self.tf32.map(|on| ("use_tf32", flag(on))),
        ])
    }
}

/// NVIDIA GPUs through TensorRT, and through CUDA for what TensorRT leaves. Keys:
/// `OrtTensorRTProviderOptionsV2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TensorRt {
    /// Which GPU.
    pub device_id: u32,
    /// Lets engines compute in float16.
    pub fp16: bool,
    /// Folder in which built engines and timings are kept, for fast loading the next time.
    #[serde(deserialize_with = "any_text")]
    pub engine_cache: Option<PathBuf>,
    /// Most bytes of device memory that building an engine takes.
    pub workspace_limit: Option<u64>,
    /// Smallest shapes of dynamic inputs: `input:1x2x3,other:4`.
    #[serde(deserialize_with = "any_text")]
    pub min_shapes: Option<String>,
    /// Shapes of dynamic inputs that engines are made for.
    #[serde(deserialize_with = "any_text")]
    pub opt_shapes: Option<String>,
    /// Largest shapes of dynamic inputs.
    #[serde(deserialize_with = "any_text")]
    pub max_shapes: Option<String>,
}

impl TensorRt {
    pub(super) fn settings(&self) -> Vec<Setting> {
        let cache = self.engine_cache.as_deref();
        settings([
            Some(("device_id", self.device_id.to_string())),
            self.fp16.then(|| ("trt_fp16_enable", flag(true))),
            cache.map(|_| ("trt_engine_cache_enable", flag(true))),
            cache.map(|folder| ("trt_engine_cache_path", text(folder))),
            cache.map(|_| ("trt_timing_cache_enable", flag(true))),
            cache.map(|folder| ("trt_timing_cache_path", text(folder))),
            self.workspace_limit.map(|bytes| ("trt_max_workspace_size", bytes.to_string())),
            self.min_shapes.clone().map(|shapes| ("trt_profile_min_shapes", shapes)),
            self.opt_shapes.clone().map(|shapes| ("trt_profile_opt_shapes", shapes)),
            self.max_shapes.clone().map(|shapes| ("trt_profile_max_shapes", shapes)),
        ])
    }
}

/// What CoreML may compute on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeUnits {
    /// CPU, GPU and Neural Engine.
    #[default]
    All,
    /// The CPU.
    CpuOnly,
    /// CPU and GPU.
    CpuAndGpu,
    /// CPU and Neural Engine.
    CpuAndNeuralEngine,
}

/// The form in which CoreML is given a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFormat {
    /// MLProgram, from macOS 12 and iOS 15 on.
    #[default]
    MlProgram,
    /// NeuralNetwork, which older systems take.
    NeuralNetwork,
}

/// Apple devices through CoreML. Keys: `coreml_provider_factory.h`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoreMl {
    /// What it may compute on.
    pub compute_units: ComputeUnits,
    /// The form of the model.
    pub model_format: ModelFormat,
    /// Takes only nodes whose shapes are all known.
    pub static_shapes: bool,
    /// Folder in which compiled models are kept, for fast loading the next time.
    #[serde(deserialize_with = "any_text")]
    pub model_cache: Option<PathBuf>,
}

impl CoreMl {
    pub(super) fn settings(&self) -> Vec<Setting> {
        let units = match self.compute_units {
            ComputeUnits::All => "ALL",
            ComputeUnits::CpuOnly => "CPUOnly",
            ComputeUnits::CpuAndGpu => "CPUAndGPU",
            ComputeUnits::CpuAndNeuralEngine => "CPUAndNeuralEngine",
        };
        let format = match self.model_format {
            ModelFormat::MlProgram => "MLProgram",
            ModelFormat::NeuralNetwork => "NeuralNetwork",
        };
        settings([
            Some(("MLComputeUnits", units.to_owned())),
            Some(("ModelFormat", format.to_owned())),
            self.static_shapes.then(|| ("RequireStaticInputShapes", flag(true))),
            self.model_cache.as_deref().map(|folder| ("ModelCacheDirectory", text(folder))),
        ])
    }
}

/// Windows GPUs through DirectML.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectMl {
    /// Which adapter, in the order of `IDXGIFactory::EnumAdapters`.
    pub adapter: u32,
}

impl DirectMl {
    pub(super) fn settings(&self) -> Vec<Setting> {
        settings([Some(("device_id", self.adapter.to_string()))])
    }
}

/// Intel devices through OpenVINO, where the ONNX Runtime library has it built in. Keys:
/// `openvino_provider_factory.cc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenVino {
    /// `CPU`, `GPU`, `NPU`, `GPU.1` or `HETERO:GPU,CPU`; OpenVINO's choice when not given.
    #[serde(deserialize_with = "any_text")]
    pub device_type: Option<String>,
    /// `FP32`, `FP16` or `ACCURACY`; that of the device when not given.
    #[serde(deserialize_with = "any_text")]
    pub precision: Option<String>,
    /// Threads on the CPU.
    pub threads: Option<usize>,
    /// Folder in which compiled models are kept, for fast loading the next time.
    #[serde(deserialize_with = "any_text")]
    pub model_cache: Option<PathBuf>,
}

impl OpenVino {
    pub(super) fn settings(&self) -> Vec<Setting> {
        settings([
            self.device_type.clone().map(|device| ("device_type", device)),
            self.precision.clone().map(|precision| ("precision", precision)),
            self.threads.map(|threads| ("num_of_threads", threads.to_string())),
            self.model_cache.as_deref().map(|folder| ("cache_dir", text(folder))),
        ])
    }
}

/// GPUs through WebGPU, where the ONNX Runtime library has it built in. Keys:
/// `webgpu_provider_options.h`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebGpu {
    /// Which of the contexts that the program made; 0 is ONNX Runtime's own.
    pub device_id: u32,
    /// Records the commands of the decoder's step and replays them, for folders whose decoder has
    /// fixed sizes.
    pub graph_capture: bool,
}

impl WebGpu {
    pub(super) fn settings(&self) -> Vec<Setting> {
        settings([
            Some(("deviceId", self.device_id.to_string())),
            self.graph_capture.then(|| ("enableGraphCapture", flag(true))),
        ])
    }
}

/// A text, also where it looks like a number.
fn any_text<'de, D: Deserializer<'de>, T: From<String>>(value: D) -> Result<Option<T>, D::Error> {
    Ok(Some(match Value::deserialize(value)? {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }))
}

fn settings<const N: usize>(settings: [Option<Setting>; N]) -> Vec<Setting> {
    settings.into_iter().flatten().collect()
}

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
