//! From a request to answers in the making. Loading images and making prompts takes time: not in a thread that
//! serves others.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use lfm2vl::{Answer, GenerationOptions};
use tracing::Span;

use super::{
    abandoned::Abandoned,
    messages::{Messages, prompt_options},
    options,
    tools::Tools,
};
use crate::{
    admission::Place,
    error::ApiError,
    service::Service,
    wire::{ChatCompletionRequest, UNUSED},
};

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

/// A request that is understood, with its images as they came.
struct Gathered {
    request: ChatCompletionRequest,
    tools: Tools,
    options: GenerationOptions,
    messages: Messages,
    choices: usize,
    /// The field that asks for a form of the answer.
    form: &'static str,
}

/// Starts the answers to the request in a body, no longer than its client waits. What takes time is done in threads
/// that may be kept busy; what takes memory besides, in no more of them than there are cores.
/// `place` is kept until such a thread has ended.
pub(crate) async fn prepare(
    service: &Service,
    body: Bytes,
    place: Option<Place>,
) -> Result<Started, ApiError> {
    let (timeout, start) = (service.settings().timeout, Instant::now());
    let prepared = tokio::time::timeout(timeout, prepare_in_time(service, body, place, start));
    prepared.await.unwrap_or_else(|_| Err(lfm2vl::Error::TimedOut(timeout).into()))
}

async fn prepare_in_time(
    service: &Service,
    body: Bytes,
    place: Option<Place>,
    start: Instant,
) -> Result<Started, ApiError> {
    let abandoned = Abandoned::default();
    let _guard = abandoned.guard();
    let of_thread = place.clone();
    let gathered = in_thread(service, &abandoned, move |service, abandoned| {
        let _place = of_thread;
        gather(&service, body, &abandoned)
    });
    let gathered = gathered.await?;
    let permit = service.preparing().await?;
    in_thread(service, &abandoned, move |service, abandoned| {
        let _place = place;
        let started = answers(&service, gathered, &abandoned, start);
        drop(permit);
        started
    })
    .await
}

async fn in_thread<T: Send + 'static>(
    service: &Service,
    abandoned: &Abandoned,
    run: impl FnOnce(Service, Abandoned) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (service, abandoned, span) = (service.clone(), abandoned.clone(), Span::current());
    let ran = tokio::task::spawn_blocking(move || {
        abandoned.check()?;
        span.in_scope(|| run(service, abandoned))
    });
    ran.await.map_err(|error| ApiError::internal(&error))?
}

/// Understands a request, and gets its images.
fn gather(service: &Service, body: Bytes, abandoned: &Abandoned) -> Result<Gathered, ApiError> {
    let (engine, settings) = (service.engine(), service.settings());
    let mut request = read(&body)?;
    drop(body);
    check_fields(&request)?;
    check_model(service, &request)?;
    let choices = request.n.unwrap_or(1);
    if choices == 0 || choices > settings.max_choices {
        let message = format!("n must be from 1 to {}", settings.max_choices);
        return Err(ApiError::of_param("n", message));
    }
    let tools = Tools::new(&mut request)?;
    let form = match &request.structured_outputs {
        _ if tools.is_callable() => "tools",
        Some(_) => "structured_outputs",
        None => "response_format",
    };
    let images = request.image_settings.clone().unwrap_or_default().overrides();
    if let Err(error) = engine.image_processor().with(&images) {
        return Err(ApiError::of_param("image_settings", error.to_string()));
    }
    let options = options::options(engine, settings, &mut request, &tools)?;
    let mut messages = Messages::new(&mut request)?;
    messages.read_images(settings, abandoned)?;
    Ok(Gathered { request, tools, options, messages, choices, form })
}

/// Processes the images, and starts the answers.
fn answers(
    service: &Service,
    gathered: Gathered,
    abandoned: &Abandoned,
    start: Instant,
) -> Result<Started, ApiError> {
    let (engine, settings) = (service.engine(), service.settings());
    let Gathered { request, tools, options, messages, choices, form } = gathered;
    let prompt = prompt_options(&request, settings, &tools);
    let mut conversation = messages.conversation(engine, settings, prompt, abandoned)?;
    abandoned.check()?;
    let mut answers = Vec::new();
    for choice in 0..choices {
        abandoned.check()?;
        let options = GenerationOptions {
            seed: options.seed.map(|seed| seed.wrapping_add(choice as u64)),
            timeout: Some(settings.timeout.saturating_sub(start.elapsed())),
            ..options.clone()
        };
        let answer = match choice {
            0 => engine.generate(&mut conversation, &options),
            // Another conversation, with the same images.
            _ => engine.generate(&mut conversation.clone(), &options),
        };
        answers.push(answer.map_err(|error| match error {
            lfm2vl::Error::Constraint { .. } => ApiError::from(error).with_param(form),
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

/// The request in a body.
fn read(body: &[u8]) -> Result<ChatCompletionRequest, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let request = serde_path_to_error::deserialize(&mut json);
    let request = request.map_err(|error| {
        let path = error.path().to_string();
        let message = format!("the request is not understood: {}", error.inner());
        match path.as_str() {
            "." | "?" => ApiError::invalid(message),
            _ => ApiError::of_param(path, message),
        }
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body is no JSON: {error}")))?;
    Ok(request)
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

/// Bytes of the template's variables.
const MOST_VARIABLES: usize = 64 << 10;

/// What can be told before anything is done.
fn check_fields(request: &ChatCompletionRequest) -> Result<(), ApiError> {
    let mut unknown = request.unknown.iter().filter(|(_, value)| !value.is_null());
    if let Some((name, _)) = unknown.find(|(name, _)| !UNUSED.contains(&name.as_str())) {
        let message = format!("'{name}' is not supported; leave it out");
        return Err(ApiError::of_param(&**name, message).with_code("unsupported_parameter"));
    }
    let variables = request.chat_template_kwargs.iter().flatten();
    let bytes: usize = variables.map(|(key, value)| key.len() + value.to_string().len()).sum();
    if bytes > MOST_VARIABLES {
        let message = format!("they have {bytes} bytes, more than the limit of {MOST_VARIABLES}");
        return Err(ApiError::of_param("chat_template_kwargs", message));
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
