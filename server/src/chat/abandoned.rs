//! Clients that leave while their request is being read and its images are processed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::ApiError;

/// Whether the client of a request has left. Dropping the guard says so.
#[derive(Clone, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

/// Says that the client has left when it is dropped.
pub(super) struct Guard(Abandoned);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Abandoned {
    pub(super) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    /// An error that nobody reads, if the client has left.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.0.load(Ordering::Relaxed) {
            Err(ApiError::invalid("the client has left"))
        } else {
            Ok(())
        }
    }
}
