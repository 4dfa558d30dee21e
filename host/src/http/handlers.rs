//! The overview and one handler's past, as JSON. In: who asks. Out: what `overview.rs` has, and the deployments of a handler, newest
//! first. Never: settings or signatures; they may say more than a reader should know.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Host;
use super::answer::{Failed, refuse};
use crate::cli::versions::{self, Row};
use crate::overview::Handler;

/// This host, for the page.
#[derive(Serialize)]
struct About<'a> {
    host: &'a str,
    version: &'static str,
    /// Whether a token opens the actions.
    actions: bool,
}

/// One handler, for the page.
#[derive(Serialize)]
struct One<'a> {
    handler: &'a Handler,
    deployments: Vec<Row>,
}

/// `GET /api/host`.
pub(super) async fn host(State(host): State<Host>) -> Response {
    let about = About { host: &host.name, version: env!("CARGO_PKG_VERSION"), actions: host.token.is_some() };
    Json(about).into_response()
}

/// `GET /api/overview`.
pub(super) async fn overview(State(host): State<Host>) -> Response {
    let seen = host.reader.look().await;
    match seen.overview() {
        Some(overview) => Json(overview).into_response(),
        None => refuse(StatusCode::BAD_GATEWAY, seen.fault(), "see what is amiss at /readyz"),
    }
}

/// `GET /api/handlers/{handler}`.
pub(super) async fn handler(State(host): State<Host>, Path(name): Path<String>) -> Result<Response, Failed> {
    let seen = host.reader.look().await;
    let Some(overview) = seen.overview() else {
        return Ok(refuse(StatusCode::BAD_GATEWAY, seen.fault(), "see what is amiss at /readyz"));
    };
    let Some(handler) = overview.handlers.iter().find(|handler| handler.handler == name) else {
        return Err(versions::not_deployed(&name).into());
    };
    let deployments = versions::rows(&host.registry, &name).await?;
    Ok(Json(One { handler, deployments }).into_response())
}
