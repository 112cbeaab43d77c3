//! A loaded model.

use std::{collections::BTreeMap, panic::resume_unwind, path::Path, thread, time::Instant};

use lfm2vl_graphs::{Contract, Graph, ModelDims, Precision, Recipe};
use ndarray::{Array2, Array3, Axis, concatenate};
use ort::value::DynTensor;

use crate::{
    Batch, Conversation, Error, GenerationOptions, PromptOptions, Prompter, Provider,
    cache::{ImageCache, StateCache},
    folder::ModelFolder,
    image::{ImageProcessor, Overrides, ProcessedImage},
    session::{
        Assignment, Decoder, DeviceMemory, EmbedTokens, GraphSession, HOST, Outlet, SessionOptions,
        Skipped, Vision, check, dims_of, state_dtype,
    },
};

/// A model loaded from an exported folder. Conversations borrow it; several can go on at a time,
/// in several threads.
pub struct Engine {
    folder: ModelFolder,
    prompter: Prompter,
    embed_tokens: EmbedTokens,
    vision: Vision,
    decoder: Decoder,
    load_seconds: f64,
    pub(crate) images: ImageCache,
    pub(crate) states: StateCache,
}

/// How to load a model; made by [`Engine::builder`].
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    folder: std::path::PathBuf,
    precision: Option<Precision>,
    bundle: Option<String>,
    providers: Vec<Provider>,
    graph_providers: BTreeMap<Graph, Vec<Provider>>,
    threads: Option<usize>,
    overrides: Overrides,
    speculation: bool,
    image_cache: usize,
    state_cache: usize,
}

/// One input or output of a loaded graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type and shape, as ONNX Runtime prints them.
    pub r#type: String,
}

/// A loaded graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GraphInfo {
    /// Which graph.
    pub graph: Graph,
    /// The precision that was loaded.
    pub precision: Precision,
    /// Its inputs.
    pub inputs: Vec<TensorInfo>,
    /// Its outputs.
    pub outputs: Vec<TensorInfo>,
    /// Name of the provider that it was opened with.
    pub provider: String,
    /// Providers that were wanted more and could not be used.
    pub skipped: Vec<Skipped>,
    /// What each provider took of it. Nodes that no wanted provider takes run on the CPU.
    pub assignments: Vec<Assignment>,
    /// Where a decoder's state lies between runs, by ONNX Runtime's name of the memory (`Cpu`,
    /// `Cuda`); none for graphs without state.
    pub state_memory: Option<String>,
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
    /// CPU ([`GraphInfo::assignments`] tells which); that it cannot start, or takes no node of the
    /// decoder or of vision, is an error.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.providers([provider])
    }

    /// Runs each graph on the first of these providers that can run it; an empty list is the CPU.
    /// [`GraphInfo::skipped`] tells about those before it. [`Provider::auto`] gives a list that
    /// suits the machine.
    #[must_use]
    pub fn providers(mut self, providers: impl IntoIterator<Item = Provider>) -> Self {
        self.providers = providers.into_iter().collect();
        self
    }

    /// Runs one part of the model on other providers than the rest: vision (by any of its graphs),
    /// the token embedding or the decoder.
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
    /// [`prompt_lookup_num_tokens`](GenerationOptions::prompt_lookup_num_tokens).
    #[must_use]
    pub fn speculation(mut self, speculation: bool) -> Self {
        self.speculation = speculation;
        self
    }

    /// Keeps image features of so many bytes in all, 64 MB by default, so that an image that comes
    /// again in another conversation need not be encoded again. Images are told apart by a
    /// cryptographic hash of their patches, and so of their pixels and settings.
    #[must_use]
    pub fn image_cache(mut self, bytes: usize) -> Self {
        self.image_cache = bytes;
        self
    }

    /// Keeps states of the decoder of so many bytes in all, none by default, so that a new
    /// conversation that begins as an earlier one did goes on from there: with the same system
    /// message and tools, with the same images, or with the same messages, as when a client sends
    /// the whole history each time. Tokens and hashes of images must be the same. A service whose
    /// users must not learn from its speed what others have sent keeps an engine for each.
    #[must_use]
    pub fn state_cache(mut self, bytes: usize) -> Self {
        self.state_cache = bytes;
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
    /// not available, or none of the providers can run a graph.
    pub fn build(self) -> Result<Engine, Error> {
        let start = Instant::now();
        let folder = ModelFolder::open(&self.folder)?;
        let recipe = folder.recipe()?;
        let contract = Contract::builtin(&recipe.contract)?;
        let bundle = folder.bundle(self.bundle.as_deref())?;
        let open = |graph| {
            let wanted = self.precision.or(bundle.map(|bundle| bundle.precision(graph)));
            let precision = folder.choose(graph, wanted)?;
            let providers = self.graph_providers.get(&part(graph)).unwrap_or(&self.providers);
            let providers = providers.iter().map(|provider| match graph {
                // Only these steps have the same sizes each time.
                Graph::Decoder if recipe.sizes.is_some() => Ok(provider.clone()),
                Graph::Decoder | Graph::SpeculativeDecoder if provider.records() => {
                    Err(Error::NothingToRecord)
                }
                _ => Ok(provider.clone().without_recording()),
            });
            let providers = providers.collect::<Result<_, Error>>()?;
            let options = SessionOptions { providers, threads: self.threads };
            GraphSession::open(graph, precision, &folder.graph_file(graph, precision), &options)
        };
        let open_vision = || -> Result<Vision, Error> {
            let is_split = folder.precisions(Graph::VisionEncoder).is_empty()
                && !folder.precisions(Graph::VisionTower).is_empty();
            Ok(match is_split {
                true => Vision::Split {
                    tower: open(Graph::VisionTower)?,
                    projector: open(Graph::Projector)?,
                },
                false => Vision::Fused(open(Graph::VisionEncoder)?),
            })
        };
        let open_decoders = || -> Result<_, Error> {
            let graph = match self.speculation {
                true => Graph::SpeculativeDecoder,
                false => Graph::Decoder,
            };
            // A folder without it runs prompts token by token.
            let has_prefill = !folder.precisions(Graph::PrefillDecoder).is_empty();
            let prefill = has_prefill.then(|| open(Graph::PrefillDecoder)).transpose()?;
            Ok((open(graph)?, prefill))
        };
        // ONNX Runtime arranges the weights of a graph with one thread; the decoder's take as long as
        // all the rest.
        let (decoder, embed_tokens, vision, prompter) = thread::scope(|scope| {
            let decoder = scope.spawn(open_decoders);
            let prompter = Prompter::from_folder(&self.folder, &self.overrides);
            let (embed_tokens, vision) = (open(Graph::EmbedTokens), open_vision());
            let decoder = decoder.join().unwrap_or_else(|panic| resume_unwind(panic));
            (decoder, embed_tokens, vision, prompter)
        });
        let (prompter, (decoder, prefill)) = (prompter?, decoder?);
        let dims = dims_of(&decoder);
        let checker = Checker { contract: &contract, recipe: &recipe, dims: &dims };
        let spec = checker.check(&decoder)?;
        if let Some(prefill) = &prefill {
            checker.check(prefill)?;
        }
        let decoder = Decoder::new(decoder, prefill, spec)?;
        let embed_tokens = embed_tokens?;
        checker.check(&embed_tokens)?;
        let embed_tokens = EmbedTokens::new(embed_tokens, decoder.memory())?;
        let vision = vision?;
        for session in vision.sessions() {
            checker.check(session)?;
        }
        Ok(Engine {
            folder,
            prompter,
            embed_tokens,
            vision,
            decoder,
            load_seconds: start.elapsed().as_secs_f64(),
            images: ImageCache::new(self.image_cache),
            states: StateCache::new(self.state_cache),
        })
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
    fn check(&self, session: &GraphSession) -> Result<lfm2vl_graphs::GraphSpec, Error> {
        let graph = session.graph();
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

impl Engine {
    /// Starts loading the model in `folder`.
    pub fn builder(folder: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder {
            folder: folder.as_ref().to_owned(),
            precision: None,
            bundle: None,
            providers: Vec::new(),
            graph_providers: BTreeMap::new(),
            threads: None,
            overrides: Overrides::default(),
            speculation: false,
            image_cache: 64 << 20,
            state_cache: 0,
        }
    }

    /// A new conversation.
    pub fn conversation(&self) -> Conversation<'_> {
        self.conversation_with(PromptOptions::default())
    }

    /// A new conversation whose prompts are made with these options. They always end with the
    /// start of an answer, and never continue a message.
    pub fn conversation_with(&self, options: PromptOptions) -> Conversation<'_> {
        Conversation::new(self, options)
    }

    /// An empty batch, for conversations of this engine.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// The folder it was loaded from.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// What turns messages and images into tokens and patches.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// What processes images.
    pub fn image_processor(&self) -> &ImageProcessor {
        self.prompter.image_processor()
    }

    /// The settings of generation that the model recommends.
    ///
    /// # Errors
    /// [`Error::Setting`] when `generation_config.json` has a setting that makes no sense.
    pub fn generation_options(&self) -> Result<GenerationOptions, Error> {
        GenerationOptions::from_config(self.folder.generation_config())
    }

    /// How long loading took, in seconds.
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// Most tokens of a conversation: the model's, or fewer where the decoder has place for fewer.
    pub fn context(&self) -> usize {
        let places = self.decoder.fixed_places().unwrap_or(usize::MAX);
        self.folder.context().min(places)
    }

    /// The loaded graphs.
    pub fn graphs(&self) -> Vec<GraphInfo> {
        let infos = |outlets: &[Outlet]| {
            outlets
                .iter()
                .map(|o| TensorInfo { name: o.name().to_owned(), r#type: o.dtype().to_string() })
                .collect()
        };
        let mut sessions = self.vision.sessions();
        sessions.push(&self.embed_tokens.session);
        sessions.extend(self.decoder.sessions());
        sessions
            .into_iter()
            .map(|session| GraphInfo {
                graph: session.graph(),
                precision: session.precision(),
                inputs: infos(session.inputs()),
                outputs: infos(session.outputs()),
                provider: session.provider().to_owned(),
                skipped: session.skipped().to_vec(),
                assignments: session.assignments().to_vec(),
                state_memory: (session.graph().weights() == Graph::Decoder)
                    .then(|| self.decoder.memory().map_or(HOST, DeviceMemory::name).to_owned()),
            })
            .collect()
    }

    /// Image features [tokens, hidden] of an image: what the model's `get_image_features` gives.
    ///
    /// # Errors
    /// [`Error::Run`] when a vision graph fails.
    pub fn image_features(&self, image: &ProcessedImage) -> Result<Array2<f32>, Error> {
        let batches = self.vision.run(image)?;
        let views: Vec<_> = batches.iter().map(|batch| batch.view()).collect();
        let features = concatenate(Axis(0), &views).unwrap_or_default();
        match features.nrows() == image.layout.tokens() {
            true => Ok(features),
            false => Err(Error::FeatureCount {
                features: features.nrows(),
                places: image.layout.tokens(),
            }),
        }
    }

    /// Hidden states [tokens, hidden] of a prompt after the decoder's last norm, for folders
    /// exported with `--recipe features`. `features` are those of the prompt's images in order.
    ///
    /// # Errors
    /// [`Error::NoHiddenState`] for other folders, [`Error::FeatureCount`], or [`Error::Run`].
    pub fn last_hidden_state(
        &self,
        ids: &[u32],
        features: &[Array2<f32>],
    ) -> Result<Array2<f32>, Error> {
        let embeddings = self.embed(ids, features)?;
        let step = self.decoder.run(embeddings.view(), &mut self.decoder.new_state()?)?;
        step.last_hidden_state.ok_or(Error::NoHiddenState)
    }

    /// Embeddings [rows, ids / rows, hidden] of tokens that the model wrote; an image token among
    /// them has no image.
    pub(crate) fn embed_answer(&self, rows: usize, ids: &[u32]) -> Result<DynTensor, Error> {
        self.embed_tokens.rows(rows, ids)
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Embeddings [1, ids, hidden] with the rows of `features` in the places of image tokens.
    pub(crate) fn embed(
        &self,
        ids: &[u32],
        features: &[Array2<f32>],
    ) -> Result<Array3<f32>, Error> {
        let mut embeddings = self.embed_tokens.run(ids)?;
        let image_token = self.prompter.image_token_id();
        let places = ids.iter().filter(|&&id| id == image_token).count();
        let count: usize = features.iter().map(Array2::nrows).sum();
        if count != places {
            return Err(Error::FeatureCount { features: count, places });
        }
        let rows = features.iter().flat_map(|features| features.rows());
        let mut batch = embeddings.index_axis_mut(Axis(0), 0);
        let places = batch.rows_mut().into_iter().zip(ids).filter(|(_, id)| **id == image_token);
        for ((mut place, _), row) in places.zip(rows) {
            if place.len() != row.len() {
                return Err(Error::FeatureCount { features: row.len(), places: place.len() });
            }
            place.assign(&row);
        }
        Ok(embeddings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_can_be_shared_by_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Engine>();
    }
}
