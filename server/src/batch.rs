//! Many requests from a file: OpenAI's batch format, on one machine.

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    chat::{complete, prepare},
    error::ApiError,
    service::Service,
};

/// A line of a batch.
#[derive(Deserialize)]
struct Line {
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
    /// Several may be asked for at a time, twice as many as there are slots to keep these busy.
    pub async fn answer_line(&self, line: &str, number: usize) -> (Value, bool) {
        let parsed: Result<Value, ApiError> = serde_json::from_str(line)
            .map_err(|error| ApiError::invalid(format!("the line is no JSON: {error}")));
        let id = parsed.as_ref().ok().and_then(|line| line.get("custom_id")?.as_str());
        let id = id.map_or_else(|| format!("line-{number}"), str::to_owned);
        let answer = match parsed.and_then(body) {
            Ok(body) => self.answer(&body).await,
            Err(error) => Err(error),
        };
        let is_fine = answer.is_ok();
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err(error) => (error.status.as_u16(), json!(error.body())),
        };
        let response = json!({"status_code": status, "request_id": line_id(line), "body": body});
        let answer = json!({"id": format!("batch_req_{number}"), "custom_id": id, "response": response, "error": null});
        (answer, is_fine)
    }

    async fn answer(&self, body: &Value) -> Result<Value, ApiError> {
        if body["stream"] == true {
            return Err(ApiError::of_param("stream", "a batch has no streams; leave it out"));
        }
        let started = prepare(self, body.to_string().into(), None).await?;
        let completion = complete(self, started).await?;
        serde_json::to_value(completion).map_err(|error| ApiError::internal(&error))
    }
}

/// What a line of a batch is known by in its answer, as `response.request_id`: the same for the same text.
pub fn line_id(line: &str) -> String {
    let hash = hex::encode(Sha256::digest(line.trim()));
    format!("req_{}", &hash[..24])
}

/// The request of a line.
fn body(line: Value) -> Result<Value, ApiError> {
    if line.get("messages").is_some() {
        return Ok(line);
    }
    let line: Line = serde_json::from_value(line).map_err(|error| {
        ApiError::invalid(format!("the line is neither a request nor one of a batch: {error}"))
    })?;
    if line.method.is_some_and(|method| method != "POST") || line.url.is_some_and(|url| url != URL)
    {
        return Err(ApiError::of_param("url", format!("only POST {URL} is answered")));
    }
    Ok(line.body)
}
