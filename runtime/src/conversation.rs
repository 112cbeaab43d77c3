//! A conversation with a model.

use std::time::Instant;

use image::RgbImage;
use ndarray::Array2;
use rayon::prelude::*;

use crate::{
    Answer, Engine, Error, GenerationOptions, PromptOptions, Timings,
    answer::{Generation, Prepared},
    chat::{ChatError, Message, RenderOptions, Tool},
    image::{ImageLayout, ProcessedImage},
    session::{Checkpoint, DecoderState},
};

/// Messages and images, and the decoder's state after them. A later turn goes on from the state
/// of the earlier ones, so only its new tokens are computed. Where the template writes earlier
/// turns in another way than they were, as when it drops old thinking, the state goes back to
/// the end of the last prompt up to which all tokens are the same.
pub struct Conversation<'e> {
    engine: &'e Engine,
    options: PromptOptions,
    messages: Vec<Message>,
    /// The messages as the template gets them.
    covered: Vec<Message>,
    images: Vec<ConversationImage>,
    /// What the state was computed from; `None` before the first answer.
    computed: Option<Computed>,
    /// Seconds spent on images since the last answer.
    preprocess_seconds: f64,
}

struct ConversationImage {
    layout: ImageLayout,
    content: ImageContent,
}

/// What is known of an image: patches until it has been through the vision graphs.
enum ImageContent {
    Patches(ProcessedImage),
    Features(Array2<f32>),
}

/// The tokens so far, and the state after the first `state.tokens()` of them.
#[derive(Default)]
pub(crate) struct Computed {
    /// Prompt and answers as covered text; a later prompt that starts with it goes on from here,
    /// with the tokens that the model wrote.
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: DecoderState,
    /// The states after earlier prompts, before their answers.
    checkpoints: Vec<Checkpoint>,
}

impl<'e> Conversation<'e> {
    pub(crate) fn new(engine: &'e Engine, options: PromptOptions) -> Self {
        Conversation {
            engine,
            options: PromptOptions {
                render: RenderOptions {
                    add_generation_prompt: true,
                    continue_final_message: false,
                    ..options.render
                },
                ..options
            },
            messages: Vec::new(),
            covered: Vec::new(),
            images: Vec::new(),
            computed: None,
            preprocess_seconds: 0.0,
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
        self.images.truncate(self.images.len().saturating_sub(message.images()));
        Some(message)
    }

    /// Adds a message without images.
    pub fn push(&mut self, message: Message) {
        self.covered.push(self.engine.prompter().cover(&message, &self.options));
        self.messages.push(message);
    }

    /// Adds a message with images, which are processed in parallel. They come before its text,
    /// unless the message has a place of its own for each.
    ///
    /// # Errors
    /// [`Error::Image`] when an image cannot be processed; [`Error::Chat`] when the message has
    /// places for more or fewer images.
    pub fn push_with_images(&mut self, message: Message, images: &[RgbImage]) -> Result<(), Error> {
        let start = Instant::now();
        let processor = self.engine.image_processor();
        let processed =
            images.par_iter().map(|i| processor.process(i)).collect::<Result<Vec<_>, _>>()?;
        self.preprocess_seconds += start.elapsed().as_secs_f64();
        self.push_with_processed(message, processed)
    }

    /// Adds a message with images that are processed already, each with settings of its own if
    /// need be ([`ImageProcessor::with`](crate::image::ImageProcessor::with)).
    ///
    /// # Errors
    /// [`Error::Chat`] when the message has places for more or fewer images.
    pub fn push_with_processed(
        &mut self,
        message: Message,
        images: Vec<ProcessedImage>,
    ) -> Result<(), Error> {
        let message = match message.images() {
            0 => message.with_images(images.len()),
            places if places == images.len() => message,
            marks => {
                let token = "image".to_owned();
                return Err(ChatError::ImageCount { token, marks, images: images.len() }.into());
            }
        };
        self.images.extend(images.into_iter().map(|image| ConversationImage {
            layout: image.layout,
            content: ImageContent::Patches(image),
        }));
        self.push(message);
        Ok(())
    }

    /// Adds what the model said, as covered text, with the state after it if that is known.
    pub(crate) fn push_answer(&mut self, covered: String, computed: Option<Computed>) {
        self.messages.push(Message::assistant(self.engine.prompter().uncover(&covered)));
        self.covered.push(Message::assistant(covered));
        self.computed = computed;
    }

    /// Starts the answer to the messages. The iterator gives its text piece by piece; an answer
    /// that is dropped early becomes part of the conversation as far as it went.
    ///
    /// # Errors
    /// [`Error`] when the prompt cannot be made, is too long, or a graph fails.
    pub fn generate(&mut self, options: &GenerationOptions) -> Result<Answer<'_, 'e>, Error> {
        let generation = self.start(options)?;
        Ok(Answer::new(self, generation))
    }

    /// Runs the prompt.
    pub(crate) fn start(&mut self, options: &GenerationOptions) -> Result<Generation<'e>, Error> {
        let options = options.clone().validated()?;
        if options.prompt_lookup_num_tokens.is_some() && !self.engine.decoder().is_speculative() {
            return Err(Error::NoSpeculation);
        }
        if self.messages.is_empty() {
            return Err(Error::NoMessage);
        }
        let mut timings = Timings {
            preprocess: std::mem::take(&mut self.preprocess_seconds),
            ..Timings::default()
        };
        let start = Instant::now();
        let layouts: Vec<_> = self.images.iter().map(|image| image.layout).collect();
        let text = self.engine.prompter().render(&self.covered, &layouts, &self.options)?;
        let mut computed = self.go_on_to(text)?;
        let reused_tokens = computed.state.tokens();
        let prompt_tokens = computed.tokens.len();
        let context = self.engine.context();
        if prompt_tokens >= context {
            return Err(Error::TooLong { tokens: prompt_tokens, context });
        }
        let prompt_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        for image in &mut self.images {
            if let ImageContent::Patches(patches) = &image.content {
                image.content = ImageContent::Features(self.engine.image_features(patches)?);
            }
        }
        timings.vision = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let image_token = self.engine.prompter().image_token_id();
        let is_image = |id: &&u32| **id == image_token;
        let reused_images = computed.tokens[..reused_tokens].iter().filter(is_image).count();
        let features = features_from(&self.images, reused_images);
        let embeddings = self.engine.embed(&computed.tokens[reused_tokens..], &features)?;
        let decoder = self.engine.decoder();
        let logits = decoder.run(embeddings, &mut computed.state)?.logits.concat();
        computed.checkpoints.push(decoder.checked(computed.state.checkpoint())?);
        timings.prefill = prompt_seconds + start.elapsed().as_secs_f64();

        let image_tokens = computed.tokens.iter().filter(is_image).count();
        let prepared =
            Prepared { computed, logits, prompt_tokens, reused_tokens, image_tokens, timings };
        Ok(Generation::new(self.engine, &self.options, &options, prepared))
    }

    /// The tokens of the prompt `text`, going on from what was computed as far as it is the same.
    fn go_on_to(&mut self, text: String) -> Result<Computed, Error> {
        let prompter = self.engine.prompter();
        let decoder = self.engine.decoder();
        let Some(mut computed) = self.computed.take() else {
            let tokens = prompter.encode(&text, &self.options)?;
            let state = decoder.new_state()?;
            return Ok(Computed { text, tokens, state, checkpoints: Vec::new() });
        };
        if let Some(new_text) = text.strip_prefix(&computed.text)
            && !new_text.is_empty()
        {
            computed.tokens.extend(prompter.encode(new_text, &self.options)?);
        } else {
            let tokens = prompter.encode(&text, &self.options)?;
            let same = tokens.iter().zip(&computed.tokens).take_while(|(a, b)| a == b).count();
            // The prompt's last token must be run, for its logits.
            let reusable = same.min(tokens.len().saturating_sub(1));
            computed.checkpoints.retain(|checkpoint| checkpoint.tokens() <= reusable);
            match computed.checkpoints.last() {
                Some(checkpoint) => decoder.checked(computed.state.rewind(checkpoint))?,
                None => computed.state = decoder.new_state()?,
            }
            computed.tokens = tokens;
        }
        computed.text = text;
        Ok(computed)
    }
}

/// The features of all images without their first `skip` rows.
fn features_from(images: &[ConversationImage], mut skip: usize) -> Vec<Array2<f32>> {
    let mut features = Vec::new();
    for image in images {
        let ImageContent::Features(all) = &image.content else { continue };
        let skipped = skip.min(all.nrows());
        skip -= skipped;
        if skipped < all.nrows() {
            features.push(all.slice(ndarray::s![skipped.., ..]).to_owned());
        }
    }
    features
}
