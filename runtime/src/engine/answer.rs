//! Answers, as those who asked see them.

use std::{sync::Arc, time::Duration};

use super::{
    CancelHandle, Handle,
    channel::{Progress, Receiver},
};
use crate::{
    Error, Processor, PromptOptions,
    chat::{Message, Reply},
    generate::{Event, FinishReason, TokenLogprobs},
};

/// Where the time of an answer went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// Images to patches.
    pub preprocess: Duration,
    /// Waiting for a slot.
    pub queue: Duration,
    /// Patches to image features.
    pub vision: Duration,
    /// The prompt's new tokens, to text and through the decoder.
    pub prefill: Duration,
    /// From the first token to the last one.
    pub decode: Duration,
}

/// An answer, finished or as far as it has been made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Completion {
    /// Its text, without special tokens.
    pub text: String,
    /// Its parts: thinking, text and tool calls.
    pub reply: Reply,
    /// Its tokens, without the one that ended it.
    pub token_ids: Vec<u32>,
    /// Log probabilities of each token, if they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended; none while it goes on, or where it ended early.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of the whole prompt, earlier turns included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose state was there already.
    pub reused_tokens: usize,
    /// Image tokens of the prompt.
    pub image_tokens: usize,
    /// Tokens that were drafted.
    pub drafted_tokens: usize,
    /// Those of them that the model would have chosen itself.
    pub accepted_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
    pub(super) written: Arc<Written>,
}

/// What an answer becomes in a conversation.
#[derive(Debug)]
pub(super) struct Written {
    /// The engine that wrote it.
    pub(super) engine: u64,
    /// The message, as it is and as the template gets it.
    pub(super) message: Message,
    pub(super) covered: Message,
    /// Prompt and answer as covered text and as tokens: a later prompt that begins with this text begins
    /// with these tokens, which the text alone might not give.
    pub(super) so_far: Option<(String, Vec<u32>)>,
}

impl Completion {
    /// Tokens of the answer for each second of decoding. The first token comes from the prompt's
    /// own run and is not counted.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.timings.decode.as_secs_f64();
        let tokens = self.token_ids.len().saturating_sub(1) as f64;
        if seconds > 0.0 { tokens / seconds } else { 0.0 }
    }
}

/// The prompt that is answered.
pub(super) struct AnsweredPrompt {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    pub(super) image_tokens: usize,
    pub(super) options: PromptOptions,
}

/// An answer in the making: an iterator over its tokens and pieces of its text, which waits for each.
/// It is made whether it is read or not; when it is dropped, or [cancelled](Self::cancel), the engine
/// stops making it.
///
/// ```no_run
/// # use lfm2vl::{Conversation, Engine, Error, GenerationOptions, chat::Message};
/// # fn main() -> Result<(), Error> {
/// # let engine = Engine::builder("model").build()?;
/// # let mut conversation = Conversation::new();
/// # conversation.push(Message::user("Tell me a story."));
/// let mut answer = engine.generate(&mut conversation, &GenerationOptions::default())?;
/// let handle = answer.cancel_handle();
/// std::thread::spawn(move || {
///     std::thread::sleep(std::time::Duration::from_secs(5));
///     handle.cancel();
/// });
/// for event in &mut answer {
///     match event {
///         Ok(event) => print!("{}", event.text),
///         Err(Error::Cancelled) => println!(" ..."),
///         Err(error) => return Err(error),
///     }
/// }
/// // As far as it went, it becomes a part of the conversation.
/// conversation.push_answer(&answer.completion()?);
/// # Ok(())
/// # }
/// ```
///
/// With the feature `stream`, `into_stream` makes it a `futures` stream.
#[must_use = "an answer that is dropped is cancelled"]
pub struct Answer {
    receiver: Receiver,
    prompt: AnsweredPrompt,
    processor: Arc<Processor>,
    /// An engine goes on as long as there are answers.
    handle: Arc<Handle>,
}

impl Answer {
    pub(super) fn new(
        receiver: Receiver,
        prompt: AnsweredPrompt,
        processor: Arc<Processor>,
        handle: Arc<Handle>,
    ) -> Self {
        Answer { receiver, prompt, processor, handle }
    }

    /// Waits for the end, and gives the whole answer.
    ///
    /// # Errors
    /// [`Error`] when it ends early.
    pub fn finish(mut self) -> Result<Completion, Error> {
        for event in self.by_ref() {
            event?;
        }
        self.completion()
    }

    /// The answer as far as it has been made, events included that were not read yet.
    ///
    /// # Errors
    /// [`Error::Chat`] when the tokenizer cannot decode it.
    pub fn completion(&self) -> Result<Completion, Error> {
        let Progress {
            text,
            token_ids,
            logprobs,
            finish_reason,
            reused_tokens,
            drafted_tokens,
            accepted_tokens,
            timings,
        } = self.receiver.progress();
        let AnsweredPrompt { text: prompt, tokens, image_tokens, options } = &self.prompt;
        let processor = &self.processor;
        let covered = processor.covered_answer(&token_ids, &text, options)?;
        // What was cut off is in the state, too.
        let whole = processor.tokenizer().decode(&token_ids, true)?;
        let whole = processor.covered_answer(&token_ids, &whole, options)?;
        // An image token that the model wrote would be taken for one of an image.
        let has_image = token_ids.contains(&processor.image_token_id());
        let so_far = (!has_image)
            .then(|| (format!("{prompt}{whole}"), [&tokens[..], &token_ids[..]].concat()));
        let written = Written {
            engine: self.handle.id,
            message: Message::assistant(processor.uncover(&covered)),
            covered: Message::assistant(covered.clone()),
            so_far,
        };
        Ok(Completion {
            text,
            reply: processor.reply(&covered),
            token_ids,
            logprobs,
            finish_reason,
            prompt_tokens: tokens.len(),
            reused_tokens,
            image_tokens: *image_tokens,
            drafted_tokens,
            accepted_tokens,
            timings,
            written: Arc::new(written),
        })
    }

    /// The answer as a `futures` stream of the same events.
    #[cfg(feature = "stream")]
    pub fn into_stream(self) -> super::AnswerStream {
        super::AnswerStream::new(self)
    }

    /// The next event, if it is there already; otherwise `context` is woken when it is.
    #[cfg(feature = "stream")]
    pub(super) fn poll(
        &self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Event, Error>>> {
        self.receiver.poll(context)
    }

    /// Ends the answer: its next event, after those that are there already, is [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.cancel_handle().cancel();
    }

    /// What cancels the answer from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.receiver.cancel_handle()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Progress { token_ids, finish_reason, .. } = self.receiver.progress();
        let mut answer = f.debug_struct("Answer");
        answer.field("tokens", &token_ids.len()).field("finish_reason", &finish_reason);
        answer.finish_non_exhaustive()
    }
}

impl Iterator for Answer {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.receive()
    }
}
