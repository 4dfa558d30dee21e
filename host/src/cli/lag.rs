//! `millstream lag`: how far behind each handler is. In: JetStream itself, with or without a host running. Out: a row
//! per handler and input stream. Never: believes what a host says of itself where the stream can be read.

use async_nats::jetstream;
use clap::Args;

use super::{Fault, connect, output, reasons};
use crate::lag::{self, Lag};
use crate::registry::Registry;
use crate::survey;

/// Show how far behind the handlers are.
#[derive(Debug, Args)]
pub(super) struct LagCommand {
    /// Only these handlers.
    handlers: Vec<String>,
}

impl LagCommand {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let (rows, failed) = self.survey(&jetstream).await?;
        if json {
            for row in &rows {
                output::json(row)?;
            }
        } else if rows.is_empty() && failed.is_empty() {
            eprintln!("nothing is deployed here\nhint: millstream deploy MODULE.wasm");
        } else if !rows.is_empty() {
            output::line(&table(&rows))?;
            for row in rows.iter().filter(|row| !row.reason.is_empty()) {
                eprintln!("{}: {}", row.handler, reasons::with_hint(&row.handler, &row.state, &row.reason, false));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Fault::failed(anyhow::anyhow!("the lag of some handlers cannot be told: {}", failed.join("; ")))
            .hint("see what is deployed with `millstream list`"))
    }

    async fn survey(&self, jetstream: &jetstream::Context) -> Result<(Vec<Lag>, Vec<String>), Fault> {
        let deployments = match Registry::peek(jetstream).await? {
            Some(registry) => Some((registry.deployments().await?, registry)),
            None => None,
        };
        let deployed = |name: &String| {
            deployments
                .as_ref()
                .is_some_and(|(deployments, _)| deployments.iter().any(|(deployed, _)| deployed == name))
        };
        if let Some(unknown) = self.handlers.iter().find(|name| !deployed(name)) {
            return Err(Fault::usage(anyhow::anyhow!("handler {unknown} is not deployed"))
                .hint("see what is deployed with `millstream list`"));
        }
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        if let Some((deployments, registry)) = deployments {
            for (name, deployment) in deployments {
                if self.handlers.is_empty() || self.handlers.contains(&name) {
                    let surveyed = match deployment {
                        Ok(deployment) => survey::handler(jetstream, &registry, &name, &deployment).await,
                        Err(error) => Err(error.into()),
                    };
                    // One that cannot be measured must not hide the others.
                    match surveyed {
                        Ok(found) => rows.extend(found),
                        Err(error) => failed.push(format!("{name}: {error:#}")),
                    }
                }
            }
        }
        Ok((rows, failed))
    }
}

/// The rows as a table within 100 columns for usual names.
pub(super) fn table(rows: &[Lag]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.handler.clone(),
            row.stream.clone(),
            row.state.clone(),
            output::thousands(row.events),
            output::duration(row.seconds),
            output::thousands(row.position),
            output::thousands(row.head),
            row.reported_seconds_ago.map_or_else(
                || if row.state == lag::NOT_STARTED { "never" } else { "unknown" }.to_owned(),
                |ago| format!("{} ago", output::duration(ago)),
            ),
        ]
    });
    let header = ["HANDLER", "STREAM", "STATE", "LAG", "OLDEST", "POSITION", "HEAD", "REPORTED"];
    output::table(&header, &[3, 4, 5, 6], cells.collect())
}
