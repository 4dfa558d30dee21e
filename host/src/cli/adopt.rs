//! `millstream adopt`: goes on with an input stream, or with journal and bucket, that were restored from a backup. A restored stream has
//! another birthday than the one that was decided from, so hosts take it for another and stop; only a person knows that it is the same.
//! In: a handler that stopped for that. Out: a claim that names the birthdays of now, and a deployment that hosts look at. Never: adopts
//! a stream that ends before what is decided, or documents that are older or newer than their journal.

use std::io::{IsTerminal as _, Write as _};

use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context};
use clap::Args;
use serde::Serialize;

use super::generations::ledger_of;
use super::{Fault, connect, output, verdicts, versions};
use crate::claim;
use crate::inputs::{self, Input};
use crate::journal::{Journal, Position, Record};
use crate::keys;
use crate::names;
use crate::registry::Deployment;

/// Records before the last that are compared with the bucket, at most.
const COMPARED: u64 = 500;

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
        self.confirm(&restored)?;

        let Restored { positions, streams, bucket: (bucket, is_other) } = restored;
        claim::adopt(&journal, &bytes, last, positions, bucket).await?;
        let note = "went on with what was restored from a backup".to_owned();
        let wanted = Deployment { note, ..deployment };
        let new = registry.replace(handler, revision, &wanted).await?;
        let new = new.ok_or_else(|| versions::overtaken(handler))?;
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

    /// What was restored, if it can be gone on with.
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
        if streams.is_empty() && !is_other {
            return Err(nothing_to_adopt(handler));
        }
        Ok(Restored { positions, streams, bucket: (created, is_other) })
    }

    fn confirm(&self, restored: &Restored) -> Result<(), Fault> {
        let handler = &self.handler;
        for stream in &restored.streams {
            eprintln!("{handler} goes on with stream {stream}, as if it were the one that it has decided from");
        }
        if restored.bucket.1 {
            eprintln!("{handler} goes on with bucket {handler}, as if it had never been gone");
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

/// Documents and journal must be of one moment: the newest document is of no later record, and the newest record that says that its
/// documents are shown has them there.
async fn fits(handler: &str, bucket: &Stream, journal: &Journal, record: &Record<'_>, last: u64) -> Result<(), Fault> {
    let refused = |what: String| {
        Fault::usage(anyhow::anyhow!("bucket {handler} does not fit its journal: {what}"))
            .hint("restore both from backups of the same moment, taken while no host ran the handler")
    };
    let newest = bucket.cached_info().state.last_sequence;
    if newest > 0
        && let Some(of) = written_by(bucket.get_raw_message(newest).await.ok())
        && of > last
    {
        return Err(refused(format!("it has documents of record {of}, and the journal ends at {last}")));
    }
    let shown = record.shown_through.min(last);
    for (sequence, bytes) in journal.read(shown.saturating_sub(COMPARED), shown).await?.into_iter().rev() {
        let shown = Record::decode(&bytes, sequence)?;
        if shown.changes.is_empty() {
            continue;
        }
        for change in &shown.changes {
            let subject = names::bucket_subject(handler, &keys::escape(change.key));
            let of = written_by(bucket.get_last_raw_message_by_subject(&subject).await.ok());
            if change.value.is_some() && change.keep_seconds.is_none() && of.is_none_or(|of| of < sequence) {
                return Err(refused(format!("document {:?} of record {sequence} is not in it", change.key)));
            }
        }
        break;
    }
    Ok(())
}

/// Journal sequence of the record that a document is of.
fn written_by(message: Option<async_nats::jetstream::message::StreamMessage>) -> Option<u64> {
    message?.headers.get(names::JOURNAL_HEADER)?.as_str().parse().ok()
}
