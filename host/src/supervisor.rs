//! Looks after every deployed handler on this host. In: the deployments, watched, and the other hosts. Out: a keeper per handler, told of
//! each deployment and whether the handler is this host's, stopped on request. Never: decides what becomes of a deployment; that is its keeper's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::claim;
use crate::clock;
use crate::handler::Ended;
use crate::keeper::{Keeper, Wanted};
use crate::monitor::Heads;
use crate::placement::holdings::Holdings;
use crate::placement::lease::Lease;
use crate::placement::{self, Held, View, Word};
use crate::policy::Policy;
use crate::progress::{Progress, State};
use crate::registry::{self, Host, Registry};
use crate::sandbox::{Cache, Sandbox};
use crate::vitals::{Loop, Taken, Vitals};

/// How often the handlers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether a handler should be taken or handed over, if nothing changes that anybody tells.
const PLACE_EVERY: Duration = Duration::from_millis(200);

/// What `moves_per_minute` counts in.
const MINUTE: Duration = Duration::from_secs(60);

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
    /// As it announces itself, but for what it holds.
    me: Host,
    kept: HashMap<String, Kept>,
    vitals: Arc<Vitals>,
    holdings: Arc<Holdings>,
    moves: Moves,
}

/// An entry of the deployments: its revision, and when it was put, nanoseconds since 1970. A bucket that is made anew counts from 1 again.
type Told = (u64, i128);

/// A handler's task.
struct Kept {
    wanted: watch::Sender<Wanted>,
    told: Told,
    is_ours: watch::Sender<bool>,
    /// Since when nobody looks after it, as far as this host knows.
    free_since: Instant,
    /// This host or another looks after it.
    is_placed: bool,
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
    task: JoinHandle<Ended>,
}

/// Why a host stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to; the handlers named could not show everything that is decided, which the next start does.
    Stopped(Vec<String>),
    /// Another host of the same name began after it.
    Replaced,
}

/// Handlers that this host handed over to a better one lately.
struct Moves {
    per_minute: usize,
    lately: VecDeque<Instant>,
}

impl Moves {
    fn may_move(&mut self, now: Instant) -> bool {
        while self.lately.front().is_some_and(|moved| now.saturating_duration_since(*moved) >= MINUTE) {
            self.lately.pop_front();
        }
        let may = self.lately.len() < self.per_minute;
        if may {
            self.lately.push_back(now);
        }
        may
    }
}

/// How many handlers a host hands over within a minute because another host should have them.
pub const MOVES_PER_MINUTE: usize = 60;

impl Supervisor {
    /// A host of this name, which looks after these handlers, or all where none is named.
    ///
    /// # Errors
    /// When the registry or the WASM engine cannot be had.
    pub async fn new(
        jetstream: Context,
        name: String,
        cache: Cache,
        policy: Policy,
        only: Vec<String>,
    ) -> anyhow::Result<Self> {
        let registry = Registry::open(&jetstream).await?;
        let sandbox = Sandbox::new()?;
        let (policy, vitals, heads, holdings) = (Arc::new(policy), Arc::default(), Heads::default(), Arc::default());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let me =
            Host { name, handlers: only, life: claim::fresh_id(), since: clock::now(), version, ..Host::default() };
        let moves = Moves { per_minute: MOVES_PER_MINUTE, lately: VecDeque::new() };
        let kept = HashMap::new();
        Ok(Self { jetstream, registry, sandbox, cache, policy, heads, me, kept, vitals, holdings, moves })
    }

    /// Guests may hold so many bytes of memory together.
    #[must_use]
    pub fn holding_at_most(self, bytes: usize) -> Self {
        Self { sandbox: self.sandbox.holding_at_most(bytes), ..self }
    }

    /// Hands over so many handlers to better hosts within a minute at most.
    #[must_use]
    pub fn moving_at_most(self, per_minute: usize) -> Self {
        Self { moves: Moves { per_minute, ..self.moves }, ..self }
    }

    /// How this host is, while it runs.
    #[must_use]
    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(&self.vitals)
    }

    /// Runs until `stop` resolves or another host of this name takes its place.
    ///
    /// # Errors
    /// When the deployments cannot be watched.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<Outcome> {
        tokio::pin!(stop);
        let lease = Lease::start(&self.jetstream, &self.registry, self.me.clone(), &self.holdings, &self.vitals).await;
        let outcome = tokio::select! {
            biased;
            () = &mut stop => None,
            outcome = self.look_after_all(&lease) => Some(outcome),
        };
        lease.leave();
        let stopped = self.shut_down().await;
        lease.end().await;
        Ok(outcome.unwrap_or(stopped))
    }

    /// Follows the deployments and the other hosts until there is nothing left to do for this one.
    async fn look_after_all(&mut self, lease: &Lease) -> Outcome {
        self.warn_of_unknown().await;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut places = tokio::time::interval(PLACE_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        places.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
            // Beside all else: a server that does not answer must hold up no handler.
            let registry = self.registry.clone();
            let is_made_anew = registry.is_made_anew();
            tokio::pin!(is_made_anew);
            loop {
                tokio::select! {
                    entry = deployments.next() => match entry {
                        Some(Ok(entry)) => {
                            let name = entry.key.clone();
                            self.follow(entry, &lease.view()).await;
                            self.place(&name, &lease.view(), Instant::now());
                        }
                        Some(Err(error)) => tracing::warn!(%error, "deployments: trying again"),
                        None => break,
                    },
                    _ = looks.tick() => self.look_after(),
                    _ = places.tick() => self.place_all(lease),
                    () = lease.changed() => self.place_all(lease),
                    () = &mut is_made_anew => {
                        // A watch knows a bucket by its name, and waits for revisions that one made anew reaches some day.
                        tracing::warn!("the bucket of deployments was made anew; what it says counts from here on");
                        break;
                    }
                }
                if lease.is_replaced() {
                    return Outcome::Replaced;
                }
            }
        }
    }

    fn place_all(&mut self, lease: &Lease) {
        let (view, now) = (lease.view(), Instant::now());
        let names: Vec<String> = self.kept.keys().cloned().collect();
        for name in names {
            self.place(&name, &view, now);
        }
    }

    /// Takes a handler or hands it over, if that is due.
    fn place(&mut self, name: &str, view: &View, now: Instant) {
        let Some(kept) = self.kept.get_mut(name) else { return };
        let is_ours = *kept.is_ours.borrow();
        if is_ours != self.holdings.has(name) {
            // Its keeper is about to end it; or another host took it.
            if is_ours && self.holdings.lost_at(name).is_some() {
                kept.is_ours.send_replace(false);
            }
            return;
        }
        let is_placed = view.holder(name, now).is_some() || is_ours;
        if is_placed {
            kept.free_since = now;
        }
        if is_placed != kept.is_placed {
            kept.is_placed = is_placed;
            let taken = if is_placed { Taken::Kept(Arc::clone(&kept.progress)) } else { Taken::Unplaced };
            self.vitals.take(name, taken);
        }
        let held = if is_ours { Held::Here } else { Held::Free { since: kept.free_since } };
        match view.decide((&self.me, self.holdings.is_declined(name)), name, held, now) {
            Word::Stay => {}
            // Who took it from us has yet to say so.
            Word::Take if self.holdings.lost_at(name).is_some_and(|lost| now - lost < placement::LEASE) => {}
            Word::Take => {
                self.holdings.take(name);
                kept.is_ours.send_replace(true);
                kept.is_placed = true;
                self.vitals.take(name, Taken::Kept(Arc::clone(&kept.progress)));
            }
            Word::HandOver => {
                if self.moves.may_move(now) {
                    tracing::info!(handler = name, "handed over to a host that should have it");
                    kept.is_ours.send_replace(false);
                }
            }
        }
    }

    /// A handler that was asked for by name may be deployed later; a typing error is more likely.
    async fn warn_of_unknown(&self) {
        for name in &self.me.handlers {
            if matches!(self.registry.deployment(name).await, Ok(None)) {
                tracing::warn!(handler = name, "not deployed; see `millstream list`");
            }
        }
    }

    async fn follow(&mut self, entry: Entry, view: &View) {
        let name = entry.key;
        if !self.me.looks_after(&name) {
            return;
        }
        if entry.operation != Operation::Put {
            self.end(&name).await;
            return;
        }
        let told = (entry.revision, entry.created.unix_timestamp_nanos());
        match registry::parse(&name, &entry.value) {
            Ok(deployment) => self.want(name, Wanted { revision: entry.revision, deployment }, told, view),
            Err(error) => {
                tracing::error!(handler = name, %error, "deployment ignored");
                if self.kept.contains_key(&name) {
                    return;
                }
                match self.registry.earlier(&name, entry.revision, 0).await {
                    Ok(earlier) => match earlier.into_iter().next() {
                        Some((revision, deployment)) => self.want(name, Wanted { revision, deployment }, told, view),
                        None => self.vitals.take(&name, Taken::Unreadable),
                    },
                    Err(error) => {
                        tracing::error!(handler = name, %error, "what was deployed before is not known");
                        self.vitals.take(&name, Taken::Unreadable);
                    }
                }
            }
        }
    }

    /// Hands a deployment to the handler's keeper. A watch that began anew tells what we know.
    fn want(&mut self, name: String, wanted: Wanted, told: Told, view: &View) {
        if let Some(kept) = self.kept.get_mut(&name) {
            if kept.told != told {
                kept.told = told;
                kept.wanted.send_replace(wanted);
            }
            return;
        }
        let progress = Arc::new(Progress::new(&self.me.name, ""));
        let keeper = Keeper {
            jetstream: self.jetstream.clone(),
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            policy: Arc::clone(&self.policy),
            heads: self.heads.clone(),
            host: self.me.name.clone(),
            name: name.clone(),
            progress: Arc::clone(&progress),
            holdings: Arc::clone(&self.holdings),
        };
        let (wanted, follows) = watch::channel(wanted);
        // Decided before anything is said: who deploys waits for this host's first word.
        let now = Instant::now();
        let is_placed = view.decide((&self.me, false), &name, Held::Free { since: now }, now) == Word::Take;
        if is_placed {
            self.holdings.take(&name);
        }
        let (is_ours, placed) = watch::channel(is_placed);
        let (stop, stopped) = watch::channel(false);
        // At the highest level, so that each line of the handler has its name, whatever is left out.
        let span = tracing::error_span!("handler", handler = name);
        let task = tokio::spawn(keeper.run(follows, placed, stopped).instrument(span));
        let taken = if is_placed { Taken::Kept(Arc::clone(&progress)) } else { Taken::Unplaced };
        self.vitals.take(&name, taken);
        self.kept.insert(name, Kept { wanted, told, is_ours, free_since: now, is_placed, stop, progress, task });
    }

    /// Ends a handler that was removed, and what this host said of it: who removed it waits for that.
    async fn end(&mut self, name: &str) {
        self.vitals.leave(name);
        let Some(kept) = self.kept.remove(name) else { return };
        let _ = kept.stop.send(true);
        let _ = kept.task.await;
        let ran = kept.progress.state() != State::StandingBy;
        self.holdings.forget(name);
        tracing::info!(handler = name, "removed");
        if let Err(error) = self.registry.forget(name, &self.me.name, ran).await {
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

    fn look_after(&self) {
        self.vitals.beat(Loop::Deployments);
        for (name, _) in self.kept.iter().filter(|(_, kept)| kept.task.is_finished()) {
            self.vitals.take(name, Taken::Lost);
        }
    }
}
