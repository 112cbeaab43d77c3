//! `GET /v1/image_layout`, an addition: the views that the model sees of an image.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    error::{ApiError, ErrorBody},
    service::Service,
    wire::ImageSettings,
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImageSize {
    /// Width in pixels.
    width: u32,
    /// Height in pixels.
    height: u32,
    min_image_tokens: Option<usize>,
    max_image_tokens: Option<usize>,
    min_tiles: Option<usize>,
    max_tiles: Option<usize>,
    do_image_splitting: Option<bool>,
    use_thumbnail: Option<bool>,
}

/// The views of an image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageLayout {
    /// Image tokens of all views.
    tokens: usize,
    /// The tiles, if it is split.
    #[schema(required)]
    tiles: Option<Tiles>,
    /// The single view of an image that is not split, or the small copy of one that is.
    #[schema(required)]
    view: Option<View>,
}

/// The image is resized to `columns` x `rows` times `size` pixels, whatever its aspect ratio, and cut.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tiles {
    rows: usize,
    columns: usize,
    /// Side of a tile in pixels.
    size: usize,
    tokens_per_tile: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct View {
    /// Width in pixels.
    width: usize,
    /// Height in pixels.
    height: usize,
    tokens: usize,
}

/// The views that the model sees of an image of a size.
#[utoipa::path(
    get,
    path = "/v1/image_layout",
    params(ImageSize),
    responses(
        (status = 200, description = "The views", body = ImageLayout),
        (status = 401, description = "The key is missing or wrong", body = ErrorBody),
        (status = 400, description = "The size or a setting is wrong", body = ErrorBody),
    ),
)]
pub(crate) async fn image_layout(
    State(service): State<Service>,
    size: Result<Query<ImageSize>, QueryRejection>,
) -> Result<Json<ImageLayout>, ApiError> {
    let Query(size) = size.map_err(|error| ApiError::invalid(error.body_text()))?;
    let (width, height) = (size.width as usize, size.height as usize);
    let most = service.settings().images.max_pixels;
    if width == 0 || height == 0 || u64::from(size.width) * u64::from(size.height) > most {
        let message = format!("an image has from 1 to {most} pixels");
        return Err(ApiError::of_param("width", message));
    }
    let settings = ImageSettings {
        min_image_tokens: size.min_image_tokens,
        max_image_tokens: size.max_image_tokens,
        min_tiles: size.min_tiles,
        max_tiles: size.max_tiles,
        do_image_splitting: size.do_image_splitting,
        use_thumbnail: size.use_thumbnail,
    };
    let processor = service.engine().image_processor().with(&settings.overrides());
    let processor = processor.map_err(|error| ApiError::invalid(error.to_string()))?;
    let layout = processor.layout(height, width);
    let (view_height, view_width) = layout.image_size;
    Ok(Json(ImageLayout {
        tokens: layout.tokens(),
        tiles: layout.is_split().then(|| Tiles {
            rows: layout.rows,
            columns: layout.cols,
            size: processor.settings().tile_size,
            tokens_per_tile: layout.tokens_per_tile,
        }),
        view: (!layout.is_split() || layout.thumbnail).then_some(View {
            width: view_width,
            height: view_height,
            tokens: layout.tokens_for_image,
        }),
    }))
}
