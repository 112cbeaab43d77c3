//! Answers as server-sent events.

use std::collections::VecDeque;

use axum::response::sse;
use futures_core::Stream;
use futures_util::{
    StreamExt,
    stream::{self, SelectAll},
};
use lfm2vl::{Answer, AnswerStream};

use super::{answers::Choice, completion::finish_reason, start::Started};
use crate::{
    admission::Admitted,
    error::ApiError,
    service::Service,
    wire::{ChatCompletionChunk, ChunkChoice, StreamEvent, Usage},
};

/// The events of all answers of a request, in the order in which they come. When the client leaves, this is
/// dropped, and with it the answers.
pub(super) fn events(
    service: Service,
    started: Started,
    admitted: Admitted,
) -> impl Stream<Item = Result<sse::Event, axum::Error>> {
    let Started { id, created, answers, include_usage, .. } = started;
    let chunk = ChatCompletionChunk {
        id,
        object: "chat.completion.chunk",
        created,
        model: service.model_name().to_owned(),
        system_fingerprint: service.fingerprint().to_owned(),
        choices: Vec::new(),
        usage: include_usage.then_some(None),
    };
    // Clients count on them to begin in order.
    let begin = (0..answers.len()).map(|index| Choice::new(index).begin()).collect();
    let answers = answers.into_iter().enumerate();
    let answers = answers.map(|(index, answer)| Box::pin(steps(service.clone(), index, answer)));
    let running = Running {
        answers: stream::select_all(answers),
        chunk,
        usage: Usage::default(),
        admitted,
        begin,
        next: Next::Begin,
    };
    stream::unfold(running, |mut running| async {
        let event = running.event().await?;
        Some((event, running))
    })
}

/// What an answer gives at once.
enum Step {
    Chunks(Vec<ChunkChoice>),
    End(Vec<ChunkChoice>, Usage),
}

/// Where a stream goes on.
enum Next {
    Begin,
    Step,
    Usage,
    Done,
    Nothing,
}

struct Running<S> {
    answers: SelectAll<S>,
    /// What all events have in common.
    chunk: ChatCompletionChunk,
    usage: Usage,
    admitted: Admitted,
    begin: VecDeque<ChunkChoice>,
    next: Next,
}

impl<S: Stream<Item = Result<Step, ApiError>> + Unpin> Running<S> {
    async fn event(&mut self) -> Option<Result<sse::Event, axum::Error>> {
        loop {
            match self.next {
                Next::Begin => match self.begin.pop_front() {
                    Some(choice) => return Some(self.chunk(vec![choice])),
                    None => self.next = Next::Step,
                },
                Next::Step => match self.answers.next().await {
                    Some(Ok(Step::Chunks(choices))) => {
                        self.admitted.wrote();
                        return Some(self.chunk(choices));
                    }
                    Some(Ok(Step::End(choices, usage))) => {
                        self.usage.add_choice(&usage);
                        return Some(self.chunk(choices));
                    }
                    Some(Err(error)) => {
                        self.next = Next::Done;
                        return Some(event(StreamEvent::Error(error.body())));
                    }
                    None => self.next = Next::Usage,
                },
                Next::Usage => {
                    self.next = Next::Done;
                    self.admitted.answered(&self.usage);
                    if self.chunk.usage.is_some() {
                        let usage = Some(Some(self.usage));
                        let chunk = ChatCompletionChunk { usage, ..self.chunk.clone() };
                        return Some(event(StreamEvent::Chunk(Box::new(chunk))));
                    }
                }
                Next::Done => {
                    self.next = Next::Nothing;
                    return Some(Ok(sse::Event::default().data("[DONE]")));
                }
                Next::Nothing => return None,
            }
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> Result<sse::Event, axum::Error> {
        event(StreamEvent::Chunk(Box::new(ChatCompletionChunk { choices, ..self.chunk.clone() })))
    }
}

fn event(event: StreamEvent) -> Result<sse::Event, axum::Error> {
    sse::Event::default().json_data(event)
}

/// One answer's steps.
fn steps(
    service: Service,
    index: usize,
    answer: Answer,
) -> impl Stream<Item = Result<Step, ApiError>> {
    let state = Some((Choice::new(index), answer.into_stream()));
    stream::unfold((service, state), |(service, state)| async {
        let (mut choice, mut answer) = state?;
        let step = step(&service, &mut choice, &mut answer).await;
        let goes_on = matches!(step, Ok(Step::Chunks(_)));
        Some((step, (service, goes_on.then_some((choice, answer)))))
    })
}

async fn step(
    service: &Service,
    choice: &mut Choice,
    answer: &mut AnswerStream,
) -> Result<Step, ApiError> {
    let tokenizer = service.engine().processor().tokenizer();
    while let Some(event) = answer.next().await {
        let chunks = choice.push(&event?, tokenizer);
        if !chunks.is_empty() {
            return Ok(Step::Chunks(chunks));
        }
    }
    let chunks = choice.finish(finish_reason(answer.answer())?);
    Ok(Step::End(chunks, choice.usage(answer.answer())?))
}
