//! `millstream list`: what is deployed, and what its host says of it.

use async_nats::jetstream;
use clap::Args;
use serde::Serialize;

use super::running::{self, Instead, Running, Said};
use super::{Fault, connect, hosts, output, reasons, underway, verdicts, versions};
use crate::generation::ledger;
use crate::journal::Counts;
use crate::overview::{self, Handler};
use crate::progress::Refused;
use crate::registry::Registry;

/// List the deployed handlers.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Show what was deployed under this name, newest first.
    #[arg(long, value_name = "HANDLER", value_parser = super::handler_name)]
    versions: Option<String>,
    /// Show the hosts that live, and what each of them runs.
    #[arg(long, conflicts_with = "versions")]
    hosts: bool,
}

#[derive(Serialize)]
struct Row {
    handler: String,
    state: String,
    #[serde(skip)]
    state_in_words: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// The module that runs.
    digest: String,
    label: String,
    /// The module that is deployed, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<Instead>,
    subjects: Vec<String>,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
    counts: Counts,
    /// None where nobody knows.
    parked_keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_parked: Option<i64>,
    /// There is a version to go back to.
    #[serde(skip)]
    has_before: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    promotion: Option<Promoting>,
    /// Why nobody can tell its generations.
    #[serde(skip_serializing_if = "String::is_empty")]
    ledger_fault: String,
}

/// A generation that shall take over.
#[derive(Serialize)]
struct Promoting {
    generation: u32,
    /// What it waits for.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl List {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        if let Some(handler) = &self.versions {
            return versions::print(&versions::registry(connection, handler).await?, handler, json).await;
        }
        let jetstream = jetstream::new(super::open(connection).await?);
        if self.hosts {
            return hosts::print(&jetstream, json).await;
        }
        let mut rows = Vec::new();
        if let Some(registry) = Registry::look(&jetstream).await? {
            for handler in overview::read(&jetstream).await?.handlers {
                rows.push(row(&jetstream, &registry, handler).await?);
            }
        }
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
                row.state_in_words.clone(),
                row.digest.chars().take(12).collect(),
                output::cut(&row.label, output::NAME),
                output::cut(&row.host, output::NAME),
                output::thousands(row.counts.delivered),
                output::thousands(row.counts.applied),
                output::thousands(row.counts.irrelevant),
                output::thousands(row.counts.ignored),
                output::thousands(row.counts.parked),
                row.parked_keys.map_or("-".to_owned(), output::thousands),
            ]
        });
        let header = [
            "HANDLER",
            "STATE",
            "MODULE",
            "LABEL",
            "HOST",
            "DELIVERED",
            "APPLIED",
            "IRRELEVANT",
            "IGNORED",
            "PARKED",
            "KEYS",
        ];
        output::line(&output::table(&header, &[5, 6, 7, 8, 9, 10], cells.collect()))?;
        for (row, keys) in rows.iter().filter_map(|row| Some((row, row.parked_keys.filter(|keys| *keys > 0)?))) {
            let told = output::counted(keys, "key is", "keys are");
            eprintln!("{}: {told} parked; hint: see why with `millstream dead {0}`", row.handler);
        }
        for row in rows.iter().filter(|row| !row.reason.is_empty()) {
            eprintln!("{}: {}", row.handler, reasons::with_hint(&row.handler, &row.state, &row.reason, row.has_before));
        }
        rows.iter().flat_map(remarks).for_each(|line| eprintln!("{line}"));
        Ok(())
    }
}

/// What else people should know of a handler: what is being promoted, and what is deployed and does not run.
fn remarks(row: &Row) -> Vec<String> {
    let Row { handler, promotion, ledger_fault, wanted, refused, reason, .. } = row;
    let mut lines = Vec::new();
    if !ledger_fault.is_empty() {
        lines.push(format!("{handler}: {}", output::legible(ledger_fault)));
    }
    if let Some(Promoting { generation, reason }) = promotion.as_ref().filter(|it| !it.reason.is_empty()) {
        let reason = output::legible(reason);
        lines.push(format!("{handler}: generation {generation} is being promoted, and waits: {reason}"));
    }
    // A handler that runs nothing says so in its reason.
    let refused = refused.as_ref().filter(|refused| refused.reason != *reason).map(|refused| refusal(handler, refused));
    let instead = wanted.as_ref().map(Instead::sentence).or(refused);
    lines.extend(instead.map(|sentence| format!("{handler}: {sentence}")));
    lines
}

/// What was refused, in words. A deployment that cannot be read names no module.
fn refusal(handler: &str, Refused { revision, digest, reason }: &Refused) -> String {
    let reason = output::legible(reason);
    match digest.is_empty() {
        true => format!("revision {revision} was refused: {reason}; hint: {}", versions::instead(handler)),
        false => format!("{digest:.12} was refused: {reason}"),
    }
}

async fn row(jetstream: &jetstream::Context, registry: &Registry, handler: Handler) -> Result<Row, Fault> {
    // Of one that cannot be read it is told already what runs.
    let deployed = registry.current(&handler.handler).await.ok().flatten();
    let running = match &deployed {
        Some((revision, deployed)) => {
            let said = Said::in_overview(&handler);
            Some(running::running(registry, &handler.handler, (*revision, deployed), said).await?)
        }
        None => None,
    };
    let (promotion, ledger_fault) = promotion(jetstream, registry, &handler).await?;
    let state_in_words = handler.state_in_words();
    let Handler { handler, state, reason, digest, label, subjects, host, refused, counts, numbers, .. } = handler;
    let has_before = verdicts::has_before(registry, &handler).await;
    let known = Row {
        handler,
        state,
        state_in_words,
        reason,
        digest,
        label,
        wanted: None,
        subjects,
        host,
        refused,
        counts,
        parked_keys: numbers.parked_keys,
        oldest_parked: numbers.oldest_parked,
        has_before,
        promotion,
        ledger_fault,
    };
    let Some(Running { deployment, wanted, .. }) = running else { return Ok(known) };
    let subjects = deployment.filters().to_vec();
    Ok(Row { digest: deployment.digest.to_string(), label: deployment.label, wanted, subjects, ..known })
}

/// The promotion that a handler waits for; and why nobody can tell, where that is so.
async fn promotion(
    jetstream: &jetstream::Context,
    registry: &Registry,
    handler: &Handler,
) -> Result<(Option<Promoting>, String), Fault> {
    let Handler { handler, desired, .. } = handler;
    let promotion = match ledger::look(jetstream, handler).await {
        Ok(ledger) => ledger.promotion,
        // The other handlers are told all the same.
        Err(error @ ledger::Error::Malformed { .. }) => return Ok((None, error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let Some(promotion) = promotion else { return Ok((None, String::new())) };
    let reason = underway::what_holds(registry, handler, *desired, &promotion).await?;
    Ok((Some(Promoting { generation: promotion.to, reason }), String::new()))
}
