//! Execution providers: what runs the graphs.

use std::{fmt, str::FromStr};

use ort::ep::ExecutionProviderDispatch;

/// The provider if its feature is on.
macro_rules! compiled {
    ($feature:literal, $provider:ident) => {{
        #[cfg(feature = $feature)]
        {
            use ort::ep::{ExecutionProvider, $provider};
            Some(Compiled {
                dispatch: $provider::default().build(),
                in_library: $provider::is_available().unwrap_or(false),
            })
        }
        #[cfg(not(feature = $feature))]
        {
            None
        }
    }};
}

/// What runs the graphs. Providers other than the CPU need the cargo feature of their name and an
/// ONNX Runtime library that has them; one that cannot start is an error, never a silent fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The CPU.
    #[default]
    Cpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// NVIDIA GPUs through TensorRT.
    TensorRt,
    /// Apple devices through CoreML.
    CoreMl,
    /// Windows GPUs through DirectML.
    DirectMl,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Provider; 5] =
        [Provider::Cpu, Provider::Cuda, Provider::TensorRt, Provider::CoreMl, Provider::DirectMl];

    /// Whether this build and the loaded ONNX Runtime library have it.
    pub fn is_available(self) -> bool {
        self == Provider::Cpu || self.compiled().is_some_and(|compiled| compiled.in_library)
    }

    /// What a session needs for it; nothing for the CPU.
    ///
    /// # Errors
    /// A sentence when this build does not have it.
    pub(crate) fn dispatch(self) -> Result<Option<ExecutionProviderDispatch>, String> {
        if self == Provider::Cpu {
            return Ok(None);
        }
        let compiled = self.compiled();
        let missing = || format!("this program was built without the cargo feature '{self}'");
        Ok(Some(compiled.ok_or_else(missing)?.dispatch.error_on_failure()))
    }

    fn compiled(self) -> Option<Compiled> {
        match self {
            Provider::Cpu => None,
            Provider::Cuda => compiled!("cuda", CUDA),
            Provider::TensorRt => compiled!("tensorrt", TensorRT),
            Provider::CoreMl => compiled!("coreml", CoreML),
            Provider::DirectMl => compiled!("directml", DirectML),
        }
    }
}

/// A provider that this build has.
struct Compiled {
    dispatch: ExecutionProviderDispatch,
    in_library: bool,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::CoreMl => "coreml",
            Provider::DirectMl => "directml",
        })
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Provider::ALL.into_iter().find(|p| p.to_string() == s).ok_or_else(|| {
            format!("'{s}' is not a provider; use cpu, cuda, tensorrt, coreml or directml")
        })
    }
}
