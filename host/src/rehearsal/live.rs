//! Two modules over the past of live instances. In: those instances, and recorded events in order. Out: a verdict. An instance's
//! past begins with the event that began its life, and ends with the last event that is in its document; timers come where its
//! history has them. Its past is whole if one of the modules arrives at what is stored. It diverges at the first event where
//! the new module fails, asks for other effects than the running one, or leaves the instance otherwise; or if it cannot take
//! the stored state that the running one can. Pure. Never: judges by a past that is not whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millstream_saga::{Instance, Status};
use serde_json::json;
use serde_json::value::RawValue;

use super::instances::Live;
use super::mark::{Mark, other_effects};
use super::side::{Failed, Folded, Look, Probe, Side};
use super::timers::{self, Fired, Timers};
use super::verdict::{At, Divergence, Verdict};
use crate::batch;
use crate::intake::Arrival;
use crate::names;
use crate::saga::replay::Unit;
use crate::sandbox::{str_slice, wire};
use crate::timers::{TYPE, Timer};
use crate::version::Version;

/// A rehearsal in progress.
pub(super) struct Rehearsal<'a> {
    handler: &'a str,
    old: Side<'a, Option<Mark>>,
    new: Side<'a, Option<Mark>>,
    watched: BTreeMap<String, Watched>,
    /// Keys by the id of the event that began their lives.
    lives: HashMap<String, Vec<String>>,
    timers: Timers,
    /// What was decided of each stream before the instances were read.
    positions: HashMap<String, u64>,
    verdict: Verdict,
}

/// An instance whose past is played.
struct Watched {
    stored: Instance,
    /// Id of the last event in its document.
    last: String,
    /// Events that the new module itself decided, when it ran before: it does not diverge there, whatever runs now.
    decided_by_new: BTreeSet<String>,
    /// Its life has begun, before this batch or at this index in it.
    begun: Option<usize>,
    /// What it was after its last unit, under the old module and the new.
    marks: (Option<Mark>, Option<Mark>),
    /// The same after the last event of its document.
    arrived: Option<(Option<Mark>, Option<Mark>)>,
    /// Its past is played to its end.
    over: bool,
    diverged: Option<Divergence>,
    other_payload: bool,
}

/// One unit of one side.
type Seen = Unit<Option<Mark>>;

/// Instances are looked at by what of them counts.
const LOOK: Look<Option<Mark>> = Look { instance: |instance| instance.map(Mark::of), document: |_| None };

impl<'a> Rehearsal<'a> {
    pub(super) fn new(
        handler: &'a str,
        (old, new): (&'a Version, &'a Version),
        live: Live,
        positions: HashMap<String, u64>,
    ) -> Self {
        let mut timers = Timers::default();
        let mut lives: HashMap<String, Vec<String>> = HashMap::new();
        let verdict = Verdict { live: live.all, looked_at: live.looked_at.len() as u64, ..Verdict::default() };
        let mut watched = BTreeMap::new();
        for (key, stored) in live.looked_at {
            timers.add(&key, &stored);
            lives.entry(stored.life.clone()).or_default().push(key.clone());
            watched.insert(key, Watched::new(stored, &new.digest.to_string()));
        }
        let [old, new] = [old, new].map(|version| Side::new(handler, version, LOOK));
        Self { handler, old, new, watched, lives, timers, positions, verdict }
    }

    /// How many events it has taken.
    pub(super) fn events(&self) -> u64 {
        self.verdict.events
    }

    /// Nothing that comes can change the verdict.
    pub(super) fn has_seen_enough(&self) -> bool {
        self.watched.values().all(|watched| watched.over)
    }

    /// Takes events of one stream, in order.
    pub(super) fn take(&mut self, stream: &str, arrivals: &[Arrival]) -> anyhow::Result<()> {
        self.verdict.events += arrivals.len() as u64;
        let events = events(stream, arrivals);
        let (mut begin, mut due) = (0, Vec::new());
        for (index, event) in events.iter().enumerate() {
            if self.timers.precede(&event.event) {
                self.play(stream, arrivals.get(begin..index), events.get(begin..index))?;
                begin = index;
                due.append(&mut self.timers.take_before(&event.event));
                self.fire(std::mem::take(&mut due))?;
            }
        }
        self.play(stream, arrivals.get(begin..), events.get(begin..))
    }

    /// Has these timers fire: the first of each instance, then the second, for one may be set only by the one before it.
    fn fire(&mut self, fired: Vec<Fired>) -> anyhow::Result<()> {
        let mut rounds: Vec<Vec<Fired>> = Vec::new();
        let mut fired_of: HashMap<String, usize> = HashMap::new();
        for fired in fired {
            let round = fired_of.entry(fired.key.clone()).or_default();
            match rounds.get_mut(*round) {
                Some(round) => round.push(fired),
                None => rounds.push(vec![fired]),
            }
            *round += 1;
        }
        for round in rounds {
            let arrival = |fired: &Fired| self.timers.arrival(self.handler, fired);
            let (arrivals, events): (Vec<Arrival>, Vec<At>) =
                round.iter().filter_map(|fired| Some((arrival(fired)?, at_timer(&fired.id)))).unzip();
            self.play(names::TIMERS, Some(&arrivals), Some(&events))?;
        }
        Ok(())
    }

    /// Plays a part of the past on both sides, and compares.
    fn play(&mut self, stream: &str, arrivals: Option<&[Arrival]>, events: Option<&[At]>) -> anyhow::Result<()> {
        let (Some(arrivals @ [_, ..]), Some(events)) = (arrivals, events) else { return Ok(()) };
        for (index, event) in events.iter().enumerate() {
            for key in self.lives.get(&event.event).into_iter().flatten() {
                if let Some(watched) = self.watched.get_mut(key) {
                    watched.begun.get_or_insert(index);
                }
            }
        }
        let watched = &self.watched;
        let wanted = |index: usize, key: &str| {
            watched.get(key).is_some_and(|watched| !watched.over && watched.begun.is_some_and(|begun| index >= begun))
        };
        let old = self.old.fold(stream, arrivals, &wanted)?;
        let new = self.new.fold(stream, arrivals, &wanted)?;
        for unit in &old.units {
            self.timers.keep(&unit.effects);
        }
        self.compare(events, old, new);
        for watched in self.watched.values_mut().filter(|watched| watched.begun.is_some()) {
            watched.begun = Some(0);
        }
        Ok(())
    }

    fn compare(&mut self, events: &[At], old: Folded<Option<Mark>>, new: Folded<Option<Mark>>) {
        let old_failed: BTreeSet<usize> = old.failed.iter().map(|failed| failed.event).collect();
        let mut pairs: BTreeMap<(usize, String), (Option<Seen>, Option<Seen>)> = BTreeMap::new();
        let mut failed: HashMap<usize, String> = HashMap::new();
        for Failed { event, reason, keys } in new.failed {
            pairs.extend(keys.into_iter().map(|key| ((event, key), (None, None))));
            failed.insert(event, reason);
        }
        for unit in old.units {
            let place = (unit.event, unit.key.clone());
            pairs.entry(place).or_default().0 = Some(unit);
        }
        for unit in new.units {
            let place = (unit.event, unit.key.clone());
            pairs.entry(place).or_default().1 = Some(unit);
        }
        for ((index, key), (old, new)) in pairs {
            let (Some(event), Some(watched)) = (events.get(index), self.watched.get_mut(&key)) else { continue };
            if watched.over {
                continue;
            }
            // What the running module fails at, it did not decide like this; the new one may.
            if old_failed.contains(&index) {
                watched.see(event, old, new);
                continue;
            }
            let decided = self.positions.get(&event.stream).is_none_or(|position| event.sequence <= Some(*position));
            let changed = old.as_ref().is_some_and(|old| old.changed);
            if watched.arrived.is_some() && (changed || !decided) {
                watched.over = true;
                continue;
            }
            if let Some(reason) = failed.get(&index) {
                watched.diverge(&key, event, reason.clone());
                self.new.give_up(&key);
            } else if !self.new.has_given_up(&key)
                && let Some(reason) = difference(old.as_ref(), new.as_ref())
            {
                watched.diverge(&key, event, reason);
            }
            watched.see(event, old, new);
        }
    }

    /// The last timers, the documents, and what came of it all.
    pub(super) fn verdict(mut self) -> anyhow::Result<Verdict> {
        let last = self.timers.take_last();
        self.fire(last)?;
        let refused = self.refused()?;
        let Self { old, new, watched, mut verdict, .. } = self;
        for (key, watched) in watched {
            let whole = watched.is_whole();
            let follows = watched.follows();
            if whole {
                verdict.replayed += 1
            } else {
                verdict.handed_over_only += 1
            }
            if let Some(reason) = refused.get(&key) {
                verdict.diverging.push(Divergence { key, at: None, reason: reason.clone() });
            } else if let Some(divergence) = watched.diverged.filter(|_| whole && !follows) {
                verdict.diverging.push(divergence);
            } else if whole {
                let state = |side: &Side<'_, Option<Mark>>| {
                    side.instance(&key).and_then(Instance::state).map(|state| state.get().to_owned())
                };
                verdict.other_state += u64::from(state(&old) != state(&new));
                verdict.other_payload += u64::from(watched.other_payload);
            }
        }
        Ok(verdict)
    }

    /// Hands the stored state of each running instance to both modules, with a timer; answers what the new one says against it. What
    /// it also says without a state, or what the old one says too, is about the timer.
    fn refused(&self) -> anyhow::Result<HashMap<String, String>> {
        let running = self.watched.iter().filter(|(_, watched)| watched.stored.status == Status::Running);
        let probes = running.map(|(key, watched)| Probe {
            key,
            state: watched.stored.state().map(RawValue::get),
            timer: probe(self.handler, key, &watched.stored),
        });
        let with_state: Vec<Probe<'_>> = probes.collect();
        let without: Vec<Probe<'_>> = with_state.iter().map(|probe| Probe { state: None, ..probe.clone() }).collect();
        let new = self.new.hand_over(&with_state)?;
        let about_the_timer = self.new.hand_over(&without)?.into_iter().zip(self.old.hand_over(&with_state)?);
        let refused = with_state.iter().zip(new).zip(about_the_timer).filter_map(|((probe, new), (bare, old))| {
            let reason = new.filter(|new| bare.as_ref() != Some(new) && old.as_ref() != Some(new))?;
            Some((probe.key.to_owned(), format!("it cannot go on from its document: {reason}")))
        });
        Ok(refused.collect())
    }
}

impl Watched {
    fn new(stored: Instance, new: &str) -> Self {
        let by_new = stored.history.iter().filter(|transition| new.starts_with(&transition.digest));
        let decided_by_new = by_new.map(|transition| transition.event.clone()).collect();
        let last = stored.history.last().map_or_else(|| stored.life.clone(), |last| last.event.clone());
        let (marks, begun) = ((None, None), None);
        Self {
            stored,
            last,
            decided_by_new,
            begun,
            marks,
            arrived: None,
            over: false,
            diverged: None,
            other_payload: false,
        }
    }

    fn diverge(&mut self, key: &str, event: &At, reason: String) {
        if self.decided_by_new.contains(&event.event) {
            return;
        }
        self.diverged.get_or_insert_with(|| Divergence { key: key.to_owned(), at: Some(event.clone()), reason });
    }

    /// Notes how both sides left it.
    fn see(&mut self, event: &At, old: Option<Seen>, new: Option<Seen>) {
        if let (Some(old), Some(new)) = (&old, &new) {
            self.other_payload |= old.effects != new.effects;
        }
        if let Some(old) = old {
            self.marks.0 = old.view;
        }
        if let Some(new) = new {
            self.marks.1 = new.view;
        }
        if event.event == self.last {
            self.arrived = Some(self.marks.clone());
        }
    }

    /// One of the modules arrives at what is stored.
    fn is_whole(&self) -> bool {
        let stored = Some(Mark::of(&self.stored));
        self.arrived.as_ref().is_some_and(|(old, new)| *old == stored || *new == stored)
    }

    /// The new module arrives at what is stored and the running one does not: it is the running one that diverges from what
    /// was decided, and the new one follows.
    fn follows(&self) -> bool {
        let stored = Some(Mark::of(&self.stored));
        self.arrived.as_ref().is_some_and(|(old, new)| *old != stored && *new == stored)
    }
}

/// How the new module treats an event otherwise than the old one.
fn difference(old: Option<&Seen>, new: Option<&Seen>) -> Option<String> {
    let acts = |unit: Option<&Seen>| unit.is_some_and(|unit| unit.changed || !unit.effects.is_empty());
    match (acts(old), acts(new)) {
        (false, false) => return None,
        (true, false) => return Some("it passes the event by, and the running module reacts to it".to_owned()),
        (false, true) => return Some("it reacts to the event, and the running module passes it by".to_owned()),
        (true, true) => {}
    }
    let (old, new) = (old?, new?);
    other_effects(&old.effects, &new.effects).or_else(|| Mark::difference(old.view.as_ref(), new.view.as_ref()))
}

/// Where each event stands. One that is no envelope has no id; nobody's life began with it.
pub(super) fn events(stream: &str, arrivals: &[Arrival]) -> Vec<At> {
    let at = |arrival: &Arrival| {
        let batch = batch::encode(stream, std::slice::from_ref(arrival)).ok();
        let text = |span: fn(&wire::Event) -> wire::Span| {
            let batch = batch.as_ref()?;
            Some(str_slice(&batch.blob, span(batch.events.first()?)).to_owned())
        };
        At {
            stream: stream.to_owned(),
            sequence: Some(arrival.sequence),
            event: text(|event| event.id).unwrap_or_default(),
            event_type: text(|event| event.event_type).unwrap_or_default(),
        }
    };
    arrivals.iter().map(at).collect()
}

fn at_timer(id: &str) -> At {
    At { stream: names::TIMERS.to_owned(), sequence: None, event: id.to_owned(), event_type: TYPE.to_owned() }
}

/// A timer for an instance: what a module must read the state for, whatever it then says to it. One that is set, where one is.
fn probe(handler: &str, key: &str, instance: &Instance) -> Arrival {
    let timer = instance.timers.first();
    let body = json!({
        "key": key,
        "name": timer.map_or("millstream.rehearsal", |timer| timer.name.as_str()),
        "payload": timer.and_then(|timer| timer.payload.as_ref()),
    });
    let id = format!("{handler}.rehearsal");
    let body = body.to_string().into();
    let timer = Timer { id: &id, due: 0, body, correlation: &instance.correlation, causation: "" };
    timers::arrival(handler, &timer)
}
