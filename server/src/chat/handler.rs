//! `POST /v1/chat/completions`.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{completion::complete, start::prepare, stream::events};
use crate::{
    admission::Admitted,
    error::{ApiError, ErrorBody},
    service::Service,
    wire::{ChatCompletion, ChatCompletionRequest, StreamEvent},
};

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "The answers; with `stream`, events whose data are chunks, and at last `[DONE]`",
            content((ChatCompletion = "application/json"), (StreamEvent = "text/event-stream"))),
        (status = 400, description = "The request is wrong, or too long", body = ErrorBody),
        (status = 401, description = "The key is missing or wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 408, description = "The body did not come in time", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not said to be JSON", body = ErrorBody),
        (status = 429, description = "Too many requests wait; `Retry-After` says when to try again", body = ErrorBody),
        (status = 500, description = "A fault of the server", body = ErrorBody),
        (status = 503, description = "The server is stopping, or out of memory", body = ErrorBody),
        (status = 504, description = "The answer did not end in time", body = ErrorBody),
    ),
)]
pub(crate) async fn chat_completions(
    State(service): State<Service>,
    admitted: Result<Admitted, ApiError>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let admitted = admitted.and_then(|admitted| check_type(&headers).map(|()| admitted));
    let mut admitted = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            discard(body).await;
            return Err(error);
        }
    };
    let body = received(body, service.settings().max_body_bytes).await?;
    let started = prepare(&service, body.into(), Some(admitted.place())).await?;
    if started.is_stream {
        let events = events(service, started, admitted);
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    let completion = complete(&service, started).await?;
    admitted.answered(&completion.usage);
    Ok(Json(completion).into_response())
}

/// Web pages of other origins may send any other type without being asked first.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(ApiError::invalid("send 'Content-Type: application/json'")
            .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
    }
}

/// Time in which a body has to come, and in which the next piece of it has to: a request counts from its head on, so
/// those that say no more must not keep others out.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const PIECE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a body that nobody wants: a client that is still sending it does not see the response.
async fn discard(body: Body) {
    let mut pieces = body.into_data_stream();
    let read = async { while let Ok(Some(Ok(_))) = timeout(PIECE_TIMEOUT, pieces.next()).await {} };
    // What does not end in time is cut off.
    let _ = timeout(BODY_TIMEOUT, read).await;
}

async fn received(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_slow = |_| {
        let message = "the body did not come in time; send it faster, or less";
        ApiError::invalid(message).with_status(StatusCode::REQUEST_TIMEOUT)
    };
    let receive = async {
        let (mut pieces, mut bytes) = (body.into_data_stream(), Vec::new());
        while let Some(piece) = timeout(PIECE_TIMEOUT, pieces.next()).await.map_err(too_slow)? {
            let cannot = |error| ApiError::invalid(format!("the body cannot be read ({error})"));
            bytes.extend_from_slice(&piece.map_err(cannot)?);
            if bytes.len() > limit {
                let message = format!("the body has more than {limit} bytes; send smaller images");
                return Err(ApiError::invalid(message).with_status(StatusCode::PAYLOAD_TOO_LARGE));
            }
        }
        Ok(bytes)
    };
    timeout(BODY_TIMEOUT, receive).await.map_err(too_slow)?
}
