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
    /// Tokens of prompt and answer at most.
    pub(super) most_tokens: usize,
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

/// Something to be done with the model between steps, in a slot that is free.
pub(super) type Job = Box<dyn FnOnce(&mut Model, usize) + Send>;

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
    fn drop_unwanted(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            match request.sender.cancel().reason() {
                Some(error) => {
                    self.metrics.cancelled += 1;
                    request.sender.end(Err(error));
                }
                None => self.requests.push_back(request),
            }
        }
    }
}

impl Inbox {
    pub(super) fn new(limit: usize) -> Self {
        Inbox { waiting: Mutex::default(), changed: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request at the end of the queue.
    pub(super) fn ask(&self, request: Request) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.is_stopped {
            return Err(Error::Stopped);
        }
        if waiting.requests.len() >= self.limit {
            waiting.drop_unwanted();
        }
        if waiting.requests.len() >= self.limit {
            waiting.metrics.refused += 1;
            return Err(Error::Busy { waiting: waiting.requests.len() });
        }
        waiting.metrics.requests += 1;
        waiting.requests.push_back(request);
        self.changed.notify_one();
        Ok(())
    }

    /// Has something done.
    pub(super) fn have_done(&self, job: Job) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.is_stopped {
            return Err(Error::Stopped);
        }
        waiting.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The request that has waited longest, and whose turn it is.
    pub(super) fn next_request(&self) -> Option<Request> {
        self.lock().requests.pop_front()
    }

    pub(super) fn next_job(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    /// Ends the requests that are not wanted any more.
    pub(super) fn drop_unwanted(&self) {
        self.lock().drop_unwanted();
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
