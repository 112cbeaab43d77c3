//! Typed form of `contracts/*.yaml`: what goes in and out of each graph.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CacheUpdate, ConvState, FixedSizes, Recipe, VisionLayout, YamlError};

/// Name of the contract whose sizes are all fixed.
pub(crate) const STATIC: &str = "static";

/// Name of the contract whose decoders have conv states as CUDA's kernels do.
pub(crate) const CUDA: &str = "cuda";

/// The graphs that make up a model. The name is also the stem of the graph's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Graph {
    /// Token ids to embeddings.
    #[serde(rename = "embed_tokens")]
    EmbedTokens,
    /// Vision tower and projector in one graph.
    #[serde(rename = "vision_encoder")]
    VisionEncoder,
    /// Vision tower alone.
    #[serde(rename = "vision_tower")]
    VisionTower,
    /// Projector alone.
    #[serde(rename = "projector")]
    Projector,
    /// One step of the language model with its conv and KV state.
    #[serde(rename = "decoder_model_merged")]
    Decoder,
    /// Token ids and image features to embeddings, for onnxruntime-genai.
    #[serde(rename = "embeddings")]
    GenaiEmbeddings,
    /// The decoder as onnxruntime-genai wants it.
    #[serde(rename = "decoder_genai")]
    GenaiDecoder,
    /// The decoder for several tokens of a prompt at a time, where sizes are fixed.
    #[serde(rename = "decoder_prefill")]
    PrefillDecoder,
    /// The decoder that gives logits and conv states of several of the last positions, so that
    /// drafted tokens can be checked and dropped.
    #[serde(rename = "decoder_speculative")]
    SpeculativeDecoder,
    /// An image to what the vision graphs take, and the tokens that stand for it.
    #[serde(rename = "image_processor")]
    ImageProcessor,
}

impl Graph {
    /// The file stem that the community contract prescribes.
    pub fn name(self) -> &'static str {
        match self {
            Graph::EmbedTokens => "embed_tokens",
            Graph::VisionEncoder => "vision_encoder",
            Graph::VisionTower => "vision_tower",
            Graph::Projector => "projector",
            Graph::Decoder => "decoder_model_merged",
            Graph::GenaiEmbeddings => "embeddings",
            Graph::GenaiDecoder => "decoder_genai",
            Graph::PrefillDecoder => "decoder_prefill",
            Graph::SpeculativeDecoder => "decoder_speculative",
            Graph::ImageProcessor => "image_processor",
        }
    }

    /// The graph whose weights this one uses: itself, or the one that it is another form of.
    pub fn weights(self) -> Graph {
        match self {
            Graph::GenaiEmbeddings => Graph::EmbedTokens,
            Graph::GenaiDecoder | Graph::PrefillDecoder | Graph::SpeculativeDecoder => {
                Graph::Decoder
            }
            other => other,
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Element type of a graph input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    Float32,
    /// 16-bit float.
    Float16,
    /// 64-bit signed integer.
    Int64,
    /// 32-bit signed integer.
    Int32,
    /// 8-bit unsigned integer.
    Uint8,
    /// True or false.
    Bool,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Float32 => "float32",
            Dtype::Float16 => "float16",
            Dtype::Int64 => "int64",
            Dtype::Int32 => "int32",
            Dtype::Uint8 => "uint8",
            Dtype::Bool => "bool",
        })
    }
}

/// The two kinds of LFM2 layer, named as in `config.json`'s `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Gated short convolution.
    Conv,
    /// Grouped-query attention.
    FullAttention,
}

/// The sizes of a model that a contract can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDims {
    /// Width of the language model.
    pub hidden_size: usize,
    /// Rows of the output head.
    pub vocab_size: usize,
    /// Key/value heads of the language model.
    pub num_key_value_heads: usize,
    /// Width of one attention head of the language model.
    pub head_dim: usize,
    /// How many inputs a short convolution sees: columns of a conv state, or its rows and one.
    pub conv_l_cache: usize,
    /// Width of the vision tower.
    pub vision_hidden_size: usize,
    /// Patches along one side of an image token.
    pub downsample_factor: usize,
    /// Values of one patch: 3 * patch_size^2.
    pub patch_values: usize,
    /// Kind of each language-model layer.
    pub layer_types: Vec<LayerKind>,
}

impl ModelDims {
    fn value(&self, symbol: &str) -> Option<usize> {
        Some(match symbol {
            "hidden_size" => self.hidden_size,
            "vocab_size" => self.vocab_size,
            "num_key_value_heads" => self.num_key_value_heads,
            "head_dim" => self.head_dim,
            "conv_L_cache" => self.conv_l_cache,
            "conv_rows" => self.conv_l_cache.saturating_sub(1),
            "vision_hidden_size" => self.vision_hidden_size,
            "patch_values" => self.patch_values,
            _ => return symbol.parse().ok(),
        })
    }

    /// Indices of the layers of one kind, ascending.
    pub fn layers(&self, kind: LayerKind) -> impl Iterator<Item = usize> + '_ {
        self.layer_types.iter().enumerate().filter_map(move |(i, &k)| (k == kind).then_some(i))
    }
}

impl FixedSizes {
    fn value(&self, symbol: &str, dims: &ModelDims) -> Option<usize> {
        match symbol {
            "views" => self.views,
            "patches" => self.patches,
            "past_sequence" => Some(self.past_sequence),
            "sequence" => Some(self.sequence),
            // Where the model's factor is not known, neither is this.
            "view_tokens" => {
                Some(self.patches?.checked_div(dims.downsample_factor.pow(2)).unwrap_or(0))
            }
            _ => None,
        }
    }
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A size that the model fixes.
    Fixed(usize),
    /// A size that the caller chooses, by its symbolic name.
    Free(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Free(name) => f.write_str(name),
        }
    }
}

/// One input or output of a graph, resolved for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions in order.
    pub shape: Vec<Dim>,
}

/// Key in the metadata of a decoder file whose attention can write new keys and values into the
/// buffers of the old ones, with the value `true`. Such buffers have place for more tokens than there
/// are; `attention_mask` tells how many.
pub const IN_PLACE: &str = "lfm2vl.state_in_place";

/// All inputs and outputs of one graph, resolved for a model, in contract order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphSpec {
    /// Which graph.
    pub graph: Graph,
    /// Inputs in order.
    pub inputs: Vec<Tensor>,
    /// Outputs in order.
    pub outputs: Vec<Tensor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorTemplate {
    name: String,
    dtype: DtypeTemplate,
    shape: Vec<Symbol>,
    layers: Option<LayerKind>,
    option: Option<RecipeOption>,
}

/// An element type, which for the decoder's state depends on the precision.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DtypeTemplate {
    Float32,
    Int64,
    Int32,
    Uint8,
    Bool,
    State,
}

impl DtypeTemplate {
    fn resolve(self, state: Dtype) -> Dtype {
        match self {
            DtypeTemplate::Float32 => Dtype::Float32,
            DtypeTemplate::Int64 => Dtype::Int64,
            DtypeTemplate::Int32 => Dtype::Int32,
            DtypeTemplate::Uint8 => Dtype::Uint8,
            DtypeTemplate::Bool => Dtype::Bool,
            DtypeTemplate::State => state,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Symbol {
    Name(String),
    Size(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecipeOption {
    LastHiddenState,
    Candidates,
    Feedback,
    FixedViews,
    FreeViews,
    GraphUpdatesCache,
    ClientUpdatesCache,
    ConvColumns,
    ConvRows,
}

impl RecipeOption {
    fn is_chosen(self, recipe: &Recipe) -> bool {
        match self {
            RecipeOption::LastHiddenState => recipe.last_hidden_state,
            RecipeOption::Candidates => recipe.candidates > 0,
            RecipeOption::Feedback => recipe.feedback,
            RecipeOption::FixedViews => recipe.sizes.is_some_and(|sizes| sizes.views.is_some()),
            RecipeOption::FreeViews => recipe.sizes.is_none_or(|sizes| sizes.views.is_none()),
            RecipeOption::GraphUpdatesCache => recipe.cache_update == CacheUpdate::Graph,
            RecipeOption::ClientUpdatesCache => recipe.cache_update == CacheUpdate::Client,
            RecipeOption::ConvColumns => recipe.conv_state == ConvState::Columns,
            RecipeOption::ConvRows => recipe.conv_state == ConvState::Rows,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphTemplate {
    inputs: Vec<TensorTemplate>,
    outputs: Vec<TensorTemplate>,
}

/// A contract: the inputs and outputs of every graph, before a model's sizes are filled in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// Name of the contract.
    #[serde(rename = "contract")]
    pub name: String,
    /// Version; a change that breaks a client raises it.
    pub version: u32,
    graphs: std::collections::BTreeMap<Graph, GraphTemplate>,
}

impl Contract {
    /// The contract built into this crate under `name`.
    ///
    /// # Errors
    /// [`YamlError::Unknown`] when there is none of that name.
    pub fn builtin(name: &str) -> Result<Self, YamlError> {
        let community = include_str!("../contracts/community.yaml");
        // What comes later takes the place of what came before.
        let texts = match name {
            "community" => vec![community],
            CUDA => vec![community, include_str!("../contracts/cuda.yaml")],
            STATIC => vec![include_str!("../contracts/static.yaml")],
            _ => {
                let (name, known) = (name.into(), format!("community, {CUDA}, {STATIC}"));
                return Err(YamlError::Unknown { kind: "contract", name, known });
            }
        };
        let parse = |text| -> Result<Contract, YamlError> {
            serde_yaml::from_str(text).map_err(|source| YamlError::Invalid {
                what: format!("the built-in contract '{name}'"),
                source,
            })
        };
        let mut contract = parse(include_str!("../contracts/image_processor.yaml"))?;
        for text in texts {
            let Contract { name, version, graphs } = parse(text)?;
            contract.graphs.extend(graphs);
            (contract.name, contract.version) = (name, version);
        }
        Ok(contract)
    }

    /// The graphs of the model that a recipe consists of.
    pub fn graphs(recipe: &Recipe) -> Vec<Graph> {
        let mut graphs = match recipe.vision {
            VisionLayout::Fused => vec![Graph::VisionEncoder],
            VisionLayout::Split => vec![Graph::VisionTower, Graph::Projector],
        };
        graphs.extend([Graph::EmbedTokens, Graph::Decoder]);
        if recipe.genai {
            graphs.extend([Graph::GenaiEmbeddings, Graph::GenaiDecoder]);
        }
        if recipe.speculation {
            graphs.push(Graph::SpeculativeDecoder);
        }
        if recipe.sizes.is_some() {
            graphs.push(Graph::PrefillDecoder);
        }
        graphs
    }

    /// Inputs and outputs of `graph` for a model, as `recipe` asks for them, with the decoder's
    /// state in `state`.
    ///
    /// Returns `None` when the contract does not have that graph.
    pub fn resolve(
        &self,
        graph: Graph,
        dims: &ModelDims,
        recipe: &Recipe,
        state: Dtype,
    ) -> Option<GraphSpec> {
        let template = self.graphs.get(&graph)?;
        let resolve = |tensors: &[TensorTemplate]| -> Vec<Tensor> {
            tensors
                .iter()
                .filter(|t| t.option.is_none_or(|option| option.is_chosen(recipe)))
                .flat_map(|t| t.resolve(dims, recipe, state))
                .collect()
        };
        Some(GraphSpec {
            graph,
            inputs: resolve(&template.inputs),
            outputs: resolve(&template.outputs),
        })
    }
}

impl TensorTemplate {
    fn resolve(&self, dims: &ModelDims, recipe: &Recipe, state: Dtype) -> Vec<Tensor> {
        let size = |name: &str| -> Option<usize> {
            match name {
                // Where the model's vocabulary is not known, neither is this.
                "candidates" => Some(recipe.candidates.min(dims.vocab_size)),
                _ => dims.value(name).or_else(|| recipe.sizes?.value(name, dims)),
            }
        };
        let dim = |symbol: &Symbol| match symbol {
            Symbol::Size(n) => Dim::Fixed(*n),
            // All positions are computed, so there is one row of logits for each new token.
            Symbol::Name(s) if s == "num_logits" && recipe.logits == crate::Logits::All => {
                Dim::Free("sequence".into())
            }
            Symbol::Name(s) => {
                let sum = s.split(" + ").map(size).sum::<Option<usize>>();
                sum.map_or_else(|| Dim::Free(s.clone()), Dim::Fixed)
            }
        };
        let tensor = |name: String| Tensor {
            name,
            dtype: self.dtype.resolve(state),
            shape: self.shape.iter().map(dim).collect(),
        };
        match self.layers {
            None => vec![tensor(self.name.clone())],
            Some(kind) => dims
                .layers(kind)
                .map(|i| tensor(self.name.replace("{i}", &i.to_string())))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> ModelDims {
        ModelDims {
            hidden_size: 128,
            vocab_size: 1501,
            num_key_value_heads: 2,
            head_dim: 32,
            conv_l_cache: 3,
            vision_hidden_size: 96,
            downsample_factor: 2,
            patch_values: 768,
            layer_types: vec![LayerKind::Conv, LayerKind::FullAttention, LayerKind::Conv],
        }
    }

    #[test]
    fn layer_tensors_keep_their_layer_index() {
        let contract = Contract::builtin("community").unwrap();
        let recipe = Recipe::builtin("default").unwrap();
        let decoder = contract.resolve(Graph::Decoder, &dims(), &recipe, Dtype::Float32).unwrap();
        let names: Vec<_> = decoder.inputs.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "inputs_embeds",
                "attention_mask",
                "past_conv.0",
                "past_conv.2",
                "past_key_values.1.key",
                "past_key_values.1.value"
            ]
        );
        assert_eq!(
            decoder.inputs[4].shape,
            [
                Dim::Free("batch_size".into()),
                Dim::Fixed(2),
                Dim::Free("past_sequence".into()),
                Dim::Fixed(32)
            ]
        );
    }

    #[test]
    fn every_recipe_resolves_every_graph_it_names() {
        for name in Recipe::BUILTIN {
            let recipe = Recipe::builtin(name).unwrap();
            let contract = Contract::builtin(&recipe.contract).unwrap();
            for graph in Contract::graphs(&recipe) {
                let spec = contract.resolve(graph, &dims(), &recipe, Dtype::Float32).unwrap();
                assert!(!spec.inputs.is_empty() && !spec.outputs.is_empty(), "{name} {graph}");
            }
        }
    }

    #[test]
    fn hidden_state_only_where_the_recipe_asks() {
        let contract = Contract::builtin("community").unwrap();
        for (name, expected) in [("default", false), ("features", true)] {
            let recipe = Recipe::builtin(name).unwrap();
            let decoder =
                contract.resolve(Graph::Decoder, &dims(), &recipe, Dtype::Float32).unwrap();
            let has = decoder.outputs.iter().any(|t| t.name == "last_hidden_state");
            assert_eq!(has, expected, "{name}");
        }
    }

    /// Folders of `cuda-graph` from before the key was there have columns.
    #[test]
    fn conv_states_are_columns_unless_a_recipe_says_rows() {
        let shape = |recipe: &Recipe| {
            let contract = Contract::builtin(&recipe.contract).unwrap();
            let spec = contract.resolve(Graph::Decoder, &dims(), recipe, Dtype::Float16).unwrap();
            let past = spec.inputs.iter().find(|t| t.name.starts_with("past_conv.")).unwrap();
            past.shape.iter().skip(1).map(Dim::to_string).collect::<Vec<_>>()
        };
        let recipe = Recipe::builtin("cuda-graph").unwrap();
        assert_eq!(shape(&recipe), ["2", "128"]);
        let text = serde_yaml::to_string(&recipe).unwrap();
        let older = text.replace("conv_state: rows\n", "");
        assert_ne!(older, text);
        assert_eq!(shape(&serde_yaml::from_str(&older).unwrap()), ["128", "3"]);
        assert_eq!(shape(&Recipe::builtin("cuda").unwrap()), ["2", "128"]);
        assert_eq!(shape(&Recipe::builtin("default").unwrap()), ["128", "3"]);
    }
}
