//! What is in each slot of the decoder's state.

use std::time::{Duration, Instant};

use super::{
    Metrics,
    channel::Sender,
    images::ImageQueue,
    prefix::{ImageSpan, Prefix},
    request::Request,
};
use crate::{
    generate::{Accepted, NextError, Sequence},
    kv_cache::Snapshot,
    model::{Embeddings, Logits},
};

/// Snapshots of a slot, and those of them that are never dropped.
const MOST_SNAPSHOTS: usize = 8;
const FIRST_SNAPSHOTS: usize = 2;

/// A slot.
pub(super) enum Slot {
    /// Nothing.
    Free,
    /// The state of an answer that has ended.
    Cached(Cached),
    /// An answer that is being made: its images, its prompt.
    Prompt(Box<Active>),
    /// An answer that is being made: its tokens. These are the first slots.
    Decoding(Box<Active>),
}

/// The state of an answer that has ended.
pub(super) struct Cached {
    pub(super) conversation: u64,
    /// Those that the state covers.
    pub(super) tokens: Vec<u32>,
    pub(super) images: Vec<ImageSpan>,
    pub(super) snapshots: Vec<Snapshot>,
    /// When it was used last, in the scheduler's own count.
    pub(super) used: u64,
}

impl Slot {
    pub(super) fn active(&self) -> Option<&Active> {
        match self {
            Slot::Prompt(active) | Slot::Decoding(active) => Some(active),
            Slot::Free | Slot::Cached(_) => None,
        }
    }

    /// Whether it keeps the state of an ended answer of this conversation.
    pub(super) fn is_cached_of(&self, conversation: u64) -> bool {
        matches!(self, Slot::Cached(cached) if cached.conversation == conversation)
    }

    pub(super) fn is_decoding(&self) -> bool {
        matches!(self, Slot::Decoding(_))
    }

    /// What it has of a prompt of this conversation, or of any.
    pub(super) fn prefix(&self, conversation: Option<u64>) -> Option<(Prefix<'_>, &[Snapshot])> {
        let is_own = |owner: u64| conversation.is_none_or(|wanted| wanted == owner);
        match self {
            Slot::Free => None,
            Slot::Cached(cached) => is_own(cached.conversation).then_some((
                Prefix { tokens: &cached.tokens, images: &cached.images },
                &cached.snapshots,
            )),
            Slot::Prompt(active) | Slot::Decoding(active) => {
                is_own(active.conversation).then_some((
                    Prefix { tokens: active.sequence.tokens(), images: &active.spans },
                    &active.snapshots,
                ))
            }
        }
    }
}

/// An answer that is being made.
pub(super) struct Active {
    pub(super) conversation: u64,
    pub(super) sequence: Sequence,
    pub(super) sender: Sender,
    pub(super) spans: Vec<ImageSpan>,
    /// States after beginnings of the prompt, ascending.
    pub(super) snapshots: Vec<Snapshot>,
    /// Tokens of the prompt after which there is to be a snapshot, ascending; the last is its end.
    pub(super) ends: Vec<usize>,
    pub(super) images: ImageQueue,
    /// Embeddings of the next tokens of its prompt, from that number on.
    pub(super) embeddings: Option<Embeddings>,
    pub(super) embedded_from: usize,
    /// Tokens of its prompt whose state was there already.
    pub(super) reused: usize,
    /// When its first token came.
    pub(super) first_token: Option<Instant>,
    /// How often its tokens have been the most likely ones, the last ones counting most: from 0 to 1.
    pub(super) most_likely: f32,
}

impl Active {
    /// The answer to a request whose state covers `reused` tokens already.
    pub(super) fn new(
        request: Request,
        reused: usize,
        snapshots: Vec<Snapshot>,
        ends: Vec<usize>,
        image_token: u32,
    ) -> Self {
        let spans = request.spans();
        let Request { conversation, sequence, images, sender, .. } = request;
        let tokens = sequence.tokens()[..reused].iter();
        let most_likely = if sequence.is_greedy() { 1.0 } else { 0.5 };
        let reused_image_tokens = tokens.filter(|&&id| id == image_token).count();
        Active {
            conversation,
            sequence,
            sender,
            spans,
            snapshots,
            ends,
            images: ImageQueue::new(images, reused_image_tokens),
            embeddings: None,
            embedded_from: reused,
            reused,
            first_token: None,
            most_likely,
        }
    }

    /// Keeps a snapshot of the prompt's state. There are no more than some: the first ones, to which other
    /// prompts may go back, and the last.
    pub(super) fn add_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshots.push(snapshot);
        if self.snapshots.len() > MOST_SNAPSHOTS {
            self.snapshots.remove(FIRST_SNAPSHOTS);
        }
    }

    /// Chooses the next token, and gives it to whoever reads the answer.
    pub(super) fn accept(
        &mut self,
        logits: Logits<'_>,
        done: &mut Metrics,
    ) -> Result<Accepted, NextError> {
        let accepted = self.sequence.accept(logits);
        let masks = self.sequence.take_mask_time();
        done.mask_time += masks.making;
        done.mask_wait += masks.waiting;
        let mut accepted = accepted?;
        self.most_likely =
            0.9 * self.most_likely + 0.1 * f32::from(u8::from(accepted.is_most_likely));
        done.answer_tokens += u64::from(accepted.token.is_some());
        let decode = self.first_token.map_or(Duration::ZERO, |first| first.elapsed());
        self.sender.send(std::mem::take(&mut accepted.events), decode);
        Ok(accepted)
    }
}
