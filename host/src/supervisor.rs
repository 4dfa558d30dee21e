//! Runs every deployed handler on this host. In: the deployments, watched. Out: one task per handler, started, restarted on a
//! new deployment, stopped on request; their state in the status bucket. Never: looks into a handler's events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::claim;
use crate::generation::Generation;
use crate::generation::family::Family;
use crate::generation::maker::Maker;
use crate::handler::{Ended, Handler};
use crate::pipeline::told_to_stop;
use crate::progress::{Progress, State};
use crate::registry::{self, Deployment, Desired, Registry};
use crate::sandbox::{Cache, Sandbox};

/// How often a running handler's numbers go to the status bucket.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long a host that shall stop waits for its handlers. What they leave is done at the next start.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// This host.
pub struct Supervisor {
    jetstream: Context,
    registry: Registry,
    sandbox: Sandbox,
    cache: Cache,
    host: String,
    /// Only these handlers, or all where empty.
    only: Vec<String>,
    running: HashMap<String, Running>,
}

/// A handler's task.
struct Running {
    deployment: Deployment,
    /// Revision of the deployment in its bucket.
    revision: u64,
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
    /// None once it has ended by itself.
    task: Option<JoinHandle<Ended>>,
    fenced: bool,
}

impl Running {
    /// Ends the task and waits until it has.
    async fn end(self) {
        let _ = self.stop.send(true);
        if let Some(task) = self.task {
            let _ = task.await;
        }
    }
}

/// Why a host stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to; the handlers named could not show everything that is decided, which the next start does.
    Stopped(Vec<String>),
    /// Every handler it ran was taken by another host.
    Fenced(Vec<String>),
}

impl Supervisor {
    /// A host of this name.
    ///
    /// # Errors
    /// When the registry or the WASM engine cannot be had.
    pub async fn new(jetstream: Context, host: String, cache: Cache, only: Vec<String>) -> anyhow::Result<Self> {
        let registry = Registry::open(&jetstream).await?;
        let sandbox = Sandbox::new()?;
        Ok(Self { jetstream, registry, sandbox, cache, host, only, running: HashMap::new() })
    }

    /// Runs until `stop` resolves or another host has taken everything.
    ///
    /// # Errors
    /// When the deployments cannot be watched.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<Outcome> {
        tokio::pin!(stop);
        let announcing = tokio::spawn(keep_announcing(self.registry.clone(), self.host.clone()));
        let outcome = tokio::select! {
            biased;
            () = &mut stop => None,
            outcome = self.look_after_all() => Some(outcome),
        };
        announcing.abort();
        match outcome {
            Some(outcome) => Ok(outcome),
            None => Ok(self.shut_down().await),
        }
    }

    /// Follows the deployments until there is nothing left to do for this host.
    async fn look_after_all(&mut self) -> Outcome {
        self.warn_of_unknown().await;
        let mut looks = tokio::time::interval(REPORT_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // A watch that ends (the server went away) is begun again: it tells everything anew.
            let mut deployments = match self.registry.handlers.watch_with_history(">").await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(%error, "deployments cannot be watched; trying again");
                    tokio::time::sleep(REPORT_EVERY).await;
                    continue;
                }
            };
            loop {
                tokio::select! {
                    entry = deployments.next() => match entry {
                        Some(Ok(entry)) => self.follow(entry).await,
                        Some(Err(error)) => tracing::warn!(%error, "deployments: trying again"),
                        None => break,
                    },
                    _ = looks.tick() => if let Some(outcome) = self.look_after().await { return outcome },
                }
            }
        }
    }

    /// A handler that was asked for by name may be deployed later; a typing error is more likely.
    async fn warn_of_unknown(&self) {
        for name in &self.only {
            if matches!(self.registry.deployment(name).await, Ok(None)) {
                tracing::warn!(handler = name, "not deployed; see `millstream list`");
            }
        }
    }

    async fn follow(&mut self, entry: Entry) {
        let name = entry.key;
        if !self.only.is_empty() && !self.only.contains(&name) {
            return;
        }
        if entry.operation != Operation::Put {
            self.stop(&name).await;
            return;
        }
        match registry::parse(&name, &entry.value) {
            Ok(deployment) => {
                // A watch that began anew tells what we know; the same deployment put again is how a person says that what
                // made the handler fail is mended.
                let same = self.running.get(&name).is_some_and(|running| {
                    running.revision == entry.revision
                        || running.deployment == deployment
                            && running.progress.report(0).state != State::Failing
                            && running.task.as_ref().is_some_and(|task| !task.is_finished())
                });
                if !same {
                    self.stop(&name).await;
                    self.start(name, deployment, entry.revision);
                }
            }
            Err(error) => tracing::error!(handler = name, %error, "deployment ignored"),
        }
    }

    fn start(&mut self, name: String, deployment: Deployment, revision: u64) {
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::new(Progress::new(&self.host, &deployment.digest.to_string()));
        let life = Life {
            jetstream: self.jetstream.clone(),
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            host: self.host.clone(),
            name: name.clone(),
            progress: Arc::clone(&progress),
        };
        let task = tokio::spawn(life.run(deployment.clone(), stopped));
        self.running.insert(name, Running { deployment, revision, stop, progress, task: Some(task), fenced: false });
    }

    async fn stop(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            running.end().await;
        }
    }

    async fn shut_down(&mut self) -> Outcome {
        // All are told before the first is waited for.
        for running in self.running.values() {
            let _ = running.stop.send(true);
        }
        let deadline = tokio::time::Instant::now() + STOP_WITHIN;
        let mut unfinished = Vec::new();
        for (name, mut running) in self.running.drain() {
            let Some(mut task) = running.task.take() else { continue };
            match tokio::time::timeout_at(deadline, &mut task).await {
                Ok(Ok(Ended::Interrupted(_)) | Err(_)) => unfinished.push(name),
                Ok(Ok(Ended::Stopped | Ended::Fenced(_) | Ended::Failing(_))) => {}
                Err(_) => {
                    task.abort();
                    unfinished.push(name);
                }
            }
        }
        unfinished.sort();
        Outcome::Stopped(unfinished)
    }

    /// Looks after tasks that ended by themselves. Answers an outcome when there is nothing left to do for this host.
    async fn look_after(&mut self) -> Option<Outcome> {
        for (name, running) in &mut self.running {
            let Some(task) = running.task.take_if(|task| task.is_finished()) else { continue };
            match task.await {
                Ok(Ended::Fenced(reason)) => {
                    tracing::error!(handler = name, reason, "fenced");
                    running.fenced = true;
                }
                Ok(Ended::Failing(_) | Ended::Stopped | Ended::Interrupted(_)) => {}
                Err(error) => tracing::error!(handler = name, %error, "the handler's task broke off"),
            }
        }
        let fenced = self.running.iter().filter(|(_, running)| running.fenced);
        let fenced: Vec<String> = fenced.map(|(name, _)| name.clone()).collect();
        (!fenced.is_empty() && fenced.len() == self.running.len()).then_some(Outcome::Fenced(fenced))
    }
}

/// What one handler's task needs.
struct Life {
    jetstream: Context,
    registry: Registry,
    sandbox: Sandbox,
    cache: Cache,
    host: String,
    name: String,
    progress: Arc<Progress>,
}

impl Life {
    /// Prepares the module, runs the handler, and reports beside it.
    async fn run(self, deployment: Deployment, mut stop: watch::Receiver<bool>) -> Ended {
        let reporting =
            tokio::spawn(keep_reporting(self.registry.clone(), self.name.clone(), Arc::clone(&self.progress)));
        let ended = match deployment.desired {
            Desired::Paused => {
                self.progress.set(State::Paused, "");
                told_to_stop(&mut stop).await;
                Ended::Stopped
            }
            Desired::Running => match self.prepared(&deployment, &mut stop).await {
                Ok(Some(handler)) => Family::new(self.jetstream.clone(), self.maker(), handler).run(stop.clone()).await,
                Ok(None) => Ended::Stopped,
                Err(error) => {
                    let reason = format!("{error:#}");
                    self.progress.set(State::Failing, &reason);
                    Ended::Failing(reason)
                }
            },
        };
        reporting.abort();
        let _ = reporting.await;
        if let Ended::Failing(reason) = &ended {
            tracing::error!(handler = self.name, reason, "stopped");
            // The last word stays until a new deployment; a fenced host has none.
            let _ = self.registry.report(&self.name, &self.progress.report(claim::now())).await;
        }
        ended
    }

    /// Prepares the module, again while the server is away; none when told to stop before.
    async fn prepared(
        &self,
        deployment: &Deployment,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Option<Handler>> {
        loop {
            let error = match self.prepare(deployment).await {
                Ok(handler) => return Ok(Some(handler)),
                Err(error) => error,
            };
            match error.downcast_ref::<registry::Error>() {
                Some(registry::Error::Unreachable { .. }) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(handler = self.name, reason, "the module cannot be fetched; trying again");
                    self.progress.set(State::Retrying, &reason);
                }
                // What the user must mend.
                Some(
                    registry::Error::NoModule(_) | registry::Error::Damaged { .. } | registry::Error::Malformed { .. },
                )
                | None => return Err(error),
            }
            if tokio::time::timeout(REPORT_EVERY, told_to_stop(stop)).await.is_ok() {
                return Ok(None);
            }
        }
    }

    async fn prepare(&self, deployment: &Deployment) -> anyhow::Result<Handler> {
        let (generation, progress) = (Generation::first(&self.name), Arc::clone(&self.progress));
        self.maker().handler(generation, deployment.digest, deployment.settings.clone(), progress).await
    }

    fn maker(&self) -> Maker {
        Maker {
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            host: self.host.clone(),
        }
    }
}

/// Says every second that this host lives.
async fn keep_announcing(registry: Registry, host: String) {
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = registry.announce(&host).await {
            tracing::debug!(%error, "host not announced");
        }
    }
}

/// Writes a handler's numbers every second, and at once when its state changes.
pub(crate) async fn keep_reporting(registry: Registry, name: String, progress: Arc<Progress>) {
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = progress.turned.notified() => {}
        }
        let report = progress.report(claim::now());
        if report.state == State::Fenced {
            return;
        }
        if let Err(error) = registry.report(&name, &report).await {
            tracing::debug!(handler = name, %error, "status not written");
        }
    }
}
