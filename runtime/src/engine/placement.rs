//! Which slot a prompt gets, and how much of its state is there already.

use super::{prefix::Prefix, request::Request, slot::Slot};
use crate::{Error, kv_cache::Snapshot, model::Decoder};

/// Tokens that a state must save to be worth a snapshot.
pub(super) const WORTH_KEEPING: usize = 32;

/// Where a prompt goes, and what is known of it.
pub(super) struct Placement {
    slot: usize,
    known: Option<Known>,
}

/// A state of a beginning of the prompt.
struct Known {
    slot: usize,
    tokens: usize,
    /// Whether it is the whole state of its slot; otherwise it is one of its snapshots.
    is_whole: bool,
}

impl Placement {
    /// The best place for a request: where the most of its prompt is known in states of this owner or,
    /// without one, of all.
    pub(super) fn of(
        slots: &[Slot],
        owner: Option<u64>,
        request: &Request,
        image_token: u32,
        decoder: &Decoder,
    ) -> Self {
        let spans = request.spans();
        let prompt = Prefix { tokens: request.sequence.tokens(), images: &spans };
        let known = slots.iter().enumerate().filter_map(|(slot, content)| {
            // Whether what a prompt's runs have computed is finite is seen at its end only; and where runs are
            // not shared, what is behind a snapshot's tokens is copied with it.
            if matches!(content, Slot::Prompt(_)) && !decoder.shares_runs() {
                return None;
            }
            let (prefix, snapshots) = content.prefix(owner)?;
            // The prompt's last token must be run, for its logits.
            let most =
                prompt.common(&prefix, image_token).min(prompt.tokens.len().saturating_sub(1));
            let whole = decoder.tokens(slot);
            if matches!(content, Slot::Cached(_)) && whole <= most {
                return Some(Known { slot, tokens: whole, is_whole: true });
            }
            let tokens = snapshots.iter().map(|snapshot| snapshot.tokens);
            let tokens = tokens.filter(|&tokens| tokens <= most).max()?;
            Some(Known { slot, tokens, is_whole: false })
        });
        let known = known.filter(|known| known.tokens > 0).max_by_key(|known| known.tokens);
        let replaceable = replaceable(slots).unwrap_or_default();
        let slot = match &known {
            None => replaceable,
            Some(known) if known.is_whole => known.slot,
            // A branch of the same conversation takes the place of the old one where there is no other.
            Some(known) if slots[known.slot].is_cached_of(request.conversation) => {
                first_free(slots).unwrap_or(known.slot)
            }
            // What others may still come back to is left to them, where there is room.
            Some(_) => replaceable,
        };
        Placement { slot, known }
    }

    /// Makes the state of the slot that of the known beginning. Gives the slot and its snapshots.
    pub(super) fn carry_out(
        self,
        slots: &mut [Slot],
        decoder: &mut Decoder,
    ) -> Result<(usize, Vec<Snapshot>), Error> {
        let slot = self.slot;
        let Some(known) = self.known else {
            slots[slot] = Slot::Free;
            decoder.state(|cache| cache.clear(slot))?;
            return Ok((slot, Vec::new()));
        };
        if known.slot != slot {
            slots[slot] = Slot::Free;
            let snapshots = slots[known.slot].prefix(None).map(|(_, snapshots)| snapshots);
            let snapshot = snapshots.into_iter().flatten().find(|c| c.tokens == known.tokens);
            if let Some(snapshot) = snapshot {
                decoder.state(|cache| cache.copy(known.slot, slot, snapshot))?;
            }
            return Ok((slot, vec![decoder.snapshot(slot)?]));
        }
        let Slot::Cached(cached) = std::mem::replace(&mut slots[slot], Slot::Free) else {
            return Err(Error::Stopped);
        };
        let mut snapshots = cached.snapshots;
        snapshots.retain(|snapshot| snapshot.tokens <= known.tokens);
        if let Some(snapshot) = snapshots.last().filter(|_| !known.is_whole) {
            decoder.state(|cache| cache.rewind(slot, snapshot))?;
        }
        Ok((slot, snapshots))
    }
}

/// A slot that a prompt may have: one that is free, or the one whose state was not used for longest.
pub(super) fn replaceable(slots: &[Slot]) -> Option<usize> {
    let cached = slots.iter().enumerate().filter_map(|(slot, content)| match content {
        Slot::Cached(cached) => Some((cached.used, slot)),
        _ => None,
    });
    first_free(slots).or_else(|| cached.min().map(|(_, slot)| slot))
}

fn first_free(slots: &[Slot]) -> Option<usize> {
    slots.iter().position(|slot| matches!(slot, Slot::Free))
}
