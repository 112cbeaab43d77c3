//! The settings of generation that a request asks for.

use std::collections::BTreeMap;

use lfm2vl::{Constraint, Engine, GenerationOptions, chat::Tokenizer};

use super::tools::Tools;
use crate::{
    error::ApiError,
    settings::Settings,
    wire::{ChatCompletionRequest, ResponseFormat, Stop},
};

/// The options of a request, but its deadline. What it does not say is as the model recommends.
pub(super) fn options(
    engine: &Engine,
    settings: &Settings,
    request: &mut ChatCompletionRequest,
    tools: &Tools,
) -> Result<GenerationOptions, ApiError> {
    let model = engine.generation_options()?;
    let tokenizer = engine.processor().tokenizer();
    let most = settings.max_tokens.unwrap_or_else(|| engine.context());
    let (name, wanted) = match request.max_completion_tokens {
        None => ("max_tokens", request.max_tokens),
        wanted => ("max_completion_tokens", wanted),
    };
    if wanted.is_some_and(|wanted| !(1..=most).contains(&wanted)) {
        return Err(ApiError::of_param(name, format!("{name} must be from 1 to {most}")));
    }
    let top_k = match request.top_k {
        None => model.top_k,
        Some(0 | -1) => None,
        Some(k) => Some(usize::try_from(k).map_err(|_| {
            ApiError::of_param("top_k", "top_k must be at least 1, or 0 for all tokens")
        })?),
    };
    if request.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(ApiError::of_param("temperature", "temperature must be from 0 to 2"));
    }
    let stop = match request.stop.take() {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Several(texts)) => texts,
    };
    if stop.len() > MOST_STOPS || stop.iter().any(|text| text.len() > LONGEST_STOP) {
        return Err(ApiError::of_param("stop", "at most 16 texts of 1,024 bytes are allowed"));
    }
    let top = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            let message = "top_logprobs needs logprobs; set it to true";
            return Err(ApiError::of_param("top_logprobs", message));
        }
    };
    let mut suppress_tokens = model.suppress_tokens.clone();
    suppress_tokens.extend(tools.suppressed_token(tokenizer)?);
    let options = GenerationOptions {
        max_new_tokens: wanted.unwrap_or(most),
        // A temperature that cannot be divided by takes the most likely token, too.
        temperature: request
            .temperature
            .map_or(model.temperature, |t| if t < 1e-4 { 0.0 } else { t }),
        top_k,
        top_p: request.top_p.or(model.top_p),
        min_p: request.min_p.or(model.min_p),
        repetition_penalty: request.repetition_penalty.unwrap_or(model.repetition_penalty),
        presence_penalty: request.presence_penalty.unwrap_or(0.0),
        frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
        logit_bias: logit_bias(request, tokenizer)?,
        suppress_tokens,
        seed: request.seed.map(i64::cast_unsigned),
        stop: [model.stop.clone(), stop].concat(),
        ignore_eos: request.ignore_eos.unwrap_or(false),
        logprobs: top,
        constraint: constraint(request, tools)?,
        ..model
    };
    Ok(options.validated()?)
}

const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;

fn logit_bias(
    request: &ChatCompletionRequest,
    tokenizer: &Tokenizer,
) -> Result<BTreeMap<u32, f32>, ApiError> {
    let biases = request.logit_bias.iter().flatten().map(|(token, &bias)| {
        let id: Option<u32> = token.parse().ok().filter(|&id| tokenizer.token(id).is_some());
        match id.filter(|_| (-100.0..=100.0).contains(&bias)) {
            Some(id) => Ok((id, bias)),
            None => {
                let message = "logit_bias must give tokens of the model numbers from -100 to 100";
                Err(ApiError::of_param(format!("logit_bias.{token}"), message))
            }
        }
    });
    biases.collect()
}

/// The form of the answer: of its text, and of the calls of tools.
fn constraint(
    request: &mut ChatCompletionRequest,
    tools: &Tools,
) -> Result<Option<Constraint>, ApiError> {
    let format = match request.response_format.take() {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(Constraint::json_object()),
        Some(ResponseFormat::JsonSchema { json_schema }) => {
            let param = "response_format.json_schema.schema";
            let schema = json_schema.schema.filter(|schema| schema.is_object());
            let schema =
                schema.ok_or_else(|| ApiError::of_param(param, "there is no schema; send one"))?;
            Some(Constraint::JsonSchema(schema))
        }
    };
    let format = match (format, request.structured_outputs.take()) {
        (Some(_), Some(_)) => {
            let message = "response_format and structured_outputs exclude each other; send one";
            return Err(ApiError::of_param("structured_outputs", message));
        }
        (format, None) => format,
        (None, Some(outputs)) => Some(outputs.constraint().ok_or_else(|| {
            let message = "give exactly one of json, regex, grammar and choice";
            ApiError::of_param("structured_outputs", message)
        })?),
    };
    match tools.grammar(format.as_ref())? {
        Some(grammar) => Ok(Some(Constraint::Lark(grammar))),
        None => Ok(format),
    }
}
