//! Who computes: the caller's threads.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread::Builder,
};

/// Threads that share work.
///
/// # Safety
/// [`run`](Self::run) calls its function exactly once for each number below the given one and for no
/// other, and returns after that: parts write to memory of their own without looking.
pub unsafe trait Threads {
    /// How many there are, at least 1.
    fn count(&self) -> usize;

    /// Calls `part` once for each of `0..parts`, in any order and on any thread, and returns when all
    /// calls have returned.
    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

// SAFETY: a range has each number once.
unsafe impl Threads for Serial {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(part);
    }
}

/// Threads that are started for each piece of work and end with it: for work of a millisecond and
/// more where there is no pool.
#[derive(Debug, Clone, Copy)]
pub struct Scoped {
    count: NonZero<usize>,
}

impl Scoped {
    /// That many, the caller's among them.
    pub fn new(count: NonZero<usize>) -> Self {
        Scoped { count }
    }

    /// As many as the process may use processors.
    pub fn all() -> Self {
        Scoped::new(std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN))
    }
}

// SAFETY: a counter gives each number once, and the scope waits for its threads.
unsafe impl Threads for Scoped {
    fn count(&self) -> usize {
        self.count.get()
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let take = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= parts {
                    return;
                }
                part(index);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.count.get().min(parts) {
                // Where the system gives no more threads, those that there are do the work.
                if Builder::new().spawn_scoped(scope, take).is_err() {
                    break;
                }
            }
            take();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_runs_once() {
        for parts in [0, 1, 2, 3, 100] {
            let calls: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            Scoped::new(NonZero::new(3).unwrap()).run(parts, &|part| {
                calls[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
        }
    }
}
