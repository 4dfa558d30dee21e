//! The host's side of a scenario. In: events. Out: documents as bytes, and the fate of each event; cuts them into
//! batches and parks keys that were refused. Never: keeps a document typed, so that what is not written is lost as it
//! would be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::TestEvent;
use super::fate::{Fate, Unit};
use crate::Projection;
use crate::contract::{self, Batch, Document, Documents, Outcome, Span, Staged};
use crate::guest::{ProjectionOf, Runtime};

/// How events are cut into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batches {
    One,
    LastAlone,
    OnePerEvent,
    OnePerEventUncached,
}

/// All documents, and the fate of each event.
pub(super) struct Run {
    pub(super) documents: BTreeMap<String, Vec<u8>>,
    pub(super) fates: Vec<Fate>,
}

/// Runs a scenario from the first event.
pub(super) fn run<P: Projection>(events: &[TestEvent], batches: Batches) -> Run {
    let mut host = Host::<P>::new();
    let mut fates = Vec::with_capacity(events.len());
    let mut rest = events;
    while let Some(first) = rest.first() {
        let same_stream = rest.iter().take_while(|event| event.source() == first.source()).count();
        let length = match batches {
            Batches::One => same_stream,
            Batches::LastAlone => same_stream.min(rest.len() - 1).max(1),
            Batches::OnePerEvent | Batches::OnePerEventUncached => 1,
        };
        let (batch, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        if batches == Batches::OnePerEventUncached {
            host.forget();
        }
        fates.append(&mut host.batch(batch));
        rest = later;
    }
    Run { documents: host.documents, fates }
}

/// A host of one projection.
pub(super) struct Host<P: Projection> {
    runtime: Runtime<ProjectionOf<P>>,
    pub(super) documents: BTreeMap<String, Vec<u8>>,
    parked: BTreeSet<String>,
    place: u64,
}

impl<P: Projection> Host<P> {
    pub(super) fn new() -> Self {
        Self { runtime: Runtime::new(), documents: BTreeMap::new(), parked: BTreeSet::new(), place: 0 }
    }

    /// Goes on with a new instance.
    fn forget(&mut self) {
        self.runtime = Runtime::new();
    }

    /// Runs one batch: stage, load, apply, commit.
    pub(super) fn batch(&mut self, events: &[TestEvent]) -> Vec<Fate> {
        let batch = self.encode(events);
        let staged = self.runtime.stage(batch);
        let names: Vec<&str> = staged.keys.iter().map(|key| contract::text(&staged.blob, key.name)).collect();
        let name = |key: u32| names.get(key as usize).copied().unwrap_or_default();

        let documents = self.load(&staged);
        let skip: Vec<u32> = (0..)
            .zip(&staged.routes)
            .filter(|(_, route)| self.parked.contains(name(route.key)))
            .map(|(number, _)| number)
            .collect();
        let outcome = self.runtime.apply(&documents, &skip);

        for change in &outcome.changes {
            let value = contract::bytes(&outcome.blob, change.value).to_vec();
            if change.deleted {
                self.documents.remove(name(change.key));
            } else {
                self.documents.insert(name(change.key).to_owned(), value);
            }
        }
        self.fates(events.len(), &staged, &outcome, name)
    }

    fn encode(&mut self, events: &[TestEvent]) -> Batch {
        let mut blob = Vec::new();
        let source = events.first().map_or("", TestEvent::source).as_bytes();
        let source = contract::append(&mut blob, source);
        let events = events
            .iter()
            .map(|event| {
                self.place += 1;
                event.encode(self.place, &mut blob)
            })
            .collect();
        Batch { source, events, blob }
    }

    /// The documents that the handler does not hold.
    fn load(&self, staged: &Staged) -> Documents {
        let mut blob = Vec::new();
        let documents = (0..)
            .zip(&staged.keys)
            .filter(|(_, key)| !key.cached)
            .map(|(number, key)| {
                let stored = self.documents.get(contract::text(&staged.blob, key.name));
                let value = match stored {
                    Some(document) => contract::append(&mut blob, document),
                    None => Span { start: 0, length: 0 },
                };
                Document { key: number, present: stored.is_some(), value }
            })
            .collect();
        Documents { documents, blob }
    }

    /// Sorts the outcome by event; parks what was refused.
    fn fates<'a>(
        &mut self,
        events: usize,
        staged: &Staged,
        outcome: &Outcome,
        name: impl Fn(u32) -> &'a str,
    ) -> Vec<Fate> {
        let mut fates: Vec<Fate> = (0..events).map(|_| Fate::Irrelevant).collect();
        for rejection in &staged.rejections {
            if let Some(fate) = fates.get_mut(rejection.event as usize) {
                let reason = contract::text(&staged.blob, rejection.reason);
                *fate = Fate::Rejected(reason.to_owned());
            }
        }
        for (number, route) in (0..).zip(&staged.routes) {
            let key = name(route.key);
            let refusal = outcome.refusals.iter().find(|refusal| refusal.route == number);
            let unit = match refusal {
                Some(refusal) => {
                    self.parked.insert(key.to_owned());
                    Unit::Refused(contract::text(&outcome.blob, refusal.reason).to_owned())
                }
                None if self.parked.contains(key) => Unit::Parked,
                None => Unit::Applied,
            };
            match fates.get_mut(route.event as usize) {
                Some(Fate::Routed(units)) => units.push((key.to_owned(), unit)),
                Some(fate) => *fate = Fate::Routed(vec![(key.to_owned(), unit)]),
                None => {}
            }
        }
        fates
    }
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "everything in one batch",
            Self::LastAlone => "the last event in a batch of its own",
            Self::OnePerEvent => "a batch per event",
            Self::OnePerEventUncached => "a batch per event, documents read back each time,",
        })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fate) in self.fates.iter().enumerate() {
            writeln!(f, "event {} {fate}", number + 1)?;
        }
        f.write_str(&super::listing(&self.documents))
    }
}
