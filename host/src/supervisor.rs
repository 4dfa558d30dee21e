//! Runs every deployed handler on this host. In: the deployments, watched. Out: a keeper per handler, told of each deployment,
//! stopped on request. Never: decides what becomes of a deployment; that is its keeper's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::handler::Ended;
use crate::keeper::{Keeper, Wanted};
use crate::monitor::Heads;
use crate::policy::Policy;
use crate::progress::{Progress, State};
use crate::registry::{self, Host, Registry};
use crate::sandbox::{Cache, Sandbox};
use crate::vitals::{Loop, Taken, Vitals};

/// How often the handlers are looked at, and the host says that it lives.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a host that shall stop waits for its handlers. What they leave is done at the next start.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// This host.
pub struct Supervisor {
    jetstream: Context,
    registry: Registry,
    sandbox: Sandbox,
    cache: Cache,
    policy: Arc<Policy>,
    heads: Heads,
    host: String,
    /// Only these handlers, or all where empty.
    only: Vec<String>,
    kept: HashMap<String, Kept>,
    vitals: Arc<Vitals>,
}

/// A handler's task.
struct Kept {
    wanted: watch::Sender<Wanted>,
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
    task: JoinHandle<Ended>,
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
    /// A host of this name, which looks after these handlers, or all where none is named.
    ///
    /// # Errors
    /// When the registry or the WASM engine cannot be had.
    pub async fn new(
        jetstream: Context,
        host: String,
        cache: Cache,
        policy: Policy,
        only: Vec<String>,
    ) -> anyhow::Result<Self> {
        let registry = Registry::open(&jetstream).await?;
        let sandbox = Sandbox::new()?;
        let (policy, vitals, heads) = (Arc::new(policy), Arc::default(), Heads::default());
        Ok(Self { jetstream, registry, sandbox, cache, policy, heads, host, only, kept: HashMap::new(), vitals })
    }

    /// How this host is, while it runs.
    #[must_use]
    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(&self.vitals)
    }

    /// Runs until `stop` resolves or another host has taken everything.
    ///
    /// # Errors
    /// When the deployments cannot be watched.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<Outcome> {
        tokio::pin!(stop);
        let announcing = tokio::spawn(keep_announcing(
            self.registry.clone(),
            Host { name: self.host.clone(), handlers: self.only.clone() },
            self.vitals(),
        ));
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
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.vitals.beat(Loop::Deployments);
            // A watch that ends (the server went away) is begun again: it tells everything anew.
            let mut deployments = match self.registry.handlers.watch_with_history(">").await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(%error, "deployments cannot be watched; trying again");
                    tokio::time::sleep(LOOK_EVERY).await;
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
                    _ = looks.tick() => if let Some(outcome) = self.look_after() { return outcome },
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
            self.end(&name).await;
            return;
        }
        match registry::parse(&name, &entry.value) {
            Ok(deployment) => self.want(name, Wanted { revision: entry.revision, deployment }),
            Err(error) => {
                tracing::error!(handler = name, %error, "deployment ignored");
                if !self.kept.contains_key(&name) {
                    self.vitals.take(&name, Taken::Unreadable);
                }
            }
        }
    }

    /// Hands a deployment to the handler's keeper. A watch that began anew tells what we know.
    fn want(&mut self, name: String, wanted: Wanted) {
        if let Some(kept) = self.kept.get(&name) {
            kept.wanted.send_if_modified(|old| {
                let is_new = old.revision != wanted.revision;
                if is_new {
                    *old = wanted;
                }
                is_new
            });
            return;
        }
        let progress = Arc::new(Progress::new(&self.host, ""));
        let keeper = Keeper {
            jetstream: self.jetstream.clone(),
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            policy: Arc::clone(&self.policy),
            heads: self.heads.clone(),
            host: self.host.clone(),
            name: name.clone(),
            progress: Arc::clone(&progress),
        };
        let (wanted, follows) = watch::channel(wanted);
        let (stop, stopped) = watch::channel(false);
        // At the highest level, so that each line of the handler has its name, whatever is left out.
        let span = tracing::error_span!("handler", handler = name);
        let task = tokio::spawn(keeper.run(follows, stopped).instrument(span));
        self.vitals.take(&name, Taken::Kept(Arc::clone(&progress)));
        self.kept.insert(name, Kept { wanted, stop, progress, task });
    }

    /// Ends a handler that was removed, and what this host said of it: who removed it waits for that.
    async fn end(&mut self, name: &str) {
        self.vitals.leave(name);
        let Some(kept) = self.kept.remove(name) else { return };
        let _ = kept.stop.send(true);
        let _ = kept.task.await;
        let ran = kept.progress.state() != State::Fenced;
        tracing::info!(handler = name, "removed");
        if let Err(error) = self.registry.forget(name, &self.host, ran).await {
            tracing::warn!(handler = name, %error, "its last state stays");
        }
    }

    async fn shut_down(&mut self) -> Outcome {
        // All are told before the first is waited for.
        for kept in self.kept.values() {
            let _ = kept.stop.send(true);
        }
        let deadline = tokio::time::Instant::now() + STOP_WITHIN;
        let mut unfinished = Vec::new();
        for (name, mut kept) in self.kept.drain() {
            match tokio::time::timeout_at(deadline, &mut kept.task).await {
                Ok(Ok(Ended::Interrupted(_)) | Err(_)) => unfinished.push(name),
                Ok(Ok(Ended::Stopped | Ended::Fenced(_) | Ended::Failing { .. })) => {}
                Err(_) => {
                    kept.task.abort();
                    unfinished.push(name);
                }
            }
        }
        unfinished.sort();
        Outcome::Stopped(unfinished)
    }

    /// Answers an outcome when there is nothing left to do for this host.
    fn look_after(&self) -> Option<Outcome> {
        self.vitals.beat(Loop::Deployments);
        for (name, _) in self.kept.iter().filter(|(_, kept)| kept.task.is_finished()) {
            self.vitals.take(name, Taken::Lost);
        }
        let fenced = self.kept.iter().filter(|(_, kept)| kept.progress.state() == State::Fenced);
        let fenced: Vec<String> = fenced.map(|(name, _)| name.clone()).collect();
        (!fenced.is_empty() && fenced.len() == self.kept.len()).then_some(Outcome::Fenced(fenced))
    }
}

/// Says every second that this host lives.
async fn keep_announcing(registry: Registry, host: Host, vitals: Arc<Vitals>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        vitals.beat(Loop::Announcing);
        if let Err(error) = registry.announce(&host).await {
            tracing::debug!(%error, "host not announced");
        }
    }
}
