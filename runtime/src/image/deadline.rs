//! The time limit of one image.

use std::time::Duration;

use web_time::Instant;

use super::ImageError;

/// The moment when the work on an image must be done.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    /// `None` for a limit beyond what the clock can count.
    end: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Deadline { end: Instant::now().checked_add(limit), limit }
    }

    /// Time that is left.
    #[cfg(feature = "http")]
    pub(super) fn left(self) -> Duration {
        self.end.map_or(self.limit, |end| end.saturating_duration_since(Instant::now()))
    }

    pub(super) fn check(self) -> Result<(), ImageError> {
        if self.end.is_some_and(|end| Instant::now() > end) {
            Err(ImageError::TooSlow { limit: self.limit })
        } else {
            Ok(())
        }
    }
}
