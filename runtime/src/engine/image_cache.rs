//! Image features that the sequences of an engine share, the least recently used ones forgotten first.

use std::sync::Arc;

use ndarray::Array2;

use super::images::ImageKey;

/// Features [tokens, hidden] of images, up to so many bytes in all.
pub(super) struct ImageCache {
    limit: usize,
    used: usize,
    /// The least recently used one first: there are few, each worth much.
    entries: Vec<(ImageKey, Arc<Array2<f32>>)>,
}

fn bytes(features: &Array2<f32>) -> usize {
    features.len() * size_of::<f32>()
}

impl ImageCache {
    pub(super) fn new(limit: usize) -> Self {
        ImageCache { limit, used: 0, entries: Vec::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.used
    }

    pub(super) fn get(&mut self, key: ImageKey) -> Option<Arc<Array2<f32>>> {
        let index = self.entries.iter().position(|(other, _)| *other == key)?;
        let entry = self.entries.remove(index);
        let features = Arc::clone(&entry.1);
        self.entries.push(entry);
        Some(features)
    }

    pub(super) fn insert(&mut self, key: ImageKey, features: Arc<Array2<f32>>) {
        let size = bytes(&features);
        if size > self.limit || self.get(key).is_some() {
            return;
        }
        while self.used + size > self.limit {
            let (_, oldest) = self.entries.remove(0);
            self.used -= bytes(&oldest);
        }
        self.used += size;
        self.entries.push((key, features));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_image_goes_first() {
        let key = |byte| ImageKey([byte; 32]);
        let features = |rows| Arc::new(Array2::<f32>::zeros((rows, 1)));
        let mut cache = ImageCache::new(40);
        cache.insert(key(1), features(4));
        cache.insert(key(2), features(4));
        assert!(cache.get(key(1)).is_some());
        cache.insert(key(3), features(4));
        assert!(cache.get(key(2)).is_none());
        assert!(cache.get(key(1)).is_some() && cache.get(key(3)).is_some());
        cache.insert(key(4), features(11));
        assert_eq!((cache.bytes(), cache.entries.len()), (32, 2));
    }
}
