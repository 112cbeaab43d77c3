//! A conversation with a model, and the answer it is generating.

use std::time::Instant;

use image::RgbImage;
use ndarray::Array2;

use crate::{
    Engine, Error,
    chat::{Message, TextStream},
    generate::{FinishReason, GenerationOptions, Passed, Sampler, StopText},
    image::ProcessedImage,
    session::DecoderState,
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
struct Computed {
    /// Prompt and answers as text; a later prompt that starts with it can go on from here.
    text: String,
    tokens: Vec<u32>,
    state: DecoderState,
}

/// Where the time of an answer went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Images to patches.
    pub preprocess: f64,
    /// Patches to image features.
    pub vision: f64,
    /// The prompt's new tokens through the decoder.
    pub prefill: f64,
    /// The answer's tokens.
    pub decode: f64,
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the whole prompt, earlier turns included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that an earlier turn had computed already.
    pub reused_tokens: usize,
    /// Image tokens of the prompt.
    pub image_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
}

impl Completion {
    /// Tokens of the answer for each second of decoding. The first token comes from the prompt's
    /// own run and is not counted.
    pub fn tokens_per_second(&self) -> f64 {
        match self.timings.decode > 0.0 {
            true => self.token_ids.len().saturating_sub(1) as f64 / self.timings.decode,
            false => 0.0,
        }
    }
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
        Ok(Answer {
            engine: self.engine,
            stream: TextStream::new(self.engine.prompter().tokenizer()),
            stop: StopText::new(&options.stop),
            sampler: Sampler::new(&options),
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: match options.ignore_eos {
                true => Vec::new(),
                false => self.engine.folder().eos_token_ids(),
            },
            logits: Some(logits),
            completion: Completion {
                text: String::new(),
                token_ids: Vec::new(),
                finish_reason: FinishReason::Length,
                prompt_tokens,
                reused_tokens,
                image_tokens,
                timings,
            },
            computed: Some(computed),
            finished: false,
            cut_by_stop_string: false,
            conversation: self,
        })
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

/// An answer in the making: an iterator over pieces of its text, none of which ends inside a
/// character.
pub struct Answer<'c, 'e> {
    conversation: &'c mut Conversation<'e>,
    engine: &'e Engine,
    stream: TextStream<'e>,
    stop: StopText,
    sampler: Sampler,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
    /// Logits of the next token; `None` when the last token has not been through the decoder.
    logits: Option<Vec<f32>>,
    completion: Completion,
    computed: Option<Computed>,
    finished: bool,
    cut_by_stop_string: bool,
}

impl Answer<'_, '_> {
    /// Generates what is left and gives the whole answer.
    ///
    /// # Errors
    /// [`Error`] when a graph fails.
    pub fn finish(mut self) -> Result<Completion, Error> {
        for piece in self.by_ref() {
            piece?;
        }
        Ok(self.completion.clone())
    }

    /// The next token, or `None` at the end.
    fn next_token(&mut self) -> Result<Option<u32>, Error> {
        let Some(computed) = &mut self.computed else { return Ok(None) };
        let count = self.completion.token_ids.len();
        if count >= self.max_new_tokens || computed.tokens.len() >= self.engine.context() {
            self.completion.finish_reason = FinishReason::Length;
            return Ok(None);
        }
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => {
                let last = &computed.tokens[computed.state.tokens()..];
                let embeddings = self.engine.embed_answer(last)?;
                self.engine.decoder().run(embeddings, &mut computed.state)?.logits
            }
        };
        let id = self.sampler.choose(logits, &computed.tokens);
        if self.eos_token_ids.contains(&id) {
            self.completion.finish_reason = FinishReason::Stop;
            return Ok(None);
        }
        computed.tokens.push(id);
        self.completion.token_ids.push(id);
        Ok(Some(id))
    }

    /// The next piece of text; empty when a token completes none.
    fn next_piece(&mut self) -> Result<String, Error> {
        let start = Instant::now();
        let token = self.next_token();
        self.completion.timings.decode += start.elapsed().as_secs_f64();
        let piece = match token? {
            Some(id) => match self.stop.push(&self.stream.push(id)?) {
                Passed::Text(text) => text,
                Passed::Stopped(text) => {
                    self.finished = true;
                    self.cut_by_stop_string = true;
                    self.completion.finish_reason = FinishReason::Stop;
                    text
                }
            },
            None => {
                self.finished = true;
                match self.stop.push(&self.stream.finish()?) {
                    Passed::Text(text) => text + &self.stop.finish(),
                    Passed::Stopped(text) => {
                        self.cut_by_stop_string = true;
                        text
                    }
                }
            }
        };
        self.completion.text.push_str(&piece);
        Ok(piece)
    }

    /// Whether the state is the one of the answer's text: not where a stop string was cut off, or
    /// where the text leaves out special tokens that the model wrote.
    fn state_matches_text(&self) -> bool {
        let tokenizer = self.engine.prompter().tokenizer();
        let written = tokenizer.decode(&self.completion.token_ids, false);
        !self.cut_by_stop_string && written.is_ok_and(|text| text == self.completion.text)
    }
}

impl Iterator for Answer<'_, '_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            match self.next_piece() {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return Some(Ok(piece)),
                Err(error) => {
                    self.finished = true;
                    self.computed = None;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Drop for Answer<'_, '_> {
    fn drop(&mut self) {
        let answer = self.completion.text.clone();
        self.conversation.messages.push(Message::assistant(answer.clone()));
        if self.state_matches_text()
            && let Some(mut computed) = self.computed.take()
        {
            computed.text.push_str(&answer);
            self.conversation.computed = Some(computed);
        }
    }
}
