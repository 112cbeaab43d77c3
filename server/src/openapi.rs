//! The description of the interface.

use axum::Json;
use utoipa::OpenApi;

use crate::{chat, layout, models, operators};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "lfm2vl",
        description = "LFM2-VL behind OpenAI's chat completions. Fields that are said to be additions are not OpenAI's."
    ),
    paths(
        chat::chat_completions,
        models::models,
        models::model,
        layout::image_layout,
        operators::healthz,
        operators::readyz,
        operators::metrics,
    )
)]
struct Description;

/// The interface in OpenAPI.
pub(crate) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
