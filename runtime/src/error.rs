//! Errors of the library.

use std::path::PathBuf;

use lfm2vl_graphs::{Graph, LibraryError, Precision, YamlError};

use crate::{PromptError, chat::ChatError, image::ImageError};

/// Why the library could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not exist.
    #[error("{0} is not a folder; give the folder that lfm2vl-export wrote")]
    NoFolder(PathBuf),
    /// A file of the folder could not be read.
    #[error("cannot read {path} ({message}); export the model again")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// A graph is not there in any precision.
    #[error("{folder} has no graph {graph}; export the model again, with a recipe that has it")]
    NoGraph {
        /// The folder.
        folder: PathBuf,
        /// The graph.
        graph: Graph,
    },
    /// A graph is not there in the precision that was asked for, or that the folder recommends.
    #[error("{folder} has {graph} in {available} and not in {wanted}; ask for one of these")]
    NoPrecision {
        /// The folder.
        folder: PathBuf,
        /// The graph.
        graph: Graph,
        /// The precision that was asked for.
        wanted: Precision,
        /// Those that are there.
        available: String,
    },
    /// The folder has no such set of graphs.
    #[error("{folder} has no bundle '{wanted}', {available}; ask for one of these")]
    NoBundle {
        /// The folder.
        folder: PathBuf,
        /// The name that was asked for.
        wanted: String,
        /// Those that are there.
        available: String,
    },
    /// A graph does not keep the contract.
    #[error("{graph} does not keep the contract: {difference}; export the model again")]
    Contract {
        /// The graph.
        graph: Graph,
        /// The input or output that differs, and how.
        difference: String,
    },
    /// Drafts need another decoder than the one that is loaded.
    #[error(
        "the engine was loaded without speculation, which prompt_lookup_num_tokens needs; load it with EngineBuilder::speculation"
    )]
    NoSpeculation,
    /// The decoder's sizes change from step to step, or it does not read and write in place.
    #[error(
        "graph_capture needs a decoder of fixed sizes with its decoder_prefill, without speculation, that the provider runs in place; export with --recipe cuda-graph, or leave the setting out"
    )]
    NothingToRecord,
    /// Conversations cannot be run together.
    #[error(
        "the decoder cannot run conversations of different lengths together; export with ONNX Runtime's operators and free sizes, as in the recipe 'default'"
    )]
    NoBatch,
    /// A batch has one decoder.
    #[error("the conversation is of another engine than the batch; make both from the same one")]
    OtherEngine,
    /// ONNX Runtime is not available.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A built-in contract or recipe is wrong.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A graph could not be loaded or run.
    #[error(
        "ONNX Runtime cannot run {graph} ({message}); export the model again, and report this if it stays"
    )]
    Run {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's message.
        message: String,
    },
    /// An execution provider cannot be used.
    #[error("the provider {provider} cannot be used: {cause}; {remedy}")]
    Provider {
        /// Its name.
        provider: String,
        /// What is missing.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An image is not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The conversation cannot be turned into tokens.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The prompt is longer than the model's context.
    #[error(
        "the prompt has {tokens} tokens and the model's context {context}; shorten it, or use fewer image tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// There is nothing to answer.
    #[error("the conversation has no message to answer; push one first")]
    NoMessage,
    /// The graphs give other features than the prompt has places for.
    #[error(
        "the vision graph gave {features} image features for {places} places in the prompt; the folder's files do not belong together"
    )]
    FeatureCount {
        /// Rows of the features.
        features: usize,
        /// Placeholders of the prompt.
        places: usize,
    },
    /// A view does not fit a vision graph of fixed size.
    #[error(
        "a view of the image has {view} patches and the vision graph takes {graph}; allow fewer image tokens, or export with more 'patches' in the recipe's sizes"
    )]
    TooManyPatches {
        /// Patches of the view.
        view: usize,
        /// Patches that the graph takes.
        graph: usize,
    },
    /// The decoder was exported without its hidden state.
    #[error("the decoder has no output last_hidden_state; export the model with --recipe features")]
    NoHiddenState,
    /// A setting of generation makes no sense.
    #[error("the generation setting '{name}' is {value}, and {expected}; correct it")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}

impl From<PromptError> for Error {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::NoFolder(folder) => Error::NoFolder(folder),
            PromptError::Image(error) => Error::Image(error),
            PromptError::Chat(error) => Error::Chat(error),
        }
    }
}
