//! The messages of a request, and their images.

use std::sync::atomic::{AtomicUsize, Ordering};

use lfm2vl::{
    Conversation, Engine, PromptOptions,
    chat::{Content, Message, Part, RenderOptions, Role},
    image::{ImageError, Limits, Overrides, ProcessedImage, decode},
};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{abandoned::Abandoned, tools::Tools};
use crate::{error::ApiError, settings::Settings, wire::ChatCompletionRequest};

/// An image of the request: where it stands, and its settings.
struct Image {
    source: Source,
    param: String,
    settings: Overrides,
}

enum Source {
    Url(String),
    /// What it leads to, as it is stored.
    Bytes(Vec<u8>),
}

const MOST_MESSAGES: usize = 4096;

/// The messages of a request, and their images in order.
pub(super) struct Messages {
    messages: Vec<Message>,
    images: Vec<Image>,
}

impl Messages {
    /// Those of a request.
    pub(super) fn new(request: &mut ChatCompletionRequest) -> Result<Self, ApiError> {
        if request.messages.len() > MOST_MESSAGES {
            let message = format!("at most {MOST_MESSAGES} messages are allowed");
            return Err(ApiError::of_param("messages", message));
        }
        let overrides = request.image_settings.clone().unwrap_or_default().overrides();
        let (mut messages, mut images) = (Vec::new(), Vec::new());
        for (index, value) in std::mem::take(&mut request.messages).into_iter().enumerate() {
            let param = format!("messages[{index}]");
            images.extend(images_of(&value, &param, &overrides)?);
            messages.push(message(value, &param)?);
        }
        if messages.is_empty() {
            Err(ApiError::of_param("messages", "there is no message; send one"))
        } else {
            Ok(Messages { messages, images })
        }
    }

    /// Gets the images, which may be a matter of the network.
    pub(super) fn read_images(
        &mut self,
        settings: &Settings,
        abandoned: &Abandoned,
    ) -> Result<(), ApiError> {
        let (count, most) = (self.images.len(), settings.max_images);
        if count > most {
            let message = format!("the request has {count} images, and {most} are allowed");
            return Err(ApiError::of_param("messages", message));
        }
        // All of them together are no more than a body, wherever they come from.
        let mut left = settings.max_body_bytes as u64;
        for image in &mut self.images {
            abandoned.check()?;
            if let Source::Url(url) = &image.source {
                let max_bytes = settings.images.max_bytes.min(left);
                let limits = Limits { allow_files: false, max_bytes, ..settings.images };
                let bytes = lfm2vl::image::read(url, &limits);
                let bytes = bytes.map_err(|e| ApiError::of_param(&*image.param, cause(&e)))?;
                left = left.saturating_sub(bytes.len() as u64);
                image.source = Source::Bytes(bytes);
            }
        }
        Ok(())
    }

    /// The conversation that is to go on, its images decoded and processed.
    pub(super) fn conversation(
        self,
        engine: &Engine,
        settings: &Settings,
        options: PromptOptions,
        abandoned: &Abandoned,
    ) -> Result<Conversation, ApiError> {
        let mut images = process(engine, settings, &self.images, abandoned)?.into_iter();
        let mut conversation = Conversation::with_options(options);
        for message in self.messages {
            let own = images.by_ref().take(message.images()).collect();
            conversation.push_with_processed(message, own)?;
        }
        Ok(conversation)
    }
}

/// How the prompt of a request is made.
pub(super) fn prompt_options(
    request: &ChatCompletionRequest,
    settings: &Settings,
    tools: &Tools,
) -> PromptOptions {
    let mut render = RenderOptions {
        tools: tools.for_template(),
        variables: request.chat_template_kwargs.clone().unwrap_or_default(),
        ..RenderOptions::default()
    };
    // These are the template's own inputs.
    for name in ["messages", "tools", "documents", "add_generation_prompt"] {
        render.variables.remove(name);
    }
    PromptOptions {
        render,
        special_tokens_in_text: false,
        special_tokens_in_system: settings.special_tokens_in_system,
    }
}

fn message(mut value: Value, param: &str) -> Result<Message, ApiError> {
    // What another model refused to say is what was said.
    let parts = value.get_mut("content").and_then(Value::as_array_mut);
    for part in parts.into_iter().flatten() {
        if part["type"] == "refusal" && part["refusal"].is_string() {
            *part = json!({"type": "text", "text": part["refusal"]});
        }
    }
    let wrong = |message: String| ApiError::of_param(param, message);
    let message: Message = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let param = if path == "." { param.to_owned() } else { format!("{param}.{path}") };
        ApiError::of_param(param, format!("a message is not understood: {}", error.inner()))
    })?;
    if let Some(Content::Parts(parts)) = &message.content {
        for (index, part) in parts.iter().enumerate() {
            let param = format!("{param}.content[{index}]");
            match part {
                Part::Text(_) | Part::ImageUrl(_) => {}
                Part::Image => {
                    let message = "an image has no URL; send it as a part of type 'image_url'";
                    return Err(ApiError::of_param(param, message));
                }
                Part::Other(part) => {
                    let r#type = part["type"].as_str().unwrap_or("none");
                    let message = format!(
                        "a part of type '{type}' is not understood; send 'text' or 'image_url'"
                    );
                    return Err(ApiError::of_param(param, message));
                }
            }
        }
    }
    if message.content.is_none() && message.role != Role::Assistant {
        return Err(wrong("the message has no content; give it some".into()));
    }
    Ok(message)
}

/// The images of a message as the client sent it.
fn images_of(message: &Value, param: &str, overrides: &Overrides) -> Result<Vec<Image>, ApiError> {
    let parts = message["content"].as_array().into_iter().flatten().enumerate();
    let parts = parts.filter(|(_, part)| part["type"] == "image_url");
    let image = |(index, part): (usize, &Value)| {
        let param = format!("{param}.content[{index}].image_url");
        let image = &part["image_url"];
        let url = image["url"].as_str().or(image.as_str());
        let url = url.ok_or_else(|| ApiError::of_param(&*param, "the image has no URL"))?;
        let mut settings = overrides.clone();
        match image["detail"].as_str() {
            // One small view, as OpenAI has it.
            Some("low") => settings.do_image_splitting = Some(false),
            None | Some("auto" | "high" | "original") => {}
            Some(other) => {
                let message =
                    format!("detail is '{other}'; it must be low, high, original or auto");
                return Err(ApiError::of_param(param, message));
            }
        }
        Ok(Image { source: Source::Url(url.to_owned()), param, settings })
    };
    parts.map(image).collect()
}

/// What the client is told of an image that could not be had: not where names lead inside of our network.
fn cause(error: &ImageError) -> String {
    match error {
        ImageError::PrivateAddress { .. } => {
            "the image's address is not public; send a data URI".into()
        }
        ImageError::Named { error, .. } => cause(error),
        other => other.to_string(),
    }
}

/// Decodes and processes images, if they are not too many tokens. Each thread has the pixels of one.
fn process(
    engine: &Engine,
    settings: &Settings,
    images: &[Image],
    abandoned: &Abandoned,
) -> Result<Vec<ProcessedImage>, ApiError> {
    let (tokens, most) = (AtomicUsize::new(0), settings.max_image_tokens);
    let processed = images.par_iter().map(|image| {
        abandoned.check()?;
        let wrong = |error: ImageError| ApiError::of_param(&*image.param, error.to_string());
        let processor = engine.image_processor().with(&image.settings).map_err(wrong)?;
        let bytes = match &image.source {
            Source::Bytes(bytes) => bytes.as_slice(),
            Source::Url(_) => &[],
        };
        let pixels = decode(bytes, &settings.images).map_err(wrong)?;
        let layout = processor.layout(pixels.height() as usize, pixels.width() as usize);
        let so_far = tokens.fetch_add(layout.tokens(), Ordering::Relaxed) + layout.tokens();
        if so_far > most {
            let message = format!(
                "the images have more than {most} image tokens together; send fewer or smaller ones, or set image_settings"
            );
            return Err(ApiError::of_param("messages", message)
                .with_code("context_length_exceeded"));
        }
        processor.process(&pixels).map_err(wrong)
    });
    processed.collect()
}
