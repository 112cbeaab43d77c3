//! The project's own kernels for x86 processors, in a library beside the program or beside ONNX
//! Runtime.

use std::{
    env::{
        self,
        consts::{DLL_PREFIX, DLL_SUFFIX},
    },
    fs,
    path::{Path, PathBuf},
};

use lfm2vl_graphs::library_path;
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
    /// Whether there is a library to load by default, whatever becomes of that. Other processors have
    /// plain kernels only, which are for tests.
    pub(super) fn are_there() -> bool {
        cfg!(target_arch = "x86_64") && default_library().is_some()
    }

    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let instructions = self.instructions.iter();
        instructions.map(|value| ("instructions".to_owned(), value.clone())).collect()
    }

    /// The plugin that they are.
    pub(super) fn plugin(&self) -> Result<Plugin, Unavailable> {
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
                refuse_if_others_write(&library)?;
                library
            }
        };
        let settings = self.settings().into_iter().collect();
        Ok(Plugin { settings, ..Plugin::new(library) })
    }
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

/// What is loaded without being named runs with the rights of this process: who may write it must
/// have them, too.
fn refuse_if_others_write(library: &Path) -> Result<(), Unavailable> {
    let library = fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    for path in [Some(library.as_path()), library.parent()].into_iter().flatten() {
        if others_write(path) {
            return Err(Unavailable {
                cause: format!("{} can be written by other users", path.display()),
                remedy: "take that right away (chmod go-w), name the library (kernels.library=PATH), or use --provider cpu",
            });
        }
    }
    Ok(())
}

#[cfg(unix)]
fn others_write(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    const GROUP_OR_OTHERS: u32 = 0o022;
    let Ok(metadata) = fs::metadata(path) else { return true };
    // The program's own file tells who this process belongs to without asking the system.
    let own = env::current_exe().and_then(fs::metadata).map(|program| program.uid());
    let is_owned = metadata.uid() == 0 || own.is_ok_and(|own| own == metadata.uid());
    metadata.mode() & GROUP_OR_OTHERS != 0 || !is_owned
}

/// Folders of programs are the administrators' on other systems.
#[cfg(not(unix))]
fn others_write(_: &Path) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
