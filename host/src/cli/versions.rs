//! What was deployed under one name, for `millstream list --versions`, the commands that go through that history, and the host's page.

use async_nats::jetstream::{self, Context};
use serde::Serialize;

use super::{Fault, connect, output, running};
use crate::clock;
use crate::registry::{self, Deployment, Past, Registry};

/// The registry, if anything was ever deployed here.
pub(super) async fn registry(connection: &connect::Connection, handler: &str) -> Result<Registry, Fault> {
    let jetstream = jetstream::new(super::open(connection).await?);
    Registry::look(&jetstream).await?.ok_or_else(|| not_deployed(handler))
}

/// The registry, and what is deployed under this name, with its revision.
pub(super) async fn found(jetstream: &Context, handler: &str) -> Result<(Registry, u64, Deployment), Fault> {
    let registry = Registry::peek(jetstream).await?.ok_or_else(|| not_deployed(handler))?;
    let (revision, deployment) = deployed(&registry, handler).await?;
    Ok((registry, revision, deployment))
}

/// What is deployed under this name, with its revision.
pub(super) async fn deployed(registry: &Registry, handler: &str) -> Result<(u64, Deployment), Fault> {
    match registry.current(handler).await {
        Ok(current) => current.ok_or_else(|| not_deployed(handler)),
        Err(error @ registry::Error::Malformed { .. }) => Err(Fault::usage(error).hint(instead(handler))),
        Err(error) => Err(error.into()),
    }
}

/// What to do about a deployment that cannot be read.
pub(super) fn instead(handler: &str) -> String {
    format!("go back with `millstream rollback {handler}`, or deploy a module with `millstream deploy`")
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
    /// It runs, or ran last.
    runs: bool,
    /// A host ran it, and did not give it up.
    ran: bool,
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
    let ran = registry.those_that_ran(handler).await?;
    let runs = match history.first() {
        Some(Past { revision, deployment: Some(Ok(deployed)), .. }) => {
            runs(registry, handler, *revision, deployed).await?
        }
        // Removed, or not readable: what ran last goes on, if anything.
        _ => registry.status(handler).await?.unwrap_or_default().revision,
    };
    let row =
        |past: &Past| Row { runs: past.revision == runs, ran: ran.contains(&past.revision), ..row(handler, past) };
    Ok(history.iter().map(row).collect())
}

/// Revision of the deployment that runs, or ran last; 0 where none ever did.
async fn runs(registry: &Registry, handler: &str, revision: u64, deployed: &Deployment) -> Result<u64, Fault> {
    let said = registry.status(handler).await?.unwrap_or_default();
    if said.digest.is_empty() {
        return Ok(0);
    }
    Ok(running::running(registry, handler, (revision, deployed), running::Said::from(&said)).await?.revision)
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
    Row {
        handler: handler.to_owned(),
        revision: past.revision,
        time,
        digest,
        label,
        desired,
        runs: false,
        ran: false,
        note,
    }
}
