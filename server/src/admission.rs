//! How many requests there are at a time, and what each has come to.

use std::time::Instant;

use axum::{extract::FromRequestParts, http::request::Parts};
use tokio::sync::OwnedSemaphorePermit;

use crate::{error::ApiError, metrics::Latencies, service::Service, wire::Usage};

/// A request that may be answered; taken before its body is read. It counts until this is dropped.
pub(crate) struct Admitted {
    latencies: Latencies,
    start: Instant,
    /// When the first and the last piece of a stream were written.
    first: Option<Instant>,
    last: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl FromRequestParts<Service> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        let permit = service.admit()?;
        Ok(Admitted {
            latencies: service.metrics().latencies(),
            start: Instant::now(),
            first: None,
            last: None,
            _permit: permit,
        })
    }
}

impl Admitted {
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
