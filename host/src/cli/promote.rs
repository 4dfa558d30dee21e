//! `millstream promote`: has a generation take the place of the live one. The host that runs the handler does it; this asks, waits,
//! and tells how it ended. Going back is the same command for the generation that was live before. With `--cancel` the wish itself
//! is taken back, as long as no host has begun to cut.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::diff::compare;
use super::generations::{Generations, Row, refused, told};
use super::underway::{self, Nobody};
use super::{Fault, connect, output, reasons};
use crate::claim;
use crate::clock;
use crate::comparison::Sample;
use crate::generation::ledger::{self, Ending, Ledgers, Promotion, Refusal, Shadow, Wanted};
use crate::promotion::instances_differ;
use crate::registry::{Deployment, Desired};
use crate::sandbox::wire::Kind;

/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A generation that is behind, as all are for a moment after a change, has so long to come close.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// How often it is asked what a promotion waits for.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What whoever waits for a promotion hears when it is taken back.
const TAKEN_BACK: &str = "it was taken back with `millstream promote --cancel`";

/// Have a generation take the place of the live one, at one exact event.
#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Which generation, where there are several.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    /// Also where instances of a saga differ that have not ended, or more keys are parked than in the live one.
    #[arg(long)]
    force: bool,
    /// Take back a promotion that is asked for, as long as the live generation has not stopped for it.
    #[arg(long, conflicts_with = "force")]
    cancel: bool,
    /// How long to wait for a host to do it.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

#[derive(Serialize)]
struct Promoted {
    handler: String,
    live: u32,
    before: u32,
    positions: Vec<String>,
    written: u64,
    pause_milliseconds: u64,
}

#[derive(Serialize)]
struct TakenBack {
    handler: String,
    live: u32,
    /// The one that is not promoted.
    generation: u32,
}

impl Promote {
    /// This generation, or the newest.
    pub(super) fn of(handler: &str, generation: Option<u32>) -> Self {
        Self { handler: handler.to_owned(), generation, force: false, cancel: false, timeout: 120 }
    }

    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let mut generations = Generations::open(connection, &self.handler).await?;
        if self.cancel {
            return self.take_back(&generations, json).await;
        }
        let ending = self.perform(&mut generations).await?;
        let is_kept = generations.ledger.shadow(ending.from).is_some_and(|shadow| shadow.wanted == Wanted::Kept);
        tell(&self.handler, &ending, is_kept, json)
    }

    /// Asks for it and waits until it is through.
    pub(super) async fn perform(&self, generations: &mut Generations) -> Result<Ending, Fault> {
        let to = generations.ledger.meant(&self.handler, self.generation).map_err(refused)?.number;
        let id = match generations.ledger.promotion.as_ref().filter(|promotion| promotion.to == to) {
            Some(under_way) => under_way.id,
            None => {
                self.check(generations, to).await?;
                self.ask(generations, to).await?
            }
        };
        let ending = self.wait(generations, id).await?;
        if !ending.reason.is_empty() {
            return Err(Fault::failed(anyhow::anyhow!(
                "generation {to} was not promoted, generation {} goes on: {}",
                ending.from,
                ending.reason
            ))
            .hint(format!("see its generations with `millstream rebuild {} --list`", self.handler)));
        }
        Ok(ending)
    }

    /// What would stop it anyway, before anything is touched.
    async fn check(&self, generations: &Generations, to: u32) -> Result<(), Fault> {
        let Generations { handler, deployment, registry, .. } = generations;
        if deployment.desired == Desired::Paused {
            return Err(Fault::usage(anyhow::anyhow!("handler {handler} is paused"))
                .hint("let it run first, so that both generations reach the same event"));
        }
        if let Some(Nobody { reason, hint }) = underway::nobody(registry, handler).await? {
            return Err(Fault::usage(anyhow::anyhow!("{reason}, and a host does it")).hint(hint));
        }
        let row = generations.row(to).await?;
        if row.state == "failing" {
            return Err(Fault::usage(anyhow::anyhow!(
                "generation {to} of handler {handler} is failing: {}",
                row.reason
            ))
            .hint(reasons::hint_for_generation(handler, to, &row.reason)));
        }
        self.check_parked(generations, &row).await?;
        let near = deployment.settings.near();
        let deadline = tokio::time::Instant::now() + CLOSE_WITHIN;
        let mut row = row;
        while row.waiting > near && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            row = generations.row(to).await?;
        }
        if row.waiting > near {
            return Err(Fault::usage(anyhow::anyhow!(
                "generation {to} of handler {handler} is behind: {} events wait for it",
                output::thousands(row.waiting)
            ))
            .hint(format!("see how it gets on with `millstream rebuild {handler} --list`")));
        }
        if generations.kind().await? == Kind::Saga { self.check_saga(generations, to).await } else { Ok(()) }
    }

    /// Documents of keys that are parked lack events which those that readers see now may have.
    async fn check_parked(&self, generations: &Generations, row: &Row) -> Result<(), Fault> {
        let (handler, number, parked) = (&generations.handler, row.generation, row.parked_keys);
        let live = generations.row(generations.ledger.live).await?.parked_keys;
        if self.force || parked <= live {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!(
            "generation {number} of handler {handler} has {parked} parked keys, and the live one {live}: documents would lack events"
        ))
        .hint(format!(
            "see them with `millstream dead {handler} --generation {number}`; mend the module and build another, or give --force"
        )))
    }

    async fn check_saga(&self, generations: &Generations, to: u32) -> Result<(), Fault> {
        let handler = &generations.handler;
        let report = generations.registry.status(handler).await?.unwrap_or_default();
        if let Some(effect) = report.undelivered.first() {
            return Err(Fault::usage(anyhow::anyhow!(
                "{} effects of handler {handler} are not taken, so it cannot come to a stand; one is for {}: {}",
                report.undelivered_effects,
                effect.subject,
                effect.reason
            ))
            .hint("make a stream that holds the subject with `nats stream add`"));
        }
        if self.force {
            return Ok(());
        }
        let comparison = compare(generations, to, usize::MAX).await?;
        let alive: Vec<String> =
            comparison.samples.into_iter().filter(Sample::is_alive).map(|sample| sample.key).collect();
        if alive.is_empty() {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!(instances_differ(&alive))).hint(format!(
            "timers that have fired are in no stream any more, so a rebuild lacks them; see `millstream diff {handler}`, \
             wait until these have ended, or give --force"
        )))
    }

    /// Writes the wish; answers which promotion it is. Whoever asked for the same a moment before has asked for this one.
    async fn ask(&self, generations: &mut Generations, to: u32) -> Result<u64, Fault> {
        let Deployment { digest, label, subjects, signature, .. } = generations.deployment.clone();
        let (number, since) = (generations.ledger.live, clock::now());
        let before = Shadow { number, digest, label, subjects, signature, throttle: 0, wanted: Wanted::Kept, since };
        let (id, from, force) = (claim::fresh_id(), number, self.force);
        let wish = Promotion { id, from, to, force, since, before, cut: false, trouble: String::new() };
        let handler = &self.handler;
        let ledgers = Ledgers::open(&generations.jetstream).await?;
        let asked = ledgers.change(handler, |ledger| ledger.promote(handler, wish.clone())).await;
        match asked {
            Ok(_) => Ok(wish.id),
            Err(ledger::Error::Refused(Refusal::UnderWay { to: other, .. })) if other == to => {
                generations.refresh().await?;
                let under_way = generations.ledger.promotion.as_ref().map(|promotion| promotion.id);
                Ok(under_way.or(generations.ledger.ended.as_ref().map(|ended| ended.id)).unwrap_or(wish.id))
            }
            Err(error) => Err(told(error)),
        }
    }

    /// Takes the wish back. A host that begins it writes the same value: one of the two is first.
    async fn take_back(&self, generations: &Generations, json: bool) -> Result<(), Fault> {
        let handler = &self.handler;
        generations.ledger.clone().take_back(handler, self.generation, TAKEN_BACK).map_err(refused)?;
        let ledgers = Ledgers::open(&generations.jetstream).await?;
        let taken = ledgers.change(handler, |ledger| ledger.take_back(handler, self.generation, TAKEN_BACK)).await;
        let (_, (live, generation)) = taken.map_err(told)?;
        if json {
            return Ok(output::json(&TakenBack { handler: handler.clone(), live, generation })?);
        }
        eprintln!("generation {generation} of {handler} is not promoted; generation {live} goes on");
        Ok(())
    }

    async fn wait(&self, generations: &mut Generations, id: u64) -> Result<Ending, Fault> {
        let mut now = tokio::time::Instant::now();
        let deadline = now + Duration::from_secs(self.timeout);
        let mut say = Waiting::new(now);
        loop {
            generations.refresh().await?;
            if let Some(ending) = generations.ledger.ended.as_ref().filter(|ending| ending.id == id) {
                return Ok(ending.clone());
            }
            if now >= deadline {
                let why = generations.what_holds_the_promotion().await?;
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                return Err(Fault::failed(anyhow::anyhow!(
                    "no host has done it within {} s{why}; it stays asked for",
                    self.timeout
                ))
                .hint(format!(
                    "see how it gets on with `millstream rebuild {0} --list`, or take it back with `millstream promote {0} \
                     --cancel`",
                    self.handler
                )));
            }
            say.at(now, generations).await?;
            tokio::time::sleep(LOOK_EVERY).await;
            now = tokio::time::Instant::now();
        }
    }
}

/// Tells now and then what a promotion waits for, each reason once in a row.
struct Waiting {
    next: tokio::time::Instant,
    told: String,
}

impl Waiting {
    fn new(now: tokio::time::Instant) -> Self {
        Self { next: now + TELL_EVERY, told: String::new() }
    }

    async fn at(&mut self, now: tokio::time::Instant, generations: &Generations) -> Result<(), Fault> {
        if now < self.next {
            return Ok(());
        }
        self.next = now + TELL_EVERY;
        let why = generations.what_holds_the_promotion().await?;
        if !why.is_empty() && why != self.told {
            eprintln!("waiting: {why}");
        }
        self.told = why;
        Ok(())
    }
}

fn tell(handler: &str, ending: &Ending, is_kept: bool, json: bool) -> Result<(), Fault> {
    let positions =
        ending.positions.iter().map(|position| format!("{}:{}", position.stream, position.sequence)).collect();
    let Ending { from, to, written, pause_milliseconds, .. } = *ending;
    let promoted =
        Promoted { handler: handler.to_owned(), live: to, before: from, positions, written, pause_milliseconds };
    if json {
        return Ok(output::json(&promoted)?);
    }
    eprintln!("generation {to} of {handler} is live; generation {from} stopped at {}", promoted.positions.join(", "));
    eprintln!("documents written: {}; nothing was decided for {pause_milliseconds} ms", output::thousands(written));
    match is_kept {
        true => eprintln!("take it back with `millstream promote {handler} --generation {from}`"),
        false => eprintln!("generation {from} is not kept (keep_generations=0), so this is not taken back"),
    }
    Ok(())
}
