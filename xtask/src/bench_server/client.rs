//! A client of chat completions that looks at the clock.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// What a request is made of.
#[derive(Clone, Copy)]
pub(super) struct Question {
    /// Width and height of its photo in pixels; none without one.
    pub(super) photo: Option<(u32, u32)>,
    pub(super) new_tokens: usize,
    /// Whether the answer is JSON of a schema.
    pub(super) has_schema: bool,
}

/// What came of a request.
pub(super) enum Outcome {
    Answered(Times),
    /// There was no room.
    Refused,
}

pub(super) struct Times {
    pub(super) first_token: Duration,
    /// Between the events after it.
    pub(super) gaps: Vec<Duration>,
    pub(super) tokens: u64,
    pub(super) took: Duration,
}

impl Question {
    /// The body of a request. No two numbers have the same photo.
    fn body(&self, number: u64) -> Value {
        let text = json!({"type": "text", "text": format!("Describe this, number {number}.")});
        let photo = self.photo.map(|(width, height)| {
            let pixels = BASE64_STANDARD.encode(bmp(width, height, number));
            let uri = format!("data:image/bmp;base64,{pixels}");
            json!({"type": "image_url", "image_url": {"url": uri}})
        });
        let content: Vec<Value> = photo.into_iter().chain([text]).collect();
        let schema = json!({
            "type": "array",
            "minItems": 100,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "kind": {"enum": ["circle", "square", "triangle"]},
                    "sides": {"type": "integer", "minimum": 0},
                    "where": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}}]},
                },
                "required": ["name", "kind", "sides", "where"],
                "additionalProperties": false,
            },
        });
        let format = if self.has_schema {
            json!({"type": "json_schema", "json_schema": {"name": "shapes", "schema": schema}})
        } else {
            json!({"type": "text"})
        };
        json!({
            "response_format": format,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    }

    /// Asks, and reads the answer.
    pub(super) fn ask(&self, url: &str, number: u64) -> Result<Outcome> {
        let body = self.body(number).to_string();
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(600)))
            .proxy(None)
            .build()
            .into();
        let start = Instant::now();
        let request = agent.post(format!("{url}/v1/chat/completions"));
        let mut response = request.content_type("application/json").send(&body)?;
        match response.status().as_u16() {
            200 => {}
            429 => return Ok(Outcome::Refused),
            status => {
                let text = response.body_mut().read_to_string().unwrap_or_default();
                anyhow::bail!("{status}: {text}");
            }
        }
        let (mut first, mut last, mut gaps, mut tokens) = (None, start, Vec::new(), None);
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
                continue;
            };
            let chunk: Value = serde_json::from_str(data)?;
            if !chunk["error"].is_null() {
                anyhow::bail!("{}", chunk["error"]);
            }
            tokens = chunk["usage"]["completion_tokens"].as_u64().or(tokens);
            let delta = &chunk["choices"][0]["delta"];
            if delta["content"].as_str().is_none_or(str::is_empty) {
                continue;
            }
            let now = Instant::now();
            match first {
                None => first = Some(now - start),
                Some(_) => gaps.push(now - last),
            }
            last = now;
        }
        Ok(Outcome::Answered(Times {
            first_token: first.unwrap_or_else(|| start.elapsed()),
            gaps,
            tokens: tokens.context("the answer has no usage")?,
            took: start.elapsed(),
        }))
    }
}

/// A bitmap of noise.
fn bmp(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let row = (3 * width).next_multiple_of(4);
    let pixels = row * height;
    let mut bytes = b"BM".to_vec();
    let u32s = |bytes: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    };
    u32s(&mut bytes, &[54 + pixels, 0, 54, 40, width, height, 1 | 24 << 16, 0, pixels, 0, 0, 0, 0]);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < (54 + pixels) as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate((54 + pixels) as usize);
    bytes
}
