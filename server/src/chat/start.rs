//! From a request to answers in the making. Loading images and making prompts takes time: not in a thread that
//! serves others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lfm2vl::Answer;

use super::{
    handler::read,
    messages::{Messages, prompt_options},
    options,
    tools::Tools,
};
use crate::{
    error::ApiError,
    service::Service,
    wire::{ChatCompletionRequest, UNUSED},
};

/// Whether the client of a request has left. Dropping the guard says so.
#[derive(Clone, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

/// Says that the client has left when it is dropped.
pub(super) struct Guard(Abandoned);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Abandoned {
    pub(super) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    /// An error that nobody reads, if the client has left.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(ApiError::invalid("the client has left")),
            false => Ok(()),
        }
    }
}

/// Answers in the making.
pub(crate) struct Started {
    pub(crate) id: String,
    /// Seconds of Unix time.
    pub(crate) created: u64,
    pub(crate) answers: Vec<Answer>,
    /// Whether the end of a stream has the usage.
    pub(crate) include_usage: bool,
    pub(crate) is_stream: bool,
}

/// Starts the answers to a request.
pub(crate) fn start(
    service: &Service,
    mut request: ChatCompletionRequest,
    abandoned: &Abandoned,
) -> Result<Started, ApiError> {
    let (engine, settings) = (service.engine(), service.settings());
    check_fields(&request)?;
    check_model(service, &request)?;
    let choices = request.n.unwrap_or(1);
    if choices == 0 || choices > settings.max_choices {
        let message = format!("n must be from 1 to {}", settings.max_choices);
        return Err(ApiError::of_param("n", message));
    }
    let tools = Tools::new(&mut request)?;
    let options = options::options(engine, settings, &mut request, &tools)?;
    let prompt = prompt_options(&request, settings, &tools);
    let messages = Messages::new(&mut request)?;
    let mut conversation = messages.conversation(engine, settings, prompt, abandoned)?;
    abandoned.check()?;
    let has_format = options.constraint.is_some();
    let mut answers = Vec::new();
    for choice in 0..choices {
        let mut options = options.clone();
        options.seed = options.seed.map(|seed| seed.wrapping_add(choice as u64));
        let answer = match choice {
            0 => engine.generate(&mut conversation, &options),
            // Another conversation, with the same images.
            _ => engine.generate(&mut conversation.clone(), &options),
        };
        answers.push(answer.map_err(|error| match error {
            lfm2vl::Error::Constraint { .. } if has_format => {
                let param = if tools.is_callable() { "tools" } else { "response_format" };
                ApiError::from(error).with_param(param)
            }
            other => other.into(),
        })?);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(Started {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: since.unwrap_or(Duration::ZERO).as_secs(),
        answers,
        include_usage: request.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        is_stream: request.stream.unwrap_or(false),
    })
}

/// Checks a request's body as far as that needs no model: its JSON, its fields, messages and tools.
///
/// # Errors
/// OpenAI's error object as text, as the client would get it.
pub fn check_request(body: &[u8]) -> Result<(), String> {
    let check = || {
        let mut request = read(body)?;
        check_fields(&request)?;
        Tools::new(&mut request)?.grammar(None)?;
        Messages::new(&mut request).map(drop)
    };
    check().map_err(|error: ApiError| serde_json::json!(error.body()).to_string())
}

/// What can be told before anything is done.
fn check_fields(request: &ChatCompletionRequest) -> Result<(), ApiError> {
    if let Some(name) = request.unknown.keys().find(|name| !UNUSED.contains(&name.as_str())) {
        let message = format!("'{name}' is not supported; leave it out");
        return Err(ApiError::of_param(&**name, message).with_code("unsupported_parameter"));
    }
    let is_text = |modalities: &Vec<String>| modalities.iter().all(|m| m == "text");
    if !request.modalities.as_ref().is_none_or(is_text) {
        let message = "the model writes text only; leave modalities out";
        return Err(ApiError::of_param("modalities", message));
    }
    Ok(())
}

fn check_model(service: &Service, request: &ChatCompletionRequest) -> Result<(), ApiError> {
    let name = service.model_name();
    if request.model.as_ref().is_none_or(|wanted| wanted == name) {
        return Ok(());
    }
    let message = format!("there is no such model; ask for '{name}'");
    Err(ApiError::not_found(message).with_param("model").with_code("model_not_found"))
}
