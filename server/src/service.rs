//! What all requests share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderValue;
use lfm2vl::Engine;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{auth::Keys, error::ApiError, metrics::Metrics, settings::Settings};

/// Why a service cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The model's `generation_config.json` makes no sense.
    #[error(transparent)]
    Model(#[from] lfm2vl::Error),
    /// An origin is none that a browser sends.
    #[error("'{0}' is no origin; give one such as https://example.com")]
    Origin(String),
    /// A key that everybody has.
    #[error("a key is empty; give one, or none at all")]
    EmptyKey,
    /// A figure cannot be registered.
    #[error("the figures for Prometheus cannot be made ({0}); report this")]
    Metrics(#[from] prometheus::Error),
}

/// A model behind OpenAI's interface. Clones are the same service.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    settings: Settings,
    model_name: String,
    fingerprint: String,
    /// Seconds of Unix time.
    created: u64,
    keys: Keys,
    metrics: Metrics,
    admission: Arc<Semaphore>,
    preparation: Arc<Semaphore>,
    is_stopping: AtomicBool,
}

impl Service {
    /// A service over a loaded model.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn new(engine: Engine, settings: Settings) -> Result<Self, ServiceError> {
        engine.generation_options()?;
        if settings.api_keys.iter().any(String::is_empty) {
            return Err(ServiceError::EmptyKey);
        }
        let is_origin = |origin: &String| {
            origin.contains("://")
                && !origin.ends_with('/')
                && origin.parse::<HeaderValue>().is_ok()
        };
        if let Some(wrong) = settings.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return Err(ServiceError::Origin(wrong.clone()));
        }
        let folder = engine.folder().path();
        let folder = dunce::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let of_folder = || folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let model_name = settings.model_name.clone().or_else(of_folder);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            model_name: model_name.unwrap_or_else(|| "lfm2-vl".into()),
            fingerprint: fingerprint(&engine),
            created: since.as_secs(),
            keys: Keys::new(&settings.api_keys),
            metrics: Metrics::new()?,
            admission: Arc::new(Semaphore::new(settings.max_requests)),
            preparation: Arc::new(Semaphore::new(cores)),
            is_stopping: AtomicBool::new(false),
            engine,
            settings,
        };
        Ok(Service { shared: Arc::new(shared) })
    }

    /// The model.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// What it allows.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Takes no more requests; `/readyz` says so. Answers that are being made go on.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.is_stopping.load(Ordering::Relaxed)
    }

    /// Name of the model for clients.
    pub fn model_name(&self) -> &str {
        &self.shared.model_name
    }

    pub(crate) fn fingerprint(&self) -> &str {
        &self.shared.fingerprint
    }

    pub(crate) fn created(&self) -> u64 {
        self.shared.created
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Takes a request, if there is room for one.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.is_stopping() {
            return Err(ApiError::unavailable());
        }
        let permit = Arc::clone(&self.shared.admission).try_acquire_owned();
        permit.map_err(|_| ApiError::busy(self.settings().max_requests))
    }

    /// Waits until no request is being answered.
    pub(crate) async fn answers_ended(&self) {
        let all = u32::try_from(self.settings().max_requests).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.shared.admission.acquire_many(all).await;
    }

    /// Waits until images may be decoded and processed: so many at a time as there are cores, since each takes
    /// memory while it is.
    pub(crate) async fn preparing(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = Arc::clone(&self.shared.preparation).acquire_owned().await;
        permit.map_err(|error| ApiError::internal(&error))
    }
}

/// The model's files, precisions and providers, and this program: with the same, answers are the same.
fn fingerprint(engine: &Engine) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    for file in ["lfm2vl.yaml", "config.json"] {
        // A folder of others has no manifest.
        hash.update(std::fs::read(engine.folder().path().join(file)).unwrap_or_default());
    }
    for graph in engine.graphs() {
        hash.update(format!("{} {} {}", graph.graph, graph.precision, graph.provider));
    }
    let hash = hex::encode(hash.finalize());
    format!("fp_{}", &hash[..12])
}
