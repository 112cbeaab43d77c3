//! What is known of each provider besides its settings.

use ort::ep::ExecutionProviderDispatch;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    CoreMl, Cuda, DirectMl, Kernels, OpenVino, Plugin, Provider, TensorRt, WebGpu, options::Setting,
};

/// From the name and the settings that users write to a provider.
type Parse = fn(&str, &[(String, String)]) -> Result<Provider, String>;

/// A kind of provider.
pub(super) struct Descriptor {
    /// As users write it.
    pub(super) name: &'static str,
    /// As ONNX Runtime writes it.
    pub(super) ep_name: &'static str,
    /// The provider with these settings.
    pub(super) parse: Parse,
    /// The provider with its default settings.
    pub(super) default: fn() -> Provider,
    /// Whether it is tried where the user does not choose.
    pub(super) is_automatic: bool,
    /// Whether it needs NVIDIA's driver and libraries.
    pub(super) is_nvidia: bool,
    /// Whether it takes ONNX Runtime's memory patterns.
    pub(super) takes_memory_patterns: bool,
    /// What to do where the ONNX Runtime library does not have it.
    pub(super) library_remedy: &'static str,
}

/// A provider with its settings.
pub(super) trait Described {
    fn descriptor(&self) -> &'static Descriptor;

    /// As ONNX Runtime takes them.
    fn settings(&self) -> Vec<(String, String)>;

    /// Whether it is to record runs and replay them.
    fn records(&self) -> bool {
        false
    }

    /// The provider, if this build has it.
    fn compiled(&self) -> Option<Compiled> {
        None
    }
}

/// A provider that this build has.
pub(super) struct Compiled {
    pub(super) dispatch: ExecutionProviderDispatch,
    /// Whether the loaded ONNX Runtime library has it.
    pub(super) in_library: bool,
}

/// The CPU, which has no settings.
pub(super) struct Cpu;

/// The settings of a provider that has none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

const OTHER: &str = "use another provider";
const NVIDIA: &str =
    "install the Python package onnxruntime-gpu and set ORT_DYLIB_PATH to its libonnxruntime";

/// A provider as most are.
const USUAL: Descriptor = Descriptor {
    name: "cpu",
    ep_name: "CPUExecutionProvider",
    parse: |name, settings| parsed::<Nothing>(name, settings).map(|_| Provider::Cpu),
    default: || Provider::Cpu,
    is_automatic: false,
    is_nvidia: false,
    takes_memory_patterns: true,
    library_remedy: OTHER,
};

static CPU: Descriptor = USUAL;

static KERNELS: Descriptor = Descriptor {
    name: "kernels",
    ep_name: "Lfm2VlExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::Kernels),
    default: || Provider::Kernels(Kernels::default()),
    ..USUAL
};

static CUDA: Descriptor = Descriptor {
    name: "cuda",
    ep_name: "CUDAExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::Cuda),
    default: || Provider::Cuda(Cuda::default()),
    is_automatic: true,
    is_nvidia: true,
    library_remedy: NVIDIA,
    ..USUAL
};

static TENSORRT: Descriptor = Descriptor {
    name: "tensorrt",
    ep_name: "TensorrtExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::TensorRt),
    default: || Provider::TensorRt(TensorRt::default()),
    is_nvidia: true,
    library_remedy: NVIDIA,
    ..USUAL
};

static COREML: Descriptor = Descriptor {
    name: "coreml",
    ep_name: "CoreMLExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::CoreMl),
    default: || Provider::CoreMl(CoreMl::default()),
    is_automatic: true,
    library_remedy: "use the library of the Python package onnxruntime for macOS, which has it",
    ..USUAL
};

static DIRECTML: Descriptor = Descriptor {
    name: "directml",
    ep_name: "DmlExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::DirectMl),
    default: || Provider::DirectMl(DirectMl::default()),
    is_automatic: true,
    takes_memory_patterns: false,
    library_remedy: "install the Python package onnxruntime-directml and set ORT_DYLIB_PATH to its onnxruntime.dll",
    ..USUAL
};

static OPENVINO: Descriptor = Descriptor {
    name: "openvino",
    ep_name: "OpenVINOExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::OpenVino),
    default: || Provider::OpenVino(OpenVino::default()),
    library_remedy: "install the Python package onnxruntime-openvino and set ORT_DYLIB_PATH to its library, or use a plugin",
    ..USUAL
};

static WEBGPU: Descriptor = Descriptor {
    name: "webgpu",
    ep_name: "WebGpuExecutionProvider",
    parse: |name, settings| parsed(name, settings).map(Provider::WebGpu),
    default: || Provider::WebGpu(WebGpu::default()),
    library_remedy: "use a plugin (the Python package onnxruntime-ep-webgpu), or a library that was built with it",
    ..USUAL
};

static PLUGIN: Descriptor = Descriptor { name: "plugin", ..USUAL };

/// Those that are not plugins.
pub(super) static DESCRIPTORS: [&Descriptor; 8] =
    [&CPU, &KERNELS, &CUDA, &TENSORRT, &COREML, &DIRECTML, &OPENVINO, &WEBGPU];

fn owned(settings: Vec<Setting>) -> Vec<(String, String)> {
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// ort's `$ep` with the settings of `$options`, if the feature that brings it is on.
macro_rules! compiled {
    ($feature:literal, $ep:ident, $options:ident) => {
        compiled!(
            $feature,
            $ep,
            |settings: Vec<Setting>| {
                use ort::ep::ArbitrarilyConfigurableExecutionProvider;
                let ep = ort::ep::$ep::default();
                settings.iter().fold(ep, |ep, (key, value)| ep.with_arbitrary_config(key, value))
            },
            $options.settings()
        )
    };
    ($feature:literal, $ep:ident, $build:expr, $settings:expr) => {{
        #[cfg(feature = $feature)]
        {
            use ort::ep::ExecutionProvider;
            Some(Compiled {
                dispatch: $build($settings).build().error_on_failure(),
                in_library: ort::ep::$ep::is_available().unwrap_or(false),
            })
        }
        #[cfg(not(feature = $feature))]
        {
            let _ = $settings;
            None
        }
    }};
}

impl Described for Cpu {
    fn descriptor(&self) -> &'static Descriptor {
        &CPU
    }

    fn settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

impl Described for Kernels {
    fn descriptor(&self) -> &'static Descriptor {
        &KERNELS
    }

    fn settings(&self) -> Vec<(String, String)> {
        self.settings()
    }
}

impl Described for Cuda {
    fn descriptor(&self) -> &'static Descriptor {
        &CUDA
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn records(&self) -> bool {
        self.graph_capture
    }

    fn compiled(&self) -> Option<Compiled> {
        compiled!("cuda", CUDA, self)
    }
}

impl Described for TensorRt {
    fn descriptor(&self) -> &'static Descriptor {
        &TENSORRT
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn compiled(&self) -> Option<Compiled> {
        compiled!("tensorrt", TensorRT, self)
    }
}

impl Described for CoreMl {
    fn descriptor(&self) -> &'static Descriptor {
        &COREML
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn compiled(&self) -> Option<Compiled> {
        compiled!("coreml", CoreML, self)
    }
}

impl Described for DirectMl {
    fn descriptor(&self) -> &'static Descriptor {
        &DIRECTML
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn compiled(&self) -> Option<Compiled> {
        // The only one that takes no keys and values.
        compiled!(
            "directml",
            DirectML,
            |adapter| {
                let ep = ort::ep::DirectML::default();
                ep.with_device_id(i32::try_from(adapter).unwrap_or(i32::MAX))
            },
            self.adapter
        )
    }
}

impl Described for OpenVino {
    fn descriptor(&self) -> &'static Descriptor {
        &OPENVINO
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn compiled(&self) -> Option<Compiled> {
        compiled!("openvino", OpenVINO, self)
    }
}

impl Described for WebGpu {
    fn descriptor(&self) -> &'static Descriptor {
        &WEBGPU
    }

    fn settings(&self) -> Vec<(String, String)> {
        owned(self.settings())
    }

    fn records(&self) -> bool {
        self.graph_capture
    }

    fn compiled(&self) -> Option<Compiled> {
        compiled!("webgpu", WebGPU, self)
    }
}

impl Described for Plugin {
    fn descriptor(&self) -> &'static Descriptor {
        &PLUGIN
    }

    fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone().into_iter().collect()
    }
}

fn parsed<T: DeserializeOwned>(provider: &str, settings: &[(String, String)]) -> Result<T, String> {
    let value =
        |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let map: Map<String, Value> =
        settings.iter().map(|(name, text)| (name.clone(), value(text))).collect();
    serde_json::from_value(Value::Object(map))
        .map_err(|error| format!("the settings of {provider} are wrong: {error}; correct them"))
}
