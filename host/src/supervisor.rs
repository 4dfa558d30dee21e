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
use crate::handler::{Ended, Handler};
use crate::pipeline::told_to_stop;
use crate::progress::{Progress, State};
use crate::registry::{self, Deployment, Desired, Registry};
use crate::sandbox::wire::Kind;
use crate::sandbox::{Cache, Guest, Instantiate, Module, Sandbox};

/// How often a running handler's numbers go to the status bucket.
const REPORT_EVERY: Duration = Duration::from_secs(1);

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
    deployment: Option<Deployment>,
    stop: watch::Sender<bool>,
    /// None once its end was looked at: a task's outcome can be had only once.
    task: Option<JoinHandle<Ended>>,
}

/// Why a host stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to.
    Stopped,
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
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // A watch that ends (the server went away) is begun again: it tells everything anew.
            let mut deployments = match self.registry.handlers.watch_with_history(">").await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(%error, "deployments cannot be watched; trying again");
                    tokio::select! {
                        () = &mut stop => return Ok(self.shut_down().await),
                        () = tokio::time::sleep(REPORT_EVERY) => continue,
                    }
                }
            };
            loop {
                tokio::select! {
                    () = &mut stop => return Ok(self.shut_down().await),
                    entry = deployments.next() => match entry {
                        Some(Ok(entry)) => self.follow(entry).await,
                        Some(Err(error)) => tracing::warn!(%error, "deployments: trying again"),
                        None => break,
                    },
                    _ = reports.tick() => {
                        if let Some(outcome) = self.look_after().await {
                            return Ok(outcome);
                        }
                        if let Err(error) = self.registry.announce(&self.host).await {
                            tracing::debug!(%error, "host not announced");
                        }
                    }
                }
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
                // The same deployment again is how a person says that what made the handler fail is mended.
                let same = self.running.get(&name).is_some_and(|running| {
                    running.deployment.as_ref() == Some(&deployment)
                        && running.task.as_ref().is_some_and(|task| !task.is_finished())
                });
                if !same {
                    self.stop(&name).await;
                    self.start(name, deployment);
                }
            }
            Err(error) => tracing::error!(handler = name, %error, "deployment ignored"),
        }
    }

    fn start(&mut self, name: String, deployment: Deployment) {
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::new(Progress::new(&self.host, &deployment.digest.to_string()));
        let life = Life {
            jetstream: self.jetstream.clone(),
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            host: self.host.clone(),
            name: name.clone(),
            progress,
        };
        let task = tokio::spawn(life.run(deployment.clone(), stopped));
        self.running.insert(name, Running { deployment: Some(deployment), stop, task: Some(task) });
    }

    async fn stop(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            let _ = running.stop.send(true);
            if let Some(task) = running.task {
                let _ = task.await;
            }
        }
    }

    async fn shut_down(&mut self) -> Outcome {
        for running in self.running.values() {
            let _ = running.stop.send(true);
        }
        for task in self.running.drain().filter_map(|(_, running)| running.task) {
            let _ = task.await;
        }
        Outcome::Stopped
    }

    /// Looks after ended tasks. Answers an outcome when there is nothing left to do for this host.
    async fn look_after(&mut self) -> Option<Outcome> {
        let mut fenced = Vec::new();
        for (name, running) in &mut self.running {
            if let Some(task) = running.task.take_if(|task| task.is_finished()) {
                match task.await {
                    Ok(Ended::Fenced(reason)) => {
                        tracing::error!(handler = name, reason, "fenced");
                        running.deployment = None;
                    }
                    Ok(Ended::Stopped | Ended::Failing(_)) => {}
                    Err(error) => tracing::error!(handler = name, %error, "its task ended by itself"),
                }
            }
            if running.deployment.is_none() {
                fenced.push(name.clone());
            }
        }
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
        let reporting = tokio::spawn(keep_reporting(self.registry.clone(), self.name.clone(), Arc::clone(&self.progress)));
        let ended = match deployment.desired {
            Desired::Paused => {
                self.progress.set(State::Paused, "");
                told_to_stop(&mut stop).await;
                Ended::Stopped
            }
            Desired::Running => match self.prepare(&deployment).await {
                Ok(handler) => handler.run(self.jetstream.clone(), stop.clone()).await,
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

    async fn prepare(&self, deployment: &Deployment) -> anyhow::Result<Handler> {
        let bytes = self.registry.module(deployment.digest).await?;
        let (sandbox, cache, limits) = (self.sandbox.clone(), self.cache.clone(), deployment.settings.limits.clone());
        let module = tokio::task::spawn_blocking(move || Module::prepare(&sandbox, &cache, &limits, &bytes)).await??;
        let description = module.instantiate(&self.name)?.describe()?;
        anyhow::ensure!(description.kind == Kind::Projection, "sagas are not supported by this version");
        let name = self.name.clone();
        let instantiate: Instantiate =
            Arc::new(move || module.instantiate(&name).map(|instance| Box::new(instance) as Box<dyn Guest>));
        Ok(Handler {
            name: self.name.clone(),
            host: self.host.clone(),
            digest: deployment.digest,
            subjects: description.subjects,
            settings: deployment.settings.clone(),
            instantiate,
            progress: Arc::clone(&self.progress),
        })
    }
}

/// Writes a handler's numbers every second for as long as it runs.
async fn keep_reporting(registry: Registry, name: String, progress: Arc<Progress>) {
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let report = progress.report(claim::now());
        if report.state == State::Fenced {
            return;
        }
        if let Err(error) = registry.report(&name, &report).await {
            tracing::debug!(handler = name, %error, "status not written");
        }
    }
}
