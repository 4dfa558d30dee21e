//! `millstream pause` and `millstream resume`: whether a handler should run. What is decided stays; what comes meanwhile waits.

use clap::Args;
use serde::Serialize;

use super::{Fault, connect, output, verdicts, versions};
use crate::registry::{Deployment, Desired};

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
    handler: String,
    /// Do not wait for the hosts.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Serialize)]
struct Switched {
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
        let Some((revision, before)) = registry.current(&self.handler).await? else {
            return Err(versions::not_deployed(&self.handler));
        };
        let (digest, mut now) = (before.digest, revision);
        if before.desired != desired {
            let changed = registry.replace(&self.handler, revision, &Deployment { desired, ..before }).await?;
            now = changed.ok_or_else(|| versions::overtaken(&self.handler))?;
        }
        let done = match desired {
            Desired::Running => "resumed",
            Desired::Paused => "paused",
        };
        let state = if self.no_wait {
            done.to_owned()
        } else {
            verdicts::wait(&registry, &self.handler, now, digest).await?.line(done)
        };
        let switched = Switched { handler: self.handler, state };
        if json {
            return Ok(output::json(&switched)?);
        }
        eprintln!("{}: {}", switched.handler, switched.state);
        Ok(())
    }
}
