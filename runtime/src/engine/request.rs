//! What is asked of the scheduler, and where it waits.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{Metrics, Model, channel::Sender, images::PromptImage, prefix::ImageSpan};
use crate::{Error, generate::Sequence};

/// A prompt to be answered.
pub(super) struct Request {
    /// The conversation that it is of.
    pub(super) conversation: u64,
    pub(super) sequence: Sequence,
    /// Tokens of the prompt and of an answer of usual length.
    pub(super) usual_tokens: usize,
    pub(super) images: Vec<PromptImage>,
    pub(super) sender: Sender,
    /// When it came.
    pub(super) start: Instant,
}

impl Request {
    /// What tells its images apart.
    pub(super) fn spans(&self) -> Vec<ImageSpan> {
        let span = |image: &PromptImage| ImageSpan { key: image.key, tokens: image.tokens() };
        self.images.iter().map(span).collect()
    }
}

/// Something to be done with the model between steps.
pub(super) struct Job {
    /// Whether it needs the state of a slot; otherwise it is given any.
    pub(super) needs_slot: bool,
    pub(super) run: Run,
}

/// What is done, in the slot that is given.
pub(super) type Run = Box<dyn FnOnce(&mut Model, usize) + Send>;

/// What waits for the scheduler.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// Most requests that wait.
    limit: usize,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    jobs: VecDeque<Job>,
    /// Nobody can ask any more.
    is_closed: bool,
    /// The scheduler has stopped.
    is_stopped: bool,
    metrics: Metrics,
}

impl Waiting {
    /// Takes out the requests that are not wanted any more.
    fn take_unwanted(&mut self) -> Vec<(Request, Error)> {
        let mut unwanted = Vec::new();
        for request in std::mem::take(&mut self.requests) {
            match request.sender.cancel().reason() {
                Some(error) => unwanted.push((request, error)),
                None => self.requests.push_back(request),
            }
        }
        self.metrics.cancelled += unwanted.len() as u64;
        unwanted
    }

    /// Whether there is room for a request, where `queue` may wait besides those that slots are free for.
    fn check(&mut self, queue: usize) -> Result<(), Error> {
        if self.is_stopped {
            return Err(Error::Stopped);
        }
        let free = self.metrics.slots.saturating_sub(self.metrics.active);
        if self.requests.len() < queue.saturating_add(free) {
            return Ok(());
        }
        self.metrics.refused += 1;
        Err(Error::Busy { waiting: self.requests.len() })
    }
}

impl Inbox {
    pub(super) fn new(limit: usize) -> Self {
        Inbox { waiting: Mutex::default(), changed: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for a request.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.drop_unwanted();
        self.lock().check(self.limit)
    }

    /// Puts a request at the end of the queue.
    pub(super) fn submit(&self, request: Request) -> Result<(), Error> {
        self.drop_unwanted();
        let mut waiting = self.lock();
        waiting.check(self.limit)?;
        waiting.metrics.requests += 1;
        waiting.requests.push_back(request);
        self.changed.notify_one();
        Ok(())
    }

    /// Has something done.
    pub(super) fn run_job(&self, job: Job) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.is_stopped {
            return Err(Error::Stopped);
        }
        if waiting.jobs.len() >= self.limit {
            waiting.metrics.refused += 1;
            return Err(Error::Busy { waiting: waiting.jobs.len() });
        }
        waiting.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The request that has waited longest, and whose turn it is.
    pub(super) fn next_request(&self) -> Option<Request> {
        self.lock().requests.pop_front()
    }

    /// The job that has waited longest, unless it needs a slot and there is none.
    pub(super) fn next_job(&self, has_slot: bool) -> Option<Job> {
        let mut waiting = self.lock();
        let is_ready = waiting.jobs.front().is_some_and(|job| has_slot || !job.needs_slot);
        if is_ready { waiting.jobs.pop_front() } else { None }
    }

    /// Whether a request or a job could begin, where there is a slot or none.
    pub(super) fn has_work(&self, has_slot: bool) -> bool {
        let waiting = self.lock();
        let has_job = waiting.jobs.front().is_some_and(|job| has_slot || !job.needs_slot);
        has_job || (has_slot && !waiting.requests.is_empty())
    }

    /// Ends the requests that are not wanted any more.
    pub(super) fn drop_unwanted(&self) {
        // Whoever is told of it may ask for something, so not under the lock.
        let unwanted = self.lock().take_unwanted();
        for (request, error) in unwanted {
            request.sender.end(Err(error));
        }
    }

    /// Waits until there is something to do; false when there never will be.
    pub(super) fn wait(&self) -> bool {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() && waiting.jobs.is_empty() {
            if waiting.is_closed {
                return false;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Tells that nobody can ask any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Tells that the scheduler has stopped.
    pub(super) fn stop(&self) {
        let mut waiting = self.lock();
        waiting.is_stopped = true;
        let left = (std::mem::take(&mut waiting.requests), std::mem::take(&mut waiting.jobs));
        drop(waiting);
        // Whoever waits for them is told when they are dropped.
        drop(left);
    }

    /// Changes the figures that others see.
    pub(super) fn publish(&self, change: impl FnOnce(&mut Metrics)) {
        change(&mut self.lock().metrics);
    }

    pub(super) fn metrics(&self) -> Metrics {
        let waiting = self.lock();
        Metrics { waiting: waiting.requests.len(), ..waiting.metrics }
    }
}
