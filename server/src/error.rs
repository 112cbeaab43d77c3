//! Errors in OpenAI's form.

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use lfm2vl::{Error, ErrorKind};
use serde::Serialize;
use utoipa::ToSchema;

/// What is told to the client.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetail,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// One sentence: the cause, and what to do.
    pub(crate) message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error`, `timeout_error` or `server_error`.
    pub(crate) r#type: &'static str,
    /// The field of the request that is wrong, such as `messages[0].content[1]`.
    #[schema(required)]
    pub(crate) param: Option<String>,
    /// A name for programs, such as `context_length_exceeded`.
    #[schema(required)]
    pub(crate) code: Option<&'static str>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) detail: ErrorDetail,
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, message: String) -> Self {
        let detail = ErrorDetail { message: short(message), r#type, param: None, code: None };
        ApiError { status, detail, retry_after: None }
    }

    /// A fault of the client.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message.into())
    }

    /// A fault of the client in this field.
    pub(crate) fn of_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(message).with_param(param)
    }

    /// A fault of this program. What it is goes to the log only.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        let message = "the server failed to answer; its log has the cause beside the request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message.into())
    }

    /// Too much is being asked.
    pub(crate) fn busy(waiting: usize) -> Self {
        let message = format!("{waiting} requests are being answered or wait; try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        ApiError { retry_after: Some(1), ..error }.with_code("server_busy")
    }

    /// The server is about to end.
    pub(crate) fn unavailable() -> Self {
        let message = "the server is stopping; ask another one".to_owned();
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        ApiError { retry_after: Some(1), ..error }
    }

    pub(crate) fn unauthorized() -> Self {
        let message =
            "the API key is missing or wrong; send 'Authorization: Bearer KEY'".to_owned();
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
            .with_code("invalid_api_key")
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message.into())
    }

    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        ApiError { status, ..self }
    }

    pub(crate) fn with_param(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(short(param.into()));
        self
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.detail.code = Some(code);
        self
    }

    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match (error.kind(), &error) {
            // Only stages that this program adds could do so.
            (_, Error::ProcessorPanicked | Error::NoSpeculation) => Self::internal(&error),
            (ErrorKind::TooLong, _) => {
                Self::of_param("messages", error.to_string()).with_code("context_length_exceeded")
            }
            (_, Error::Setting { name, .. }) => Self::of_param(param_of(name), error.to_string()),
            (
                _,
                Error::Image(_) | Error::Chat(_) | Error::NoMessage | Error::TooManyPatches { .. },
            ) => Self::of_param("messages", error.to_string()),
            (ErrorKind::InvalidRequest, _) => Self::invalid(error.to_string()),
            (ErrorKind::Busy, Error::Busy { waiting }) => Self::busy(*waiting),
            (ErrorKind::TimedOut, _) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", error.to_string())
                    .with_code("timeout")
            }
            (ErrorKind::OutOfMemory, _) => {
                tracing::error!(%error, "memory ran out");
                let message = "memory ran out; ask for less, or try again later".to_owned();
                let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
                ApiError { retry_after: Some(5), ..error }
            }
            _ => Self::internal(&error),
        }
    }
}

/// Characters that are told at most of what a client has sent.
const LONGEST: usize = 500;

/// A text on one line, and no longer than is of use.
fn short(text: String) -> String {
    let mut text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST + 1).collect();
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// The request's field behind a setting of the engine.
fn param_of(setting: &'static str) -> &'static str {
    match setting {
        "max_new_tokens" => "max_completion_tokens",
        "logprobs" => "top_logprobs",
        other => other,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            // Clients would let the server do the same work again, in vain.
            StatusCode::GATEWAY_TIMEOUT => {
                let name = HeaderName::from_static("x-should-retry");
                headers.insert(name, HeaderValue::from_static("false"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
