//! Between the scheduler, which makes answers, and those who read them.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use super::{Timings, cancel::Cancel};
use crate::{
    Error,
    generate::{Event, FinishReason, TokenLogprobs},
};

/// An answer as far as it has been made.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) text: String,
    pub(super) token_ids: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) finish_reason: Option<FinishReason>,
    pub(super) reused_tokens: usize,
    pub(super) drafted_tokens: usize,
    pub(super) accepted_tokens: usize,
    pub(super) timings: Timings,
}

struct State {
    progress: Progress,
    /// Those that were not read yet.
    events: VecDeque<Event>,
    /// Why it ended early, until that was read.
    error: Option<Error>,
    ended: bool,
    waker: Option<Waker>,
}

/// What both sides hold.
struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    cancel: Cancel,
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The scheduler's side.
pub(super) struct Sender(Arc<Channel>);

/// The reader's side. Dropping it cancels the answer.
pub(super) struct Receiver(Arc<Channel>);

/// Cancels an answer from anywhere.
#[derive(Clone)]
pub struct CancelHandle(Arc<Channel>);

impl std::fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelHandle").finish_non_exhaustive()
    }
}

impl CancelHandle {
    /// Ends the answer: its next event, after those that are there already, is [`Error::Cancelled`], unless
    /// it has ended already.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
    }
}

/// Both sides of an answer.
pub(super) fn channel(timings: Timings, cancel: Cancel) -> (Sender, Receiver) {
    let state = State {
        progress: Progress { timings, ..Progress::default() },
        events: VecDeque::new(),
        error: None,
        ended: false,
        waker: None,
    };
    let channel = Arc::new(Channel { state: Mutex::new(state), changed: Condvar::new(), cancel });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl Sender {
    pub(super) fn cancel(&self) -> &Cancel {
        &self.0.cancel
    }

    /// Changes what is known of the answer.
    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.0.lock().progress);
    }

    /// Gives events to the reader.
    pub(super) fn send(&self, events: Vec<Event>, decode: Duration) {
        let mut state = self.0.lock();
        state.progress.timings.decode = decode;
        for event in events {
            state.progress.text.push_str(&event.text);
            state.progress.token_ids.extend(event.token_id);
            state.progress.logprobs.extend(event.logprobs.clone());
            state.events.push_back(event);
        }
        self.wake(state);
    }

    /// Ends the answer.
    pub(super) fn end(self, end: Result<FinishReason, Error>) {
        self.finish(end);
    }

    fn finish(&self, end: Result<FinishReason, Error>) {
        let mut state = self.0.lock();
        if state.ended {
            return;
        }
        state.ended = true;
        match end {
            Ok(reason) => state.progress.finish_reason = Some(reason),
            Err(error) => state.error = Some(error),
        }
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.0.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Sender {
    /// Whoever reads must not wait for an engine that has stopped.
    fn drop(&mut self) {
        self.finish(Err(Error::Stopped));
    }
}

impl Receiver {
    /// The next event, `None` at the end. Waits for it.
    pub(super) fn receive(&self) -> Option<Result<Event, Error>> {
        let mut state = self.0.lock();
        loop {
            match next(&mut state) {
                Poll::Ready(next) => return next,
                Poll::Pending => {
                    let woken = self.0.changed.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// The next event, if it is there already; otherwise `context` is woken when it is.
    #[cfg(feature = "stream")]
    pub(super) fn poll(
        &self,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Event, Error>>> {
        let mut state = self.0.lock();
        let next = next(&mut state);
        if next.is_pending() {
            state.waker = Some(context.waker().clone());
        }
        next
    }

    pub(super) fn progress(&self) -> Progress {
        self.0.lock().progress.clone()
    }

    pub(super) fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(Arc::clone(&self.0))
    }
}

fn next(state: &mut State) -> Poll<Option<Result<Event, Error>>> {
    match (state.events.pop_front(), state.error.take(), state.ended) {
        (Some(event), error, _) => {
            state.error = error;
            Poll::Ready(Some(Ok(event)))
        }
        (None, Some(error), _) => Poll::Ready(Some(Err(error))),
        (None, None, true) => Poll::Ready(None),
        (None, None, false) => Poll::Pending,
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.cancel.cancel();
    }
}
