//! A folder that appears under its name only when it is complete.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lfm2vl_graphs::MANIFEST;
use tempfile::TempDir;

use crate::error::ExportError;

/// A folder in the making, beside where it will be; removed when dropped unfinished.
pub(super) struct NewFolder {
    temporary: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Starts the folder `target`.
    pub(super) fn create(target: &Path, force: bool) -> Result<Self, ExportError> {
        if target.exists() {
            let empty = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
            if !force && !empty {
                return Err(ExportError::OutputExists(target.to_owned()));
            }
            if !empty && !target.join(MANIFEST).is_file() {
                return Err(ExportError::NotAnExport(target.to_owned()));
            }
        }
        let write_error =
            |source: io::Error| ExportError::Write { path: target.to_owned(), source };
        let absolute = std::path::absolute(target).map_err(write_error)?;
        let parent = absolute.parent().unwrap_or(&absolute);
        fs::create_dir_all(parent).map_err(write_error)?;
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}.incomplete-"))
            .tempdir_in(parent)
            .map_err(write_error)?;
        Ok(NewFolder { temporary, target: absolute })
    }

    /// Where its files are written.
    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Makes a folder inside it.
    pub(super) fn create_subfolder(&self, name: &str) -> Result<PathBuf, ExportError> {
        let path = self.path().join(name);
        fs::create_dir(&path)
            .map_err(|source| ExportError::Write { path: path.clone(), source })?;
        Ok(path)
    }

    /// Gives the folder its name, in place of what was there.
    pub(super) fn publish(self) -> Result<(), ExportError> {
        let NewFolder { temporary, target } = self;
        let write_error = |source| ExportError::Write { path: target.clone(), source };
        // Temporary folders are private to their owner; an export is an ordinary folder.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))
                .map_err(write_error)?;
        }
        let replaced = if target.exists() {
            let old = temporary.path().with_extension("replaced");
            fs::rename(&target, &old).map_err(write_error)?;
            Some(old)
        } else {
            None
        };
        if let Err(error) = fs::rename(temporary.path(), &target) {
            if let Some(old) = replaced {
                // Put the earlier export back; the first error is the one to tell.
                let _ = fs::rename(old, &target);
            }
            return Err(write_error(error));
        }
        let _moved = temporary.keep();
        if let Some(old) = replaced {
            fs::remove_dir_all(&old)
                .map_err(|source| ExportError::Write { path: old.clone(), source })?;
        }
        Ok(())
    }
}
