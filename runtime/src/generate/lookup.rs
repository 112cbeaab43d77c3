//! Prompt lookup: a draft of the next tokens from what followed the last ones before.

/// Last tokens that must have come before, at most and at least.
const NGRAM: std::ops::RangeInclusive<usize> = 2..=3;

/// Most tokens of a draft.
pub(super) const MAX_DRAFT: usize = 64;

/// How long drafts are: longer after one that was right, shorter after one that was not.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftLength {
    next: usize,
    most: usize,
}

impl DraftLength {
    pub(super) fn new(most: usize) -> Self {
        DraftLength { next: most, most }
    }

    /// Tokens of a draft at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes in how many tokens of a draft were right.
    pub(super) fn learn(&mut self, right: usize) {
        self.next = (2 * right + 1).min(self.most);
    }

    /// The tokens that followed the latest earlier occurrence of the last three or two of `tokens`;
    /// none where there is no such place. What follows up to the end is taken to go on as it does.
    /// A draft has no more than `room` tokens.
    pub(super) fn draft(&self, tokens: &[u32], room: usize) -> Vec<u32> {
        let place = NGRAM.rev().find_map(|n| following(tokens, n));
        place.map_or_else(Vec::new, |at| {
            tokens[at..].iter().copied().cycle().take(self.next.min(room)).collect()
        })
    }
}

/// Where the latest earlier occurrence of the last `n` of `tokens` ends.
fn following(tokens: &[u32], n: usize) -> Option<usize> {
    let start = tokens.len().checked_sub(n)?;
    let last = &tokens[start..];
    (0..start).rev().find(|&at| &tokens[at..at + n] == last).map(|at| at + n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_follow_the_longest_and_latest_match() {
        let length = DraftLength::new(4);
        let draft = |tokens: &[u32]| length.draft(tokens, 9);
        assert_eq!(draft(&[1, 2, 3, 4, 5, 6, 7, 1, 2]), [3, 4, 5, 6]);
        // The latest of two matches.
        assert_eq!(draft(&[1, 2, 3, 8, 1, 2, 4, 8, 1, 2]), [4, 8, 1, 2]);
        // Three tokens count for more than two.
        assert_eq!(draft(&[0, 1, 2, 3, 7, 1, 2, 4, 0, 1, 2])[0], 3);
        // What repeats itself goes on doing so.
        assert_eq!(draft(&[5, 5, 5]), [5, 5, 5, 5]);
        assert_eq!(draft(&[1, 2, 3, 1, 2, 3]), [1, 2, 3, 1]);
        assert!(draft(&[1, 2, 3]).is_empty() && draft(&[]).is_empty());
    }

    #[test]
    fn drafts_grow_when_they_are_right() {
        let mut length = DraftLength::new(6);
        let tokens: Vec<u32> = (0..20).chain(0..2).collect();
        length.learn(0);
        assert_eq!(length.draft(&tokens, 9).len(), 1);
        length.learn(1);
        assert_eq!(length.draft(&tokens, 9).len(), 3);
        length.learn(3);
        assert_eq!(length.draft(&tokens, 9).len(), 6);
        assert_eq!(length.draft(&tokens, 2).len(), 2);
    }
}
