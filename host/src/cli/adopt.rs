//! `millstream adopt`: goes on with an input stream, or with journal and bucket, that were restored from a backup. A restored stream has
//! another birthday than the one that was decided from, so hosts take it for another and stop; only a person knows that it is the same.
//! In: a handler that stopped for that. Out: a claim that names the birthdays of now, and a deployment that hosts look at. Never: adopts
//! a stream that ends before what is decided or goes on otherwise, documents that are older or newer than their journal, or a journal
//! whose dead letters are not there.

use std::io::{IsTerminal as _, Write as _};

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use clap::Args;
use serde::Serialize;

use super::generations::ledger_of;
use super::{Fault, connect, output, verdicts, versions};
use crate::claim;
use crate::clock;
use crate::generation::Generation;
use crate::inputs::{self, Input};
use crate::journal::{Journal, Kind, Position, Record};
use crate::keys;
use crate::names;
use crate::parking::dead::DeadLetters;
use crate::progress::State;
use crate::registry::Deployment;

/// Records before the last that are looked at, at most.
const COMPARED: u64 = 500;

/// How far the clocks of a server and of a host may differ unseen, nanoseconds.
const CLOCKS_DIFFER: i64 = 1_000_000_000;

/// Go on with streams or documents that were restored from a backup.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Do not wait for the hosts.
    #[arg(long)]
    no_wait: bool,
}

/// What became of it.
#[derive(Serialize)]
struct Adopted {
    handler: String,
    /// Input streams that it goes on with.
    streams: Vec<String>,
    /// Its bucket, where that was restored too.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<String>,
    state: String,
}

/// What is there now instead of what the last record knows.
struct Restored {
    /// All positions, with the birthdays of now.
    positions: Vec<Position>,
    /// Streams among them that have another one.
    streams: Vec<String>,
    /// Birthday of the bucket, and whether it is another one.
    bucket: (i64, bool),
}

impl Adopt {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let (handler, jetstream) = (&self.handler, jetstream::new(super::open(connection).await?));
        let (registry, revision, deployment) = versions::found(&jetstream, handler).await?;
        let live = ledger_of(&jetstream, handler).await?.live;
        let journal = Journal::open(&jetstream, handler, deployment.settings.replicas).await?.of(live);
        let Some((last, bytes)) = journal.last().await? else { return Err(nothing_to_adopt(handler)) };
        let record = Record::decode(&bytes, last)?;
        let restored = self.look(&jetstream, &deployment, &journal, &record, last).await?;
        let Restored { positions, streams, bucket: (bucket, is_other) } = restored;
        if is_other || !streams.is_empty() {
            let dead = DeadLetters::of(&jetstream, &Generation::live(handler, live), deployment.settings.replicas);
            let undone = if is_other { letters_fit(&dead, record.in_line, last).await? } else { Vec::new() };
            self.confirm(&streams, is_other, undone.len())?;
            dead.delete_all(undone).await.map_err(anyhow::Error::new)?;
            claim::adopt(&journal, record, last, positions, bucket).await?;
        } else {
            // It may have been adopted by somebody who could not tell the hosts any more.
            let report = registry.status(handler).await?.unwrap_or_default();
            if report.state != State::Failing {
                return Err(nothing_to_adopt(handler));
            }
            eprintln!("{handler} knows its streams and its bucket, and failed: hosts try it again");
        }
        let note = "went on with what was restored from a backup".to_owned();
        let wanted = Deployment { note, ..deployment };
        let put = registry.replace(handler, revision, &wanted).await.map_err(anyhow::Error::new);
        let new = put.and_then(|new| new.ok_or_else(|| anyhow::anyhow!("it was deployed anew meanwhile")));
        let new = new.map_err(|error| untold(handler, error))?;
        let state = match self.no_wait {
            true => "adopted".to_owned(),
            false => verdicts::wait(&registry, handler, new).await?.line("adopted"),
        };
        let adopted = Adopted { handler: handler.clone(), streams, bucket: is_other.then(|| handler.clone()), state };
        if json {
            return Ok(output::json(&adopted)?);
        }
        eprintln!("{handler}: {}", adopted.state);
        Ok(())
    }

    /// What was restored, which can be gone on with.
    async fn look(
        &self,
        jetstream: &Context,
        deployment: &Deployment,
        journal: &Journal,
        record: &Record<'_>,
        last: u64,
    ) -> Result<Restored, Fault> {
        let handler = &self.handler;
        let found = inputs::resolve(jetstream, deployment.filters(), &deployment.settings.streams).await;
        let found = found.map_err(|error| {
            let hint = error.hint();
            Fault::usage(error).hint(hint)
        })?;
        let (mut positions, mut streams) = (record.positions.clone(), Vec::new());
        for position in &mut positions {
            let Some(input) = found.iter().find(|input| input.stream == position.stream) else { continue };
            if position.created != input.created {
                is_whole(position, input)?;
                is_the_same(jetstream, position, decided_at(journal, record, last).await?).await?;
                position.created = input.created;
                streams.push(position.stream.clone());
            }
        }
        let bucket = jetstream.get_stream(names::bucket_stream(handler)).await.map_err(|error| {
            Fault::usage(anyhow::anyhow!("bucket {handler} cannot be read: {error}"))
                .hint(format!("restore it first: `nats stream restore` of a backup of KV_{handler}"))
        })?;
        let created = bucket.cached_info().created.unix_timestamp_nanos();
        let created = i64::try_from(created).map_err(|_| Fault::failed(anyhow::anyhow!("no time: {created}")))?;
        let is_other = created != record.bucket;
        if is_other {
            fits(handler, &bucket, journal, record, last).await?;
        }
        Ok(Restored { positions, streams, bucket: (created, is_other) })
    }

    fn confirm(&self, streams: &[String], is_bucket_other: bool, letters: usize) -> Result<(), Fault> {
        let handler = &self.handler;
        for stream in streams {
            eprintln!("{handler} goes on with stream {stream}, as if it were the one that it has decided from");
        }
        if is_bucket_other {
            eprintln!("{handler} goes on with bucket {handler}, as if it had never been gone");
        }
        if letters > 0 {
            eprintln!(
                "{letters} dead letters are of records that the journal does not have any more: they go, and their events are decided again"
            );
        }
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Fault::usage(anyhow::anyhow!("nobody is there to be asked; nothing was changed"))
                .hint("if all of it is from one backup, say yes beforehand with --yes"));
        }
        eprint!("all of it is from one backup? type the handler's name to go on: ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(Fault::failed)?;
        if answer.trim() == handler {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!("`{}` is not its name; nothing was changed", answer.trim()))
            .hint(format!("type `{handler}`, or give --yes")))
    }
}

fn nothing_to_adopt(handler: &str) -> Fault {
    Fault::usage(anyhow::anyhow!("handler {handler} knows its streams and its bucket: none of them was restored"))
        .hint(format!("see why it stopped with `millstream list`, and what else there is with `millstream doctor`; {handler} is as it was"))
}

/// The claim is written, and nobody was told.
fn untold(handler: &str, error: anyhow::Error) -> Fault {
    Fault::failed(error.context(format!("{handler} is adopted, but hosts that gave it up were not told to try again")))
        .hint(format!(
            "if `millstream list` still shows it failing, tell them with `millstream adopt {handler}` once more"
        ))
}

/// A stream that ends before what is decided lacks events, and would give their numbers to others.
fn is_whole(position: &Position, input: &Input) -> Result<(), Fault> {
    if input.last >= position.sequence {
        return Ok(());
    }
    let (stream, decided) = (&position.stream, position.sequence);
    Err(Fault::usage(anyhow::anyhow!(
        "stream {stream} ends at {}, before the decided event {decided}: it is no whole copy of what was decided from",
        input.last
    ))
    .hint("restore a newer backup, or deploy the handler under a new name with `millstream deploy --name`"))
}

/// A message that was stored after its number had been decided is not the one that was decided: publishers went on after an older backup.
async fn is_the_same(jetstream: &Context, position: &Position, decided_at: i64) -> Result<(), Fault> {
    let (name, decided) = (&position.stream, position.sequence);
    let unread =
        |error: String| Fault::failed(anyhow::anyhow!("stream {name} cannot be read: {error}; nothing was changed"));
    let stream = jetstream.get_stream_no_info(name).await.map_err(|error| unread(error.to_string()))?;
    let message = match stream.get_raw_message(decided).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(()),
        Err(error) => return Err(unread(error.to_string())),
    };
    let stored = i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or_default();
    if stored <= decided_at.saturating_add(CLOCKS_DIFFER) {
        return Ok(());
    }
    Err(Fault::usage(anyhow::anyhow!(
        "event {decided} of stream {name} was stored at {}, after it was decided at {}: an older backup was restored, and others were \
         published under the numbers of events that it lacks",
        clock::text(stored),
        clock::text(decided_at)
    ))
    .hint("restore a newer backup, or deploy the handler under a new name with `millstream deploy --name`"))
}

/// The letters of what the journal has set aside must be there. Answers the sequences of those that its last record does not know yet.
async fn letters_fit(dead: &DeadLetters, in_line: u64, last: u64) -> Result<Vec<u64>, Fault> {
    let undone = dead.after(last).await.map_err(anyhow::Error::new)?;
    let there: u64 = dead.census().await.map_err(anyhow::Error::new)?.0.values().sum();
    let known = there.saturating_sub(undone.len() as u64);
    if known >= in_line {
        return Ok(undone);
    }
    let handler = &dead.generation.handler;
    Err(Fault::usage(anyhow::anyhow!(
        "the journal of {handler} has set {in_line} events aside, and stream {} has {known} of their letters: they were taken up since",
        names::DEAD
    ))
    .hint(format!(
        "restore {} from a backup of the same moment too; or build the documents anew with `millstream rebuild {handler}`",
        names::DEAD
    )))
}

/// Documents and journal must be of one moment: the newest document is of no later record, and the newest record that says that its
/// documents are shown has them there.
async fn fits(handler: &str, bucket: &Stream, journal: &Journal, record: &Record<'_>, last: u64) -> Result<(), Fault> {
    let refused = |what: String| {
        Fault::usage(anyhow::anyhow!("bucket {handler} does not fit its journal: {what}"))
            .hint("restore both from backups of the same moment, taken while no host ran the handler")
    };
    let newest = bucket.cached_info().state.last_sequence;
    if newest > 0
        && let Some(of) = written_by(handler, bucket.get_raw_message(newest).await)?
        && of > last
    {
        return Err(refused(format!("it has documents of record {of}, and the journal ends at {last}")));
    }
    let shown = record.shown_through.min(last);
    let mut newest: (u64, Vec<String>) = (0, Vec::new());
    let look_back = journal.look_back(from(shown), shown, |sequence, record| {
        if record.changes.is_empty() {
            return;
        }
        let kept = record.changes.iter().filter(|change| change.value.is_some() && change.keep_seconds.is_none());
        newest = (sequence, kept.map(|change| change.key.to_owned()).collect());
    });
    look_back.await?;
    let (sequence, keys) = newest;
    for key in keys {
        let subject = names::bucket_subject(handler, &keys::escape(&key));
        let of = written_by(handler, bucket.get_last_raw_message_by_subject(&subject).await)?;
        if of.is_none_or(|of| of < sequence) {
            return Err(refused(format!("document {key:?} of record {sequence} is not in it")));
        }
    }
    Ok(())
}

/// The first of the records before that one which are looked at.
fn from(last: u64) -> u64 {
    last.saturating_sub(COMPARED).max(1)
}

/// When the last record that decided something was written: hosts that cannot go on claim all the same.
async fn decided_at(journal: &Journal, record: &Record<'_>, last: u64) -> Result<i64, Fault> {
    let mut time = record.time;
    let look_back = journal.look_back(from(last), last, |_, record| {
        if matches!(record.kind, Kind::Batch | Kind::Redrive) {
            time = record.time;
        }
    });
    look_back.await?;
    Ok(time)
}

/// Journal sequence of the record that a document is of; none where there is no document.
fn written_by(handler: &str, found: Result<StreamMessage, LastRawMessageError>) -> Result<Option<u64>, Fault> {
    match found {
        Ok(message) => Ok(message.headers.get(names::JOURNAL_HEADER).and_then(|header| header.as_str().parse().ok())),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => {
            Err(Fault::failed(anyhow::Error::new(error).context(format!("documents of {handler} cannot be read")))
                .hint("try again, as the user of your hosts; nothing was changed"))
        }
    }
}
