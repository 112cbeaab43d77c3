//! Finding and loading the ONNX Runtime shared library.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError, RwLock},
};

use ort::{device::Device, environment::Environment, session::builder::SessionBuilder};

/// The oldest ONNX Runtime whose API and operators the graphs and both programs need.
const OLDEST: &str = "1.31";

const REMEDY: &str = "run `cargo xtask setup`, or `pip install 'onnxruntime>=1.31'` in the active Python environment, or set ORT_DYLIB_PATH to the library";

/// Why ONNX Runtime is not available.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No library anywhere.
    #[error("the ONNX Runtime library was not found; {REMEDY}")]
    NotFound,
    /// `ORT_DYLIB_PATH` names a file that does not exist.
    #[error("ORT_DYLIB_PATH names {0}, which does not exist; correct or unset it")]
    NoSuchFile(PathBuf),
    /// The library could not be loaded.
    #[error("the ONNX Runtime library {path} cannot be loaded ({reason}); {REMEDY}")]
    CannotLoad {
        /// The library.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// The library is older than needed.
    #[error(
        "the ONNX Runtime library {path} is version {found}, and {OLDEST} or newer is needed; {REMEDY}"
    )]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
}

/// The process-wide ONNX Runtime environment; the library is loaded on the first call.
///
/// # Errors
/// [`LibraryError`] when the library is missing, broken or too old; the first outcome is kept.
pub fn environment() -> Result<&'static Environment, LibraryError> {
    static ENVIRONMENT: OnceLock<Result<Environment, LibraryError>> = OnceLock::new();
    ENVIRONMENT
        .get_or_init(|| {
            let path = library_path()?;
            let cannot_load =
                |reason: String| LibraryError::CannotLoad { path: path.clone(), reason };
            let builder = ort::init_from(&path).map_err(|error| match error {
                ort::LoadDynamicError::BadVersion { version_str, .. } => {
                    LibraryError::TooOld { path: path.clone(), found: version_str }
                }
                other => cannot_load(other.to_string()),
            })?;
            let environment =
                builder.with_name("lfm2vl").build().map_err(|e| cannot_load(e.to_string()))?;
            environment.set_log_level(ort::logging::LogLevel::Fatal);
            Ok(environment)
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// Adds the CPU to a session, behind the providers that it has. Where a session names none at all,
/// `ort` lets ONNX Runtime choose: CoreML on a Mac, or any plugin that is loaded.
///
/// # Errors
/// ONNX Runtime's.
pub fn with_cpu(environment: &Environment, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    let _reading = DEVICES.read().unwrap_or_else(PoisonError::into_inner);
    let is_cpu = |device: &Device<'_>| device.ep().is_ok_and(|name| name == "CPUExecutionProvider");
    Ok(builder.with_devices(environment.devices().filter(is_cpu), None)?)
}

/// ONNX Runtime's list of devices: whoever loads a plugin changes it, and whoever asks for devices
/// reads it without ONNX Runtime guarding that.
pub static DEVICES: RwLock<()> = RwLock::new(());

/// Where the library is: `ORT_DYLIB_PATH`; else a folder `.onnxruntime` (made by
/// `cargo xtask setup`) in the program's or the current folder or any parent; else the
/// `onnxruntime` package of the active Python environment.
///
/// # Errors
/// [`LibraryError::NoSuchFile`] when the variable is wrong, [`LibraryError::NotFound`] when
/// there is none.
pub fn library_path() -> Result<PathBuf, LibraryError> {
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(LibraryError::NoSuchFile(path)) };
    }
    let starts = [env::current_exe().ok(), env::current_dir().ok()];
    let from_setup = starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .find_map(|folder| library_in(&folder.join(".onnxruntime")));
    from_setup.or_else(from_python_environment).ok_or(LibraryError::NotFound)
}

/// The library of the `onnxruntime` package in the active virtual or conda environment.
fn from_python_environment() -> Option<PathBuf> {
    let root = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().find_map(env::var_os).map(PathBuf::from)?;
    let windows = root.join("Lib/site-packages/onnxruntime/capi");
    let unix = std::fs::read_dir(root.join("lib"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|python| python.path().join("site-packages/onnxruntime/capi"));
    unix.chain([windows]).find_map(|capi| library_in(&capi))
}

/// The ONNX Runtime library in `folder`, whose file name may end in a version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let is_library = |name: &str| {
        name == "onnxruntime.dll"
            || (name.starts_with("libonnxruntime.")
                && (name.contains(".so") || name.ends_with(".dylib")))
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_library))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_recognised_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for other in ["libonnxruntime_providers_shared.so", "onnxruntime_pybind11_state.so"] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(library_in(dir.path()), None);
        let library = dir.path().join("libonnxruntime.so.1.32.0");
        std::fs::write(&library, "").unwrap();
        assert_eq!(library_in(dir.path()), Some(library));
    }
}
