//! The answer that a conversation is generating.

use std::time::Instant;

use crate::{
    Conversation, Engine, Error,
    chat::{Reply, TextStream},
    conversation::Computed,
    generate::{FinishReason, GenerationOptions, Passed, Sampler, StopText},
};

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
    /// Its text, without special tokens.
    pub text: String,
    /// Its parts: thinking, text and tool calls. Empty until the answer ends.
    pub reply: Reply,
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
}

/// What a prompt's own run gave.
pub(crate) struct Prepared {
    pub(crate) computed: Computed,
    pub(crate) logits: Vec<f32>,
    pub(crate) prompt_tokens: usize,
    pub(crate) reused_tokens: usize,
    pub(crate) image_tokens: usize,
    pub(crate) timings: Timings,
}

impl<'c, 'e> Answer<'c, 'e> {
    pub(crate) fn new(
        engine: &'e Engine,
        conversation: &'c mut Conversation<'e>,
        options: &GenerationOptions,
        prepared: Prepared,
    ) -> Self {
        Answer {
            conversation,
            engine,
            stream: TextStream::new(engine.prompter().tokenizer()),
            stop: StopText::new(&options.stop),
            sampler: Sampler::new(options),
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: match options.ignore_eos {
                true => Vec::new(),
                false => engine.folder().eos_token_ids(),
            },
            logits: Some(prepared.logits),
            completion: Completion {
                text: String::new(),
                reply: Reply::default(),
                token_ids: Vec::new(),
                finish_reason: FinishReason::Length,
                prompt_tokens: prepared.prompt_tokens,
                reused_tokens: prepared.reused_tokens,
                image_tokens: prepared.image_tokens,
                timings: prepared.timings,
            },
            computed: Some(prepared.computed),
            finished: false,
        }
    }
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
        let prompter = self.engine.prompter();
        self.completion.reply = prompter.reply(&self.covered_text()?);
        Ok(self.completion.clone())
    }

    /// The covered text of what the model wrote, as far as it was given out.
    fn covered_text(&self) -> Result<String, Error> {
        let (ids, text) = (&self.completion.token_ids, &self.completion.text);
        let options = self.conversation.options();
        Ok(self.engine.prompter().covered_answer(ids, text, options)?)
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
                    self.completion.finish_reason = FinishReason::Stop;
                    text
                }
            },
            None => {
                self.finished = true;
                match self.stop.push(&self.stream.finish()?) {
                    Passed::Text(text) => text + &self.stop.finish(),
                    Passed::Stopped(text) => text,
                }
            }
        };
        self.completion.text.push_str(&piece);
        Ok(piece)
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
    /// The answer becomes a message of the conversation, unless it failed.
    fn drop(&mut self) {
        let (Some(mut computed), Ok(text)) = (self.computed.take(), self.covered_text()) else {
            return;
        };
        let prompter = self.engine.prompter();
        let ids = &self.completion.token_ids;
        // What was cut off is in the state, too.
        let whole = prompter.tokenizer().decode(ids, true).unwrap_or_default();
        let written = prompter.covered_answer(ids, &whole, self.conversation.options());
        // An image token that the model wrote would be taken for one of an image.
        let has_image = ids.contains(&prompter.image_token_id());
        let computed = written.ok().filter(|_| !has_image).map(|written| {
            computed.text.push_str(&written);
            computed
        });
        self.conversation.push_answer(text, computed);
    }
}
