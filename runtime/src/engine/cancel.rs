//! Ending an answer from outside: when it is cancelled or dropped, or its deadline passes. What runs for
//! it alone (a chunk of its prompt, views of its images) ends as soon as ONNX Runtime looks.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ort::session::RunOptions;

use crate::Error;

/// Whether an answer is still wanted.
#[derive(Default)]
pub(super) struct Cancel {
    cancelled: AtomicBool,
    /// When it must have ended, and how much time it had.
    deadline: Option<(Instant, Duration)>,
    /// What runs for it alone.
    run: Mutex<Option<Arc<RunOptions>>>,
}

impl Cancel {
    pub(super) fn new(deadline: Option<(Instant, Duration)>) -> Self {
        Cancel { deadline, ..Cancel::default() }
    }

    /// Ends the answer.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        if let Some(run) = &*lock(&self.run) {
            terminate(run);
        }
    }

    /// Why the answer is not wanted any more.
    pub(super) fn reason(&self) -> Option<Error> {
        if self.cancelled.load(Ordering::SeqCst) {
            return Some(Error::Cancelled);
        }
        let (deadline, timeout) = self.deadline?;
        (Instant::now() >= deadline).then_some(Error::TimedOut(timeout))
    }

    /// Makes what runs with these options end with the answer, until the guard is dropped.
    pub(super) fn guard<'g>(
        &'g self,
        options: &Arc<RunOptions>,
        watchdog: &'g Watchdog,
    ) -> RunGuard<'g> {
        *lock(&self.run) = Some(Arc::clone(options));
        // It may have been cancelled just before.
        if self.cancelled.load(Ordering::SeqCst) {
            terminate(options);
        }
        if let Some((deadline, _)) = self.deadline {
            watchdog.watch(Some((deadline, Arc::clone(options))));
        }
        RunGuard { cancel: self, watchdog }
    }
}

/// A run that ends with an answer.
pub(super) struct RunGuard<'g> {
    cancel: &'g Cancel,
    watchdog: &'g Watchdog,
}

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.cancel.run) = None;
        if self.cancel.deadline.is_some() {
            self.watchdog.watch(None);
        }
    }
}

fn terminate(run: &RunOptions) {
    if let Err(error) = run.terminate() {
        tracing::warn!(%error, "a run cannot be ended");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that ends a run when its deadline passes.
pub(super) struct Watchdog {
    shared: Arc<(Mutex<Watched>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Watched {
    run: Option<(Instant, Arc<RunOptions>)>,
    stopped: bool,
}

impl Watchdog {
    pub(super) fn start() -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::default(), Condvar::new()));
        let (seen, name) = (Arc::clone(&shared), "lfm2vl-watchdog");
        let thread = thread::Builder::new().name(name.into()).spawn(move || guard(&seen))?;
        Ok(Watchdog { shared, thread: Some(thread) })
    }

    fn watch(&self, run: Option<(Instant, Arc<RunOptions>)>) {
        lock(&self.shared.0).run = run;
        self.shared.1.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.shared.0).stopped = true;
        self.shared.1.notify_one();
        // It has nothing to tell.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn guard((watched, changed): &(Mutex<Watched>, Condvar)) {
    let mut watched = lock(watched);
    while !watched.stopped {
        let now = Instant::now();
        let left =
            watched.run.as_ref().map(|(deadline, _)| deadline.saturating_duration_since(now));
        watched = match left {
            Some(Duration::ZERO) => {
                if let Some((_, run)) = watched.run.take() {
                    terminate(&run);
                }
                watched
            }
            Some(left) => {
                changed.wait_timeout(watched, left).unwrap_or_else(PoisonError::into_inner).0
            }
            None => changed.wait(watched).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_when_they_are_cancelled_or_late() {
        let cancel = Cancel::new(None);
        assert!(cancel.reason().is_none());
        cancel.cancel();
        assert!(matches!(cancel.reason(), Some(Error::Cancelled)));
        let timeout = Duration::from_secs(3);
        let late = Cancel::new(Some((Instant::now(), timeout)));
        assert!(matches!(late.reason(), Some(Error::TimedOut(of)) if of == timeout));
        let early = Cancel::new(Some((Instant::now() + timeout, timeout)));
        assert!(early.reason().is_none());
    }
}
