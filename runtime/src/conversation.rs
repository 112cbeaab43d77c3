//! A conversation with a model.

use std::time::Instant;

use image::RgbImage;
use ndarray::Array2;

use crate::{
    Answer, Engine, Error, GenerationOptions, Timings, answer::Prepared, chat::Message,
    image::ProcessedImage, session::DecoderState,
};

/// Messages and images, and the decoder's state after them. A later turn goes on from the state
/// of the earlier ones, so only its new tokens are computed.
pub struct Conversation<'e> {
    engine: &'e Engine,
    messages: Vec<Message>,
    images: Vec<ConversationImage>,
    /// What the state was computed from; `None` before the first answer.
    computed: Option<Computed>,
    /// Seconds spent on images since the last answer.
    preprocess_seconds: f64,
}

struct ConversationImage {
    processed: ProcessedImage,
    features: Option<Array2<f32>>,
}

/// The tokens so far, and the state after the first `state.tokens()` of them.
pub(crate) struct Computed {
    /// Prompt and answers as text; a later prompt that starts with it can go on from here.
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: DecoderState,
}

impl<'e> Conversation<'e> {
    pub(crate) fn new(engine: &'e Engine) -> Self {
        Conversation {
            engine,
            messages: Vec::new(),
            images: Vec::new(),
            computed: None,
            preprocess_seconds: 0.0,
        }
    }

    /// The messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds a message without images.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Adds a message with images before its text.
    ///
    /// # Errors
    /// [`Error::Image`] when an image cannot be processed.
    pub fn push_with_images(&mut self, message: Message, images: &[RgbImage]) -> Result<(), Error> {
        let start = Instant::now();
        let processor = self.engine.image_processor();
        let processed =
            images.iter().map(|i| processor.process(i)).collect::<Result<Vec<_>, _>>()?;
        self.images.extend(
            processed.into_iter().map(|processed| ConversationImage { processed, features: None }),
        );
        self.messages.push(message.with_images(images.len()));
        self.preprocess_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Adds what the model said, with the state after it if that is known.
    pub(crate) fn push_answer(&mut self, text: String, computed: Option<Computed>) {
        self.messages.push(Message::assistant(text));
        self.computed = computed;
    }

    /// Starts the answer to the messages. The iterator gives its text piece by piece; an answer
    /// that is dropped early becomes part of the conversation as far as it went.
    ///
    /// # Errors
    /// [`Error`] when the prompt cannot be made, is too long, or a graph fails.
    pub fn generate(&mut self, options: &GenerationOptions) -> Result<Answer<'_, 'e>, Error> {
        let options = options.clone().validated()?;
        if self.messages.is_empty() {
            return Err(Error::NoMessage);
        }
        let mut timings = Timings {
            preprocess: std::mem::take(&mut self.preprocess_seconds),
            ..Timings::default()
        };
        let start = Instant::now();
        for image in &mut self.images {
            if image.features.is_none() {
                image.features = Some(self.engine.image_features(&image.processed)?);
            }
        }
        timings.vision = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let layouts: Vec<_> = self.images.iter().map(|image| image.processed.layout).collect();
        let text = self.engine.prompter().render(&self.messages, &layouts)?;
        let mut computed = self.go_on_to(text)?;
        let reused_tokens = computed.state.tokens();
        let prompt_tokens = computed.tokens.len();
        let context = self.engine.context();
        if prompt_tokens >= context {
            self.computed = None;
            return Err(Error::TooLong { tokens: prompt_tokens, context });
        }

        let image_token = self.engine.prompter().image_token_id();
        let is_image = |id: &&u32| **id == image_token;
        let reused_images = computed.tokens[..reused_tokens].iter().filter(is_image).count();
        let features = features_from(&self.images, reused_images);
        let embeddings = self.engine.embed(&computed.tokens[reused_tokens..], &features)?;
        let logits = self.engine.decoder().run(embeddings, &mut computed.state)?.logits;
        timings.prefill = start.elapsed().as_secs_f64();

        let image_tokens = computed.tokens.iter().filter(is_image).count();
        let prepared =
            Prepared { computed, logits, prompt_tokens, reused_tokens, image_tokens, timings };
        Ok(Answer::new(self.engine, self, &options, prepared))
    }

    /// The tokens of the prompt `text`, going on from what was computed where it extends that.
    fn go_on_to(&mut self, text: String) -> Result<Computed, Error> {
        let tokenizer = self.engine.prompter().tokenizer();
        if let Some(mut computed) = self.computed.take()
            && let Some(new_text) = text.strip_prefix(&computed.text)
            && !new_text.is_empty()
        {
            computed.tokens.extend(tokenizer.encode(new_text)?);
            computed.text = text;
            return Ok(computed);
        }
        let state = self.engine.decoder().new_state()?;
        Ok(Computed { tokens: tokenizer.encode(&text)?, text, state })
    }
}

/// The features of all images without their first `skip` rows.
fn features_from(images: &[ConversationImage], mut skip: usize) -> Vec<Array2<f32>> {
    let mut features = Vec::new();
    for all in images.iter().filter_map(|image| image.features.as_ref()) {
        let skipped = skip.min(all.nrows());
        skip -= skipped;
        if skipped < all.nrows() {
            features.push(all.slice(ndarray::s![skipped.., ..]).to_owned());
        }
    }
    features
}
