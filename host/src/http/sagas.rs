//! A saga's instances, and the story of one: what `millstream sagas` and `millstream explain` tell. In: a handler, perhaps a status, where
//! the last page ended. Out: JSON. At most a few such readings at a time, whoever asks. Never: more than one page at once.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millstream_saga::Instance;
use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;

use super::Host;
use super::answer::{Failed, busy, refuse};
use crate::cli::explain;
use crate::cli::instances::{Saga, no_instance};
use crate::cli::sagas::{self, Row};
use crate::clock;
use crate::names;

/// Instances on a page.
const PAGE: usize = 50;

/// Instances looked at for one page, when few of them stand as asked.
const LOOKED_AT: usize = 5_000;

/// Messages looked at for one story; `millstream explain` takes as many.
const SCAN: usize = 100_000;

/// How long one waits for its turn.
const TURN_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// What part of the instances.
#[derive(Deserialize)]
pub(super) struct Asked {
    /// Only instances that stand so.
    status: Option<String>,
    /// Only keys behind this one.
    after: Option<String>,
}

#[derive(Serialize)]
struct Page<'a> {
    instances: Vec<Row<'a>>,
    /// Ask for what comes after this; none at the end. A page may be short, or empty, and not the last.
    next: Option<String>,
}

/// `GET /api/handlers/{handler}/sagas`.
pub(super) async fn list(
    State(host): State<Host>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failed> {
    let Some(_turn) = turn(&host).await else { return Ok(busy("instances")) };
    if let Some(refusal) = not_a_name(&name) {
        return Ok(refusal);
    }
    let status = match asked.status.as_deref().map(sagas::status).transpose() {
        Ok(status) => status,
        Err(known) => {
            let error = format!("no instance can stand as {:?}", asked.status.unwrap_or_default());
            return Ok(refuse(StatusCode::BAD_REQUEST, error, format!("ask for one of {known}")));
        }
    };
    let saga = Saga::of(host.jetstream.clone(), &name).await?;
    let stands = |instance: &Instance| status.is_none_or(|status| instance.status == status);
    let (found, next) = saga.page(asked.after.as_deref(), stands, PAGE, LOOKED_AT).await?;
    let now = clock::now();
    let instances = found.iter().map(|found| Row::of(&name, found, now)).collect();
    Ok(Json(Page { instances, next }).into_response())
}

/// `GET /api/handlers/{handler}/sagas/{key}`.
pub(super) async fn story(
    State(host): State<Host>,
    Path((name, key)): Path<(String, String)>,
) -> Result<Response, Failed> {
    let Some(_turn) = turn(&host).await else { return Ok(busy("stories")) };
    if let Some(refusal) = not_a_name(&name) {
        return Ok(refusal);
    }
    let saga = Saga::of(host.jetstream.clone(), &name).await?;
    match explain::story(&saga, &key, SCAN).await? {
        Some(story) => Ok(Json(story).into_response()),
        None => {
            let fault = no_instance(&name, &key);
            let (error, hint) = fault.told();
            Ok(refuse(StatusCode::NOT_FOUND, error, hint.unwrap_or_default()))
        }
    }
}

/// What is no name of a handler is none that NATS should be asked for.
pub(super) fn not_a_name(name: &str) -> Option<Response> {
    let defect = names::handler_name_defect(name)?;
    Some(refuse(StatusCode::NOT_FOUND, defect, "see what is deployed at /api/overview"))
}

pub(super) async fn turn(host: &Host) -> Option<SemaphorePermit<'_>> {
    tokio::time::timeout(TURN_WITHIN, host.drills.acquire()).await.ok()?.ok()
}
