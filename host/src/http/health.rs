//! Whether this host lives, and whether it does its work. In: its vitals, its connection, the registry. Out: 200, or 503 with a line for
//! each thing that is amiss. `/healthz` is for who restarts processes: it asks nobody, so a lost server does not make it fail.
//! `/readyz` is for who waits for a host to be up. A handler that failed is an alert, not a host that is not ready.

use std::time::{Duration, Instant};

use async_nats::connection::State as Connection;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use super::Host;
use crate::registry;

/// The registry is asked no more often, whoever probes.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A registry that does not answer within this is not readable.
const WITHIN: Duration = Duration::from_secs(2);

/// What was found last, and when.
#[derive(Default)]
pub(super) struct Ready(Mutex<Option<(Instant, Vec<String>)>>);

/// `GET /healthz`.
pub(super) async fn healthz(State(host): State<Host>) -> Response {
    told("alive", &host.vitals.complaints(Instant::now()))
}

/// `GET /readyz`.
pub(super) async fn readyz(State(host): State<Host>) -> Response {
    let mut last = host.ready.0.lock().await;
    let amiss = match last.as_ref().filter(|(when, _)| when.elapsed() < ASK_EVERY) {
        Some((_, amiss)) => amiss.clone(),
        None => {
            let amiss = not_ready(&host).await;
            *last = Some((Instant::now(), amiss.clone()));
            amiss
        }
    };
    told("ready", &amiss)
}

fn told(well: &str, amiss: &[String]) -> Response {
    if amiss.is_empty() {
        return format!("{well}\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not {well}\n{}\n", amiss.join("\n"))).into_response()
}

async fn not_ready(host: &Host) -> Vec<String> {
    let mut amiss = host.vitals.complaints(Instant::now());
    if host.jetstream.client().connection_state() != Connection::Connected {
        amiss.push("not connected with NATS".to_owned());
        return amiss;
    }
    match tokio::time::timeout(WITHIN, deployed(host)).await {
        Ok(Ok(names)) => amiss.extend(names.iter().filter_map(|name| host.vitals.not_taken(name))),
        Ok(Err(error)) => amiss.push(format!("the registry cannot be read: {error}")),
        Err(_) => amiss.push(format!("the registry has not answered for {} s", WITHIN.as_secs())),
    }
    amiss
}

/// Handlers that this host should take up.
async fn deployed(host: &Host) -> Result<Vec<String>, registry::Error> {
    let deployed = host.registry.deployed(&host.jetstream).await?;
    let names = deployed.into_iter().map(|deployed| deployed.handler);
    Ok(names.filter(|name| host.only.is_empty() || host.only.contains(name)).collect())
}
