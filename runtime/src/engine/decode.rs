//! Steps: the next tokens of answers.

use std::ops::Range;

use super::{
    End, Metrics, Model,
    slot::{Active, Slot},
};
use crate::{Error, generate::NextError};

/// Gives a token to each answer in these slots, by one run over all of them. Gives those that have
/// ended.
pub(super) fn step(
    model: &mut Model,
    slots: &mut [Slot],
    range: Range<usize>,
    done: &mut Metrics,
) -> Result<Vec<(usize, End)>, Error> {
    let last = |slot: &Slot| slot.active().and_then(|a| a.sequence.tokens().last().copied());
    let ids: Vec<u32> = slots[range.clone()].iter().filter_map(last).collect();
    let into = model.decoder.step_embeddings(&range)?;
    // SAFETY: the decoder, which lends the place, is given them at once.
    let embeddings = unsafe { model.embed_tokens.rows(range.len(), &ids, into)? };
    let options = model.decoder.run_options()?;
    let graph = model.decoder.graph();
    let logits = model.decoder.step(range.clone(), embeddings, 1, &options)?;
    let mut ends = Vec::new();
    for (row, slot) in range.enumerate() {
        let Slot::Decoding(active) = &mut slots[slot] else { continue };
        let accepted = logits.at(row, 0).map_err(NextError::from);
        let end = match accepted.and_then(|logits| active.accept(logits, done)) {
            Ok(accepted) => accepted.finished.map(Ok),
            Err(error) => Some(Err(error.of(graph))),
        };
        ends.extend(end.map(|end| (slot, end)));
    }
    Ok(ends)
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
    let embeddings = unsafe { model.embed_tokens.rows(1, &ids, None)? };
    let options = model.decoder.run_options()?;
    let graph = model.decoder.graph();
    let logits = model.decoder.step(0..1, embeddings, 1 + draft.len(), &options)?;
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
