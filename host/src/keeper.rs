//! Keeps one handler on this host at what its deployment says. In: deployments as they come. Out: a handler that runs, its state
//! and this host's verdicts in the registry. A new module is prepared beside the one that runs and takes over between two batches; one
//! that cannot be run is refused, and the old one never notices. Never: looks into a handler's events.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::clock;
use crate::generation::Generation;
use crate::generation::family::Family;
use crate::generation::maker::{Maker, Unprepared};
use crate::handler::{Ended, Handler};
use crate::journal::Makes;
use crate::monitor::{Heads, Monitor};
use crate::pipeline::told_to_stop;
use crate::placement::holdings::Holdings;
use crate::policy::Policy;
use crate::progress::{Progress, Refused, State};
use crate::registry::{Deployment, Desired, Outcome, Registry, Verdict};
use crate::sandbox::{Cache, Digest, Sandbox};
use crate::survey;
use crate::version::{Succession, Version};

mod going_back;
mod probation;

use probation::Probations;

/// How often a running handler's numbers go to the status bucket, and how long to wait before a module is fetched again.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long a verdict waits for a version to decide. The next deployment waits as long.
const TAKE_WITHIN: Duration = Duration::from_secs(3);

/// A deployment as it lies in its bucket.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) revision: u64,
    pub(crate) deployment: Deployment,
}

/// What a handler on this host needs.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) jetstream: Context,
    pub(crate) registry: Registry,
    pub(crate) sandbox: Sandbox,
    pub(crate) cache: Cache,
    pub(crate) policy: Arc<Policy>,
    pub(crate) heads: Heads,
    pub(crate) host: String,
    pub(crate) name: String,
    pub(crate) progress: Arc<Progress>,
    pub(crate) holdings: Arc<Holdings>,
}

/// A handler that runs.
struct Running {
    /// What it should run by now.
    version: Arc<Version>,
    wanted: Wanted,
    versions: watch::Sender<Arc<Version>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Ended>,
    /// What to go back to if the version fails early.
    probations: Probations,
    /// The live generation cannot go on; others do.
    failed: bool,
}

impl Running {
    /// A generation that was promoted brought its own module: that is what runs, and there is nothing to go back to.
    fn knows_its_heir(&mut self, wanted: &Wanted, progress: &Progress) {
        let runs = Arc::clone(&self.versions.borrow());
        if !Arc::ptr_eq(&runs, &self.version) {
            self.version = runs;
            self.wanted = wanted.clone();
            self.probations = Probations::default();
            progress.try_until(0);
        }
    }
}

/// What a deployment that was refused waits for, beside another deployment.
enum Lack {
    /// A module that is not in the store.
    Module(Digest),
    /// The ledger of the handler's generations.
    Ledger,
}

/// A version that was prepared while another host ran the handler.
struct Ready {
    /// Revision of its deployment.
    revision: u64,
    version: Version,
}

/// Ends what runs. Stays whole if nobody waits for the end.
async fn end(running: &mut Option<Running>) -> Ended {
    let Some(one) = running else { return Ended::Stopped };
    let _ = one.stop.send(true);
    let ended = (&mut one.task).await;
    *running = None;
    ended.unwrap_or(Ended::Stopped)
}

impl Keeper {
    /// Follows `wanted` until told to stop, and runs the handler while `is_ours` says so. Answers how the handler ended.
    pub(crate) async fn run(
        self,
        mut wanted: watch::Receiver<Wanted>,
        mut is_ours: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
    ) -> Ended {
        self.progress.set(State::StandingBy, "");
        let monitor = Monitor::new(&self.jetstream, &self.heads, &self.progress);
        let (registry, progress) = (self.registry.clone(), Arc::clone(&self.progress));
        let reporting = tokio::spawn(keep_reporting(registry, self.name.clone(), progress, monitor));
        let (mut running, mut ready) = (None, None);
        let ended = loop {
            let want = wanted.borrow_and_update().clone();
            let lacks = tokio::select! {
                biased;
                () = told_to_stop(&mut stop) => break None,
                lacks = self.follow(want, &mut is_ours, &mut running, &mut ready) => lacks,
            };
            match self.wait(&mut running, lacks, &mut wanted, &mut is_ours, &mut stop).await {
                Next::Follow => {}
                Next::Stop => break None,
                Next::Over(ended) => break Some(ended),
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None if running.is_none() && matches!(self.progress.state(), State::Starting | State::Retrying) => {
                Ended::Interrupted("told to stop before it was prepared".to_owned())
            }
            None => end(&mut running).await,
        };
        reporting.abort();
        let _ = reporting.await;
        // What stopped for a reason of its own goes on saying that one.
        if matches!(self.progress.state(), State::Starting | State::Retrying | State::Running) {
            self.progress.set(State::Stopped, "its host was told to stop");
            // Another host may speak for it as soon as it is let go of.
            let _ = tokio::time::timeout(REPORT_EVERY, self.last_word()).await;
        }
        self.holdings.let_go(&self.name);
        ended
    }

    /// Waits for something to follow, which what was lacking is too. A handler that ended by itself stays as it is until
    /// something else is wanted.
    async fn wait(
        &self,
        running: &mut Option<Running>,
        lacks: Option<Lack>,
        wanted: &mut watch::Receiver<Wanted>,
        is_ours: &mut watch::Receiver<bool>,
        stop: &mut watch::Receiver<bool>,
    ) -> Next {
        let comes = async {
            match lacks {
                Some(Lack::Module(digest)) => self.registry.module_comes(digest).await,
                Some(Lack::Ledger) => self.ledger_comes().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(comes);
        loop {
            let ends = async {
                match running.as_mut() {
                    Some(running) => (&mut running.task).await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                biased;
                () = told_to_stop(stop) => return Next::Stop,
                changed = wanted.changed() => return if changed.is_ok() { Next::Follow } else { Next::Stop },
                changed = is_ours.changed() => return if changed.is_ok() { Next::Follow } else { Next::Stop },
                () = &mut comes => return Next::Follow,
                ended = ends => ended,
            };
            let Some(mut over) = running.take() else { continue };
            match ended {
                Ok(Ended::Failing { reason, by_module }) => {
                    tracing::error!(handler = self.name, reason, "stopped");
                    *running = if by_module { self.go_back(&mut over, &reason).await } else { None };
                    if running.is_none() {
                        self.last_word().await;
                        *running = Some(self.without_live(over));
                    }
                }
                Ok(Ended::Fenced(reason)) => {
                    self.give_way(&reason);
                }
                Ok(ended @ (Ended::Stopped | Ended::Interrupted(_))) => return Next::Over(ended),
                Err(error) => {
                    let reason =
                        format!("the host's own task broke off, a defect of Millstream: {error}; it begins again");
                    tracing::error!(handler = self.name, reason);
                    self.progress.set(State::Retrying, reason);
                    tokio::time::sleep(REPORT_EVERY).await;
                    *running = Some(self.start(&over.wanted, over.version, Probations::default()));
                }
            }
        }
    }

    /// Another host has taken the handler.
    fn give_way(&self, reason: &str) {
        tracing::error!(handler = self.name, reason, "fenced");
        self.progress.set(State::StandingBy, reason);
        self.holdings.lose(&self.name);
    }

    /// Leaves the handler to other hosts, but is ready for it: what is deployed is prepared and judged. Answers what is lacking
    /// for it.
    async fn stand_by(
        &self,
        wanted: &Wanted,
        running: &mut Option<Running>,
        ready: &mut Option<Ready>,
    ) -> Option<Lack> {
        if running.is_some() {
            end(running).await;
        }
        if self.progress.state() != State::StandingBy {
            self.progress.set(State::StandingBy, "");
        }
        self.holdings.let_go(&self.name);
        if wanted.deployment.desired == Desired::Paused {
            self.judge(wanted, Outcome::Paused, String::new()).await;
            return None;
        }
        *ready = None;
        match self.prepared(wanted).await {
            Ok(version) => {
                *ready = Some(Ready { revision: wanted.revision, version });
                self.holdings.declines(&self.name, false);
                self.judge(wanted, Outcome::StandingBy, String::new()).await;
                None
            }
            Err(defect) => {
                self.holdings.declines(&self.name, true);
                self.judge(wanted, Outcome::Refused, format!("{defect:#}")).await;
                defect.lacks().map(Lack::Module)
            }
        }
    }

    /// Brings the handler to what is wanted, as far as it can be, and gives this host's verdict. Answers what is lacking for it.
    async fn follow(
        &self,
        wanted: Wanted,
        is_ours: &mut watch::Receiver<bool>,
        running: &mut Option<Running>,
        ready: &mut Option<Ready>,
    ) -> Option<Lack> {
        if !*is_ours.borrow_and_update() {
            return self.stand_by(&wanted, running, ready).await;
        }
        if self.progress.state() == State::StandingBy {
            self.recall().await;
            self.progress.set(State::Starting, "");
        }
        if wanted.deployment.desired == Desired::Paused {
            end(running).await;
            self.progress.set(State::Paused, "");
            self.judge(&wanted, Outcome::Paused, String::new()).await;
            return None;
        }
        if let Some(running) = running {
            running.knows_its_heir(&wanted, &self.progress);
        }
        if running.as_ref().is_some_and(|running| running.failed) {
            end(running).await;
        }
        let prepared = match ready.take().filter(|ready| ready.revision == wanted.revision) {
            Some(ready) => Ok(ready.version),
            None => self.prepared(&wanted).await,
        };
        match prepared {
            Ok(version) => {
                self.holdings.declines(&self.name, false);
                if running.is_none()
                    && let Some(reason) = self.lost_ledger().await
                {
                    self.refuse(&wanted, reason, false).await;
                    return Some(Lack::Ledger);
                }
                self.take(wanted, Arc::new(version), running).await;
                None
            }
            Err(defect) => {
                self.holdings.declines(&self.name, true);
                let reason = format!("{defect:#}");
                if running.is_none() {
                    *running = self.fall_back(&wanted, &reason).await;
                }
                self.refuse(&wanted, reason, running.is_some()).await;
                defect.lacks().map(Lack::Module)
            }
        }
    }

    /// Has a version take over, or refuses it.
    async fn take(&self, wanted: Wanted, version: Arc<Version>, running: &mut Option<Running>) {
        let succession = running.as_ref().map(|running| version.after(&running.version));
        match succession {
            Some(Succession::Never(reason)) => {
                let makes_others = running.as_ref().is_some_and(|running| running.version.makes() != version.makes());
                if !makes_others || !self.documents().await.contains(&version.makes()) {
                    return self.refuse(&wanted, reason, true).await;
                }
                end(running).await;
                self.give_way("fenced: another host promoted a generation with a module of its own");
            }
            Some(Succession::Same) => {
                let Some(running) = running else { return };
                let note = std::mem::replace(&mut running.wanted, wanted.clone()).deployment.note;
                running.version.runs_as(wanted.revision);
                self.progress.turn();
                // Our own word, that we went back: what we went back from stays told.
                if !note.is_empty() && note == wanted.deployment.note {
                    return self.judge(&wanted, Outcome::Running, String::new()).await;
                }
            }
            Some(Succession::Swap) => {
                let Some(running) = running else { return };
                running.probations = self.watched(running, &wanted, &version);
                self.progress.try_until(running.probations.until());
                running.version = Arc::clone(&version);
                running.wanted = wanted.clone();
                running.versions.send_replace(Arc::clone(&version));
            }
            Some(Succession::Reopen) => {
                let probations = running.as_ref().map(|old| self.watched(old, &wanted, &version)).unwrap_or_default();
                end(running).await;
                *running = Some(self.start(&wanted, Arc::clone(&version), probations));
            }
            None => {
                if let Some(reason) = self.defect_here(&version).await {
                    *running = self.fall_back(&wanted, &reason).await;
                    return self.refuse(&wanted, reason, running.is_some()).await;
                }
                *running = Some(self.start(&wanted, Arc::clone(&version), Probations::default()));
            }
        }
        self.progress.refused(None);
        let (outcome, reason) = self.taken(&wanted).await;
        self.judge(&wanted, outcome, reason).await;
    }

    /// What has become of a version after a while: it decides, or waits for the server, for a batch to end, for a claim.
    async fn taken(&self, wanted: &Wanted) -> (Outcome, String) {
        let digest = wanted.deployment.digest.to_string();
        let mut turns = self.progress.turns();
        let settled = async {
            loop {
                let report = self.progress.report(0);
                match report.state {
                    State::Running if report.revision == wanted.revision && report.digest == digest => {
                        return (Outcome::Running, String::new());
                    }
                    State::StandingBy => return (Outcome::StandingBy, String::new()),
                    State::Failing => return (Outcome::Refused, report.reason),
                    State::Starting | State::Retrying | State::Running | State::Paused | State::Stopped => {
                        let _ = turns.changed().await;
                    }
                }
            }
        };
        let waiting = |_| (Outcome::Waiting, self.progress.report(0).reason);
        tokio::time::timeout(TAKE_WITHIN, settled).await.unwrap_or_else(waiting)
    }

    /// Learns what was said of the handler last, before this host says anything.
    async fn recall(&self) {
        loop {
            match self.registry.status(&self.name).await {
                Ok(before) => return self.progress.recalls(&before.unwrap_or_default()),
                Err(error) => tracing::warn!(handler = self.name, %error, "trying again"),
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    /// What the documents are by now, whatever ran here: another host may have promoted a generation.
    async fn documents(&self) -> Vec<Makes> {
        loop {
            match survey::documents(&self.jetstream, &self.name).await {
                Ok(found) => return found,
                Err(error) => tracing::warn!(handler = self.name, %error, "trying again"),
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    /// Why nobody can tell which generation is live.
    async fn lost_ledger(&self) -> Option<String> {
        loop {
            match survey::lost_ledger(&self.jetstream, &self.name).await {
                Ok(lost) => return lost,
                Err(error) => tracing::warn!(handler = self.name, %error, "trying again"),
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    /// Resolves when somebody can.
    async fn ledger_comes(&self) {
        while self.lost_ledger().await.is_some() {
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    /// What a version that follows what runs has to show, and those before it.
    fn watched(&self, running: &Running, wanted: &Wanted, version: &Version) -> Probations {
        let mut probations = running.probations.clone();
        let (before, events) = (running.wanted.clone(), version.settings.probation_events);
        probations.follow(wanted.revision, before, self.progress.delivered(), events);
        probations
    }

    fn start(&self, wanted: &Wanted, version: Arc<Version>, probations: Probations) -> Running {
        self.progress.makes(version.kind(), version.description.state_version);
        self.progress.try_until(probations.until());
        self.progress.set(State::Starting, "");
        self.run_family(wanted.clone(), version, probations, false)
    }

    /// The generations beside a live one that cannot go on: one of them may take its place.
    fn without_live(&self, over: Running) -> Running {
        let version = Arc::clone(&over.versions.borrow());
        self.run_family(over.wanted, version, Probations::default(), true)
    }

    fn run_family(&self, wanted: Wanted, version: Arc<Version>, probations: Probations, failed: bool) -> Running {
        let (versions, follows) = watch::channel(Arc::clone(&version));
        let (stop, stopped) = watch::channel(false);
        let live = Handler {
            name: self.name.clone(),
            generation: Generation::first(&self.name),
            bound: None,
            host: self.host.clone(),
            versions: follows,
            progress: Arc::clone(&self.progress),
        };
        let family = Family::new(self.jetstream.clone(), self.maker(), live, versions.clone(), failed);
        let task = tokio::spawn(family.run(stopped).in_current_span());
        Running { version, wanted, versions, stop, task, probations, failed }
    }

    async fn refuse(&self, wanted: &Wanted, reason: String, runs: bool) {
        tracing::error!(handler = self.name, reason, "deployment refused");
        let digest = wanted.deployment.digest.to_string();
        self.progress.refused(Some(Refused { revision: wanted.revision, digest, reason: reason.clone() }));
        if !runs {
            self.progress.set(State::Failing, &reason);
        }
        self.judge(wanted, Outcome::Refused, reason).await;
        self.last_word().await;
    }

    /// Prepares the module, again and again while the server is away.
    async fn prepared(&self, wanted: &Wanted) -> Result<Version, Unprepared> {
        loop {
            match self.prepare(&wanted.deployment).await {
                Err(error) if error.is_passing() => {
                    let reason = error.to_string();
                    tracing::warn!(handler = self.name, reason, "the module cannot be fetched; trying again");
                    if self.progress.state() == State::Starting {
                        self.progress.set(State::Retrying, reason);
                    }
                }
                other => return other.inspect(|version| version.runs_as(wanted.revision)),
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    async fn prepare(&self, deployment: &Deployment) -> Result<Version, Unprepared> {
        self.maker().version(&self.name, deployment).await
    }

    fn maker(&self) -> Maker {
        Maker {
            registry: self.registry.clone(),
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            policy: Arc::clone(&self.policy),
            heads: self.heads.clone(),
            host: self.host.clone(),
        }
    }

    async fn judge(&self, wanted: &Wanted, outcome: Outcome, reason: String) {
        let pause_microseconds = match outcome {
            Outcome::Running => self.progress.report(0).pause_microseconds,
            Outcome::Waiting | Outcome::Paused | Outcome::StandingBy | Outcome::Refused => None,
        };
        let (revision, digest) = (wanted.revision, wanted.deployment.digest);
        if outcome == Outcome::Running {
            self.note(revision).await;
        }
        let host = self.host.clone();
        self.tell(&Verdict { host, revision, digest, outcome, reason, pause_microseconds }).await;
    }

    /// Has it remembered that this deployment ran.
    async fn note(&self, revision: u64) {
        if let Err(error) = self.registry.ran(&self.name, revision).await {
            tracing::warn!(handler = self.name, %error, "a rollback will not know that this deployment ran");
        }
    }

    async fn tell(&self, verdict: &Verdict) {
        if let Err(error) = self.registry.judge(&self.name, verdict).await {
            tracing::warn!(handler = self.name, %error, "nobody hears this host's verdict");
        }
    }

    /// The last word of a handler that stopped stays until a new deployment; a host that stands by has none.
    async fn last_word(&self) {
        if self.progress.state() != State::StandingBy {
            let _ = self.registry.report(&self.name, &self.progress.report(clock::now())).await;
        }
    }
}

/// What a keeper does next.
enum Next {
    Follow,
    Stop,
    Over(Ended),
}

/// Samples a handler and writes its numbers every second, and writes them at once when anything but numbers changes.
pub(crate) async fn keep_reporting(registry: Registry, name: String, progress: Arc<Progress>, mut monitor: Monitor) {
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The handlers of a host begin together; from here on they take turns within the second.
    ticks.reset_after(phase(&name));
    let mut turns = progress.turns();
    turns.mark_changed();
    let mut noted = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => monitor.look().await,
            _ = turns.changed() => {}
        }
        let report = progress.report(clock::now());
        // Another host speaks for it.
        if report.state == State::StandingBy {
            continue;
        }
        if let Err(error) = registry.report(&name, &report).await {
            tracing::debug!(handler = name, %error, "status not written");
        }
        // One that took long to begin was not told of as running when it was judged.
        if report.state == State::Running && ![0, noted].contains(&report.revision) {
            match registry.ran(&name, report.revision).await {
                Ok(()) => noted = report.revision,
                Err(error) => tracing::debug!(handler = name, %error, "not noted that it ran"),
            }
        }
    }
}

/// A moment within the second that is this handler's own.
fn phase(name: &str) -> Duration {
    let sum = name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    REPORT_EVERY * (sum % 1000) / 1000
}
