//! Which tokens may follow: made while the model's step runs.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use llguidance::{Matcher, api::StopReason, toktrie::SimpleVob};

use crate::Error;

/// What masks have cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MaskTime {
    /// Time in which masks were made.
    pub(crate) making: Duration,
    /// Time that steps waited for them.
    pub(crate) waiting: Duration,
}

/// The tokens that may follow.
pub(crate) struct Mask(SimpleVob);

impl Mask {
    /// Takes out of `logits` the tokens that must not follow.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        // A vocabulary may be padded with tokens that no text has.
        let allowed = |id: usize| id < self.0.len() && self.0.is_allowed(id as u32);
        for (id, logit) in logits.iter_mut().enumerate() {
            if !allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// A matcher whose mask is to be made, and who waits for it.
pub(super) struct Job {
    matcher: Matcher,
    reply: Sender<Made>,
}

/// A mask, with the matcher that made it.
struct Made {
    matcher: Matcher,
    mask: Result<SimpleVob, String>,
    took: Duration,
}

pub(super) fn compute(Job { mut matcher, reply }: Job) {
    let start = Instant::now();
    let mask = matcher.compute_mask().map_err(|error| error.to_string());
    // Whoever asked may be gone.
    let _ = reply.send(Made { matcher, mask, took: start.elapsed() });
}

/// The mask of the first token; an error where there is none.
fn first_mask(matcher: &mut Matcher) -> Result<SimpleVob, Error> {
    let mask = matcher.compute_mask();
    match (mask, matcher.stop_reason()) {
        (Ok(mask), StopReason::NotStopped) => Ok(mask),
        (_, StopReason::NoExtension | StopReason::NoExtensionBias) => {
            Err(failed(&"there is no text that keeps to it"))
        }
        (Err(error), _) => Err(failed(&error)),
        (Ok(_), _) => Err(failed(&"it allows the empty text only")),
    }
}

/// What is wrong with a constraint. Parsers draw their faults in several lines.
pub(super) fn failed(cause: &dyn std::fmt::Display) -> Error {
    let cause = cause.to_string().replace("<non-verbose/>", "");
    let is_drawing = |line: &&str| {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        line.starts_with("| ") || line.trim() == "^"
    };
    if cause.starts_with("panic") {
        return Error::Constraint { message: "its grammar cannot be made".into() };
    }
    let words: Vec<&str> =
        cause.lines().filter(|line| !is_drawing(line)).flat_map(str::split_whitespace).collect();
    Error::Constraint { message: words.join(" ") }
}

/// The masks of one answer.
pub(crate) struct Masks {
    jobs: Sender<Job>,
    state: State,
    time: MaskTime,
}

enum State {
    /// The mask of the next token is being made.
    Coming(Receiver<Made>),
    /// It is there.
    Here(Box<Matcher>, Mask),
    /// The grammar ends here, or has failed.
    Ended,
}

impl Masks {
    /// The masks of an answer. The first two are made here, the second one for any first token: so that whoever
    /// asks is told at once what is wrong.
    pub(super) fn new(mut matcher: Matcher, jobs: Sender<Job>) -> Result<Self, Error> {
        let start = Instant::now();
        let mask = first_mask(&mut matcher)?;
        if let Some(first) = mask.first_bit_set() {
            let mut probe = matcher.deep_clone();
            probe.consume_token(first as u32).map_err(|error| failed(&error))?;
            if !probe.is_stopped() {
                probe.compute_mask().map_err(|error| failed(&error))?;
            }
        }
        let time = MaskTime { making: start.elapsed(), ..MaskTime::default() };
        Ok(Masks { jobs, state: State::Here(Box::new(matcher), Mask(mask)), time })
    }

    fn go_on(&mut self, matcher: Matcher) {
        let (reply, receiver) = mpsc::channel();
        self.state = State::Coming(receiver);
        // Without the thread, whoever receives is told that nothing comes.
        let _ = self.jobs.send(Job { matcher, reply });
    }

    /// The mask of the next token. Waits for it if it is not there yet.
    pub(crate) fn next(&mut self) -> Result<Option<&Mask>, Error> {
        if let State::Coming(receiver) = &self.state {
            let start = Instant::now();
            let made = receiver.recv();
            self.time.waiting += start.elapsed();
            self.state = State::Ended;
            let Made { matcher, mask, took } = made.map_err(|_| failed(&"its thread has ended"))?;
            self.time.making += took;
            let mask = mask.map_err(|error| failed(&error))?;
            self.state = State::Here(Box::new(matcher), Mask(mask));
        }
        Ok(match &self.state {
            State::Here(_, mask) => Some(mask),
            _ => None,
        })
    }

    /// Goes on behind a token. Whether the grammar ends here, so that nothing can follow.
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool, Error> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Here(mut matcher, _) => {
                matcher.consume_token(id).map_err(|error| failed(&error))?;
                if matcher.is_stopped() {
                    return Ok(true);
                }
                self.go_on(*matcher);
                Ok(false)
            }
            // Nobody has looked at it.
            State::Coming(receiver) => {
                self.state = State::Coming(receiver);
                Ok(false)
            }
            State::Ended => Ok(true),
        }
    }

    /// What they have cost since this was asked last.
    pub(crate) fn take_time(&mut self) -> MaskTime {
        std::mem::take(&mut self.time)
    }
}
