//! Errors of the library.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lfm2vl_graphs::{Graph, Precision, YamlError};
use lfm2vl_onnxruntime::LibraryError;

use crate::{ProcessorError, chat::ChatError, image::ImageError};

/// What an [`Error`] comes from, and so who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The folder, its graphs, the ONNX Runtime library or a provider: whoever deploys the model.
    Setup,
    /// The messages, images or settings of a request: whoever asks.
    InvalidRequest,
    /// A prompt beyond the context: whoever asks.
    TooLong,
    /// There are as many requests as the engine takes. Later there may be room.
    Busy,
    /// The answer was cancelled.
    Cancelled,
    /// The deadline of the request has passed.
    TimedOut,
    /// Memory ran out.
    OutOfMemory,
    /// A graph failed, or this library has a fault.
    Internal,
}

/// Why the library could not do what was asked.
///
/// The text of an error names its cause, which [`source`](std::error::Error::source) gives as well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder does not exist.
    #[error("{0} is not a folder; give the folder that lfm2vl-export wrote")]
    NoFolder(PathBuf),
    /// A file of the folder could not be read.
    #[error("cannot read {path} ({source}); export the model again")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
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
        "graph_capture needs a decoder without speculation whose steps have the same sizes each time, on the same device as its state and another graph (of vision or of embeddings); export with --recipe cuda or cuda-graph, or leave the setting out"
    )]
    NothingToRecord,
    /// Attention that takes queries, keys and values as one was left to the CPU, whose does not.
    #[error(
        "{0} was exported with 'packed_qkv', and its attention is left to the CPU, which does not run it; use CUDA with fp16 or q4f16, or WebGPU, or export without 'packed_qkv'"
    )]
    PackedAttention(Graph),
    /// ONNX Runtime is not available.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A built-in contract or recipe is wrong.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A graph could not be loaded.
    #[error("ONNX Runtime cannot load {graph} ({source}); export the model again")]
    Load {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's error, with its code.
        source: Arc<ort::Error>,
    },
    /// A graph could not be run.
    #[error("ONNX Runtime cannot run {graph} ({source}); report this if it stays")]
    Run {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's error, with its code.
        source: Arc<ort::Error>,
    },
    /// Memory ran out.
    #[error(
        "memory ran out in {graph} ({source}); allow fewer slots, fewer tokens or fewer views, or give the program more memory"
    )]
    OutOfMemory {
        /// The graph.
        graph: Graph,
        /// ONNX Runtime's error, with its code.
        source: Arc<ort::Error>,
    },
    /// The logits of a token are not numbers.
    #[error(
        "{graph} gave logits that are not finite; use a precision with a larger range, such as fp32, and report this if it stays"
    )]
    NotFinite {
        /// The graph.
        graph: Graph,
    },
    /// Stages of the caller's own, or its logit bias, left no token to choose.
    #[error("the settings and stages of the sampler left no token to choose; leave some")]
    NoTokenLeft,
    /// A stage of the caller's own panicked.
    #[error("a logits processor of the caller panicked; correct it")]
    ProcessorPanicked,
    /// The model's tokenizer, template or processor files are not usable.
    #[error(transparent)]
    Processor(ProcessorError),
    /// A setting of the engine, or one that the model's files recommend, makes no sense.
    #[error("the engine's setting '{name}' is {value}, and {expected}; correct it")]
    EngineSetting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
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
    /// The prompt is longer than the engine's context.
    #[error(
        "the prompt has {tokens} tokens and the context {context}; shorten it, or use fewer image tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// The messages have more text than the engine takes.
    #[error(
        "the messages have {bytes} bytes of text, more than the limit of {limit}; shorten them or raise the limit"
    )]
    TooMuchText {
        /// Bytes of text.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// There is nothing to answer.
    #[error("the conversation has no message to answer; push one first")]
    NoMessage,
    /// As many requests wait as the engine takes.
    #[error("{waiting} requests are waiting already; try again later")]
    Busy {
        /// Requests that wait.
        waiting: usize,
    },
    /// The answer was cancelled.
    #[error("the answer was cancelled")]
    Cancelled,
    /// The answer did not end in time.
    #[error("the answer did not end within {} ms; allow more time, or fewer tokens", .0.as_millis())]
    TimedOut(Duration),
    /// The system gave the engine no thread.
    #[error("the engine cannot start a thread ({source}); let the program have more of them")]
    NoThread {
        /// The system's error.
        source: std::io::Error,
    },
    /// The engine has stopped.
    #[error("the engine has stopped because of a fault of its own; load it again, and report this")]
    Stopped,
    /// The graphs give other features than the prompt has image tokens for.
    #[error(
        "the vision graph gave {features} image features for {tokens} image tokens of the prompt; the folder's files do not belong together"
    )]
    FeatureCount {
        /// Rows of the features.
        features: usize,
        /// Image tokens of the prompt.
        tokens: usize,
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
    /// A constraint cannot be kept.
    #[error("the constraint cannot be used: {message}; correct it")]
    Constraint {
        /// What is wrong with it.
        message: String,
    },
    /// A setting makes no sense.
    #[error("the setting '{name}' is {value}, and {expected}; correct it")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}

impl Error {
    /// What it comes from.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NoFolder(_)
            | Error::File { .. }
            | Error::NoGraph { .. }
            | Error::NoPrecision { .. }
            | Error::NoBundle { .. }
            | Error::Contract { .. }
            | Error::NothingToRecord
            | Error::PackedAttention(_)
            | Error::Library(_)
            | Error::Yaml(_)
            | Error::Load { .. }
            | Error::Provider { .. }
            | Error::Processor(_)
            | Error::EngineSetting { .. }
            | Error::NoThread { .. }
            | Error::NoHiddenState => ErrorKind::Setup,
            Error::NoSpeculation
            | Error::Image(_)
            | Error::Chat(_)
            | Error::NoMessage
            | Error::NoTokenLeft
            | Error::Constraint { .. }
            | Error::ProcessorPanicked
            | Error::TooManyPatches { .. }
            | Error::Setting { .. } => ErrorKind::InvalidRequest,
            Error::TooLong { .. } | Error::TooMuchText { .. } => ErrorKind::TooLong,
            Error::Busy { .. } => ErrorKind::Busy,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::TimedOut(_) => ErrorKind::TimedOut,
            Error::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Error::Run { .. }
            | Error::NotFinite { .. }
            | Error::Stopped
            | Error::FeatureCount { .. } => ErrorKind::Internal,
        }
    }

    /// What it means that a run of `graph` failed.
    pub(crate) fn of_run(graph: Graph, error: ort::Error) -> Self {
        let source = Arc::new(error);
        if ran_out_of_memory(source.message()) {
            Error::OutOfMemory { graph, source }
        } else {
            Error::Run { graph, source }
        }
    }

    /// The same error, for another answer that ends with it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Error::Run { graph, source } => {
                Error::Run { graph: *graph, source: Arc::clone(source) }
            }
            Error::OutOfMemory { graph, source } => {
                Error::OutOfMemory { graph: *graph, source: Arc::clone(source) }
            }
            _ => Error::Stopped,
        }
    }

    /// What it means that `graph` could not be loaded.
    pub(crate) fn of_loading(graph: Graph, error: ort::Error) -> Self {
        let source = Arc::new(error);
        if ran_out_of_memory(source.message()) {
            Error::OutOfMemory { graph, source }
        } else {
            Error::Load { graph, source }
        }
    }
}

/// ONNX Runtime has no code for this: these are what its allocators say.
fn ran_out_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["bad_alloc", "bad allocation", "out of memory", "failed to allocate", "cannot allocate"]
        .iter()
        .any(|words| message.contains(words))
}

impl From<ProcessorError> for Error {
    fn from(error: ProcessorError) -> Self {
        match error {
            ProcessorError::NoFolder(folder) => Error::NoFolder(folder),
            other => Error::Processor(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_ran_out_is_told_from_other_failures() {
        let of = |message: &str| Error::of_run(Graph::Decoder, ort::Error::new(message));
        assert_eq!(of("std::bad_alloc").kind(), ErrorKind::OutOfMemory);
        let error = of("BFCArena: Failed to allocate memory for requested buffer of size 9");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(!error.to_string().contains("export"), "{error}");
        let error = of("Invalid input shape");
        assert_eq!(error.kind(), ErrorKind::Internal);
        // The cause is kept, with its code.
        let source =
            std::error::Error::source(&error).and_then(|e| e.downcast_ref::<Arc<ort::Error>>());
        assert!(source.is_some_and(|e| e.message() == "Invalid input shape"));
    }
}
