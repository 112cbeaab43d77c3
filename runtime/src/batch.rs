//! Answers of several conversations, generated together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use crate::{
    Completion, Conversation, Engine, Error, GenerationOptions, answer::Generation,
    session::DecoderState,
};

/// Conversations whose answers are generated together: each step runs the decoder once, over one
/// token of every row, so that its weights are read once for all. The tokens are those that each
/// conversation would get alone, but where all inputs of a product share a scale (`activations:
/// tensor`). A row can join or leave between steps, which copies the states of all; its prompt runs
/// alone when it joins.
///
/// Made by [`Engine::batch`].
pub struct Batch<'e> {
    engine: &'e Engine,
    rows: Vec<Row<'e>>,
    /// The states of all rows in order.
    state: DecoderState,
}

struct Row<'e> {
    id: RowId,
    conversation: Conversation<'e>,
    generation: Generation<'e>,
}

/// A row of a batch, as long as it is part of it. No two rows of any batches have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

impl RowId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        RowId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a step did for a row.
pub struct RowStep<'e> {
    /// The row.
    pub row: RowId,
    /// The next piece of its text; empty when a token completes none.
    pub text: String,
    /// What left the batch, when the answer has ended.
    pub finished: Option<Finished<'e>>,
}

/// A row whose answer has ended.
pub struct Finished<'e> {
    /// The conversation, with the answer as its last message.
    pub conversation: Conversation<'e>,
    /// The whole answer.
    pub completion: Completion,
}

/// A conversation that could not join.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct Refused<'e> {
    /// The conversation as it was.
    pub conversation: Conversation<'e>,
    /// Why.
    pub error: Error,
}

impl std::fmt::Debug for Refused<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl From<Box<Refused<'_>>> for Error {
    fn from(refused: Box<Refused<'_>>) -> Self {
        refused.error
    }
}

impl<'e> Batch<'e> {
    pub(crate) fn new(engine: &'e Engine) -> Self {
        Batch { engine, rows: Vec::new(), state: DecoderState::default() }
    }

    /// Rows in the batch.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Runs the conversation's prompt, and adds it as a row. Tokens are not drafted in a batch.
    ///
    /// # Errors
    /// As [`Conversation::generate`]; [`Error::NoBatch`] where the decoder's keys and values have no
    /// buffers; [`Error::OtherEngine`]. The conversation comes back as it was.
    pub fn join(
        &mut self,
        mut conversation: Conversation<'e>,
        options: &GenerationOptions,
    ) -> Result<RowId, Box<Refused<'e>>> {
        let mut generation = match self.begin(&mut conversation, options) {
            Ok(generation) => generation,
            Err(error) => return Err(Box::new(Refused { conversation, error })),
        };
        let row = std::mem::take(generation.state());
        if let Err(error) = self.engine.decoder().checked(self.state.join(row)) {
            return Err(Box::new(Refused { conversation, error }));
        }
        let id = RowId::new();
        self.rows.push(Row { id, conversation, generation });
        Ok(id)
    }

    fn begin(
        &self,
        conversation: &mut Conversation<'e>,
        options: &GenerationOptions,
    ) -> Result<Generation<'e>, Error> {
        if !std::ptr::eq(self.engine, conversation.engine()) {
            return Err(Error::OtherEngine);
        }
        match self.engine.decoder().new_state()?.can_be_batched() {
            true => conversation.start(options),
            false => Err(Error::NoBatch),
        }
    }

    /// Gives every row its next token. Rows whose answers end leave the batch.
    ///
    /// # Errors
    /// [`Error`] when a graph fails, or the tokenizer. The batch is then empty, and its conversations
    /// are gone.
    pub fn step(&mut self) -> Result<Vec<RowStep<'e>>, Error> {
        let result = self.try_step();
        if result.is_err() {
            self.rows.clear();
            self.state = DecoderState::default();
        }
        result
    }

    fn try_step(&mut self) -> Result<Vec<RowStep<'e>>, Error> {
        let mut steps = Vec::new();
        let mut index = 0;
        while let Some(Row { id, generation, .. }) = self.rows.get_mut(index) {
            let row = *id;
            let mut text = generation.next_piece()?;
            while !generation.is_finished() && generation.is_full() {
                text += &generation.next_piece()?;
            }
            let finished = match generation.is_finished() {
                true => {
                    let Row { conversation, generation, .. } = self.take(index)?;
                    let completion = generation.completion()?;
                    Some(Finished { conversation, completion })
                }
                false => {
                    index += 1;
                    None
                }
            };
            steps.push(RowStep { row, text, finished });
        }
        if !self.rows.is_empty() {
            self.run()?;
        }
        Ok(steps)
    }

    /// Runs the decoder over the last token of each row.
    fn run(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        let ids: Vec<u32> =
            self.rows.iter().filter_map(|row| row.generation.last_token()).collect();
        let embeddings = self.engine.embed_answer(ids.len(), &ids)?;
        let logits = self.engine.decoder().run_keeping(embeddings, &mut self.state, 1)?.logits;
        let seconds = start.elapsed().as_secs_f64();
        for (row, logits) in self.rows.iter_mut().zip(logits) {
            row.generation.take_logits(logits, seconds);
        }
        Ok(())
    }

    /// Takes a row out of the batch; its answer becomes part of the conversation as far as it went.
    ///
    /// # Errors
    /// [`Error::Run`] when its state cannot be taken out.
    pub fn leave(&mut self, row: RowId) -> Result<Option<Conversation<'e>>, Error> {
        let index = self.rows.iter().position(|other| other.id == row);
        index.map(|index| Ok(self.take(index)?.conversation)).transpose()
    }

    fn take(&mut self, index: usize) -> Result<Row<'e>, Error> {
        let state = self.engine.decoder().checked(self.state.leave(index))?;
        let mut row = self.rows.remove(index);
        *row.generation.state() = state;
        row.generation.end(&mut row.conversation);
        Ok(row)
    }
}
