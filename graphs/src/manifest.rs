//! `lfm2vl.yaml`, the manifest at the root of an exported folder.

use serde::{Deserialize, Serialize};

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
