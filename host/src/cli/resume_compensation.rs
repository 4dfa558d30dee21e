//! `millstream resume-compensation`. In: an instance whose step could not be undone. Out: the step tried again, with
//! all its retries. The wish is a timer that is due, so the host decides it in its place among the events, once. Never:
//! writes the instance.

use std::time::Duration;

use async_nats::jetstream::Context;
use clap::Args;
use millstream_saga::{Due, Instance, Status, Waiting};

use super::instances::{Found, Saga, no_instance};
use super::sagas::{Row, table};
use super::{Fault, connect, output};
use crate::acks::Acks;
use crate::claim;
use crate::clock;
use crate::timers::{self, Timer};

/// How often the instance is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Take up a compensation that failed.
#[derive(Debug, Args)]
pub(super) struct ResumeCompensation {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// The instance's key.
    key: String,
    /// Do not wait until a host has decided it.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for that.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

impl ResumeCompensation {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let Self { handler, key, .. } = &self;
        let saga = Saga::open(connection, handler).await?;
        let Some(found) = saga.instance(key).await? else { return Err(no_instance(handler, key)) };
        if found.instance.status != Status::CompensationFailed {
            let status = found.instance.status;
            return Err(Fault::usage(anyhow::anyhow!("instance {key:?} is {status}: there is nothing to resume"))
                .hint(format!(
                    "list those that need it with `millstream sagas {handler} --status compensation-failed`"
                )));
        }
        let wish = wish(&saga, key, &found.instance).await?;
        if self.no_wait {
            eprintln!("asked for; see `millstream explain {handler} {key}`");
            return Ok(());
        }
        let found = self.wait(&saga, &wish, &found.instance).await?;
        let now = clock::now();
        let row = Row::of(handler, &found, now);
        if json {
            output::json(&row)?
        } else {
            output::line(&table(&[row], now))?
        }
        Ok(())
    }

    /// Waits until the wish is in the instance's history, or somebody else's was decided before it.
    async fn wait(&self, saga: &Saga, wish: &str, before: &Instance) -> Result<Found, Fault> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(self.timeout);
        loop {
            let Some(found) = saga.instance(&self.key).await? else {
                return Err(Fault::failed(anyhow::anyhow!("instance {:?} is not there any more", self.key))
                    .hint(format!("see what is left of it with `millstream explain {} {}`", self.handler, self.key)));
            };
            if found.instance.history.iter().any(|transition| transition.event == wish) {
                return Ok(found);
            }
            if found.instance.status != Status::CompensationFailed || last_event(&found.instance) != last_event(before)
            {
                eprintln!("it was resumed already, by another who asked: this wish was not needed");
                return Ok(found);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Fault::failed(anyhow::anyhow!(
                    "no host has decided it within {} s; it stays asked for",
                    self.timeout
                ))
                .hint(format!("see whether one runs it with `millstream lag {}`", self.handler)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn last_event(instance: &Instance) -> Option<&str> {
    instance.history.last().map(|transition| transition.event.as_str())
}

/// Publishes the wish, and answers its id.
async fn wish(saga: &Saga, key: &str, instance: &Instance) -> Result<String, Fault> {
    let jetstream: &Context = &saga.jetstream;
    timers::open(jetstream, saga.deployment.settings.replicas).await?;
    let now = clock::now();
    let id = format!("{}.resume.{:016x}", saga.name, claim::fresh_id());
    let due = Due { key: key.to_owned(), life: instance.life.clone(), timer: Waiting::Resume };
    let body = serde_json::to_vec(&due)?.into();
    let timer = Timer { id: &id, due: now, body, correlation: &instance.correlation, causation: "" };
    let acks = Acks::open(&jetstream.client()).await?;
    acks.publish(timer.publication(&saga.name, now)).await?.await?;
    Ok(id)
}
