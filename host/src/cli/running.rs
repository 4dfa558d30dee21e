//! What runs under a handler's name, which is not always what is deployed: hosts refuse, or none has come round to it. In: the
//! deployment, and what the handler's host said last. Out: the deployment that runs, and what is wanted instead. Never: writes.

use serde::Serialize;

use super::{Fault, output};
use crate::overview::Handler;
use crate::progress::{Refused, Report};
use crate::registry::{Deployment, Registry};
use crate::sandbox::Digest;

/// What runs.
pub(super) struct Running {
    /// As it was deployed once.
    pub(super) deployment: Deployment,
    /// Its revision; 0 where it is in the history no more.
    pub(super) revision: u64,
    /// What is deployed now, where that is another.
    pub(super) wanted: Option<Instead>,
}

/// A deployment that does not run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Instead {
    digest: String,
    label: String,
    revision: u64,
    /// Why its host refuses it; empty: nobody has come round to it.
    #[serde(skip_serializing_if = "String::is_empty")]
    refused: String,
}

impl Instead {
    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// In words.
    pub(super) fn sentence(&self) -> String {
        let Self { digest, label, refused, .. } = self;
        let label = if label.is_empty() { String::new() } else { format!(" ({})", output::cut(label, output::NAME)) };
        match self.is_refused() {
            true => format!("{digest:.12}{label} is wanted, and was refused: {}", output::legible(refused)),
            false => format!("{digest:.12}{label} is wanted, and no host has taken it over yet"),
        }
    }
}

/// What the handler's host said last of what it runs.
pub(super) struct Said<'a> {
    digest: &'a str,
    revision: u64,
    refused: Option<&'a Refused>,
}

impl<'a> Said<'a> {
    pub(super) fn in_overview(handler: &'a Handler) -> Self {
        let Handler { digest, running_revision: revision, refused, .. } = handler;
        Self { digest, revision: *revision, refused: refused.as_ref() }
    }
}

impl<'a> From<&'a Report> for Said<'a> {
    fn from(report: &'a Report) -> Self {
        Self { digest: &report.digest, revision: report.revision, refused: report.refused.as_ref() }
    }
}

/// The deployment that runs, by what the handler's host said last; `revision` is that of what is deployed.
pub(super) async fn running(
    registry: &Registry,
    handler: &str,
    (revision, deployed): (u64, &Deployment),
    said: Said<'_>,
) -> Result<Running, Fault> {
    let as_wanted = || Running { deployment: deployed.clone(), revision, wanted: None };
    let Ok(digest) = Digest::try_from(said.digest.to_owned()) else { return Ok(as_wanted()) };
    if said.revision == revision {
        return Ok(as_wanted());
    }
    let refused = said.refused.filter(|refused| refused.revision == revision).map(|refused| refused.reason.clone());
    let history = registry.history(handler).await?;
    let mut others: Vec<(u64, Deployment)> = history
        .into_iter()
        .filter_map(|past| Some((past.revision, past.deployment?.ok()?)))
        .filter(|(other, past)| past.digest == digest && (refused.is_none() || *other != revision))
        .collect();
    // The newest of them, where the host does not say which.
    let place = others.iter().position(|(other, _)| *other == said.revision).unwrap_or_default();
    let (runs, past) = match others.is_empty() {
        false => others.swap_remove(place),
        true => (0, Deployment { digest, label: String::new(), ..deployed.clone() }),
    };
    // Paused, or deployed once more a moment ago.
    if refused.is_none() && !past.differs(deployed) {
        return Ok(as_wanted());
    }
    let (digest, label) = (deployed.digest.to_string(), deployed.label.clone());
    let wanted = Some(Instead { digest, label, revision, refused: refused.unwrap_or_default() });
    Ok(Running { deployment: Deployment { desired: deployed.desired, ..past }, revision: runs, wanted })
}

/// The same, where the host is not asked yet.
pub(super) async fn of(
    registry: &Registry,
    handler: &str,
    revision: u64,
    deployed: &Deployment,
) -> Result<Running, Fault> {
    let report = registry.status(handler).await?.unwrap_or_default();
    running(registry, handler, (revision, deployed), Said::from(&report)).await
}
