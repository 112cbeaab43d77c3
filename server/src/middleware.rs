//! What is done before and after every request.

use axum::{
    extract::{MatchedPath, Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{error::ApiError, service::Service};

/// Lets requests with a key through.
pub(crate) async fn check_key(
    State(service): State<Service>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    let key = match header.split_at_checked(b"Bearer ".len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"Bearer ") => key,
        _ => &[],
    };
    if service.keys().allow(key) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

/// Counts responses.
pub(crate) async fn count(
    State(service): State<Service>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    // Paths and methods that do not exist would make ever more series.
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    let method = if path.is_some() { method.as_str() } else { "any" };
    let status = response.status();
    service.metrics().responded(route, method, status.as_str());
    response
}
