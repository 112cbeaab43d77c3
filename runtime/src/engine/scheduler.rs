//! The thread that runs the model: it alone touches sessions and states. Again and again, answers that
//! are not wanted leave, those that wait get slots, each that decodes gets a token, and one prompt or
//! image goes on a little.

use std::{ops::Range, sync::Arc, time::Instant};

use rayon::ThreadPool;

use super::{
    End, Metrics, Model,
    budget::Budget,
    cancel::Watchdog,
    decode::{self, Ahead},
    image_cache::ImageCache,
    placement::{self, Placement},
    prompt,
    request::{Inbox, Request},
    slot::{Active, Cached, Slot},
};
use crate::{Error, generate::FinishReason, kv_cache::Snapshot};

/// How answers share the model.
pub(super) struct Settings {
    /// Whether conversations may use each other's states.
    pub(super) share_prefixes: bool,
    /// Bytes of image features that are kept.
    pub(super) image_cache: usize,
    /// Prompt tokens between two steps.
    pub(super) prompt_tokens_per_step: Option<usize>,
    /// What chooses tokens while steps begin ahead, if they may.
    pub(super) reader: Option<ThreadPool>,
}

pub(super) struct Scheduler {
    model: Model,
    inbox: Arc<Inbox>,
    watchdog: Watchdog,
    /// Those that decode come first.
    slots: Vec<Slot>,
    image_cache: ImageCache,
    budget: Budget,
    share_prefixes: bool,
    reader: Option<ThreadPool>,
    /// The slot whose prompt went on last.
    last_prompt: usize,
    /// Whether a job had its turn last, and no prompt.
    was_job: bool,
    /// Counts answers, to tell which state was used last.
    clock: u64,
    /// What has been done since the figures were published.
    done: Metrics,
}

impl Scheduler {
    pub(super) fn new(
        model: Model,
        inbox: Arc<Inbox>,
        watchdog: Watchdog,
        settings: Settings,
    ) -> Self {
        let slots = (0..model.decoder.slots()).map(|_| Slot::Free).collect();
        let budget = Budget::new(settings.prompt_tokens_per_step, model.decoder.max_chunk());
        let mut scheduler = Scheduler {
            model,
            inbox,
            watchdog,
            slots,
            image_cache: ImageCache::new(settings.image_cache),
            budget,
            share_prefixes: settings.share_prefixes,
            reader: settings.reader,
            last_prompt: 0,
            was_job: false,
            clock: 0,
            done: Metrics::default(),
        };
        scheduler.publish();
        scheduler
    }

    /// Runs until nobody can ask any more.
    pub(super) fn run(mut self) {
        loop {
            self.drop_unwanted();
            self.admit();
            let decoded = self.decode();
            let went_on = self.go_on();
            self.publish();
            if !(decoded || went_on || self.inbox.wait()) {
                return;
            }
        }
    }

    /// How many slots decode.
    fn decoding(&self) -> usize {
        self.slots.iter().take_while(|slot| slot.is_decoding()).count()
    }

    /// Ends the answers that are not wanted any more.
    fn drop_unwanted(&mut self) {
        self.inbox.drop_unwanted();
        // From the last one on: those that decode move up.
        for slot in (0..self.slots.len()).rev() {
            let active = self.slots[slot].active();
            if let Some(error) = active.and_then(|active| active.sender.cancel().reason()) {
                self.end(slot, Err(error));
            }
        }
    }

    /// Does one thing that was asked for besides answers.
    fn do_a_job(&mut self) -> bool {
        let slot = placement::replaceable(&self.slots);
        let Some(job) = self.inbox.next_job(slot.is_some()) else { return false };
        let start = Instant::now();
        match slot.filter(|_| job.needs_slot) {
            Some(slot) => {
                self.slots[slot] = Slot::Free;
                (job.run)(&mut self.model, slot);
                self.reset(slot);
            }
            None => (job.run)(&mut self.model, 0),
        }
        self.budget.ran_for_prompt(start.elapsed());
        true
    }

    /// Makes a slot free, whatever its state was.
    fn reset(&mut self, slot: usize) {
        self.slots[slot] = Slot::Free;
        if let Err(error) = self.model.decoder.state(|cache| cache.reset(slot)) {
            tracing::error!(%error, slot, "a slot cannot be cleared");
        }
    }

    /// Gives slots to the requests that have waited longest.
    fn admit(&mut self) {
        while placement::replaceable(&self.slots).is_some() {
            let Some(request) = self.inbox.next_request() else { return };
            match self.make_room(&request) {
                Ok((slot, snapshots)) => self.start(request, slot, snapshots),
                Err(error) => {
                    self.done.failed += 1;
                    tracing::warn!(%error, "a request cannot be started");
                    self.publish();
                    request.sender.end(Err(error));
                }
            }
            self.publish();
        }
    }

    /// Makes room for a request. Gives its slot, and the snapshots of the state that is there.
    fn make_room(&mut self, request: &Request) -> Result<(usize, Vec<Snapshot>), Error> {
        let Scheduler { model, slots, .. } = self;
        // Where there is no memory for a usual answer, there may be for a short one.
        let prompt = request.sequence.tokens().len();
        let reserved = model.decoder.state(|cache| {
            cache.reserve(request.usual_tokens).or_else(|_| cache.reserve(prompt + 1))
        });
        reserved?;
        let owner = (!self.share_prefixes).then_some(request.conversation);
        let image_token = model.processor.image_token_id();
        let placement = Placement::of(slots, owner, request, image_token, &model.decoder);
        placement.carry_out(slots, &mut model.decoder)
    }

    fn start(&mut self, request: Request, slot: usize, snapshots: Vec<Snapshot>) {
        let reused = self.model.decoder.tokens(slot);
        let waited = request.start.elapsed();
        request.sender.update(|progress| {
            progress.reused_tokens = reused;
            progress.timings.queue = waited;
        });
        let ends = self.ends(request.sequence.tokens(), reused);
        self.done.reused_tokens += reused as u64;
        tracing::debug!(slot, reused, prompt = request.sequence.tokens().len(), "a prompt starts");
        let image_token = self.model.processor.image_token_id();
        let active = Active::new(request, reused, snapshots, ends, image_token);
        self.slots[slot] = Slot::Prompt(Box::new(active));
    }

    /// Where there is to be a snapshot in a prompt after its first `reused` tokens: where other prompts
    /// may go on in another way, which is after the first message and after the last image, and at its
    /// end.
    fn ends(&self, tokens: &[u32], reused: usize) -> Vec<usize> {
        let mut ends = Vec::new();
        if self.share_prefixes {
            let first_message = tokens.iter().position(|id| self.model.eos_token_ids.contains(id));
            let image_token = self.model.processor.image_token_id();
            let last_image = tokens.iter().rposition(|&id| id == image_token);
            // As chunks are, an even number of tokens on, so that this does not change logits.
            let ends_of = first_message.into_iter().chain(last_image).map(|last| last + 1);
            ends.extend(ends_of.map(|end| end - end.saturating_sub(reused) % 2));
            ends.retain(|&end| end >= reused + placement::WORTH_KEEPING && end < tokens.len());
            ends.sort_unstable();
            ends.dedup();
        }
        ends.push(tokens.len());
        ends
    }

    /// Gives a token to each answer that decodes.
    fn decode(&mut self) -> bool {
        let count = self.decoding();
        if count == 0 {
            self.budget.forgive();
            return false;
        }
        let start = Instant::now();
        let ends = self.steps(count);
        let took = start.elapsed();
        self.budget.ran_step(took);
        self.done.steps += 1;
        self.done.decode_time += took;
        // From the last one on: those that decode move up.
        for (slot, end) in ends.into_iter().rev() {
            self.end(slot, end);
        }
        true
    }

    /// A step of the first `count` slots. Gives the answers that have ended.
    fn steps(&mut self, count: usize) -> Vec<(usize, End)> {
        // Answers may be longer than what there was room for when they began.
        for slot in 0..count {
            let tokens = self.slots[slot].active().map_or(0, |a| a.sequence.tokens_of_next_step());
            if let Err(error) = self.model.decoder.state(|cache| cache.reserve(tokens)) {
                return vec![(slot, Err(error))];
            }
        }
        let Scheduler { model, slots, done, .. } = self;
        if let [Slot::Decoding(active)] = &mut slots[..count]
            && model.decoder.is_speculative()
            && active.sequence.drafts()
        {
            let end = decode::draft(model, active, done).transpose();
            return end.into_iter().map(|end| (0, end)).collect();
        }
        let mut ends = Vec::new();
        if self.model.decoder.shares_runs() {
            self.step(0..count, &mut ends);
        } else {
            (0..count).for_each(|slot| self.step(slot..slot + 1, &mut ends));
        }
        ends
    }

    /// Steps of these slots. Where the first one fails, each is run alone, so that only those end that fail by
    /// themselves.
    fn step(&mut self, range: Range<usize>, ends: &mut Vec<(usize, End)>) {
        let decoding = self.decoding();
        let Scheduler { model, inbox, slots, done, reader, .. } = self;
        let has_prompt = slots.iter().any(|slot| matches!(slot, Slot::Prompt(_)));
        let has_room = placement::replaceable(slots).is_some();
        let is_alone = || !has_prompt && !inbox.has_work(has_room);
        let ahead = reader
            .as_ref()
            .filter(|_| range.len() == decoding)
            .map(|reader| Ahead { reader, is_alone: &is_alone });
        match decode::steps(model, slots, range.clone(), ahead.as_ref(), done) {
            Ok(ended) => ends.extend(ended),
            Err(error) if range.len() == 1 => ends.push((range.start, Err(error))),
            Err(error) => {
                tracing::warn!(%error, rows = range.len(), "a step failed; its rows run alone");
                range.for_each(|slot| self.step(slot..slot + 1, ends));
            }
        }
    }

    /// Lets a prompt go on, or does a job, in turns, if steps have had their share of the time.
    fn go_on(&mut self) -> bool {
        if !self.budget.is_prompts_turn() {
            return false;
        }
        self.was_job = !self.was_job;
        let mut turns: [fn(&mut Self) -> bool; 2] = [Self::go_on_with_a_prompt, Self::do_a_job];
        if self.was_job {
            turns.reverse();
        }
        turns.iter().any(|turn| turn(self))
    }

    /// Lets one prompt go on: some views of an image, or some of its tokens.
    fn go_on_with_a_prompt(&mut self) -> bool {
        let count = self.slots.len();
        let mut turns = (1..=count).map(|turn| (self.last_prompt + turn) % count);
        let Some(slot) = turns.find(|&slot| matches!(self.slots[slot], Slot::Prompt(_))) else {
            return false;
        };
        self.last_prompt = slot;
        let end = match self.run_prompt(slot) {
            Ok(finished) => finished.map(Ok),
            Err(error) => {
                // What ended because it is not wanted failed only for that reason.
                let active = self.slots[slot].active();
                let reason = active.and_then(|active| active.sender.cancel().reason());
                Some(Err(reason.unwrap_or(error)))
            }
        };
        if let Some(end) = end {
            self.end(slot, end);
        }
        true
    }

    /// Lets the prompt in a slot go on.
    fn run_prompt(&mut self, slot: usize) -> Result<Option<FinishReason>, Error> {
        let start = Instant::now();
        let decoding = self.decoding();
        let Scheduler { model, slots, image_cache, watchdog, budget, done, .. } = self;
        let Slot::Prompt(active) = &mut slots[slot] else { return Ok(None) };
        if prompt::run_views(model, active, image_cache, watchdog, done)? {
            budget.ran_for_prompt(start.elapsed());
            return Ok(None);
        }
        let most = budget.tokens(decoding > 0);
        let chunk = prompt::run_chunk(model, slot, active, most, watchdog, done)?;
        budget.ran_chunk(chunk.tokens, chunk.took);
        if chunk.is_last && chunk.finished.is_none() {
            if let Err(error) = self.swap(slot, decoding) {
                // Nothing can be said of the states of both.
                self.lose(decoding, &error);
                self.lose(slot, &error);
                return Ok(None);
            }
            if let Slot::Prompt(active) = std::mem::replace(&mut self.slots[decoding], Slot::Free) {
                self.slots[decoding] = Slot::Decoding(active);
            }
        }
        Ok(chunk.finished)
    }

    fn swap(&mut self, a: usize, b: usize) -> Result<(), Error> {
        if a != b {
            self.model.decoder.state(|cache| cache.swap(a, b))?;
            self.slots.swap(a, b);
        }
        Ok(())
    }

    /// Ends the answer in a slot. Its state stays there for a prompt that goes on from it, unless the
    /// answer failed; and the last slot that decodes takes the place of one that decoded.
    fn end(&mut self, slot: usize, end: End) {
        let decoding = self.decoding();
        let active = match std::mem::replace(&mut self.slots[slot], Slot::Free) {
            Slot::Prompt(active) | Slot::Decoding(active) => *active,
            other => {
                self.slots[slot] = other;
                return;
            }
        };
        let is_sound = match &end {
            Ok(_) => true,
            Err(error) => matches!(error, Error::Cancelled | Error::TimedOut(_)),
        };
        match &end {
            Ok(_) => self.done.finished += 1,
            Err(_) if is_sound => self.done.cancelled += 1,
            Err(error) => {
                self.done.failed += 1;
                tracing::warn!(%error, slot, "an answer failed");
            }
        }
        let kept = if is_sound {
            self.keep(slot, &active)
        } else {
            self.model.decoder.state(|cache| cache.reset(slot)).map(|()| None)
        };
        let Active { sequence, sender, spans, snapshots, conversation, .. } = active;
        self.slots[slot] = match kept {
            Ok(Some(covered)) => {
                let mut tokens = sequence.into_tokens();
                tokens.truncate(covered);
                self.clock += 1;
                let used = self.clock;
                Slot::Cached(Cached { conversation, tokens, images: spans, snapshots, used })
            }
            Ok(None) => Slot::Free,
            Err(error) => {
                tracing::error!(%error, slot, "the state of a slot is lost");
                Slot::Free
            }
        };
        if slot < decoding
            && let Err(error) = self.swap(slot, decoding - 1)
        {
            // Nothing can be said of the states of both; and none may decode behind a gap.
            (slot..decoding).for_each(|lost| self.lose(lost, &error));
        }
        // Whoever sees the end sees the figures after it.
        self.publish();
        sender.end(end);
    }

    /// Ends the answer in a slot whose state was lost by an error of others.
    fn lose(&mut self, slot: usize, error: &Error) {
        tracing::error!(%error, slot, "the state of a slot is lost");
        let lost = std::mem::replace(&mut self.slots[slot], Slot::Free);
        self.reset(slot);
        if let Slot::Prompt(active) | Slot::Decoding(active) = lost {
            self.done.failed += 1;
            self.publish();
            active.sender.end(Err(error.again()));
        }
    }

    /// Makes the state of a slot one that can be gone on from after the answer has ended. Gives the tokens
    /// that it covers, if any.
    fn keep(&mut self, slot: usize, active: &Active) -> Result<Option<usize>, Error> {
        let decoder = &mut self.model.decoder;
        let image_token = self.model.processor.image_token_id();
        let back_to = if decoder.tokens(slot) == active.reused {
            // Nothing has run.
            None
        } else if active.first_token.is_none() {
            // Whether what was computed is finite has not been seen, so only what was there before is kept;
            // and where numbers behind the tokens are multiplied with zero, not even that.
            let before = |snapshot: &&Snapshot| snapshot.tokens <= active.reused;
            let known = active.snapshots.iter().rfind(before);
            Some(known.filter(|_| decoder.shares_runs()))
        } else if active.sequence.answer().contains(&image_token) {
            // An image token that the model wrote would be taken for one of an image.
            Some(active.snapshots.last())
        } else {
            None
        };
        match back_to {
            Some(Some(snapshot)) => decoder.state(|cache| cache.rewind(slot, snapshot))?,
            Some(None) => decoder.state(|cache| cache.reset(slot))?,
            None => {}
        }
        Ok(Some(decoder.tokens(slot)).filter(|&tokens| tokens > 0))
    }

    /// Tells others what has been done.
    fn publish(&mut self) {
        let done = std::mem::take(&mut self.done);
        let (state_bytes, copied_bytes) = self.model.decoder.state_bytes();
        let cached = self.slots.iter().filter_map(|slot| match slot {
            Slot::Cached(cached) => Some(cached.tokens.len()),
            _ => None,
        });
        let (cached_slots, cached_tokens) = cached.fold((0, 0), |(n, sum), t| (n + 1, sum + t));
        let (slots, image_cache_bytes) = (self.slots.len(), self.image_cache.bytes());
        let active = self.slots.iter().filter(|slot| slot.active().is_some()).count();
        let in_prompt = active - self.decoding();
        self.inbox.publish(|metrics| {
            *metrics = Metrics {
                active,
                in_prompt,
                waiting: 0,
                slots,
                cached_slots,
                cached_tokens,
                state_bytes,
                image_cache_bytes,
                requests: metrics.requests,
                refused: metrics.refused,
                finished: metrics.finished + done.finished,
                cancelled: metrics.cancelled + done.cancelled,
                failed: metrics.failed + done.failed,
                prompt_tokens: metrics.prompt_tokens + done.prompt_tokens,
                reused_tokens: metrics.reused_tokens + done.reused_tokens,
                answer_tokens: metrics.answer_tokens + done.answer_tokens,
                images: metrics.images + done.images,
                image_cache_hits: metrics.image_cache_hits + done.image_cache_hits,
                steps: metrics.steps + done.steps,
                steps_ahead: metrics.steps_ahead + done.steps_ahead,
                copied_bytes,
                vision_time: metrics.vision_time + done.vision_time,
                prefill_time: metrics.prefill_time + done.prefill_time,
                decode_time: metrics.decode_time + done.decode_time,
                mask_time: metrics.mask_time + done.mask_time,
                mask_wait: metrics.mask_wait + done.mask_wait,
            };
        });
    }
}

impl Drop for Scheduler {
    /// Also where the thread panics: nobody waits for ever.
    fn drop(&mut self) {
        self.inbox.stop();
    }
}
