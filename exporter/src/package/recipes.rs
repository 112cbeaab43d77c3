//! What the built-in recipes are for, and what they need.

use lfm2vl_graphs::{Contract, Precision, Recipe};
use serde_json::json;

use super::graphs::floats;
use crate::{
    checkpoint::{CheckpointError, Config},
    error::ExportError,
    models::{self, Build},
};

/// A built-in recipe, for those who choose one.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RecipeSummary {
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    pub purpose: Option<String>,
    /// The contract that its graphs keep.
    pub contract: String,
    /// The precisions that are built where none is asked for.
    pub precisions: Vec<Precision>,
    /// The oldest ONNX Runtime that loads the graphs in these precisions.
    pub onnxruntime: Option<String>,
}

/// The built-in recipes.
///
/// # Errors
/// [`ExportError`] where one of them cannot be read.
pub fn builtin_recipes() -> Result<Vec<RecipeSummary>, ExportError> {
    let config = example_config()?;
    let summary = |name| {
        let recipe = Recipe::builtin(name)?;
        Ok(RecipeSummary {
            onnxruntime: oldest_onnxruntime(&recipe, &config)?.map(str::to_owned),
            name: recipe.name,
            purpose: recipe.purpose,
            contract: recipe.contract,
            precisions: recipe.precisions,
        })
    };
    Recipe::BUILTIN.into_iter().map(summary).collect()
}

/// A model with each kind of layer once: operators depend on no sizes.
fn example_config() -> Result<Config, CheckpointError> {
    Config::from_json(&json!({
        "model_type": "lfm2_vl",
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "max_position_embeddings": 8192,
        },
        "vision_config": {"num_hidden_layers": 1},
    }))
}

/// The oldest ONNX Runtime that loads all graphs of a recipe in its own precisions.
fn oldest_onnxruntime(
    recipe: &Recipe,
    config: &Config,
) -> Result<Option<&'static str>, ExportError> {
    let contract = Contract::builtin(&recipe.contract)?;
    let mut oldest = None;
    for &precision in &recipe.precisions {
        let floats = floats(precision);
        let quantization = recipe.quantization.get(&precision);
        let build = Build { config, recipe, quantization, floats: &floats, tied_head: true };
        for graph in Contract::graphs(recipe) {
            let spec = contract.resolve(graph, &config.dims(), recipe, precision.state_dtype());
            let graph = spec.map(|spec| models::build(spec, build).finish());
            // All have as many digits.
            oldest = oldest.max(graph.map(|graph| graph.oldest_onnxruntime()));
        }
    }
    Ok(oldest)
}
