//! What operators ask: whether the server lives, whether it takes requests, and its figures.

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use prometheus::TEXT_FORMAT;

use crate::{
    error::{ApiError, ErrorBody},
    service::Service,
};

/// Whether the server lives.
#[utoipa::path(
    get,
    path = "/healthz",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")),
)]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the server takes requests.
#[utoipa::path(
    get,
    path = "/readyz",
    responses(
        (status = 200, description = "It does", body = String, content_type = "text/plain"),
        (status = 503, description = "It is stopping", body = ErrorBody),
    ),
)]
pub(crate) async fn readyz(State(service): State<Service>) -> Result<&'static str, ApiError> {
    if service.is_stopping() { Err(ApiError::unavailable()) } else { Ok("ready\n") }
}

/// Figures in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "Figures", body = String, content_type = "text/plain")),
)]
pub(crate) async fn metrics(State(service): State<Service>) -> Result<Response, ApiError> {
    let text = service.metrics().text(&service.engine().metrics());
    let text = text.map_err(|error| ApiError::internal(&error))?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}
