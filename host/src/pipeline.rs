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
//! What cannot be decided is set aside, key by key (`pipeline/blaming.rs`), and taken up again between two batches when somebody wants
//! that (`pipeline/redriving.rs`). Its dead letters are stored between commit and ack.
//! Never: acks or shows what is not committed. Any trouble ends the claim; `handler.rs` begins again from the last record.

mod blaming;
mod holding_back;
mod redriving;
mod timely;
mod traced;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::batch::{self, Undecodable};
use crate::blame::{Blame, Verdict};
use crate::busy::{Part, Watch};
use crate::claim::Claim;
use crate::clock;
use crate::crash;
use crate::decision::{self, Bounds, Decision, Fault, Undecided};
use crate::documents::{self, Decided, Documents, Origin};
use crate::generation::Bound;
use crate::inputs;
use crate::intake::{self, Arrival, Arrivals, Intake};
use crate::journal::{self, Change, Counts, Journal, Kind, Makes, Parking, Position, Record, Standing, Unparked};
use crate::names;
use crate::outbox::{Outbox, Stamp};
use crate::parking::aside::{Aside, Blamed, Culprits};
use crate::parking::dead::DeadLetters;
use crate::parking::{self, Parked, Room};
use crate::progress::{self, Progress};
use crate::saga::Sagas;
use crate::sandbox::{Digest, Failure, Guest, str_slice, wire};
use crate::show::Pace;
use crate::timers::Sweeper;
use crate::traces::{self, Effects};
use crate::version::Version;
use redriving::Redriving;
use timely::Timely;

/// Records between two trims of the journal.
const TRIM_EVERY: u64 = 500;

/// After so long without an event a record says that all effects are published. What consumers take out of a work queue leaves no
/// trace there, so a recovery could only send it again.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Ownership is proved again before dead letters are stored so long after their record was sent.
const PROVED_FOR: Duration = Duration::from_secs(1);

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
    /// Dead letters cannot be stored or read.
    #[error(transparent)]
    Parking(#[from] parking::Error),
    /// An event that the handler cannot take, and that may not be parked. Nothing is lost; it is the first undecided one.
    #[error("event {event} cannot be applied ({class}): {reason}")]
    Failing {
        /// Stream, sequence and subject, for people.
        event: String,
        /// What it is guilty of.
        class: Fault,
        /// What happened, and why it is not parked.
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
    /// What is parked.
    pub dead: DeadLetters,
}

/// What recovery found.
#[derive(Default)]
pub struct Found {
    /// The last order number that it used.
    pub order: u64,
    /// The last record with effects.
    pub acting: u64,
    /// The parked keys.
    pub parked: Parked,
}

/// What a record says of those before it, and of itself.
#[derive(Clone, Copy, Default)]
struct Said {
    shown_through: u64,
    acted_through: u64,
    buried_through: u64,
    acts: bool,
    buries: bool,
}

/// What of a batch is to be left beside the units of parked keys.
#[derive(Clone, Copy)]
pub(crate) struct Leave<'a> {
    /// Units of these keys fail.
    pub(crate) culprits: Option<&'a Culprits>,
    /// Only keys of which this is true are decided, parked or not, and nothing else is set aside.
    pub(crate) only: Option<&'a (dyn Fn(&str) -> bool + Sync)>,
    /// Further keys may be parked.
    pub(crate) may_park: bool,
}

impl<'a> Leave<'a> {
    fn nothing() -> Self {
        Self { culprits: None, only: None, may_park: true }
    }

    fn culprits(culprits: &'a Culprits) -> Self {
        Self { culprits: Some(culprits), ..Self::nothing() }
    }

    fn all_but(only: &'a (dyn Fn(&str) -> bool + Sync)) -> Self {
        Self { culprits: None, only: Some(only), may_park: false }
    }

    /// Refuses keys that no bucket can hold; and what cannot be decoded, where that is not set aside.
    pub(crate) fn check(self, staged: &wire::Staged) -> Result<(), Undecided> {
        if self.only.is_some() { decision::check_staged(staged) } else { decision::check_keys(staged) }
    }

    /// The routes to leave alone; what of them is parked is set aside.
    pub(crate) fn routes(self, aside: &mut Aside, staged: &wire::Staged, parked: &Parked) -> Vec<u32> {
        let Some(only) = self.only else {
            return aside.begin(staged, &|key| parked.has(key), self.culprits);
        };
        let is_other = |route: &wire::Route| {
            staged.keys.get(route.key as usize).is_none_or(|key| !only(str_slice(&staged.blob, key.name)))
        };
        let others = (0..).zip(&staged.routes).filter(|(_, route)| is_other(route));
        others.map(|(number, _)| number).collect()
    }
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
    makes: Option<Makes>,
    positions: Vec<Position>,
    counts: Counts,
    order: u64,
    /// The last record's journal sequence, or the commit that will tell it.
    last: u64,
    in_flight: Option<JoinHandle<Result<u64, Error>>>,
    /// What the last record says is shown and done, and what the one in flight says.
    said: Said,
    saying: Said,
    /// The batch of the record in flight, for the numbers.
    landing: Option<progress::Batch>,
    /// When the batch began, where anybody follows traces, and the span of the next record.
    begun: Option<SystemTime>,
    span: Option<Box<traces::Batch>>,
    watch: Arc<Watch>,
    /// When this claim began, nanoseconds since 1970.
    began: i64,
    /// Fuel used since a batch was last sent off.
    fuel: u64,
    /// The last record with effects.
    acting: u64,
    /// The last record with parked units, or ones that are parked no more.
    burying: u64,
    trimmed_at: u64,
    blame: Blame,
    timely: Timely,
    /// Until so many events were delivered, keys that are newly parked are counted in parts of no more events than they are counted over.
    closely_until: u64,
    parked: Parked,
    dead: DeadLetters,
    redriving: Redriving,
    record_bytes: usize,
    next_at: Instant,
    /// When something was decided last, or said.
    idle_since: Instant,
}

impl Pipeline {
    /// A pipeline that goes on where `claim` begins, with what recovery found.
    #[must_use]
    pub fn new(owner: Owner, version: Arc<Version>, claim: Claim, parts: Parts, found: Found) -> Self {
        let Parts { documents, journal, pace, outbox, dead } = parts;
        let Found { order, acting, parked } = found;
        let digest = version.digest.to_string();
        let sagas = version
            .saga
            .as_ref()
            .map(|facts| Sagas::new(&documents.handler, &digest, Arc::clone(facts), &version.settings));
        let sweeper =
            outbox.as_ref().map(|outbox| Sweeper::start(&documents.jetstream, &documents.handler, Arc::clone(outbox)));
        let said = Said {
            shown_through: claim.shown_through,
            acted_through: claim.acted_through,
            buried_through: claim.parking.through,
            ..Said::default()
        };
        let record_bytes = documents.jetstream.client().server_info().max_payload.saturating_sub(journal::RECORD_ROOM);
        let watch = Arc::clone(owner.progress.watch());
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
            makes: claim.makes,
            positions: claim.positions,
            counts: claim.counts,
            order,
            last: claim.last,
            in_flight: None,
            said,
            saying: said,
            landing: None,
            begun: None,
            span: None,
            watch,
            began: clock::now(),
            fuel: 0,
            acting,
            burying: 0,
            trimmed_at: claim.last,
            blame: Blame::default(),
            timely: Timely::default(),
            closely_until: parked.recent().last().map_or(0, |at| at + parking::FAILING_WITHIN),
            redriving: Redriving::new(),
            parked,
            dead,
            record_bytes,
            next_at: Instant::now(),
            idle_since: Instant::now(),
        }
    }

    /// What this works with.
    pub(crate) fn parts(&self) -> Parts {
        Parts {
            documents: Arc::clone(&self.documents),
            journal: self.journal.clone(),
            pace: Arc::clone(&self.pace),
            outbox: self.outbox.clone(),
            dead: self.dead.clone(),
        }
    }

    /// Tells how far the handler is.
    pub(crate) fn tell(&self) {
        self.owner.progress.decided(&self.positions, &self.counts);
        self.owner.progress.parked(self.parked.len() as u64, self.parked.oldest());
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
            let owes_a_word = self.said.acted_through < self.acting || self.said.buried_through < self.burying;
            let waiting = self.watch.during(Part::Waiting);
            tokio::select! {
                biased;
                () = told_to_stop(stop) => return self.finish().await,
                Ok(()) = versions.changed() => self.swap(versions).await?,
                done = landing(&mut self.in_flight) => self.landed(done)?,
                () = self.redriving.is_due() => self.look_for_wishes().await?,
                arrivals = intake.next() => {
                    drop(waiting);
                    crash::point("arrived");
                    self.batch(arrivals?, versions, stop).await?;
                }
                () = self.owner.progress.is_to_pass() => self.pass().await?,
                () = std::future::ready(()), if self.redriving.is_under_way() => {}
                () = tokio::time::sleep_until(self.idle_since + REST_AFTER), if owes_a_word => {
                    self.rest().await?;
                    self.idle_since = Instant::now();
                }
            }
            // A portion after each batch: keys that are taken up and keys that go on share the time.
            self.redrive_some().await?;
        }
    }

    /// Lets another version decide from here on: a record has one digest. The documents that the old guest held come from what is
    /// decided or from the bucket.
    async fn swap(&mut self, versions: &mut watch::Receiver<Arc<Version>>) -> Result<(), Error> {
        let version = Arc::clone(&versions.borrow_and_update());
        let begun = Instant::now();
        self.finish().await?;
        let next = (version.instantiate)().map_err(Error::Instance)?;
        let_go(self.guest.replace(next));
        if let (Some(sagas), Some(facts)) = (&mut self.sagas, &version.saga) {
            sagas.succeed(&version.digest.to_string(), Arc::clone(facts));
        }
        (self.blame, self.timely) = (Blame::default(), Timely::default());
        self.parked.begin_anew();
        self.version = version;
        self.owner.progress.swapped(&self.version, begun.elapsed());
        Ok(())
    }

    /// Decides a batch, in parts if something in it fails; between two parts, which may be long, another version may take over. What a
    /// stop leaves undecided comes again.
    async fn batch(
        &mut self,
        arrivals: Arrivals,
        versions: &mut watch::Receiver<Arc<Version>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Error> {
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
        while !rest.is_empty() && self.wait_for_room(stop).await && self.let_rest(versions, stop).await? {
            let part = self.throttle(self.most(rest.len())).await;
            let later = rest.split_off(part);
            self.begun = traces::begin();
            let in_guest = self.watch.read().guest;
            let decided = self.decide(arrivals.input, &rest).await;
            self.timely.took(part, Duration::from_micros(self.watch.read().guest - in_guest));
            match decided {
                Ok(decision) if self.must_look_closely(part, &decision) => {
                    self.forget_undecided();
                    self.closely_until = self.counts.delivered + part as u64;
                    rest.extend(later);
                }
                Ok(decision) => {
                    self.blame.passed(part);
                    if parking::newly(&decision.parks) > 0 {
                        let until = self.counts.delivered + part as u64 + parking::FAILING_WITHIN;
                        self.closely_until = self.closely_until.max(until);
                    }
                    self.commit(arrivals.input, rest, decision).await?;
                    rest = later;
                }
                Err(Undecided::Trouble(error)) => return Err(error),
                Err(Undecided::Guilty { index, class, reason, backtrace }) => {
                    self.forget_undecided();
                    if self.blame.failed(part, index) == Verdict::First && !rest.is_empty() {
                        let first = rest.remove(0);
                        self.set_aside(arrivals.input, first, Blamed { class, reason, backtrace }).await?;
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

    /// Whether so many keys fail in a part that only smaller ones can tell how close together they do. Half of what may fail at most is
    /// counted as if all had failed at the part's end.
    fn must_look_closely(&self, part: usize, decision: &Decision) -> bool {
        part as u64 > parking::FAILING_WITHIN
            && parking::newly(&decision.parks) > self.version.settings.max_failing_keys / 2
    }

    /// How many of the `available` next events to decide at once.
    fn most(&self, available: usize) -> usize {
        let is_close = self.counts.delivered < self.closely_until;
        let closely = if is_close { parking::FAILING_WITHIN as usize } else { usize::MAX };
        self.blame.take(available).min(self.timely.most()).min(closely)
    }

    /// The event before the first gap in the stream's sequence, if the stream now begins behind that gap. Other gaps are
    /// messages under other subjects, or ones that somebody deleted on purpose.
    async fn lost_after(&self, input: usize, position: u64, arrivals: &[Arrival]) -> Result<Option<u64>, Error> {
        let mut before = position.max(self.owner.progress.passed(&self.stream_name(input)));
        if self.stream_name(input) == names::TIMERS {
            // Fired timers are removed when all handlers before them are done with theirs.
            return Ok(None);
        }
        for arrival in arrivals {
            // A handler that begins takes the stream as it is.
            if arrival.sequence > before + 1 && position > 0 {
                let first = inputs::first_sequence(&self.documents.jetstream, &self.stream_name(input)).await?;
                return Ok((first > before + 1).then_some(before));
            }
            before = before.max(arrival.sequence);
        }
        Ok(None)
    }

    fn stream_name(&self, input: usize) -> String {
        self.positions.get(input).map(|position| position.stream.clone()).unwrap_or_default()
    }

    /// Steps 2 to 4.
    async fn decide(&mut self, input: usize, arrivals: &[Arrival]) -> Result<Decision, Undecided> {
        let stream = self.stream_name(input);
        self.decide_but(&stream, arrivals, Leave::nothing()).await
    }

    /// Steps 2 to 4 but for the units of parked keys, which are set aside, and those that are to be left.
    async fn decide_but(
        &mut self,
        stream: &str,
        arrivals: &[Arrival],
        leave: Leave<'_>,
    ) -> Result<Decision, Undecided> {
        let room = Room { keys: if leave.may_park { self.room().keys } else { 0 }, ..self.room() };
        let bounds = Bounds { stream, room, record_bytes: self.record_bytes };
        let mut guest = self.guest().map_err(|failure| Undecided::Trouble(Error::Instance(failure)))?;
        let fuel = guest.fuel_used();
        let decided = match &mut self.sagas {
            Some(sagas) => {
                let leave = (&self.parked, leave);
                sagas.decide(guest.as_mut(), &self.watch, &self.documents, arrivals, leave, bounds).await
            }
            None => self.project(guest.as_mut(), arrivals, leave, bounds).await,
        };
        self.fuel = self.fuel.saturating_add(guest.fuel_used().saturating_sub(fuel));
        self.keep(guest, decided)
    }

    /// The same of a projection.
    async fn project(
        &self,
        guest: &mut dyn Guest,
        arrivals: &[Arrival],
        leave: Leave<'_>,
        bounds: Bounds<'_>,
    ) -> Result<Decision, Undecided> {
        let stream = bounds.stream;
        let batch = batch::encode(stream, arrivals)
            .map_err(|Undecodable { index, reason }| Undecided::at(index, Fault::Undecodable, &reason))?;
        let staged = self.in_guest(|| guest.stage(&batch))?;
        crash::point("staged");
        leave.check(&staged)?;
        let mut aside = Aside::default();
        let skip = leave.routes(&mut aside, &staged, &self.parked);
        let documents = self.load(&staged, &skip).await?;
        crash::point("loaded");
        let outcome = self.in_guest(|| guest.apply(&documents, &skip))?;
        crash::point("applied");
        decision::of(arrivals, &staged, &outcome, (aside, &skip), bounds)
    }

    fn in_guest<T>(&self, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Undecided> {
        let _guest = self.watch.during(Part::Guest);
        tokio::task::block_in_place(call).map_err(Undecided::failure)
    }

    /// The live guest, or a fresh one where it failed or grew too large.
    fn guest(&mut self) -> Result<Box<dyn Guest>, Failure> {
        match self.guest.take() {
            Some(guest) if !guest.is_bloated() => Ok(guest),
            old => {
                let_go(old);
                (self.version.instantiate)()
            }
        }
    }

    /// Keeps the guest for the next call, unless it failed: it may have half a batch in its documents.
    fn keep<T>(&mut self, guest: Box<dyn Guest>, answer: Result<T, Undecided>) -> Result<T, Undecided> {
        match &answer {
            Ok(_) => self.guest = Some(guest),
            Err(_) => let_go(Some(guest)),
        }
        answer
    }

    /// The documents that the guest does not hold, of keys with a route that it shall fold.
    async fn load(&self, staged: &wire::Staged, skip: &[u32]) -> Result<wire::Documents, Undecided> {
        let mut folded = vec![skip.is_empty(); staged.keys.len()];
        if !skip.is_empty() {
            let routes = (0..).zip(&staged.routes).filter(|(number, _)| skip.binary_search(number).is_err());
            for (_, route) in routes {
                if let Some(folded) = folded.get_mut(route.key as usize) {
                    *folded = true;
                }
            }
        }
        let missing: Vec<(u32, &str)> = (0..)
            .zip(staged.keys.iter().zip(folded))
            .filter(|(_, (key, folded))| !key.cached && *folded)
            .map(|(index, (key, _))| (index, key))
            .map(|(index, key)| (index, str_slice(&staged.blob, key.name)))
            .collect();
        let names: Vec<&str> = missing.iter().map(|(_, name)| *name).collect();
        let _loading = self.watch.during(Part::Loading);
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
    async fn commit(&mut self, input: usize, arrivals: Vec<Arrival>, decision: Decision) -> Result<(), Error> {
        self.finish().await?;
        let Some(newest) = arrivals.last() else { return Ok(()) };
        if let Some(position) = self.positions.get_mut(input) {
            position.sequence = newest.sequence;
        }
        self.counts.add(&decision.counts);
        let is_behind = newest.pending > self.version.settings.batch_events as u64;
        self.pace.set_behind(is_behind);
        let ack = newest.message.reply.clone();
        let batch = self.told(input, &arrivals, is_behind);
        self.parked.park(&decision.parks, self.counts.delivered, clock::now());
        self.redriving.wakes(&self.parked);
        self.span = self.traced(input, &arrivals).map(|span| span.decided(&self.version.digest.short(), &decision));
        self.write(Kind::Batch, input, decision, None, ack)?;
        self.landing = Some(batch);
        Ok(())
    }

    /// What the numbers say of a batch. Events that were there before us, or wait in a crowd, tell how far behind we were, not how
    /// quick we are.
    fn told(&mut self, input: usize, arrivals: &[Arrival], is_behind: bool) -> progress::Batch {
        let stored = arrivals.first().zip(arrivals.last()).map(|(first, last)| (first.stored, last.stored));
        progress::Batch {
            input,
            events: arrivals.len() as u64,
            stored: stored.filter(|(first, _)| !is_behind && *first >= self.began),
            crowd: self.version.settings.batch_events as u64,
            fuel: std::mem::take(&mut self.fuel),
            guest_memory_bytes: self.guest.as_ref().map_or(0, |guest| guest.memory_bytes()),
        }
    }

    /// Says in a record of its own that all effects are published, unless that is said or not so.
    pub(crate) async fn rest(&mut self) -> Result<(), Error> {
        self.finish().await?;
        let acted = self.said.acted_through < self.acting && self.acting <= self.acted_through();
        if acted || self.said.buried_through < self.burying {
            self.write(Kind::Rest, 0, Decision::default(), None, None)?;
            self.finish().await?;
        }
        Ok(())
    }

    /// Moves positions over messages that are not the handler's, in a record of its own, before their streams drop them.
    async fn pass(&mut self) -> Result<(), Error> {
        self.finish().await?;
        for position in &mut self.positions {
            position.sequence = position.sequence.max(self.owner.progress.passed(&position.stream));
        }
        self.write(Kind::Rest, 0, Decision::default(), None, None)?;
        self.finish().await
    }

    /// Sends a record. None is in flight.
    fn write(
        &mut self,
        kind: Kind,
        input: usize,
        decision: Decision,
        unparked: Option<Unparked>,
        ack: Option<async_nats::Subject>,
    ) -> Result<(), Error> {
        self.order += 1;
        self.saying = Said {
            shown_through: self.documents.shown_through(),
            acted_through: self.acted_through(),
            // Those of the record before were stored before it had landed.
            buried_through: self.last,
            buries: !decision.parks.is_empty() || unparked.is_some(),
            acts: self.outbox.is_some() && !decision.effects.is_empty(),
        };
        let time = clock::now();
        let parking = Parking { through: self.last, recent: self.parked.recent(), parks: decision.parks, unparked };
        let record = Record {
            time,
            positions: self.positions.clone(),
            counts: self.counts,
            shown_through: self.saying.shown_through,
            acted_through: self.saying.acted_through,
            effects: decision.effects.clone(),
            carried: decision.carried.clone(),
            bucket: self.documents.created(),
            standing: self.standing,
            makes: self.makes,
            previous: self.last,
            input: u16::try_from(input).unwrap_or(u16::MAX),
            changes: decision.changes.iter().map(as_change).collect(),
            parking: parking.clone(),
            in_line: self.in_line(),
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
            span: self.span.take(),
            claim: self.claim,
            time,
            parking,
            dead: self.dead.clone(),
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

    pub(crate) fn makes(&self) -> Option<Makes> {
        self.makes
    }

    /// Units that are set aside.
    pub(crate) fn in_line(&self) -> u64 {
        self.parked.in_line()
    }

    /// Where the handler stands; nothing is in flight.
    pub(crate) fn stand(&self) -> (Vec<Position>, Counts) {
        (self.positions.clone(), self.counts)
    }

    /// Waits for the commit in flight.
    async fn finish(&mut self) -> Result<(), Error> {
        match &mut self.in_flight {
            Some(commit) => {
                let waiting = self.watch.during(Part::Commit);
                let done = commit.await;
                drop(waiting);
                self.landed(done)
            }
            None => Ok(()),
        }
    }

    fn landed(&mut self, done: Landed) -> Result<(), Error> {
        self.in_flight = None;
        self.last = done.map_err(|error| journal::Error::Unreachable(error.to_string()))??;
        self.said = self.saying;
        self.idle_since = Instant::now();
        if self.said.acts {
            self.acting = self.last;
        }
        if self.said.buries {
            self.burying = self.last;
        }
        match self.landing.take() {
            Some(batch) => self.owner.progress.landed(&self.positions, &self.counts, &batch),
            None => self.tell(),
        }
        self.owner.progress.parked(self.parked.len() as u64, self.parked.oldest());
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
        let done = self.said.shown_through.min(self.said.acted_through).min(self.said.buried_through);
        let keep_from = (done + 1).min(self.last.saturating_sub(keep));
        let journal = self.journal.clone();
        let trim = async move {
            if let Err(error) = journal.trim(keep_from).await {
                tracing::warn!(%error, "the journal could not be trimmed");
            }
        };
        tokio::spawn(trim.in_current_span());
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
type Landed = Result<Result<u64, Error>, tokio::task::JoinError>;

/// Gives back a guest's memory, which for a large one takes the kernel so long that others on this thread would notice.
fn let_go(guest: Option<Box<dyn Guest>>) {
    if guest.is_some() {
        tokio::task::block_in_place(|| drop(guest));
    }
}

/// The commit in flight, or never.
async fn landing(in_flight: &mut Option<JoinHandle<Result<u64, Error>>>) -> Landed {
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
    claim: u64,
    time: i64,
    parking: Parking,
    dead: DeadLetters,
}

impl Commit {
    async fn land(self) -> Result<u64, Error> {
        let sent = Stamp::now();
        let appended = self.journal.append(self.expected, self.record).await;
        traces::Batch::landed(self.span, appended.as_ref());
        let journal = appended?;
        crash::point("committed");
        self.documents.commit(Origin { order: self.order, journal, stream: self.stream, digest: self.digest });
        if !self.parking.parks.is_empty() || self.parking.unparked.is_some() {
            // Long after, an heir may have stored and removed them already.
            if sent.age(Stamp::now()) > PROVED_FOR && !self.journal.belongs_to(self.claim).await? {
                return Err(parking::Error::Fenced.into());
            }
            self.dead.settle(journal, self.time, &self.digest.to_string(), &self.parking, false).await?;
        }
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
