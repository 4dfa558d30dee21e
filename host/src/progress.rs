//! What a running handler tells about itself: positions, outcomes, state. In: numbers from the pipeline. Out: a snapshot for
//! the status bucket. Never: decides anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::busy::Watch;
use crate::clock;
use crate::inputs::Input;
use crate::journal::{Counts, Position};
use crate::numbers::{Census, Measured, Numbers, Sizes};
use crate::outbox::{Outbox, Undelivered};
use crate::version::Version;

/// Effects named in a report that cannot be delivered.
const UNDELIVERED: usize = 5;

/// What a handler is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Being prepared, claimed or recovered.
    #[default]
    Starting,
    /// Deciding events as they come.
    Running,
    /// The server is away or undecided; trying again.
    Retrying,
    /// Stopped at an event that it cannot take, or by something that a person must mend.
    Failing,
    /// Stopped by the deployment.
    Paused,
    /// Left to another host, which may have taken it.
    StandingBy,
    /// Its host ended, as it was told to.
    Stopped,
}

/// A deployment that is not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its revision.
    #[serde(default)]
    pub revision: u64,
    /// Digest of its module, in hexadecimal.
    pub digest: String,
    /// Why.
    pub reason: String,
}

/// A snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What the handler is doing.
    pub state: State,
    /// Why it is not running, where that is so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Name of the host.
    pub host: String,
    /// Digest of the module that runs, in hexadecimal.
    pub digest: String,
    /// Revision of the deployment that it runs as, or ran last; 0 where nobody knows.
    #[serde(default)]
    pub revision: u64,
    /// Projection or saga.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// State version of the documents.
    #[serde(default)]
    pub state_version: u32,
    /// The last deployment that was not taken over, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// How long the last change of module kept events waiting, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_microseconds: Option<u64>,
    /// Positions as decided.
    pub positions: Vec<Position>,
    /// Outcomes since the generation began.
    pub counts: Counts,
    /// How many effects nobody takes at present.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undelivered_effects: usize,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undelivered: Vec<Undelivered>,
    /// What the host measured.
    #[serde(default)]
    pub numbers: Numbers,
    /// When this was written, nanoseconds since 1970, by the host's clock.
    pub time: i64,
}

/// A batch that was decided, for the numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch {
    /// Which input.
    pub(crate) input: usize,
    /// Its events.
    pub(crate) events: u64,
    /// When the first and the last of them were stored, nanoseconds since 1970; none where the handler was behind.
    pub(crate) stored: Option<(i64, i64)>,
    /// With more undecided events than this a handler is behind.
    pub(crate) crowd: u64,
    /// Fuel that the guest used since the batch before.
    pub(crate) fuel: u64,
    /// Memory that the guest holds.
    pub(crate) guest_memory_bytes: u64,
}

/// What a claim works on.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// Its inputs, as they were when it began.
    pub(crate) inputs: Vec<Input>,
    /// The handler's name.
    pub(crate) handler: String,
    /// The generation's bucket.
    pub(crate) bucket: String,
    /// Its documents are instances.
    pub(crate) has_instances: bool,
}

/// Where a handler stands in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    /// Its position.
    pub(crate) position: u64,
    /// Events decided by this host.
    pub(crate) decided: u64,
    /// How many claims of this host there were.
    pub(crate) claim: u64,
}

/// The live numbers of one handler.
#[derive(Default)]
pub struct Progress {
    report: Mutex<Report>,
    /// Revision of the deployment that runs.
    revision: Mutex<Arc<AtomicU64>>,
    /// What the claim that runs, or ran last, works on.
    ground: Mutex<Option<Arc<Ground>>>,
    watch: Arc<Watch>,
    /// The effects of the claim that runs.
    outbox: Mutex<Weak<Outbox>>,
    /// Grows when anything but numbers changes.
    turns: watch::Sender<u64>,
    /// How often this host has begun with it.
    claims: AtomicU64,
    /// Events decided, until which a module that fails gives way to the one before.
    probation: AtomicU64,
    /// Up to where nothing of the handler's is undecided, by stream; what lies between the position and that is not for it.
    passed: Mutex<HashMap<String, u64>>,
    /// A position is about to fall out of its stream.
    passing: Notify,
}

impl Progress {
    /// A handler that has not begun.
    #[must_use]
    pub fn new(host: &str, digest: &str) -> Self {
        let numbers = Numbers { since: clock::now(), ..Numbers::default() };
        let report = Report { host: host.to_owned(), digest: digest.to_owned(), numbers, ..Report::default() };
        Self { report: Mutex::new(report), ..Self::default() }
    }

    /// So much is decided.
    pub fn decided(&self, positions: &[Position], counts: &Counts) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.positions.clear();
        report.positions.extend_from_slice(positions);
        report.counts = *counts;
    }

    /// So many keys are parked, the oldest since then, nanoseconds since 1970.
    pub fn parked(&self, keys: u64, oldest: Option<i64>) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.numbers.parked_keys = Some(keys);
        report.numbers.oldest_parked = oldest;
    }

    /// So much is decided, and this batch came last.
    pub(crate) fn landed(&self, positions: &[Position], counts: &Counts, batch: &Batch) {
        let now = clock::now();
        self.decided(positions, counts);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = &mut report.numbers;
        numbers.last_decided = Some(now);
        numbers.batches += 1;
        numbers.events += batch.events;
        numbers.fuel = numbers.fuel.saturating_add(batch.fuel);
        numbers.guest_memory_bytes = batch.guest_memory_bytes;
        let stream = positions.get(batch.input).map(|position| position.stream.as_str());
        let mut is_behind = false;
        if let Some(measured) = numbers.streams.iter_mut().find(|measured| stream == Some(measured.stream.as_str())) {
            measured.decided += batch.events;
            // What was fetched ahead waits here, and its messages were sent before the crowd was there.
            is_behind = measured.events > batch.crowd;
        }
        if let Some((first, last)) = batch.stored.filter(|_| !is_behind) {
            numbers.latency.observe(now - first);
            if batch.events > 1 {
                numbers.latency.observe(now - last);
            }
        }
    }

    /// A claim begins on this ground, where these are its positions. Totals of streams that are read again go on.
    pub(crate) fn begins_on(&self, ground: Ground, positions: &[Position], counts: &Counts) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.positions = positions.to_vec();
        report.counts = *counts;
        self.claims.fetch_add(1, Ordering::AcqRel);
        let mut known = std::mem::take(&mut report.numbers.streams);
        report.numbers.streams.extend(ground.inputs.iter().map(|input| {
            match known.iter().position(|measured| measured.stream == input.stream) {
                Some(index) => known.swap_remove(index),
                None => Measured { stream: input.stream.clone(), ..Measured::default() },
            }
        }));
        drop(report);
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.ground.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(ground));
    }

    /// What the claim that runs, or ran last, works on.
    pub(crate) fn ground(&self) -> Option<Arc<Ground>> {
        self.ground.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the handler stands in this stream.
    pub(crate) fn stand(&self, stream: &str) -> Stand {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let position = report.positions.iter().find(|position| position.stream == stream);
        let measured = report.numbers.streams.iter().find(|measured| measured.stream == stream);
        Stand {
            position: position.map_or(0, |position| position.sequence),
            decided: measured.map_or(0, |measured| measured.decided),
            claim: self.claims.load(Ordering::Acquire),
        }
    }

    /// Nothing of the handler's is undecided up to here. `hurry`: its position should say so soon.
    pub(crate) fn passes(&self, stream: &str, through: u64, hurry: bool) {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.to_owned(), through);
        if hurry {
            self.passing.notify_one();
        }
    }

    /// Up to where nothing of the handler's is undecided, by a sample of this claim; 0 where nobody has looked.
    pub(crate) fn passed(&self, stream: &str) -> u64 {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).get(stream).copied().unwrap_or_default()
    }

    /// Resolves when a position should be moved to what is passed; one waits at a time.
    pub(crate) async fn is_to_pass(&self) {
        self.passing.notified().await;
    }

    /// A stream was sampled. What is decided is known better here.
    pub(crate) fn measured(&self, sample: Measured) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let mut streams = report.numbers.streams.iter_mut();
        if let Some(measured) = streams.find(|measured| measured.stream == sample.stream) {
            *measured = Measured { decided: measured.decided, ..sample };
        }
    }

    /// So much is stored.
    pub(crate) fn weighs(&self, sizes: Sizes) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).numbers.sizes = sizes;
    }

    /// The instances were counted.
    pub(crate) fn counted(&self, census: Census) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).numbers.census = Some(census);
    }

    /// Batches decided by this host.
    pub(crate) fn batches(&self) -> u64 {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).numbers.batches
    }

    /// Where the pipeline tells how it spends its time.
    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// The state changed.
    pub fn set(&self, state: State, reason: impl Into<String>) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.state = state;
        report.reason = reason.into();
        drop(report);
        self.turn();
    }

    /// Until so many events are decided, a module that fails gives way to the one before; 0: there is none.
    pub fn try_until(&self, delivered: u64) {
        self.probation.store(delivered, Ordering::Release);
    }

    /// Whether a failure, so many events after the generation began, is the new module's.
    #[must_use]
    pub fn is_on_probation(&self, delivered: u64) -> bool {
        delivered < self.probation.load(Ordering::Acquire)
    }

    /// This version runs from here on.
    pub fn runs(&self, version: &Version) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).digest = version.digest.to_string();
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&version.revision);
        self.turn();
    }

    /// This version took over between two batches, which took so long.
    pub fn swapped(&self, version: &Version, pause: Duration) {
        let pause = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.report.lock().unwrap_or_else(PoisonError::into_inner).pause_microseconds = Some(pause);
        self.runs(version);
    }

    /// The deployment that is wanted is not taken over; or, with none, it is.
    pub fn refused(&self, refused: Option<Refused>) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).refused = refused;
        self.turn();
    }

    /// Goes on from what was said of the handler before this life.
    pub fn recalls(&self, before: &Report) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.digest.clone_from(&before.digest);
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(AtomicU64::new(before.revision));
        report.kind.clone_from(&before.kind);
        report.state_version = before.state_version;
    }

    /// Documents are of this kind of handler and of this state version from here on.
    pub fn makes(&self, kind: &str, state_version: u32) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        kind.clone_into(&mut report.kind);
        report.state_version = state_version;
    }

    /// Something that is no number changed.
    pub(crate) fn turn(&self) {
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// Tells of each change of anything but numbers.
    #[must_use]
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// What the handler is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).state
    }

    /// A claim begins whose effects go through this.
    pub fn acts_through(&self, outbox: &Arc<Outbox>) {
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(outbox);
    }

    /// Where the handler stands, as decided.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).positions.clone()
    }

    /// Events decided since the generation began, as far as this life knows.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).counts.delivered
    }

    /// The numbers as they are now.
    #[must_use]
    pub fn report(&self, now: i64) -> Report {
        let outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let (undelivered_effects, mut undelivered) = outbox.map(|outbox| outbox.undelivered()).unwrap_or_default();
        undelivered.truncate(UNDELIVERED);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.numbers.busy = self.watch.read();
        let revision = self.revision.lock().unwrap_or_else(PoisonError::into_inner).load(Ordering::Acquire);
        Report { time: now, revision, undelivered_effects, undelivered, ..report }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_observed_while_no_crowd_waits_wherever_it_waits() {
        let progress = Progress::new("h", "");
        let at = |sequence| [Position { stream: "S".to_owned(), created: 1, sequence }];
        let input = Input { stream: "S".to_owned(), filters: Vec::new(), created: 1, first: 1, last: 7, direct: true };
        let ground =
            Ground { inputs: vec![input], handler: "h".to_owned(), bucket: "h".to_owned(), has_instances: false };
        progress.begins_on(ground, &at(7), &Counts::default());
        assert_eq!(progress.stand("S"), Stand { position: 7, decided: 0, claim: 1 });
        let now = clock::now();
        for (waiting, observed) in [(0, 2), (1000, 4), (1001, 4), (7070, 4), (10, 6)] {
            progress.measured(Measured { stream: "S".to_owned(), events: waiting, ..Measured::default() });
            let batch = Batch { events: 5, stored: Some((now, now)), crowd: 1000, ..Batch::default() };
            progress.landed(&at(8), &Counts::default(), &batch);
            let report = progress.report(now);
            assert_eq!(report.numbers.latency.buckets.iter().sum::<u64>(), observed, "{waiting} wait");
        }
    }
}
