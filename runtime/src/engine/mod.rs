//! The engine: one model for many answers at a time.

mod answer;
mod budget;
mod builder;
mod cancel;
mod channel;
mod conversation;
mod decode;
mod image_cache;
mod images;
mod info;
mod metrics;
mod placement;
mod prefix;
mod prompt;
mod request;
mod scheduler;
mod slot;
#[cfg(feature = "stream")]
mod stream;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ndarray::Array2;

use self::{
    answer::AnsweredPrompt,
    cancel::Cancel,
    images::PromptImage,
    request::{Inbox, Job, Request},
};
use crate::{
    Error, Processor,
    generate::{
        FinishReason, GenerationOptions, Grammars, LogitsProcessor, Sequence, SequenceLimits,
    },
    image::{ImageProcessor, ProcessedImage},
    model::{Decoder, EmbedTokens, ModelFolder, Vision},
};

pub use answer::{Answer, Completion, Timings};
pub use builder::EngineBuilder;
pub use channel::CancelHandle;
pub use conversation::Conversation;
pub use info::{GraphInfo, TensorInfo};
pub use metrics::Metrics;
#[cfg(feature = "stream")]
pub use stream::AnswerStream;

/// Tokens of an answer that there is room for from its beginning; for longer ones, buffers may grow.
const USUAL_ANSWER: usize = 1024;

/// What the scheduler runs.
struct Model {
    processor: Arc<Processor>,
    eos_token_ids: Vec<u32>,
    embed_tokens: EmbedTokens,
    vision: Vision,
    decoder: Decoder,
}

/// How an answer ends.
type End = Result<FinishReason, Error>;

/// A loaded model, which makes many answers at a time. Clones are the same engine.
///
/// A thread of its own runs the model. Prompts are processed where they are asked ([`Engine::generate`]);
/// then they wait for a slot of the decoder's state, in the order in which they came. All answers get a
/// token at a time, together where the decoder's graph allows it, and prompts and images go on chunk by
/// chunk in between.
///
/// The thread ends when the last clone and the last answer are dropped.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

/// What all clones and all answers hold.
struct Handle {
    /// No two engines of a process have the same.
    id: u64,
    folder: ModelFolder,
    processor: Arc<Processor>,
    graphs: Vec<GraphInfo>,
    load_time: Duration,
    context: usize,
    max_text_bytes: usize,
    is_speculative: bool,
    eos_token_ids: Vec<u32>,
    grammars: Grammars,
    inbox: Arc<Inbox>,
    scheduler: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.close();
        let mut scheduler = self.scheduler.lock().unwrap_or_else(PoisonError::into_inner);
        // What a caller gave to an answer may have the last handle, and be dropped by the scheduler.
        let is_elsewhere = |other: &JoinHandle<()>| other.thread().id() != thread::current().id();
        // Its panic has been told to all who waited.
        let _ = scheduler.take().filter(is_elsewhere).map(JoinHandle::join);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let folder = self.handle.folder.path();
        f.debug_struct("Engine").field("folder", &folder).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts loading the model in `folder`.
    pub fn builder(folder: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(folder.as_ref())
    }

    /// Starts the answer to the messages of a conversation. Images are processed and the prompt is made
    /// before this returns. The answer becomes a part of the conversation by
    /// [`Conversation::push_answer`].
    ///
    /// # Errors
    /// [`Error`] when a setting makes no sense, the prompt cannot be made or is too long, or as many
    /// requests wait as may ([`Error::Busy`]). What comes later is an error of the answer.
    pub fn generate(
        &self,
        conversation: &mut Conversation,
        options: &GenerationOptions,
    ) -> Result<Answer, Error> {
        self.generate_with(conversation, options, Vec::new())
    }

    /// As [`generate`](Self::generate), with stages of the caller's own that change logits. They run in the
    /// engine's thread, where all answers wait for them: they must not wait for an answer themselves.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_with(
        &self,
        conversation: &mut Conversation,
        options: &GenerationOptions,
        processors: Vec<Box<dyn LogitsProcessor>>,
    ) -> Result<Answer, Error> {
        let _span = tracing::debug_span!("generate", conversation = conversation.id).entered();
        let start = Instant::now();
        let options = options.clone().validated()?;
        if options.prompt_lookup_num_tokens.is_some() && !self.handle.is_speculative {
            return Err(Error::NoSpeculation);
        }
        if conversation.messages().is_empty() {
            return Err(Error::NoMessage);
        }
        let (bytes, limit) = (conversation.text_bytes(), self.handle.max_text_bytes);
        if bytes > limit {
            return Err(Error::TooMuchText { bytes, limit });
        }
        self.handle.inbox.check()?;
        let processor = &self.handle.processor;
        let images = conversation.process_images(self.handle.id, processor)?;
        let mut timings = Timings { preprocess: start.elapsed(), ..Timings::default() };
        let (text, tokens) = conversation.prompt(self.handle.id, processor, &images)?;
        let context = self.handle.context;
        if tokens.is_empty() {
            return Err(Error::NoMessage);
        }
        if tokens.len() >= context {
            return Err(Error::TooLong { tokens: tokens.len(), context });
        }
        let limits = SequenceLimits {
            max_new_tokens: options.max_new_tokens,
            context,
            eos_token_ids: if options.ignore_eos {
                Vec::new()
            } else {
                self.handle.eos_token_ids.clone()
            },
        };
        let constraint = options.constraint.as_ref();
        let masks =
            constraint.map(|constraint| self.handle.grammars.masks(constraint)).transpose()?;
        let sequence =
            Sequence::new(processor, &text, tokens.clone(), limits, &options, processors, masks)?;
        timings.prefill = start.elapsed() - timings.preprocess;
        let deadline = options
            .timeout
            .and_then(|timeout| start.checked_add(timeout).map(|deadline| (deadline, timeout)));
        let (sender, receiver) = channel::channel(timings, Cancel::new(deadline));
        let answer = options.max_new_tokens.min(USUAL_ANSWER);
        let usual_tokens = tokens.len().saturating_add(answer).min(context);
        let prompt = AnsweredPrompt {
            text,
            tokens,
            image_tokens: images.iter().map(PromptImage::tokens).sum(),
            options: conversation.options.clone(),
        };
        self.handle.inbox.submit(Request {
            conversation: conversation.id,
            sequence,
            usual_tokens,
            images,
            sender,
            start: Instant::now(),
        })?;
        Ok(Answer::new(receiver, prompt, Arc::clone(processor), Arc::clone(&self.handle)))
    }

    /// Answers a conversation, and adds the answer to it: [`generate`](Self::generate),
    /// [`finish`](Answer::finish) and [`push_answer`](Conversation::push_answer).
    ///
    /// # Errors
    /// As these.
    pub fn answer(
        &self,
        conversation: &mut Conversation,
        options: &GenerationOptions,
    ) -> Result<Completion, Error> {
        let completion = self.generate(conversation, options)?.finish()?;
        conversation.push_answer(&completion);
        Ok(completion)
    }

    /// The folder it was loaded from.
    pub fn folder(&self) -> &ModelFolder {
        &self.handle.folder
    }

    /// What turns messages and images into tokens and patches.
    pub fn processor(&self) -> &Processor {
        &self.handle.processor
    }

    /// What processes images.
    pub fn image_processor(&self) -> &ImageProcessor {
        self.handle.processor.image_processor()
    }

    /// The settings of generation that the model recommends.
    ///
    /// # Errors
    /// [`Error::EngineSetting`] when `generation_config.json` has a setting that makes no sense.
    pub fn generation_options(&self) -> Result<GenerationOptions, Error> {
        let options = GenerationOptions::from_config(self.handle.folder.generation_config());
        options.map_err(|error| match error {
            Error::Setting { name, value, expected } => {
                Error::EngineSetting { name, value, expected }
            }
            other => other,
        })
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.handle.load_time
    }

    /// Most tokens of a prompt and its answer: the model's, or fewer where the decoder's state has room
    /// for fewer.
    pub fn context(&self) -> usize {
        self.handle.context
    }

    /// The loaded graphs.
    pub fn graphs(&self) -> &[GraphInfo] {
        &self.handle.graphs
    }

    /// What it has done and is doing.
    pub fn metrics(&self) -> Metrics {
        self.handle.inbox.metrics()
    }

    /// Image features [tokens, hidden] of an image: what the model's `get_image_features` gives. Runs
    /// between the steps of answers, which wait for it.
    ///
    /// # Errors
    /// [`Error::TooManyPatches`], [`Error::FeatureCount`], [`Error::Busy`],
    /// [`Error::Stopped`], or those of a run.
    pub fn image_features(&self, image: &ProcessedImage) -> Result<Array2<f32>, Error> {
        let image = image.clone();
        self.run_job(false, move |model, _| prompt::image_features(model, &image))
    }

    /// Hidden states [tokens, hidden] of a prompt after the decoder's last norm, for folders
    /// exported with `--recipe features`. `features` are those of the prompt's images in order. Waits for
    /// a slot; then answers wait for it.
    ///
    /// # Errors
    /// [`Error::NoHiddenState`] for other folders, [`Error::FeatureCount`], [`Error::TooLong`],
    /// [`Error::Busy`], [`Error::Stopped`], or those of a run.
    pub fn last_hidden_state(
        &self,
        ids: &[u32],
        features: &[Array2<f32>],
    ) -> Result<Array2<f32>, Error> {
        let (ids, features, context) = (ids.to_vec(), features.to_vec(), self.context());
        if ids.len() >= context {
            return Err(Error::TooLong { tokens: ids.len(), context });
        }
        self.run_job(true, move |model, slot| prompt::hidden_states(model, slot, &ids, features))
    }

    /// Does something between the steps of answers, and waits for it.
    fn run_job<T: Send + 'static>(
        &self,
        needs_slot: bool,
        job: impl FnOnce(&mut Model, usize) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let run = Box::new(move |model: &mut Model, slot| {
            // Whoever asked waits for it.
            let _ = sender.send(job(model, slot));
        });
        self.handle.inbox.run_job(Job { needs_slot, run })?;
        receiver.recv().unwrap_or(Err(Error::Stopped))
    }
}
