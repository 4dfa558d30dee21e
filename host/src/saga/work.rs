//! A batch of a saga as units of instances, on its way to a decision. In: events that the guest has routed, or timers that came
//! back; answers of the guest. Out: the units that it must see next, one of each instance at most; in the end what became of
//! each event and instance. Pure. Never: lets a unit pass one that came before it for the same instance.

use std::collections::{HashMap, VecDeque};

use millstream_saga::{Cause, Due, DueVerdict, Instance, Outgoing, Reaction, Rules, Unit, Verdict};

use super::asking::Answer;
use crate::decision::{Fault, Undecided};
use crate::journal::Counts;
use crate::parking::Parked;
use crate::parking::aside::Aside;
use crate::pipeline::Leave;
use crate::sandbox::{slice, str_slice, wire};

/// A batch on its way to a decision.
pub(super) struct Work {
    pub(super) batch: wire::Batch,
    pub(super) depths: Vec<u32>,
    pub(super) keys: Vec<Key>,
    pub(super) tasks: Vec<Task>,
    /// What each unit sends.
    pub(super) out: Vec<Vec<Outgoing>>,
    pub(super) fates: Vec<Fate>,
}

/// An instance of the batch.
pub(super) struct Key {
    pub(super) name: String,
    pub(super) instance: Option<Instance>,
    /// The guest holds its state.
    pub(super) at_guest: bool,
    /// Its tasks that are not done.
    pub(super) queue: VecDeque<usize>,
    /// The last event that changed it.
    pub(super) changed: Option<usize>,
}

/// One unit.
pub(super) struct Task {
    pub(super) event: usize,
    pub(super) key: usize,
    pub(super) asked: Asked,
}

pub(super) enum Asked {
    Event { route: u32, starts: bool },
    Timer(Due),
}

/// A unit that the guest must see.
pub(super) struct Call {
    pub(super) task: usize,
    pub(super) reaction: Reaction,
    /// What a timer says.
    pub(super) payload: Option<Vec<u8>>,
}

/// What became of an instance's next unit.
enum Judged {
    /// It needed no guest.
    Settled,
    /// The guest must see it.
    Call(Call),
    /// There is none.
    Nothing,
}

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Irrelevant,
    Ignored,
    Applied,
}

impl Work {
    fn new(batch: wire::Batch, depths: Vec<u32>, keys: Vec<Key>, tasks: Vec<Task>) -> Self {
        let fates = vec![Fate::Irrelevant; batch.events.len()];
        let out = tasks.iter().map(|_| Vec::new()).collect();
        let mut work = Self { batch, depths, keys, tasks, out, fates };
        for (number, task) in work.tasks.iter().enumerate() {
            if let Some(key) = work.keys.get_mut(task.key) {
                key.queue.push_back(number);
            }
        }
        work
    }

    pub(super) fn of_events(batch: wire::Batch, depths: Vec<u32>, staged: &wire::Staged) -> Self {
        let keys = staged.keys.iter().map(|key| Key::new(str_slice(&staged.blob, key.name), key.cached)).collect();
        let task = |(route, wire::Route { event, key, starts }): (u32, &wire::Route)| Task {
            event: *event as usize,
            key: *key as usize,
            asked: Asked::Event { route, starts: *starts },
        };
        let tasks = (0..).zip(&staged.routes).map(task).collect();
        Self::new(batch, depths, keys, tasks)
    }

    pub(super) fn of_timers(batch: wire::Batch, depths: Vec<u32>) -> Result<Self, Undecided> {
        let mut keys: Vec<Key> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut tasks = Vec::with_capacity(batch.events.len());
        for (event, envelope) in batch.events.iter().enumerate() {
            let due: Due = serde_json::from_slice(slice(&batch.blob, envelope.payload))
                .map_err(|error| Undecided::at(event, Fault::Undecodable, &format!("no timer of ours: {error}")))?;
            let key = *numbers.entry(due.key.clone()).or_insert_with(|| {
                keys.push(Key::new(&due.key, false));
                keys.len() - 1
            });
            tasks.push(Task { event, key, asked: Asked::Timer(due) });
        }
        Ok(Self::new(batch, depths, keys, tasks))
    }

    /// Leaves out the units of these routes, in ascending order.
    pub(super) fn leave_routes(&mut self, skip: &[u32]) {
        if skip.is_empty() {
            return;
        }
        let Self { keys, tasks, .. } = self;
        let stays = |number: &usize| match tasks.get(*number).map(|task| &task.asked) {
            Some(Asked::Event { route, .. }) => skip.binary_search(route).is_err(),
            Some(Asked::Timer(_)) | None => true,
        };
        keys.iter_mut().for_each(|key| key.queue.retain(stays));
    }

    /// Leaves out timers of parked instances, which are set aside, and what is to be left.
    pub(super) fn leave_timers(&mut self, aside: &mut Aside, parked: &Parked, leave: Leave<'_>) {
        let Self { keys, tasks, .. } = self;
        for key in keys {
            let Key { name, queue, .. } = key;
            let mut blamed = leave.culprits.and_then(|culprits| culprits.get(name));
            let stays = match leave.only {
                Some(only) => only(name),
                None => blamed.is_none() && !parked.has(name),
            };
            if stays {
                continue;
            }
            for task in queue.drain(..).filter_map(|number| tasks.get(number)).filter(|_| leave.only.is_none()) {
                match blamed.take() {
                    Some(blamed) => aside.add(task.event, blamed.unit(Some(name))),
                    None => aside.follow(task.event, name),
                }
            }
        }
    }

    /// Leaves out all units but those of these events, by index, for these keys.
    pub(super) fn retain(&mut self, wanted: &dyn Fn(usize, &str) -> bool) {
        let Self { keys, tasks, .. } = self;
        for key in keys {
            let Key { name, queue, .. } = key;
            queue.retain(|number| tasks.get(*number).is_some_and(|task| wanted(task.event, name)));
        }
    }

    /// Settles what needs no guest, and answers the next unit of each instance that does.
    pub(super) fn judge(&mut self, rules: &Rules<'_>) -> Result<Vec<Call>, Undecided> {
        self.judge_up_to(usize::MAX, rules)
    }

    /// The same, for so many units of each instance at most.
    pub(super) fn judge_up_to(&mut self, most: usize, rules: &Rules<'_>) -> Result<Vec<Call>, Undecided> {
        let mut calls = Vec::new();
        for key in 0..self.keys.len() {
            for _ in 0..most {
                match self.judge_next(key, rules)? {
                    Judged::Settled => {}
                    Judged::Call(call) => {
                        calls.push(call);
                        break;
                    }
                    Judged::Nothing => break,
                }
            }
        }
        calls.sort_unstable_by_key(|call| call.task);
        Ok(calls)
    }

    /// Judges the next unit of an instance.
    fn judge_next(&mut self, key: usize, rules: &Rules<'_>) -> Result<Judged, Undecided> {
        let Self { batch, depths, keys, tasks, out, fates } = self;
        let Some(key) = keys.get_mut(key) else { return Ok(Judged::Nothing) };
        let Some(&number) = key.queue.front() else { return Ok(Judged::Nothing) };
        let (Some(task), Some(out)) = (tasks.get(number), out.get_mut(number)) else { return Ok(Judged::Nothing) };
        let cause = cause(batch, depths, task.event);
        let unit = Unit { rules, key: &key.name, cause: &cause };
        let changed = match &task.asked {
            Asked::Event { starts, .. } => match unit.judge(*starts, &mut key.instance, out) {
                Ok(Verdict::React(reaction)) => {
                    return Ok(Judged::Call(Call { task: number, reaction, payload: None }));
                }
                Ok(Verdict::Ignored | Verdict::Duplicate) => false,
                Ok(Verdict::Late | Verdict::Settled) => true,
                Err(refusal) => return Err(Undecided::at(task.event, Fault::Refused, &refusal.to_string())),
            },
            Asked::Timer(due) => match unit.due(due, &mut key.instance, out) {
                DueVerdict::Wake { reaction, payload } => {
                    return Ok(Judged::Call(Call { task: number, reaction, payload: Some(payload) }));
                }
                DueVerdict::Ignored => false,
                DueVerdict::Late | DueVerdict::Settled => true,
            },
        };
        key.queue.pop_front();
        if changed {
            key.changed = Some(task.event);
        }
        settle(fates, task.event, if changed { Fate::Applied } else { Fate::Ignored });
        Ok(Judged::Settled)
    }

    /// Folds what the guest answered.
    pub(super) fn fold(&mut self, rules: &Rules<'_>, calls: Vec<Call>, answers: Vec<Answer>) -> Result<(), Undecided> {
        let Self { batch, depths, keys, tasks, out, fates } = self;
        for (call, answer) in calls.into_iter().zip(answers) {
            let Some(task) = tasks.get(call.task) else { continue };
            let (Some(key), Some(out)) = (keys.get_mut(task.key), out.get_mut(call.task)) else { continue };
            let cause = cause(batch, depths, task.event);
            let unit = Unit { rules, key: &key.name, cause: &cause };
            unit.fold(call.reaction, &mut key.instance, answer.state, answer.effects, out)
                .map_err(|refusal| Undecided::at(task.event, Fault::Refused, &refusal.to_string()))?;
            key.queue.pop_front();
            key.changed = Some(task.event);
            settle(fates, task.event, Fate::Applied);
        }
        Ok(())
    }

    pub(super) fn event_of(&self, calls: &[Call], place: usize) -> usize {
        calls.get(place).and_then(|call| self.tasks.get(call.task)).map_or(0, |task| task.event)
    }

    /// What became of events of which no unit is set aside.
    pub(super) fn counts(&self, aside: &Aside) -> Counts {
        let fates = || self.fates.iter().enumerate().filter(|(event, _)| !aside.is_aside(*event));
        let of = |fate: Fate| fates().filter(|(_, other)| **other == fate).count() as u64;
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
