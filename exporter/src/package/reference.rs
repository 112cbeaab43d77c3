//! Weights that stay in the checkpoint: its files, linked into the folder of the graphs. ONNX Runtime
//! reads a safetensors file at any place, but no file outside of a graph's own folder, and no
//! symbolic link that leads there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use lfm2vl_graphs::size_and_sha256;

use crate::{checkpoint::Checkpoint, error::ExportError, onnx::WrittenFile};

/// Makes hard links to the checkpoint's safetensors files in `folder`.
pub(super) fn link(
    checkpoint: &Checkpoint,
    folder: &Path,
) -> Result<Vec<WrittenFile>, ExportError> {
    let stored = checkpoint.stored_tensors();
    let files: BTreeMap<String, PathBuf> =
        stored.map(|tensor| (tensor.file_name(), tensor.path().to_owned())).collect();
    files
        .into_iter()
        .map(|(name, path)| {
            let link_error = |source| ExportError::Link { path: path.clone(), source };
            // In the hub's cache the files are symbolic links themselves.
            let real = dunce::canonicalize(&path).map_err(link_error)?;
            fs::hard_link(&real, folder.join(&name)).map_err(link_error)?;
            let read_error = |source| ExportError::Read { path: path.clone(), source };
            let (bytes, sha256) = size_and_sha256(&real).map_err(read_error)?;
            Ok(WrittenFile { name, bytes, sha256 })
        })
        .collect()
}
