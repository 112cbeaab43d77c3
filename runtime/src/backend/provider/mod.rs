//! Execution providers: what runs the graphs.

mod descriptor;
mod kernels;
mod options;
mod plugin;
mod unavailable;

use std::fmt;

use lfm2vl_onnxruntime::environment;
use ort::{environment::Environment, session::builder::SessionBuilder};

pub use kernels::Kernels;
pub use options::{ComputeUnits, CoreMl, Cuda, DirectMl, ModelFormat, OpenVino, TensorRt, WebGpu};
pub use plugin::{DeviceKind, Plugin};

pub(crate) use unavailable::Unavailable;

use descriptor::{Compiled, DESCRIPTORS, Described, Descriptor};

/// What runs the graphs. Those other than the CPU and plugins need the cargo feature of their name
/// and an ONNX Runtime library that has them; one that cannot start is an error, never a silent
/// fallback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// The CPU, with ONNX Runtime's own kernels.
    #[default]
    Cpu,
    /// The CPU, with the project's own kernels for what they are faster at.
    Kernels(Kernels),
    /// NVIDIA GPUs through CUDA.
    Cuda(Cuda),
    /// NVIDIA GPUs through TensorRT.
    TensorRt(TensorRt),
    /// Apple devices through CoreML.
    CoreMl(CoreMl),
    /// Windows GPUs through DirectML.
    DirectMl(DirectMl),
    /// Intel devices through OpenVINO.
    OpenVino(OpenVino),
    /// GPUs through WebGPU.
    WebGpu(WebGpu),
    /// A provider in a library of its own.
    Plugin(Plugin),
}

/// What is wrong with the name or the settings of a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProviderError(String);

impl Provider {
    /// Names of the providers, as [`parse`](Self::parse) takes them.
    pub const NAMES: [&'static str; 9] = [
        "cpu",
        "kernels",
        "cuda",
        "tensorrt",
        "coreml",
        "directml",
        "openvino",
        "webgpu",
        "plugin:PATH",
    ];

    /// A provider by its name, with settings by the names of its options' fields. `plugin:PATH` is
    /// the one in a library or a folder.
    ///
    /// # Errors
    /// [`ProviderError`] for an unknown name, or a setting that the provider does not have.
    pub fn parse(name: &str, settings: &[(String, String)]) -> Result<Self, ProviderError> {
        if let Some(path) = name.strip_prefix("plugin:") {
            return Plugin::parse(path, settings).map(Provider::Plugin).map_err(ProviderError);
        }
        let unknown = || {
            let known = Self::NAMES.join(", ");
            ProviderError(format!("'{name}' is not a provider; use {known}"))
        };
        let descriptor = DESCRIPTORS.iter().find(|descriptor| descriptor.name == name);
        (descriptor.ok_or_else(unknown)?.parse)(name, settings).map_err(ProviderError)
    }

    /// What it is, with its settings: the one place that tells providers apart.
    fn described(&self) -> &dyn Described {
        match self {
            Provider::Cpu => &descriptor::Cpu,
            Provider::Kernels(kernels) => kernels,
            Provider::Cuda(options) => options,
            Provider::TensorRt(options) => options,
            Provider::CoreMl(options) => options,
            Provider::DirectMl(options) => options,
            Provider::OpenVino(options) => options,
            Provider::WebGpu(options) => options,
            Provider::Plugin(plugin) => plugin,
        }
    }

    fn descriptor(&self) -> &'static Descriptor {
        self.described().descriptor()
    }

    /// The providers that this build and the loaded ONNX Runtime library have, besides plugins that are
    /// named by their path, with default settings. Whether there is a device for them shows when a model
    /// is loaded.
    pub fn available() -> Vec<Provider> {
        let all = DESCRIPTORS.iter().map(|descriptor| (descriptor.default)());
        all.filter(|provider| provider.unavailable().is_none()).collect()
    }

    /// What to try in order where the user does not choose: what suits the platform and the library
    /// has, then the CPU. TensorRT is not among them, since building its engines takes minutes.
    pub fn auto() -> Vec<Provider> {
        let mut providers = Self::available();
        providers.retain(|provider| provider.descriptor().is_automatic);
        providers.extend(Self::host());
        providers
    }

    /// What runs graphs on the CPU where nothing else is asked for: the project's own kernels where their
    /// library is beside the program or beside the ONNX Runtime library, else ONNX Runtime's.
    pub fn host() -> Vec<Provider> {
        let kernels = Kernels::are_there().then(|| Provider::Kernels(Kernels::default()));
        kernels.into_iter().chain([Provider::Cpu]).collect()
    }

    /// Whether graphs run on the CPU.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Provider::Cpu | Provider::Kernels(_))
    }

    /// The name, as [`parse`](Self::parse) takes it.
    pub fn name(&self) -> String {
        match self {
            Provider::Plugin(plugin) => format!("plugin:{}", plugin.library.display()),
            _ => self.descriptor().name.to_owned(),
        }
    }

    /// Its settings as ONNX Runtime takes them: key and value.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.described().settings()
    }

    /// Whether it is to record runs and replay them.
    pub(crate) fn records(&self) -> bool {
        self.described().records()
    }

    /// The same provider, running each run anew.
    pub(crate) fn without_recording(mut self) -> Self {
        match &mut self {
            Provider::Cuda(options) => options.graph_capture = false,
            Provider::WebGpu(options) => options.graph_capture = false,
            _ => {}
        }
        self
    }

    /// ONNX Runtime's names of it. Those of a plugin are known once it is loaded.
    pub(crate) fn ep_names(&self) -> Vec<String> {
        match self {
            Provider::Plugin(plugin) => plugin.ep_names().into_iter().collect(),
            _ => vec![self.descriptor().ep_name.to_owned()],
        }
    }

    /// Adds it to a session.
    pub(crate) fn register(
        &self,
        environment: &Environment,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, Unavailable> {
        if let Some(reason) = self.unavailable() {
            return Err(reason);
        }
        if self.settings().iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
            return Err(Unavailable {
                cause: "a setting has a NUL character".to_owned(),
                remedy: "remove it",
            });
        }
        match self {
            Provider::Plugin(plugin) => return plugin.register(environment, builder),
            Provider::Kernels(kernels) => {
                return kernels.plugin()?.register(environment, builder);
            }
            _ => {}
        }
        let mut compiled: Vec<_> = self.described().compiled().into_iter().collect();
        if let Provider::TensorRt(options) = self {
            // What TensorRT leaves stays on the GPU, where the library can do that.
            let cuda = Cuda { device_id: options.device_id, ..Cuda::default() };
            compiled.extend(cuda.compiled().filter(|cuda| cuda.in_library));
        }
        if let Provider::Cuda(_) = self {
            plugin::copy_cuda_directly(environment);
        }
        let dispatches: Vec<_> = compiled.into_iter().map(|compiled| compiled.dispatch).collect();
        let failed = |error: &ort::Error<SessionBuilder>| self.failure(error.message());
        let builder = if self.descriptor().takes_memory_patterns {
            builder
        } else {
            builder.with_memory_pattern(false).map_err(|error| failed(&error))?
        };
        builder.with_execution_providers(dispatches).map_err(|error| failed(&error))
    }

    /// What ONNX Runtime's message means that it cannot start.
    pub(crate) fn failure(&self, message: &str) -> Unavailable {
        Unavailable::from_message(self.descriptor(), message)
    }

    /// Why this build or the library does not have it.
    fn unavailable(&self) -> Option<Unavailable> {
        if matches!(self, Provider::Cpu | Provider::Plugin(_)) {
            return None;
        }
        if let Provider::Kernels(kernels) = self {
            return kernels.plugin().err();
        }
        // Where the library was not loaded yet, ort would look for one itself.
        if let Err(error) = environment() {
            return Some(Unavailable { cause: error.to_string(), remedy: "then try again" });
        }
        match self.described().compiled() {
            None => Some(Unavailable {
                cause: format!("this program was built without the cargo feature '{self}'"),
                remedy: "build it with that feature, or use another provider",
            }),
            Some(Compiled { in_library: false, .. }) => Some(Unavailable {
                cause: format!("the ONNX Runtime library has no {}", self.descriptor().ep_name),
                remedy: self.descriptor().library_remedy,
            }),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(name: &str, settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let settings: Vec<_> =
            settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Provider::parse(name, &settings).unwrap().settings()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_option_reaches_its_key() {
        let cuda = settings(
            "cuda",
            &[
                ("device_id", "1"),
                ("memory_limit", "4294967296"),
                ("graph_capture", "true"),
                ("tf32", "false"),
            ],
        );
        let expected = [
            ("device_id", "1"),
            ("gpu_mem_limit", "4294967296"),
            ("enable_cuda_graph", "1"),
            ("use_tf32", "0"),
        ];
        assert_eq!(cuda, pairs(&expected));
        let tensorrt = settings(
            "tensorrt",
            &[
                ("fp16", "true"),
                ("engine_cache", "2026"),
                ("workspace_limit", "1024"),
                ("min_shapes", "x:1x2"),
                ("opt_shapes", "x:1x3"),
                ("max_shapes", "x:1x4"),
            ],
        );
        let expected = [
            ("device_id", "0"),
            ("trt_fp16_enable", "1"),
            ("trt_engine_cache_enable", "1"),
            ("trt_engine_cache_path", "2026"),
            ("trt_timing_cache_enable", "1"),
            ("trt_timing_cache_path", "2026"),
            ("trt_max_workspace_size", "1024"),
            ("trt_profile_min_shapes", "x:1x2"),
            ("trt_profile_opt_shapes", "x:1x3"),
            ("trt_profile_max_shapes", "x:1x4"),
        ];
        assert_eq!(tensorrt, pairs(&expected));
        let coreml = settings(
            "coreml",
            &[
                ("compute_units", "cpu_and_neural_engine"),
                ("model_format", "neural_network"),
                ("static_shapes", "true"),
                ("model_cache", "/cache"),
            ],
        );
        let expected = [
            ("MLComputeUnits", "CPUAndNeuralEngine"),
            ("ModelFormat", "NeuralNetwork"),
            ("RequireStaticInputShapes", "1"),
            ("ModelCacheDirectory", "/cache"),
        ];
        assert_eq!(coreml, pairs(&expected));
        let openvino = settings(
            "openvino",
            &[
                ("device_type", "GPU.1"),
                ("precision", "FP16"),
                ("threads", "3"),
                ("model_cache", "/cache"),
            ],
        );
        let expected = [
            ("device_type", "GPU.1"),
            ("precision", "FP16"),
            ("num_of_threads", "3"),
            ("cache_dir", "/cache"),
        ];
        assert_eq!(openvino, pairs(&expected));
        let webgpu = settings("webgpu", &[("device_id", "2"), ("graph_capture", "true")]);
        assert_eq!(webgpu, pairs(&[("deviceId", "2"), ("enableGraphCapture", "1")]));
        assert_eq!(settings("directml", &[("adapter", "1")]), pairs(&[("device_id", "1")]));
        let options = [("device", "gpu"), ("device_index", "1"), ("key", "value")];
        let plugin = Provider::parse("plugin:/some/folder", &pairs(&options)).unwrap();
        assert_eq!(plugin.settings(), pairs(&[("key", "value")]));
        let Provider::Plugin(Plugin { device, device_index, .. }) = plugin else { panic!() };
        assert_eq!((device, device_index), (Some(DeviceKind::Gpu), Some(1)));
        assert_eq!(settings("cpu", &[]), []);
        let instructions = [("instructions", "avx2")];
        assert_eq!(settings("kernels", &instructions), pairs(&instructions));
    }

    #[test]
    fn wrong_names_and_settings_are_told() {
        let error = |name: &str, key: &str, value: &str| {
            Provider::parse(name, &pairs(&[(key, value)])).unwrap_err().to_string()
        };
        assert!(error("cuda", "devise", "1").contains("unknown field `devise`, expected one of"));
        assert!(error("cuda", "device_id", "first").contains("invalid type"));
        assert!(error("coreml", "compute_units", "tpu").contains("unknown variant `tpu`"));
        assert!(error("cpu", "threads", "1").contains("unknown field"));
        assert!(error("plugin:x", "device", "tpu").contains("use cpu, gpu or npu"));
        assert!(error("plugin:x", "device_index", "-1").contains("use 0, 1"));
        let unknown = Provider::parse("rocm", &[]).unwrap_err().to_string();
        assert!(unknown.contains("'rocm' is not a provider; use cpu, kernels, cuda"), "{unknown}");
    }
}
