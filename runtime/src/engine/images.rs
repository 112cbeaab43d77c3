//! Images of a prompt: patches until they have been through the vision graphs, then features.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sha2::{Digest, Sha256};

use crate::{
    image::{ImageLayout, ProcessedImage},
    model::Features,
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
pub(super) enum ImageContent {
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

    pub(super) fn content(&self) -> ImageContent {
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
