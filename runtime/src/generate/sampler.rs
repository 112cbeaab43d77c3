//! The next token, from logits: the stages of transformers' `generate`, in its order. Penalties and logit
//! bias, stages of the caller's own, temperature, top-k, top-p, min-p, and a random choice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{GenerationOptions, History, constraint::Mask, penalties::Penalties};
use crate::Error;

/// A stage of the caller's own, between the penalties and the temperature.
///
/// ```
/// use lfm2vl::{GenerationOptions, History, LogitsProcessor, Sampler};
///
/// /// Lets no token come twice in a row.
/// struct NoRepeats;
///
/// impl LogitsProcessor for NoRepeats {
///     fn process(&mut self, history: &History, logits: &mut [f32]) {
///         if let Some(&last) = history.answer().last() {
///             logits[last as usize] = f32::NEG_INFINITY;
///         }
///     }
/// }
///
/// let mut sampler =
///     Sampler::new(&GenerationOptions::default())?.with_processor(Box::new(NoRepeats));
/// let mut history = History::new(vec![7]);
/// for expected in [1, 2, 1] {
///     let token = sampler.choose(&[0.0, 3.0, 2.0], &history)?;
///     assert_eq!(token, expected);
///     history.push(token);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LogitsProcessor: Send {
    /// Changes the logits, one for each token of the vocabulary, of the token that is to follow
    /// `history`. A token with negative infinity is not chosen; where all have that, or one is NaN or
    /// infinite otherwise, the answer ends with an error, as it does where this panics.
    fn process(&mut self, history: &History, logits: &mut [f32]);
}

/// Chooses tokens.
pub struct Sampler {
    options: GenerationOptions,
    penalties: Penalties,
    processors: Vec<Box<dyn LogitsProcessor>>,
    random: StdRng,
    /// Logits that stages have changed; kept, so that a token needs no new memory.
    changed: Vec<f32>,
}

/// Why there is no token to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoToken {
    /// The model's logits are NaN or infinite.
    #[error("logits are not finite")]
    NotFinite,
    /// A stage made logits NaN or infinite, or left no token.
    #[error("a stage of the sampler left no token to choose")]
    NoneLeft,
    /// A stage of the caller's own panicked.
    #[error("a logits processor panicked")]
    ProcessorPanicked,
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    /// Divided by the temperature.
    logit: f32,
}

impl Sampler {
    /// A sampler with its own random numbers.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting that makes no sense.
    pub fn new(options: &GenerationOptions) -> Result<Self, Error> {
        let mut options = options.clone().validated()?;
        // That is all tokens, however their probabilities are rounded.
        options.top_p = options.top_p.filter(|&p| p < 1.0);
        let random = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        let penalties = Penalties::new(&options);
        Ok(Sampler { options, penalties, processors: Vec::new(), random, changed: Vec::new() })
    }

    /// Tells which tokens end an answer, for [`min_new_tokens`](GenerationOptions::min_new_tokens).
    #[must_use]
    pub fn with_eos_token_ids(mut self, ids: &[u32]) -> Self {
        self.penalties.set_eos_token_ids(ids);
        self
    }

    /// Adds a stage, behind those that it has.
    #[must_use]
    pub fn with_processor(mut self, processor: Box<dyn LogitsProcessor>) -> Self {
        self.processors.push(processor);
        self
    }

    /// Whether no choice is random.
    pub(crate) fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0
    }

    /// The token to follow `history`, given the logits of all tokens of the vocabulary.
    ///
    /// # Errors
    /// [`NoToken`].
    pub fn choose(&mut self, logits: &[f32], history: &History) -> Result<u32, NoToken> {
        self.choose_allowed(logits, history, None)
    }

    /// The same, where only some tokens are allowed.
    pub(crate) fn choose_allowed(
        &mut self,
        logits: &[f32],
        history: &History,
        allowed: Option<&Mask>,
    ) -> Result<u32, NoToken> {
        // As a sum, which compilers make wide instructions of: it is finite only if all are.
        if logits.is_empty() || !logits.iter().map(|logit| logit * 0.0).sum::<f32>().is_finite() {
            return Err(NoToken::NotFinite);
        }
        if self.penalties.is_neutral() && self.processors.is_empty() && allowed.is_none() {
            return self.choose_from(logits);
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        self.penalties.apply(&mut changed, history);
        for processor in &mut self.processors {
            // What a caller's own stage does must not end the answers of others.
            let process = AssertUnwindSafe(|| processor.process(history, &mut changed));
            catch_unwind(process).map_err(|_| NoToken::ProcessorPanicked)?;
        }
        if let Some(allowed) = allowed {
            allowed.apply(&mut changed);
        }
        let has_wrong = changed.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
        let choice = if has_wrong { Err(NoToken::NoneLeft) } else { self.choose_from(&changed) };
        self.changed = changed;
        choice
    }

    fn choose_from(&mut self, logits: &[f32]) -> Result<u32, NoToken> {
        if self.options.temperature == 0.0 {
            let (id, logit) = most_likely((0..).zip(logits.iter().copied()));
            return if logit.is_finite() { Ok(id) } else { Err(NoToken::NoneLeft) };
        }
        let GenerationOptions { top_k, top_p, min_p, .. } = self.options;
        if (top_k, top_p, min_p) == (None, None, None) {
            return self.draw_from_all(logits);
        }
        let candidates = self.left((0..).zip(logits.iter().copied()));
        self.draw(&candidates)
    }

    /// The same, where only some logits are known: those of the most likely tokens, the largest first.
    /// `None` where another token could have been chosen.
    pub(crate) fn choose_among(
        &mut self,
        known: &[(u32, f32)],
        history: &History,
    ) -> Option<Result<u32, NoToken>> {
        // Then no other token becomes likelier than the last known one was.
        if !self.penalties.only_lower() || !self.processors.is_empty() {
            return None;
        }
        let (_, most) = *known.last()?;
        if known.iter().any(|(_, logit)| !logit.is_finite()) {
            return Some(Err(NoToken::NotFinite));
        }
        let GenerationOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        let logits =
            known.iter().map(|&(id, logit)| (id, self.penalties.applied(id, logit, history)));
        if temperature == 0.0 {
            let (id, logit) = most_likely(logits);
            return (logit > most).then_some(Ok(id));
        }
        let mut logits: Vec<(u32, f32)> = logits.collect();
        logits.sort_unstable_by(|(_, a), (_, b)| b.total_cmp(a));
        // Either the top k are all known, or whatever min-p leaves.
        let has_top_k = top_k.and_then(|k| logits.get(k - 1)).is_some_and(|(_, kth)| *kth > most);
        let scale = temperature.recip();
        let below = most * scale - logits.first()?.1 * scale;
        let is_beyond_min_p = top_p.is_none() && min_p.is_some_and(|p| below.exp() < p);
        if !(has_top_k || is_beyond_min_p) {
            return None;
        }
        let candidates = self.left(logits.into_iter());
        Some(self.draw(&candidates))
    }

    /// One of the candidates by their probabilities.
    fn draw(&mut self, candidates: &[Candidate]) -> Result<u32, NoToken> {
        let first =
            candidates.first().filter(|first| first.logit.is_finite()).ok_or(NoToken::NoneLeft)?;
        let mut left: f32 = self.random.random();
        for (candidate, probability) in candidates.iter().zip(softmax(candidates)) {
            left -= probability;
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        // Rounding can leave a little; the most likely token takes it.
        Ok(first.id)
    }

    /// One of all tokens by their probabilities, in the order of their ids.
    fn draw_from_all(&mut self, logits: &[f32]) -> Result<u32, NoToken> {
        let scale = self.options.temperature.recip();
        let (likeliest, largest) = most_likely((0..).zip(logits.iter().copied()));
        if !largest.is_finite() {
            return Err(NoToken::NoneLeft);
        }
        let weight = |logit: &f32| f64::from((logit * scale - largest * scale).exp());
        let sum: f64 = logits.iter().map(weight).sum();
        let mut left = self.random.random::<f64>() * sum;
        for (id, logit) in (0..).zip(logits) {
            left -= weight(logit);
            if left < 0.0 {
                return Ok(id);
            }
        }
        Ok(likeliest)
    }

    /// The tokens that temperature, top-k, top-p and min-p leave of those with these logits, most
    /// likely first, of equals the one with the smaller id.
    fn left(&self, logits: impl Iterator<Item = (u32, f32)>) -> Vec<Candidate> {
        let scale = self.options.temperature.recip();
        let mut candidates: Vec<Candidate> = logits
            .map(|(id, logit)| Candidate { id, logit: logit * scale })
            .filter(|candidate| candidate.logit > f32::NEG_INFINITY)
            .collect();
        if let Some(k) = self.options.top_k.filter(|&k| k < candidates.len()) {
            let (_, kth, _) = candidates.select_nth_unstable_by(k - 1, by_likelihood);
            // Tokens as likely as the last one stay, too.
            let last = kth.logit;
            candidates.retain(|candidate| candidate.logit >= last);
        }
        if let (Some(p), None) = (self.options.min_p, self.options.top_p) {
            // Without top-p, what min-p leaves can be told from the largest one alone.
            let largest = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
            candidates.retain(|c| c.logit == largest || (c.logit - largest).exp() >= p);
        }
        match self.options.top_p {
            Some(p) => candidates = nucleus(candidates, p),
            None => candidates.sort_unstable_by(by_likelihood),
        }
        if let Some(p) = self.options.min_p {
            let largest = candidates.first().map_or(0.0, |candidate| candidate.logit);
            let likely = candidates.iter().take_while(|c| (c.logit - largest).exp() >= p);
            candidates.truncate(likely.count().max(1));
        }
        candidates
    }
}

fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The fewest candidates whose probabilities add up to `p`, most likely first. Only those are sorted
/// that may be among them.
fn nucleus(mut candidates: Vec<Candidate>, p: f32) -> Vec<Candidate> {
    let largest = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    let weight = |candidate: &Candidate| f64::from((candidate.logit - largest).exp());
    let sum: f64 = candidates.iter().map(weight).sum();
    let wanted = f64::from(p) * sum;
    let mut sorted = 0;
    let mut reached = 0.0;
    // Twice as many each time.
    let mut next = 64;
    while sorted < candidates.len() {
        let end = next.min(candidates.len());
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, by_likelihood);
        }
        candidates[sorted..end].sort_unstable_by(by_likelihood);
        for index in sorted..end {
            // A token stays while those before it have less.
            if index > 0 && reached >= wanted {
                candidates.truncate(index);
                return candidates;
            }
            reached += weight(&candidates[index]);
        }
        (sorted, next) = (end, next * 2);
    }
    candidates
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
fn softmax(candidates: &[Candidate]) -> impl Iterator<Item = f32> {
    let largest = candidates.first().map_or(0.0, |candidate| candidate.logit);
    let exp = move |candidate: &Candidate| (candidate.logit - largest).exp();
    let sum: f32 = candidates.iter().map(exp).sum();
    candidates.iter().map(move |candidate| exp(candidate) / sum)
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
            let history = serde_json::from_value(golden["history"].clone()).unwrap();
            let sampler = Sampler::new(&options).unwrap();
            sampler.penalties.apply(&mut logits, &History::new(history));
            let mut candidates = sampler.left((0..).zip(logits));
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
        let mut sampler = Sampler::new(&GenerationOptions::default()).unwrap();
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0], &History::default()), Ok(1));
    }

    #[test]
    fn what_is_not_finite_is_never_a_token() {
        for temperature in [0.0, 1.0] {
            let options = GenerationOptions { temperature, ..GenerationOptions::default() };
            let mut sampler = Sampler::new(&options).unwrap();
            let history = History::default();
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(
                    sampler.choose(&[0.0, wrong, 1.0], &history),
                    Err(NoToken::NotFinite),
                    "{wrong}"
                );
                let known = [(1, wrong), (0, 0.0)];
                assert!(matches!(
                    sampler.choose_among(&known, &history),
                    Some(Err(NoToken::NotFinite))
                ));
            }
            assert_eq!(sampler.choose(&[], &history), Err(NoToken::NotFinite));
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_errors() {
        for options in [
            GenerationOptions { top_k: Some(0), temperature: 1.0, ..Default::default() },
            GenerationOptions { temperature: f32::NAN, ..Default::default() },
            GenerationOptions { logit_bias: [(1, f32::NAN)].into(), ..Default::default() },
        ] {
            assert!(Sampler::new(&options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn stages_of_the_caller_come_before_the_temperature() {
        struct Only(u32);
        impl LogitsProcessor for Only {
            fn process(&mut self, _: &History, logits: &mut [f32]) {
                let mut others = (0..).zip(logits).filter(|(id, _)| *id != self.0);
                others.by_ref().for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            }
        }
        for (temperature, top_p) in [(0.0, None), (1.0, None), (1.0, Some(0.9))] {
            let options = GenerationOptions { temperature, top_p, ..Default::default() };
            let mut sampler = Sampler::new(&options).unwrap().with_processor(Box::new(Only(2)));
            let history = History::default();
            assert_eq!(sampler.choose(&[9.0, 9.0, 1.0, 9.0], &history), Ok(2));
            assert!(sampler.choose_among(&[(0, 9.0), (1, 8.0)], &history).is_none());
            assert_eq!(sampler.choose(&[9.0, 9.0], &history), Err(NoToken::NoneLeft));
        }
    }

    /// Sorting all of them is the plain way.
    #[test]
    fn a_nucleus_is_what_sorting_everything_gives() {
        let mut random = StdRng::seed_from_u64(5);
        for round in 0..300 {
            let p = [0.0, 0.1, 0.5, 0.9, 0.999][round % 5];
            let spread = [0.1, 1.0, 8.0][round % 3];
            let all: Vec<Candidate> = (0..1000)
                .map(|id| Candidate { id, logit: spread * random.random_range(-20..=20) as f32 })
                .collect();
            let mut sorted = all.clone();
            sorted.sort_by(by_likelihood);
            let weights = sorted.iter().map(|c| f64::from((c.logit - sorted[0].logit).exp()));
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            let mut before = 0.0;
            let count = weights.iter().take_while(|&&weight| {
                let stays = before < f64::from(p) * sum * (1.0 - 1e-12);
                before += weight;
                stays
            });
            let count = count.count().max(1);
            let nucleus = nucleus(all, p);
            // At the very edge, the order in which weights are added may decide.
            assert!(nucleus.len().abs_diff(count) <= 1, "{} {count} {p}", nucleus.len());
            assert_eq!(nucleus[..count.min(nucleus.len())], sorted[..count.min(nucleus.len())]);
        }
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
            let mut history = History::new((0..20).map(|_| random.random_range(0..200)).collect());
            (0..20).for_each(|_| history.push(random.random_range(0..200)));
            let mut known: Vec<(u32, f32)> = (0..).zip(logits.clone()).collect();
            known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            known.truncate(24);
            let options = GenerationOptions {
                temperature: [0.0, 0.1, 1.0][round % 3],
                top_k: [None, Some(1), Some(5), Some(23), Some(50)][round % 5],
                top_p: [None, None, Some(0.9)][round / 3 % 3],
                min_p: [None, Some(0.15)][round / 9 % 2],
                repetition_penalty: [1.0, 1.05, 1.5, 0.9][round / 18 % 4],
                presence_penalty: [0.0, 0.5, -0.5][round / 72 % 3],
                logit_bias: [(7, [0.0, -1.0, 1.0][round / 216 % 3])].into(),
                seed: Some(round as u64),
                ..GenerationOptions::default()
            };
            let sampler = || Sampler::new(&options).unwrap();
            if let Some(id) = sampler().choose_among(&known, &history) {
                chosen += 1;
                assert_eq!(id, sampler().choose(&logits, &history), "{options:?}");
            }
        }
        assert!((choices / 6..choices).contains(&chosen), "{chosen} of {choices}");
    }

    #[test]
    fn a_seed_fixes_the_choices_and_they_follow_the_probabilities() {
        let options = GenerationOptions { temperature: 1.0, seed: Some(7), ..Default::default() };
        let draw = |options: &GenerationOptions| -> Vec<u32> {
            let mut sampler = Sampler::new(options).unwrap();
            // Probabilities 0.5, 0.25 and 0.25.
            let logits = vec![2.0_f32.ln(), 0.0, 0.0];
            (0..4000).map(|_| sampler.choose(&logits, &History::default()).unwrap()).collect()
        };
        let drawn = draw(&options);
        assert_eq!(drawn, draw(&options));
        assert_ne!(drawn, draw(&GenerationOptions { seed: Some(8), ..options }));
        let first = drawn.iter().filter(|&&id| id == 0).count();
        // Six standard deviations around the mean.
        assert!((2000 - 190..=2000 + 190).contains(&first), "{first}");
    }
}
