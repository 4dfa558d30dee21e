//! A saga's share of steps 2 to 4: a batch becomes instances and effects. In: a batch of events, or of timers that came back.
//! Out: what a record holds. The units of an instance are judged one after the other, each after the one before it was folded;
//! those of different instances that the guest must see go to it together, a wave at a time.
//! Never: publishes; lets the guest see what is not for it.

mod facts;
mod held;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_saga::{Cause, Due, DueVerdict, Effect, Instance, Outgoing, Reaction, Rules, Unit, Verdict};
use serde_json::value::RawValue;

use crate::batch::{self, Undecodable};
use crate::crash;
use crate::decision::{self, Decision, Undecided};
use crate::documents::{Decided, Documents};
use crate::intake::Arrival;
use crate::journal::Counts;
use crate::names;
use crate::sandbox::{Guest, slice, str_slice, wire};
use crate::settings::Settings;

pub use facts::Facts;
use held::Held;

/// Bytes of an effect in a record beside its payload, about.
const EFFECT_ROOM: usize = 512;

/// One saga on this host.
pub(crate) struct Sagas {
    handler: String,
    digest: String,
    facts: Arc<Facts>,
    effect_bytes: usize,
    effects_per_unit: usize,
    max_depth: u32,
    held: Held,
}

/// A batch on its way to a decision.
struct Work {
    batch: wire::Batch,
    depths: Vec<u32>,
    keys: Vec<Key>,
    tasks: Vec<Task>,
    /// What each event sends.
    out: Vec<Vec<Outgoing>>,
    fates: Vec<Fate>,
}

/// An instance of the batch.
struct Key {
    name: String,
    instance: Option<Instance>,
    /// The guest holds its state.
    at_guest: bool,
    /// Its tasks that are not done.
    queue: VecDeque<usize>,
    /// The last event that changed it.
    changed: Option<usize>,
}

/// One unit.
struct Task {
    event: usize,
    key: usize,
    asked: Asked,
}

enum Asked {
    Event { route: u32, starts: bool },
    Timer(Due),
}

/// A unit that the guest must see.
struct Call {
    task: usize,
    reaction: Reaction,
    /// What a timer says.
    payload: Option<Vec<u8>>,
}

/// What the guest said to it.
#[derive(Default)]
struct Answer {
    state: Option<Box<RawValue>>,
    effects: Vec<Effect>,
}

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Irrelevant,
    Ignored,
    Applied,
}

impl Sagas {
    /// A saga of these facts.
    pub(crate) fn new(handler: &str, digest: &str, facts: Arc<Facts>, settings: &Settings) -> Self {
        Self {
            handler: handler.to_owned(),
            digest: digest.to_owned(),
            facts,
            effect_bytes: settings.effect_bytes,
            effects_per_unit: settings.effects_per_unit,
            max_depth: settings.max_depth,
            held: Held::new(settings.instance_cache_bytes),
        }
    }

    /// Decides a batch of one stream.
    pub(crate) async fn decide(
        &mut self,
        guest: &mut dyn Guest,
        documents: &Documents,
        stream: &str,
        arrivals: &[Arrival],
        record_bytes: usize,
    ) -> Result<Decision, Undecided> {
        let batch = batch::encode(stream, arrivals)
            .map_err(|Undecodable { index, reason }| Undecided::at(index, "undecodable", &reason))?;
        let depths = arrivals.iter().map(depth).collect();
        let (mut work, staged) = if stream == names::TIMERS {
            (Work::of_timers(batch, depths)?, None)
        } else {
            let staged = tokio::task::block_in_place(|| guest.stage(&batch)).map_err(Undecided::failure)?;
            crash::point("staged");
            decision::check_staged(&staged)?;
            (Work::of_events(batch, depths, &staged), Some(staged))
        };
        self.load(&mut work, documents).await?;
        crash::point("loaded");
        let rules = Rules {
            handler: &self.handler,
            digest: &self.digest,
            late: self.facts.late,
            sends: &self.facts.sends,
            stateless: self.facts.stateless,
            effect_bytes: self.effect_bytes,
            effects_per_unit: self.effects_per_unit,
            max_depth: self.max_depth,
        };
        loop {
            let calls = work.judge(&rules)?;
            if calls.is_empty() {
                break;
            }
            let answers = tokio::task::block_in_place(|| match &staged {
                Some(staged) => work.ask_about_events(guest, staged, &calls),
                None => work.ask_about_timers(guest, &calls),
            })?;
            work.fold(&rules, calls, answers)?;
        }
        crash::point("applied");
        self.decision(work, arrivals, record_bytes)
    }

    /// Gives each key its instance: from here, from what is decided, or from the bucket.
    async fn load(&mut self, work: &mut Work, documents: &Documents) -> Result<(), Undecided> {
        if self.facts.stateless {
            return Ok(());
        }
        let mut missing = Vec::new();
        for key in &mut work.keys {
            key.instance = self.held.take(&key.name);
            if key.instance.is_none() {
                missing.push(key);
            }
        }
        let wanted: Vec<&str> = missing.iter().map(|key| key.name.as_str()).collect();
        let loaded = documents.load(&wanted).await.map_err(|error| Undecided::Trouble(error.into()))?;
        for (key, document) in missing.into_iter().zip(loaded) {
            let Some(document) = document else { continue };
            let unreadable = |error| {
                let event = key.queue.front().copied().unwrap_or_default();
                Undecided::at(event, "unreadable", &format!("the document of {}: {error}", key.name))
            };
            key.instance = Some(Instance::read(&document).map_err(unreadable)?);
        }
        Ok(())
    }

    /// Writes the instances that changed.
    fn decision(&mut self, work: Work, arrivals: &[Arrival], record_bytes: usize) -> Result<Decision, Undecided> {
        let counts = work.counts();
        let effects: Vec<Outgoing> = work.out.into_iter().flatten().collect();
        let mut bytes: usize = effects.iter().map(|effect| payload_bytes(effect) + EFFECT_ROOM).sum();
        let mut changes = Vec::new();
        let mut decided = Vec::new();
        for Key { name, instance, changed, .. } in work.keys {
            let Some(instance) = instance else { continue };
            let document = changed.map(|event| (event, Bytes::from(instance.write())));
            let length = document.as_ref().map_or(0, |(_, document)| document.len());
            bytes += name.len() + length + decision::CHANGE_ROOM;
            if let Some((event, document)) = document {
                changes.push(Decided {
                    key: name.clone(),
                    value: Some(document),
                    sequence: arrivals.get(event).map_or(0, |arrival| arrival.sequence),
                    keep_seconds: instance.status.has_ended().then_some(self.facts.keep_completed_seconds),
                });
            }
            decided.push((name, instance, length));
        }
        decision::check_size(bytes, record_bytes)?;
        for (name, instance, length) in decided {
            self.held.put(name, instance, length);
        }
        Ok(Decision { changes, counts, effects })
    }
}

impl Work {
    fn new(batch: wire::Batch, depths: Vec<u32>, keys: Vec<Key>, tasks: Vec<Task>) -> Self {
        let events = batch.events.len();
        let mut work = Self {
            batch,
            depths,
            keys,
            tasks,
            out: (0..events).map(|_| Vec::new()).collect(),
            fates: vec![Fate::Irrelevant; events],
        };
        for (number, task) in work.tasks.iter().enumerate() {
            if let Some(key) = work.keys.get_mut(task.key) {
                key.queue.push_back(number);
            }
        }
        work
    }

    fn of_events(batch: wire::Batch, depths: Vec<u32>, staged: &wire::Staged) -> Self {
        let keys = staged.keys.iter().map(|key| Key::new(str_slice(&staged.blob, key.name), key.cached)).collect();
        let task = |(route, wire::Route { event, key, starts }): (u32, &wire::Route)| Task {
            event: *event as usize,
            key: *key as usize,
            asked: Asked::Event { route, starts: *starts },
        };
        let tasks = (0..).zip(&staged.routes).map(task).collect();
        Self::new(batch, depths, keys, tasks)
    }

    fn of_timers(batch: wire::Batch, depths: Vec<u32>) -> Result<Self, Undecided> {
        let mut keys: Vec<Key> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut tasks = Vec::with_capacity(batch.events.len());
        for (event, envelope) in batch.events.iter().enumerate() {
            let due: Due = serde_json::from_slice(slice(&batch.blob, envelope.payload))
                .map_err(|error| Undecided::at(event, "undecodable", &format!("no timer of ours: {error}")))?;
            let key = *numbers.entry(due.key.clone()).or_insert_with(|| {
                keys.push(Key::new(&due.key, false));
                keys.len() - 1
            });
            tasks.push(Task { event, key, asked: Asked::Timer(due) });
        }
        Ok(Self::new(batch, depths, keys, tasks))
    }

    /// Settles what needs no guest, and answers the next unit of each instance that does.
    fn judge(&mut self, rules: &Rules<'_>) -> Result<Vec<Call>, Undecided> {
        let Self { batch, depths, keys, tasks, out, fates } = self;
        let mut calls = Vec::new();
        for key in keys {
            while let Some(&number) = key.queue.front()
                && let Some(task) = tasks.get(number)
            {
                let cause = cause(batch, depths, task.event);
                let unit = Unit { rules, key: &key.name, cause: &cause };
                let Some(out) = out.get_mut(task.event) else { break };
                let (changed, call) = match &task.asked {
                    Asked::Event { starts, .. } => match unit.judge(*starts, &mut key.instance, out) {
                        Ok(Verdict::React(reaction)) => (false, Some((reaction, None))),
                        Ok(Verdict::Ignored | Verdict::Duplicate) => (false, None),
                        Ok(Verdict::Late | Verdict::Settled) => (true, None),
                        Err(refusal) => return Err(Undecided::at(task.event, "refused", &refusal.to_string())),
                    },
                    Asked::Timer(due) => match unit.due(due, &mut key.instance, out) {
                        DueVerdict::Wake { reaction, payload } => (false, Some((reaction, Some(payload)))),
                        DueVerdict::Ignored => (false, None),
                        DueVerdict::Late | DueVerdict::Settled => (true, None),
                    },
                };
                if let Some((reaction, payload)) = call {
                    calls.push(Call { task: number, reaction, payload });
                    break;
                }
                key.queue.pop_front();
                if changed {
                    key.changed = Some(task.event);
                }
                settle(fates, task.event, if changed { Fate::Applied } else { Fate::Ignored });
            }
        }
        calls.sort_unstable_by_key(|call| call.task);
        Ok(calls)
    }

    /// Folds what the guest answered.
    fn fold(&mut self, rules: &Rules<'_>, calls: Vec<Call>, answers: Vec<Answer>) -> Result<(), Undecided> {
        let Self { batch, depths, keys, tasks, out, fates } = self;
        for (call, answer) in calls.into_iter().zip(answers) {
            let Some(task) = tasks.get(call.task) else { continue };
            let (Some(key), Some(out)) = (keys.get_mut(task.key), out.get_mut(task.event)) else { continue };
            let cause = cause(batch, depths, task.event);
            let unit = Unit { rules, key: &key.name, cause: &cause };
            unit.fold(call.reaction, &mut key.instance, answer.state, answer.effects, out)
                .map_err(|refusal| Undecided::at(task.event, "refused", &refusal.to_string()))?;
            key.queue.pop_front();
            key.changed = Some(task.event);
            settle(fates, task.event, Fate::Applied);
        }
        Ok(())
    }

    /// One call into the guest for events that it has staged.
    fn ask_about_events(
        &mut self,
        guest: &mut dyn Guest,
        staged: &wire::Staged,
        calls: &[Call],
    ) -> Result<Vec<Answer>, Undecided> {
        let mut skip = vec![true; staged.routes.len()];
        let mut sent = Sent::default();
        let mut places = HashMap::with_capacity(calls.len());
        for (place, call) in calls.iter().enumerate() {
            let Some(task) = self.tasks.get(call.task) else { continue };
            let Asked::Event { route, .. } = task.asked else { continue };
            places.insert(route, place);
            if let Some(skip) = skip.get_mut(route as usize) {
                *skip = false;
            }
            if let Some(key) = self.keys.get_mut(task.key) {
                sent.add(index(task.key), key, call.reaction);
            }
        }
        let skip: Vec<u32> = (0..).zip(skip).filter_map(|(route, skip)| skip.then_some(route)).collect();
        let outcome = guest.apply(&sent.0, &skip).map_err(Undecided::failure)?;
        decision::check_refusals(staged, &outcome)?;
        answers(&outcome, calls.len(), |route| places.get(&route).copied(), |place| self.event_of(calls, place))
    }

    /// One call into the guest for timers that wake it.
    fn ask_about_timers(&mut self, guest: &mut dyn Guest, calls: &[Call]) -> Result<Vec<Answer>, Undecided> {
        let mut blob = self.batch.blob.clone();
        let mut events = Vec::with_capacity(calls.len());
        for (place, call) in calls.iter().enumerate() {
            let Some(event) = self.batch.events.get(self.event_of(calls, place)) else { continue };
            let start = index(blob.len());
            let payload = call.payload.as_deref().unwrap_or_default();
            blob.extend_from_slice(payload);
            events.push(wire::Event { payload: wire::Span { start, length: index(payload.len()) }, ..*event });
        }
        let woken = wire::Batch { source: self.batch.source, events, blob };
        let staged = guest.stage(&woken).map_err(Undecided::failure)?;
        let events_of: Vec<usize> = (0..calls.len()).map(|place| self.event_of(calls, place)).collect();
        let event_of = |place: usize| events_of.get(place).copied().unwrap_or_default();
        let unfit = |place: usize, reason: &str| Undecided::at(event_of(place), "refused", reason);
        if let Some(rejection) = staged.rejections.first() {
            return Err(unfit(rejection.event as usize, str_slice(&staged.blob, rejection.reason)));
        }
        let mut sent = Sent::default();
        for (place, call) in calls.iter().enumerate() {
            let Some(route) = staged.routes.get(place).filter(|route| route.event == index(place)) else {
                return Err(unfit(place, "the handler gives its own timer no instance, or several"));
            };
            let key = self.tasks.get(call.task).and_then(|task| self.keys.get_mut(task.key));
            let (Some(key), Some(there)) = (key, staged.keys.get(route.key as usize)) else { continue };
            if str_slice(&staged.blob, there.name) != key.name {
                return Err(unfit(place, "the handler gives its own timer another instance"));
            }
            key.at_guest = there.cached;
            sent.add(route.key, key, call.reaction);
        }
        let outcome = guest.apply(&sent.0, &[]).map_err(Undecided::failure)?;
        if let Some(refusal) = outcome.refusals.iter().min_by_key(|refusal| refusal.route) {
            return Err(unfit(refusal.route as usize, str_slice(&outcome.blob, refusal.reason)));
        }
        answers(&outcome, calls.len(), |route| Some(route as usize), event_of)
    }

    fn event_of(&self, calls: &[Call], place: usize) -> usize {
        calls.get(place).and_then(|call| self.tasks.get(call.task)).map_or(0, |task| task.event)
    }

    fn counts(&self) -> Counts {
        let of = |fate: Fate| self.fates.iter().filter(|other| **other == fate).count() as u64;
        Counts {
            delivered: self.fates.len() as u64,
            applied: of(Fate::Applied),
            irrelevant: of(Fate::Irrelevant),
            ignored: of(Fate::Ignored),
            ..Counts::default()
        }
    }
}

impl Key {
    fn new(name: &str, at_guest: bool) -> Self {
        Self { name: name.to_owned(), instance: None, at_guest, queue: VecDeque::new(), changed: None }
    }
}

/// States on their way to the guest.
struct Sent(wire::Documents);

impl Default for Sent {
    fn default() -> Self {
        Self(wire::Documents { documents: Vec::new(), blob: Vec::new() })
    }
}

impl Sent {
    /// Adds the state of an instance unless the guest holds it. One that begins has none, whatever the guest holds.
    fn add(&mut self, number: u32, key: &mut Key, reaction: Reaction) {
        if std::mem::replace(&mut key.at_guest, true) && !reaction.begins() {
            return;
        }
        let state = reaction.state(key.instance.as_ref()).map(RawValue::get);
        let bytes = state.unwrap_or_default().as_bytes();
        let value = wire::Span { start: index(self.0.blob.len()), length: index(bytes.len()) };
        self.0.blob.extend_from_slice(bytes);
        self.0.documents.push(wire::Document { key: number, present: state.is_some(), value });
    }
}

/// Sorts an outcome by calls. `place` tells a route's call, `event` a call's event.
fn answers(
    outcome: &wire::Outcome,
    calls: usize,
    place: impl Fn(u32) -> Option<usize>,
    event: impl Fn(usize) -> usize,
) -> Result<Vec<Answer>, Undecided> {
    let mut answers: Vec<Answer> = (0..calls).map(|_| Answer::default()).collect();
    for change in outcome.changes.iter().filter(|change| !change.deleted) {
        let Some(place) = place(change.route) else { continue };
        let text = String::from_utf8_lossy(slice(&outcome.blob, change.value)).into_owned();
        let state = RawValue::from_string(text)
            .map_err(|error| Undecided::at(event(place), "refused", &format!("its state is not JSON: {error}")))?;
        if let Some(answer) = answers.get_mut(place) {
            answer.state = Some(state);
        }
    }
    for effect in &outcome.effects {
        let Some(place) = place(effect.route) else { continue };
        let effect = serde_json::from_slice(slice(&outcome.blob, effect.body))
            .map_err(|error| Undecided::at(event(place), "refused", &format!("an effect cannot be read: {error}")))?;
        if let Some(answer) = answers.get_mut(place) {
            answer.effects.push(effect);
        }
    }
    Ok(answers)
}

/// An event with several units counts as applied if one of them was.
fn settle(fates: &mut [Fate], event: usize, fate: Fate) {
    if let Some(known) = fates.get_mut(event)
        && *known != Fate::Applied
    {
        *known = fate;
    }
}

fn cause<'a>(batch: &'a wire::Batch, depths: &[u32], event: usize) -> Cause<'a> {
    let text = |span: fn(&wire::Event) -> wire::Span| {
        batch.events.get(event).map(|event| str_slice(&batch.blob, span(event))).unwrap_or_default()
    };
    Cause {
        id: text(|event| event.id),
        event_type: text(|event| event.event_type),
        time: batch.events.get(event).map_or(0, |event| event.time),
        correlation: text(|event| event.correlation_id),
        causation: text(|event| event.causation_id),
        depth: depths.get(event).copied().unwrap_or_default(),
    }
}

/// How many messages of handlers led to this one; services that answer begin anew.
fn depth(arrival: &Arrival) -> u32 {
    let headers = arrival.message.headers.as_ref();
    let depth = headers.and_then(|headers| headers.get(names::DEPTH_HEADER)).map(|depth| depth.as_str().parse());
    depth.and_then(Result::ok).unwrap_or_default()
}

fn payload_bytes(effect: &Outgoing) -> usize {
    match effect {
        Outgoing::Message(message) => message.payload.len() + message.subject.len(),
        Outgoing::Timer { body, .. } | Outgoing::Wait { body, .. } => body.len(),
        Outgoing::Cancel { .. } => 0,
    }
}

/// Indexes and spans are 32 bits wide; a batch is bounded far below.
fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
