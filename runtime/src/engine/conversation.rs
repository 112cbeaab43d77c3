//! Conversations: messages and images, as data.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use image::RgbImage;
use rayon::prelude::*;

use super::{Completion, images::PromptImage};
use crate::{
    Error, Processor, PromptOptions,
    chat::{ChatError, Message, RenderOptions, Tool, text_bytes},
    image::{Limits, ProcessedImage, load_all},
};

/// Messages with their images, and how prompts are made of them. It belongs to no engine, and can go from
/// thread to thread.
///
/// A later turn goes on from the engine's state of the earlier ones, as long as that is there, so only
/// its new tokens are computed. Where the template writes earlier turns in another way than they were, as
/// when it drops old thinking, that begins at the end of the last prompt up to which all tokens are the
/// same. A clone is another conversation: it does not go on from the states of this one.
#[derive(Debug)]
pub struct Conversation {
    /// What an engine knows its states by.
    pub(super) id: u64,
    pub(super) options: PromptOptions,
    messages: Vec<Message>,
    /// What the template gets of messages that the model wrote; the others are covered when they are
    /// rendered.
    covered: Vec<Option<Message>>,
    /// How many images each message has.
    image_counts: Vec<usize>,
    images: Vec<ConversationImage>,
    /// The last answer.
    last: Option<Completion>,
}

#[derive(Debug, Clone)]
struct ConversationImage {
    source: ImageSource,
    /// As the engine of that number has processed it.
    prepared: Option<(u64, PromptImage)>,
}

#[derive(Debug, Clone)]
enum ImageSource {
    Pixels(Arc<RgbImage>),
    Processed(Arc<ProcessedImage>),
}

impl From<ImageSource> for ConversationImage {
    fn from(source: ImageSource) -> Self {
        ConversationImage { source, prepared: None }
    }
}

impl Clone for Conversation {
    fn clone(&self) -> Self {
        Conversation {
            id: next_id(),
            options: self.options.clone(),
            messages: self.messages.clone(),
            covered: self.covered.clone(),
            image_counts: self.image_counts.clone(),
            images: self.images.clone(),
            last: self.last.clone(),
        }
    }
}

/// A number that no other conversation of the process has.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Default for Conversation {
    fn default() -> Self {
        Self::new()
    }
}

impl Conversation {
    /// An empty conversation.
    pub fn new() -> Self {
        Self::with_options(PromptOptions::default())
    }

    /// An empty conversation whose prompts are made with these options. They always end with the
    /// start of an answer, and never continue a message.
    pub fn with_options(options: PromptOptions) -> Self {
        let render = RenderOptions {
            add_generation_prompt: true,
            continue_final_message: false,
            ..options.render
        };
        Conversation {
            id: next_id(),
            options: PromptOptions { render, ..options },
            messages: Vec::new(),
            covered: Vec::new(),
            image_counts: Vec::new(),
            images: Vec::new(),
            last: None,
        }
    }

    /// The messages so far. The answers are as the model wrote them, special tokens included;
    /// [`Reply::into_message`](crate::chat::Reply::into_message) has the form that another
    /// conversation takes.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Gives the model these tools to call, from the next answer on.
    pub fn set_tools(&mut self, tools: &[Tool]) {
        let tools: Vec<_> = tools.iter().map(Tool::to_json).collect();
        self.options.render.tools = (!tools.is_empty()).then(|| tools.into());
    }

    /// Takes back the last message, and its images.
    pub fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop()?;
        self.covered.pop();
        let count = self.image_counts.pop().unwrap_or_default();
        self.images.truncate(self.images.len().saturating_sub(count));
        Some(message)
    }

    /// Adds a message without images.
    pub fn push(&mut self, message: Message) {
        self.add(message, None, Vec::new());
    }

    fn add(&mut self, message: Message, covered: Option<Message>, images: Vec<ConversationImage>) {
        self.messages.push(message);
        self.covered.push(covered);
        self.image_counts.push(images.len());
        self.images.extend(images);
    }

    /// Adds a message with images. They come before its text, unless the message says where each is. They
    /// are processed when the conversation is answered, and kept as long as it, 3 bytes for a pixel, in case
    /// another engine answers.
    ///
    /// # Errors
    /// [`Error::Chat`] when the message says where more or fewer images are.
    pub fn push_with_images(
        &mut self,
        message: Message,
        images: impl IntoIterator<Item = RgbImage>,
    ) -> Result<(), Error> {
        let images = images.into_iter().map(|image| ImageSource::Pixels(Arc::new(image)).into());
        self.push_with(message, images.collect())
    }

    /// Adds a message with images that are processed already, each with settings of its own if
    /// need be ([`ImageProcessor::with`](crate::image::ImageProcessor::with)).
    ///
    /// # Errors
    /// [`Error::Chat`] when the message says where more or fewer images are.
    pub fn push_with_processed(
        &mut self,
        message: Message,
        images: Vec<ProcessedImage>,
    ) -> Result<(), Error> {
        let images = images.into_iter().map(|image| ImageSource::Processed(Arc::new(image)).into());
        self.push_with(message, images.collect())
    }

    /// Adds a message, and loads the images that it has by their URLs.
    ///
    /// # Errors
    /// [`Error::Image`] when one cannot be [loaded](crate::image::load); [`Error::Chat`] when the message has
    /// images without a URL, too.
    pub fn push_loaded(&mut self, message: Message, limits: &Limits) -> Result<(), Error> {
        let urls: Vec<&str> = message.image_urls().collect();
        let images = load_all(&urls, limits)?;
        self.push_with_images(message, images)
    }

    /// Bytes of all its text, and of its tools.
    pub(super) fn text_bytes(&self) -> usize {
        let tools = self.options.render.tools.as_ref().map_or(0, text_bytes);
        tools + self.messages.iter().map(Message::text_bytes).sum::<usize>()
    }

    fn push_with(&mut self, message: Message, images: Vec<ConversationImage>) -> Result<(), Error> {
        let message = message.without_urls();
        let message = match message.images() {
            0 => message.with_images(images.len()),
            marks if marks == images.len() => message,
            marks => {
                let token = "image".to_owned();
                return Err(ChatError::ImageCount { token, marks, images: images.len() }.into());
            }
        };
        self.add(message, None, images);
        Ok(())
    }

    /// Adds an answer to the conversation, as far as it was made. (An assistant's message that is
    /// [pushed](Self::push) instead has to be computed again.)
    pub fn push_answer(&mut self, completion: &Completion) {
        let written = &completion.written;
        self.add(written.message.clone(), Some(written.covered.clone()), Vec::new());
        self.last = Some(completion.clone());
    }

    /// Its images as the engine of that number processes them.
    pub(super) fn process_images(
        &mut self,
        engine: u64,
        processor: &Processor,
    ) -> Result<Vec<PromptImage>, Error> {
        let images = self.images.par_iter_mut().map(|image| {
            if let Some((_, known)) = image.prepared.as_ref().filter(|(by, _)| *by == engine) {
                return Ok(known.clone());
            }
            let processed = match &image.source {
                ImageSource::Pixels(pixels) => {
                    Arc::new(processor.image_processor().process(pixels)?)
                }
                ImageSource::Processed(processed) => Arc::clone(processed),
            };
            let prepared = PromptImage::new(processed);
            image.prepared = Some((engine, prepared.clone()));
            Ok(prepared)
        });
        images.collect()
    }

    /// Its prompt as covered text and as tokens, for the engine of that number.
    pub(super) fn prompt(
        &self,
        engine: u64,
        processor: &Processor,
        images: &[PromptImage],
    ) -> Result<(String, Vec<u32>), Error> {
        let layouts: Vec<_> = images.iter().map(|image| image.layout).collect();
        let messages = self.messages.iter().zip(&self.covered);
        let messages = messages.map(|(message, covered)| match covered {
            Some(covered) => Ok(covered.clone()),
            None => processor.cover(message, &self.options),
        });
        let messages = messages.collect::<Result<Vec<Message>, _>>()?;
        let text = processor.render(&messages, &layouts, &self.options)?;
        let written = self.last.as_ref().map(|last| &last.written);
        let so_far = written.filter(|last| last.engine == engine).and_then(|w| w.so_far.as_ref());
        if let Some((before, tokens)) = so_far
            && let Some(new) = text.strip_prefix(before.as_str())
            && !new.is_empty()
        {
            let tokens = [&tokens[..], &processor.encode(new, &self.options)?].concat();
            return Ok((text, tokens));
        }
        let tokens = processor.encode(&text, &self.options)?;
        Ok((text, tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_and_answers_can_go_from_thread_to_thread() {
        fn is_free<T: Send + 'static>() {}
        fn is_shared<T: Clone + Send + Sync + 'static>() {}
        is_free::<Conversation>();
        is_free::<crate::Answer>();
        is_shared::<crate::Engine>();
    }
}
