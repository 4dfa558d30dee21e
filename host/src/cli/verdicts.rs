//! What the hosts make of a deployment, waited for and told. In: a deployment's revision. Out: a verdict of each live host that
//! looks after the handler, or a fault that says which one refuses and why. Never: writes.

use std::time::Duration;

use tokio::time::Instant;

use super::underway::{self, Nobody};
use super::{Fault, reasons};
use crate::hint;
use crate::lag::FAILING;
use crate::progress::{Report, State};
use crate::registry::{HOST_TTL, Outcome, Registry, Verdict};

/// How long hosts have to prepare a module and to take it over.
const WAIT: Duration = Duration::from_secs(15);

/// How long a version that was taken over is watched: one that cannot take the events that wait for it goes back at once.
const WATCH: Duration = Duration::from_millis(500);

/// How long a handler has to go back to what ran before, before it is said that nothing runs.
const SETTLE: Duration = Duration::from_secs(2);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Hosts announce themselves every second: one that did not for so long has ended, or is in trouble.
const LATE: Duration = Duration::from_secs(4);

/// What became of a deployment.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    pub(super) hosts: Vec<Verdict>,
    /// Hosts that did not say anything in time, with the seconds since they were heard of, where that is long.
    pub(super) silent: Vec<(String, Option<u64>)>,
    /// Why nobody was asked, where no live host looks after the handler.
    nobody: Option<Nobody>,
}

/// What a host says, waited for.
enum Said {
    Verdict(Verdict),
    Nothing,
    /// It does not even say that it lives; for how long.
    Gone(Duration),
}

/// Waits until every live host has said what it makes of this revision.
pub(super) async fn wait(registry: &Registry, handler: &str, revision: u64) -> Result<Verdicts, Fault> {
    let hosts = registry.live_hosts().await?;
    let deadline = Instant::now() + WAIT;
    let mut verdicts = Verdicts { nobody: underway::nobody_of(&hosts, handler), ..Verdicts::default() };
    for host in hosts.into_iter().filter(|host| host.looks_after(handler)) {
        match verdict(registry, handler, &host.name, revision, deadline).await? {
            Said::Verdict(verdict) => verdicts.hosts.push(verdict),
            Said::Nothing => verdicts.silent.push((host.name, None)),
            Said::Gone(since) => verdicts.silent.push((host.name, Some(since.as_secs()))),
        }
    }
    let stands_by = |verdict: &Verdict| verdict.outcome == Outcome::StandingBy;
    if !verdicts.hosts.is_empty() && verdicts.hosts.iter().all(stands_by) {
        one_runs(registry, handler, revision, &mut verdicts.hosts, deadline).await?;
    }
    if let Some(refused) = verdicts.hosts.iter().find(|verdict| verdict.outcome == Outcome::Refused) {
        return Err(refusal(registry, handler, revision, &refused.host, &refused.reason).await);
    }
    if verdicts.hosts.iter().any(|verdict| verdict.outcome == Outcome::Running) {
        went_back(registry, handler, revision).await?;
    }
    Ok(verdicts)
}

/// Where all stand by, the handler is on its way from one to another: waits until one of them runs it, or refuses it after all.
async fn one_runs(
    registry: &Registry,
    handler: &str,
    revision: u64,
    verdicts: &mut [Verdict],
    deadline: Instant,
) -> Result<(), Fault> {
    while Instant::now() < deadline {
        for told in verdicts.iter_mut() {
            let said = registry.verdict(handler, &told.host).await?.filter(|said| said.revision >= revision);
            if let Some(said) = said.filter(|said| said.outcome != Outcome::StandingBy) {
                *told = said;
                return Ok(());
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn verdict(
    registry: &Registry,
    handler: &str,
    host: &str,
    revision: u64,
    deadline: Instant,
) -> Result<Said, Fault> {
    // By our own clock: the host's may differ.
    let (mut heard, mut at) = (registry.announced(host).await?, Instant::now());
    loop {
        let said = registry.verdict(handler, host).await?;
        if let Some(verdict) = said.filter(|verdict| verdict.revision >= revision) {
            return Ok(Said::Verdict(verdict));
        }
        let hears = registry.announced(host).await?;
        if hears.is_none() {
            return Ok(Said::Gone(HOST_TTL));
        }
        if hears != heard {
            (heard, at) = (hears, Instant::now());
        }
        if at.elapsed() >= LATE {
            return Ok(Said::Gone(at.elapsed()));
        }
        if Instant::now() > deadline {
            return Ok(Said::Nothing);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Fails if the host has already given up what it took over, or stopped at an event.
async fn went_back(registry: &Registry, handler: &str, revision: u64) -> Result<(), Fault> {
    let deadline = Instant::now() + WATCH;
    while Instant::now() < deadline {
        let report = registry.status(handler).await?.unwrap_or_default();
        if let Some(refused) = report.refused.filter(|refused| refused.revision == revision) {
            return Err(refusal(registry, handler, revision, &report.host, &refused.reason).await);
        }
        if report.state == State::Failing && report.revision == revision {
            return Err(refusal(registry, handler, revision, &report.host, &report.reason).await);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn refusal(registry: &Registry, handler: &str, revision: u64, host: &str, reason: &str) -> Fault {
    let report = settled(registry, handler).await;
    let (runs, goes_on) = match report.state {
        State::Running if report.revision == revision => (format!("host {} runs it", report.host), true),
        State::Running => (format!("module {:.12} goes on", report.digest), true),
        State::Starting | State::Retrying => (format!("module {:.12} is being taken up", report.digest), true),
        State::Paused => ("it is paused".to_owned(), false),
        State::StandingBy | State::Failing | State::Stopped => ("nothing runs under this name".to_owned(), false),
    };
    let told = match goes_on {
        true => reasons::with_hint_beside_another(reason),
        false => reasons::with_hint(handler, FAILING, reason, has_before(registry, handler).await),
    };
    let (reason, hint) = hint::split(&told);
    Fault::failed(anyhow::anyhow!("host {host} does not run it: {reason}; {runs}")).hint(hint.unwrap_or_default())
}

/// What the handler does after a refusal: going back to the module before takes a moment.
async fn settled(registry: &Registry, handler: &str) -> Report {
    let deadline = Instant::now() + SETTLE;
    loop {
        let report = registry.status(handler).await.ok().flatten().unwrap_or_default();
        if report.state == State::Running || Instant::now() >= deadline {
            return report;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether `millstream rollback` has something to go back to.
pub(super) async fn has_before(registry: &Registry, handler: &str) -> bool {
    let history = registry.history(handler).await.unwrap_or_default();
    let ran = registry.those_that_ran(handler).await.unwrap_or_default();
    let past = history.into_iter().map_while(|past| Some((past.revision, past.deployment?)));
    let mut past = past.filter_map(|(revision, past)| Some((revision, past.ok()?)));
    let Some((_, newest)) = past.next() else { return false };
    past.any(|(revision, past)| ran.contains(&revision) && past.differs(&newest))
}

impl Verdicts {
    /// One line for people.
    pub(super) fn line(&self, done: &str) -> String {
        let mut parts: Vec<String> = self.hosts.iter().map(in_words).collect();
        parts.extend(self.silent.iter().map(|(host, unheard)| match unheard {
            Some(seconds) => format!("{host} has not been heard of for {seconds} s; it follows when it runs again"),
            None => format!("{host} has not answered (see `millstream list`)"),
        }));
        match parts.is_empty() {
            true => match &self.nobody {
                Some(Nobody { reason, hint }) => format!("{done}; {reason} ({hint})"),
                None => format!("{done}; no host has answered (see `millstream list`)"),
            },
            false => parts.join(", "),
        }
    }

    /// The longest that events were kept waiting.
    pub(super) fn pause_milliseconds(&self) -> Option<f64> {
        let longest = self.hosts.iter().filter_map(|verdict| verdict.pause_microseconds).max()?;
        Some(longest as f64 / 1000.0)
    }
}

fn in_words(verdict: &Verdict) -> String {
    let Verdict { host, reason, .. } = verdict;
    match verdict.outcome {
        Outcome::Running => format!("running on {host}"),
        Outcome::Waiting if reason.is_empty() => format!("{host} has not begun yet (see `millstream list`)"),
        Outcome::Waiting => format!("{host} waits: {reason}"),
        Outcome::Paused => format!("paused on {host}"),
        Outcome::StandingBy => format!("{host} stands by"),
        Outcome::Refused => format!("refused by {host}"),
    }
}
