//! The host's side of a saga's scenario. In: events and timers. Out: instances and what is sent; judges each unit,
//! shows it to the handler, folds what it asks for. Judging and folding are the host's own code; what is left out is
//! the broker, the journal and the sandbox. Never: decides anything in another way than the host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use millstream_saga::{Cause, Due, DueVerdict, Instance, Late, Outgoing, Reaction, Rules, Unit as Judged, Verdict};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::fate::{Fate, Unit};
use super::super::{TestEvent, fail};
use crate::contract::{self, Batch, Document, Documents, Outcome, Span, Staged};
use crate::guest::{Handler, Runtime};

/// What a host takes in.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Event(TestEvent),
    /// A timer that came back, with what the host wrote for itself.
    Due(TestEvent, Vec<u8>),
}

/// What the host knows of a handler by its description.
struct Facts {
    handler: String,
    sends: Vec<String>,
    late: Late,
    stateless: bool,
}

/// A host of one saga.
pub(super) struct Host<H: Handler> {
    runtime: Runtime<H>,
    facts: Arc<Facts>,
    /// As they would be stored.
    pub(super) instances: BTreeMap<String, Vec<u8>>,
    parked: BTreeSet<String>,
    /// What goes out, not yet taken.
    pub(super) out: Vec<Outgoing>,
}

/// A batch between `stage` and the last `apply`.
struct Staging<'a> {
    events: &'a [TestEvent],
    staged: Staged,
    /// Per key, the routes that were not judged yet.
    left: Vec<VecDeque<u32>>,
    /// Per key, whether the handler has its document.
    known: Vec<bool>,
    /// Per route, what became of it and what it sent.
    done: Vec<(Unit, Vec<Outgoing>)>,
}

impl<H: Handler> Host<H> {
    pub(super) fn new() -> Self {
        Self {
            runtime: Runtime::new(),
            facts: Arc::new(facts::<H>()),
            instances: BTreeMap::new(),
            parked: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// Goes on with a fresh handler.
    pub(super) fn restart(&mut self) {
        self.runtime = Runtime::new();
    }

    /// One instance.
    pub(super) fn instance(&self, key: &str) -> Option<Instance> {
        let document = self.instances.get(key)?;
        match Instance::read(document) {
            Ok(instance) => Some(instance),
            Err(error) => fail(format_args!("the instance `{key}` does not read back: {error}")),
        }
    }

    /// Takes in a timer.
    pub(super) fn due(&mut self, timer: &TestEvent, body: &[u8]) -> Fate {
        let due: Due = match serde_json::from_slice(body) {
            Ok(due) => due,
            Err(error) => fail(format_args!("a timer's body does not read back: {error}")),
        };
        let fate = |unit| Fate::Routed(vec![(due.key.clone(), unit)]);
        if self.parked.contains(&due.key) {
            return fate(Unit::Parked);
        }
        let facts = Arc::clone(&self.facts);
        let (rules, cause) = (facts.rules(), cause(timer));
        let unit = Judged { rules: &rules, key: &due.key, cause: &cause };
        let mut instance = self.instance(&due.key);
        let mut out = Vec::new();
        let (reaction, payload) = match unit.due(&due, &mut instance, &mut out) {
            DueVerdict::Wake { reaction, payload } => (reaction, payload),
            DueVerdict::Ignored => return fate(Unit::Ignored),
            DueVerdict::Late => {
                self.store(&due.key, instance.as_ref());
                return fate(Unit::Late);
            }
            DueVerdict::Settled => {
                self.store(&due.key, instance.as_ref());
                self.out.append(&mut out);
                return fate(Unit::Settled);
            }
        };
        let woken = [TestEvent::timer(timer.event_id(), timer.time(), payload)];
        let mut staging = self.stage(&woken);
        if let Some(rejection) = staged_rejection(&staging.staged, 0) {
            return Fate::Rejected(rejection);
        }
        if let Some(route) = staging.left.first_mut().and_then(VecDeque::pop_front) {
            self.wave(&mut staging, &[(route, reaction)], Some(&cause));
        }
        let mut fates = self.close(staging);
        fates.pop().unwrap_or(Fate::Irrelevant)
    }

    /// Takes in a batch of one stream.
    pub(super) fn batch(&mut self, events: &[TestEvent]) -> Vec<Fate> {
        let mut staging = self.stage(events);
        loop {
            let wave = self.judge(&mut staging);
            if wave.is_empty() {
                return self.close(staging);
            }
            self.wave(&mut staging, &wave, None);
        }
    }

    fn stage<'a>(&mut self, events: &'a [TestEvent]) -> Staging<'a> {
        let mut blob = Vec::new();
        let source = contract::append(&mut blob, events.first().map_or("", TestEvent::source).as_bytes());
        let envelopes = events.iter().map(|event| event.encode(0, &mut blob)).collect();
        let staged = self.runtime.stage(Batch { source, events: envelopes, blob });
        let mut left = vec![VecDeque::new(); staged.keys.len()];
        for (number, route) in (0..).zip(&staged.routes) {
            if let Some(left) = left.get_mut(route.key as usize) {
                left.push_back(number);
            }
        }
        let known = staged.keys.iter().map(|key| key.cached).collect();
        let done = staged.routes.iter().map(|_| (Unit::Parked, Vec::new())).collect();
        Staging { events, staged, left, known, done }
    }

    /// Settles what needs no handler, and returns the next unit of each key that does.
    fn judge(&mut self, staging: &mut Staging<'_>) -> Vec<(u32, Reaction)> {
        let facts = Arc::clone(&self.facts);
        let rules = facts.rules();
        let mut wave = Vec::new();
        for key in 0..staging.left.len() {
            let name = staging.name(key).to_owned();
            while let Some(route) = staging.left.get_mut(key).and_then(VecDeque::pop_front) {
                if self.parked.contains(&name) {
                    continue;
                }
                let Some((starts, cause)) = staging.cause(route) else { continue };
                let unit = Judged { rules: &rules, key: &name, cause: &cause };
                let mut instance = self.instance(&name);
                let mut out = Vec::new();
                let became = match unit.judge(starts, &mut instance, &mut out) {
                    Ok(Verdict::React(reaction)) => {
                        wave.push((route, reaction));
                        break;
                    }
                    Ok(Verdict::Ignored) => Unit::Ignored,
                    Ok(Verdict::Duplicate) => Unit::Duplicate,
                    Ok(Verdict::Late) => Unit::Late,
                    Ok(Verdict::Settled) => Unit::Settled,
                    Err(refusal) => self.park(&name, refusal.to_string()),
                };
                self.store(&name, instance.as_ref());
                staging.set(route, became, out);
            }
        }
        wave
    }

    /// Shows the handler one unit per key and folds what it answers.
    fn wave(&mut self, staging: &mut Staging<'_>, wave: &[(u32, Reaction)], timer: Option<&Cause<'_>>) {
        let facts = Arc::clone(&self.facts);
        let rules = facts.rules();
        let documents = self.documents(staging, wave);
        let in_wave: BTreeSet<u32> = wave.iter().map(|(route, _)| *route).collect();
        let routes = contract::number(staging.staged.routes.len());
        let skip: Vec<u32> = (0..routes).filter(|route| !in_wave.contains(route)).collect();
        let outcome = self.runtime.apply(&documents, &skip);
        for (route, reaction) in wave {
            let Some(key) = staging.staged.routes.get(*route as usize).map(|route| route.key) else { continue };
            let name = staging.name(key as usize).to_owned();
            if let Some(refusal) = outcome.refusals.iter().find(|refusal| refusal.route == *route) {
                let became = self.park(&name, contract::text(&outcome.blob, refusal.reason).to_owned());
                staging.set(*route, became, Vec::new());
                continue;
            }
            let Some((_, cause)) = staging.cause(*route) else { continue };
            let unit = Judged { rules: &rules, key: &name, cause: timer.unwrap_or(&cause) };
            let mut instance = self.instance(&name);
            let mut out = Vec::new();
            let state = state(&outcome, key);
            let became = match unit.fold(*reaction, &mut instance, state, effects(&outcome, *route), &mut out) {
                Ok(()) => {
                    self.store(&name, instance.as_ref());
                    Unit::Applied
                }
                Err(refusal) => self.park(&name, refusal.to_string()),
            };
            staging.set(*route, became, out);
        }
    }

    /// The states that the handler lacks, and nothing where a new life begins.
    fn documents(&self, staging: &mut Staging<'_>, wave: &[(u32, Reaction)]) -> Documents {
        let mut documents = Documents { documents: Vec::new(), blob: Vec::new() };
        for (route, reaction) in wave {
            let Some(key) = staging.staged.routes.get(*route as usize).map(|route| route.key) else { continue };
            let known = staging.known.get_mut(key as usize).is_some_and(|known| std::mem::replace(known, true));
            if known && !reaction.begins() {
                continue;
            }
            let instance = self.instance(staging.name(key as usize));
            let state = reaction.state(instance.as_ref());
            let value = match state {
                Some(state) => contract::append(&mut documents.blob, state.get().as_bytes()),
                None => Span { start: 0, length: 0 },
            };
            documents.documents.push(Document { key, present: state.is_some(), value });
        }
        documents
    }

    fn park(&mut self, key: &str, reason: String) -> Unit {
        // Without state, no later event depends on this one.
        if !self.facts.stateless {
            self.parked.insert(key.to_owned());
        }
        Unit::Refused(reason)
    }

    fn store(&mut self, key: &str, instance: Option<&Instance>) {
        if let Some(instance) = instance {
            self.instances.insert(key.to_owned(), instance.write());
        }
    }

    /// Sorts by event what became of the batch, and by route what goes out.
    fn close(&mut self, staging: Staging<'_>) -> Vec<Fate> {
        let mut fates: Vec<Fate> = (0..staging.events.len())
            .map(|event| match staged_rejection(&staging.staged, event) {
                Some(reason) => Fate::Rejected(reason),
                None => Fate::Irrelevant,
            })
            .collect();
        let names: Vec<String> = (0..staging.staged.keys.len()).map(|key| staging.name(key).to_owned()).collect();
        for (route, (became, mut out)) in staging.staged.routes.iter().zip(staging.done) {
            let name = names.get(route.key as usize).cloned().unwrap_or_default();
            self.out.append(&mut out);
            match fates.get_mut(route.event as usize) {
                Some(Fate::Routed(units)) => units.push((name, became)),
                Some(fate) => *fate = Fate::Routed(vec![(name, became)]),
                None => {}
            }
        }
        fates
    }
}

impl Staging<'_> {
    fn name(&self, key: usize) -> &str {
        self.staged.keys.get(key).map_or("", |key| contract::text(&self.staged.blob, key.name))
    }

    /// Whether a route may begin an instance, and its event.
    fn cause(&self, route: u32) -> Option<(bool, Cause<'_>)> {
        let route = self.staged.routes.get(route as usize)?;
        Some((route.starts, cause(self.events.get(route.event as usize)?)))
    }

    fn set(&mut self, route: u32, became: Unit, out: Vec<Outgoing>) {
        if let Some(done) = self.done.get_mut(route as usize) {
            *done = (became, out);
        }
    }
}

impl Facts {
    fn rules(&self) -> Rules<'_> {
        Rules {
            handler: &self.handler,
            digest: "test",
            late: self.late,
            sends: &self.sends,
            stateless: self.stateless,
            ..Rules::default()
        }
    }
}

/// Reads a description as the host does.
fn facts<H: Handler>() -> Facts {
    #[derive(Deserialize)]
    struct Extra {
        saga: Saga,
    }
    #[derive(Deserialize)]
    struct Saga {
        late: Late,
        sends: Vec<String>,
        stateless: bool,
    }
    let description = H::describe("saga");
    match serde_json::from_str(&description.extra) {
        Ok(Extra { saga: Saga { late, sends, stateless } }) => {
            Facts { handler: description.name, sends, late, stateless }
        }
        Err(error) => fail(format_args!("the description does not read back: {error}")),
    }
}

fn cause(event: &TestEvent) -> Cause<'_> {
    Cause {
        id: event.event_id(),
        event_type: event.event_type(),
        time: event.time(),
        correlation: event.correlation_id(),
        causation: event.causation_id(),
        depth: 0,
    }
}

fn staged_rejection(staged: &Staged, event: usize) -> Option<String> {
    let rejection = staged.rejections.iter().find(|rejection| rejection.event as usize == event)?;
    Some(contract::text(&staged.blob, rejection.reason).to_owned())
}

fn state(outcome: &Outcome, key: u32) -> Option<Box<RawValue>> {
    let change = outcome.changes.iter().find(|change| change.key == key && !change.deleted)?;
    match RawValue::from_string(contract::text(&outcome.blob, change.value).to_owned()) {
        Ok(state) => Some(state),
        Err(error) => fail(format_args!("a state is not JSON: {error}")),
    }
}

fn effects(outcome: &Outcome, route: u32) -> Vec<millstream_saga::Effect> {
    let own = outcome.effects.iter().filter(|effect| effect.route == route);
    own.map(|effect| match serde_json::from_str(contract::text(&outcome.blob, effect.body)) {
        Ok(effect) => effect,
        Err(error) => fail(format_args!("an effect does not read back: {error}")),
    })
    .collect()
}

/// The keys that an event touches.
pub(super) fn keys<H: Handler>(event: &TestEvent) -> Vec<String> {
    let mut blob = Vec::new();
    let source = contract::append(&mut blob, event.source().as_bytes());
    let events = vec![event.encode(0, &mut blob)];
    let staged = Runtime::<H>::new().stage(Batch { source, events, blob });
    staged.keys.iter().map(|key| contract::text(&staged.blob, key.name).to_owned()).collect()
}
