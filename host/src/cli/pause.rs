//! `millstream pause` and `millstream resume`: whether a handler should run. What is decided stays; what comes meanwhile waits.

use clap::Args;
use serde::Serialize;

use super::{Fault, connect, output, verdicts, versions};
use crate::registry::{Deployment, Desired, Registry};

/// Stop a handler and leave it stopped.
#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    switch: Switch,
}

/// Let a paused handler run again.
#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    switch: Switch,
}

#[derive(Debug, Args)]
struct Switch {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Do not wait for the hosts.
    #[arg(long)]
    no_wait: bool,
}

/// What became of it.
#[derive(Serialize)]
pub(crate) struct Switched {
    handler: String,
    state: String,
}

impl Pause {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        self.switch.turn(Desired::Paused, connection, json).await
    }
}

impl Resume {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        self.switch.turn(Desired::Running, connection, json).await
    }
}

impl Switch {
    async fn turn(self, desired: Desired, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let registry = versions::registry(connection, &self.handler).await?;
        let switched = turn(&registry, &self.handler, desired, !self.no_wait).await?;
        if json {
            return Ok(output::json(&switched)?);
        }
        eprintln!("{}: {}", switched.handler, switched.state);
        Ok(())
    }
}

/// Says whether a handler should run, and waits for what the hosts make of it, if that is wanted.
pub(crate) async fn turn(registry: &Registry, handler: &str, desired: Desired, wait: bool) -> Result<Switched, Fault> {
    let (revision, before) = versions::deployed(registry, handler).await?;
    let mut now = revision;
    if before.desired != desired {
        let changed = registry.replace(handler, revision, &Deployment { desired, ..before }).await?;
        now = changed.ok_or_else(|| versions::overtaken(handler))?;
    }
    let done = match desired {
        Desired::Running => "resumed",
        Desired::Paused => "paused",
    };
    let state = if wait { verdicts::wait(registry, handler, now).await?.line(done) } else { done.to_owned() };
    Ok(Switched { handler: handler.to_owned(), state })
}
