//! `POST /v1/chat/completions`.

use std::time::Duration;

use super::{completion::complete, start::prepare, stream::events};
use crate::{
    admission::Admitted,
    error::{ApiError, ErrorBody},
    service::Service,
    wire::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest},
};
use axum::{
    Json,
    body::{Body, Bytes, to_bytes},
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "The answers; with `stream`, events whose data are chunks, and at last `[DONE]`",
            content((ChatCompletion = "application/json"), (ChatCompletionChunk = "text/event-stream"))),
        (status = 400, description = "The request is wrong, or too long", body = ErrorBody),
        (status = 401, description = "The key is missing or wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 408, description = "The body did not come in time", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 429, description = "Too many requests wait; `Retry-After` says when to try again", body = ErrorBody),
        (status = 500, description = "A fault of the server", body = ErrorBody),
        (status = 503, description = "The server is stopping, or out of memory", body = ErrorBody),
        (status = 504, description = "The answer did not end in time", body = ErrorBody),
    ),
)]
pub(crate) async fn chat_completions(
    State(service): State<Service>,
    mut admitted: Admitted,
    body: Body,
) -> Result<Response, ApiError> {
    let body = received(body, service.settings().max_body_bytes).await?;
    let started = prepare(&service, body).await?;
    if started.is_stream {
        let events = events(service, started, admitted);
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    let completion = complete(&service, started).await?;
    admitted.answered(&completion.usage);
    Ok(Json(completion).into_response())
}

/// Time in which a body has to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

async fn received(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let bytes = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, limit)).await.map_err(|_| {
        let message = "the body did not come within a minute; send it faster, or less";
        ApiError::invalid(message).with_status(StatusCode::REQUEST_TIMEOUT)
    })?;
    bytes.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        match cause.contains("limit") {
            true => {
                let message = format!("the body has more than {limit} bytes; send smaller images");
                ApiError::invalid(message).with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            false => ApiError::invalid(format!("the body cannot be read ({error})")),
        }
    })
}
