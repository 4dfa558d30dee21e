//! What was deployed under one name, for `millstream list --versions`, the commands that go through that history, and the host's page.

use async_nats::jetstream;
use serde::Serialize;

use super::{Fault, connect, output};
use crate::clock;
use crate::registry::{Past, Registry};

/// The registry, if anything was ever deployed here.
pub(super) async fn registry(connection: &connect::Connection, handler: &str) -> Result<Registry, Fault> {
    let jetstream = jetstream::new(super::open(connection).await?);
    Registry::peek(&jetstream).await?.ok_or_else(|| not_deployed(handler))
}

pub(crate) fn not_deployed(handler: &str) -> Fault {
    Fault::usage(anyhow::anyhow!("handler {handler} is not deployed"))
        .hint("see what is deployed with `millstream list`")
}

/// Somebody else deployed between our look and our word.
pub(super) fn overtaken(handler: &str) -> Fault {
    Fault::failed(anyhow::anyhow!("handler {handler} was deployed anew meanwhile; nothing was changed"))
        .hint(format!("see what is deployed with `millstream list --versions {handler}`, then try again"))
}

/// A deployment in the history.
#[derive(Serialize)]
pub(crate) struct Row {
    handler: String,
    revision: u64,
    time: String,
    digest: String,
    label: String,
    desired: String,
    runs: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// Prints the history of one handler, newest first.
pub(super) async fn print(registry: &Registry, handler: &str, json: bool) -> Result<(), Fault> {
    let rows = rows(registry, handler).await?;
    if json {
        return Ok(rows.iter().try_for_each(output::json)?);
    }
    let cells = rows.iter().map(|row| {
        vec![
            if row.runs { "*".to_owned() } else { String::new() },
            row.revision.to_string(),
            row.time.clone(),
            row.digest.chars().take(12).collect(),
            output::cut(&row.label, output::NAME),
            row.desired.clone(),
            row.note.clone(),
        ]
    });
    let header = ["", "REVISION", "DEPLOYED", "MODULE", "LABEL", "WANTED", "NOTE"];
    output::line(&output::table(&header, &[1], cells.collect()))?;
    Ok(())
}

/// The history of one handler, newest first.
pub(crate) async fn rows(registry: &Registry, handler: &str) -> Result<Vec<Row>, Fault> {
    let history = registry.history(handler).await?;
    if history.is_empty() {
        return Err(not_deployed(handler));
    }
    let running = registry.status(handler).await?.unwrap_or_default().digest;
    let mut runs_one = false;
    let mut rows = Vec::with_capacity(history.len());
    for past in &history {
        let mut row = row(handler, past);
        row.runs = !runs_one && row.digest == running;
        runs_one |= row.runs;
        rows.push(row);
    }
    Ok(rows)
}

fn row(handler: &str, past: &Past) -> Row {
    let (digest, label, desired, note) = match &past.deployment {
        Some(Ok(deployment)) => (
            deployment.digest.to_string(),
            deployment.label.clone(),
            deployment.desired.in_words().to_owned(),
            deployment.note.clone(),
        ),
        Some(Err(error)) => (String::new(), String::new(), "unreadable".to_owned(), error.to_string()),
        None => (String::new(), String::new(), "removed".to_owned(), String::new()),
    };
    // Whole seconds are what people compare.
    let time = clock::text(past.time / 1_000_000_000 * 1_000_000_000);
    Row { handler: handler.to_owned(), revision: past.revision, time, digest, label, desired, runs: false, note }
}
