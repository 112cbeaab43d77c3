//! `lfm2vl.yaml`, the manifest at the root of an exported folder.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use serde_yaml::Value;
use sha2::{Digest, Sha256};

use crate::{Contract, Graph, Precision, Recipe, YamlError, one_line};

/// File name of the manifest.
pub const MANIFEST: &str = "lfm2vl.yaml";

/// What an exported folder holds and what it was made from. Keys that a reader does not know change nothing
/// that it needs to know: for whatever does, [`Manifest::FORMAT`] or the contract's version is raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest's format; earlier exports do not tell.
    #[serde(default = "first_format")]
    pub format: u32,
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
    /// Graphs and precisions that the file names and this version does not know: what has them is left out.
    #[serde(skip)]
    pub left_out: Vec<String>,
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

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not as an exporter writes it.
    #[error("{}; export the model again", one_line(.source))]
    Invalid {
        /// The parser's message.
        #[from]
        source: serde_yaml::Error,
    },
    /// It was written for readers that know more.
    #[error(
        "its {what} has the version {found}, and this program knows {known}; update this program"
    )]
    Newer {
        /// The format of the manifest, or a contract.
        what: String,
        /// The version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// Its graphs keep a contract that is not built in.
    #[error(transparent)]
    Contract(#[from] YamlError),
}

fn first_format() -> u32 {
    1
}

/// Takes out what names graphs or precisions that this version does not know; what that was.
fn take_out_unknown(manifest: &mut Value) -> Vec<String> {
    let mut left_out = Vec::new();
    let is_precision = |name: &Value| serde_yaml::from_value::<Precision>(name.clone()).is_ok();
    let is_graph = |name: &Value| serde_yaml::from_value::<Graph>(name.clone()).is_ok();
    let mut is_known = |entry: &Value| {
        // What is no name is an error later.
        let names = ["precision", "vision", "embedding", "decoder"];
        let precisions = names.into_iter().filter_map(|key| entry.get(key));
        let mut unknown: Vec<&str> =
            precisions.filter(|name| !is_precision(name)).filter_map(Value::as_str).collect();
        let graph = entry.get("graph").filter(|name| !is_graph(name)).and_then(Value::as_str);
        unknown.extend(graph);
        left_out.extend(unknown.iter().map(|&name| name.to_owned()));
        unknown.is_empty()
    };
    for list in ["graphs", "bundles"] {
        if let Some(Value::Sequence(entries)) = manifest.get_mut(list) {
            entries.retain(&mut is_known);
        }
    }
    if let Some(recipe) = manifest.get_mut("recipe") {
        if let Some(Value::Sequence(precisions)) = recipe.get_mut("precisions") {
            precisions.retain(|name| !name.is_string() || is_precision(name));
        }
        if let Some(Value::Mapping(quantization)) = recipe.get_mut("quantization") {
            quantization.retain(|name, _| !name.is_string() || is_precision(name));
        }
    }
    left_out.sort();
    left_out.dedup();
    left_out
}

impl Manifest {
    /// The format that this version writes.
    pub const FORMAT: u32 = 1;

    /// Reads the content of `lfm2vl.yaml`.
    ///
    /// # Errors
    /// [`ManifestError`] when it is no manifest, or newer than this version can read.
    pub fn read(content: &[u8]) -> Result<Self, ManifestError> {
        /// What has to be known before the rest is read.
        #[derive(Deserialize)]
        struct Versions {
            #[serde(default = "first_format")]
            format: u32,
            contract: String,
            contract_version: u32,
        }

        let newer = |what: String, found, known| ManifestError::Newer { what, found, known };
        let versions: Versions = serde_yaml::from_slice(content)?;
        if versions.format > Self::FORMAT {
            return Err(newer("format".to_owned(), versions.format, Self::FORMAT));
        }
        let known = Contract::builtin(&versions.contract)?.version;
        if versions.contract_version > known {
            let what = format!("contract '{}'", versions.contract);
            return Err(newer(what, versions.contract_version, known));
        }
        let mut value: Value = serde_yaml::from_slice(content)?;
        let left_out = take_out_unknown(&mut value);
        Ok(Manifest { left_out, ..serde_yaml::from_value(value)? })
    }

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
    Ok((bytes, hex::encode(sha.finalize())))
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

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
exporter: lfm2vl-export 0.9.0
contract: community
contract_version: 1
recipe: {recipe: new, contract: community, vision: fused, operators: standard, logits: last,
  last_hidden_state: false, later: 1, precisions: [q2, q4], quantization: {q4: {bits: 4, block_size: 32,
  symmetric: true, method: search, activations: int8, later: 2}, q2: {bits: 2}}}
source_fingerprint: x
graphs:
- {graph: vision_encoder, precision: fp32, files: [], later: 3}
- {graph: draft_decoder, precision: fp32, files: []}
- {graph: vision_encoder, precision: q2, files: []}
bundles:
- {name: a, vision: q2, embedding: q4, decoder: q4}
- {name: b, vision: q8, embedding: q4, decoder: q4}
files: []
later: [4]
";

    #[test]
    fn what_newer_versions_add_is_left_out() {
        let manifest = Manifest::read(MANIFEST.as_bytes()).unwrap();
        assert_eq!((manifest.format, manifest.graphs.len(), manifest.bundles.len()), (1, 1, 1));
        assert_eq!(manifest.bundles[0].name, "b");
        assert_eq!(manifest.recipe.precisions, [Precision::Q4]);
        assert_eq!(manifest.left_out, ["draft_decoder", "q2"]);
        let again = serde_yaml::to_string(&manifest).unwrap();
        let again = Manifest::read(again.as_bytes()).unwrap();
        assert_eq!(again, Manifest { left_out: Vec::new(), ..manifest });
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let error = |old: &str, new: &str| {
            assert!(MANIFEST.contains(old));
            Manifest::read(MANIFEST.replace(old, new).as_bytes()).unwrap_err().to_string()
        };
        assert!(error("exporter:", "format: 2\nexporter:").contains("format has the version 2"));
        let version = error("contract_version: 1", "contract_version: 7");
        assert!(version.contains("contract 'community' has the version 7"), "{version}");
        assert!(error("contract: community\ncon", "contract: other\ncon").contains("no contract"));
        assert!(error("files: [], later: 3", "file: []").contains("files"));
        assert!(error("vision: fused", "vision: both").contains("both"));
        let no_name =
            error("graph: vision_encoder, precision: fp32", "graph: [1], precision: fp32");
        assert!(no_name.contains("sequence"), "{no_name}");
    }
}
