//! Finding and loading the ONNX Runtime shared library.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError, RwLock},
};

use crate::written_by_others;
use ort::{device::Device, environment::Environment, session::builder::SessionBuilder};

/// The oldest ONNX Runtime whose API and operators the graphs and both programs need.
const OLDEST: &str = "1.31";

const REMEDY: &str = "run `cargo xtask setup`, or `pip install 'onnxruntime>=1.31'` in the active Python environment, or set ORT_DYLIB_PATH to the library";

/// Why ONNX Runtime is not available.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No library anywhere, or only where others may write.
    #[error("the ONNX Runtime library was not found{}; {REMEDY}", skipped(.0))]
    NotFound(Vec<Untrusted>),
    /// `ORT_DYLIB_PATH` names a file that does not exist.
    #[error("ORT_DYLIB_PATH names {0}, which does not exist; correct or unset it")]
    NoSuchFile(PathBuf),
    /// [`set_library`] came too late.
    #[error("another ONNX Runtime library was named or loaded before {0}; name it first")]
    TooLate(PathBuf),
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

/// A library that is not used.
#[derive(Debug, Clone)]
pub struct Untrusted {
    /// What others may write: the library or its folder.
    pub path: PathBuf,
    /// Who may.
    pub cause: &'static str,
}

fn skipped(untrusted: &[Untrusted]) -> String {
    let causes = untrusted.iter().map(|Untrusted { path, cause }| {
        format!(" ({} {cause}, so it is not used)", path.display())
    });
    causes.collect()
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

/// The library that the program has named.
static NAMED: OnceLock<PathBuf> = OnceLock::new();
/// Where the program looks besides.
static ABOVE: OnceLock<PathBuf> = OnceLock::new();

/// Names the ONNX Runtime library for this process, before anything has been loaded.
///
/// # Errors
/// [`LibraryError::TooLate`] when another one was named.
pub fn set_library(path: PathBuf) -> Result<(), LibraryError> {
    NAMED.set(path).map_err(LibraryError::TooLate)
}

/// Lets this process look for folders `.onnxruntime` in a folder and in all above it, too. For programs that are
/// run by hand: inside a service, the current folder may be anybody's.
pub fn search_library_above(folder: PathBuf) {
    // Only the first is looked at.
    let _ = ABOVE.set(folder);
}

/// Where the library is: what [`set_library`] names; else `ORT_DYLIB_PATH`; else beside the program, or in a folder
/// `.onnxruntime` there; else where [`search_library_above`] says; else in the
/// `onnxruntime` package of the active Python environment. Those beside the program and above a folder only where
/// nobody else may write.
///
/// # Errors
/// [`LibraryError::NoSuchFile`] when the variable is wrong, [`LibraryError::NotFound`] when
/// there is none.
pub fn library_path() -> Result<PathBuf, LibraryError> {
    if let Some(path) = NAMED.get() {
        return Ok(path.clone());
    }
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(LibraryError::NoSuchFile(path)) };
    }
    let program = env::current_exe().ok();
    let beside = program.iter().filter_map(|program| program.parent());
    let beside = beside.flat_map(|folder| [folder.to_owned(), folder.join(SETUP)]);
    let above = ABOVE.get().into_iter().flat_map(|start| start.ancestors());
    let mut untrusted = Vec::new();
    for library in beside.chain(above.map(|folder| folder.join(SETUP))).filter_map(library_in) {
        match not_trusted(&library) {
            None => return Ok(library),
            Some(cause) => untrusted.push(cause),
        }
    }
    from_python_environment().ok_or(LibraryError::NotFound(untrusted))
}

/// The folder that `cargo xtask setup` makes.
const SETUP: &str = ".onnxruntime";

fn not_trusted(library: &Path) -> Option<Untrusted> {
    let paths = [Some(library), library.parent()].into_iter().flatten();
    paths
        .filter_map(|path| {
            Some(Untrusted { path: path.to_owned(), cause: written_by_others(path)? })
        })
        .next()
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
    unix.chain([windows]).find_map(library_in)
}

/// The ONNX Runtime library in `folder`, whose file name may end in a version; the newest of several.
fn library_in(folder: PathBuf) -> Option<PathBuf> {
    let is_library = |name: &str| {
        name == "onnxruntime.dll"
            || (name.starts_with("libonnxruntime.")
                && (name.contains(".so") || name.ends_with(".dylib")))
    };
    let names = std::fs::read_dir(&folder)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let newest = names.filter(|name| is_library(name)).max_by_key(|name| version(name))?;
    Some(folder.join(newest))
}

/// The numbers in a file name.
fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_recognised_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let library = || library_in(dir.path().to_owned());
        for other in ["libonnxruntime_providers_shared.so", "onnxruntime_pybind11_state.so"] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(library(), None);
        for name in ["libonnxruntime.so", "libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0"] {
            std::fs::write(dir.path().join(name), "").unwrap();
            assert_eq!(library(), Some(dir.path().join(name)));
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libonnxruntime.so");
        std::fs::write(&library, "").unwrap();
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (library_mode, folder_mode, trusted) in
            [(0o644, 0o755, true), (0o666, 0o755, false), (0o644, 0o777, false)]
        {
            allow(&library, library_mode);
            allow(dir.path(), folder_mode);
            assert_eq!(not_trusted(&library).is_none(), trusted);
        }
        let error = LibraryError::NotFound(not_trusted(&library).into_iter().collect());
        assert!(error.to_string().contains("can be written by other users, so it is not used"));
    }
}
