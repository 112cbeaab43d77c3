//! Why an export failed.

use std::{io, path::PathBuf};

use lfm2vl::{chat::ChatError, image::ImageError};
use lfm2vl_graphs::{Graph, Precision, YamlError};

use crate::{SamplesError, SessionError, checkpoint::CheckpointError};

/// Why an export failed. Nothing is left of the output folder in any of these cases.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The checkpoint is not one that can be exported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The recipe or its contract is not valid.
    #[error(transparent)]
    Recipe(#[from] YamlError),
    /// The output folder exists.
    #[error("the output folder {0} already exists; give another one, or --force to replace it")]
    OutputExists(PathBuf),
    /// `--force` would remove something that is no export.
    #[error(
        "{0} exists and is not an exported folder (it has no lfm2vl.yaml), so --force does not replace it; give another folder"
    )]
    NotAnExport(PathBuf),
    /// A file could not be written.
    #[error("cannot write {path}: {source}; {}", remedy(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file of the checkpoint could not be read.
    #[error("cannot read {path}: {source}; check the checkpoint folder")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A JSON file of the checkpoint is not valid.
    #[error("{path} is not valid JSON ({source}); fetch the checkpoint again")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The checkpoint has no chat template.
    #[error(
        "{0} has neither chat_template.jinja nor a chat_template in chat_template.json or tokenizer_config.json; add the model's template"
    )]
    NoChatTemplate(PathBuf),
    /// The checkpoint has no settings of the image processor.
    #[error(
        "{0} has neither preprocessor_config.json nor an image_processor in processor_config.json; fetch the whole checkpoint"
    )]
    NoImageSettings(PathBuf),
    /// The image processor's settings cannot be used.
    #[error(transparent)]
    Settings(#[from] ImageError),
    /// The chat template or the names of image tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] ChatError),
    /// Image processing and the model are made for another patch size or number of patches.
    #[error(
        "the image setting '{name}' is {setting}, and the model's config.json says {model}; correct the one that is wrong"
    )]
    ImageSetting {
        /// The setting.
        name: &'static str,
        /// Its value.
        setting: usize,
        /// The value of the model.
        model: usize,
    },
    /// The tokenizer lacks a token that the image processor puts into prompts.
    #[error(
        "tokenizer.json has no token {0}, which stands for a part of images; correct it, or let the settings of images not ask for it"
    )]
    ImageToken(String),
    /// There are tokens without an embedding.
    #[error(
        "tokenizer.json has a token with the id {largest}, and the model's embedding has {rows} rows; give the tokenizer.json that belongs to the model, or resize the model's embedding before saving it"
    )]
    TokenizerSize {
        /// The largest id in `tokenizer.json`.
        largest: u64,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Two files say what stands for an image feature, and differently.
    #[error(
        "the image token has the id {tokenizer} in tokenizer.json and {config} in config.json; correct the one that is wrong"
    )]
    ImageTokenId {
        /// The id in `tokenizer.json`.
        tokenizer: i64,
        /// The id in `config.json`.
        config: u32,
    },
    /// A weight does not fit into 16 bits.
    #[error("tensor {tensor} has {value:e}, which float16 cannot hold; export fp32, q8 or q4")]
    HalfRange {
        /// Canonical name of the tensor.
        tensor: String,
        /// The value.
        value: f32,
    },
    /// A layer cannot be run for calibration.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The samples cannot be used.
    #[error(transparent)]
    Samples(#[from] SamplesError),
    /// A recipe asks for a calibrated method, and there is nothing to calibrate on.
    #[error(
        "the method gptq of {0} needs samples; give a folder of images or prompts with --calibration"
    )]
    NoCalibration(Precision),
    /// A file of the checkpoint could not be linked.
    #[error(
        "cannot make a hard link to {path}: {source}; give an output folder on the same disk, or export without --weights reference"
    )]
    Link {
        /// The checkpoint's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Weights that stay as they are have no other precision.
    #[error(
        "--weights reference leaves the weights as they are; use it with --precision fp32 alone"
    )]
    ReferencePrecision,
    /// Merged weights are in no file of the checkpoint.
    #[error(
        "--weights reference reads the checkpoint's own files, which do not have the adapter's part; leave --weights or the adapter out"
    )]
    ReferenceAdapter,
    /// Queries, keys and values cannot be one product.
    #[error("the recipe's 'packed_qkv' cannot be: {0}; leave it out")]
    Packed(&'static str),
    /// A report on graphs that the CPU does not run.
    #[error(
        "a report runs graphs on the CPU, which does not run those of a recipe with 'packed_qkv'; leave --report or 'packed_qkv' out"
    )]
    ReportPacked,
    /// The report's name is no page's.
    #[error("the report {0} is no name of a page; give a file that ends with .html")]
    ReportName(PathBuf),
    /// A report on graphs that do not take its samples.
    #[error(
        "a report runs images and prompts of any size, and this recipe fixes sizes; leave --report out, or use another recipe"
    )]
    ReportSizes,
    /// Views of a fixed size that do not fall into image tokens.
    #[error(
        "a view of {patches} patches does not fall into image tokens of {factor}x{factor}; make 'patches' in the recipe's sizes a multiple of {}", factor * factor
    )]
    Patches {
        /// Patches of a view.
        patches: usize,
        /// Patches along one side of an image token.
        factor: usize,
    },
    /// The contract lacks a graph of the recipe.
    #[error("contract '{contract}' does not describe the graph {graph}; correct the contract")]
    NotInContract {
        /// The contract.
        contract: String,
        /// The graph.
        graph: Graph,
    },
    /// Stopped by the user.
    #[error("the export was interrupted; nothing was written, run it again to export")]
    Interrupted,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "free some space or give a folder on another disk",
        io::ErrorKind::PermissionDenied => "give a folder that you may write to",
        _ => "check the output folder and its disk",
    }
}
