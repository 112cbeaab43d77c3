//! Why a checkpoint could not be found or fetched.

use std::{io, path::PathBuf, time::Duration};

use crate::checkpoint::CheckpointError;

/// Why a checkpoint could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor the form of an id.
    #[error(
        "'{0}' is neither a folder nor a hub id such as LiquidAI/LFM2-VL-450M; correct the path or the id"
    )]
    NoSuchCheckpoint(String),
    /// The hub's address is none.
    #[error("HF_ENDPOINT is '{0}', which is no address; give one such as https://huggingface.co")]
    Endpoint(String),
    /// The user has no folder for caches.
    #[error("there is no home folder to keep downloads in; set HF_HOME to a folder")]
    NoCacheFolder,
    /// The hub refused.
    #[error(
        "the hub refuses {file} of {id}; check the id, accept the model's terms on its page and set HF_TOKEN to your access token"
    )]
    Refused {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// No such model or file.
    #[error("the hub has no {file} in {id}; check the id")]
    NotFound {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// The hub may not be asked, and the cache does not have the model.
    #[error(
        "the cache has no {file} of {id}, and HF_HUB_OFFLINE is set; unset it to download the model"
    )]
    Offline {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// The hub was not reached, or its answer cannot be used.
    #[error(
        "cannot fetch {file} of {id} ({source}); check the network and HF_ENDPOINT, then run it again"
    )]
    Fetch {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// The cause.
        source: FetchError,
    },
    /// The index of shards is not valid.
    #[error(transparent)]
    Index(#[from] CheckpointError),
    /// The cache could not be written.
    #[error("cannot write {path}: {source}; check the folder of the cache and its disk")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Stopped by the user.
    #[error("the download was interrupted; run it again to export")]
    Interrupted,
}

/// Why one request to a hub failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The hub cannot be reached, or what it sends is not HTTP.
    #[error("{0}")]
    Http(ureq::Error),
    /// It accepts and then says nothing.
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It answers with an error, or with what was not asked for.
    #[error("its answer has the status {0}")]
    Status(u16),
    /// The store of large files, to which it redirects, does not give the file.
    #[error("the store that it redirects to answers with the status {0}")]
    Store(u16),
    /// A redirect to nowhere.
    #[error("it redirects without a location")]
    NoLocation,
    /// A redirect to something that is no address.
    #[error("it redirects to {0:?}, which is no address")]
    Location(String),
    /// Redirects without end.
    #[error("it redirects more than {0} times")]
    Redirects(usize),
    /// A header that every hub sends is missing.
    #[error("its answer has no {0}, so it is no hub")]
    NoHeader(&'static str),
    /// A header with a value that it cannot have.
    #[error("its answer has {value:?} as {header}")]
    Header {
        /// The header.
        header: &'static str,
        /// Its value, of which the first characters.
        value: String,
    },
    /// A file of another commit than the one that was asked for.
    #[error("it gives commit {found} where {expected} was asked for")]
    OtherCommit {
        /// The commit of the download.
        expected: String,
        /// The commit of the file.
        found: String,
    },
    /// More or fewer bytes than there should be.
    #[error("it gives {found} bytes of {expected}")]
    Size {
        /// What was announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Another content of the same commit.
    #[error("it gives a file that changes within a commit")]
    Changed,
    /// Neither a length nor an end is marked, so a part could pass for the whole.
    #[error("it does not tell the file's size")]
    NoSize,
}

impl FetchError {
    /// Whether it may go better in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            FetchError::Http(_) | FetchError::Silent(_) | FetchError::Store(_) => true,
            FetchError::Status(status) => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    pub(super) fn of(self, id: &str, file: &str) -> HubError {
        let (id, file) = (id.to_owned(), file.to_owned());
        match self {
            FetchError::Status(401 | 403) => HubError::Refused { id, file },
            FetchError::Status(404) => HubError::NotFound { id, file },
            source => HubError::Fetch { id, file, source },
        }
    }
}
