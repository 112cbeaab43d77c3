//! The model's forward pass, one file per graph. Names of modules are those of the reference
//! implementation, so node and weight names follow from them.

mod attention;
mod blocks;
mod buffered;
mod decoder;
mod embedding;
mod positions;
mod projector;
mod stage;
mod step;
mod vision_tower;

use lfm2vl_graphs::{
    Activations, CacheUpdate, Fusion, GeluForm, Graph, GraphSpec, Logits, Operators, Quantization,
    Recipe,
};

pub(crate) use stage::{Stage, build_stage};

use crate::{
    checkpoint::Config,
    onnx::{Floats, GraphBuilder},
    quantize::{BlockFormat, Packing},
};

/// What every block needs to know.
#[derive(Clone, Copy)]
struct Model<'a> {
    g: &'a GraphBuilder,
    config: &'a Config,
    operators: Operators,
    fusion: Fusion,
    gelu: GeluForm,
    quantization: Option<&'a Quantization>,
    /// Whether the decoder's layers work on rows [tokens, hidden], as `Gemm` needs them, or on
    /// [batch, sequence, hidden], which other products take as it is.
    flat_rows: bool,
    /// Whether weights stay in the checkpoint's own files.
    has_weights_in_place: bool,
    /// Whether queries, keys and values are one product, where attention rotates.
    packs_projections: bool,
    /// Whether attention takes that product whole.
    packed_qkv: bool,
}

impl<'a> Model<'a> {
    fn new(g: &'a GraphBuilder, build: Build<'a>) -> Self {
        let Build { config, recipe, quantization, .. } = build;
        let Recipe { operators, fusion, gelu, packed_qkv, .. } = *recipe;
        let are_in_blocks = quantization.is_some_and(|quantization| {
            let modules = config.quantizable_modules();
            let mut layers =
                modules.iter().filter(|m| m.name().starts_with("language_model.layers."));
            layers.all(|module| {
                let format = quantization.format_of(module);
                format.is_some_and(|format| format.activations != Activations::Tensor)
            })
        });
        let attention = decoder::attention_operators(config, operators);
        let flat_rows = attention == Operators::Standard || !are_in_blocks;
        let packs_projections = build.keeps_projections_apart().is_none();
        Model {
            g,
            config,
            operators,
            fusion,
            gelu,
            quantization,
            flat_rows,
            has_weights_in_place: matches!(build.floats, Floats::InPlace(_)),
            packs_projections,
            packed_qkv,
        }
    }
}

/// How the graphs of one precision are built.
#[derive(Clone, Copy)]
pub(crate) struct Build<'a> {
    pub(crate) config: &'a Config,
    pub(crate) recipe: &'a Recipe,
    /// How weights are quantized, in the precisions that do.
    pub(crate) quantization: Option<&'a Quantization>,
    /// What floats are inside the graph.
    pub(crate) floats: &'a Floats,
    /// Whether the output head is the token embedding.
    pub(crate) tied_head: bool,
}

impl Build<'_> {
    /// Whether the decoder can write keys and values into the buffers of the old ones.
    pub(crate) fn is_in_place(&self) -> bool {
        match self.recipe.sizes {
            Some(_) => self.recipe.cache_update == CacheUpdate::Graph,
            None => {
                let operators = decoder::attention_operators(self.config, self.recipe.operators);
                operators == Operators::OnnxRuntime
            }
        }
    }

    /// Why queries, keys and values of the language model cannot be one product; nothing where they can.
    pub(crate) fn keeps_projections_apart(&self) -> Option<&'static str> {
        let operators = decoder::attention_operators(self.config, self.recipe.operators);
        if operators == Operators::Standard {
            return Some("ONNX Runtime's attention does not take this model's heads");
        }
        if matches!(self.floats, Floats::InPlace(_)) {
            return Some("the weights stay where they are, apart from each other");
        }
        let modules = self.config.quantizable_modules();
        let is_apart = self.quantization.and_then(|q| q.keeps_projections_apart(&modules));
        is_apart.map(|_| {
            "q_proj, k_proj and v_proj of a layer are quantized in different ways or with activations 'tensor'"
        })
    }

    /// The stored tensor and the blocks of a linear layer, where it has any.
    pub(crate) fn block_format(&self, module: &str) -> Option<(String, BlockFormat)> {
        let format = self.quantization?.format_of(&self.config.module(module))?;
        if format.activations == Activations::Tensor {
            return None;
        }
        let tensor = match (module, self.tied_head) {
            ("lm_head", true) => embedding::EMBEDDING.to_owned(),
            _ => format!("{module}.weight"),
        };
        let packing = match self.recipe.operators {
            Operators::OnnxRuntime => Packing::MATMUL,
            Operators::Standard => Packing::DEQUANTIZE,
        };
        let half_scales = matches!(self.floats, Floats::Half);
        Some((tensor, BlockFormat::new(format, half_scales, packing)))
    }
}

/// Builds the nodes of one graph; its inputs and outputs are those of `spec`.
pub(crate) fn build(spec: GraphSpec, build: Build<'_>) -> GraphBuilder {
    let graph = spec.graph;
    let Build { config, recipe, floats, tied_head, .. } = build;
    let g = GraphBuilder::new(spec, floats.clone());
    let model = Model::new(&g, build);
    match graph {
        Graph::EmbedTokens => {
            let embeddings = model.embed_tokens(g.input("input_ids")).to_exact();
            g.output("inputs_embeds", embeddings);
        }
        Graph::VisionEncoder => {
            let shapes = g.input("spatial_shapes");
            let hidden = model.vision_tower(
                g.input("pixel_values"),
                g.input("pixel_attention_mask"),
                shapes,
            );
            g.output("image_features", model.projector(hidden, shapes).to_exact());
        }
        Graph::VisionTower => {
            let hidden = model.vision_tower(
                g.input("pixel_values"),
                g.input("pixel_attention_mask"),
                g.input("spatial_shapes"),
            );
            g.output("last_hidden_state", hidden.to_exact());
        }
        Graph::Projector => {
            let hidden = g.input("last_hidden_state").to_graph_floats();
            let features = model.projector(hidden, g.input("spatial_shapes")).to_exact();
            g.output("image_features", features);
        }
        Graph::Decoder => model.decoder(recipe.logits, recipe.last_hidden_state, tied_head),
        Graph::GenaiDecoder | Graph::PrefillDecoder | Graph::SpeculativeDecoder => {
            model.decoder(Logits::Last, false, tied_head)
        }
        Graph::GenaiEmbeddings => {
            let ids = g.input("input_ids");
            let image_token = g.ints(&[config.image_token_id.into()], &[]);
            let embeddings = model.embed_tokens(ids).to_exact();
            let places = ids.equal(image_token).places();
            g.output("inputs_embeds", embeddings.with_rows(places, g.input("image_features")));
        }
        // `processor` builds it.
        Graph::ImageProcessor => {}
    }
    g
}
