//! Two modules side by side on the same recorded events, from nothing. In: events in order. Out: a report: where documents, effects
//! and failures differ, and what each module costs. A saga's timers come when the recorded time has passed them, each module's
//! own. Pure but for the clock that measures. Never: publishes or writes.

mod effects;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_nats::jetstream::Context;
use millstream_saga::{Instance, Outgoing};

use super::live::events;
use super::side::{Folded, Look, Side, Spent};
use super::timers::arrival;
use super::verdict::At;
use crate::direct_get::From;
use crate::inputs::Input;
use crate::intake::Arrival;
use crate::names;
use crate::recorded::Past;
use crate::timers::Timer;
use crate::version::Version;
use effects::Effects;
pub use report::{Cost, Difference, Documents, Failure, OtherEffect, Report, Which};

/// Failures that are kept; all are counted.
const FAILURES: usize = 100;

/// A document as it would stand in the bucket, but for the digest in a saga's history.
type Document = Option<Vec<u8>>;

const LOOK: Look<Document> =
    Look { instance: |instance| instance.map(Instance::write), document: |bytes| bytes.map(<[u8]>::to_vec) };

/// Runs both over the recorded events of these inputs from there on. `tell` hears how many were read.
///
/// # Errors
/// When the server does not answer.
pub async fn run(
    jetstream: &Context,
    handler: &str,
    inputs: &[Input],
    from: From,
    versions: (&Version, &Version),
    mut tell: impl FnMut(u64),
) -> anyhow::Result<Report> {
    let mut shadow = Shadow::new(handler, versions);
    let mut past = Past::open(jetstream, inputs, from).await?;
    while let Some((stream, arrivals)) = past.next(super::EVENTS, super::BYTES).await? {
        tokio::task::block_in_place(|| shadow.take(&stream, &arrivals))?;
        tell(shadow.report.events);
    }
    Ok(shadow.report())
}

struct Shadow<'a> {
    is_saga: bool,
    old: Runner<'a>,
    new: Runner<'a>,
    /// The event that made a key's documents differ, as long as they do.
    since: HashMap<String, At>,
    effects: Effects,
    report: Report,
}

/// One module with its documents, and its timers by due time and id.
struct Runner<'a> {
    handler: &'a str,
    side: Side<'a, Document>,
    documents: BTreeMap<String, Vec<u8>>,
    timers: BTreeMap<(i64, String), Set>,
    due: HashMap<String, i64>,
}

struct Set {
    body: Vec<u8>,
    correlation: String,
    causation: String,
}

impl<'a> Shadow<'a> {
    fn new(handler: &'a str, (old, new): (&'a Version, &'a Version)) -> Self {
        let report = Report {
            handler: handler.to_owned(),
            kind: new.kind(),
            running: old.digest.to_string(),
            new: new.digest.to_string(),
            ..Report::default()
        };
        Self {
            is_saga: new.saga.is_some(),
            old: Runner::new(handler, old),
            new: Runner::new(handler, new),
            since: HashMap::new(),
            effects: Effects::default(),
            report,
        }
    }

    fn take(&mut self, stream: &str, arrivals: &[Arrival]) -> anyhow::Result<()> {
        self.report.events += arrivals.len() as u64;
        let events = events(stream, arrivals);
        if !self.is_saga {
            let old = self.old.fold(stream, arrivals)?;
            let new = self.new.fold(stream, arrivals)?;
            self.compare(&events, old, new);
            return Ok(());
        }
        // One at a time: what an event sets may be due before the next one.
        for (arrival, event) in arrivals.iter().zip(&events) {
            let here = std::slice::from_ref(event);
            let (old, new) = (self.old.fire(arrival.stored)?, self.new.fire(arrival.stored)?);
            self.compare(here, old, new);
            let one = std::slice::from_ref(arrival);
            let old = self.old.fold(stream, one)?;
            let new = self.new.fold(stream, one)?;
            self.compare(here, old, new);
        }
        Ok(())
    }

    /// Compares what both made of these events. Timers count for the event that they came before.
    fn compare(&mut self, events: &[At], old: Folded<Document>, new: Folded<Document>) {
        for (which, failed) in [(Which::Running, &old.failed), (Which::New, &new.failed)] {
            for failed in failed {
                let Some(at) = events.get(failed.event).or(events.first()) else { continue };
                self.report.failed(which, Failure { which, at: at.clone(), reason: failed.reason.clone() });
            }
        }
        let mut touched: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        let (mut olds, mut news) = (BTreeMap::new(), BTreeMap::new());
        for (units, documents, is_old) in [(old.units, &mut olds, true), (new.units, &mut news, false)] {
            for unit in units {
                let at = unit.event.min(events.len().saturating_sub(1));
                if let Some(event) = events.get(at) {
                    self.effects.see(is_old, &unit.effects, event);
                }
                touched.entry(at).or_default().insert(unit.key.clone());
                documents.insert((at, unit.key), unit.view);
            }
        }
        for (at, keys) in touched {
            for key in keys {
                let place = (at, key);
                self.old.show(&place, &mut olds);
                self.new.show(&place, &mut news);
                let (_, key) = place;
                if self.old.documents.get(&key) == self.new.documents.get(&key) {
                    self.since.remove(&key);
                } else if let Some(event) = events.get(at) {
                    self.since.entry(key).or_insert_with(|| event.clone());
                }
            }
        }
    }

    fn report(self) -> Report {
        let Self { old, new, since, effects, mut report, .. } = self;
        report.documents = Documents::of(&old.documents, &new.documents, since);
        report.effects = effects.report();
        report.cost = (Cost::of(&old.side.spent()), Cost::of(&new.side.spent())).into();
        report
    }
}

impl<'a> Runner<'a> {
    fn new(handler: &'a str, version: &'a Version) -> Self {
        Self {
            handler,
            side: Side::new(handler, version, LOOK),
            documents: BTreeMap::new(),
            timers: BTreeMap::new(),
            due: HashMap::new(),
        }
    }

    /// What stands under a key after this event.
    fn show(&mut self, place: &(usize, String), documents: &mut BTreeMap<(usize, String), Document>) {
        match documents.remove(place) {
            Some(Some(document)) => drop(self.documents.insert(place.1.clone(), document)),
            Some(None) => drop(self.documents.remove(&place.1)),
            None => {}
        }
    }

    fn fold(&mut self, stream: &str, arrivals: &[Arrival]) -> anyhow::Result<Folded<Document>> {
        let folded = self.side.fold(stream, arrivals, &|_, _| true)?;
        for unit in &folded.units {
            let now = arrivals.get(unit.event).map_or(0, |arrival| arrival.stored);
            for effect in &unit.effects {
                self.set(effect, now);
            }
        }
        Ok(folded)
    }

    /// Sets or takes back a timer; a deadline counts from this event.
    fn set(&mut self, effect: &Outgoing, now: i64) {
        let (id, due, body, correlation, causation) = match effect {
            Outgoing::Timer { id, due, body, correlation, causation } => (id, *due, body, correlation, causation),
            Outgoing::Wait { id, after_ms, body, correlation, causation } => {
                let after = i64::try_from(*after_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                (id, now.saturating_add(after), body, correlation, causation)
            }
            Outgoing::Cancel { id } => {
                if let Some(due) = self.due.remove(id) {
                    self.timers.remove(&(due, id.clone()));
                }
                return;
            }
            Outgoing::Message(_) => return,
        };
        let (correlation, causation) = (correlation.clone(), causation.clone());
        self.due.insert(id.clone(), due);
        self.timers.insert((due, id.clone()), Set { body: body.clone(), correlation, causation });
    }

    /// Has all timers fire that were due by then, those too that others set.
    fn fire(&mut self, until: i64) -> anyhow::Result<Folded<Document>> {
        let mut all = Folded { units: Vec::new(), failed: Vec::new() };
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= until
        {
            let ((due, id), Set { body, correlation, causation }) = entry.remove_entry();
            self.due.remove(&id);
            let timer = Timer { id: &id, due, body: body.into(), correlation: &correlation, causation: &causation };
            let fired = arrival(self.handler, &timer);
            let folded = self.fold(names::TIMERS, std::slice::from_ref(&fired))?;
            all.units.extend(folded.units);
            all.failed.extend(folded.failed);
        }
        Ok(all)
    }
}
