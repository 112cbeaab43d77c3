//! Checkpoints by their id on the Hugging Face hub: found in the cache that huggingface_hub and
//! others share, and downloaded into it.
//!
//! The hub is asked once for the newest commit, and every file is of that commit. Only where it
//! cannot be asked is the commit of the last download taken.

mod address;
mod cache;
mod client;
mod download;
mod error;
mod names;
mod settings;

use std::{
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub use error::{FetchError, HubError};
pub use settings::HubSettings;

use crate::checkpoint;
use cache::ModelCache;
use client::Client;
use download::Download;
use names::CommitId;

const REQUIRED: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "LICENSE",
];
/// The template has a file of its own, of one name or the other, or is in the tokenizer's config.
const TEMPLATES: [&str; 2] = ["chat_template.jinja", "chat_template.json"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An adapter may lie beside the model; the weights belong to the config.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Where a checkpoint is.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Why it may not be the newest of the hub.
    pub unasked: Option<Unasked>,
}

/// A hub that could not be asked for the newest commit of a model, so a cached one was taken.
#[derive(Debug)]
pub struct Unasked {
    /// The model.
    pub id: String,
    /// The commit that was taken.
    pub commit: String,
    /// Why the hub could not be asked.
    pub cause: FetchError,
}

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unasked { id, commit, cause } = self;
        write!(
            f,
            "the hub cannot be asked for the newest commit of {id} ({cause}), so the cached commit \
             {commit} is exported; set HF_HUB_OFFLINE=1 not to ask"
        )
    }
}

/// Finds `checkpoint`: an existing folder as it is, or the cache folder of a hub id, with the files
/// that an export needs and no others. `go_on` is asked again and again and can stop a download.
///
/// # Errors
/// [`HubError`] when it is neither, or the hub does not give a file.
pub fn resolve(
    checkpoint: &str,
    settings: &HubSettings,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Found, HubError> {
    let path = Path::new(checkpoint);
    if path.exists() {
        return Ok(Found { folder: path.to_owned(), unasked: None });
    }
    if !names::is_model_id(checkpoint) {
        return Err(HubError::NoSuchCheckpoint(checkpoint.to_owned()));
    }
    let id = checkpoint;
    let folder = settings.cache.as_deref().ok_or(HubError::NoCacheFolder)?;
    let cache = ModelCache::new(folder, id, settings.symlinks);
    if settings.offline {
        let commit = find_cached(&cache, id)?;
        return Ok(Found { folder: cache.snapshot(&commit), unasked: None });
    }

    let client = Client::new(id, settings)?;
    let commit = match client.latest(REQUIRED[0]) {
        Ok(commit) => commit,
        Err(cause @ FetchError::Status(404)) => return Err(cause.of(id, REQUIRED[0])),
        Err(cause) => {
            let Ok(commit) = find_cached(&cache, id) else { return Err(cause.of(id, REQUIRED[0])) };
            let folder = cache.snapshot(&commit);
            let (id, commit) = (id.to_owned(), commit.as_str().to_owned());
            return Ok(Found { folder, unasked: Some(Unasked { id, commit, cause }) });
        }
    };
    let mut download =
        Download { id, client, cache: &cache, commit: commit.clone(), settings, go_on };
    let absent = |file: &str| HubError::NotFound { id: id.to_owned(), file: file.to_owned() };
    collect(&mut |file| download.file(file), &absent)?;
    cache.set_latest(&commit)?;
    Ok(Found { folder: cache.snapshot(&commit), unasked: None })
}

/// The commit of the last download, where the cache has all that an export needs of it.
fn find_cached(cache: &ModelCache, id: &str) -> Result<CommitId, HubError> {
    let absent = |file: &str| HubError::Offline { id: id.to_owned(), file: file.to_owned() };
    let commit = cache.latest().ok_or_else(|| absent(REQUIRED[0]))?;
    collect(&mut |file| Ok(cache.file(&commit, file)), &absent)?;
    Ok(commit)
}

/// Asks `find` for every file that an export needs. The weights come last: where they are, a
/// download was finished.
fn collect(
    find: &mut dyn FnMut(&str) -> Result<Option<PathBuf>, HubError>,
    absent: &dyn Fn(&str) -> HubError,
) -> Result<(), HubError> {
    for file in REQUIRED {
        find(file)?.ok_or_else(|| absent(file))?;
    }
    for file in OPTIONAL {
        find(file)?;
    }
    for file in TEMPLATES {
        if find(file)?.is_some() {
            break;
        }
    }
    let [config, weights] = ADAPTER;
    if find(config)?.is_some() {
        find(weights)?.ok_or_else(|| absent(weights))?;
    }
    if find(WEIGHTS)?.is_some() {
        return Ok(());
    }
    let index = find(INDEX)?.ok_or_else(|| absent(INDEX))?;
    for shard in checkpoint::shards(&index)? {
        find(&shard)?.ok_or_else(|| absent(&shard))?;
    }
    Ok(())
}
