//! What conversations of one engine share: image features, and states after the beginnings of
//! prompts. Both forget what was used least recently when they are full.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ndarray::Array2;
use sha2::{Digest, Sha256};

use crate::{image::ProcessedImage, session::DecoderState};

/// An image's patches and shapes, and so its pixels and settings. Nobody can make two images that
/// have the same, and be given the features of another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageKey([u8; 32]);

impl ImageKey {
    pub(crate) fn of(image: &ProcessedImage) -> Self {
        let mut hash = Sha256::new();
        for grid in &image.grids {
            hash.update((grid.rows as u64).to_le_bytes());
            hash.update((grid.cols as u64).to_le_bytes());
        }
        hash.update(format!("{:?}", image.layout));
        match image.patches.as_slice() {
            Some(values) => hash.update(bytemuck::cast_slice::<f32, u8>(values)),
            None => image.patches.iter().for_each(|value| hash.update(value.to_le_bytes())),
        }
        ImageKey(hash.finalize().into())
    }
}

/// The beginning of a prompt: tokens, and the images whose tokens are among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) tokens: Vec<u32>,
    pub(crate) images: Vec<ImageKey>,
}

impl Prefix {
    fn starts(&self, prompt: &Prefix) -> bool {
        // The last token must be run, for its logits.
        self.tokens.len() < prompt.tokens.len()
            && prompt.tokens.starts_with(&self.tokens)
            && prompt.images.starts_with(&self.images)
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.tokens[..]) + size_of_val(&self.images[..])
    }
}

/// Features [tokens, hidden] of images.
pub(crate) struct ImageCache(Mutex<Lru<ImageKey, Array2<f32>>>);

impl ImageCache {
    pub(crate) fn new(limit: usize) -> Self {
        ImageCache(Mutex::new(Lru::new(limit)))
    }

    pub(crate) fn is_used(&self) -> bool {
        lock(&self.0).limit > 0
    }

    pub(crate) fn get(&self, key: ImageKey) -> Option<Arc<Array2<f32>>> {
        lock(&self.0).get(|entry| usize::from(*entry == key))
    }

    pub(crate) fn insert(&self, key: ImageKey, features: Arc<Array2<f32>>) {
        let bytes = features.len() * size_of::<f32>();
        lock(&self.0).insert(key, features, bytes);
    }
}

/// States after beginnings of prompts.
pub(crate) struct StateCache(Mutex<Lru<Prefix, DecoderState>>);

impl StateCache {
    pub(crate) fn new(limit: usize) -> Self {
        StateCache(Mutex::new(Lru::new(limit)))
    }

    pub(crate) fn is_used(&self) -> bool {
        lock(&self.0).limit > 0
    }

    /// The state after the longest known beginning of `prompt`.
    pub(crate) fn longest(&self, prompt: &Prefix) -> Option<Arc<DecoderState>> {
        lock(&self.0).get(|entry| if entry.starts(prompt) { entry.tokens.len() } else { 0 })
    }

    pub(crate) fn contains(&self, prefix: &Prefix) -> bool {
        lock(&self.0).get(|entry| usize::from(entry == prefix)).is_some()
    }

    pub(crate) fn insert(&self, prefix: Prefix, state: DecoderState) {
        let bytes = state.bytes() + prefix.bytes();
        lock(&self.0).insert(prefix, Arc::new(state), bytes);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Entries up to so many bytes in all. There are few of them, each worth much, so they are in a row.
struct Lru<K, V> {
    limit: usize,
    used: usize,
    /// The least recently used one first.
    entries: Vec<Entry<K, V>>,
}

struct Entry<K, V> {
    key: K,
    value: Arc<V>,
    bytes: usize,
}

impl<K: PartialEq, V> Lru<K, V> {
    fn new(limit: usize) -> Self {
        Lru { limit, used: 0, entries: Vec::new() }
    }

    /// The entry whose key fits best, if any is better than 0.
    fn get(&mut self, fit: impl Fn(&K) -> usize) -> Option<Arc<V>> {
        let fits = self.entries.iter().map(|entry| fit(&entry.key)).enumerate();
        let (best, _) = fits.filter(|&(_, fit)| fit > 0).max_by_key(|&(_, fit)| fit)?;
        let entry = self.entries.remove(best);
        let value = entry.value.clone();
        self.entries.push(entry);
        Some(value)
    }

    fn insert(&mut self, key: K, value: Arc<V>, bytes: usize) {
        if bytes > self.limit {
            return;
        }
        if let Some(old) = self.entries.iter().position(|entry| entry.key == key) {
            self.used -= self.entries.remove(old).bytes;
        }
        while self.used + bytes > self.limit {
            self.used -= self.entries.remove(0).bytes;
        }
        self.used += bytes;
        self.entries.push(Entry { key, value, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_entry_goes_first() {
        let mut lru = Lru::new(10);
        let find = |key| move |entry: &&str| usize::from(*entry == key);
        lru.insert("a", Arc::new(1), 4);
        lru.insert("b", Arc::new(2), 4);
        assert_eq!(lru.get(find("a")).as_deref(), Some(&1));
        lru.insert("c", Arc::new(3), 4);
        assert!(lru.get(find("b")).is_none());
        assert!(lru.get(find("a")).is_some() && lru.get(find("c")).is_some());
        lru.insert("a", Arc::new(4), 6);
        assert_eq!((lru.used, lru.get(find("a")).as_deref()), (10, Some(&4)));
        lru.insert("too large", Arc::new(5), 11);
        assert_eq!((lru.used, lru.entries.len()), (10, 2));
    }

    #[test]
    fn prefixes_have_the_same_images() {
        let key = |byte| ImageKey([byte; 32]);
        let prefix = |tokens: &[u32], images: &[ImageKey]| Prefix {
            tokens: tokens.into(),
            images: images.into(),
        };
        let prompt = prefix(&[1, 7, 7, 2, 3], &[key(1)]);
        assert!(prefix(&[1], &[]).starts(&prompt));
        assert!(prefix(&[1, 7, 7, 2], &[key(1)]).starts(&prompt));
        assert!(!prefix(&[1, 7, 7, 2], &[key(2)]).starts(&prompt));
        assert!(!prefix(&[1, 7, 7, 2, 3], &[key(1)]).starts(&prompt));
        assert!(!prefix(&[2], &[]).starts(&prompt));
    }
}
