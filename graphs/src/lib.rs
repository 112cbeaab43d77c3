//! What the exporter and the runtime agree on: the contracts of the graphs, the recipes, and the
//! manifest of an exported folder.
//!
//! The YAML files beside this crate are the single source of truth; they are embedded here.
//!
//! ```
//! use lfm2vl_graphs::{Contract, Graph, Recipe};
//!
//! # fn main() -> Result<(), lfm2vl_graphs::YamlError> {
//! let recipe = Recipe::builtin("portable")?;
//! assert_eq!(Contract::graphs(&recipe)[0], Graph::VisionEncoder);
//! assert_eq!(Contract::builtin(&recipe.contract)?.version, 1);
//! # Ok(())
//! # }
//! ```

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod contract;
mod manifest;
mod provider;
mod quantization;
mod recipe;

pub use contract::{
    Contract, Dim, Dtype, Graph, GraphSpec, IN_PLACE, LayerKind, ModelDims, Tensor,
};
pub use manifest::{
    Bundle, FileError, GraphFiles, MANIFEST, Manifest, ManifestError, ManifestFile, size_and_sha256,
};
pub use provider::{OperatorSupport, ProviderTable};
pub use quantization::{
    Activations, Bits, BlockSize, Exception, Method, Module, Quantization, WeightFormat,
};
pub use recipe::{
    CacheUpdate, ConvState, FixedSizes, Fusion, GeluForm, Logits, Operators, Precision, Recipe,
    RecipeSource, TiedWeights, VisionLayout,
};

/// A YAML file that could not be read as what it should be.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    /// Not valid YAML, an unknown key, or a wrong value; the message gives line and column.
    #[error(
        "{what} is not valid: {}; correct it or use one of the built-in files", one_line(.source)
    )]
    Invalid {
        /// The file or the built-in name.
        what: String,
        /// The parser's message.
        source: serde_yaml::Error,
    },
    /// A value that fits its key but not the model or the other keys.
    #[error("{what} is not valid: {message} at line {line} column {column}; correct it")]
    Mismatch {
        /// The file or the built-in name.
        what: String,
        /// What is wrong.
        message: String,
        /// Line of the value, from 1.
        line: usize,
        /// Column of the value, from 1.
        column: usize,
    },
    /// The file could not be read.
    #[error("cannot read {path}: {source}; check that the file exists and can be read")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No built-in file of that name.
    #[error("there is no {kind} named '{name}'; use {known}{}", if *.kind == "recipe" { ", or the path of a YAML file" } else { "" })]
    Unknown {
        /// "recipe", "contract" or "provider table".
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// What a parser says, which may quote line breaks of the file.
fn one_line(error: &serde_yaml::Error) -> String {
    error.to_string().replace(char::is_control, " ")
}
