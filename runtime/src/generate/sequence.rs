//! An answer in the making: from logits to tokens and text. Knows nothing of what computes them.

use std::sync::Arc;

use lfm2vl_graphs::Graph;

use super::{
    Event, FinishReason, GenerationOptions, History, LogitsProcessor, MaskTime, Part, Sampler,
    TokenLogprobs,
    constraint::Masks,
    lookup::DraftLength,
    parts::Parts,
    sampler::NoToken,
    stop::{Passed, StopText},
};
use crate::{
    Error, Processor,
    chat::{TextStream, Tokenizer},
    model::Logits,
};

/// A sequence of tokens: a prompt, and its answer so far.
pub(crate) struct Sequence {
    history: History,
    sampler: Sampler,
    /// The masks of its constraint.
    masks: Option<Masks>,
    tokenizer: Arc<Tokenizer>,
    stream: TextStream<Arc<Tokenizer>>,
    stop: StopText,
    parts: Parts,
    /// Bytes of text that were given out.
    given: usize,
    limits: SequenceLimits,
    logprobs: Option<usize>,
    draft_length: Option<DraftLength>,
}

/// What ends an answer.
#[derive(Debug, Clone)]
pub(crate) struct SequenceLimits {
    pub(crate) max_new_tokens: usize,
    /// Tokens of prompt and answer.
    pub(crate) context: usize,
    pub(crate) eos_token_ids: Vec<u32>,
}

/// What logits led to.
pub(crate) struct Accepted {
    /// The token, unless it ended the answer.
    pub(crate) token: Option<u32>,
    /// Whether it is what the graph says is the most likely one.
    pub(crate) is_most_likely: bool,
    pub(crate) events: Vec<Event>,
    pub(crate) finished: Option<FinishReason>,
}

impl Sequence {
    /// The sequence of a prompt, as text and as tokens.
    pub(crate) fn new(
        processor: &Processor,
        prompt: &str,
        tokens: Vec<u32>,
        limits: SequenceLimits,
        options: &GenerationOptions,
        processors: Vec<Box<dyn LogitsProcessor>>,
        masks: Option<Masks>,
    ) -> Result<Self, Error> {
        let sampler = Sampler::new(options)?.with_eos_token_ids(&limits.eos_token_ids);
        let sampler = processors.into_iter().fold(sampler, Sampler::with_processor);
        let tokenizer = processor.shared_tokenizer();
        Ok(Sequence {
            history: History::new(tokens),
            sampler,
            masks,
            stream: TextStream::new(Arc::clone(&tokenizer)),
            tokenizer,
            stop: StopText::new(&options.stop),
            parts: Parts::new(prompt),
            given: 0,
            limits,
            logprobs: options.logprobs,
            draft_length: options.prompt_lookup_num_tokens.map(DraftLength::new),
        })
    }

    /// Prompt and answer.
    pub(crate) fn tokens(&self) -> &[u32] {
        self.history.tokens()
    }

    /// The answer.
    pub(crate) fn answer(&self) -> &[u32] {
        self.history.answer()
    }

    /// Prompt and answer.
    pub(crate) fn into_tokens(self) -> Vec<u32> {
        self.history.into_tokens()
    }

    /// Tokens that the state must have room for in the next step, with a draft.
    pub(crate) fn tokens_of_next_step(&self) -> usize {
        let left = self.limits.max_new_tokens - self.answer().len();
        let draft = self.draft_length.as_ref().map_or(0, DraftLength::most).min(left);
        (self.tokens().len() + draft).min(self.limits.context)
    }

    /// Whether it is always the most likely token that is chosen, but for penalties and constraints.
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }

    /// Whether there is another token after the next one, unless that one ends the answer.
    pub(crate) fn goes_on(&self) -> bool {
        self.answer().len() + 1 < self.limits.max_new_tokens
            && self.tokens().len() + 1 < self.limits.context
    }

    /// Whether it drafts tokens.
    pub(crate) fn drafts(&self) -> bool {
        self.draft_length.is_some()
    }

    /// A draft of what may follow; empty where the last tokens have not come before.
    pub(crate) fn draft(&self) -> Vec<u32> {
        let Some(length) = &self.draft_length else { return Vec::new() };
        let tokens = self.tokens();
        // The token after the draft must have room, too.
        let answer = self.limits.max_new_tokens - self.answer().len();
        let room = (self.limits.context - tokens.len()).min(answer) - 1;
        length.draft(tokens, room)
    }

    /// What the masks of its constraint have cost since this was asked last.
    pub(crate) fn take_mask_time(&mut self) -> MaskTime {
        self.masks.as_mut().map(Masks::take_time).unwrap_or_default()
    }

    /// Takes in how many tokens of the last draft were right.
    pub(crate) fn learn(&mut self, right: usize) {
        if let Some(length) = &mut self.draft_length {
            length.learn(right);
        }
    }

    /// Chooses the next token.
    pub(crate) fn accept(&mut self, logits: Logits<'_>) -> Result<Accepted, NextError> {
        // Thinking is free.
        let is_bound = self.parts.current() != Part::Thinking;
        let mut masks = self.masks.as_mut().filter(|_| is_bound);
        let allowed = masks.as_mut().map(|masks| masks.next()).transpose()?.flatten();
        let known = if allowed.is_some() { None } else { logits.candidates()? };
        let chosen = known.and_then(|known| self.sampler.choose_among(&known, &self.history));
        let (id, all) = match chosen {
            Some(id) if self.logprobs.is_none() => (id?, None),
            Some(id) => (id?, Some(logits.all()?)),
            None => {
                let all = logits.all()?;
                (self.sampler.choose_allowed(&all, &self.history, allowed)?, Some(all))
            }
        };
        let is_most_likely = logits.most_likely()? == Some(id);
        if self.limits.eos_token_ids.contains(&id) {
            let events = self.rest()?;
            let finished = Some(FinishReason::Stop);
            return Ok(Accepted { token: None, is_most_likely, events, finished });
        }
        let is_complete = masks.map(|masks| masks.accept(id)).transpose()?.unwrap_or(false);
        let logprobs = self.logprobs.zip(all);
        let logprobs = logprobs.map(|(top, all)| TokenLogprobs::of(&all, id, top));
        self.history.push(id);
        let (events, finished) = self.text_of(id)?;
        let mut accepted = Accepted { token: Some(id), is_most_likely, events, finished };
        let event =
            Event { token_id: Some(id), text: String::new(), part: self.parts.current(), logprobs };
        match accepted.events.first_mut() {
            Some(first) => (first.token_id, first.logprobs) = (event.token_id, event.logprobs),
            None => accepted.events.push(event),
        }
        if accepted.finished.is_none() && is_complete {
            accepted.events.extend(self.rest()?);
            accepted.finished = Some(FinishReason::Stop);
        }
        let is_full = self.answer().len() >= self.limits.max_new_tokens
            || self.tokens().len() >= self.limits.context;
        if accepted.finished.is_none() && is_full {
            accepted.events.extend(self.rest()?);
            accepted.finished = Some(FinishReason::Length);
        }
        Ok(accepted)
    }

    /// The text that a token completes.
    fn text_of(&mut self, id: u32) -> Result<(Vec<Event>, Option<FinishReason>), NextError> {
        let text = self.stream.push(id).map_err(Error::from)?;
        let text = self.parts.text(&text);
        if self.tokenizer.is_special(id)
            && let Some(token) = self.tokenizer.token(id)
        {
            self.parts.special(&token);
        }
        let (text, finished) = match self.stop.push(&text) {
            Passed::Text(text) => (text, None),
            Passed::Stopped(text) => (text, Some(FinishReason::Stop)),
        };
        Ok((self.events(&text), finished))
    }

    /// The text that is left at the end.
    fn rest(&mut self) -> Result<Vec<Event>, NextError> {
        let left = self.stream.finish().map_err(Error::from)?;
        let left = self.parts.text(&left) + &self.parts.finish();
        let text = match self.stop.push(&left) {
            Passed::Text(text) => text + &self.stop.finish(),
            Passed::Stopped(text) => text,
        };
        Ok(self.events(&text))
    }

    fn events(&mut self, text: &str) -> Vec<Event> {
        let pieces = self.parts.cut(self.given, text);
        self.given += text.len();
        let event = |(part, text)| Event { token_id: None, text, part, logprobs: None };
        pieces.into_iter().map(event).collect()
    }
}

/// Why there is no next token.
#[derive(Debug)]
pub(crate) enum NextError {
    /// There is none to choose.
    NoToken(NoToken),
    /// Logits cannot be read.
    Logits(ort::Error),
    /// Anything else.
    Other(Error),
}

impl NextError {
    /// What it means where the logits are of this graph.
    pub(crate) fn of(self, graph: Graph) -> Error {
        match self {
            NextError::NoToken(NoToken::NotFinite) => Error::NotFinite { graph },
            NextError::NoToken(NoToken::NoneLeft) => Error::NoTokenLeft,
            NextError::NoToken(NoToken::ProcessorPanicked) => Error::ProcessorPanicked,
            NextError::Logits(error) => Error::of_run(graph, error),
            NextError::Other(error) => error,
        }
    }
}

impl From<NoToken> for NextError {
    fn from(error: NoToken) -> Self {
        NextError::NoToken(error)
    }
}

impl From<ort::Error> for NextError {
    fn from(error: ort::Error) -> Self {
        NextError::Logits(error)
    }
}

impl From<Error> for NextError {
    fn from(error: Error) -> Self {
        NextError::Other(error)
    }
}
