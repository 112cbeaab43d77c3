//! The beginnings of prompts: how far two are the same.

use super::images::ImageKey;

/// What tells prompts apart besides their text: images have the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageSpan {
    pub(super) key: ImageKey,
    /// Image tokens that stand for it.
    pub(super) tokens: usize,
}

/// Tokens with the images among them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix<'p> {
    pub(super) tokens: &'p [u32],
    pub(super) images: &'p [ImageSpan],
}

impl Prefix<'_> {
    /// How many tokens both begin with, of the same images.
    pub(super) fn common(&self, other: &Prefix<'_>, image_token: u32) -> usize {
        let pairs = self.tokens.iter().zip(other.tokens);
        let same = pairs.take_while(|(a, b)| a == b).count();
        let images = self.images.iter().zip(other.images).take_while(|(a, b)| a == b).count();
        let known: usize = self.images[..images].iter().map(|image| image.tokens).sum();
        // The first token of the first image that is not the same.
        let mut image_tokens =
            self.tokens[..same].iter().enumerate().filter(|(_, id)| **id == image_token);
        image_tokens.nth(known).map_or(same, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_the_same_images() {
        let span = |byte| ImageSpan { key: ImageKey([byte; 32]), tokens: 2 };
        let common = |a: &[u32], x: &[ImageSpan], b: &[u32], y: &[ImageSpan]| {
            let (a, b) = (Prefix { tokens: a, images: x }, Prefix { tokens: b, images: y });
            let lengths = (a.common(&b, 7), b.common(&a, 7));
            assert_eq!(lengths.0, lengths.1);
            lengths.0
        };
        let tokens = [1, 7, 7, 2, 7, 7, 3];
        let images = [span(1), span(2)];
        assert_eq!(common(&tokens, &images, &tokens, &images), 7);
        assert_eq!(common(&tokens, &images, &[1], &[]), 1);
        assert_eq!(common(&tokens, &images, &[1, 7, 7, 2, 4], &[span(1)]), 4);
        assert_eq!(common(&tokens, &images, &tokens, &[span(1), span(3)]), 4);
        assert_eq!(common(&tokens, &images, &tokens, &[span(3), span(2)]), 1);
        assert_eq!(common(&[2], &[], &tokens, &images), 0);
    }
}
