//! `millstream list --hosts`: the hosts that live, and what each of them runs. In: what hosts say of themselves. Out: a table or lines of
//! JSON. Never: asks a host.

use async_nats::jetstream::Context;
use serde::Serialize;

use super::{Fault, output};
use crate::clock;
use crate::legible;
use crate::placement;
use crate::registry::{Heard, Registry};

#[derive(Serialize)]
struct Row {
    host: String,
    /// `live`, `leaving` or `silent`.
    state: &'static str,
    heard_seconds_ago: f64,
    /// When it began, nanoseconds since 1970.
    since: i64,
    version: String,
    /// The handlers that it runs, paused and failing ones included.
    handlers: Vec<String>,
    /// The only handlers that it may run; all where empty.
    only: Vec<String>,
    /// Handlers whose deployment it cannot run.
    declines: Vec<String>,
}

impl Row {
    fn new(heard: Heard, now: i64) -> Self {
        let Heard { host, stored } = heard;
        let ago = clock::seconds(now - stored);
        let state = match () {
            () if ago > placement::LEASE.as_secs_f64() => "silent",
            () if host.leaving => "leaving",
            () => "live",
        };
        Self {
            host: host.name,
            state,
            heard_seconds_ago: ago,
            since: host.since,
            version: host.version,
            handlers: host.holds,
            only: host.handlers,
            declines: host.declines,
        }
    }

    fn cells(&self, now: i64) -> Vec<String> {
        let only = if self.only.is_empty() { "all".to_owned() } else { self.only.join(", ") };
        vec![
            output::cut(&self.host, output::NAME),
            self.state.to_owned(),
            format!("{:.1} s ago", self.heard_seconds_ago),
            legible::duration(clock::seconds(now - self.since)),
            self.version.clone(),
            self.handlers.len().to_string(),
            output::cut(&self.handlers.join(", "), output::NAME),
            output::cut(&only, output::NAME),
        ]
    }
}

pub(super) async fn print(jetstream: &Context, json: bool) -> Result<(), Fault> {
    let now = clock::now();
    let heard = match Registry::peek(jetstream).await? {
        Some(registry) => registry.hosts_heard(jetstream).await?,
        None => Vec::new(),
    };
    let rows: Vec<Row> = heard.into_iter().map(|heard| Row::new(heard, now)).collect();
    if json {
        for row in &rows {
            output::json(row)?;
        }
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!("no host is running\nhint: start one with `millstream run`");
        return Ok(());
    }
    let header = ["HOST", "STATE", "HEARD", "RUNS FOR", "VERSION", "RUNS", "HANDLERS", "MAY RUN"];
    output::line(&output::table(&header, &[2, 3, 5], rows.iter().map(|row| row.cells(now)).collect()))?;
    for row in rows.iter().filter(|row| !row.declines.is_empty()) {
        let names = row.declines.join(", ");
        eprintln!("{}: cannot run what is deployed as {}; its log says why", row.host, output::legible(&names));
    }
    Ok(())
}
