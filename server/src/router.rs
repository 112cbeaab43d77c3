//! Routes, and what is around all of them.

use std::any::Any;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, CorsLayer},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    trace::{DefaultOnFailure, DefaultOnResponse, TraceLayer},
};
use tracing::Level;

use crate::{
    chat, error::ApiError, layout, middleware, models, openapi, operators, page, service::Service,
};

impl Service {
    /// The routes, to be served or mounted in another router. Routes below `/v1` need a key, if the settings have
    /// keys.
    pub fn router(&self) -> Router {
        let of_clients = Router::new()
            .route("/v1/chat/completions", post(chat::chat_completions))
            .route("/v1/models", get(models::models))
            .route("/v1/models/{*model}", get(models::model))
            .route("/v1/image_layout", get(layout::image_layout))
            .route_layer(from_fn_with_state(self.clone(), middleware::check_key));
        let of_operators = Router::new()
            .route("/", get(page::page))
            .route("/healthz", get(operators::healthz))
            .route("/readyz", get(operators::readyz))
            .route("/metrics", get(operators::metrics))
            .route("/openapi.json", get(openapi::openapi));
        of_clients
            .merge(of_operators)
            .fallback(|| async { ApiError::not_found("there is no such path; see /openapi.json") })
            .method_not_allowed_fallback(|| async {
                let message = "the path does not take this method; see /openapi.json";
                ApiError::invalid(message).with_status(StatusCode::METHOD_NOT_ALLOWED)
            })
            .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| panicked(&*panic)))
            .layer(from_fn_with_state(self.clone(), middleware::count))
            .layer(self.cors())
            .layer(PropagateRequestIdLayer::x_request_id())
            .layer(
                TraceLayer::new_for_http()
                    .make_span_with(span)
                    .on_response(DefaultOnResponse::new().level(Level::INFO))
                    .on_failure(DefaultOnFailure::new().level(Level::DEBUG)),
            )
            .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
            .with_state(self.clone())
    }

    fn cors(&self) -> CorsLayer {
        let origins = self.settings().cors_origins.iter();
        let origins: Vec<HeaderValue> = origins.filter_map(|origin| origin.parse().ok()).collect();
        if origins.is_empty() {
            return CorsLayer::new();
        }
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            // OpenAI's client in a browser has a dozen of its own.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
    }
}

/// What all log lines of a request have.
fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.extensions().get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", id, method = %request.method(), path = request.uri().path())
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    ApiError::internal(&text.unwrap_or("a panic")).into_response()
}
