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
    let (source, config) = (checkpoint.folder(), checkpoint.config());
    let settings = ImageSettings::from_folder(source)?;
    for (name, setting, model) in [
        ("encoder_patch_size", settings.encoder_patch_size, config.vision.patch_size),
        ("downsample_factor", settings.downsample_factor, config.projector.downsample_factor),
    ] {
        if setting != model {
            return Err(ExportError::ImageSetting { name, setting, model });
        }
    }
    let ids = token_ids(source, &settings, spec.inputs.len() > 1)?;
    let stem = spec.graph.to_string();
    let graph = processor::build(spec, &settings, &ids).finish();
    Ok(Model { data: format!("{stem}.onnx_data"), stem, graph, metadata })
}

/// The ids of the tokens that stand for images; those that the settings never ask for may be missing, unless
/// the settings are `inputs`.
fn token_ids(
    source: &Path,
    settings: &ImageSettings,
    inputs: bool,
) -> Result<ImageTokenIds, ExportError> {
    let tokens = ImageTokens::from_folder(source)?;
    let tokenizer = read_settings(source, "tokenizer.json")?;
    let id = |token: &str| id_of(&tokenizer, token).ok_or(ExportError::ImageToken(token.into()));
    let image = id(&tokens.image)?;
    let id_if = |needed: bool, token: &str| if needed { id(token) } else { Ok(image) };
    let splits = settings.do_image_splitting || inputs;
    let max_tiles = if splits { settings.max_tiles } else { 1 };
    // Grids have at most so many tiles; the rest of the table is never looked at.
    let tile = |row: usize, col: usize| {
        id_if(splits && row * col <= max_tiles, &format!("<|img_row_{row}_col_{col}|>"))
    };
    let row = |row: usize| (1..=max_tiles).map(|col| tile(row, col)).collect();
    Ok(ImageTokenIds {
        image,
        start: id(&tokens.start)?,
        end: id(&tokens.end)?,
        thumbnail: id_if(splits && (settings.use_thumbnail || inputs), &tokens.thumbnail)?,
        tiles: (1..=max_tiles).map(row).collect::<Result<_, _>>()?,
    })
}
