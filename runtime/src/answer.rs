//! An answer and its making, token by token.

use std::{collections::VecDeque, time::Instant};

use crate::{
    Conversation, Engine, Error, PromptOptions,
    chat::{Reply, TextStream},
    conversation::Computed,
    generate::{DraftLength, FinishReason, GenerationOptions, Passed, Sampler, StopText},
    session::{DecoderState, Logits},
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
    /// Tokens of the prompt that an earlier turn, or another conversation, had computed already.
    pub reused_tokens: usize,
    /// Image tokens of the prompt.
    pub image_tokens: usize,
    /// Tokens that were drafted.
    pub drafted_tokens: usize,
    /// Those of them that the model would have chosen itself.
    pub accepted_tokens: usize,
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

/// What a prompt's own run gave.
pub(crate) struct Prepared {
    pub(crate) computed: Computed,
    pub(crate) logits: Option<Logits>,
    pub(crate) prompt_tokens: usize,
    pub(crate) reused_tokens: usize,
    pub(crate) image_tokens: usize,
    pub(crate) timings: Timings,
}

/// An answer in the making, apart from the conversation that it becomes a part of.
pub(crate) struct Generation<'e> {
    engine: &'e Engine,
    prompt: PromptOptions,
    stream: TextStream<'e>,
    stop: StopText,
    sampler: Sampler,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
    ahead: Ahead,
    draft_length: Option<DraftLength>,
    completion: Completion,
    computed: Computed,
    finished: bool,
    /// Whether the state can be gone on from.
    failed: bool,
}

/// What runs have computed that is not part of the answer yet.
struct Ahead {
    /// Logits of the next token, and of those after it, should it be what was drafted.
    logits: VecDeque<Logits>,
    /// Drafted tokens, which the state covers already.
    drafted: VecDeque<u32>,
    /// How many tokens of the last draft were right, if there was one.
    right: Option<usize>,
}

impl<'e> Generation<'e> {
    pub(crate) fn new(
        engine: &'e Engine,
        prompt: &PromptOptions,
        options: &GenerationOptions,
        prepared: Prepared,
    ) -> Self {
        Generation {
            engine,
            prompt: prompt.clone(),
            stream: TextStream::new(engine.prompter().tokenizer()),
            stop: StopText::new(&options.stop),
            sampler: Sampler::new(options),
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: match options.ignore_eos {
                true => Vec::new(),
                false => engine.folder().eos_token_ids(),
            },
            ahead: Ahead {
                logits: prepared.logits.into_iter().collect(),
                drafted: VecDeque::new(),
                right: None,
            },
            draft_length: options.prompt_lookup_num_tokens.map(DraftLength::new),
            completion: Completion {
                text: String::new(),
                reply: Reply::default(),
                token_ids: Vec::new(),
                finish_reason: FinishReason::Length,
                prompt_tokens: prepared.prompt_tokens,
                reused_tokens: prepared.reused_tokens,
                image_tokens: prepared.image_tokens,
                drafted_tokens: 0,
                accepted_tokens: 0,
                timings: prepared.timings,
            },
            computed: prepared.computed,
            finished: false,
            failed: false,
        }
    }

    /// Whether the answer has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether there is no place for another token.
    pub(crate) fn is_full(&self) -> bool {
        self.completion.token_ids.len() >= self.max_new_tokens
            || self.computed.tokens.len() >= self.engine.context()
    }

    /// The state, which must cover all tokens but the last when the next run comes.
    pub(crate) fn state(&mut self) -> &mut DecoderState {
        &mut self.computed.state
    }

    /// The token that the next run is over.
    pub(crate) fn last_token(&self) -> Option<u32> {
        self.computed.tokens.last().copied()
    }

    /// Takes in the logits after the last token, and the seconds that they took.
    pub(crate) fn take_logits(&mut self, logits: Logits, seconds: f64) {
        self.ahead.logits.push_back(logits);
        self.completion.timings.decode += seconds;
    }

    /// The next piece of text; empty when a token completes none.
    pub(crate) fn next_piece(&mut self) -> Result<String, Error> {
        let piece = self.make_piece();
        if piece.is_err() {
            (self.finished, self.failed) = (true, true);
        }
        piece
    }

    fn make_piece(&mut self) -> Result<String, Error> {
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

    /// The next token, or `None` at the end.
    fn next_token(&mut self) -> Result<Option<u32>, Error> {
        if self.is_full() {
            self.completion.finish_reason = FinishReason::Length;
            return Ok(None);
        }
        if self.ahead.logits.is_empty() {
            self.run()?;
        }
        let Some(logits) = self.ahead.logits.pop_front() else { return Ok(None) };
        let history = &self.computed.tokens;
        let known = logits.candidates();
        let id = match known.and_then(|known| self.sampler.choose_among(known, history)) {
            Some(id) => id,
            None => self.sampler.choose(self.engine.decoder().checked(logits.all())?, history),
        };
        if self.eos_token_ids.contains(&id) {
            self.completion.finish_reason = FinishReason::Stop;
            return Ok(None);
        }
        if self.ahead.drafted.front() == Some(&id) {
            self.ahead.drafted.pop_front();
            self.ahead.right = self.ahead.right.map(|right| right + 1);
            self.completion.accepted_tokens += 1;
        } else {
            self.drop_draft()?;
        }
        self.computed.tokens.push(id);
        self.completion.token_ids.push(id);
        Ok(Some(id))
    }

    /// Runs the decoder over what the state does not cover yet, and over a draft of what may follow.
    fn run(&mut self) -> Result<(), Error> {
        let Computed { tokens, state, .. } = &mut self.computed;
        let mut ids = tokens[state.tokens()..].to_vec();
        if let Some(length) = &mut self.draft_length {
            if let Some(right) = self.ahead.right.take() {
                length.learn(right);
            }
            // The token after the draft must have a place, too.
            let answer = self.completion.token_ids.len();
            let room = (self.engine.context() - tokens.len()).min(self.max_new_tokens - answer - 1);
            self.ahead.drafted.extend(length.draft(tokens, room));
        }
        self.ahead.right = (!self.ahead.drafted.is_empty()).then_some(0);
        self.completion.drafted_tokens += self.ahead.drafted.len();
        ids.extend(&self.ahead.drafted);
        let embeddings = self.engine.embed_answer(1, &ids)?;
        let kept = 1 + self.ahead.drafted.len();
        self.ahead.logits =
            self.engine.decoder().run_keeping(embeddings, state, kept)?.logits.into();
        Ok(())
    }

    /// Takes drafted tokens that did not come out of the state.
    fn drop_draft(&mut self) -> Result<(), Error> {
        let count = self.ahead.drafted.len();
        self.ahead.logits.clear();
        self.ahead.drafted.clear();
        match count {
            0 => Ok(()),
            _ => self.engine.decoder().checked(self.computed.state.drop_last(count)),
        }
    }

    /// The covered text of what the model wrote, as far as it was given out.
    fn covered_text(&self) -> Result<String, Error> {
        let (ids, text) = (&self.completion.token_ids, &self.completion.text);
        Ok(self.engine.prompter().covered_answer(ids, text, &self.prompt)?)
    }

    /// The answer as far as it went.
    pub(crate) fn completion(&self) -> Result<Completion, Error> {
        let reply = self.engine.prompter().reply(&self.covered_text()?);
        Ok(Completion { reply, ..self.completion.clone() })
    }

    /// Makes the answer a message of its conversation, unless it failed.
    pub(crate) fn end(&mut self, conversation: &mut Conversation<'_>) {
        let (false, Ok(text)) = (self.failed, self.covered_text()) else { return };
        let is_settled = self.drop_draft().is_ok() && self.computed.state.settle().is_ok();
        let prompter = self.engine.prompter();
        let ids = &self.completion.token_ids;
        // What was cut off is in the state, too.
        let whole = prompter.tokenizer().decode(ids, true).unwrap_or_default();
        let written = prompter.covered_answer(ids, &whole, &self.prompt);
        // An image token that the model wrote would be taken for one of an image.
        let has_image = ids.contains(&prompter.image_token_id());
        let mut computed = std::mem::take(&mut self.computed);
        let computed = written.ok().filter(|_| is_settled && !has_image).map(|written| {
            computed.text.push_str(&written);
            computed
        });
        conversation.push_answer(text, computed);
    }
}

/// An answer in the making: an iterator over pieces of its text, none of which ends inside a
/// character.
pub struct Answer<'c, 'e> {
    conversation: &'c mut Conversation<'e>,
    generation: Generation<'e>,
}

impl<'c, 'e> Answer<'c, 'e> {
    pub(crate) fn new(conversation: &'c mut Conversation<'e>, generation: Generation<'e>) -> Self {
        Answer { conversation, generation }
    }

    /// Generates what is left and gives the whole answer.
    ///
    /// # Errors
    /// [`Error`] when a graph fails.
    pub fn finish(mut self) -> Result<Completion, Error> {
        for piece in self.by_ref() {
            piece?;
        }
        self.generation.completion()
    }
}

impl Iterator for Answer<'_, '_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.generation.is_finished() {
            match self.generation.next_piece() {
                Ok(piece) if piece.is_empty() => {}
                piece => return Some(piece),
            }
        }
        None
    }
}

impl Drop for Answer<'_, '_> {
    /// The answer becomes a message of the conversation, unless it failed.
    fn drop(&mut self) {
        self.generation.end(self.conversation);
    }
}
