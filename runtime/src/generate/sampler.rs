//! The next token, from logits: the processors of transformers' `generate`, in its order.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::GenerationOptions;

/// Chooses tokens.
pub struct Sampler {
    options: GenerationOptions,
    random: StdRng,
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Sampler {
    /// A sampler with its own random numbers.
    pub fn new(options: &GenerationOptions) -> Self {
        let random = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        Sampler { options: options.clone(), random }
    }

    /// The token to follow `history` (prompt and answer so far), given its `logits`, one for each token of
    /// the vocabulary.
    pub fn choose(&mut self, mut logits: Vec<f32>, history: &[u32]) -> u32 {
        penalize(&mut logits, history, self.options.repetition_penalty);
        let logits = (0..).zip(logits);
        match self.options.temperature == 0.0 {
            true => most_likely(logits).0,
            false => self.draw(&self.left(logits)),
        }
    }

    /// The same, where only some logits are known: those of the most likely tokens, the largest first.
    /// `None` where another token could have been chosen.
    pub(crate) fn choose_among(&mut self, known: &[(u32, f32)], history: &[u32]) -> Option<u32> {
        let GenerationOptions { temperature, top_k, top_p, min_p, repetition_penalty, .. } =
            self.options;
        // A penalty makes no other token likelier than the last known one was without it.
        let (_, most) = *known.last().filter(|_| repetition_penalty >= 1.0)?;
        let is_written = |id: u32| repetition_penalty != 1.0 && history.contains(&id);
        let logits = known.iter().map(|&(id, logit)| match is_written(id) {
            true => (id, penalized(logit, repetition_penalty)),
            false => (id, logit),
        });
        if temperature == 0.0 {
            let (id, logit) = most_likely(logits);
            return (logit > most).then_some(id);
        }
        let mut logits: Vec<(u32, f32)> = logits.collect();
        logits.sort_by_key(|(id, _)| *id);
        let kept = self.left(logits.iter().copied());
        // Either the top k are all known, or whatever min-p leaves.
        logits.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let has_top_k = top_k.and_then(|k| logits.get(k - 1)).is_some_and(|(_, kth)| *kth > most);
        let scale = temperature.recip();
        let below = most * scale - logits.first()?.1 * scale;
        let is_beyond_min_p = top_p.is_none() && min_p.is_some_and(|p| below.exp() < p);
        (has_top_k || is_beyond_min_p).then(|| self.draw(&kept))
    }

    /// One of the candidates by their probabilities.
    fn draw(&mut self, candidates: &[Candidate]) -> u32 {
        let probabilities = softmax(candidates);
        let mut left: f32 = self.random.random();
        for (candidate, probability) in candidates.iter().zip(&probabilities) {
            left -= probability;
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding can leave a little; the most likely token takes it.
        candidates.first().map_or(0, |candidate| candidate.id)
    }

    /// The tokens that temperature, top-k, top-p and min-p leave of those with these logits, most
    /// likely first. They come in the order of their ids.
    fn left(&self, logits: impl Iterator<Item = (u32, f32)>) -> Vec<Candidate> {
        let scale = self.options.temperature.recip();
        let mut candidates: Vec<Candidate> = logits
            .map(|(id, logit)| Candidate { id, logit: logit * scale })
            .filter(|candidate| !candidate.logit.is_nan())
            .collect();
        candidates.sort_by(|a, b| b.logit.total_cmp(&a.logit));
        if let Some(k) = self.options.top_k {
            // Tokens as likely as the last one stay, too.
            let last = candidates.get(k - 1).map_or(f32::NEG_INFINITY, |c| c.logit);
            candidates.retain(|candidate| candidate.logit >= last);
        }
        if let Some(p) = self.options.top_p {
            let mut sum = 0.0;
            let probabilities = softmax(&candidates);
            let before = probabilities.iter().map(|probability| {
                let before = sum;
                sum += probability;
                before
            });
            let count = before.take_while(|&before| before < p).count();
            candidates.truncate(count.max(1));
        }
        if let Some(p) = self.options.min_p {
            let largest = candidates.first().map_or(0.0, |candidate| candidate.logit);
            let likely = candidates.iter().take_while(|c| (c.logit - largest).exp() >= p);
            candidates.truncate(likely.count().max(1));
        }
        candidates
    }
}

/// Makes tokens in `history` less likely.
fn penalize(logits: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for id in history.iter().copied().collect::<BTreeSet<_>>() {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = penalized(*logit, penalty);
        }
    }
}

/// A positive logit divided by the penalty, or a negative one multiplied.
fn penalized(logit: f32, penalty: f32) -> f32 {
    if logit < 0.0 { logit * penalty } else { logit / penalty }
}

/// The token with the largest logit, of equals the one with the smallest id; and the logit.
fn most_likely(logits: impl Iterator<Item = (u32, f32)>) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in logits {
        if logit > best.1 || (logit == best.1 && id < best.0) {
            best = (id, logit);
        }
    }
    best
}

/// Probabilities of candidates of which the first is the most likely.
fn softmax(candidates: &[Candidate]) -> Vec<f32> {
    let largest = candidates.first().map_or(0.0, |candidate| candidate.logit);
    let mut values: Vec<f32> = candidates.iter().map(|c| (c.logit - largest).exp()).collect();
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
    values
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use approx::assert_relative_eq;
    use serde_json::Value;

    use super::*;

    /// The tokens that transformers' logits processors leave, and the scores of these.
    #[test]
    fn filters_leave_what_the_reference_leaves() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/sampling/processors.json");
        let goldens: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let goldens = goldens.as_array().unwrap();
        assert!(goldens.len() >= 20);
        for golden in goldens {
            let number = |key: &str| golden[key].as_f64().map(|n| n as f32);
            let options = GenerationOptions {
                temperature: number("temperature").unwrap(),
                top_k: golden["top_k"].as_u64().map(|k| k as usize),
                top_p: number("top_p"),
                min_p: number("min_p"),
                repetition_penalty: number("repetition_penalty").unwrap(),
                ..GenerationOptions::default()
            };
            let mut logits: Vec<f32> = serde_json::from_value(golden["logits"].clone()).unwrap();
            let history: Vec<u32> = serde_json::from_value(golden["history"].clone()).unwrap();
            penalize(&mut logits, &history, options.repetition_penalty);
            let mut candidates = Sampler::new(&options).left((0..).zip(logits));
            candidates.sort_by_key(|candidate| candidate.id);
            let kept: Vec<(u32, f32)> = serde_json::from_value(golden["kept"].clone()).unwrap();
            assert_eq!(
                candidates.iter().map(|c| c.id).collect::<Vec<_>>(),
                kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
                "{golden}"
            );
            for (ours, (_, score)) in candidates.iter().zip(&kept) {
                assert_relative_eq!(ours.logit, *score, epsilon = 1e-5, max_relative = 1e-5);
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(&GenerationOptions::default());
        assert_eq!(sampler.choose(vec![0.0, 2.0, 2.0, f32::NAN], &[]), 1);
    }

    #[test]
    fn the_most_likely_tokens_alone_give_the_same_choice_or_none() {
        let mut random = StdRng::seed_from_u64(3);
        let mut chosen = 0;
        let choices = 3_000;
        for round in 0..choices {
            // Few different values, so that there are ties.
            let logits: Vec<f32> =
                (0..200).map(|_| random.random_range(-30..=30) as f32 / 4.0).collect();
            let history: Vec<u32> = (0..40).map(|_| random.random_range(0..200)).collect();
            let mut known: Vec<(u32, f32)> = (0..).zip(logits.clone()).collect();
            known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            known.truncate(24);
            let options = GenerationOptions {
                temperature: [0.0, 0.1, 1.0][round % 3],
                top_k: [None, Some(1), Some(5), Some(23), Some(50)][round % 5],
                top_p: [None, None, Some(0.9)][round / 3 % 3],
                min_p: [None, Some(0.15)][round / 9 % 2],
                repetition_penalty: [1.0, 1.05, 1.5, 0.9][round / 18 % 4],
                seed: Some(round as u64),
                ..GenerationOptions::default()
            };
            if let Some(id) = Sampler::new(&options).choose_among(&known, &history) {
                chosen += 1;
                assert_eq!(id, Sampler::new(&options).choose(logits, &history), "{options:?}");
            }
        }
        assert!((choices / 4..choices).contains(&chosen), "{chosen} of {choices}");
    }

    #[test]
    fn a_seed_fixes_the_choices_and_they_follow_the_probabilities() {
        let options = GenerationOptions { temperature: 1.0, seed: Some(7), ..Default::default() };
        let draw = |options: &GenerationOptions| -> Vec<u32> {
            let mut sampler = Sampler::new(options);
            // Probabilities 0.5, 0.25 and 0.25.
            let logits = vec![2.0_f32.ln(), 0.0, 0.0];
            (0..4000).map(|_| sampler.choose(logits.clone(), &[])).collect()
        };
        let drawn = draw(&options);
        assert_eq!(drawn, draw(&options));
        assert_ne!(drawn, draw(&GenerationOptions { seed: Some(8), ..options }));
        let first = drawn.iter().filter(|&&id| id == 0).count();
        // Six standard deviations around the mean.
        assert!((2000 - 190..=2000 + 190).contains(&first), "{first}");
    }
}
