//! What to export and how.

use std::{fmt, path::PathBuf, str::FromStr};

use lfm2vl_graphs::{Graph, Precision, Recipe};

/// A part of the model that `--graphs` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The vision tower (with the projector, where the recipe fuses them).
    Vision,
    /// The projector (with the vision tower, where the recipe fuses them).
    Projector,
    /// The token embedding.
    Embedding,
    /// The decoder.
    Decoder,
    /// The image processor.
    ImageProcessor,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 5] =
        [Part::Vision, Part::Projector, Part::Embedding, Part::Decoder, Part::ImageProcessor];

    /// Its name, as the program takes it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Vision => "vision",
            Part::Projector => "projector",
            Part::Embedding => "embedding",
            Part::Decoder => "decoder",
            Part::ImageProcessor => "image-processor",
        }
    }

    pub(super) fn includes(self, graph: Graph) -> bool {
        match self {
            Part::Vision => matches!(graph, Graph::VisionEncoder | Graph::VisionTower),
            Part::Projector => matches!(graph, Graph::VisionEncoder | Graph::Projector),
            Part::Embedding => graph.weights() == Graph::EmbedTokens,
            Part::Decoder => graph.weights() == Graph::Decoder,
            Part::ImageProcessor => graph == Graph::ImageProcessor,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Part::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| not_one_of(name, "a part of the model", &Part::ALL))
    }
}

/// Where the weights of the graphs are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weights {
    /// In data files beside the graphs.
    #[default]
    Written,
    /// In the checkpoint's own files, which the folder gets hard links to: nothing is written.
    Reference,
}

impl Weights {
    /// Every place.
    pub const ALL: [Weights; 2] = [Weights::Written, Weights::Reference];

    /// Its name, as the program takes it.
    pub fn name(self) -> &'static str {
        match self {
            Weights::Written => "written",
            Weights::Reference => "reference",
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Weights {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Weights::ALL.into_iter().find(|weights| weights.name() == name);
        found.ok_or_else(|| not_one_of(name, "a place of weights", &Weights::ALL))
    }
}

/// Says that a name is none of those that there are.
fn not_one_of<T: fmt::Display>(name: &str, what: &str, all: &[T]) -> String {
    let names: Vec<String> = all.iter().map(T::to_string).collect();
    format!("'{name}' is not {what}; use one of {}", names.join(", "))
}

/// What to export and how.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How graphs are built.
    pub recipe: Recipe,
    /// Precisions of the weights, each giving its own set of graphs.
    pub precisions: Vec<Precision>,
    /// Parts of the model; all when empty.
    pub parts: Vec<Part>,
    /// Where the weights are.
    pub weights: Weights,
    /// Whether the image processor takes settings as inputs. All have defaults, but ONNX Runtime warns of
    /// each when it loads the graph.
    pub image_inputs: bool,
    /// A folder of images and prompts to calibrate on, for recipes with a method that does.
    pub calibration: Option<PathBuf>,
    /// Whether to replace an earlier export.
    pub force: bool,
}

impl ExportOptions {
    /// All graphs of a recipe, in its precisions.
    pub fn new(recipe: Recipe) -> Self {
        ExportOptions {
            precisions: recipe.precisions.clone(),
            recipe,
            parts: Vec::new(),
            weights: Weights::Written,
            image_inputs: false,
            calibration: None,
            force: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_told_them() {
        for part in Part::ALL {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        for weights in Weights::ALL {
            assert_eq!(weights.to_string().parse(), Ok(weights));
        }
        let error = "Decoder".parse::<Part>().unwrap_err();
        assert!(error.contains("'Decoder'") && error.contains("decoder, image-processor"));
        let error = "linked".parse::<Weights>().unwrap_err();
        assert!(error.contains("'linked'") && error.contains("written, reference"));
    }
}
