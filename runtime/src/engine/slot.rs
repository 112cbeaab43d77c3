//! What is in each slot of the decoder's state.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use lfm2vl_graphs::Graph;

use super::{
    Metrics,
    channel::Sender,
    images::{ImageContent, PromptImage},
    prefix::{ImageSpan, Prefix},
    request::Request,
};
use crate::{
    Error,
    generate::{Accepted, NextError, Sequence},
    image::ProcessedImage,
    kv_cache::Snapshot,
    model::{Embeddings, Features, Logits},
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
        done.answer_tokens += u64::from(accepted.token.is_some());
        let decode = self.first_token.map_or(Duration::ZERO, |first| first.elapsed());
        self.sender.send(std::mem::take(&mut accepted.events), decode);
        Ok(accepted)
    }
}

/// The images of a prompt, whose features are asked for in order.
pub(super) struct ImageQueue {
    /// With their features, once these are needed and there.
    images: Vec<(PromptImage, Option<Arc<Features>>)>,
    /// Rows of features that are not needed, since the state covers their tokens.
    covered: usize,
    /// The image whose views are going through the vision graphs, how many have, and what these gave.
    current: usize,
    views: usize,
    features: Features,
}

/// An image that has to go through the vision graphs.
pub(super) struct NextImage {
    index: usize,
    pub(super) image: PromptImage,
    pub(super) patches: Arc<ProcessedImage>,
    /// The first of its views that has not yet.
    pub(super) view: usize,
}

impl ImageQueue {
    fn new(images: Vec<PromptImage>, covered: usize) -> Self {
        let images = images.into_iter().map(|image| (image, None)).collect();
        ImageQueue { images, covered, current: 0, views: 0, features: Features::default() }
    }

    /// The next image that has no features yet. Those whose tokens the state covers need none.
    pub(super) fn next(&mut self) -> Option<NextImage> {
        let mut rows = 0;
        for (index, (image, features)) in self.images.iter_mut().enumerate() {
            rows += image.tokens();
            if rows <= self.covered || features.is_some() {
                continue;
            }
            // Another answer of the same conversation may have given it its features.
            let patches = match image.content() {
                ImageContent::Features(given) => {
                    *features = Some(given);
                    continue;
                }
                ImageContent::Patches(patches, given) => {
                    *features = given.upgrade();
                    patches
                }
            };
            if features.is_none() {
                let view = if index == self.current { self.views } else { 0 };
                return Some(NextImage { index, image: image.clone(), patches, view });
            }
        }
        None
    }

    /// Gives an image its features.
    pub(super) fn set_features(&mut self, next: &NextImage, features: &Arc<Features>) {
        self.images[next.index].1 = Some(Arc::clone(features));
        next.image.set_features(features);
    }

    /// Takes in features of the next `views` views of an image. Gives all of them after the last.
    pub(super) fn add(
        &mut self,
        next: &NextImage,
        views: usize,
        features: Features,
    ) -> Result<Option<Arc<Features>>, Error> {
        if next.view == 0 {
            self.features = Features::default();
        }
        (self.current, self.views) = (next.index, next.view + views);
        self.features.extend(features);
        if self.views < next.patches.grids().len() {
            return Ok(None);
        }
        self.views = 0;
        let (all, tokens) = (std::mem::take(&mut self.features), next.image.tokens());
        if all.tokens() != tokens {
            return Err(Error::FeatureCount { features: all.tokens(), tokens });
        }
        let all = Arc::new(all);
        self.set_features(next, &all);
        Ok(Some(all))
    }

    /// Writes the features of the image tokens among `ids`, before which there are `before` others in the
    /// prompt, into their embeddings.
    pub(super) fn write_features(
        &self,
        before: usize,
        ids: &[u32],
        image_token: u32,
        embeddings: &mut Embeddings,
    ) -> Result<(), Error> {
        let after = before + ids.iter().filter(|&&id| id == image_token).count();
        let (mut first, mut features) = (0, Vec::new());
        for (image, all) in &self.images {
            let rows = first..first + image.tokens();
            first = rows.end;
            if rows.end <= before || rows.start >= after {
                continue;
            }
            if let Some(all) = all {
                let from = before.max(rows.start) - rows.start;
                let to = after.min(rows.end) - rows.start;
                features.push((&**all, from..to));
            }
        }
        write_features(ids, image_token, &features, embeddings)
    }
}

/// Writes these rows of features in place of the embeddings of image tokens among `ids`, in order.
pub(super) fn write_features(
    ids: &[u32],
    image_token: u32,
    features: &[(&Features, Range<usize>)],
    embeddings: &mut Embeddings,
) -> Result<(), Error> {
    let tokens = ids.iter().filter(|&&id| id == image_token).count();
    let count: usize = features.iter().map(|(_, rows)| rows.len()).sum();
    let wrong = |features| Err(Error::FeatureCount { features, tokens });
    if count != tokens {
        return wrong(count);
    }
    if features.iter().any(|(features, _)| !features.are_of(embeddings.hidden())) {
        return wrong(0);
    }
    let mut at = 0;
    for (features, rows) in features {
        let mut start = rows.start;
        while start < rows.end {
            // As many as stand together.
            at += ids[at..].iter().take_while(|&&id| id != image_token).count();
            let together = ids[at..].iter().take_while(|&&id| id == image_token).count();
            let end = (start + together).min(rows.end);
            embeddings
                .write(at, features, start..end)
                .map_err(|error| Error::of_run(Graph::EmbedTokens, error))?;
            (at, start) = (at + end - start, end);
        }
    }
    Ok(())
}
