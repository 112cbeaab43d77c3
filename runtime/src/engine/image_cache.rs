//! Image features that the sequences of an engine share, the least recently used ones forgotten first.

use std::sync::Arc;

use super::images::ImageKey;
use crate::model::Features;

/// Features of images, up to so many bytes in all.
pub(super) struct ImageCache {
    limit: usize,
    used: usize,
    /// The least recently used one first, with its bytes: there are few, each worth much.
    entries: Vec<(ImageKey, Arc<Features>, usize)>,
}

impl ImageCache {
    pub(super) fn new(limit: usize) -> Self {
        ImageCache { limit, used: 0, entries: Vec::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.used
    }

    pub(super) fn get(&mut self, key: ImageKey) -> Option<Arc<Features>> {
        let index = self.entries.iter().position(|(other, ..)| *other == key)?;
        let entry = self.entries.remove(index);
        let features = Arc::clone(&entry.1);
        self.entries.push(entry);
        Some(features)
    }

    /// Keeps features that take so many bytes.
    pub(super) fn insert(&mut self, key: ImageKey, features: Arc<Features>, bytes: usize) {
        if bytes > self.limit || self.get(key).is_some() {
            return;
        }
        while self.used + bytes > self.limit {
            let (.., oldest) = self.entries.remove(0);
            self.used -= oldest;
        }
        self.used += bytes;
        self.entries.push((key, features, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_image_goes_first() {
        let key = |byte| ImageKey([byte; 32]);
        let features = || Arc::new(Features::default());
        let mut cache = ImageCache::new(40);
        cache.insert(key(1), features(), 16);
        cache.insert(key(2), features(), 16);
        assert!(cache.get(key(1)).is_some());
        cache.insert(key(3), features(), 16);
        assert!(cache.get(key(2)).is_none());
        assert!(cache.get(key(1)).is_some() && cache.get(key(3)).is_some());
        cache.insert(key(4), features(), 44);
        assert_eq!((cache.bytes(), cache.entries.len()), (32, 2));
    }
}
