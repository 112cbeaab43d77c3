//! Images of a prompt: patches until they have been through the vision graphs, then features.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use lfm2vl_graphs::Graph;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    image::{ImageLayout, ProcessedImage},
    model::{Embeddings, Features},
};

/// An image's patches and shapes, and so its pixels and settings. Nobody can make two images that
/// have the same, and be given the features of another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageKey(pub(super) [u8; 32]);

impl ImageKey {
    fn of(image: &ProcessedImage) -> Self {
        let mut hash = Sha256::new();
        for grid in image.grids() {
            hash.update((grid.rows as u64).to_le_bytes());
            hash.update((grid.cols as u64).to_le_bytes());
        }
        hash.update(format!("{:?}", image.layout()));
        match image.patches().as_slice() {
            Some(values) => hash.update(bytemuck::cast_slice::<f32, u8>(values)),
            None => image.patches().iter().for_each(|value| hash.update(value.to_le_bytes())),
        }
        ImageKey(hash.finalize().into())
    }
}

/// An image of a conversation, and of the sequences of one engine that answer it.
#[derive(Debug, Clone)]
pub(super) struct PromptImage {
    pub(super) key: ImageKey,
    pub(super) layout: ImageLayout,
    content: Arc<Mutex<ImageContent>>,
}

#[derive(Debug, Clone)]
enum ImageContent {
    /// Patches; and features in a device's memory, as long as something else has them.
    Patches(Arc<ProcessedImage>, Weak<Features>),
    /// Features in the host's memory.
    Features(Arc<Features>),
}

impl PromptImage {
    pub(super) fn new(image: Arc<ProcessedImage>) -> Self {
        let (key, layout) = (ImageKey::of(&image), image.layout());
        let content = Arc::new(Mutex::new(ImageContent::Patches(image, Weak::new())));
        PromptImage { key, layout, content }
    }

    /// Image tokens that stand for it.
    pub(super) fn tokens(&self) -> usize {
        self.layout.tokens()
    }

    fn content(&self) -> ImageContent {
        self.lock().clone()
    }

    /// Gives features to whoever has the image. In the host's memory they take the place of its patches. A device's
    /// is not held by conversations, of which there may be many, and which may outlive the engine.
    pub(super) fn set_features(&self, features: &Arc<Features>) {
        let mut content = self.lock();
        if features.are_on_host() {
            *content = ImageContent::Features(Arc::clone(features));
        } else if let ImageContent::Patches(_, kept) = &mut *content {
            *kept = Arc::downgrade(features);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ImageContent> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Those of a prompt whose state covers so many of their tokens.
    pub(super) fn new(images: Vec<PromptImage>, covered: usize) -> Self {
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
