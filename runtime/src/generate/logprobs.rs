//! Log probabilities of tokens: natural logarithms of the softmax of the model's logits, before any
//! setting of the sampler changes them.

/// A token and its log probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log probability, 0 or less.
    pub logprob: f32,
}

/// Log probabilities in the place of one token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// That of the token that was chosen.
    pub chosen: TokenLogprob,
    /// The most likely tokens, the likeliest first; of equals the one with the smaller id.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprobs {
    /// Those of `chosen` and of the `top` most likely tokens.
    pub(super) fn of(logits: &[f32], chosen: u32, top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let norm = largest + sum.ln() as f32;
        let at = |token_id: u32| {
            let logit = logits.get(token_id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            TokenLogprob { token_id, logprob: logit - norm }
        };
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(ids.len());
        if top > 0 && top < ids.len() {
            ids.select_nth_unstable_by(top - 1, by_logit);
        }
        ids.truncate(top);
        ids.sort_unstable_by(by_logit);
        TokenLogprobs { chosen: at(chosen), top: ids.into_iter().map(at).collect() }
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn they_are_logarithms_of_probabilities() {
        let logits: Vec<f32> = [0.1_f32, 0.2, 0.4, 0.3].iter().map(|p| p.ln() + 7.0).collect();
        let of = TokenLogprobs::of(&logits, 1, 2);
        assert_relative_eq!(of.chosen.logprob, 0.2_f32.ln(), epsilon = 1e-6);
        assert_eq!(of.top.iter().map(|t| t.token_id).collect::<Vec<_>>(), [2, 3]);
        assert_relative_eq!(of.top[0].logprob, 0.4_f32.ln(), epsilon = 1e-6);
        assert_eq!(TokenLogprobs::of(&logits, 0, 0).top.len(), 0);
        assert_eq!(TokenLogprobs::of(&logits, 0, 9).top.len(), 4);
    }
}
