//! `GET /v1/models` and `GET /v1/models/{name}`.

use api::{ModelCard, ModelList};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::app::SharedApp;
use crate::failure::Failure;

/// All models; an empty list while the server is starting.
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<ModelList> {
    Json(ModelList::new(app.models.cards()))
}

/// One model.
pub(crate) async fn one(
    State(app): State<SharedApp>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, Failure> {
    let Path(name) = name?;
    let model = app.models.get(&name)?;
    Ok(Json(model.card(&name)))
}
