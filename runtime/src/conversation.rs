//! A conversation with a model.

use std::{sync::Arc, time::Instant};

use image::RgbImage;
use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::{
    Answer, Engine, Error, GenerationOptions, PromptOptions, Timings,
    answer::{Generation, Prepared},
    cache::{ImageKey, Prefix},
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
    /// What it is known by to the engine's caches; not made where they are not used.
    key: Option<ImageKey>,
    content: ImageContent,
}

/// What is known of an image: patches until it has been through the vision graphs.
enum ImageContent {
    Patches(ProcessedImage),
    Features(Arc<Array2<f32>>),
}

/// Tokens that a state must save to be worth keeping.
const WORTH_KEEPING: usize = 32;

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

    pub(crate) fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// Takes back the last message, and its images.
    pub fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop()?;
        self.covered.pop();
        if message.images() > 0 {
            self.images.truncate(self.images.len().saturating_sub(message.images()));
            // Another image in its place could have the same tokens.
            self.computed = None;
        }
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
            key: None,
            content: ImageContent::Patches(image),
        }));
        self.push(message);
        Ok(())
    }

    /// Adds what the model said, as covered text, with the state after it if that is known.
    pub(crate) fn push_answer(&mut self, covered: String, mut computed: Option<Computed>) {
        self.messages.push(Message::assistant(self.engine.prompter().uncover(&covered)));
        self.covered.push(Message::assistant(covered));
        if let Some(computed) = &mut computed {
            let covered = computed.state.tokens();
            self.remember(&computed.tokens[..covered], &mut computed.state);
        }
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
        let prompt_tokens = computed.tokens.len();
        let context = self.engine.context();
        if prompt_tokens >= context {
            return Err(Error::TooLong { tokens: prompt_tokens, context });
        }
        self.make_keys();
        if let Some(state) = self.known_state(&computed)? {
            computed.state = state;
        }
        let reused_tokens = computed.state.tokens();
        let prompt_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let reused_images = self.image_tokens(&computed.tokens[..reused_tokens]);
        let features = self.features(reused_images)?;
        timings.vision = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let decoder = self.engine.decoder();
        let embeddings = self.engine.embed(&computed.tokens[reused_tokens..], &features)?;
        let (mut logits, mut from) = (None, reused_tokens);
        for end in self.pauses(&computed.tokens, reused_tokens) {
            let piece = s![.., from - reused_tokens..end - reused_tokens, ..];
            logits = decoder.run(embeddings.slice(piece), &mut computed.state)?.logits.pop();
            if end < prompt_tokens {
                self.remember(&computed.tokens[..end], &mut computed.state);
            }
            from = end;
        }
        computed.checkpoints.push(decoder.checked(computed.state.checkpoint())?);
        timings.prefill = prompt_seconds + start.elapsed().as_secs_f64();

        let image_tokens = self.image_tokens(&computed.tokens);
        let prepared =
            Prepared { computed, logits, prompt_tokens, reused_tokens, image_tokens, timings };
        Ok(Generation::new(self.engine, &self.options, &options, prepared))
    }

    fn image_tokens(&self, tokens: &[u32]) -> usize {
        let image_token = self.engine.prompter().image_token_id();
        tokens.iter().filter(|&&id| id == image_token).count()
    }

    /// Makes the keys of new images, where a cache needs them.
    fn make_keys(&mut self) {
        if !self.engine.images.is_used() && !self.engine.states.is_used() {
            return;
        }
        self.images.par_iter_mut().filter(|image| image.key.is_none()).for_each(|image| {
            if let ImageContent::Patches(patches) = &image.content {
                image.key = Some(ImageKey::of(patches));
            }
        });
    }

    /// The features of all images without the first `skip` rows. Images of which nothing is left do
    /// not go through the vision graphs.
    fn features(&mut self, mut skip: usize) -> Result<Vec<Array2<f32>>, Error> {
        let mut features = Vec::new();
        for image in &mut self.images {
            let skipped = skip.min(image.layout.tokens());
            skip -= skipped;
            if skipped < image.layout.tokens() {
                let all = image.features(self.engine)?;
                features.push(all.slice(s![skipped.., ..]).to_owned());
            }
        }
        Ok(features)
    }

    /// What the engine's cache knows beginnings of these tokens by; `None` where it is not used.
    fn prefix(&self, tokens: &[u32]) -> Option<Prefix> {
        if !self.engine.states.is_used() {
            return None;
        }
        let mut left = self.image_tokens(tokens);
        let mut images = Vec::new();
        for image in &self.images {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(image.layout.tokens());
            images.push(image.key?);
        }
        Some(Prefix { tokens: tokens.to_vec(), images })
    }

    /// A copy of the longest state that the engine knows for the beginning of a new conversation.
    fn known_state(&self, computed: &Computed) -> Result<Option<DecoderState>, Error> {
        if computed.state.tokens() > 0 {
            return Ok(None);
        }
        let known = self.prefix(&computed.tokens).and_then(|p| self.engine.states.longest(&p));
        let copy = known.map(|state| state.with_place_for(computed.tokens.len() + 1));
        copy.map(|copy| self.engine.decoder().checked(copy)).transpose()
    }

    /// Keeps a state in the engine's cache.
    fn remember(&self, tokens: &[u32], state: &mut DecoderState) {
        let Some(prefix) = self.prefix(tokens) else { return };
        // What cannot be copied is not kept.
        if !self.engine.states.contains(&prefix)
            && let Ok(copy) = state.copy()
        {
            self.engine.states.insert(prefix, copy);
        }
    }

    /// Where runs over a prompt end after its first `reused` tokens: where other prompts may go on
    /// in another way, which is after the first message and after the last image, and at its end.
    fn pauses(&self, tokens: &[u32], reused: usize) -> Vec<usize> {
        let mut pauses = Vec::new();
        if self.engine.states.is_used() {
            let ends = self.engine.folder().eos_token_ids();
            let first_message = tokens.iter().position(|id| ends.contains(id));
            let image_token = self.engine.prompter().image_token_id();
            let last_image = tokens.iter().rposition(|&id| id == image_token);
            pauses.extend(first_message.into_iter().chain(last_image).map(|last| last + 1));
            pauses.retain(|&end| end >= reused + WORTH_KEEPING && end < tokens.len());
            pauses.sort_unstable();
            pauses.dedup();
        }
        pauses.push(tokens.len());
        pauses
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

impl ConversationImage {
    /// Its features [tokens, hidden], from the engine's cache or the vision graphs.
    fn features(&mut self, engine: &Engine) -> Result<Arc<Array2<f32>>, Error> {
        let patches = match &self.content {
            ImageContent::Features(features) => return Ok(features.clone()),
            ImageContent::Patches(patches) => patches,
        };
        let features = match self.key.and_then(|key| engine.images.get(key)) {
            Some(known) => known,
            None => {
                let features = Arc::new(engine.image_features(patches)?);
                if let Some(key) = self.key {
                    engine.images.insert(key, features.clone());
                }
                features
            }
        };
        self.content = ImageContent::Features(features.clone());
        Ok(features)
    }
}
