//! Whole files of events through one saga, for checks against answers that were computed elsewhere. In: events, and the
//! time at which it ends. Out: the instances and what was sent. Never: answers what it sends.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::super::{TestEvent, fail};
use super::{Scenario, Sent, saga};
use crate::Saga;

/// What became of a file of events.
#[must_use]
pub struct Replayed<S> {
    /// All that was sent, in order.
    pub sent: Vec<Sent>,
    /// The state of each instance, by key.
    pub states: BTreeMap<String, S>,
    /// How many timers have not fired.
    pub pending_timers: usize,
}

/// Hands over many events, in their order, while the clock follows their times, and goes on to `end`, as RFC 3339; what is due
/// then does not fire any more.
///
/// # Panics
/// If an event or a timer is not accepted, or a state does not read back.
#[track_caller]
pub fn replay_saga<S: Saga>(events: impl IntoIterator<Item = TestEvent>, end: &str) -> Replayed<S> {
    let end = super::super::event("end", ()).at(end).time();
    let mut scenario = saga::<S>();
    let mut sent = Vec::new();
    for event in events {
        scenario.deliver(event);
        scenario.forget(&mut sent);
    }
    scenario.fire_until(end.saturating_sub(1));
    scenario.forget(&mut sent);

    let mut states = BTreeMap::new();
    let mut pending_timers = 0;
    for key in scenario.host.instances.keys() {
        let Some(instance) = scenario.host.instance(key) else { continue };
        pending_timers += instance.timers.len();
        if let Some(state) = instance.state() {
            states.insert(key.clone(), read_or_fail(key, state.get()));
        }
    }
    Replayed { sent, states, pending_timers }
}

impl<S: Saga> Scenario<crate::guest::SagaOf<S>> {
    /// Keeps what was sent, and nothing else.
    #[track_caller]
    fn forget(&mut self, sent: &mut Vec<Sent>) {
        self.accepted_or_fail("the");
        self.fates.clear();
        self.inputs.clear();
        self.logged.clear();
        sent.append(&mut self.sent);
    }
}

#[track_caller]
fn read_or_fail<S: DeserializeOwned>(key: &str, state: &str) -> S {
    match serde_json::from_str(state) {
        Ok(state) => state,
        Err(error) => fail(format_args!("the state of `{key}` does not read back: {error}")),
    }
}
