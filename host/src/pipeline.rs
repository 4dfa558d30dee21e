//! One batch's whole journey; the only file that knows its order:
//!
//! 1. intake   events of one stream, none at or below our position
//! 2. stage    the sandbox decodes them and names the keys
//! 3. load     documents the sandbox does not hold: first what is decided but not shown, then the bucket
//! 4. apply    the sandbox folds events into documents
//! 5. commit   one fenced journal record: before it nothing happened, after it everything will
//! 6. ack      a hint for people with stock tools
//! 7. act      a saga's effects are published (`outbox.rs`)
//! 8. show     changed documents go into the bucket (`show.rs`, coalesced)
//!
//! While a commit is in flight the next batch already runs; its record waits for the answer.
//! Never: acks or shows what is not committed. Any trouble ends the claim; `handler.rs` begins again from the last record.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::batch::{self, Undecodable};
use crate::blame::{Blame, Verdict};
use crate::claim::Claim;
use crate::clock;
use crate::crash;
use crate::decision::{self, Decision, Fault, Undecided};
use crate::documents::{self, Decided, Documents, Origin};
use crate::generation::Bound;
use crate::inputs;
use crate::intake::{self, Arrival, Arrivals, Intake};
use crate::journal::{self, Change, Counts, Journal, Kind, Position, Record, Standing};
use crate::names;
use crate::outbox::{Outbox, Stamp};
use crate::progress::Progress;
use crate::saga::Sagas;
use crate::sandbox::{Digest, Failure, Guest, str_slice, wire};
use crate::show::Pace;
use crate::timers::Sweeper;
use crate::traces::{self, Effects};
use crate::version::Version;

/// Records between two trims of the journal.
const TRIM_EVERY: u64 = 500;

/// After so long without an event a record says that all effects are published. What consumers take out of a work queue leaves no
/// trace there, so a recovery could only send it again.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Why the pipeline ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input stream was interrupted.
    #[error(transparent)]
    Intake(#[from] intake::Error),
    /// The journal refused or is away.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The bucket refused or is away.
    #[error(transparent)]
    Documents(#[from] documents::Error),
    /// An input stream could not be looked at.
    #[error(transparent)]
    Inputs(#[from] inputs::Error),
    /// An input stream dropped events that were not decided yet. The next claim counts them, and stops or goes on as configured.
    #[error("stream {stream} dropped events after {after} before they were decided")]
    Lost {
        /// Stream name.
        stream: String,
        /// The last event before the gap.
        after: u64,
    },
    /// An event that the handler cannot take. Nothing is lost; it is the first undecided one.
    #[error("event {event} cannot be applied ({class}): {reason}")]
    Failing {
        /// Stream, sequence and subject, for people.
        event: String,
        /// What it is guilty of.
        class: Fault,
        /// What happened.
        reason: String,
        /// Guest frames, or empty.
        backtrace: String,
    },
    /// The sandbox itself could not be had.
    #[error("no instance could be made: {0}")]
    Instance(Failure),
}

/// Who decides.
#[derive(Clone)]
pub struct Owner {
    /// The host's name, for the journal.
    pub host: String,
    /// Where progress is told.
    pub progress: Arc<Progress>,
    /// Where to stop, if that is known.
    pub bound: Option<Arc<Bound>>,
}

/// What a claim works with.
#[derive(Clone)]
pub struct Parts {
    /// The handler's documents.
    pub documents: Arc<Documents>,
    /// Its journal.
    pub journal: Journal,
    /// The pace of showing.
    pub pace: Arc<Pace>,
    /// A saga's effects; a projection has none, and a shadow's are muted.
    pub outbox: Option<Arc<Outbox>>,
}

/// What a record says of those before it, and of itself.
#[derive(Clone, Copy, Default)]
struct Said {
    shown_through: u64,
    acted_through: u64,
    acts: bool,
}

/// The pipeline of one claim.
pub struct Pipeline {
    owner: Owner,
    version: Arc<Version>,
    guest: Option<Box<dyn Guest>>,
    documents: Arc<Documents>,
    journal: Journal,
    pace: Arc<Pace>,
    outbox: Option<Arc<Outbox>>,
    sagas: Option<Sagas>,
    sweeper: Option<Sweeper>,
    claim: u64,
    standing: Standing,
    positions: Vec<Position>,
    counts: Counts,
    order: u64,
    /// The last record's journal sequence, or the commit that will tell it.
    last: u64,
    in_flight: Option<JoinHandle<Result<u64, journal::Error>>>,
    /// What the last record says is shown and done, and what the one in flight says.
    said: Said,
    saying: Said,
    /// The last record with effects.
    acting: u64,
    trimmed_at: u64,
    blame: Blame,
    record_bytes: usize,
    next_at: Instant,
}

impl Pipeline {
    /// A pipeline that goes on where `claim` begins. `order` is the last order number that recovery used, `acting` the last record
    /// with effects that it found.
    #[must_use]
    pub fn new(owner: Owner, version: Arc<Version>, claim: Claim, parts: Parts, order: u64, acting: u64) -> Self {
        let Parts { documents, journal, pace, outbox } = parts;
        let digest = version.digest.to_string();
        let sagas = version
            .saga
            .as_ref()
            .map(|facts| Sagas::new(&documents.handler, &digest, Arc::clone(facts), &version.settings));
        let sweeper =
            outbox.as_ref().map(|outbox| Sweeper::start(&documents.jetstream, &documents.handler, Arc::clone(outbox)));
        let said = Said { shown_through: claim.shown_through, acted_through: claim.acted_through, ..Said::default() };
        let record_bytes = documents.jetstream.client().server_info().max_payload.saturating_sub(journal::RECORD_ROOM);
        Self {
            owner,
            version,
            guest: None,
            documents,
            journal,
            pace,
            outbox,
            sagas,
            sweeper,
            claim: claim.id,
            standing: claim.standing,
            positions: claim.positions,
            counts: claim.counts,
            order,
            last: claim.last,
            in_flight: None,
            said,
            saying: said,
            acting,
            trimmed_at: claim.last,
            blame: Blame::default(),
            record_bytes,
            next_at: Instant::now(),
        }
    }

    /// What this works with.
    pub(crate) fn parts(&self) -> Parts {
        Parts {
            documents: Arc::clone(&self.documents),
            journal: self.journal.clone(),
            pace: Arc::clone(&self.pace),
            outbox: self.outbox.clone(),
        }
    }

    /// Tells how far the handler is.
    pub(crate) fn tell(&self) {
        self.owner.progress.decided(&self.positions, &self.counts);
    }

    /// Runs until `stop` says so, with nothing left in flight, or until something ends the claim. Between two batches the newest of
    /// `versions` takes over.
    ///
    /// # Errors
    /// What ended the claim.
    pub async fn run(
        &mut self,
        intake: &mut Intake,
        versions: &mut watch::Receiver<Arc<Version>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Error> {
        self.sweep();
        loop {
            let owes_a_word = self.said.acted_through < self.acting;
            tokio::select! {
                biased;
                () = told_to_stop(stop) => return self.finish().await,
                Ok(()) = versions.changed() => {
                    let next = Arc::clone(&versions.borrow_and_update());
                    self.swap(next).await?;
                }
                done = landing(&mut self.in_flight) => self.landed(done)?,
                arrivals = intake.next() => {
                    crash::point("arrived");
                    self.batch(arrivals?, stop).await?;
                }
                () = tokio::time::sleep(REST_AFTER), if owes_a_word => self.rest().await?,
            }
        }
    }

    /// Lets another version decide from here on: a record has one digest. The documents that the old guest held come from what is
    /// decided or from the bucket.
    async fn swap(&mut self, version: Arc<Version>) -> Result<(), Error> {
        let begun = Instant::now();
        self.finish().await?;
        self.guest = Some((version.instantiate)().map_err(Error::Instance)?);
        if let (Some(sagas), Some(facts)) = (&mut self.sagas, &version.saga) {
            sagas.succeed(&version.digest.to_string(), Arc::clone(facts));
        }
        self.blame = Blame::default();
        self.version = version;
        self.owner.progress.swapped(&self.version.digest.to_string(), begun.elapsed());
        Ok(())
    }

    /// Decides a batch, in parts if something in it fails. What a stop leaves undecided comes again.
    async fn batch(&mut self, arrivals: Arrivals, stop: &watch::Receiver<bool>) -> Result<(), Error> {
        let position = self.positions.get(arrivals.input).map_or(0, |position| position.sequence);
        let mut rest = arrivals.messages;
        // A message at or below our position was decided before: own positions rule.
        rest.retain(|arrival| arrival.sequence > position);
        if let Some(bound) = &self.owner.bound {
            let last = bound.of(&self.stream_name(arrivals.input));
            rest.retain(|arrival| arrival.sequence <= last);
        }
        let lost = self.lost_after(arrivals.input, position, &rest).await?;
        if let Some(after) = lost {
            rest.retain(|arrival| arrival.sequence <= after);
        }
        // A throttled batch may take minutes, an effect that nobody takes may wait for days, and a stop must not.
        while !rest.is_empty() && self.wait_for_room(stop).await {
            let part = self.throttle(self.blame.take(rest.len())).await;
            let later = rest.split_off(part);
            let begun = traces::begin();
            match self.decide(arrivals.input, &rest).await {
                Ok(decision) => {
                    self.blame.passed(part);
                    self.commit(arrivals.input, rest, decision, begun).await?;
                    rest = later;
                }
                Err(Undecided::Trouble(error)) => return Err(error),
                Err(Undecided::Guilty { index, class, reason, backtrace }) => {
                    // The guest may have half a batch in its documents.
                    self.guest = None;
                    if self.blame.failed(part, index) == Verdict::First {
                        self.finish().await?;
                        if let Some(span) = self.span(begun, arrivals.input, &rest) {
                            span.failed(format!("{class}: {reason}"));
                        }
                        self.blame_one(arrivals.input, rest.first(), class);
                        let event =
                            rest.first().map(|arrival| self.describe(arrivals.input, arrival)).unwrap_or_default();
                        return Err(Error::Failing { event, class, reason, backtrace });
                    }
                    rest.extend(later);
                }
            }
        }
        match lost {
            Some(after) if !*stop.borrow() => {
                self.finish().await?;
                Err(Error::Lost { stream: self.stream_name(arrivals.input), after })
            }
            _ => Ok(()),
        }
    }

    /// The event before the first gap in the stream's sequence, if the stream now begins behind that gap. Other gaps are
    /// messages under other subjects, or ones that somebody deleted on purpose.
    async fn lost_after(&self, input: usize, position: u64, arrivals: &[Arrival]) -> Result<Option<u64>, Error> {
        let mut before = position;
        if self.stream_name(input) == names::TIMERS {
            // Fired timers are removed when all handlers before them are done with theirs.
            return Ok(None);
        }
        for arrival in arrivals {
            // A handler that begins takes the stream as it is.
            if arrival.sequence > before + 1 && before > 0 {
                let first = inputs::first_sequence(&self.documents.jetstream, &self.stream_name(input)).await?;
                return Ok((first > before + 1).then_some(before));
            }
            before = arrival.sequence;
        }
        Ok(None)
    }

    fn stream_name(&self, input: usize) -> String {
        self.positions.get(input).map(|position| position.stream.clone()).unwrap_or_default()
    }

    /// Steps 2 to 4.
    async fn decide(&mut self, input: usize, arrivals: &[Arrival]) -> Result<Decision, Undecided> {
        let stream = self.stream_name(input);
        let mut guest = self.guest().map_err(|failure| Undecided::Trouble(Error::Instance(failure)))?;
        if let Some(sagas) = &mut self.sagas {
            let decision = sagas.decide(guest.as_mut(), &self.documents, &stream, arrivals, self.record_bytes).await?;
            self.guest = Some(guest);
            return Ok(decision);
        }
        let batch = batch::encode(&stream, arrivals)
            .map_err(|Undecodable { index, reason }| Undecided::at(index, Fault::Undecodable, &reason))?;
        let staged = tokio::task::block_in_place(|| guest.stage(&batch)).map_err(Undecided::failure)?;
        crash::point("staged");
        decision::check_staged(&staged)?;
        let documents = self.load(&staged).await?;
        crash::point("loaded");
        let outcome = tokio::task::block_in_place(|| guest.apply(&documents, &[])).map_err(Undecided::failure)?;
        crash::point("applied");
        let decision = decision::of(arrivals, &staged, &outcome, self.record_bytes)?;
        self.guest = Some(guest);
        Ok(decision)
    }

    /// The live guest, or a fresh one where it failed or grew too large.
    fn guest(&mut self) -> Result<Box<dyn Guest>, Failure> {
        match self.guest.take() {
            Some(guest) if !guest.is_bloated() => Ok(guest),
            old => {
                drop(old);
                (self.version.instantiate)()
            }
        }
    }

    async fn load(&self, staged: &wire::Staged) -> Result<wire::Documents, Undecided> {
        let missing: Vec<(u32, &str)> = (0..)
            .zip(&staged.keys)
            .filter(|(_, key)| !key.cached)
            .map(|(index, key)| (index, str_slice(&staged.blob, key.name)))
            .collect();
        let names: Vec<&str> = missing.iter().map(|(_, name)| *name).collect();
        let loaded = self.documents.load(&names).await.map_err(|error| Undecided::Trouble(error.into()))?;
        let mut blob = Vec::with_capacity(loaded.iter().flatten().map(Bytes::len).sum());
        let mut documents = Vec::with_capacity(loaded.len());
        for ((key, _), document) in missing.iter().zip(&loaded) {
            let bytes = document.as_deref().unwrap_or_default();
            let start = u32::try_from(blob.len()).unwrap_or(u32::MAX);
            blob.extend_from_slice(bytes);
            let value = wire::Span { start, length: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
            documents.push(wire::Document { key: *key, present: document.is_some(), value });
        }
        Ok(wire::Documents { documents, blob })
    }

    /// Steps 5 and 6: sends the record as soon as the one before it has landed, and goes on.
    async fn commit(
        &mut self,
        input: usize,
        arrivals: Vec<Arrival>,
        decision: Decision,
        begun: Option<SystemTime>,
    ) -> Result<(), Error> {
        self.finish().await?;
        let Some(newest) = arrivals.last() else { return Ok(()) };
        if let Some(position) = self.positions.get_mut(input) {
            position.sequence = newest.sequence;
        }
        self.counts.add(&decision.counts);
        self.pace.set_behind(newest.pending > self.version.settings.batch_events as u64);
        let span = self.span(begun, input, &arrivals).map(|span| {
            let digest = self.version.digest.short();
            span.decided(&digest, &decision.counts, decision.changes.len(), decision.effects.len())
        });
        self.write(Kind::Batch, input, decision, newest.message.reply.clone(), span)
    }

    /// The span of a batch that began then, where anybody follows traces.
    fn span(&self, begun: Option<SystemTime>, input: usize, arrivals: &[Arrival]) -> Option<Box<traces::Batch>> {
        begun?;
        traces::Batch::of(begun, &self.documents.handler, &self.stream_name(input), arrivals)
    }

    /// Says in a record of its own that all effects are published, unless that is said or not so.
    pub(crate) async fn rest(&mut self) -> Result<(), Error> {
        self.finish().await?;
        if self.said.acted_through < self.acting && self.acting <= self.acted_through() {
            self.write(Kind::Rest, 0, Decision::default(), None, None)?;
            self.finish().await?;
        }
        Ok(())
    }

    /// Sends a record. None is in flight.
    fn write(
        &mut self,
        kind: Kind,
        input: usize,
        decision: Decision,
        ack: Option<async_nats::Subject>,
        span: Option<Box<traces::Batch>>,
    ) -> Result<(), Error> {
        self.order += 1;
        self.saying = Said {
            shown_through: self.documents.shown_through(),
            acted_through: self.acted_through(),
            acts: self.outbox.is_some() && !decision.effects.is_empty(),
        };
        let record = Record {
            time: clock::now(),
            positions: self.positions.clone(),
            counts: self.counts,
            shown_through: self.saying.shown_through,
            acted_through: self.saying.acted_through,
            effects: decision.effects.clone(),
            carried: decision.carried.clone(),
            bucket: self.documents.created(),
            standing: self.standing,
            previous: self.last,
            input: u16::try_from(input).unwrap_or(u16::MAX),
            changes: decision.changes.iter().map(as_change).collect(),
            ..Record::new(kind, self.claim, &self.owner.host, self.version.digest)
        }
        .encode()?;
        crash::point("encoded");
        self.documents.decide(self.order, decision.changes);
        let stream = self.positions.get(input).map(|position| position.stream.as_str()).unwrap_or_default();
        let commit = Commit {
            journal: self.journal.clone(),
            documents: Arc::clone(&self.documents),
            expected: self.last,
            record,
            order: self.order,
            stream: Arc::from(stream),
            digest: self.version.digest,
            ack,
            outbox: self.outbox.clone(),
            effects: Effects { outgoing: decision.effects, carried: decision.carried },
            span,
        };
        self.in_flight = Some(tokio::spawn(commit.land()));
        self.trim();
        Ok(())
    }

    /// Journal sequence of the last record.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The number of the claim.
    pub(crate) fn claim(&self) -> u64 {
        self.claim
    }

    /// Where the handler stands; nothing is in flight.
    pub(crate) fn stand(&self) -> (Vec<Position>, Counts) {
        (self.positions.clone(), self.counts)
    }

    /// Waits for the commit in flight.
    async fn finish(&mut self) -> Result<(), Error> {
        match &mut self.in_flight {
            Some(commit) => {
                let done = commit.await;
                self.landed(done)
            }
            None => Ok(()),
        }
    }

    fn landed(&mut self, done: Landed) -> Result<(), Error> {
        self.in_flight = None;
        self.last = done.map_err(|error| journal::Error::Unreachable(error.to_string()))??;
        self.said = self.saying;
        if self.said.acts {
            self.acting = self.last;
        }
        self.tell();
        self.sweep();
        Ok(())
    }

    /// Has fired timers removed that are decided for good; nothing is in flight, so the positions are the last record's.
    fn sweep(&self) {
        let timers = self.positions.iter().find(|position| position.stream == names::TIMERS);
        if let (Some(sweeper), Some(timers)) = (&self.sweeper, timers) {
            sweeper.decided(self.last, timers.sequence);
        }
    }

    /// Journal sequence through which every effect is published. A projection has none, and those of a shadow are never
    /// published, so nothing ever waits for them.
    fn acted_through(&self) -> u64 {
        match &self.outbox {
            Some(outbox) => outbox.acted_through(),
            None => self.documents.shown_through(),
        }
    }

    /// Removes old records now and then; a failure only means that they go later.
    fn trim(&mut self) {
        if self.last < self.trimmed_at + TRIM_EVERY {
            return;
        }
        self.trimmed_at = self.last;
        let keep = self.version.settings.journal_keep_records;
        // What the last record says, not what is true by now: a recovery begins there.
        let done = self.said.shown_through.min(self.said.acted_through);
        let keep_from = (done + 1).min(self.last.saturating_sub(keep));
        let journal = self.journal.clone();
        let trim = async move {
            if let Err(error) = journal.trim(keep_from).await {
                tracing::warn!(%error, "the journal could not be trimmed");
            }
        };
        tokio::spawn(trim.in_current_span());
    }

    /// Waits while too much is decided but not shown or not published. False: the handler shall stop.
    async fn wait_for_room(&self, stop: &watch::Receiver<bool>) -> bool {
        const LOOK: Duration = Duration::from_millis(100);
        let settings = &self.version.settings;
        while !*stop.borrow() {
            let (documents, bytes) = self.documents.backlog();
            if documents >= settings.unshown_documents || bytes >= settings.unshown_bytes {
                self.pace.set_urgent(true);
                self.documents.committed.notify_one();
                let _ = tokio::time::timeout(LOOK, self.documents.shown.notified()).await;
                continue;
            }
            self.pace.set_urgent(false);
            let Some(outbox) = self.outbox.as_ref().filter(|outbox| outbox.is_full()) else { return true };
            let _ = tokio::time::timeout(LOOK, outbox.acted.notified()).await;
        }
        false
    }

    /// Waits as long as the deployment's throttle asks, and answers how many of `available` events may go.
    async fn throttle(&mut self, available: usize) -> usize {
        let rate = self.version.settings.throttle_events_per_second;
        if rate == 0 {
            return available;
        }
        tokio::time::sleep_until(self.next_at).await;
        // Twenty portions a second: even enough for people who watch, large enough to stay cheap.
        let part = available.min(usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1));
        self.next_at = Instant::now() + Duration::from_secs_f64(part as f64 / rate as f64);
        part
    }

    /// Says in the log which event it is; why, the handler's end says.
    fn blame_one(&self, input: usize, event: Option<&Arrival>, class: Fault) {
        let (stream, sequence) = (self.stream_name(input), event.map_or(0, |event| event.sequence));
        tracing::error!(stream, sequence, class = class.to_string(), "this event cannot be applied");
    }

    fn describe(&self, input: usize, arrival: &Arrival) -> String {
        let stream = self.positions.get(input).map(|position| position.stream.as_str()).unwrap_or_default();
        format!("{stream}:{} on subject {}", arrival.sequence, arrival.message.subject)
    }
}

/// Resolves when the handler shall stop.
pub(crate) async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Outcome of a commit task.
type Landed = Result<Result<u64, journal::Error>, tokio::task::JoinError>;

/// The commit in flight, or never.
async fn landing(in_flight: &mut Option<JoinHandle<Result<u64, journal::Error>>>) -> Landed {
    match in_flight {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}

/// A record on its way.
struct Commit {
    journal: Journal,
    documents: Arc<Documents>,
    expected: u64,
    record: Bytes,
    order: u64,
    stream: Arc<str>,
    digest: Digest,
    ack: Option<async_nats::Subject>,
    outbox: Option<Arc<Outbox>>,
    effects: Effects,
    span: Option<Box<traces::Batch>>,
}

impl Commit {
    async fn land(self) -> Result<u64, journal::Error> {
        let sent = Stamp::now();
        let journal = match self.journal.append(self.expected, self.record).await {
            Ok(journal) => journal,
            Err(error) => {
                if let Some(span) = self.span {
                    span.failed(error.to_string());
                }
                return Err(error);
            }
        };
        crash::point("committed");
        if let Some(span) = self.span {
            span.committed(journal);
        }
        self.documents.commit(Origin { order: self.order, journal, stream: self.stream, digest: self.digest });
        if let Some(ack) = self.ack {
            // Lost acks change nothing: the position in the record rules.
            let _ = self.documents.jetstream.client().publish(ack, Bytes::from_static(b"+ACK")).await;
        }
        crash::point("acked");
        if let Some(outbox) = self.outbox {
            outbox.publish(journal, sent, self.effects);
        }
        Ok(journal)
    }
}

fn as_change(change: &Decided) -> Change<'_> {
    Change {
        key: &change.key,
        sequence: change.sequence,
        value: change.value.as_deref(),
        keep_seconds: change.keep_seconds,
    }
}
