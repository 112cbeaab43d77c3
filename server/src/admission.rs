//! How many requests there are at a time, and what each has come to.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{extract::FromRequestParts, http::request::Parts};
use tokio::{sync::OwnedSemaphorePermit, task::AbortHandle};

use crate::{error::ApiError, metrics::Latencies, service::Service, wire::Usage};

/// The place of a request among those that may be answered at a time. It is given back when all of these are
/// dropped, or when the request's time is over: a client that reads no more keeps its stream for as long as it likes.
#[derive(Clone)]
pub(crate) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Place(Arc::new(Mutex::new(Some(permit))))
    }

    fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Time after a request's own in which its last bytes have to be read.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// A request that may be answered; taken before its body is read.
pub(crate) struct Admitted {
    latencies: Latencies,
    start: Instant,
    /// When the first and the last piece of a stream were written.
    first: Option<Instant>,
    last: Option<Instant>,
    place: Place,
    /// What gives the place back in time.
    timer: AbortHandle,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl FromRequestParts<Service> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        let place = Place::new(service.admit()?);
        let (late, of_late) =
            (service.settings().timeout.saturating_add(LAST_BYTES), place.clone());
        let timer = tokio::spawn(async move {
            tokio::time::sleep(late).await;
            of_late.give_back();
        });
        Ok(Admitted {
            latencies: service.metrics().latencies(),
            start: Instant::now(),
            first: None,
            last: None,
            place,
            timer: timer.abort_handle(),
        })
    }
}

impl Admitted {
    /// Its place, for work that may go on for a moment when the client has left.
    pub(crate) fn place(&self) -> Place {
        self.place.clone()
    }

    /// A piece of a stream was written.
    pub(crate) fn wrote(&mut self) {
        let now = Instant::now();
        if self.first.is_none() {
            self.first = Some(now);
            self.latencies.first_token.observe((now - self.start).as_secs_f64());
        }
        if let Some(last) = self.last.replace(now) {
            self.latencies.between_tokens.observe((now - last).as_secs_f64());
        }
    }

    /// All answers have ended as they should.
    pub(crate) fn answered(&mut self, usage: &Usage) {
        let took = self.start.elapsed();
        self.latencies.request.observe(took.as_secs_f64());
        tracing::info!(
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.prompt_tokens_details.cached_tokens,
            image_tokens = usage.prompt_tokens_details.image_tokens,
            completion_tokens = usage.completion_tokens,
            took_ms = took.as_millis(),
            "answered"
        );
    }
}
