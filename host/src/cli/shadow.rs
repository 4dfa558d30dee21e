//! `millstream shadow`: the deployed module and a new one, side by side on recorded events, here. In: a module. Out: where they
//! differ. Never: publishes, writes, or leaves a consumer behind.

use std::path::PathBuf;

use anyhow::Context as _;
use async_nats::jetstream;
use clap::Args;

use super::progress::{Progress, grouped};
use super::{Fault, connect, deploy, output, running, span, versions};
use crate::clock;
use crate::direct_get::From;
use crate::inputs;
use crate::rehearsal::shadow::{self, Cost, Report, Which};
use crate::subject;
use crate::version;

/// Differences of each kind that people are shown.
const NAMED: usize = 10;

/// Widest document in the list.
const WIDTH: usize = 160;

/// Run a new module beside the deployed one on recorded events.
#[derive(Debug, Args)]
pub(super) struct Shadow {
    /// The new module: a `.wasm` file.
    module: PathBuf,
    /// The handler that it would replace; the module's own name by default.
    #[arg(long)]
    name: Option<String>,
    /// Only events stored within this time, such as 30m, 1h or 2d.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    last: Option<i64>,
    /// Only events from this sequence of the input stream on.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "last")]
    from: Option<u64>,
}

/// Nanoseconds.
fn duration(text: &str) -> Result<i64, String> {
    span::nanoseconds(text)
        .and_then(|span| if span > 0 { Ok(span) } else { Err("not a time that has passed".to_owned()) })
}

impl Shadow {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let bytes = std::fs::read(&self.module)
            .with_context(|| format!("{} cannot be read", self.module.display()))
            .map_err(|error| Fault::usage(error).hint("give the path of a .wasm file"))?;
        let described = deploy::examine(&bytes, crate::settings::Settings::default())
            .with_context(|| format!("{} is not a handler", self.module.display()))
            .map_err(|error| Fault::usage(error).hint("`millstream new NAME` makes a handler that is one"))?;
        let name = self.name.clone().unwrap_or_else(|| described.description.name.clone());
        let registry = versions::registry(connection, &name).await?;
        let Some(deployment) = registry.deployment(&name).await? else { return Err(versions::not_deployed(&name)) };
        let deployment = running::of(&registry, &name, &deployment).await?.deployment;
        let running = registry.module(deployment.digest).await?;
        let settings = deployment.settings.clone();
        let (old, new) = tokio::task::spawn_blocking(move || {
            Ok::<_, anyhow::Error>((deploy::examine(&running, settings.clone())?, deploy::examine(&bytes, settings)?))
        })
        .await??;
        if old.description.kind != new.description.kind {
            let reason = version::other_kind(new.kind(), old.kind());
            let (reason, hint) = reason.split_once("; hint: ").unwrap_or((&reason, ""));
            return Err(Fault::usage(anyhow::anyhow!("{name}: {reason}")).hint(hint));
        }
        let jetstream = jetstream::new(super::open(connection).await?);
        let filters = widest(old.filters(), new.filters());
        let inputs = inputs::resolve(&jetstream, &filters, &deployment.settings.streams).await.map_err(|error| {
            let hint = error.hint();
            Fault::usage(error).hint(hint)
        })?;
        let from = self.begin(&inputs)?;
        let total = match from {
            From::Sequence(from) => {
                Some(inputs.iter().map(|input| (input.last + 1).saturating_sub(input.first.max(from))).sum())
            }
            From::Time(_) => None,
        };
        let mut progress = Progress::new("shadow", total);
        let tell = |events| progress.set(events, || format!("{} events", grouped(events)));
        let report = shadow::run(&jetstream, &name, &inputs, from, (&old, &new), tell).await;
        progress.finish();
        let report = report.context("the recorded events cannot be read")?;
        if json {
            return Ok(output::json(&report)?);
        }
        print(&report, from)
    }

    fn begin(&self, inputs: &[inputs::Input]) -> Result<From, Fault> {
        if let Some(input) = inputs.iter().find(|input| !input.direct).filter(|_| self.last.is_some()) {
            return Err(Fault::usage(anyhow::anyhow!("stream {} cannot be entered by time", input.stream)).hint(
                format!("allow direct gets with `nats stream edit {} --allow-direct`, or give --from", input.stream),
            ));
        }
        match (self.last, self.from) {
            (Some(last), _) => Ok(From::Time(clock::now().saturating_sub(last))),
            (None, Some(_)) if inputs.len() > 1 => {
                let streams: Vec<&str> = inputs.iter().map(|input| input.stream.as_str()).collect();
                Err(Fault::usage(anyhow::anyhow!("--from is of one stream, and it reads {}", streams.join(", ")))
                    .hint("give a time with --last"))
            }
            (None, from) => Ok(From::Sequence(from.unwrap_or(1))),
        }
    }
}

/// The filters of both, without those that lie within others.
fn widest(old: &[String], new: &[String]) -> Vec<String> {
    let mut filters: Vec<String> = Vec::new();
    for filter in old.iter().chain(new) {
        if !filters.iter().any(|other| subject::covers(other, filter)) {
            filters.retain(|other| !subject::covers(filter, other));
            filters.push(filter.clone());
        }
    }
    filters
}

fn print(report: &Report, from: From) -> Result<(), Fault> {
    let Report { handler, kind, events, documents, effects, .. } = report;
    let begin = match from {
        From::Sequence(0 | 1) => "all retained events",
        From::Sequence(_) | From::Time(_) => "some events; what was before them is missing in all documents",
    };
    output::line(&format!("handler   {handler} ({kind}), {} -> {}", short(&report.running), short(&report.new)))?;
    output::line(&format!("events    {} from empty documents, {begin}", grouped(*events)))?;
    output::line(&format!(
        "documents {} equal, {} changed, {} added, {} removed",
        grouped(documents.equal),
        grouped(documents.changed),
        grouped(documents.added),
        grouped(documents.removed)
    ))?;
    for difference in documents.differing.iter().take(NAMED) {
        let since = difference.since.as_ref().map_or_else(String::new, |at| format!(" since {at}"));
        output::line(&format!("  {}{since}", difference.key))?;
        for (sign, value) in [('-', &difference.running), ('+', &difference.new)] {
            if let Some(value) = value {
                output::line(&format!("    {sign} {}", output::cut(&value.to_string(), WIDTH)))?;
            }
        }
    }
    more(documents.differing.len() as u64)?;
    let (same, other, missing, extra) = (effects.same, effects.other, effects.missing, effects.more);
    if same + other + missing + extra > 0 {
        let [same, other, missing, extra] = [same, other, missing, extra].map(grouped);
        output::line(&format!("effects   {same} same, {other} other, {missing} missing, {extra} more"))?;
        for effect in effects.differing.iter().take(NAMED) {
            let difference = serde_json::to_value(effect.difference)?;
            let difference = difference.as_str().unwrap_or_default();
            output::line(&format!("  {difference} at {}: {} ({})", effect.at, effect.what, effect.id))?;
        }
        more(effects.other + effects.missing + effects.more)?;
    }
    let (running, new) = (grouped(report.failures_running), grouped(report.failures_new));
    output::line(&format!("failures  {running} -> {new}"))?;
    for failure in report.failures.iter().take(NAMED) {
        let which = if failure.which == Which::New { "new" } else { "running" };
        output::line(&format!("  {which} at {}: {}", failure.at, failure.reason))?;
    }
    more(report.failures_running + report.failures_new)?;
    let cost = |cost: &Cost| format!("{} fuel, {:.2} us", grouped(cost.fuel_per_event), cost.microseconds_per_event);
    output::line(&format!("an event  {} -> {}", cost(&report.cost.running), cost(&report.cost.new)))?;
    Ok(())
}

fn more(count: u64) -> Result<(), Fault> {
    match count.saturating_sub(NAMED as u64) {
        0 => Ok(()),
        more => Ok(output::line(&format!("  and {} more (--json)", grouped(more)))?),
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_filters_joined() {
        for (text, seconds) in [("30m", 1800), ("1h", 3600), ("2d", 172_800), ("90s", 90)] {
            assert_eq!(duration(text), Ok(seconds * 1_000_000_000), "{text}");
        }
        assert!(duration("0s").is_err() && duration("soon").is_err());
        let filters = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(widest(&filters(&["a.x", "b"]), &filters(&["a.>", "b"])), filters(&["b", "a.>"]));
    }
}
