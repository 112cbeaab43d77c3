//! The project's own kernels for x86 processors, in a library beside the program or beside ONNX
//! Runtime.

use std::{
    env::{
        self,
        consts::{DLL_PREFIX, DLL_SUFFIX},
    },
    path::{Path, PathBuf},
};

use lfm2vl_onnxruntime::{library_path, written_by_others};
use serde::Deserialize;

use super::{Plugin, Unavailable};

/// Faster kernels for quantized weights and for vision's attention on x86 processors: the library that
/// the crate `lfm2vl-provider` builds. What it does not take stays with ONNX Runtime's own kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernels {
    /// The library. By default that beside the program, else that beside the ONNX Runtime library.
    pub library: Option<PathBuf>,
    /// What to use of the processor: portable, avx2, avx-vnni, avx512-vnni or amx. By default the best
    /// that it has.
    pub instructions: Option<String>,
}

impl Kernels {
    /// Whether the processor has instructions for them, and there is a library to load by default, whatever
    /// becomes of that.
    pub(super) fn are_there() -> bool {
        has_avx2() && default_library().is_some()
    }

    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let instructions = self.instructions.iter();
        instructions.map(|value| ("instructions".to_owned(), value.clone())).collect()
    }

    /// The plugin that they are.
    pub(super) fn plugin(&self) -> Result<Plugin, Unavailable> {
        if self.instructions.is_none() && !has_avx2() {
            return Err(Unavailable {
                cause: "this processor has no AVX2, without which they are slower".to_owned(),
                remedy: "use --provider cpu",
            });
        }
        let library = match &self.library {
            Some(library) => library.clone(),
            None => {
                let library = default_library().ok_or_else(|| Unavailable {
                    cause: format!(
                        "{} is neither beside the program nor beside the ONNX Runtime library",
                        file_name()
                    ),
                    remedy: "run `cargo xtask setup`, name it (kernels.library=PATH), or use --provider cpu",
                })?;
                refuse_if_others_write(&library)?
            }
        };
        let settings = self.settings().into_iter().collect();
        Ok(Plugin { settings, ..Plugin::new(library) })
    }
}

/// The least that the kernels are faster with. Other processors have plain ones, which are for tests.
fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

fn file_name() -> String {
    format!("{DLL_PREFIX}onnxruntime_providers_lfm2vl{DLL_SUFFIX}")
}

/// The library beside the program, else beside the ONNX Runtime library.
fn default_library() -> Option<PathBuf> {
    let beside = [env::current_exe().ok(), library_path().ok()];
    let mut folders = beside.iter().flatten().filter_map(|path| path.parent());
    folders.find_map(|folder| Some(folder.join(file_name())).filter(|library| library.is_file()))
}

/// The library by its own path. What is loaded without being named runs with the rights of this process,
/// so who may write it, or put another in its place, must have them, too.
fn refuse_if_others_write(library: &Path) -> Result<PathBuf, Unavailable> {
    let itself = dunce::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    for path in [Some(itself.as_path()), itself.parent(), library.parent()].into_iter().flatten() {
        if let Some(cause) = written_by_others(path) {
            return Err(Unavailable {
                cause: format!("{} {cause}", path.display()),
                remedy: "let only this user write there (chmod go-w, chown), name the library (kernels.library=PATH), or use --provider cpu",
            });
        }
    }
    Ok(itself)
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn what_others_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(file_name());
        fs::write(&library, "").unwrap();
        let allow = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(&library, 0o644);
        assert!(refuse_if_others_write(&library).is_ok());
        allow(&library, 0o664);
        let refused = refuse_if_others_write(&library).unwrap_err();
        assert!(refused.to_string().contains("can be written by other users"), "{refused}");
        allow(&library, 0o644);
        allow(folder.path(), 0o777);
        assert!(refuse_if_others_write(&library).is_err());
    }
}
