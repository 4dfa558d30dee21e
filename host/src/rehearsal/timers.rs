//! Timers of the past. In: the histories of instances, which name the timers that fired and what came before and after; what the
//! running module sets in the rehearsal. Out: those timers again, as the host would have got them, each before the event that
//! followed it. Pure. Never: fires one that did not count, or one whose setting is no longer to be had.

use std::collections::{HashMap, HashSet};

use millstream_saga::instance::Transition;
use millstream_saga::{Due, Instance, Outgoing, Waiting};

use crate::clock;
use crate::intake::Arrival;
use crate::publication::Publication;
use crate::timers::{TYPE, Timer};

/// The timers of all instances in a rehearsal.
#[derive(Default)]
pub(super) struct Timers {
    /// By the id of the event that followed.
    before: HashMap<String, Vec<Fired>>,
    /// Those that nothing followed.
    last: Vec<Fired>,
    /// Ids of all these.
    wanted: HashSet<String>,
    /// As the running module set them.
    set: HashMap<String, Set>,
}

/// A timer that fired.
#[derive(Clone)]
pub(super) struct Fired {
    pub(super) key: String,
    pub(super) id: String,
    /// When it was due, nanoseconds since 1970.
    due: i64,
    /// It was somebody's wish to resume.
    wish: Option<Set>,
}

#[derive(Clone)]
struct Set {
    /// Where the module names a time.
    due: Option<i64>,
    body: Vec<u8>,
    correlation: String,
    causation: String,
}

impl Timers {
    /// Reads the history of this life of an instance.
    pub(super) fn add(&mut self, key: &str, instance: &Instance) {
        let mut waiting = Vec::new();
        for transition in this_life(instance) {
            if transition.event_type == TYPE {
                self.wanted.insert(transition.event.clone());
                waiting.push(fired(key, instance, transition));
            } else if !waiting.is_empty() {
                self.before.entry(transition.event.clone()).or_default().append(&mut waiting);
            }
        }
        self.last.append(&mut waiting);
    }

    /// Whether a timer fired before this event.
    pub(super) fn precede(&self, event: &str) -> bool {
        self.before.contains_key(event)
    }

    /// The timers that fired before this event, once.
    pub(super) fn take_before(&mut self, event: &str) -> Vec<Fired> {
        self.before.remove(event).unwrap_or_default()
    }

    /// The timers that no event followed.
    pub(super) fn take_last(&mut self) -> Vec<Fired> {
        std::mem::take(&mut self.last)
    }

    /// Keeps what is set and fires later.
    pub(super) fn keep(&mut self, effects: &[Outgoing]) {
        for effect in effects {
            let (id, due, body, correlation, causation) = match effect {
                Outgoing::Timer { id, due, body, correlation, causation } => {
                    (id, Some(*due), body, correlation, causation)
                }
                Outgoing::Wait { id, body, correlation, causation, .. } => (id, None, body, correlation, causation),
                Outgoing::Message(_) | Outgoing::Cancel { .. } => continue,
            };
            if self.wanted.contains(id) {
                let (correlation, causation) = (correlation.clone(), causation.clone());
                self.set.insert(id.clone(), Set { due, body: body.clone(), correlation, causation });
            }
        }
    }

    /// A timer as it comes to the host; none if nobody has set it here.
    pub(super) fn arrival(&self, handler: &str, fired: &Fired) -> Option<Arrival> {
        let set = self.set.get(&fired.id).or(fired.wish.as_ref())?;
        let timer = Timer {
            id: &fired.id,
            due: set.due.unwrap_or(fired.due),
            body: set.body.clone().into(),
            correlation: &set.correlation,
            causation: &set.causation,
        };
        Some(arrival(handler, &timer))
    }
}

/// A timer that is due, as the host gets it.
pub(super) fn arrival(handler: &str, timer: &Timer<'_>) -> Arrival {
    let Publication { subject, headers, payload } = timer.publication(handler, i64::MAX);
    Arrival::made_of(subject, headers, payload, 0, timer.due)
}

/// The transitions of this life. Where its beginning is forgotten, all of them are.
fn this_life(instance: &Instance) -> &[Transition] {
    let begin = instance.history.iter().position(|transition| transition.event == instance.life);
    instance.history.get(begin.unwrap_or_default()..).unwrap_or_default()
}

fn fired(key: &str, instance: &Instance, transition: &Transition) -> Fired {
    // A wish to resume is set by nobody's effect, so all of it is made here.
    let due = Due { key: key.to_owned(), life: instance.life.clone(), timer: Waiting::Resume };
    let wish = transition.did.starts_with("resume at step ").then(|| Set {
        due: None,
        body: serde_json::to_vec(&due).unwrap_or_default(),
        correlation: instance.correlation.clone(),
        causation: String::new(),
    });
    let due = clock::read(&transition.at).unwrap_or_default();
    Fired { key: key.to_owned(), id: transition.event.clone(), due, wish }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(history: &[(&str, &str)]) -> Instance {
        let history: Vec<serde_json::Value> = history
            .iter()
            .map(|(event, event_type)| {
                serde_json::json!({ "event": event, "type": event_type, "at": "2026-01-01T00:00:00.007Z",
                    "digest": "d", "did": if *event == "wish" { "resume at step pay" } else { "react" } })
            })
            .collect();
        let document = serde_json::json!({ "status": "running", "state": null, "correlation": "c", "life": "e2",
            "history": history });
        Instance::read(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_timer_fires_before_the_event_that_followed_it() {
        let history =
            [("old", TYPE), ("e2", "E"), ("t1", TYPE), ("t2", TYPE), ("e3", "E"), ("t3", TYPE), ("wish", TYPE)];
        let mut timers = Timers::default();
        timers.add("k", &instance(&history));
        let ids = |fired: Vec<Fired>| fired.into_iter().map(|fired| fired.id).collect::<Vec<_>>();
        assert!(!timers.precede("e2"), "it belongs to the life before");
        assert!(timers.precede("e3"));
        assert_eq!(ids(timers.take_before("e3")), ["t1", "t2"]);
        let last = timers.take_last();
        assert!(timers.arrival("h", &last[0]).is_none(), "nobody has set it here");
        let set = Outgoing::Wait {
            id: "t3".into(),
            after_ms: 5,
            body: b"{}".to_vec(),
            correlation: "c".into(),
            causation: "e3".into(),
        };
        timers.keep(&[set]);
        let arrival = timers.arrival("h", &last[0]).unwrap();
        assert_eq!((arrival.stored, &arrival.message.payload[..]), (1_767_225_600_007_000_000, &b"{}"[..]));
        let wish = timers.arrival("h", &last[1]).unwrap();
        assert_eq!(
            serde_json::from_slice::<Due>(&wish.message.payload).unwrap(),
            Due { key: "k".into(), life: "e2".into(), timer: Waiting::Resume }
        );
    }
}
