//! Grammars of a model's vocabulary.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
};

use llguidance::{Matcher, ParserFactory, toktrie::TokEnv};

use super::{
    Constraint, Masks, limits,
    mask::{Job, compute, failed},
    vocabulary::Vocabulary,
};
use crate::{Error, chat::Tokenizer};

/// Stack of the threads in which grammars and masks are made. What is not used of it takes no memory.
const STACK_BYTES: usize = 256 << 20;

/// Makes grammars of constraints, and the masks of their tokens in a thread of its own. Both begin with
/// the first constraint.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    eos_token_ids: Vec<u32>,
    started: OnceLock<Result<Started, String>>,
}

struct Started {
    factory: ParserFactory,
    /// Held while a grammar is made, which may take hundreds of megabytes.
    making: Mutex<()>,
    jobs: mpsc::Sender<Job>,
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, eos_token_ids: Vec<u32>) -> Self {
        Grammars { tokenizer, eos_token_ids, started: OnceLock::new() }
    }

    /// The masks of a constraint, from the first token on.
    pub(crate) fn masks(&self, constraint: &Constraint) -> Result<Masks, Error> {
        constraint.check().map_err(|cause| failed(&cause))?;
        limits::check(constraint).map_err(|cause| failed(&cause))?;
        let started = self.started.get_or_init(|| self.start());
        let Started { factory, making, jobs } = started.as_ref().map_err(|cause| failed(&cause))?;
        let _making = making.lock().unwrap_or_else(PoisonError::into_inner);
        // What is nested deeply takes a deep stack.
        thread::scope(|scope| {
            let compile = || {
                let matcher = Matcher::new(factory.create_parser(constraint.grammar()));
                match matcher.get_error() {
                    Some(cause) => Err(failed(&cause)),
                    None => Masks::new(matcher, jobs.clone()),
                }
            };
            let thread = thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, compile);
            let thread = thread.map_err(|source| Error::NoThread { source })?;
            thread.join().unwrap_or_else(|_| Err(failed(&"its grammar cannot be made")))
        })
    }

    fn start(&self) -> Result<Started, String> {
        let vocabulary = Vocabulary::new(Arc::clone(&self.tokenizer), &self.eos_token_ids)?;
        let vocabulary: TokEnv = Arc::new(vocabulary);
        let mut factory =
            ParserFactory::new_simple(&vocabulary).map_err(|error| error.to_string())?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        let (jobs, queue) = mpsc::channel();
        // It ends with the last sender.
        let thread = thread::Builder::new().name("lfm2vl-masks".into()).stack_size(STACK_BYTES);
        thread.spawn(move || queue.into_iter().for_each(compute)).map_err(|e| e.to_string())?;
        Ok(Started { factory, making: Mutex::new(()), jobs })
    }
}
