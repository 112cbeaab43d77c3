//! Checkpoints by their id on the Hugging Face hub.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};

/// Why a checkpoint could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor the form of an id.
    #[error(
        "'{0}' is neither a folder nor a hub id such as LiquidAI/LFM2-VL-450M; correct the path or the id"
    )]
    NoSuchCheckpoint(String),
    /// The hub refused.
    #[error(
        "the hub refuses {file} of {id}; accept the model's terms on its page and set HF_TOKEN to your access token"
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
    /// The hub was not reached, or the download failed.
    #[error(
        "cannot fetch {file} of {id} ({message}); check the network and HF_ENDPOINT, then run it again to go on"
    )]
    Fetch {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// The cause.
        message: String,
    },
    /// The index of shards is not valid.
    #[error("the index of {0} does not name its weight files; report this to the model's owner")]
    Index(String),
}

/// Which hub to ask, and where to keep what it gives.
#[derive(Debug, Clone, Default)]
pub struct HubSettings {
    /// Address of the hub; the public one when not given.
    pub endpoint: Option<String>,
    /// Access token, for models that need one.
    pub token: Option<String>,
    /// Folder of the cache; the usual one of the user when not given.
    pub cache: Option<PathBuf>,
    /// Whether to show a progress bar on stderr.
    pub progress: bool,
}

impl HubSettings {
    /// `HF_ENDPOINT`, `HF_TOKEN` (or the token file of `hf auth login`) and `HF_HOME`.
    pub fn from_environment(progress: bool) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = variable("HF_HOME").map(|home| Path::new(&home).join("hub"));
        let stored = || cache.clone().map_or_else(Cache::default, Cache::new).token();
        HubSettings {
            endpoint: variable("HF_ENDPOINT"),
            token: variable("HF_TOKEN").or_else(stored),
            cache,
            progress,
        }
    }
}

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

/// The folder of `checkpoint`: an existing folder as it is, or the cache folder of a hub id,
/// with the files that an export needs and no others.
///
/// # Errors
/// [`HubError`] when it is neither, or the hub does not give a file.
pub fn resolve(checkpoint: &str, settings: &HubSettings) -> Result<PathBuf, HubError> {
    let path = Path::new(checkpoint);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match checkpoint.split('/').collect::<Vec<_>>()[..] {
        [owner, name] if is_name(owner) && is_name(name) => {}
        _ => return Err(HubError::NoSuchCheckpoint(checkpoint.to_owned())),
    }

    let hub = Hub::connect(checkpoint, settings)?;
    let config = hub.get(REQUIRED[0])?;
    for file in &REQUIRED[1..] {
        hub.get(file)?;
    }
    for file in OPTIONAL {
        hub.get_optional(file)?;
    }
    for file in TEMPLATES {
        if hub.get_optional(file)?.is_some() {
            break;
        }
    }
    if hub.get_optional(WEIGHTS)?.is_none() {
        for shard in shards(&hub.get(INDEX)?).ok_or_else(|| HubError::Index(hub.id.clone()))? {
            hub.get(&shard)?;
        }
    }
    Ok(config.parent().unwrap_or(&config).to_owned())
}

/// The weight files that an index names.
fn shards(index: &Path) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let map = json.get("weight_map")?.as_object()?;
    let mut shards: Vec<String> =
        map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
    shards.sort();
    shards.dedup();
    Some(shards)
}

struct Hub {
    id: String,
    repo: ApiRepo,
    cached: hf_hub::CacheRepo,
}

impl Hub {
    fn connect(id: &str, settings: &HubSettings) -> Result<Self, HubError> {
        let cache = settings.cache.clone().map_or_else(Cache::default, Cache::new);
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_token(settings.token.clone())
            .with_progress(settings.progress);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error| HubError::Fetch {
            id: id.to_owned(),
            file: REQUIRED[0].to_owned(),
            message: error.to_string(),
        })?;
        let repo = Repo::model(id.to_owned());
        Ok(Hub { id: id.to_owned(), repo: api.repo(repo.clone()), cached: cache.repo(repo) })
    }

    /// A file of the model, from the cache or the hub.
    fn get(&self, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached.get(file) {
            return Ok(path);
        }
        self.repo.download(file).map_err(|error| {
            let (id, file) = (self.id.clone(), file.to_owned());
            match status(&error) {
                Some(401 | 403) => HubError::Refused { id, file },
                Some(404) => HubError::NotFound { id, file },
                _ => HubError::Fetch { id, file, message: error.to_string() },
            }
        })
    }

    fn get_optional(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        match self.get(file) {
            Ok(path) => Ok(Some(path)),
            Err(HubError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The HTTP status that made a request fail.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match error.as_ref() {
            ureq::Error::StatusCode(code) => Some(*code),
            _ => None,
        },
        _ => None,
    }
}
