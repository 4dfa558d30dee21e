//! One call into the guest about units of several instances. In: the units that it must see, and their states where it does not
//! hold them. Out: an answer for each. Never: lets the guest speak of a unit that it was not asked about, or see anything of
//! an instance but its state.

use std::collections::HashMap;

use millstream_saga::{Effect, Reaction};
use serde_json::value::RawValue;

use super::work::{Asked, Call, Key, Work};
use crate::decision::{self, Fault, Undecided};
use crate::sandbox::{Guest, slice, str_slice, wire};

/// What the guest said to it.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) state: Option<Box<RawValue>>,
    pub(super) effects: Vec<Effect>,
}

impl Work {
    /// One call into the guest for events that it has staged.
    pub(super) fn ask_about_events(
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
    pub(super) fn ask_about_timers(&mut self, guest: &mut dyn Guest, calls: &[Call]) -> Result<Vec<Answer>, Undecided> {
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
        let unfit = |place: usize, reason: &str| Undecided::at(event_of(place), Fault::Refused, reason);
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
            .map_err(|error| Undecided::at(event(place), Fault::Refused, &format!("its state is not JSON: {error}")))?;
        if let Some(answer) = answers.get_mut(place) {
            answer.state = Some(state);
        }
    }
    for effect in &outcome.effects {
        let Some(place) = place(effect.route) else { continue };
        let effect = serde_json::from_slice(slice(&outcome.blob, effect.body)).map_err(|error| {
            Undecided::at(event(place), Fault::Refused, &format!("an effect cannot be read: {error}"))
        })?;
        if let Some(answer) = answers.get_mut(place) {
            answer.effects.push(effect);
        }
    }
    Ok(answers)
}

/// Indexes and spans are 32 bits wide; a batch is bounded far below.
fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
