//! Why a provider cannot be used, and what to do about it.

use std::{fmt, path::Path};

use super::descriptor::Descriptor;

/// Why a provider cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unavailable {
    /// What is missing.
    pub(crate) cause: String,
    /// What to do.
    pub(crate) remedy: &'static str,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

impl Unavailable {
    /// What ONNX Runtime's message means that a provider cannot start.
    pub(super) fn from_message(provider: &Descriptor, message: &str) -> Self {
        let cause = cause(message);
        Unavailable { remedy: remedy(provider, &cause), cause }
    }

    /// What it means that a provider's own library cannot be loaded.
    pub(super) fn of_library(library: &Path, message: &str) -> Self {
        let cause = cause(message);
        let remedy = if cause.contains("libcuda.so") {
            DRIVER_REMEDY
        } else {
            "use a library of a provider that fits this ONNX Runtime, and install what it needs"
        };
        Unavailable { cause: format!("{} cannot be loaded: {cause}", library.display()), remedy }
    }
}

const DRIVER_REMEDY: &str = "install an NVIDIA driver for the library's CUDA version, and check that nvidia-smi lists a GPU";

/// What ONNX Runtime's message says after source files and the library that could not be loaded.
fn cause(message: &str) -> String {
    let cause = ["with error: ", "FAIL : "].iter().find_map(|mark| message.split(mark).nth(1));
    let words: Vec<&str> = cause.unwrap_or(message).split_whitespace().collect();
    words.join(" ").trim_end_matches('.').to_owned()
}

/// What to do about ONNX Runtime's message that a provider cannot start.
fn remedy(provider: &Descriptor, message: &str) -> &'static str {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if provider.is_nvidia {
        if says(&["cudnn"]) {
            return "install cuDNN 9 for the library's CUDA version and put its folder on the library path";
        }
        if provider.name == "tensorrt" && says(&["nvinfer", "tensorrt"]) {
            return "install TensorRT 10 and put its folder on the library path";
        }
        if says(&["driver", "no cuda-capable device", "error 35", "error 100", "libcuda.so"]) {
            return DRIVER_REMEDY;
        }
        if says(&["cublas", "cudart", "cufft", "curand", "nvrtc"]) {
            return "install the CUDA libraries of the version that the ONNX Runtime library needs and put their folder on the library path";
        }
    }
    "correct its settings or install what it needs, or use another provider"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cuda, Provider, TensorRt};

    #[test]
    fn a_message_leads_to_its_remedy() {
        let cuda = Provider::Cuda(Cuda::default());
        let remedy = |message: &str| cuda.failure(message).remedy;
        assert!(remedy("cuDNN is not available").contains("install cuDNN"));
        assert!(
            remedy("libcublasLt.so.13: cannot open shared object file").contains("CUDA libraries")
        );
        assert!(remedy("CUDA failure 100: no CUDA-capable device is detected").contains("driver"));
        assert!(remedy("something else").contains("correct its settings"));
        // As ONNX Runtime 1.31 says it.
        let message = "/onnxruntime_src/core/session/provider_bridge_ort.cc:2043 Get() [ONNXRuntimeError] : 1 \
                       : FAIL : Failed to load library /x/libonnxruntime_providers_tensorrt.so with \
                       error: libcublas.so.13: cannot open shared object file: No such file or directory\n";
        let tensorrt = Provider::TensorRt(TensorRt::default());
        let Unavailable { cause, remedy } = tensorrt.failure(message);
        assert_eq!(
            cause,
            "libcublas.so.13: cannot open shared object file: No such file or directory"
        );
        assert!(remedy.contains("CUDA libraries"), "{remedy}");
        // As of the TensorRT-RTX plugin.
        let message = "Failed to load library /x/lib.so with error: libcuda.so.1: cannot open shared object file";
        let told = Unavailable::of_library(Path::new("/x/lib.so"), message);
        assert_eq!(
            told.cause,
            "/x/lib.so cannot be loaded: libcuda.so.1: cannot open shared object file"
        );
        assert!(told.remedy.contains("NVIDIA driver"));
    }
}
