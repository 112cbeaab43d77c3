//! Answers for programs that wait for many things at a time.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::Answer;
use crate::{Error, generate::Event};

/// An answer as a stream of its events; made by [`Answer::into_stream`].
pub struct AnswerStream(Answer);

impl AnswerStream {
    pub(super) fn new(answer: Answer) -> Self {
        AnswerStream(answer)
    }

    /// The answer, for what has been made of it, and to cancel it.
    pub fn answer(&self) -> &Answer {
        &self.0
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(context)
    }
}
