//! `millstream list`: what is deployed, and what its host says of it.

use async_nats::jetstream;
use clap::Args;
use serde::Serialize;

use super::{Fault, connect, output, reasons, versions};
use crate::journal::Counts;
use crate::overview::{self, Handler};
use crate::progress::Refused;

/// List the deployed handlers.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Show what was deployed under this name, newest first.
    #[arg(long, value_name = "HANDLER")]
    versions: Option<String>,
}

#[derive(Serialize)]
struct Row {
    handler: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    digest: String,
    label: String,
    subjects: Vec<String>,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
    counts: Counts,
}

impl List {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        if let Some(handler) = &self.versions {
            return versions::print(&versions::registry(connection, handler).await?, handler, json).await;
        }
        let overview = overview::read(&jetstream::new(super::open(connection).await?)).await?;
        let rows: Vec<Row> = overview.handlers.into_iter().map(row).collect();
        if json {
            for row in &rows {
                output::json(row)?;
            }
            return Ok(());
        }
        if rows.is_empty() {
            eprintln!("nothing is deployed here\nhint: millstream deploy MODULE.wasm");
            return Ok(());
        }
        let cells = rows.iter().map(|row| {
            vec![
                row.handler.clone(),
                row.state.clone(),
                row.digest.chars().take(12).collect(),
                output::cut(&row.label, output::NAME),
                output::cut(&row.host, output::NAME),
                output::thousands(row.counts.delivered),
                output::thousands(row.counts.applied),
                output::thousands(row.counts.irrelevant),
                output::thousands(row.counts.ignored),
            ]
        });
        let header = ["HANDLER", "STATE", "MODULE", "LABEL", "HOST", "DELIVERED", "APPLIED", "IRRELEVANT", "IGNORED"];
        output::line(&output::table(&header, &[5, 6, 7, 8], cells.collect()))?;
        for row in rows.iter().filter(|row| !row.reason.is_empty()) {
            eprintln!("{}: {}", row.handler, reasons::with_hint(&row.handler, &row.state, &row.reason));
        }
        for row in &rows {
            // A handler that runs nothing says so in its reason.
            if let Some(refused) = row.refused.as_ref().filter(|refused| refused.reason != row.reason) {
                eprintln!("{}: {:.12} was refused: {}", row.handler, refused.digest, output::legible(&refused.reason));
            }
        }
        Ok(())
    }
}

fn row(handler: Handler) -> Row {
    let Handler { handler, state, reason, wanted_digest, label, subjects, host, refused, counts, .. } = handler;
    Row { handler, state, reason, digest: wanted_digest, label, subjects, host, refused, counts }
}
