//! `millstream rebuild`: a new generation of a handler's documents, from the first event, beside the live ones.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use super::generations::{Generations, Row, refused, table, told};
use super::progress::{Progress, grouped, rate};
use super::underway::{self, Nobody};
use super::{Fault, connect, deploy, output, reasons};
use crate::generation::Generation;
use crate::generation::ledger::Wanted;
use crate::inputs;
use crate::legible::counted;
use crate::rebuild::{self, Plan};

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Under a load that never stops, a generation that was within a batch of the head for so many looks has caught up.
const CLOSE_LOOKS: u32 = 5;

/// Build a handler's documents anew, beside the live ones.
#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// The `.wasm` to build them with; without it, the one that is live.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// A name for people.
    #[arg(long, requires = "module", default_value = "", hide_default_value = true)]
    label: String,
    /// Vouch for the module under this name, with the seed in this file.
    #[arg(long, value_name = "SEED-FILE", requires = "module")]
    sign_with: Option<PathBuf>,
    /// Events per second at most. 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    throttle: u64,
    /// Do not wait until it has caught up.
    #[arg(long)]
    no_wait: bool,
    /// Only list the handler's generations.
    #[arg(long, conflicts_with_all = ["module", "throttle", "no_wait"])]
    list: bool,
    /// Whoever asks for it promotes it as well.
    #[arg(skip)]
    pub(super) promotes: bool,
}

impl Rebuild {
    /// A generation of a handler's documents with this module.
    pub(super) fn of(handler: &str, module: PathBuf, label: String, sign_with: Option<PathBuf>, no_wait: bool) -> Self {
        let (handler, module) = (handler.to_owned(), Some(module));
        Self { handler, module, label, sign_with, throttle: 0, no_wait, list: false, promotes: false }
    }

    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let mut generations = Generations::open(connection, &self.handler).await?;
        if self.list {
            return tell(&generations.rows().await?, json);
        }
        generations.ledger.may_begin(&self.handler).map_err(refused)?;
        let plan = self.plan(&generations).await?;
        check(&generations, &plan).await?;
        let number = rebuild::begin(&generations.jetstream, &self.handler, plan).await.map_err(told)?;
        generations.refresh().await?;
        self.follow(&mut generations, number, json).await
    }

    /// Waits for a generation that is begun, and tells how it is.
    pub(super) async fn follow(&self, generations: &mut Generations, number: u32, json: bool) -> Result<(), Fault> {
        let nobody = underway::nobody(&generations.registry, &self.handler).await?;
        if let Some(Nobody { reason, hint }) = &nobody {
            eprintln!("{reason}, so generation {number} waits for one ({hint})");
        } else if !self.no_wait {
            wait(generations, number).await?;
        }
        let row = generations.row(number).await?;
        if !json && nobody.is_none() && !self.promotes {
            let beside = generations.ledger.shadows.iter().filter(|shadow| shadow.wanted != Wanted::Abandoned).count();
            let which = if beside > 1 { format!(" --generation {number}") } else { String::new() };
            eprintln!(
                "compare it with `millstream diff {0}{which}`, then `millstream promote {0}{which}`",
                self.handler
            );
        }
        tell(&[row], json)
    }

    /// What to build; a new module is stored.
    async fn plan(&self, generations: &Generations) -> Result<Plan, Fault> {
        let deployment = &generations.deployment;
        let Some(file) = &self.module else {
            return Ok(Plan { throttle: self.throttle, ..Plan::again(deployment) });
        };
        let bytes =
            std::fs::read(file).with_context(|| format!("{} cannot be read", file.display())).map_err(|error| {
                Fault::usage(error)
                    .hint("build one with `cargo build --profile module --target wasm32-unknown-unknown`")
            })?;
        let settings = &deployment.settings;
        let examined = deploy::examined(bytes.clone(), settings.clone()).await;
        let version = examined.map_err(|error| deploy::no_handler(file, error))?;
        if let Ok(live) = generations.registry.module(deployment.digest).await
            && let Ok(live) = deploy::examined(live, settings.clone()).await
            && live.kind() != version.kind()
        {
            return Err(Fault::usage(anyhow::anyhow!("a projection and a saga cannot take each other's place")).hint(
                format!("deploy it under a name of its own: `millstream deploy {} --name NAME`", file.display()),
            ));
        }
        let digest = generations.registry.put_module(&bytes).await?;
        let (label, subjects, throttle) = (self.label.clone(), version.description.subjects, self.throttle);
        let signature = deploy::signature(self.sign_with.as_deref(), &self.handler, digest)?;
        Ok(Plan { digest, label, subjects, signature, throttle })
    }
}

/// Names and subjects, before anything is touched.
async fn check(generations: &Generations, plan: &Plan) -> Result<(), Fault> {
    let settings = &generations.deployment.settings;
    let filters = if settings.subjects.is_empty() { &plan.subjects } else { &settings.subjects };
    let inputs = inputs::resolve(&generations.jetstream, filters, &settings.streams).await.map_err(|error| {
        let hint = error.hint();
        Fault::usage(error).hint(hint)
    })?;
    let used = rebuild::used(&generations.jetstream, &generations.handler).await.map_err(told)?;
    let next = Generation::shadow(&generations.handler, generations.ledger.last.max(used) + 1);
    deploy::check_names(&generations.jetstream, &next, &inputs).await
}

/// Shows progress until the generation has caught up.
async fn wait(generations: &mut Generations, number: u32) -> Result<(), Fault> {
    let begun = Instant::now();
    let first = generations.row(number).await?;
    let mut progress = Progress::new("rebuild", Some(first.decided + first.waiting));
    let near = generations.deployment.settings.near();
    let mut close = 0;
    loop {
        let row = generations.row(number).await?;
        close = if row.decided > 0 && row.waiting <= near { close + 1 } else { 0 };
        match row.state {
            "failing" => {
                progress.finish();
                return Err(Fault::failed(anyhow::anyhow!("generation {number} cannot be built: {}", row.reason))
                    .hint(reasons::hint_for_generation(&row.handler, number, &row.reason)));
            }
            "building" if close < CLOSE_LOOKS => {}
            "building" | "ready" | "kept" => break,
            other => {
                progress.finish();
                return Err(Fault::failed(anyhow::anyhow!("generation {number} is {other}")));
            }
        }
        progress.set(row.decided, || line(&row, first.decided, begun.elapsed()));
        tokio::time::sleep(LOOK_EVERY).await;
        generations.refresh().await?;
    }
    progress.finish();
    Ok(())
}

fn line(row: &Row, before: u64, time: Duration) -> String {
    let done = row.decided.saturating_sub(before);
    let per_second = done as f64 / time.as_secs_f64().max(1e-3);
    let left = if per_second > 0.0 { output::duration(row.waiting as f64 / per_second) } else { "?".to_owned() };
    let total = row.decided + row.waiting;
    format!("{} of {} events, {}, {left} left", grouped(row.decided), grouped(total), rate(done, time))
}

fn tell(rows: &[Row], json: bool) -> Result<(), Fault> {
    if json {
        for row in rows {
            output::json(row)?;
        }
        return Ok(());
    }
    output::line(&table(rows))?;
    for row in rows.iter().filter(|row| row.parked_keys > 0) {
        eprintln!(
            "generation {0}: {1} parked; see `millstream dead {2} --generation {0}`",
            row.generation,
            counted(row.parked_keys, "key is", "keys are"),
            row.handler
        );
    }
    for row in rows.iter().filter(|row| !row.reason.is_empty()) {
        eprintln!("generation {}: {}", row.generation, row.reason);
    }
    Ok(())
}
