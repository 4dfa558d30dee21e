//! `millstream rollback`: deploys again what was deployed before. The history of deployments is kept by the bucket itself, so this is a
//! deployment like any other, and can be rolled back too.

use clap::Args;
use serde::Serialize;

use super::{Fault, connect, deploy, output, running, verdicts, versions};
use crate::registry::{self, Deployment, Desired, Past, Registry};
use crate::version::Succession;

/// Go back to an earlier version.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The handler.
    handler: String,
    /// The version: its label, or the beginning of its digest; by default the one before.
    #[arg(value_name = "VERSION")]
    to: Option<String>,
    /// Do not wait for the hosts.
    #[arg(long)]
    no_wait: bool,
}

/// What became of it.
#[derive(Serialize)]
pub(crate) struct Done {
    handler: String,
    from: String,
    to: String,
    label: String,
    state: String,
}

impl Rollback {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let registry = versions::registry(connection, &self.handler).await?;
        let done = roll_back(&registry, &self.handler, self.to.as_deref(), !self.no_wait).await?;
        if json {
            return Ok(output::json(&done)?);
        }
        let label = if done.label.is_empty() { String::new() } else { format!(" ({})", done.label) };
        eprintln!("{}: {:.12} -> {:.12}{label}\nstate     {}", done.handler, done.from, done.to, done.state);
        Ok(())
    }
}

/// Deploys an earlier version of a handler again, by default the one before, and waits for the hosts, if that is wanted.
pub(crate) async fn roll_back(registry: &Registry, handler: &str, to: Option<&str>, wait: bool) -> Result<Done, Fault> {
    let Some((revision, current)) = registry.current(handler).await? else {
        return Err(versions::not_deployed(handler));
    };
    let history = registry.history(handler).await?;
    let target = target(handler, to, &current, history)?;
    // Refused here, not by every host.
    let bytes = registry
        .module(target.digest)
        .await
        .map_err(|error| Fault::failed(error).hint("deploy it again from its file with `millstream deploy`"))?;
    let runs = running::of(registry, handler, &current).await?.deployment;
    check(registry, handler, &runs, &target, bytes).await?;
    let wanted = Deployment { desired: Desired::Running, note: String::new(), ..target };
    let Some(new) = registry.replace(handler, revision, &wanted).await? else {
        return Err(versions::overtaken(handler));
    };
    let state = if wait {
        verdicts::wait(registry, handler, new, wanted.digest).await?.line("deployed")
    } else {
        "deployed".to_owned()
    };
    Ok(Done {
        handler: handler.to_owned(),
        from: runs.digest.to_string(),
        to: wanted.digest.to_string(),
        label: wanted.label,
        state,
    })
}

/// A version of another kind or state version cannot go on with the documents that are there.
async fn check(
    registry: &Registry,
    name: &str,
    runs: &Deployment,
    target: &Deployment,
    bytes: Vec<u8>,
) -> Result<(), Fault> {
    // Without the other's module there is nothing to compare with, and each host decides for itself.
    let running = match registry.module(runs.digest).await {
        Ok(running) => running,
        Err(registry::Error::NoModule(_) | registry::Error::Damaged { .. }) => return Ok(()),
        Err(error) => return Err(Fault::failed(error)),
    };
    let (old, new) = (runs.settings.clone(), target.settings.clone());
    let examined = move || (deploy::examine(&running, old), deploy::examine(&bytes, new));
    let (Ok(running), Ok(wanted)) = tokio::task::spawn_blocking(examined).await.map_err(Fault::failed)? else {
        return Ok(());
    };
    match wanted.after(&running) {
        Succession::Never(reason) => {
            let to = target.digest.short();
            let reason = reason.split("; hint: ").next().unwrap_or_default();
            Err(Fault::usage(anyhow::anyhow!("{name} cannot go back to {to}: {reason}")).hint(format!(
                "its documents may be kept as another generation: see `millstream rebuild {name} --list`, then \
                 `millstream promote {name} --generation N`"
            )))
        }
        Succession::Same | Succession::Swap | Succession::Reopen => Ok(()),
    }
}

/// What to deploy again.
fn target(handler: &str, to: Option<&str>, current: &Deployment, history: Vec<Past>) -> Result<Deployment, Fault> {
    let readable = history.into_iter().filter_map(|past| past.deployment?.ok());
    let others: Vec<Deployment> = readable.filter(|past| differs(past, current)).collect();
    let found = match to {
        None => others.first(),
        Some(version) => others
            .iter()
            .find(|past| past.label == *version)
            .or_else(|| others.iter().find(|past| version.len() >= 4 && past.digest.to_string().starts_with(version))),
    };
    found.cloned().ok_or_else(|| {
        let what = match to {
            None => format!("handler {handler} has no earlier version"),
            Some(version) => format!("handler {handler} has no earlier version `{version}`"),
        };
        Fault::usage(anyhow::anyhow!(what))
            .hint(format!("see what there was with `millstream list --versions {handler}`"))
    })
}

/// Another module, or other settings.
fn differs(past: &Deployment, current: &Deployment) -> bool {
    past.digest != current.digest || past.settings != current.settings
}
