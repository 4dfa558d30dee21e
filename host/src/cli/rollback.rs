//! `millstream rollback`: deploys again what ran before. The history of deployments is kept by the bucket itself, so this is a
//! deployment like any other, and can be rolled back too. Where what ran before has documents of its own, in a generation that is
//! kept, that generation is promoted instead.

use async_nats::jetstream::{self, Context};
use clap::Args;
use serde::Serialize;

use super::generations::{Generations, ledger_of};
use super::promote::Promote;
use super::running::{self, Running};
use super::{Fault, connect, deploy, output, verdicts, versions};
use crate::generation::ledger::{Ending, Ledger, Wanted};
use crate::hint;
use crate::promotion;
use crate::registry::{self, Deployment, Desired, Past, Registry};
use crate::sandbox::Digest;
use crate::version::Succession;

/// Go back to an earlier version.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// The version: its label, or the beginning of its digest; by default the last one that ran before.
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
    /// What else changes, in words: settings, and that it was paused.
    changes: Vec<String>,
    state: String,
    /// The generation that was promoted for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
}

/// How to get there.
enum Way {
    /// By a deployment.
    Deploy(Box<Deployment>),
    /// By a promotion of the generation that has its documents.
    Promote(u32),
}

impl Rollback {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let done = roll_back(&jetstream, &self.handler, self.to.as_deref(), !self.no_wait).await?;
        if json {
            return Ok(output::json(&done)?);
        }
        let label = if done.label.is_empty() { String::new() } else { format!(" ({})", done.label) };
        eprintln!("{}: {:.12} -> {:.12}{label}", done.handler, done.from, done.to);
        for change in &done.changes {
            eprintln!("change    {change}");
        }
        eprintln!("state     {}", done.state);
        Ok(())
    }
}

/// Goes back to an earlier version of a handler, by default the last one that ran before, and waits for the hosts, if that is wanted.
pub(crate) async fn roll_back(jetstream: &Context, handler: &str, to: Option<&str>, wait: bool) -> Result<Done, Fault> {
    let registry = Registry::peek(jetstream).await?.ok_or_else(|| versions::not_deployed(handler))?;
    let (revision, current) = match registry.current(handler).await {
        Err(registry::Error::Malformed { .. }) => return over_unreadable(&registry, handler, to, wait).await,
        _ => versions::deployed(&registry, handler).await?,
    };
    let ledger = ledger_of(jetstream, handler).await?;
    let runs = running::of(&registry, handler, revision, &current).await?;
    let history = registry.history(handler).await?;
    let way = match to {
        Some(version) => {
            let readable = history.into_iter().filter_map(|past| past.deployment?.ok());
            let others = readable.filter(|past| past.differs(&current));
            let runs = current.label == *version && runs.wanted.is_none();
            Way::Deploy(Box::new(named(handler, version, others).map_err(|fault| {
                match runs {
                    true => Fault::usage(anyhow::anyhow!("version `{version}` of handler {handler} is what runs"))
                        .hint(format!("see what there was with `millstream list --versions {handler}`")),
                    false => fault,
                }
            })?))
        }
        None => before(&registry, handler, &current, &runs, history, &ledger).await?,
    };
    let way = match way {
        Way::Deploy(target) => check(&registry, handler, &runs.deployment, *target, &ledger).await?,
        way @ Way::Promote(_) => way,
    };
    let from = runs.deployment.digest.to_string();
    let target = match way {
        Way::Deploy(target) => target,
        Way::Promote(generation) => return promote(jetstream, handler, from, generation).await,
    };
    let mut changes = deploy::changed_settings(&current.settings, &target.settings);
    if current.desired == Desired::Paused {
        changes.push("it was paused, and runs again".to_owned());
    }
    let done = put(&registry, handler, (revision, from), *target, wait).await?;
    Ok(Done { changes, ..done })
}

/// Goes back from a deployment that nobody can read: to the one that ran last, or the one that is named.
async fn over_unreadable(registry: &Registry, handler: &str, to: Option<&str>, wait: bool) -> Result<Done, Fault> {
    let revision = registry.revision(handler).await?;
    let ran = registry.status(handler).await?.unwrap_or_default().revision;
    let earlier = registry.earlier(handler, revision, ran).await?.into_iter().map(|(_, earlier)| earlier);
    let target = match to {
        Some(version) => named(handler, version, earlier)?,
        None => earlier.into_iter().next().ok_or_else(|| no_earlier(handler))?,
    };
    put(registry, handler, (revision, "unreadable".to_owned()), target, wait).await
}

/// Deploys it in the place of that revision.
async fn put(
    registry: &Registry,
    handler: &str,
    (revision, from): (u64, String),
    target: Deployment,
    wait: bool,
) -> Result<Done, Fault> {
    let wanted = Deployment { desired: Desired::Running, note: String::new(), ..target };
    let Some(new) = registry.replace(handler, revision, &wanted).await? else {
        return Err(versions::overtaken(handler));
    };
    let state =
        if wait { verdicts::wait(registry, handler, new).await?.line("deployed") } else { "deployed".to_owned() };
    let (handler, to) = (handler.to_owned(), wanted.digest.to_string());
    Ok(Done { handler, from, to, label: wanted.label, changes: Vec::new(), state, generation: None })
}

/// Has a generation that is kept take the place of the live one.
async fn promote(jetstream: &Context, handler: &str, from: String, generation: u32) -> Result<Done, Fault> {
    let mut generations = Generations::of(jetstream.clone(), handler).await?;
    let there = generations.ledger.shadow(generation).map(|shadow| (shadow.digest.to_string(), shadow.label.clone()));
    let (to, label) = there.unwrap_or_default();
    let Ending { pause_milliseconds, .. } = Promote::of(handler, Some(generation)).perform(&mut generations).await?;
    let state = format!("generation {generation} is live again; nothing was decided for {pause_milliseconds} ms");
    Ok(Done { handler: handler.to_owned(), from, to, label, changes: Vec::new(), state, generation: Some(generation) })
}

/// The last version that ran before this one.
async fn before(
    registry: &Registry,
    handler: &str,
    current: &Deployment,
    runs: &Running,
    history: Vec<Past>,
    ledger: &Ledger,
) -> Result<Way, Fault> {
    // What is wanted does not run: the way back is to what does.
    if runs.wanted.is_some() {
        return Ok(Way::Deploy(Box::new(runs.deployment.clone())));
    }
    let ran = registry.those_that_ran(handler).await?;
    let past = since_removal(history);
    let last = past.iter().find(|(revision, past)| ran.contains(revision) && past.differs(current)).cloned();
    let promoted = ledger.ended.as_ref().filter(|ended| ended.to == ledger.live && is_there(ended, &past));
    match (last, promoted) {
        (Some((revision, last)), promoted) if promoted.is_none_or(|ended| revision >= ended.revision) => {
            Ok(Way::Deploy(Box::new(last)))
        }
        (last, Some(ended)) if is_last(ended, &past, &ran, current) => over_promotion(handler, ended, ledger, last),
        _ => Err(no_earlier(handler)),
    }
}

/// Deployments with their revisions, newest first. A handler that was removed has no past, and one that cannot be read never ran.
fn since_removal(history: Vec<Past>) -> Vec<(u64, Deployment)> {
    let past = history.into_iter().map_while(|past| Some((past.revision, past.deployment?)));
    past.filter_map(|(revision, past)| Some((revision, past.ok()?))).collect()
}

/// Whether the deployment is there with which this promotion ended. Where the bucket was made anew, its revision is another's, or nobody's.
fn is_there(ended: &Ending, past: &[(u64, Deployment)]) -> bool {
    let note = promotion::note(ended.to);
    past.iter().any(|(revision, past)| *revision == ended.revision && past.note == note)
}

/// Whether nothing else ran since this promotion. Where it is not known of itself that it ran, nobody knows which of those since did.
fn is_last(ended: &Ending, past: &[(u64, Deployment)], ran: &[u64], current: &Deployment) -> bool {
    let mut since = past.iter().filter(|(revision, _)| *revision >= ended.revision);
    ran.contains(&ended.revision) || since.all(|(_, past)| !past.differs(current))
}

/// The way to the generation that was live before a promotion.
fn over_promotion(
    handler: &str,
    ended: &Ending,
    ledger: &Ledger,
    last: Option<(u64, Deployment)>,
) -> Result<Way, Fault> {
    let is_kept = ledger.shadow(ended.from).is_some_and(|shadow| shadow.wanted == Wanted::Kept);
    if is_kept { Ok(Way::Promote(ended.from)) } else { Err(not_kept(handler, (ended.from, ended.to), ledger, last)) }
}

fn no_earlier(handler: &str) -> Fault {
    Fault::usage(anyhow::anyhow!("handler {handler} has no earlier version that ran")).hint(format!(
        "see what there was with `millstream list --versions {handler}`, and name one with `millstream rollback {handler} VERSION`"
    ))
}

/// What ran before the last promotion has no documents any more.
fn not_kept(handler: &str, (from, to): (u32, u32), ledger: &Ledger, last: Option<(u64, Deployment)>) -> Fault {
    let kept = ledger.shadows.iter().find(|shadow| shadow.wanted == Wanted::Kept);
    let hint = match (kept, last) {
        (Some(kept), _) => {
            format!(
                "generation {0} is kept: take that with `millstream promote {handler} --generation {0}`",
                kept.number
            )
        }
        (None, Some((_, last))) => build_again(handler, last.digest),
        (None, None) => {
            format!("build it again with `millstream rebuild {handler}`, then `millstream promote {handler}`")
        }
    };
    Fault::usage(anyhow::anyhow!(
        "generation {from} of {handler}, which was live before generation {to}, is not kept, so there is nothing to go back to"
    ))
    .hint(hint)
}

/// How to have the documents of an earlier module again.
fn build_again(handler: &str, digest: Digest) -> String {
    format!(
        "build its documents again: `nats object get MILLSTREAM_MODULES {digest} --output before.wasm`, then `millstream rebuild \
         {handler} --module before.wasm` and `millstream promote {handler}`"
    )
}

/// A version of another kind or state version cannot go on with the documents that are there: its own may be kept. Refused here, not by
/// every host.
async fn check(
    registry: &Registry,
    name: &str,
    runs: &Deployment,
    target: Deployment,
    ledger: &Ledger,
) -> Result<Way, Fault> {
    let bytes = registry
        .module(target.digest)
        .await
        .map_err(|error| Fault::failed(error).hint("deploy it again from its file with `millstream deploy`"))?;
    // Without the other's module there is nothing to compare with, and each host decides for itself.
    let running = match registry.module(runs.digest).await {
        Ok(running) => running,
        Err(registry::Error::NoModule(_) | registry::Error::Damaged { .. }) => {
            return Ok(Way::Deploy(Box::new(target)));
        }
        Err(error) => return Err(Fault::failed(error)),
    };
    let running = deploy::examined(running, runs.settings.clone()).await;
    let (Ok(running), Ok(wanted)) = (running, deploy::examined(bytes, target.settings.clone()).await) else {
        return Ok(Way::Deploy(Box::new(target)));
    };
    let Succession::Never(reason) = wanted.after(&running) else { return Ok(Way::Deploy(Box::new(target))) };
    // Only documents of another state version may be kept in another generation.
    if wanted.description.state_version == running.description.state_version || wanted.kind() != running.kind() {
        let (_, hint) = hint::split(&reason);
        return Err(cannot(name, &target, &reason).hint(hint.unwrap_or_default()));
    }
    match ledger.with_module(target.digest) {
        Some(shadow) if shadow.wanted == Wanted::Kept => Ok(Way::Promote(shadow.number)),
        Some(shadow) => Err(cannot(name, &target, &reason).hint(format!(
            "generation {0} has its documents: `millstream promote {name} --generation {0}`",
            shadow.number
        ))),
        None => Err(cannot(name, &target, &reason).hint(build_again(name, target.digest))),
    }
}

fn cannot(name: &str, target: &Deployment, reason: &str) -> Fault {
    let (reason, _) = hint::split(reason);
    Fault::usage(anyhow::anyhow!("{name} cannot go back to {}: {reason}", target.digest.short()))
}

/// The newest version of this label, or else of this digest.
fn named(handler: &str, version: &str, others: impl Iterator<Item = Deployment>) -> Result<Deployment, Fault> {
    let others: Vec<Deployment> = others.collect();
    let found = others
        .iter()
        .find(|past| past.label == *version)
        .or_else(|| others.iter().find(|past| version.len() >= 4 && past.digest.to_string().starts_with(version)));
    found.cloned().ok_or_else(|| {
        Fault::usage(anyhow::anyhow!("handler {handler} has no earlier version `{version}`"))
            .hint(format!("see what there was with `millstream list --versions {handler}`"))
    })
}
