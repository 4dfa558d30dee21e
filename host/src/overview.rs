//! Everything that a person may want to know of a Millstream at one moment, in one value: handlers with their lag, hosts, alerts.
//! `lag`, `top`, the dashboard, `/metrics` and the NATS service all show this, so they cannot disagree. In: JetStream and what hosts say.
//! Out: plain data. Works without any host running. Never: writes a message, or believes a host that is silent.

mod glance;

use async_nats::jetstream::Context;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::alarm;
use crate::board;
use crate::clock;
use crate::journal::Counts;
use crate::lag::{self, Lag, Said, Sample};
use crate::numbers::{Numbers, Rates};
use crate::progress::{Refused, Report};
use crate::registry::{self, Deployed, Deployment, Desired, Registry};
use crate::survey::Ground;

pub use glance::{Glance, Glimpse};

/// Handlers that are read at once.
const AT_ONCE: usize = 16;

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Overview {
    /// When it was put together, nanoseconds since 1970.
    pub time: i64,
    /// Handlers by name.
    pub handlers: Vec<Handler>,
    /// Hosts that announced themselves lately, by name.
    pub hosts: Vec<String>,
    /// Alerts that are raised, the oldest first.
    pub alerts: Vec<Alert>,
    /// All handlers together.
    #[serde(default)]
    pub sums: Sums,
}

/// One deployed handler.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handler {
    /// Its name.
    pub handler: String,
    /// What it is doing, in the fixed words of [`crate::lag`].
    pub state: String,
    /// Why it is not running, where that is known.
    pub reason: String,
    /// Projection or saga; empty where nobody has said.
    pub kind: String,
    /// The host that runs it, or ran it last.
    pub host: String,
    /// Digest of the module that runs, in hexadecimal; of the one that is deployed where none runs.
    pub digest: String,
    /// Revision of the deployment that runs, or ran last; 0 where nobody knows.
    #[serde(default)]
    pub running_revision: u64,
    /// Digest of the module that is deployed; empty where that cannot be read.
    #[serde(default)]
    pub wanted_digest: String,
    /// State version of its documents.
    pub state_version: u32,
    /// Its subject filters.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// The deployment's label; empty where it was refused, for then another runs.
    pub label: String,
    /// Revision of the deployment.
    pub revision: u64,
    /// Whether it should run.
    pub desired: Desired,
    /// The last deployment that was not taken over, and why.
    pub refused: Option<Refused>,
    /// Age of the host's last word, seconds.
    pub reported_seconds_ago: Option<f64>,
    /// A row per input stream.
    pub lag: Vec<Lag>,
    /// Why the lag cannot be told, where that is so.
    pub lag_fault: String,
    /// Outcomes since the generation began, as in the last record.
    pub counts: Counts,
    /// Whether each of these events has exactly one outcome. Where not, Millstream has a defect.
    pub outcomes_add_up: bool,
    /// Effects that nobody takes at present.
    pub undelivered_effects: usize,
    /// What its host measured; empty where no host reports.
    pub numbers: Numbers,
    /// All of its input streams together.
    #[serde(default)]
    pub totals: Totals,
}

/// All input streams of a handler together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Undecided events; none where the lag cannot be told.
    pub events: Option<u64>,
    /// Age of the oldest of them, seconds.
    pub seconds: Option<f64>,
    /// How that moves, as its host measured.
    pub rates: Option<Rates>,
}

/// All handlers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Undecided events, as far as they are known.
    pub events: u64,
    /// Age of the oldest of them, seconds.
    pub seconds: f64,
    /// Handlers whose lag cannot be told.
    pub unknown: usize,
}

impl Handler {
    /// Undecided events of all input streams.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.lag.iter().map(|row| row.events).sum()
    }

    /// The rates of all input streams together, where its host tells any; all is done when the last stream is.
    #[must_use]
    pub fn rates(&self) -> Option<Rates> {
        let known = self.lag.iter().filter_map(|row| row.rates);
        known.reduce(|all, one| Rates {
            in_rate: all.in_rate + one.in_rate,
            out_rate: all.out_rate + one.out_rate,
            trend: all.trend + one.trend,
            eta_seconds: all.eta_seconds.into_iter().chain(one.eta_seconds).reduce(f64::max),
        })
    }

    fn totals(&self) -> Totals {
        let is_known = self.lag_fault.is_empty();
        let (events, seconds) = (is_known.then(|| self.events()), is_known.then(|| self.oldest_seconds()));
        Totals { events, seconds, rates: self.rates() }
    }

    /// What it is doing, for people.
    #[must_use]
    pub fn state_in_words(&self) -> String {
        lag::in_words(&self.state, self.reported_seconds_ago)
    }

    /// Age of the oldest of them, seconds.
    #[must_use]
    pub fn oldest_seconds(&self) -> f64 {
        self.lag.iter().map(|row| row.seconds).fold(0.0, f64::max)
    }
}

impl Sums {
    fn of(handlers: &[Handler]) -> Self {
        Self {
            events: handlers.iter().filter_map(|handler| handler.totals.events).sum(),
            seconds: handlers.iter().filter_map(|handler| handler.totals.seconds).fold(0.0, f64::max),
            unknown: handlers.iter().filter(|handler| handler.totals.events.is_none()).count(),
        }
    }
}

impl Overview {
    /// What was seen at this time, with alerts that say so and all that is a sum.
    fn new(time: i64, mut handlers: Vec<Handler>, hosts: Vec<String>, mut alerts: Vec<Alert>) -> Self {
        for handler in &mut handlers {
            handler.totals = handler.totals();
        }
        alarm::bring_up_to_date(&mut alerts, &handlers, time);
        Self { time, sums: Sums::of(&handlers), handlers, hosts, alerts }
    }

    /// The same of these handlers only, or all of it where none is named. One that is not deployed is not in it.
    #[must_use]
    pub fn only(&self, handlers: &[String]) -> Self {
        let mut only = self.clone();
        if !handlers.is_empty() {
            only.handlers.retain(|handler| handlers.contains(&handler.handler));
            only.alerts.retain(|alert| handlers.contains(&alert.handler));
            only.sums = Sums::of(&only.handlers);
        }
        only
    }
}

/// Something that a person should look at, from the time it was seen until it is over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Handler, or empty for what concerns the whole installation.
    pub handler: String,
    /// Which, such as `lag-growing`.
    pub alert: String,
    /// Since when, nanoseconds since 1970.
    pub since: i64,
    /// What is the matter, with its figures.
    pub text: String,
    /// Undecided events when it was raised.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Puts it together. Lags are read from JetStream itself.
///
/// # Errors
/// When the server does not answer, or deployments were lost. A handler that cannot be measured does not hide the others.
pub async fn read(jetstream: &Context) -> anyhow::Result<Overview> {
    of(jetstream, &[]).await
}

/// The same of these handlers only, or of all where none is named. One that is not deployed is not in it.
///
/// # Errors
/// As [`read`].
pub async fn of(jetstream: &Context, only: &[String]) -> anyhow::Result<Overview> {
    let Some(registry) = Registry::look(jetstream).await? else {
        return Ok(Overview { time: clock::now(), ..Overview::default() });
    };
    let deployed = registry.deployed(jetstream).await?;
    let (reports, hosts) = tokio::try_join!(registry.reports(jetstream), registry.host_names(jetstream))?;
    let mut alerts = board::alerts(jetstream).await?;
    alerts.retain(|alert| only.is_empty() || only.contains(&alert.handler));
    let ground = Ground::read(jetstream).await?;
    let wanted = deployed.into_iter().filter(|deployed| only.is_empty() || only.contains(&deployed.handler));
    let read = async |deployed: Deployed| {
        let report = reports.get(&deployed.handler);
        handler(jetstream, &ground, deployed, report).await
    };
    let handlers: Vec<Handler> = futures::stream::iter(wanted).map(read).buffered(AT_ONCE).collect().await;
    Ok(Overview::new(clock::now(), handlers, hosts, alerts))
}

/// One handler. Whatever cannot be read is told in it.
async fn handler(jetstream: &Context, ground: &Ground, deployed: Deployed, report: Option<&Report>) -> Handler {
    let Deployed { handler, revision, deployment } = deployed;
    let (deployment, unreadable) = match deployment {
        Ok(deployment) => (deployment, None),
        Err(error) => match before(jetstream, &handler, revision, report).await {
            Some(before) => (before, Some(Refused { revision, digest: String::new(), reason: error.to_string() })),
            None => return failing(handler, revision, &error),
        },
    };
    let read = measure(jetstream, ground, &handler, &deployment, report).await;
    let told = told(handler, revision, deployment, report, &Said::of(report), read);
    match unreadable {
        None => told,
        refused @ Some(_) => Handler { wanted_digest: String::new(), refused, ..told },
    }
}

/// What hosts go on with where what is deployed cannot be read.
async fn before(jetstream: &Context, handler: &str, revision: u64, report: Option<&Report>) -> Option<Deployment> {
    let registry = Registry::peek(jetstream).await.ok()??;
    let ran = report.map_or(0, |report| report.revision);
    let earlier = registry.earlier(handler, revision, ran).await.ok()?;
    earlier.into_iter().next().map(|(_, deployment)| deployment)
}

/// One that cannot be read, with nothing before it.
fn failing(handler: String, revision: u64, error: &registry::Error) -> Handler {
    let (state, reason) = (lag::FAILING.to_owned(), error.to_string());
    let lag_fault = reason.clone();
    Handler { handler, revision, state, reason, lag_fault, outcomes_add_up: true, ..Handler::default() }
}

async fn measure(
    jetstream: &Context,
    ground: &Ground,
    handler: &str,
    deployment: &Deployment,
    report: Option<&Report>,
) -> Read {
    let mut faults = Vec::new();
    let (positions, counts) = ground.decided(jetstream, handler).await.unwrap_or_else(|error| {
        faults.push(format!("{error:#}"));
        Default::default()
    });
    let lag = match ground.lag(jetstream, handler, deployment, &positions, report).await {
        // Without positions all would seem to be undecided.
        Ok(rows) if faults.is_empty() => rows,
        Ok(_) => Vec::new(),
        Err(error) => {
            faults.push(format!("{error:#}"));
            Vec::new()
        }
    };
    Read { lag, lag_fault: faults.join("; "), counts, decided: !positions.is_empty() }
}

/// What was read of one handler, or its host measured.
struct Read {
    lag: Vec<Lag>,
    lag_fault: String,
    counts: Counts,
    decided: bool,
}

fn told(
    handler: String,
    revision: u64,
    deployment: Deployment,
    report: Option<&Report>,
    said: &Said,
    read: Read,
) -> Handler {
    let Read { lag, lag_fault, counts, decided } = read;
    let now = clock::now();
    let word = lag::lag(&handler, "", &Sample { decided, ..Sample::default() }, said, now);
    let report = report.cloned().unwrap_or_default();
    let wanted_digest = deployment.digest.to_string();
    let is_refused = report.refused.as_ref().is_some_and(|refused| refused.revision == revision);
    Handler {
        handler,
        state: word.state,
        reason: report.reason,
        kind: report.kind,
        host: report.host,
        digest: if report.digest.is_empty() { wanted_digest.clone() } else { report.digest },
        running_revision: report.revision,
        wanted_digest,
        state_version: report.state_version,
        subjects: deployment.filters().to_vec(),
        label: if is_refused { String::new() } else { deployment.label },
        revision,
        desired: deployment.desired,
        refused: report.refused,
        reported_seconds_ago: word.reported_seconds_ago,
        lag,
        lag_fault,
        outcomes_add_up: counts.add_up(),
        counts,
        undelivered_effects: report.undelivered_effects,
        totals: Totals::default(),
        numbers: if said.time.is_none_or(|time| lag::is_old(time, now)) { Numbers::default() } else { report.numbers },
    }
}
