//! The folder of one model in the cache that huggingface_hub and others share. The layout is that
//! of huggingface_hub's `file_download.py`:
//!
//! ```text
//! models--LiquidAI--LFM2-VL-450M/
//!   blobs/ETAG                    contents
//!   refs/main                     the newest commit that was downloaded
//!   snapshots/COMMIT/config.json  a link to ../../blobs/ETAG, or a copy where links cannot be made
//!   .no_exist/COMMIT/LICENSE      empty: the commit has no such file
//! ```
//!
//! Files are written under names of their own beside the final one and then renamed, so several
//! programs may write the same cache at once.

use std::{
    fs::{self, File},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::{
    HubError,
    names::{BlobName, CommitId},
};

/// The folder of one model.
pub(super) struct ModelCache {
    folder: PathBuf,
    symlinks: bool,
}

impl ModelCache {
    /// The folder of the model `id` in `cache`; nothing is made yet.
    pub(super) fn new(cache: &Path, id: &str, symlinks: bool) -> Self {
        ModelCache { folder: cache.join(format!("models--{}", id.replace('/', "--"))), symlinks }
    }

    /// The newest commit that was downloaded.
    pub(super) fn latest(&self) -> Option<CommitId> {
        CommitId::parse(fs::read_to_string(self.latest_path()).ok()?.trim())
    }

    /// Remembers the newest commit.
    pub(super) fn set_latest(&self, commit: &CommitId) -> Result<(), HubError> {
        if self.latest().as_ref() == Some(commit) {
            return Ok(());
        }
        let path = self.latest_path();
        write(&path, |file| file.write_all(commit.as_str().as_bytes()))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &CommitId) -> PathBuf {
        self.folder.join("snapshots").join(commit.as_str())
    }

    /// A file of a commit, where it is there with its content.
    pub(super) fn file(&self, commit: &CommitId, name: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(name)).filter(|path| path.is_file())
    }

    /// Whether the commit is known to have no such file.
    pub(super) fn is_absent(&self, commit: &CommitId, name: &str) -> bool {
        self.absent_path(commit, name).is_file()
    }

    /// Remembers that the commit has no such file.
    pub(super) fn set_absent(&self, commit: &CommitId, name: &str) {
        // It saves a question the next time and nothing else, so it may fail.
        let _ = write(&self.absent_path(commit, name), |_| Ok(()));
    }

    /// The path of a blob, where there is one of this size.
    pub(super) fn blob(&self, name: &BlobName, size: Option<u64>) -> Option<PathBuf> {
        let path = self.blob_path(name);
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        size.is_none_or(|size| metadata.len() == size).then_some(path)
    }

    /// Starts a blob.
    pub(super) fn create_blob(&self, name: &BlobName) -> Result<NewBlob, HubError> {
        let path = self.blob_path(name);
        Ok(NewBlob { file: create_beside(&path)?, length: 0, path })
    }

    /// Makes a blob a file of a commit.
    pub(super) fn link(
        &self,
        commit: &CommitId,
        name: &str,
        blob: &Path,
    ) -> Result<PathBuf, HubError> {
        let path = self.snapshot(commit).join(name);
        if path.is_file() {
            return Ok(path);
        }
        let write_error = |source| HubError::Write { path: path.clone(), source };
        fs::create_dir_all(self.snapshot(commit)).map_err(write_error)?;
        // A link may be left whose blob was removed.
        if path.is_symlink() && !path.exists() {
            fs::remove_file(&path).map_err(write_error)?;
        }
        if self.symlinks {
            let up = Path::new("..").join("..");
            let target = up.join("blobs").join(blob.file_name().unwrap_or_default());
            let linked = symlink(&target, &path);
            // Where it was not made, another program was first, or the system makes none.
            if linked.is_ok() || path.is_file() {
                return Ok(path);
            }
        }
        write(&path, |file| io::copy(&mut File::open(blob)?, file).map(drop))?;
        Ok(path)
    }

    fn latest_path(&self) -> PathBuf {
        self.folder.join("refs").join("main")
    }

    fn absent_path(&self, commit: &CommitId, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit.as_str()).join(name)
    }

    fn blob_path(&self, name: &BlobName) -> PathBuf {
        self.folder.join("blobs").join(name.as_str())
    }
}

/// A blob in the making; removed when dropped unfinished.
pub(super) struct NewBlob {
    file: NamedTempFile,
    length: u64,
    path: PathBuf,
}

impl NewBlob {
    /// Bytes written.
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|source| self.write_error(source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Starts again.
    pub(super) fn clear(&mut self) -> Result<(), HubError> {
        self.length = 0;
        let cleared = self.file.as_file().set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|source| self.write_error(source))
    }

    /// Gives it its name.
    pub(super) fn finish(self) -> Result<PathBuf, HubError> {
        persist(self.file, &self.path)?;
        Ok(self.path)
    }

    fn write_error(&self, source: io::Error) -> HubError {
        HubError::Write { path: self.path.clone(), source }
    }
}

/// Writes a whole file.
fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), HubError> {
    let mut file = create_beside(path)?;
    content(file.as_file_mut())
        .map_err(|source| HubError::Write { path: path.to_owned(), source })?;
    persist(file, path)
}

/// A file of a name of its own in the folder of `path`, which is made.
fn create_beside(path: &Path) -> Result<NamedTempFile, HubError> {
    let write_error = |source| HubError::Write { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(write_error)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".incomplete");
    // A cache may be shared by several users: what they may read is for the umask to say.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(write_error)
}

/// Renames a finished file to `path`.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), HubError> {
    match file.persist(path) {
        Ok(_) => Ok(()),
        // Windows does not replace a file that another program has open. It wrote the same.
        Err(error) if error.error.kind() == io::ErrorKind::PermissionDenied && path.is_file() => {
            Ok(())
        }
        Err(error) => Err(HubError::Write { path: path.to_owned(), source: error.error }),
    }
}

fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, path);
    #[cfg(windows)]
    return std::os::windows::fs::symlink_file(target, path);
    #[cfg(not(any(unix, windows)))]
    return Err(io::Error::from(io::ErrorKind::Unsupported));
}
