//! Many requests from a file: OpenAI's batch format, on one machine.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    chat::{complete, prepare},
    error::{ApiError, ErrorBody},
    service::Service,
};

/// A line of a batch.
#[derive(Deserialize)]
struct Line {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Value,
}

const URL: &str = "/v1/chat/completions";

impl Service {
    /// The answer to a line of a batch, as a line of its output: JSON objects of OpenAI's
    /// [batch format](https://platform.openai.com/docs/guides/batch). `line` is
    /// `{"custom_id", "method", "url", "body"}`, of which the middle two may be missing, or a request's body alone.
    /// A fault of the line is a part of its answer. The second value is whether there is none.
    ///
    /// Waits for the answer; as many threads may do so as there are slots, and more.
    pub async fn answer_line(&self, line: &str, number: usize) -> (Value, bool) {
        let (id, answer) = match parse(line) {
            Ok((id, body)) => (id, self.answer(&body).await),
            Err(error) => (None, Err(error)),
        };
        let is_fine = answer.is_ok();
        let id = id.unwrap_or_else(|| format!("line-{number}"));
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err(error) => {
                let ErrorBody { error: detail } = error.body();
                (error.status.as_u16(), json!({"error": detail}))
            }
        };
        let response = json!({"status_code": status, "request_id": id, "body": body});
        (
            json!({"id": format!("batch_req_{number}"), "custom_id": id, "response": response, "error": null}),
            is_fine,
        )
    }

    async fn answer(&self, body: &Value) -> Result<Value, ApiError> {
        if body["stream"] == true {
            return Err(ApiError::of_param("stream", "a batch has no streams; leave it out"));
        }
        let started = prepare(self, body.to_string().into()).await?;
        let completion = complete(self, started).await?;
        serde_json::to_value(completion).map_err(|error| ApiError::internal(&error))
    }
}

/// The id and the body of a line.
fn parse(line: &str) -> Result<(Option<String>, Value), ApiError> {
    let wrong =
        |error: serde_json::Error| ApiError::invalid(format!("the line is no JSON: {error}"));
    let value: Value = serde_json::from_str(line).map_err(wrong)?;
    if value.get("messages").is_some() {
        return Ok((None, value));
    }
    let line: Line = serde_json::from_value(value).map_err(|error| {
        ApiError::invalid(format!("the line is neither a request nor one of a batch: {error}"))
    })?;
    if line.method.is_some_and(|method| method != "POST") || line.url.is_some_and(|url| url != URL)
    {
        return Err(ApiError::of_param("url", format!("only POST {URL} is answered")));
    }
    Ok((line.custom_id, line.body))
}
