//! The models: `GET /v1/models` and `GET /v1/models/{name}` of the OpenAI dialect, which know those that answer; `GET /models`,
//! `POST /models/load` and `POST /models/unload`, as llama.cpp's router has them, which know all that can be loaded.

use std::sync::Arc;

use api::{ModelCard, ModelList, ModelRequest, ModelStates, ModelsChanged};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::app::{App, SharedApp};
use crate::failure::Failure;
use crate::{background, body};

/// All models; an empty list while none is loaded.
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

/// All models that are loaded or can be.
pub(crate) async fn states(State(app): State<SharedApp>) -> Result<Json<ModelStates>, Failure> {
    let places = Arc::clone(&app.listing);
    let states = background::run_in_turn(&places, move || Ok(app.models.states())).await?;
    Ok(Json(ModelStates::new(states)))
}

/// Loads a model, and answers when it is there.
pub(crate) async fn load(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let request = read(&app, &headers, body).await?;
    let name = request.model.clone();
    let names = background::run(move || app.models.load(&name)).await?;
    Ok(changed(&request, names))
}

/// Takes a model away from new requests, and answers when those in progress have ended and its memory is free.
pub(crate) async fn unload(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let request = read(&app, &headers, body).await?;
    let names = app.models.unload(&request.model).await?;
    Ok(changed(&request, names))
}

async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<ModelRequest, Failure> {
    let bytes = body::read(headers, body, &app.limits).await?;
    Ok(ModelRequest::parse(&bytes)?)
}

fn changed(request: &ModelRequest, names: Vec<String>) -> Response {
    let answer = Json(ModelsChanged::new(names)).into_response();
    body::naming_ignored(answer, &request.ignored_fields)
}
