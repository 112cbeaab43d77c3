//! `lfm2vl.yaml`, the manifest at the root of an exported folder.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Graph, Precision, Recipe};

/// File name of the manifest.
pub const MANIFEST: &str = "lfm2vl.yaml";

/// What an exported folder holds and what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Program and version that wrote the folder.
    pub exporter: String,
    /// Name of the contract that the graphs keep.
    pub contract: String,
    /// Version of that contract.
    pub contract_version: u32,
    /// The recipe they were built from.
    pub recipe: Recipe,
    /// The oldest ONNX Runtime that loads all graphs, such as `1.30`; earlier exports do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<String>,
    /// sha256 over the checkpoint's config and safetensors headers: which checkpoint it was.
    pub source_fingerprint: String,
    /// The graphs, each in one precision.
    pub graphs: Vec<GraphFiles>,
    /// Recommended sets of graphs, the best first.
    pub bundles: Vec<Bundle>,
    /// The other files of the folder (configs, tokenizer, template).
    pub files: Vec<ManifestFile>,
}

/// One graph in one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphFiles {
    /// Which graph.
    pub graph: Graph,
    /// Precision of its weights.
    pub precision: Precision,
    /// The `.onnx` file first, then its external data.
    pub files: Vec<ManifestFile>,
}

/// One file of the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path from the folder's root, with forward slashes.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Lower-case hex sha256 of the content.
    pub sha256: String,
}

/// A file that is not as the manifest says.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}; fetch or export the folder again")]
    Read {
        /// Its path in the folder.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// It is no file of the folder.
    #[error("lfm2vl.yaml lists {path}, which is no file of the folder; fetch or export it again")]
    Outside {
        /// The path.
        path: String,
    },
    /// It has another content.
    #[error(
        "{path} is not the file that was exported: it has {bytes} bytes and sha256 {sha256}, and lfm2vl.yaml says {expected_bytes} and {expected}; fetch or export the folder again"
    )]
    Differs {
        /// Its path in the folder.
        path: String,
        /// Its size.
        bytes: u64,
        /// Its sha256.
        sha256: String,
        /// What its size should be.
        expected_bytes: u64,
        /// What its sha256 should be.
        expected: String,
    },
}

impl Manifest {
    /// Every file that the manifest lists.
    pub fn all_files(&self) -> impl Iterator<Item = &ManifestFile> {
        self.graphs.iter().flat_map(|graph| &graph.files).chain(&self.files)
    }

    /// Reads every file below `root` and compares it.
    ///
    /// # Errors
    /// [`FileError`] names the first file that is missing or different.
    pub fn check_files(&self, root: &Path) -> Result<(), FileError> {
        for file in self.all_files() {
            let path = file.path.clone();
            let plain = Path::new(&path).components().all(|c| matches!(c, Component::Normal(_)));
            if !plain {
                return Err(FileError::Outside { path });
            }
            let metadata = root.join(&path).metadata();
            let metadata =
                metadata.map_err(|source| FileError::Read { path: path.clone(), source })?;
            if !metadata.is_file() {
                return Err(FileError::Outside { path });
            }
            let (bytes, sha256) = size_and_sha256(&root.join(&path))
                .map_err(|source| FileError::Read { path: path.clone(), source })?;
            if (bytes, &sha256) != (file.bytes, &file.sha256) {
                let (expected_bytes, expected) = (file.bytes, file.sha256.clone());
                return Err(FileError::Differs { path, bytes, sha256, expected_bytes, expected });
            }
        }
        Ok(())
    }
}

/// Size and lower-case hex sha256 of a file.
///
/// # Errors
/// When the file cannot be read.
pub fn size_and_sha256(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut sha, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sha.update(&buffer[..count]);
        bytes += count as u64;
    }
    Ok((bytes, sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// A set of graphs that go well together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// Name for `--precision`.
    pub name: String,
    /// Precision of the vision graphs.
    pub vision: Precision,
    /// Precision of the token embedding.
    pub embedding: Precision,
    /// Precision of the decoder.
    pub decoder: Precision,
}

impl Bundle {
    /// The precision of a graph.
    pub fn precision(&self, graph: Graph) -> Precision {
        match graph.weights() {
            Graph::EmbedTokens => self.embedding,
            Graph::Decoder => self.decoder,
            _ => self.vision,
        }
    }
}
