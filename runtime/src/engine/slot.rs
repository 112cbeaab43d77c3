//! What is in each slot of the decoder's state.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array2, Axis, concatenate, s};

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
    kv_cache::Checkpoint,
    model::Logits,
};

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
    pub(super) checkpoints: Vec<Checkpoint>,
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

    pub(super) fn is_decoding(&self) -> bool {
        matches!(self, Slot::Decoding(_))
    }

    /// What it has of a prompt of this conversation, or of any.
    pub(super) fn prefix(&self, conversation: Option<u64>) -> Option<(Prefix<'_>, &[Checkpoint])> {
        let is_own = |owner: u64| conversation.is_none_or(|wanted| wanted == owner);
        match self {
            Slot::Free => None,
            Slot::Cached(cached) => is_own(cached.conversation).then_some((
                Prefix { tokens: &cached.tokens, images: &cached.images },
                &cached.checkpoints,
            )),
            Slot::Prompt(active) | Slot::Decoding(active) => {
                is_own(active.conversation).then_some((
                    Prefix { tokens: active.sequence.tokens(), images: &active.spans },
                    &active.checkpoints,
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
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Tokens of the prompt after which there is to be a checkpoint, ascending; the last is its end.
    pub(super) ends: Vec<usize>,
    pub(super) images: ImageQueue,
    /// When its first token came.
    pub(super) first_token: Option<Instant>,
}

impl Active {
    /// The answer to a request whose state covers `reused` tokens already.
    pub(super) fn new(
        request: Request,
        reused: usize,
        checkpoints: Vec<Checkpoint>,
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
            checkpoints,
            ends,
            images: ImageQueue::new(images, reused_image_tokens),
            first_token: None,
        }
    }

    /// Chooses the next token, and gives it to whoever reads the answer.
    pub(super) fn accept(
        &mut self,
        logits: Logits<'_>,
        done: &mut Metrics,
    ) -> Result<Accepted, NextError> {
        let mut accepted = self.sequence.accept(logits)?;
        done.answer_tokens += u64::from(accepted.token.is_some());
        let decode = self.first_token.map_or(Duration::ZERO, |first| first.elapsed());
        self.sender.send(std::mem::take(&mut accepted.events), decode);
        Ok(accepted)
    }
}

/// The images of a prompt, whose features are asked for in order.
pub(super) struct ImageQueue {
    images: Vec<PromptImage>,
    /// Rows of features that were used, or are not needed since the state covers them.
    used: usize,
    /// Views of the next image without features that have been through the vision graphs, and what these
    /// gave.
    views: usize,
    features: Vec<Array2<f32>>,
}

impl ImageQueue {
    fn new(images: Vec<PromptImage>, used: usize) -> Self {
        ImageQueue { images, used, views: 0, features: Vec::new() }
    }

    /// The next image that has to go through the vision graphs, and the first of its views that has
    /// not. Images whose tokens the state covers need not.
    pub(super) fn next(&self) -> Option<(&PromptImage, Arc<ProcessedImage>, usize)> {
        let mut rows = 0;
        self.images.iter().find_map(|image| {
            rows += image.tokens();
            match image.content() {
                ImageContent::Patches(patches) if rows > self.used => {
                    Some((image, patches, self.views))
                }
                _ => None,
            }
        })
    }

    /// Takes in features of the next `views` views of the next image. Gives all of them after the last.
    pub(super) fn add(
        &mut self,
        views: usize,
        features: Vec<Array2<f32>>,
    ) -> Result<Option<Arc<Array2<f32>>>, Error> {
        let Some((image, patches, done)) = self.next() else { return Ok(None) };
        let (image, count) = (image.clone(), patches.grids.len());
        self.views = done + views;
        self.features.extend(features);
        if self.views < count {
            return Ok(None);
        }
        let all = joined(&std::mem::take(&mut self.features), image.tokens())?;
        self.views = 0;
        let all = Arc::new(all);
        image.set_features(Arc::clone(&all));
        Ok(Some(all))
    }

    /// Writes the features of the image tokens among `ids` into their embeddings [ids, hidden].
    pub(super) fn place(
        &mut self,
        ids: &[u32],
        image_token: u32,
        embeddings: &mut Array2<f32>,
    ) -> Result<(), Error> {
        let count = ids.iter().filter(|&&id| id == image_token).count();
        let (mut first, mut features) = (0, Vec::new());
        for image in &self.images {
            let rows = first..first + image.tokens();
            first = rows.end;
            if rows.end <= self.used || rows.start >= self.used + count {
                continue;
            }
            if let ImageContent::Features(all) = image.content() {
                let from = self.used.max(rows.start) - rows.start;
                let to = (self.used + count).min(rows.end) - rows.start;
                features.push(all.slice(s![from..to, ..]).to_owned());
            }
        }
        place_features(ids, image_token, &features, embeddings)?;
        self.used += count;
        Ok(())
    }
}

/// Writes features [tokens, hidden] into the embeddings [ids, hidden] of image tokens, in order.
pub(super) fn place_features(
    ids: &[u32],
    image_token: u32,
    features: &[Array2<f32>],
    embeddings: &mut Array2<f32>,
) -> Result<(), Error> {
    let tokens = ids.iter().filter(|&&id| id == image_token).count();
    let count: usize = features.iter().map(Array2::nrows).sum();
    let wrong = |features| Err(Error::FeatureCount { features, tokens });
    if count != tokens {
        return wrong(count);
    }
    if features.iter().any(|features| features.ncols() != embeddings.ncols()) {
        return wrong(0);
    }
    let places = embeddings.rows_mut().into_iter().zip(ids).filter(|(_, id)| **id == image_token);
    for ((mut place, _), row) in places.zip(features.iter().flat_map(|features| features.rows())) {
        place.assign(&row);
    }
    Ok(())
}

/// The features of all views of an image, one for each of its tokens.
pub(super) fn joined(features: &[Array2<f32>], tokens: usize) -> Result<Array2<f32>, Error> {
    let views: Vec<_> = features.iter().map(|features| features.view()).collect();
    let all = concatenate(Axis(0), &views).unwrap_or_default();
    match all.nrows() == tokens {
        true => Ok(all),
        false => Err(Error::FeatureCount { features: all.nrows(), tokens }),
    }
}
