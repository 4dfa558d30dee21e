//! Everything that a person may want to know of a Millstream at one moment, in one value: handlers with their lag, hosts, alerts.
//! `lag`, `top`, the dashboard, `/metrics` and the NATS service all show this, so they cannot disagree. In: JetStream and what hosts say.
//! Out: plain data. Works without any host running. Never: writes a message, or believes a host that is silent.

use async_nats::jetstream::Context;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::lag::{self, Lag, Said, Sample};
use crate::numbers::Numbers;
use crate::progress::{Refused, Report};
use crate::registry::{Deployment, Desired, Registry};
use crate::survey;

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
}

/// One deployed handler.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handler {
    /// Its name.
    pub handler: String,
    /// What it is doing, in the words of `millstream lag`.
    pub state: String,
    /// Why it is not running, where that is known.
    pub reason: String,
    /// Projection or saga; empty where nobody has said.
    pub kind: String,
    /// The host that runs it, or ran it last.
    pub host: String,
    /// Digest of the module that runs, in hexadecimal; of the one that is deployed where none runs.
    pub digest: String,
    /// State version of its documents.
    pub state_version: u32,
    /// The deployment's label.
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
    pub counts: crate::journal::Counts,
    /// Effects that nobody takes at present.
    pub undelivered_effects: usize,
    /// What its host measured; empty where no host reports.
    pub numbers: Numbers,
}

impl Handler {
    /// Undecided events of all input streams.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.lag.iter().map(|row| row.events).sum()
    }

    /// Age of the oldest of them, seconds.
    #[must_use]
    pub fn oldest_seconds(&self) -> f64 {
        self.lag.iter().map(|row| row.seconds).fold(0.0, f64::max)
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
}

/// Puts it together. Lags are read from JetStream itself.
///
/// # Errors
/// When the server does not answer. A handler that cannot be measured does not hide the others.
pub async fn read(jetstream: &Context) -> anyhow::Result<Overview> {
    let mut overview = Overview { time: clock::now(), ..Overview::default() };
    let Some(registry) = Registry::peek(jetstream).await? else { return Ok(overview) };
    for (name, deployment) in registry.deployments().await? {
        let report = registry.status(&name).await?;
        match deployment {
            Ok(deployment) => overview.handlers.push(handler(jetstream, &registry, name, &deployment, report).await?),
            Err(error) => overview.handlers.push(Handler {
                handler: name,
                state: lag::FAILING.to_owned(),
                reason: error.to_string(),
                ..Handler::default()
            }),
        }
    }
    overview.hosts = registry.live_hosts().await?.into_iter().map(|host| host.name).collect();
    overview.hosts.sort();
    Ok(overview)
}

async fn handler(
    jetstream: &Context,
    registry: &Registry,
    name: String,
    deployment: &Deployment,
    report: Option<Report>,
) -> anyhow::Result<Handler> {
    let (rows, lag_fault) = match survey::handler(jetstream, registry, &name, deployment).await {
        Ok(rows) => (rows, String::new()),
        Err(error) => (Vec::new(), format!("{error:#}")),
    };
    let (_, counts) = survey::decided(jetstream, &name).await?;
    let report = report.unwrap_or_default();
    let time = (report.time > 0).then_some(report.time);
    let said = Said { state: report.state, reason: report.reason.clone(), time };
    let word = lag::lag(&name, "", &Sample { decided: counts.delivered > 0, ..Sample::default() }, &said, clock::now());
    Ok(Handler {
        handler: name,
        state: word.state,
        reason: report.reason,
        kind: report.kind,
        host: report.host,
        digest: if report.digest.is_empty() { deployment.digest.to_string() } else { report.digest },
        state_version: report.state_version,
        label: deployment.label.clone(),
        desired: deployment.desired,
        refused: report.refused,
        reported_seconds_ago: word.reported_seconds_ago,
        lag: rows,
        lag_fault,
        counts,
        undelivered_effects: report.undelivered_effects,
        numbers: report.numbers,
        ..Handler::default()
    })
}
