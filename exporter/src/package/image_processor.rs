//! `onnx/image_processor.onnx`: image processing as a graph, with the settings and tokens of the checkpoint.

use std::path::Path;

use lfm2vl::{chat::ImageTokens, image::ImageSettings};
use lfm2vl_graphs::GraphSpec;

use super::{files::read_settings, tokenizer::id_of};
use crate::{
    checkpoint::Checkpoint,
    error::ExportError,
    onnx::Model,
    processor::{self, ImageTokenIds},
};

/// The graph with the settings and the tokens of the checkpoint.
pub(super) fn model(
    checkpoint: &Checkpoint,
    spec: GraphSpec,
    metadata: Vec<(String, String)>,
) -> Result<Model, ExportError> {
    let source = checkpoint.folder();
    let settings = ImageSettings::from_folder(source)?;
    let ids = token_ids(source, settings.max_tiles)?;
    let stem = spec.graph.to_string();
    let graph = processor::build(spec, &settings, &ids).finish();
    Ok(Model { data: format!("{stem}.onnx_data"), stem, graph, metadata })
}

/// The ids of the tokens that stand for images.
fn token_ids(source: &Path, max_tiles: usize) -> Result<ImageTokenIds, ExportError> {
    let tokens = ImageTokens::from_folder(source)?;
    let tokenizer = read_settings(source, "tokenizer.json")?;
    let id = |token: &str| id_of(&tokenizer, token).ok_or(ExportError::ImageToken(token.into()));
    let image = id(&tokens.image)?;
    // Grids have at most so many tiles; the rest of the table is never looked at.
    let tile = |row: usize, col: usize| match row * col <= max_tiles {
        true => id(&format!("<|img_row_{row}_col_{col}|>")),
        false => Ok(image),
    };
    let row = |row: usize| (1..=max_tiles).map(|col| tile(row, col)).collect();
    Ok(ImageTokenIds {
        image,
        start: id(&tokens.start)?,
        end: id(&tokens.end)?,
        thumbnail: id(&tokens.thumbnail)?,
        tiles: (1..=max_tiles).map(row).collect::<Result<_, _>>()?,
    })
}
