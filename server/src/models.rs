//! `GET /v1/models`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use crate::{
    error::{ApiError, ErrorBody},
    service::Service,
    wire::{Model, ModelList},
};

/// The models: there is one.
#[utoipa::path(
    get,
    path = "/v1/models",
    responses(
        (status = 200, description = "The models", body = ModelList),
        (status = 401, description = "The key is missing or wrong", body = ErrorBody),
    ),
)]
pub(crate) async fn models(State(service): State<Service>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![of(&service)] })
}

/// A model by its name.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    params(("model" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 401, description = "The key is missing or wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
)]
pub(crate) async fn model(
    State(service): State<Service>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // One that is no UTF-8 is no model's either.
    if name.is_ok_and(|Path(name)| name == service.model_name()) {
        return Ok(Json(of(&service)));
    }
    let message = format!("there is no such model; ask for '{}'", service.model_name());
    Err(ApiError::not_found(message).with_param("model").with_code("model_not_found"))
}

fn of(service: &Service) -> Model {
    Model {
        id: service.model_name().to_owned(),
        object: "model",
        created: service.created(),
        owned_by: "lfm2vl",
        context_length: service.engine().context(),
    }
}
