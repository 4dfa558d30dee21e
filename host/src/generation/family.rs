//! All generations of one handler on this host: the live one and its shadows, a task each. In: the ledger, watched. Out: tasks
//! started, stopped, cleared away; promotions driven. Never: runs a generation in two tasks, or promotes by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::Generation;
use super::ledger::{self, Ledger, Ledgers, Promotion, Shadow, Wanted};
use super::maker::Maker;
use crate::crash;
use crate::handler::{Ended, Handler};
use crate::keeper::keep_reporting;
use crate::monitor::Monitor;
use crate::names;
use crate::pipeline::told_to_stop;
use crate::progress::{Progress, State};
use crate::promotion::{self, Promoting};
use crate::rebuild;
use crate::version::Version;

/// Between two tries at what the server did not answer.
const WAIT: Duration = Duration::from_millis(500);

/// How long the live generation may take to decide what a shadow has decided, and how often that is looked at.
const ALIGN_WITHIN: Duration = Duration::from_secs(30);
const ALIGN_EVERY: Duration = Duration::from_millis(2);

/// The generations of a handler on this host.
pub(crate) struct Family {
    pub(crate) jetstream: Context,
    pub(crate) maker: Maker,
    /// The live generation, as it runs or will run again.
    pub(crate) live: Handler,
    /// Which version is live, for whoever keeps the handler.
    versions: watch::Sender<Arc<Version>>,
    live_task: Option<Task>,
    /// The live generation cannot go on.
    failed: bool,
    /// The generation that was live when this was looked at last, which the version belongs to.
    known: Option<u32>,
    shadows: HashMap<u32, Task>,
}

/// A generation that runs; ends with its owner.
struct Task {
    stop: watch::Sender<bool>,
    /// None once it has ended by itself.
    task: Option<JoinHandle<Ended>>,
    reporting: Option<JoinHandle<()>>,
}

impl Task {
    /// Ends it and waits until it has.
    async fn end(mut self) -> Ended {
        let _ = self.stop.send(true);
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|error| Ended::Interrupted(error.to_string())),
            None => Ended::Stopped,
        }
    }

    /// Resolves when it ends by itself; never once that is known.
    async fn ended(&mut self) -> Ended {
        let ended = match &mut self.task {
            Some(task) => task.await.unwrap_or_else(|error| Ended::Interrupted(error.to_string())),
            None => std::future::pending().await,
        };
        self.task = None;
        ended
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(reporting) = &self.reporting {
            reporting.abort();
        }
    }
}

impl Family {
    /// A handler whose module is prepared; `failed` where its live generation cannot go on.
    pub(crate) fn new(
        jetstream: Context,
        maker: Maker,
        live: Handler,
        versions: watch::Sender<Arc<Version>>,
        failed: bool,
    ) -> Self {
        Self { jetstream, maker, live, versions, live_task: None, failed, known: None, shadows: HashMap::new() }
    }

    /// Runs what the ledger wants until told to stop, or until another host has taken the live generation.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Ended {
        let changed = Arc::new(Notify::new());
        let mut stopping = stop.clone();
        let mut watching: Option<Watching> = None;
        loop {
            let followed = async {
                let ledgers = match Ledgers::open(&self.jetstream).await {
                    Ok(ledgers) => ledgers,
                    Err(error) => {
                        // Without the bucket there is no other generation, and the live one need not wait for it.
                        let live = ledger::live(&self.jetstream, &self.live.name).await?;
                        self.run_live(live);
                        return Err(error.into());
                    }
                };
                // Watched before it is read, so that no change is missed.
                watching.get_or_insert_with(|| Watching::start(&ledgers, &self.live.name, &changed));
                let (ledger, _) = ledgers.find(&self.live.name).await?;
                if ledger.is_none() && (self.known.is_some_and(|known| known > 1) || !self.shadows.is_empty()) {
                    self.tell_lost();
                    return Ok(());
                }
                let ledger = ledger.unwrap_or_default();
                self.is_current(&ledger).await?;
                self.follow(&ledgers, &ledger, &stop).await
            };
            // What a stop leaves half done, the next start takes up, as after a crash.
            let followed = tokio::select! {
                biased;
                () = told_to_stop(&mut stopping) => Ok(()),
                followed = followed => followed,
            };
            let again = match followed {
                Ok(()) => None,
                Err(promotion::Error::Stopped) => None,
                Err(promotion::Error::TakenBack) => Some(Duration::ZERO),
                Err(error @ promotion::Error::Elsewhere(_)) => {
                    self.end().await;
                    return Ended::Fenced(error.to_string());
                }
                Err(error) => {
                    tracing::warn!(handler = self.live.name, %error, "generations: trying again");
                    Some(WAIT)
                }
            };
            tokio::select! {
                biased;
                () = told_to_stop(&mut stop) => return self.end().await,
                ended = ended(&mut self.live_task) => {
                    self.end().await;
                    return ended;
                }
                number = fenced(&mut self.shadows), if self.live_task.is_some() => {
                    tracing::warn!(handler = self.live.name, generation = number, "another host had it; it begins again");
                    self.shadows.remove(&number);
                    // Hosts that overlap take turns at this pace until the live generation is one's alone.
                    let _ = tokio::time::timeout(WAIT, told_to_stop(&mut stop)).await;
                }
                // What we say of our trouble ourselves is no reason to hurry.
                () = changed.notified(), if again.is_none() => {}
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }

    /// The ledger was removed by hand: what runs goes on, and no other generation begins.
    fn tell_lost(&self) {
        let (handler, live) = (&self.live.name, self.known.unwrap_or(1));
        tracing::error!(
            handler,
            "its entry in bucket {} is gone; generation {live} goes on, but no host can begin it again; hint: put it back, `nats kv \
             history {0} {handler}` may still show it",
            names::GENERATIONS
        );
    }

    /// Whether the version that runs is the live generation's: another host may have promoted one with a module of its own while this
    /// one stood still, or since it read the deployment.
    async fn is_current(&mut self, ledger: &Ledger) -> Result<(), promotion::Error> {
        let promoted = ledger.ended.as_ref().filter(|ending| ending.reason.is_empty());
        let is_current = match (self.known, promoted) {
            (Some(known), _) => known == ledger.live,
            (None, None) => true,
            (None, Some(ending)) => {
                let runs = self.live.version().revision();
                runs == 0
                    || runs >= ending.revision
                    || !ending.counts_in(self.maker.registry.made_at().await.map_err(anyhow::Error::from)?)
            }
        };
        self.known = Some(ledger.live);
        if is_current { Ok(()) } else { Err(promotion::Error::Elsewhere(ledger.live)) }
    }

    /// Starts and stops tasks as the ledger wants.
    async fn follow(
        &mut self,
        ledgers: &Ledgers,
        ledger: &Ledger,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), promotion::Error> {
        if let Some(promotion) = &ledger.promotion {
            return self.promote(ledgers, ledger, promotion, stop).await;
        }
        self.run_live(ledger.live);
        let gone: Vec<u32> = self.shadows.keys().copied().filter(|number| !is_wanted(ledger.shadow(*number))).collect();
        for number in gone {
            self.end_shadow(number).await;
        }
        for shadow in &ledger.shadows {
            match shadow.wanted {
                Wanted::Building | Wanted::Kept => self.start_shadow(shadow),
                Wanted::Abandoned => {
                    let generation = Generation::shadow(&self.live.name, shadow.number);
                    if let Err(error) = rebuild::clear_away(&self.jetstream, &self.maker.registry, &generation).await {
                        tracing::warn!(handler = self.live.name, generation = shadow.number, %error, "not removed yet");
                        continue;
                    }
                    ledgers
                        .change(&self.live.name, |ledger| {
                            ledger.forget(shadow.number);
                            Ok(())
                        })
                        .await?;
                }
            }
        }
        Ok(())
    }

    fn run_live(&mut self, number: u32) {
        if self.live_task.is_none() && !self.failed {
            self.live.generation = Generation::live(&self.live.name, number);
            self.live_task = Some(self.start(self.live.clone()));
        }
    }

    /// Drives a promotion to one end or the other; the tasks of both generations are ended then.
    async fn promote(
        &mut self,
        ledgers: &Ledgers,
        ledger: &Ledger,
        promotion: &Promotion,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), promotion::Error> {
        let driven = async {
            let mut promoting = self.begin_promotion(ledgers, ledger, promotion).await?;
            self.stop_both(&promoting, promotion).await?;
            promoting.drive(stop).await
        };
        let error = match driven.await {
            Ok(heir) => {
                self.known = Some(heir.number);
                (self.live.generation, self.failed) = (heir, false);
                return Ok(());
            }
            Err(error) => error,
        };
        let ended = match error {
            promotion::Error::GiveUp(reason) => {
                promotion::give_up(&self.jetstream, ledgers, &self.live, promotion, &reason).await
            }
            error => Err(error),
        };
        match &ended {
            Ok(()) | Err(promotion::Error::TakenBack) => self.leave_copy(ledgers, promotion).await,
            Err(promotion::Error::Stopped) => {}
            Err(error) => self.tell_trouble(ledgers, promotion, &error.to_string()).await,
        }
        ended
    }

    /// What was copied for a promotion that came to nothing; what cannot be removed is overwritten by the next.
    async fn leave_copy(&self, ledgers: &Ledgers, promotion: &Promotion) {
        let copy = Generation::shadow(&self.live.name, promotion.from);
        let left = async {
            let (ledger, _) = ledgers.read(&self.live.name).await?;
            if ledger.promotion.is_none() && ledger.live == promotion.from {
                rebuild::leave(&self.jetstream, &copy, &[]).await?;
            }
            anyhow::Ok(())
        };
        if let Err(error) = left.await {
            tracing::warn!(handler = self.live.name, %error, "what was copied could not be removed");
        }
    }

    /// Says why a promotion does not get on: in the ledger, and where nothing runs meanwhile, of the handler as well.
    async fn tell_trouble(&self, ledgers: &Ledgers, promotion: &Promotion, reason: &str) {
        let troubled = |ledger: &mut Ledger| {
            ledger.troubled(promotion.id, reason);
            Ok(())
        };
        if let Err(error) = ledgers.change(&self.live.name, troubled).await {
            tracing::debug!(handler = self.live.name, %error, "nobody hears why the promotion does not get on");
        }
        if self.live_task.is_none() && !self.failed {
            let told = format!("generation {} takes over: {reason}", promotion.to);
            self.live.progress.set(State::Retrying, told);
        }
    }

    async fn begin_promotion(
        &mut self,
        ledgers: &Ledgers,
        ledger: &Ledger,
        promotion: &Promotion,
    ) -> Result<Promoting, promotion::Error> {
        let gone = || promotion::Error::GiveUp(format!("generation {} is gone", promotion.to));
        let shadow = Shadow { throttle: 0, ..ledger.shadow(promotion.to).ok_or_else(gone)?.clone() };
        let generation = Generation::shadow(&self.live.name, promotion.to);
        let deployment = rebuild::deployment(&self.live.version().settings, &shadow);
        let version = self.maker.version(&self.live.name, &deployment).await;
        let version = version.map_err(|error| match error.is_passing() {
            true => promotion::Error::Other(error.into()),
            false => promotion::Error::GiveUp(error.to_string()),
        })?;
        let (follower, versions) = watch::channel(Arc::new(version));
        let progress = Arc::new(Progress::new(&self.maker.host, &shadow.digest.to_string()));
        let after = Handler { generation, versions, progress, ..self.live.clone() };
        let before = Handler { generation: Generation::live(&self.live.name, promotion.from), ..self.live.clone() };
        let mut promoting =
            Promoting::open(&self.jetstream, &self.maker.registry, ledgers, ledger, [before, after]).await?;
        promoting.follow_with(follower, self.versions.clone());
        if promoting.is_new().await? {
            self.run_live(promotion.from);
            promoting.prepare().await?;
        }
        Ok(promoting)
    }

    /// Stops the shadow where it stands, and the live generation once it has decided as much.
    async fn stop_both(&mut self, promoting: &Promoting, promotion: &Promotion) -> Result<(), promotion::Error> {
        self.end_shadow(promotion.to).await;
        if promoting.is_new().await? && !promoting.may_stop_anywhere() && !self.failed {
            let goal = promoting.goal().await?;
            let aligned = async {
                while !goal.is_passed_by(&self.live.progress.positions()) {
                    tokio::time::sleep(ALIGN_EVERY).await;
                }
            };
            if tokio::time::timeout(ALIGN_WITHIN, aligned).await.is_err() {
                let reason = format!(
                    "generation {} has not decided within {ALIGN_WITHIN:?} what generation {} has",
                    promotion.from, promotion.to
                );
                return Err(promotion::Error::GiveUp(reason));
            }
        }
        crash::point("aligned");
        if let Some(live) = self.live_task.take() {
            live.end().await;
        }
        Ok(())
    }

    fn start(&self, handler: Handler) -> Task {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(handler.run(self.jetstream.clone(), stopped).in_current_span());
        Task { stop, task: Some(task), reporting: None }
    }

    fn start_shadow(&mut self, shadow: &Shadow) {
        if self.shadows.contains_key(&shadow.number) {
            return;
        }
        let progress = Arc::new(Progress::new(&self.maker.host, &shadow.digest.to_string()));
        let key = rebuild::status_key(&self.live.name, shadow.number);
        let monitor = Monitor::new(&self.jetstream, &self.maker.heads, &progress);
        let reporting = keep_reporting(self.maker.registry.clone(), key, Arc::clone(&progress), monitor);
        let reporting = tokio::spawn(reporting);
        let (stop, stopped) = watch::channel(false);
        let life = ShadowLife {
            jetstream: self.jetstream.clone(),
            maker: self.maker.clone(),
            generation: Generation::shadow(&self.live.name, shadow.number),
            shadow: shadow.clone(),
            live: self.live.clone(),
            progress,
        };
        let span = tracing::error_span!("shadow", generation = shadow.number);
        let task = tokio::spawn(life.run(stopped).instrument(span));
        self.shadows.insert(shadow.number, Task { stop, task: Some(task), reporting: Some(reporting) });
    }

    async fn end_shadow(&mut self, number: u32) {
        if let Some(task) = self.shadows.remove(&number) {
            task.end().await;
        }
    }

    /// Ends all tasks; all are told before the first is waited for.
    async fn end(&mut self) -> Ended {
        for task in self.live_task.iter().chain(self.shadows.values()) {
            let _ = task.stop.send(true);
        }
        let ended = match self.live_task.take() {
            Some(task) => task.end().await,
            None => Ended::Stopped,
        };
        for (_, task) in self.shadows.drain() {
            task.end().await;
        }
        ended
    }
}

fn is_wanted(shadow: Option<&Shadow>) -> bool {
    shadow.is_some_and(|shadow| shadow.wanted != Wanted::Abandoned)
}

async fn ended(task: &mut Option<Task>) -> Ended {
    match task {
        Some(task) => task.ended().await,
        None => std::future::pending().await,
    }
}

/// Resolves with a shadow that another host has fenced. One that ended otherwise stays so.
async fn fenced(shadows: &mut HashMap<u32, Task>) -> u32 {
    let mut ends: FuturesUnordered<_> =
        shadows.iter_mut().map(|(number, task)| async move { (*number, task.ended().await) }).collect();
    while let Some((number, ended)) = ends.next().await {
        if let Ended::Fenced(_) = ended {
            return number;
        }
    }
    std::future::pending().await
}

/// What one shadow's task needs.
struct ShadowLife {
    jetstream: Context,
    maker: Maker,
    generation: Generation,
    shadow: Shadow,
    live: Handler,
    progress: Arc<Progress>,
}

impl ShadowLife {
    async fn run(self, mut stop: watch::Receiver<bool>) -> Ended {
        loop {
            let deployment = rebuild::deployment(&self.live.version().settings, &self.shadow);
            let error = match self.maker.version(&self.live.name, &deployment).await {
                Ok(version) => {
                    // Its other end stays here: a shadow runs one version.
                    let (_versions, versions) = watch::channel(Arc::new(version));
                    let (generation, progress) = (self.generation, self.progress);
                    let handler = Handler { generation, versions, progress, ..self.live };
                    return handler.run(self.jetstream, stop).await;
                }
                Err(error) => error,
            };
            let reason = error.to_string();
            if !error.is_passing() {
                self.progress.set(State::Failing, &reason);
                return Ended::Failing { reason, by_module: true };
            }
            self.progress.set(State::Retrying, &reason);
            if tokio::time::timeout(WAIT, told_to_stop(&mut stop)).await.is_ok() {
                return Ended::Stopped;
            }
        }
    }
}

/// Tells of changes in a ledger while it lives.
struct Watching(JoinHandle<()>);

impl Watching {
    fn start(ledgers: &Ledgers, handler: &str, changed: &Arc<Notify>) -> Self {
        let (store, handler, changed) = (ledgers.store.clone(), handler.to_owned(), Arc::clone(changed));
        Self(tokio::spawn(async move {
            loop {
                // A watch that ends (the server went away) is begun again, and something may have changed meanwhile.
                match store.watch_with_history(&handler).await {
                    Ok(mut entries) => {
                        while let Some(entry) = entries.next().await {
                            match entry {
                                Ok(_) => changed.notify_one(),
                                Err(error) => tracing::debug!(handler, %error, "generations: the watch stumbled"),
                            }
                        }
                    }
                    Err(error) => tracing::warn!(handler, %error, "generations cannot be watched; trying again"),
                }
                tokio::time::sleep(WAIT).await;
                changed.notify_one();
            }
        }))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}
