//! A handler's parked keys: what `millstream dead` tells. In: a handler. Out: JSON, some of them where there are many. Never: takes
//! anything up; that is for `millstream redrive`.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Host;
use super::answer::{Failed, busy};
use super::sagas::{not_a_name, turn};
use crate::cli::dead::{Parked, Row};
use crate::cli::versions::not_deployed;

/// Keys on the page: each is a few requests to the server.
const KEYS: usize = 50;

#[derive(Serialize)]
struct Letters {
    /// The oldest first.
    parked: Vec<Row>,
    /// How many keys are parked; events without a key count as one.
    keys: usize,
}

/// `GET /api/handlers/{handler}/dead`.
pub(super) async fn list(State(host): State<Host>, Path(name): Path<String>) -> Result<Response, Failed> {
    let Some(_turn) = turn(&host).await else { return Ok(busy("parked keys")) };
    if let Some(refusal) = not_a_name(&name) {
        return Ok(refusal);
    }
    if host.registry.current(&name).await?.is_none() {
        return Err(not_deployed(&name).into());
    }
    let parked = Parked::open(&host.jetstream, &name, None).await?;
    let (parked, keys) = parked.some_rows(KEYS).await?;
    Ok(Json(Letters { parked, keys }).into_response())
}
