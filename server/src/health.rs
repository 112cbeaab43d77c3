//! Whether the server lives, and whether it takes requests.

use axum::extract::State;

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
    match service.is_stopping() {
        true => Err(ApiError::unavailable()),
        false => Ok("ready\n"),
    }
}
