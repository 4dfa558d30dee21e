//! `millstream redrive` and `millstream discard`: parked keys are taken up again, or given up. In: which ones. Out: what became of them.
//! The wish lies in a bucket; whoever runs the handler does it between two batches. Never: decides or removes anything itself.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use serde::Serialize;

use super::dead::{Parked, Row};
use super::{Fault, connect, deploy, output, versions};
use crate::claim;
use crate::clock;
use crate::hint;
use crate::parking::CLASSES;
use crate::parking::capsule::{Failed, Replayed};
use crate::parking::wishes::{self, Left, Outcome, What, Wish};
use crate::version::Version;

/// How often to look whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Take up parked keys again.
#[derive(Debug, Args)]
pub(super) struct Redrive {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    #[command(flatten)]
    meant: Meant,
    /// Only say what would become of them under the module that is deployed.
    #[arg(long)]
    dry_run: bool,
    /// Take back what was asked for and is not done, be it a redrive or a discard. What is done by then stays done.
    #[arg(long, conflicts_with_all = ["key", "letter", "class", "all", "dry_run"])]
    cancel: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Give up parked events: they are removed, and never applied.
#[derive(Debug, Args)]
pub(super) struct Discard {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    #[command(flatten)]
    meant: Meant,
    /// Why, for the journal and for those who read it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Which parked keys.
#[derive(Debug, Args)]
struct Meant {
    /// This key, with all of its events.
    #[arg(long)]
    key: Option<String>,
    /// What stands in this line of `millstream dead`, by its column LETTER.
    #[arg(long, value_name = "NUMBER", conflicts_with = "key")]
    letter: Option<u64>,
    /// Keys whose first event is guilty of that.
    #[arg(long, conflicts_with_all = ["key", "letter"], value_parser = CLASSES)]
    class: Option<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["key", "letter", "class"])]
    all: bool,
    /// Of this generation; none: of the live one.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
}

#[derive(Debug, Args)]
struct Waiting {
    /// How long to wait for a host to do it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// What a redrive would do to a key.
#[derive(Serialize)]
struct Forecast {
    key: Option<String>,
    letter: u64,
    units: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fails: Option<Failed>,
    /// Why it cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<String>,
}

impl Forecast {
    fn goes_through(&self) -> bool {
        self.fails.is_none() && self.unread.is_none()
    }

    /// What would become of it, in words.
    fn words(&self) -> String {
        match (&self.fails, &self.unread) {
            (Some(Failed { stream, sequence, class, reason, .. }), _) => {
                format!("fails at {stream}:{sequence}: {class}: {reason}")
            }
            (None, Some(why)) => format!("cannot be read: {why}"),
            (None, None) => "goes through".to_owned(),
        }
    }
}

/// Why something is given up: a few words at least.
fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why in a few words".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

impl Meant {
    fn what(&self) -> Result<What, Fault> {
        match (&self.key, self.letter, &self.class) {
            (Some(key), _, _) => Ok(What::Key { key: key.clone() }),
            (_, Some(sequence), _) => Ok(What::Letter { sequence }),
            (_, _, Some(class)) => Ok(What::Class { class: class.clone() }),
            _ if self.all => Ok(What::All),
            _ => Err(Fault::usage(anyhow::anyhow!("it is not said which keys"))
                .hint("say --key KEY, --letter NUMBER, --class CLASS, or --all")),
        }
    }
}

fn is_meant(what: &What, row: &Row) -> bool {
    match what {
        What::All => true,
        What::Key { key } => row.key.as_ref() == Some(key),
        What::Letter { sequence } => row.letter == *sequence,
        What::Class { class } => row.class == *class,
    }
}

impl Redrive {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        if self.cancel {
            let jetstream = jetstream::new(super::open(connection).await?);
            let parked = Parked::open(&jetstream, &self.handler, self.meant.generation).await?;
            return take_back(&parked, json).await;
        }
        let what = self.meant.what()?;
        let jetstream = jetstream::new(super::open(connection).await?);
        let parked = Parked::open(&jetstream, &self.handler, self.meant.generation).await?;
        let rows = meant(&parked, &what).await?;
        if self.dry_run {
            return forecast(&jetstream, &parked, &rows, json).await;
        }
        let outcome = carry_out(&parked, &what, None, self.waiting.timeout).await?;
        tell(&parked, &what, &outcome, "redriven", json).await
    }
}

impl Discard {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let what = self.meant.what()?;
        let jetstream = jetstream::new(super::open(connection).await?);
        let parked = Parked::open(&jetstream, &self.handler, self.meant.generation).await?;
        let rows = meant(&parked, &what).await?;
        let events: u64 = rows.iter().map(|row| row.units).sum();
        self.confirm(events)?;
        let outcome = carry_out(&parked, &what, Some(self.reason), self.waiting.timeout).await?;
        tell(&parked, &what, &outcome, "discarded", json).await
    }

    fn confirm(&self, events: u64) -> Result<(), Fault> {
        eprintln!("this removes {events} parked events of {}; they are never applied", self.handler);
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Fault::usage(anyhow::anyhow!("nobody is there to be asked; nothing was removed"))
                .hint("say yes beforehand with --yes"));
        }
        eprint!("type the handler's name to go on: ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(Fault::failed)?;
        if answer.trim() == self.handler {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!("`{}` is not its name; nothing was removed", answer.trim()))
            .hint("try again, or use --yes"))
    }
}

/// The parked keys that are meant; at least one.
async fn meant(parked: &Parked, what: &What) -> Result<Vec<Row>, Fault> {
    let rows: Vec<Row> = parked.rows().await?.into_iter().filter(|row| is_meant(what, row)).collect();
    if rows.is_empty() {
        return Err(Fault::usage(anyhow::anyhow!("nothing like that is parked for {}", parked.handler))
            .hint(format!("list what is with `millstream dead {}`", parked.handler)));
    }
    Ok(rows)
}

/// What is wrong with the wishes, and what to do about it.
fn unheard(error: wishes::Error) -> Fault {
    let hint = error.hint();
    Fault::new(error, 1, hint)
}

/// How to take back what waits.
fn taking_back(parked: &Parked) -> String {
    let generation = match parked.dead.generation.acts() {
        true => String::new(),
        false => format!(" --generation {}", parked.generation),
    };
    format!("`millstream redrive {} --cancel{generation}`", parked.handler)
}

/// How long ago it was asked for.
fn ago(wish: &Wish) -> String {
    output::duration((clock::now() - wish.since).max(0) as f64 / 1e9)
}

/// Takes back what waits.
async fn take_back(parked: &Parked, json: bool) -> Result<(), Fault> {
    let Some(wish) = parked.wishes.take_back().await.map_err(unheard)? else {
        return Err(Fault::usage(anyhow::anyhow!("nothing that was asked for waits for {}", parked.handler))
            .hint(format!("list what is parked with `millstream dead {}`", parked.handler)));
    };
    if json {
        return Ok(output::json(&wish)?);
    }
    eprintln!("taken back: {wish}, asked for {} ago; a host that had begun with it stops there", ago(&wish));
    Ok(())
}

/// Asks for it, and waits until the owner of the handler has done it.
async fn carry_out(parked: &Parked, what: &What, discard: Option<String>, timeout: u64) -> Result<Outcome, Fault> {
    let handler = &parked.handler;
    if let Some(reason) = parked.stopped().await? {
        let (reason, hint) = hint::split(&reason);
        return Err(Fault::failed(anyhow::anyhow!("{handler} has stopped, so nothing was asked for: {reason}"))
            .hint(hint.unwrap_or("see it with `millstream list`, and ask again once it runs")));
    }
    let wish = Wish { id: claim::fresh_id(), what: what.clone(), discard, since: clock::now() };
    let waiting = parked.wishes.ask(&wish).await.map_err(unheard)?;
    if !waiting.wish.is_like(&wish) {
        let (other, ago) = (&waiting.wish, ago(&waiting.wish));
        return Err(Fault::failed(anyhow::anyhow!(
            "a {other} was asked for {ago} ago and is not done; this was not asked for"
        ))
        .hint(format!(
            "wait until it is done (`millstream list` shows who runs {handler}) and ask again, or take it back with {}",
            taking_back(parked)
        )));
    }
    if waiting.wish.id != wish.id {
        eprintln!("the same was asked for {} ago and is not done; waiting for that", ago(&waiting.wish));
    }
    let wish = &waiting.wish;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(timeout);
    loop {
        if let Some(entry) = parked.wishes.entry_since(&waiting).await.map_err(unheard)? {
            if let Some(done) = entry.done.filter(|done| done.id == wish.id) {
                return Ok(done);
            }
            if entry.wanted.is_none_or(|wanted| wanted.id != wish.id) {
                return Err(Fault::failed(anyhow::anyhow!("somebody took it back meanwhile"))
                    .hint(format!("see what is left with `millstream dead {handler}`, and ask again")));
            }
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Fault::failed(anyhow::anyhow!(
                "no host has finished it within {timeout} s; it stays asked for"
            ))
            .hint(format!(
                "see who runs {handler} with `millstream list`, or take it back with {}",
                taking_back(parked)
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn tell(parked: &Parked, what: &What, outcome: &Outcome, done: &str, json: bool) -> Result<(), Fault> {
    let handler = &parked.handler;
    if json {
        output::json(outcome)?;
    } else {
        eprintln!("{} events of {} parked keys {done}", outcome.units, outcome.keys);
    }
    let Some(Left { key, stream, sequence, class, reason, attempt }) = outcome.left.first() else {
        // A host that died before it could say so may have done all of it.
        let is_nothing = (outcome.units, outcome.keys) == (0, 0);
        if is_nothing && parked.some_rows(usize::MAX).await?.0.iter().any(|row| is_meant(what, row)) {
            return Err(Fault::failed(anyhow::anyhow!("nothing was {done}, and what was meant is still there"))
                .hint(format!("see what it is with `millstream dead {handler}`")));
        }
        return Ok(());
    };
    let (what, which) = match key {
        Some(key) => (format!("key {key:?}"), "--key KEY"),
        None => ("an event without a key".to_owned(), "--letter NUMBER"),
    };
    let stay = outcome.left.len();
    // What is wrong with its letters is no event's, and cannot be taken home.
    let Some(sequence) = sequence else {
        let (matter, hint) = hint::split(reason);
        let fault = anyhow::anyhow!("{stay} stay parked; first {what}, attempt {attempt}: {class}: {matter}");
        let look = || format!("see what is parked with `millstream dead {handler}`");
        return Err(Fault::failed(fault).hint(hint.map_or_else(look, str::to_owned)));
    };
    Err(Fault::failed(anyhow::anyhow!(
        "{stay} stay parked; first {what}, at event {stream}:{sequence}, attempt {attempt}: {class}: {reason}"
    ))
    .hint(format!(
        "take it home with `millstream dead {handler} {which} --save FILE` and try modules with `millstream replay`"
    )))
}

/// Tries each key on the module that is deployed, beside the handler; also those behind one that cannot be read.
async fn forecast(jetstream: &jetstream::Context, parked: &Parked, rows: &[Row], json: bool) -> Result<(), Fault> {
    let (registry, _, deployment) = versions::found(jetstream, &parked.handler).await?;
    let bytes = registry.module(deployment.digest).await?;
    let version = deploy::examined(bytes, deployment.settings.clone()).await?;
    let (mut cells, mut stay) = (Vec::new(), 0);
    for row in rows {
        let forecast = foresee(parked, row, &version).await?;
        stay += usize::from(!forecast.goes_through());
        if json {
            output::json(&forecast)?;
            continue;
        }
        let words = forecast.words();
        let key = forecast.key.unwrap_or_else(|| "(none)".to_owned());
        cells.push(vec![key, forecast.letter.to_string(), forecast.units.to_string(), words]);
    }
    if !json {
        output::line(&output::table(&["KEY", "LETTER", "UNITS", "WOULD"], &[1, 2], cells))?;
    }
    if stay == 0 {
        return Ok(());
    }
    Err(Fault::failed(anyhow::anyhow!("{stay} of {} would stay parked, or cannot be read", rows.len())).hint(format!(
        "take one home with `millstream dead {} --key KEY --save FILE`, or --letter NUMBER, and try modules with `millstream \
         replay`",
        parked.handler
    )))
}

/// What would become of a key, or of an event without one.
async fn foresee(parked: &Parked, row: &Row, version: &Version) -> Result<Forecast, Fault> {
    let (fails, unread) = match parked.capsule(row).await {
        Ok(capsule) => match tokio::task::block_in_place(|| capsule.replay(version))? {
            Replayed::Document(_) | Replayed::Irrelevant(_) => (None, None),
            Replayed::Failed(failed) => (Some(*failed), None),
        },
        Err(fault) => (None, Some(fault.told().0)),
    };
    Ok(Forecast { key: row.key.clone(), letter: row.letter, units: row.units, fails, unread })
}
