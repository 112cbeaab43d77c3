//! The model's forward pass, one file per graph. Names of modules are those of the reference
//! implementation, so node and weight names follow from them.

mod blocks;
mod decoder;
mod embedding;
mod positions;
mod projector;
mod vision_tower;

use lfm2vl_graphs::{Graph, GraphSpec, Operators, Recipe};

use crate::{checkpoint::Config, onnx::GraphBuilder};

/// What every block needs to know.
#[derive(Clone, Copy)]
struct Model<'a> {
    g: &'a GraphBuilder,
    config: &'a Config,
    operators: Operators,
}

/// Builds the nodes of one graph; its inputs and outputs are those of `spec`.
///
/// `tied_head` says that the output head is the token embedding.
pub(crate) fn build(
    spec: GraphSpec,
    config: &Config,
    recipe: &Recipe,
    tied_head: bool,
) -> GraphBuilder {
    let graph = spec.graph;
    let g = GraphBuilder::new(spec);
    let model = Model { g: &g, config, operators: recipe.operators };
    match graph {
        Graph::EmbedTokens => {
            let embeddings = model.embed_tokens(g.input("input_ids"));
            g.output("inputs_embeds", embeddings);
        }
        Graph::VisionEncoder => {
            let shapes = g.input("spatial_shapes");
            let hidden = model.vision_tower(
                g.input("pixel_values"),
                g.input("pixel_attention_mask"),
                shapes,
            );
            g.output("image_features", model.projector(hidden, shapes));
        }
        Graph::VisionTower => {
            let hidden = model.vision_tower(
                g.input("pixel_values"),
                g.input("pixel_attention_mask"),
                g.input("spatial_shapes"),
            );
            g.output("last_hidden_state", hidden);
        }
        Graph::Projector => {
            let features = model.projector(g.input("last_hidden_state"), g.input("spatial_shapes"));
            g.output("image_features", features);
        }
        Graph::Decoder => model.decoder(recipe, tied_head),
    }
    g
}
