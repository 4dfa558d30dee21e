//! Which effects of a record belong to which trace. In: the events that caused them. Out: what the record holds beside its effects,
//! and each effect's context again. Pure but for whether this host exports. Never: changes an effect.

use std::sync::Arc;

use millstream_saga::Outgoing;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::exporter;
use crate::intake::Arrival;

/// The traces of a record's effects: mostly none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried(Vec<Run>);

/// Effects in a row that one event caused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    from: u32,
    to: u32,
    context: Context,
}

/// Bytes of a run's numbers in a record, at most.
const RUN_ROOM: usize = 10;

/// The effects of a record with their traces.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// What is to be published, in order.
    pub outgoing: Vec<Outgoing>,
    /// Where they stand in traces.
    pub carried: Carried,
}

impl From<Vec<Outgoing>> for Effects {
    fn from(outgoing: Vec<Outgoing>) -> Self {
        Self { outgoing, carried: Carried::default() }
    }
}

impl Carried {
    /// None of the effects belongs to a trace.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that it takes in a record, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|run| run.context.bytes() + RUN_ROOM).sum::<usize>() + RUN_ROOM
    }

    /// The context of each effect, by its place.
    pub(crate) fn contexts(self) -> impl FnMut(usize) -> Option<Arc<Context>> {
        let mut runs = self.0.into_iter();
        let mut current: Option<(std::ops::Range<usize>, Arc<Context>)> = None;
        move |place| {
            while current.as_ref().is_none_or(|(range, _)| range.end <= place) {
                let Run { from, to, context } = runs.next()?;
                current = Some((from as usize..to as usize, Arc::new(context)));
            }
            current.as_ref().filter(|(range, _)| range.contains(&place)).map(|(_, context)| Arc::clone(context))
        }
    }

    /// So many effects, of one trace.
    #[cfg(test)]
    pub(crate) fn of_one(effects: usize, context: Context) -> Self {
        let mut carried = Self::default();
        carried.add(0, effects, context);
        carried
    }

    fn add(&mut self, from: usize, count: usize, context: Context) {
        let number = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
        self.0.push(Run { from: number(from), to: number(from + count), context });
    }
}

/// The traces of effects, given what each unit sends and which event it is about.
pub(crate) fn of_effects<'a>(units: impl Iterator<Item = (&'a [Outgoing], usize)>, arrivals: &[Arrival]) -> Carried {
    let exporter = exporter::exporter();
    let mut carried = Carried::default();
    let mut from = 0;
    for (outgoing, event) in units {
        // What is taken back belongs to no trace.
        if let Some(correlation) = outgoing.iter().find_map(correlation) {
            let headers = arrivals.get(event).and_then(|arrival| arrival.message.headers.as_ref());
            let context = headers.and_then(Context::read);
            let begun = || exporter.map(|exporter| Context::begin(correlation, |trace| exporter.samples(trace)));
            if let Some(context) = context.or_else(begun) {
                carried.add(from, outgoing.len(), context.recorded(exporter.is_some()));
            }
        }
        from += outgoing.len();
    }
    carried
}

fn correlation(effect: &Outgoing) -> Option<&str> {
    match effect {
        Outgoing::Message(message) => Some(&message.correlation),
        Outgoing::Timer { correlation, .. } | Outgoing::Wait { correlation, .. } => Some(correlation),
        Outgoing::Cancel { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_effect_finds_the_context_of_its_own_event() {
        let mut carried = Carried::default();
        let (one, two) = (Context::begin("1", |_| true), Context::begin("2", |_| true));
        carried.add(1, 2, one.clone());
        carried.add(5, 1, two.clone());
        assert!(postcard::to_stdvec(&carried).unwrap().len() <= carried.bytes());
        let contexts: Vec<_> =
            (0..7).map(carried.contexts()).map(|found| found.map(|found| (*found).clone())).collect();
        assert_eq!(contexts, [None, Some(one.clone()), Some(one), None, None, Some(two), None]);
        assert!((0..3).map(Carried::default().contexts()).all(|found| found.is_none()));
    }
}
