//! Loading a model.

use std::{
    collections::BTreeMap,
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use lfm2vl_graphs::{Contract, Graph, GraphSpec, ModelDims, Precision, Recipe};

use super::{
    Engine, Handle, Model,
    cancel::Watchdog,
    info,
    request::Inbox,
    scheduler::{Scheduler, Settings},
};
use crate::{
    Error, Processor,
    backend::{GraphSession, SessionOptions, provider::Provider},
    generate::Grammars,
    image::Overrides,
    model::{
        CacheSettings, Decoder, EmbedTokens, ModelFolder, Vision, check, dims_of, state_dtype,
    },
};

/// More answers at a time than any machine makes.
const MOST_SLOTS: usize = 65_536;

/// How to load a model; made by [`Engine::builder`].
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    folder: PathBuf,
    precision: Option<Precision>,
    bundle: Option<String>,
    providers: Vec<Provider>,
    graph_providers: BTreeMap<Graph, Vec<Provider>>,
    threads: Option<usize>,
    overrides: Overrides,
    speculation: bool,
    slots: usize,
    capacity: Option<usize>,
    kv_cache_memory: Option<usize>,
    queue: usize,
    prompt_tokens_per_step: Option<usize>,
    run_ahead: Option<bool>,
    share_prefixes: bool,
    image_cache: usize,
    max_text_bytes: usize,
}

impl EngineBuilder {
    /// Opens the graphs in this precision, instead of the one that the folder recommends.
    #[must_use]
    pub fn precision(mut self, precision: Option<Precision>) -> Self {
        self.precision = precision;
        self
    }

    /// Opens the graphs in the precisions of this bundle of the folder's manifest, instead of the
    /// recommended one.
    #[must_use]
    pub fn bundle(mut self, name: Option<String>) -> Self {
        self.bundle = name;
        self
    }

    /// Runs the graphs on this provider, instead of the CPU. Nodes that it does not take run on the
    /// CPU ([`GraphInfo::assignments`](crate::GraphInfo::assignments) tells which). It is an error if it cannot start, or takes no node of the
    /// decoder or of vision.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.providers([provider])
    }

    /// Runs each graph on the first of these providers that can run it; an empty list, as by default, is [`Provider::host`].
    /// [`GraphInfo::skipped`](crate::GraphInfo::skipped) tells about those before it. [`Provider::auto`] gives a list that
    /// suits the machine.
    #[must_use]
    pub fn providers(mut self, providers: impl IntoIterator<Item = Provider>) -> Self {
        self.providers = providers.into_iter().collect();
        self
    }

    /// Runs one part of the model on other providers than the rest: vision (by any of its graphs),
    /// the token embedding (which the recipe `cuda` has in the decoder) or the decoder.
    #[must_use]
    pub fn graph_providers(
        mut self,
        graph: Graph,
        providers: impl IntoIterator<Item = Provider>,
    ) -> Self {
        self.graph_providers.insert(part(graph), providers.into_iter().collect());
        self
    }

    /// Uses this many threads in an operator, instead of one for each core.
    #[must_use]
    pub fn threads(mut self, threads: Option<usize>) -> Self {
        self.threads = threads;
        self
    }

    /// Loads the decoder that can check drafted tokens, for
    /// [`prompt_lookup_num_tokens`](crate::GenerationOptions::prompt_lookup_num_tokens).
    #[must_use]
    pub fn speculation(mut self, speculation: bool) -> Self {
        self.speculation = speculation;
        self
    }

    /// Makes so many answers at a time, 8 by default; other requests wait. Each has a slot of the
    /// decoder's state, which stays there after the answer until another one needs it. In the memory of devices
    /// other than CUDA's there is one slot where all share buffers.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// Gives each slot room for so many tokens of prompt and answer from the beginning, and for no more.
    /// By default the buffers of all slots on a host grow to the longest prompt and answer, up to the
    /// model's context, each time by a half or more, which copies all states; those on a device have room for 4,096 tokens. On a host, what was never
    /// written takes no memory.
    #[must_use]
    pub fn capacity(mut self, tokens: usize) -> Self {
        self.capacity = Some(tokens);
        self
    }

    /// Takes so many bytes for keys and values of all slots at most (while buffers grow, old and new ones are
    /// there together): prompts that would need more are too long. By default the model's context is the only limit.
    #[must_use]
    pub fn kv_cache_memory(mut self, bytes: usize) -> Self {
        self.kv_cache_memory = Some(bytes);
        self
    }

    /// Lets so many requests wait for a slot, 256 by default; beyond, they are refused with
    /// [`Error::Busy`].
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.queue = requests;
        self
    }

    /// Runs about so many tokens of a prompt, an even number, between two tokens of the other answers: few make prompts slow,
    /// many make answers stutter. By default as many as take a tenth of a second; never more than 256, which
    /// is how many run where nobody waits for a token.
    #[must_use]
    pub fn prompt_tokens_per_step(mut self, tokens: usize) -> Self {
        self.prompt_tokens_per_step = Some(tokens);
        self
    }

    /// Begins the next step before the tokens of the last one have been chosen, where all answers have nearly always
    /// had the most likely token, and no prompt goes on or could begin: the device then computes while the host
    /// chooses, in a thread of its own, and makes text of it. Where another token is chosen, or the answer ends,
    /// what was computed for it is dropped. Answers are the same.
    ///
    /// On by default where the state is on a device. It needs a decoder that looks tokens up itself (the recipe
    /// `cuda` has one; not with [`speculation`](Self::speculation)), and all room from the beginning, as on a device
    /// or with [`capacity`](Self::capacity); elsewhere a warning says so.
    #[must_use]
    pub fn run_ahead(mut self, run_ahead: bool) -> Self {
        self.run_ahead = Some(run_ahead);
        self
    }

    /// Lets a conversation go on from the states of others that begin as it does: with the same system
    /// message and tools, with the same images, or with the same messages, as when a client sends the
    /// whole history each time. Tokens and hashes of images must be the same. A service whose users must
    /// not learn from its speed what others have sent leaves this off, as it is by default.
    #[must_use]
    pub fn share_prefixes(mut self, share: bool) -> Self {
        self.share_prefixes = share;
        self
    }

    /// Keeps image features of so many bytes in all, 64 MB by default, so that an image that comes
    /// again in another conversation need not be encoded again. Images are told apart by a
    /// cryptographic hash of their patches, and so of their pixels and settings. A service whose users
    /// must not learn from its speed which images others have sent sets this to 0.
    #[must_use]
    pub fn image_cache(mut self, bytes: usize) -> Self {
        self.image_cache = bytes;
        self
    }

    /// Refuses conversations with more bytes of text, 1 MiB by default, before they are made into tokens: a
    /// mebibyte may take a second of a core.
    #[must_use]
    pub fn max_text_bytes(mut self, bytes: usize) -> Self {
        self.max_text_bytes = bytes;
        self
    }

    /// Processes images with some settings replaced.
    #[must_use]
    pub fn image_overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// [`Error`] when a file is missing or broken, a graph does not keep the contract, ONNX Runtime is
    /// not available, none of the providers can run a graph, or a setting makes no sense.
    pub fn build(self) -> Result<Engine, Error> {
        let start = Instant::now();
        let positive = |name, value: usize| match value {
            0 => Err(Error::EngineSetting {
                name,
                value: "0".into(),
                expected: "it must be at least 1",
            }),
            _ => Ok(()),
        };
        positive("slots", self.slots)?;
        if self.slots > MOST_SLOTS {
            let value = self.slots.to_string();
            let expected = "it must be 65536 at most";
            return Err(Error::EngineSetting { name: "slots", value, expected });
        }
        positive("queue", self.queue)?;
        positive("prompt_tokens_per_step", self.prompt_tokens_per_step.unwrap_or(1))?;
        let _span = tracing::info_span!("load", folder = %self.folder.display()).entered();
        let folder = ModelFolder::open(&self.folder)?;
        let model = self.load(&folder)?;
        let no_thread = |source| Error::NoThread { source };
        let can_run_ahead = model.decoder.has_following_steps();
        let wants_to = self.run_ahead.unwrap_or(model.decoder.memory().is_some());
        if self.run_ahead == Some(true) && !can_run_ahead {
            tracing::warn!("no step runs ahead, since the decoder's steps do not feed each other");
        }
        let runs_ahead = can_run_ahead && wants_to;
        let reader = runs_ahead.then(|| {
            let thread = rayon::ThreadPoolBuilder::new().num_threads(1);
            thread.thread_name(|_| "lfm2vl-reader".into()).build()
        });
        let reader = reader.transpose().map_err(|error| no_thread(io::Error::other(error)))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let inbox = Arc::new(Inbox::new(self.queue));
        let mut handle = Handle {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            processor: Arc::clone(&model.processor),
            graphs: info::of(&model),
            load_time: start.elapsed(),
            context: folder.context().min(model.decoder.limit()),
            max_text_bytes: self.max_text_bytes,
            is_speculative: model.decoder.is_speculative(),
            eos_token_ids: model.eos_token_ids.clone(),
            grammars: Grammars::new(
                model.processor.shared_tokenizer(),
                model.eos_token_ids.clone(),
            ),
            folder,
            inbox: Arc::clone(&inbox),
            scheduler: Mutex::default(),
        };
        let settings = Settings {
            share_prefixes: self.share_prefixes,
            image_cache: self.image_cache,
            prompt_tokens_per_step: self.prompt_tokens_per_step,
            reader,
        };
        let watchdog = Watchdog::start().map_err(no_thread)?;
        let scheduler = Scheduler::new(model, inbox, watchdog, settings);
        let thread = thread::Builder::new().name("lfm2vl-engine".into());
        let thread = thread.spawn(|| scheduler.run()).map_err(no_thread)?;
        handle.scheduler = Mutex::new(Some(thread));
        tracing::info!(took = ?handle.load_time, "loaded");
        Ok(Engine { handle: Arc::new(handle) })
    }

    fn load(&self, folder: &ModelFolder) -> Result<Model, Error> {
        let recipe = folder.recipe()?;
        let contract = Contract::builtin(&recipe.contract)?;
        let bundle = folder.bundle(self.bundle.as_deref())?;
        let open = |graph| {
            let wanted = self.precision.or(bundle.map(|bundle| bundle.precision(graph)));
            let precision = folder.choose(graph, wanted)?;
            let providers = self.graph_providers.get(&part(graph)).unwrap_or(&self.providers);
            let providers = providers.iter().map(|provider| match graph {
                // Only these steps have the same sizes each time.
                Graph::Decoder => Ok(provider.clone()),
                Graph::SpeculativeDecoder if provider.records() => Err(Error::NothingToRecord),
                _ => Ok(provider.clone().without_recording()),
            });
            let providers = providers.collect::<Result<_, Error>>()?;
            let options = SessionOptions { providers, threads: self.threads };
            GraphSession::open(graph, precision, &folder.graph_file(graph, precision), &options)
        };
        let open_vision = || -> Result<Vision, Error> {
            let is_split = folder.precisions(Graph::VisionEncoder).is_empty()
                && !folder.precisions(Graph::VisionTower).is_empty();
            if is_split {
                let (tower, projector) = (open(Graph::VisionTower)?, open(Graph::Projector)?);
                return Ok(Vision::split(tower, projector));
            }
            Ok(Vision::fused(open(Graph::VisionEncoder)?))
        };
        let open_decoders = || -> Result<_, Error> {
            let speculation = self.speculation;
            let graph = if speculation { Graph::SpeculativeDecoder } else { Graph::Decoder };
            // A folder without it runs prompts token by token.
            let has_prefill = !folder.precisions(Graph::PrefillDecoder).is_empty();
            let prefill = has_prefill.then(|| open(Graph::PrefillDecoder)).transpose()?;
            Ok((open(graph)?, prefill))
        };
        // The speculative decoder is given embeddings in any case.
        let looks_up_tokens = recipe.feedback && !self.speculation;
        // ONNX Runtime arranges the weights of a graph with one thread; the decoder's take as long as
        // all the rest.
        let (decoder, embed_tokens, vision, processor) = thread::scope(|scope| {
            let decoder = scope.spawn(open_decoders);
            let processor = Processor::from_folder(&self.folder, &self.overrides);
            let embed_tokens = (!looks_up_tokens).then(|| open(Graph::EmbedTokens));
            let vision = open_vision();
            let decoder = decoder.join().unwrap_or_else(|panic| resume_unwind(panic));
            (decoder, embed_tokens, vision, processor)
        });
        let (processor, (decoder, prefill)) = (Arc::new(processor?), decoder?);
        let dims = dims_of(&decoder);
        let checker = Checker { contract: &contract, recipe: &recipe, dims: &dims };
        let spec = checker.check(&decoder)?;
        if let Some(prefill) = &prefill {
            checker.check(prefill)?;
        }
        let settings = CacheSettings {
            slots: self.slots,
            context: folder.context(),
            capacity: self.capacity,
            memory: self.kv_cache_memory,
        };
        let (embed_tokens, mut vision) = (embed_tokens.transpose()?, vision?);
        let others: Vec<_> = embed_tokens.iter().chain(vision.sessions()).collect();
        others.iter().try_for_each(|session| checker.check(session).map(drop))?;
        let decoder = Decoder::new(decoder, prefill, &others, &spec, settings)?;
        let embed_tokens = match embed_tokens {
            Some(graph) => EmbedTokens::of_graph(graph, decoder.memory())?,
            None => {
                EmbedTokens::Decoder { hidden: dims.hidden_size, memory: decoder.memory().cloned() }
            }
        };
        vision.leave_features(embed_tokens.prompt_memory())?;
        let eos_token_ids = folder.eos_token_ids();
        Ok(Model { processor, eos_token_ids, embed_tokens, vision, decoder })
    }

    pub(super) fn new(folder: &Path) -> Self {
        EngineBuilder {
            folder: folder.to_owned(),
            precision: None,
            bundle: None,
            providers: Vec::new(),
            graph_providers: BTreeMap::new(),
            threads: None,
            overrides: Overrides::default(),
            speculation: false,
            slots: 8,
            capacity: None,
            kv_cache_memory: None,
            queue: 256,
            prompt_tokens_per_step: None,
            run_ahead: None,
            share_prefixes: false,
            image_cache: 64 << 20,
            max_text_bytes: 1 << 20,
        }
    }
}

/// The graph that stands for a part of the model.
fn part(graph: Graph) -> Graph {
    match graph {
        Graph::VisionTower | Graph::Projector => Graph::VisionEncoder,
        other => other.weights(),
    }
}

/// Checks sessions against the contract of the folder's recipe.
struct Checker<'a> {
    contract: &'a Contract,
    recipe: &'a Recipe,
    dims: &'a ModelDims,
}

impl Checker<'_> {
    fn check(&self, session: &GraphSession) -> Result<GraphSpec, Error> {
        let graph = session.graph();
        // ONNX Runtime would find out in the first run.
        if self.recipe.packed_qkv && session.has_on_cpu("com.microsoft:GroupQueryAttention") {
            return Err(Error::PackedAttention(graph));
        }
        let spec = self
            .contract
            .resolve(graph, self.dims, self.recipe, state_dtype(session))
            .ok_or_else(|| {
                let difference = format!("contract '{}' does not describe it", self.contract.name);
                Error::Contract { graph, difference }
            })?;
        check(session, &spec)?;
        Ok(spec)
    }
}
