//! What `millstream deploy` does about live instances: it has the new version of a saga rehearse their past, and refuses one that
//! diverges unless it is forced. In: the version that is deployed and the new one. Out: the verdict, and the note that a forced
//! deployment carries. Never: writes anything.

use anyhow::Context as _;
use async_nats::jetstream::Context;
use clap::Args;
use serde_json::json;

use super::progress::{Progress, grouped};
use super::{Fault, output};
use crate::inputs::{self, Input};
use crate::registry::Deployment;
use crate::rehearsal::{self, Verdict, instances};
use crate::version::Version;

/// How a forced deployment's note begins.
const FORCED: &str = "forced: ";

/// How to go about live instances.
#[derive(Debug, Args)]
pub(super) struct Rehearse {
    /// Live instances of a saga to try the new version on; of more than that, a sample is.
    #[arg(long, value_name = "INSTANCES", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Deploy even if the new version cannot go on with live instances. The deployment's note says so.
    #[arg(long)]
    force: bool,
}

impl Default for Rehearse {
    fn default() -> Self {
        Self { sample: 10_000, force: false }
    }
}

impl Rehearse {
    /// Tries the new version on the past of live instances; nothing where there can be none, or the module is the same.
    pub(super) async fn run(
        &self,
        jetstream: &Context,
        name: &str,
        inputs: &[Input],
        (old, new): (&Version, &Version),
    ) -> Result<Option<Verdict>, Fault> {
        if old.digest == new.digest || !old.has_timers() {
            return Ok(None);
        }
        let told =
            |error: anyhow::Error| Fault::failed(error).hint("try again, or see what the server says with --dry-run");
        let live = instances::live(jetstream, name, self.sample as usize).await.context("instances cannot be read");
        let live = live.map_err(told)?;
        if let Some(key) = live.unreadable.first() {
            eprintln!(
                "warning: {} documents are no instances, and not tried; the first is {key:?}",
                live.unreadable.len()
            );
        }
        // What the running version reads, for its side; the new one reads no more.
        let reads = inputs::resolve(jetstream, old.filters(), &old.settings.streams).await;
        let reads = reads.unwrap_or_else(|_| inputs.to_vec());
        let total = reads.iter().map(|input| (input.last + 1).saturating_sub(input.first.max(1))).sum();
        let mut progress = Progress::new("live instances", Some(total));
        let count = live.looked_at.len() as u64;
        let tell =
            |events| progress.set(events, || format!("{} instances, {} events", grouped(count), grouped(events)));
        let verdict = rehearsal::of_instances(jetstream, name, &reads, (old, new), live, tell).await;
        progress.finish();
        Ok(Some(verdict.context("the past of live instances cannot be played").map_err(told)?))
    }

    /// The deployment's note. Refuses a version that diverges, unless it is forced.
    pub(super) fn note(&self, name: &str, verdict: &Verdict, json: bool) -> Result<String, Fault> {
        if verdict.diverging.is_empty() {
            return Ok(String::new());
        }
        if self.force {
            return Ok(format!("{FORCED}{}", verdict.note()));
        }
        if json {
            output::json(&json!({ "handler": name, "live_instances": verdict, "state": "refused" }))?;
        }
        let lines: Vec<String> = verdict.lines().collect();
        let count = match verdict.diverging.len() {
            1 => "a live instance".to_owned(),
            several => format!("{} live instances", grouped(several as u64)),
        };
        Err(Fault::usage(anyhow::anyhow!(
            "{name}: the new version cannot go on with {count} ({})\n  {}",
            verdict.sentence(),
            lines.join("\n  ")
        ))
        .hint("let these instances end first, mend the module, or deploy it all the same with --force"))
    }
}

/// The same module said again is the same deployment, note and all.
pub(super) fn keep_note(before: &Deployment, deployment: &mut Deployment) {
    if before.digest == deployment.digest && before.note.starts_with(FORCED) {
        deployment.note.clone_from(&before.note);
    }
}
