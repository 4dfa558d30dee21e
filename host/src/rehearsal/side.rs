//! One module's side of a rehearsal: it folds batches as the host would, from nothing, and what it cannot take it leaves out. In: batches, and which units are wanted. Out: each unit as it went, and the events that it failed at. Never: lets the
//! guest's words into the log, or acts on an effect.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use millstream_saga::{Instance, Rules};
use tracing::subscriber::{NoSubscriber, with_default};

use super::projection;
use crate::blame::{Blame, Verdict};
use crate::decision::Undecided;
use crate::intake::Arrival;
use crate::names;
use crate::saga::replay::{self, Broken, Lens, Unit};
use crate::sandbox::Guest;
use crate::subject;
use crate::version::Version;

/// How instances and documents are looked at after each unit.
pub(super) struct Look<V> {
    pub(super) instance: fn(Option<&Instance>) -> V,
    pub(super) document: fn(Option<&[u8]>) -> V,
}

/// What a side made of a batch.
pub(super) struct Folded<V> {
    pub(super) units: Vec<Unit<V>>,
    pub(super) failed: Vec<Failed>,
}

/// What deciding has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) events: u64,
    pub(super) fuel: u64,
    pub(super) time: Duration,
}

/// An event that the module cannot take.
pub(super) struct Failed {
    /// Its index in the batch.
    pub(super) event: usize,
    pub(super) reason: String,
    /// Instances that it was for, as far as the module said.
    pub(super) keys: Vec<String>,
}

/// The state of an instance, on its way to a module with a timer.
#[derive(Clone)]
pub(super) struct Probe<'a> {
    pub(super) key: &'a str,
    pub(super) state: Option<&'a str>,
    pub(super) timer: Arrival,
}

/// Index of the event that is to blame where that is known, why, and the units that were to be folded.
type Blamed = (Option<usize>, String, Vec<(usize, String)>);

/// A module at work.
pub(super) struct Side<'a, V> {
    handler: &'a str,
    version: &'a Version,
    look: Look<V>,
    guest: Option<Box<dyn Guest>>,
    instances: HashMap<String, Instance>,
    documents: HashMap<String, Vec<u8>>,
    spent: Spent,
    /// Keys of instances that it failed at: it gets none of their events any more.
    given_up: HashSet<String>,
}

impl<'a, V> Side<'a, V> {
    pub(super) fn new(handler: &'a str, version: &'a Version, look: Look<V>) -> Self {
        Self {
            handler,
            version,
            look,
            guest: None,
            instances: HashMap::new(),
            documents: HashMap::new(),
            spent: Spent::default(),
            given_up: HashSet::new(),
        }
    }

    pub(super) fn instance(&self, key: &str) -> Option<&Instance> {
        self.instances.get(key)
    }

    pub(super) fn spent(&self) -> Spent {
        self.spent
    }

    /// It gets no more events of this instance.
    pub(super) fn give_up(&mut self, key: &str) {
        self.given_up.insert(key.to_owned());
        self.instances.remove(key);
    }

    pub(super) fn has_given_up(&self, key: &str) -> bool {
        self.given_up.contains(key)
    }

    /// Folds the wanted units of the events that this version reads.
    pub(super) fn fold(
        &mut self,
        stream: &str,
        arrivals: &[Arrival],
        wanted: &dyn Fn(usize, &str) -> bool,
    ) -> anyhow::Result<Folded<V>> {
        let reads = |arrival: &Arrival| {
            stream == names::TIMERS
                || self.version.filters().iter().any(|filter| subject::covers(filter, &arrival.message.subject))
        };
        let (places, own): (Vec<usize>, Vec<Arrival>) = arrivals
            .iter()
            .enumerate()
            .filter(|(_, arrival)| reads(arrival))
            .map(|(at, one)| (at, one.clone()))
            .unzip();
        let (mut folded, mut blame, mut done) = (Folded { units: Vec::new(), failed: Vec::new() }, Blame::default(), 0);
        while done < own.len() {
            let tried = blame.take(own.len() - done);
            let (Some(part), Some(here)) = (own.get(done..done + tried), places.get(done..)) else { break };
            let place = |event: usize| here.get(event).copied().unwrap_or_default();
            match self.attempt(stream, part, &|event, key| wanted(place(event), key))? {
                Ok(units) => {
                    folded.units.extend(units.into_iter().map(|unit| Unit { event: place(unit.event), ..unit }));
                    blame.passed(tried);
                    done += tried;
                }
                Err((index, reason, units)) => {
                    if blame.failed(tried, index) == Verdict::First {
                        let of_first = units.into_iter().filter(|(event, _)| *event == 0);
                        let keys: Vec<String> = of_first.map(|(_, key)| key).collect();
                        self.given_up.extend(keys.iter().cloned());
                        folded.failed.push(Failed { event: place(0), reason, keys });
                        done += 1;
                    }
                }
            }
        }
        Ok(folded)
    }

    /// Folds a part of a batch, or says which of its events is to blame, and why.
    fn attempt(
        &mut self,
        stream: &str,
        part: &[Arrival],
        wanted: &dyn Fn(usize, &str) -> bool,
    ) -> anyhow::Result<Result<Vec<Unit<V>>, Blamed>> {
        let mut guest = match self.guest.take() {
            Some(guest) if !guest.is_bloated() => guest,
            _ => (self.version.instantiate)()?,
        };
        let (fuel, begun) = (guest.fuel_used(), Instant::now());
        match self.played(guest.as_mut(), stream, part, wanted) {
            Ok(units) => {
                if stream != names::TIMERS {
                    self.spent.events += part.len() as u64;
                }
                self.spent.fuel += guest.fuel_used().saturating_sub(fuel);
                self.spent.time += begun.elapsed();
                self.guest = Some(guest);
                Ok(Ok(units))
            }
            Err(Broken { why, units }) => {
                let (index, reason) = blamed(why)?;
                Ok(Err((index, reason, units)))
            }
        }
    }

    fn played(
        &mut self,
        guest: &mut dyn Guest,
        stream: &str,
        part: &[Arrival],
        wanted: &dyn Fn(usize, &str) -> bool,
    ) -> Result<Vec<Unit<V>>, Broken> {
        let Self { handler, version, look, instances, documents, given_up, .. } = self;
        let Some(facts) = &version.saga else {
            return muted(|| projection::fold(guest, stream, part, documents, look.document));
        };
        let settings = &version.settings;
        let rules = Rules {
            handler,
            // Of no module: two that do the same leave the same.
            digest: "",
            late: facts.late,
            sends: &facts.sends,
            stateless: facts.stateless,
            effect_bytes: settings.effect_bytes,
            effects_per_unit: settings.effects_per_unit,
            max_depth: settings.max_depth,
        };
        let lens = Lens {
            wanted: &|event, key: &str| !given_up.contains(key) && wanted(event, key),
            view: &|instance: Option<&Instance>| (look.instance)(instance),
        };
        muted(|| replay::fold(guest, &rules, stream, part, instances, &lens))
    }

    /// Hands these over; answers what the module says against each.
    pub(super) fn hand_over(&self, wanted: &[Probe<'_>]) -> anyhow::Result<Vec<Option<String>>> {
        let (mut said, mut blame) = (Vec::with_capacity(wanted.len()), Blame::default());
        let mut guest = None;
        while said.len() < wanted.len() {
            let tried = blame.take((wanted.len() - said.len()).min(super::EVENTS));
            let Some(part) = wanted.get(said.len()..said.len() + tried) else { break };
            let arrivals: Vec<Arrival> = part.iter().map(|probe| probe.timer.clone()).collect();
            let states: HashMap<&str, Option<&str>> = part.iter().map(|probe| (probe.key, probe.state)).collect();
            let mut fresh = match guest.take() {
                Some(guest) => guest,
                None => (self.version.instantiate)()?,
            };
            match muted(|| replay::hand_over(fresh.as_mut(), &arrivals, &states)) {
                Ok(refusals) => {
                    said.extend(refusals);
                    blame.passed(tried);
                    guest = Some(fresh);
                }
                Err(why) => {
                    let (index, reason) = blamed(why)?;
                    if blame.failed(tried, index) == Verdict::First {
                        said.push(Some(reason));
                    }
                }
            }
        }
        Ok(said)
    }
}

/// The index of the event that is to blame, where that is known, and why.
fn blamed(why: Undecided) -> anyhow::Result<(Option<usize>, String)> {
    match why {
        Undecided::Guilty { index, class, reason, .. } => Ok((index, format!("{class}: {reason}"))),
        Undecided::Trouble(error) => Err(error.into()),
    }
}

/// What a guest says in a rehearsal is about the past, and nobody's news.
fn muted<T>(call: impl FnOnce() -> T) -> T {
    with_default(NoSubscriber::default(), call)
}
