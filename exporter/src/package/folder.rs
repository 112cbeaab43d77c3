//! A folder that appears under its name only when it is complete.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use lfm2vl_graphs::MANIFEST;
use tempfile::TempDir;

use crate::error::ExportError;

/// A folder in the making, beside where it will be; removed when dropped unfinished.
pub(super) struct NewFolder {
    temporary: TempDir,
    target: PathBuf,
    force: bool,
    /// Locked as long as this process lives, for others to see that it does.
    _lock: Option<File>,
}

impl NewFolder {
    /// Starts the folder `target`, and removes what killed exports have left beside it.
    pub(super) fn create(target: &Path, force: bool) -> Result<Self, ExportError> {
        let write_error =
            |source: io::Error| ExportError::Write { path: target.to_owned(), source };
        let absolute = std::path::absolute(target).map_err(write_error)?;
        let siblings = Siblings::of(&absolute);
        siblings.recover(&absolute);
        if target.exists() {
            let empty = is_empty(target);
            if !force && !empty {
                return Err(ExportError::OutputExists(target.to_owned()));
            }
            if !empty && !target.join(MANIFEST).is_file() {
                return Err(ExportError::NotAnExport(target.to_owned()));
            }
        }
        fs::create_dir_all(&siblings.parent).map_err(write_error)?;
        siblings.clean_up();
        let temporary = tempfile::Builder::new()
            .prefix(&siblings.incomplete)
            .tempdir_in(&siblings.parent)
            .map_err(write_error)?;
        let lock = File::open(temporary.path()).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(NewFolder { temporary, target: absolute, force, _lock: lock })
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
        let NewFolder { temporary, target, force, _lock } = self;
        let write_error = |source| ExportError::Write { path: target.clone(), source };
        // Temporary folders are private to their owner; an export is an ordinary folder.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))
                .map_err(write_error)?;
        }
        if !target.exists() || is_empty(&target) {
            if let Err(error) = fs::rename(temporary.path(), &target) {
                // Another export was first.
                if target.exists() && !is_empty(&target) && !force {
                    return Err(ExportError::OutputExists(target));
                }
                return Err(write_error(error));
            }
            let _moved = temporary.keep();
            return Ok(());
        }
        if !force {
            return Err(ExportError::OutputExists(target));
        }
        // What has the temporary name now is the earlier export, and goes away with it.
        if exchange(temporary.path(), &target).is_ok() {
            return Ok(());
        }
        let siblings = Siblings::of(&target);
        let old = tempfile::Builder::new()
            .prefix(&siblings.replaced)
            .tempdir_in(&siblings.parent)
            .map_err(write_error)?;
        // A folder takes the place of an empty one.
        fs::rename(&target, old.path()).map_err(write_error)?;
        if let Err(error) = fs::rename(temporary.path(), &target) {
            // Put the earlier export back; the first error is the one to tell.
            let _ = fs::rename(old.path(), &target);
            return Err(write_error(error));
        }
        let _moved = temporary.keep();
        Ok(())
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Lets two folders change places, where the system can do that at once.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The names beside a folder under which exports to it work.
struct Siblings {
    parent: PathBuf,
    /// How folders in the making begin.
    incomplete: OsString,
    /// How earlier exports begin that are being replaced.
    replaced: OsString,
}

/// A folder in the making that is younger may be one whose export has not locked it yet.
const SETTLED: Duration = Duration::from_secs(60);

impl Siblings {
    fn of(target: &Path) -> Self {
        let begin = |what: &str| {
            let name = target.file_name().unwrap_or_default();
            [".".as_ref(), name, what.as_ref()].into_iter().collect()
        };
        Siblings {
            parent: target.parent().unwrap_or(target).to_owned(),
            incomplete: begin(".incomplete-"),
            replaced: begin(".replaced"),
        }
    }

    fn beginning_with(&self, prefix: &OsString) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        let prefix = prefix.as_encoded_bytes();
        entries
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix))
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Where an export was killed while it replaced another one, that one gets its name back.
    fn recover(&self, target: &Path) {
        if target.exists() {
            return;
        }
        let exports = self.beginning_with(&self.replaced);
        if let Some(export) = exports.iter().find(|path| path.join(MANIFEST).is_file()) {
            // If it fails, there is no earlier export.
            let _ = fs::rename(export, target);
        }
    }

    /// Removes what killed exports have left. Whatever cannot be removed is in nobody's way.
    fn clean_up(&self) {
        for folder in self.beginning_with(&self.replaced) {
            let _ = fs::remove_dir_all(folder);
        }
        for folder in self.beginning_with(&self.incomplete) {
            let age = fs::metadata(&folder).and_then(|metadata| metadata.modified());
            let age = age.map(|modified| SystemTime::now().duration_since(modified));
            let is_settled = age.is_ok_and(|age| age.is_ok_and(|age| age > SETTLED));
            let is_dead = File::open(&folder).is_ok_and(|folder| folder.try_lock().is_ok());
            if is_settled && is_dead {
                let _ = fs::remove_dir_all(folder);
            }
        }
    }
}
