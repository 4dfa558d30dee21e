//! What runs under a handler's name, which is not always what is deployed: hosts refuse, or none has come round to it. In: the
//! deployment, and what the handler's host said last. Out: the deployment that runs, and what is wanted instead. Never: writes.

use serde::Serialize;

use super::{Fault, output};
use crate::progress::Refused;
use crate::registry::{Deployment, Registry};
use crate::sandbox::Digest;

/// What runs.
pub(super) struct Running {
    /// As it was deployed once.
    pub(super) deployment: Deployment,
    /// What is deployed now, where that is another module.
    pub(super) wanted: Option<Instead>,
}

/// A deployment that does not run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Instead {
    digest: String,
    label: String,
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
        let Self { digest, label, refused } = self;
        let label = if label.is_empty() { String::new() } else { format!(" ({})", output::cut(label, output::NAME)) };
        match self.is_refused() {
            true => format!("{digest:.12}{label} is wanted, and was refused: {}", output::legible(refused)),
            false => format!("{digest:.12}{label} is wanted, and no host has taken it over yet"),
        }
    }
}

/// The deployment of what runs, by what the handler's host said last.
pub(super) async fn running(
    registry: &Registry,
    handler: &str,
    deployed: &Deployment,
    digest: &str,
    refused: Option<&Refused>,
) -> Result<Running, Fault> {
    let runs = Digest::try_from(digest.to_owned()).ok().filter(|digest| *digest != deployed.digest);
    let Some(digest) = runs else { return Ok(Running { deployment: deployed.clone(), wanted: None }) };
    let wanted_digest = deployed.digest.to_string();
    let refused = refused.filter(|refused| refused.digest == wanted_digest);
    let refused = refused.map(|refused| refused.reason.clone()).unwrap_or_default();
    let history = registry.history(handler).await?;
    let past = history.into_iter().filter_map(|past| past.deployment?.ok()).find(|past| past.digest == digest);
    let past = past.unwrap_or_else(|| Deployment { digest, label: String::new(), ..deployed.clone() });
    let deployment = Deployment { desired: deployed.desired, ..past };
    Ok(Running { deployment, wanted: Some(Instead { digest: wanted_digest, label: deployed.label.clone(), refused }) })
}

/// The same, where the host is not asked yet.
pub(super) async fn of(registry: &Registry, handler: &str, deployed: &Deployment) -> Result<Running, Fault> {
    let report = registry.status(handler).await?.unwrap_or_default();
    running(registry, handler, deployed, &report.digest, report.refused.as_ref()).await
}
