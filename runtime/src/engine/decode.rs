//! Steps: the next tokens of answers.

use std::ops::Range;

use lfm2vl_graphs::Graph;
use rayon::ThreadPool;

use super::{
    End, Metrics, Model,
    slot::{Active, Slot},
};
use crate::{Error, generate::NextError, model::RunLogits};

/// Most steps that follow each other, so that what else there is to do does not wait for long.
const MOST_IN_A_ROW: usize = 64;
/// How often the tokens of answers must have been the most likely ones for a step to begin with these.
const OFTEN_ENOUGH: f32 = 0.9;

/// How steps may begin before the tokens that they are over have been looked at, where these are nearly always the
/// most likely ones: the device goes on while the host chooses tokens and makes text of them.
pub(super) struct Ahead<'a> {
    /// Where the host does that meanwhile.
    pub(super) reader: &'a ThreadPool,
    /// Whether nothing else is to be done.
    pub(super) is_alone: &'a dyn Fn() -> bool,
}

impl Ahead<'_> {
    /// Whether the next step of these answers may begin.
    fn may_begin(&self, answers: &[Slot]) -> bool {
        let all_go_on = answers.iter().filter_map(Slot::active).all(|active| {
            active.most_likely >= OFTEN_ENOUGH
                && active.sequence.goes_on()
                && active.sender.cancel().reason().is_none()
        });
        all_go_on && (self.is_alone)()
    }
}

/// What a step led to for an answer.
enum Outcome {
    /// It goes on with the most likely token.
    MostLikely,
    /// It goes on with another one.
    Other,
    Ended(End),
}

/// Gives a token to each answer in these slots, by one run over all of them; and more where steps may begin
/// ahead. Gives those that have ended, in the order of their slots.
///
/// # Errors
/// When the first step fails; it has changed nothing then.
pub(super) fn steps(
    model: &mut Model,
    slots: &mut [Slot],
    range: Range<usize>,
    ahead: Option<&Ahead<'_>>,
    done: &mut Metrics,
) -> Result<Vec<(usize, End)>, Error> {
    let last = |slot: &Slot| slot.active().and_then(|a| a.sequence.tokens().last().copied());
    let ids: Vec<u32> = slots[range.clone()].iter().filter_map(last).collect();
    let into = model.decoder.step_embeddings(&range)?;
    // SAFETY: the decoder, which lends the place, is given them at once.
    let tokens = unsafe { model.embed_tokens.step(range.len(), &ids, into)? };
    let options = model.decoder.run_options()?;
    let graph = model.decoder.graph();
    let mut steps = model.decoder.steps(range.clone(), tokens, &options)?;
    let answers = &mut slots[range.clone()];
    let mut ends = Vec::new();
    // Those that the last step was over rightly.
    let mut rows: Vec<usize> = (0..answers.len()).collect();
    for _ in 0..MOST_IN_A_ROW {
        let begins = steps.can_follow() && ahead.is_some_and(|ahead| ahead.may_begin(answers));
        let Some(ahead) = ahead.filter(|_| begins) else { break };
        let mut outcomes = Vec::new();
        let followed = steps.follow(ahead.reader, |logits| {
            outcomes = accept(logits, answers, &rows, graph, done);
        });
        if let Err(error) = &followed {
            tracing::warn!(%error, "a step that began ahead failed");
        } else {
            done.steps += 1;
            done.steps_ahead += 1;
        }
        for (row, outcome) in outcomes {
            if matches!(outcome, Outcome::MostLikely) {
                continue;
            }
            rows.retain(|&other| other != row);
            if followed.is_ok() {
                steps.take_back(row);
            }
            if let Outcome::Ended(end) = outcome {
                ends.push((range.start + row, end));
            }
        }
        if followed.is_err() || rows.len() < answers.len() {
            break;
        }
    }
    if let Some(logits) = steps.logits() {
        let outcomes = accept(logits, answers, &rows, graph, done);
        ends.extend(outcomes.into_iter().filter_map(|(row, outcome)| match outcome {
            Outcome::Ended(end) => Some((range.start + row, end)),
            Outcome::MostLikely | Outcome::Other => None,
        }));
    }
    ends.sort_by_key(|(slot, _)| *slot);
    Ok(ends)
}

/// Gives the answers of these rows their next tokens.
fn accept(
    logits: &RunLogits<'_>,
    answers: &mut [Slot],
    rows: &[usize],
    graph: Graph,
    done: &mut Metrics,
) -> Vec<(usize, Outcome)> {
    let mut outcomes = Vec::new();
    for &row in rows {
        let Slot::Decoding(active) = &mut answers[row] else { continue };
        let accepted = logits.at(row, 0).map_err(NextError::from);
        let outcome = match accepted.and_then(|logits| active.accept(logits, done)) {
            Ok(accepted) => match accepted.finished {
                Some(finished) => Outcome::Ended(Ok(finished)),
                None if accepted.is_most_likely => Outcome::MostLikely,
                None => Outcome::Other,
            },
            Err(error) => Outcome::Ended(Err(error.of(graph))),
        };
        outcomes.push((row, outcome));
    }
    outcomes
}

/// Gives the answer in the first slot, which decodes alone, as many tokens as are drafted rightly, and
/// one more.
pub(super) fn draft(
    model: &mut Model,
    active: &mut Active,
    done: &mut Metrics,
) -> Result<Option<crate::FinishReason>, Error> {
    let draft = active.sequence.draft();
    let mut ids = active.sequence.tokens()[model.decoder.tokens(0)..].to_vec();
    ids.extend(&draft);
    // SAFETY: there is no such place.
    let tokens = unsafe { model.embed_tokens.step(1, &ids, None)? };
    let options = model.decoder.run_options()?;
    let graph = model.decoder.graph();
    let logits = model.decoder.step(0..1, tokens, 1 + draft.len(), &options)?;
    let (mut right, mut finished) = (0, None);
    while finished.is_none() {
        let accepted = logits.at(0, draft.len() - right).map_err(NextError::from);
        let accepted = accepted.and_then(|logits| active.accept(logits, done));
        let accepted = accepted.map_err(|error| error.of(graph))?;
        finished = accepted.finished;
        if accepted.token.is_none() || accepted.token != draft.get(right).copied() {
            break;
        }
        right += 1;
    }
    if !draft.is_empty() {
        active.sequence.learn(right);
        active.sender.update(|progress| {
            progress.drafted_tokens += draft.len();
            progress.accepted_tokens += right;
        });
    }
    model.decoder.state(|cache| cache.truncate_last(0, draft.len() - right))?;
    Ok(finished)
}
