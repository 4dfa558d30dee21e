//! What of an instance must be the same under both modules, and what of an effect. In: instances and effects. Out: marks that can
//! be compared, and a difference in words. Pure. Counted in: status, steps with their command ids, attempts and answers, timers
//! by id; of an effect what it is, its id, subject, type and step. Left out, for they may change without harm to what was begun:
//! the handler's own state, payloads, durations, how a step is taken back, the history.

use millstream_saga::instance::StepState;
use millstream_saga::{Due, Instance, Outgoing, Status, Waiting};

/// What counts of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    status: Status,
    life: String,
    steps: Vec<StepMark>,
    /// Name and id.
    timers: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StepMark {
    step: String,
    state: StepState,
    id: String,
    attempt: u32,
    undo_attempt: u32,
    backing_off: bool,
    irreversible: bool,
    reply: Option<String>,
}

impl Mark {
    pub(super) fn of(instance: &Instance) -> Self {
        let steps = instance.steps.iter().map(|step| StepMark {
            step: step.step.clone(),
            state: step.state,
            id: step.id.clone(),
            attempt: step.attempt,
            undo_attempt: step.undo_attempt,
            backing_off: step.backing_off,
            irreversible: step.irreversible,
            reply: step.reply.clone(),
        });
        Self {
            status: instance.status,
            life: instance.life.clone(),
            steps: steps.collect(),
            timers: instance.timers.iter().map(|timer| (timer.name.clone(), timer.id.clone())).collect(),
        }
    }

    /// How `new` differs from `old`.
    pub(super) fn difference(old: Option<&Self>, new: Option<&Self>) -> Option<String> {
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) if old == new => return None,
            (None, None) => return None,
            (Some(_), None) => return Some("it begins no instance there".to_owned()),
            (None, Some(_)) => return Some("it begins an instance there".to_owned()),
            (Some(old), Some(new)) => (old, new),
        };
        if old.status != new.status {
            return Some(format!("the instance is {} after it, not {}", new.status, old.status));
        }
        let differing = old.steps.iter().zip(&new.steps).find(|(old, new)| old != new);
        let step = match differing {
            Some((old, new)) if old.step == new.step && old.state != new.state => {
                format!("step {} is {} after it, not {}", new.step, word(new.state), word(old.state))
            }
            Some((old, new)) if old.step == new.step => format!("step {} stands otherwise after it", old.step),
            Some((old, new)) => format!("its step is {}, not {}", new.step, old.step),
            None => match (old.steps.get(new.steps.len()), new.steps.get(old.steps.len())) {
                (Some(missing), _) => format!("step {} is missing after it", missing.step),
                (None, Some(more)) => format!("step {} is there after it", more.step),
                (None, None) => "the timers are others after it".to_owned(),
            },
        };
        Some(step)
    }
}

/// How what the new module asks for differs from what the old one asked for.
pub(super) fn other_effects(old: &[Outgoing], new: &[Outgoing]) -> Option<String> {
    let differing = old.iter().zip(new).find(|(old, new)| !is_same(old, new));
    if let Some((old, new)) = differing {
        return Some(format!("it {}, where the running module {}", words(new), words(old)));
    }
    match (old.get(new.len()), new.get(old.len())) {
        (Some(missing), _) => Some(format!("the running module {}, and it does not", words(missing))),
        (None, Some(more)) => Some(format!("it {}, and the running module does not", words(more))),
        (None, None) => None,
    }
}

/// The same thing to do, whatever it says.
fn is_same(old: &Outgoing, new: &Outgoing) -> bool {
    match (old, new) {
        (Outgoing::Message(old), Outgoing::Message(new)) => {
            (&old.id, &old.subject, &old.event_type, old.command, &old.step, old.attempt)
                == (&new.id, &new.subject, &new.event_type, new.command, &new.step, new.attempt)
        }
        (Outgoing::Timer { id: old, body: says, .. }, Outgoing::Timer { id, body, .. })
        | (Outgoing::Wait { id: old, body: says, .. }, Outgoing::Wait { id, body, .. }) => old == id && says == body,
        (Outgoing::Cancel { id: old }, Outgoing::Cancel { id }) => old == id,
        _ => false,
    }
}

/// What an effect is, for people.
pub(super) fn words(effect: &Outgoing) -> String {
    match effect {
        Outgoing::Message(message) if message.command => {
            let step = message.step.as_ref().map_or_else(String::new, |step| format!(" for step {step}"));
            format!("sends {} to {}{step}", message.event_type, message.subject)
        }
        Outgoing::Message(message) => format!("publishes {} to {}", message.event_type, message.subject),
        Outgoing::Timer { body, .. } | Outgoing::Wait { body, .. } => match serde_json::from_slice::<Due>(body) {
            Ok(Due { timer: Waiting::User { name, .. }, .. }) => format!("sets timer {name}"),
            Ok(Due { timer: Waiting::Deadline { step, .. }, .. }) => format!("sets a deadline for step {step}"),
            Ok(Due { timer: Waiting::Retry { step, .. }, .. }) => format!("waits to send step {step} again"),
            Ok(Due { timer: Waiting::Resume, .. }) | Err(_) => "sets a timer".to_owned(),
        },
        Outgoing::Cancel { .. } => "takes a timer back".to_owned(),
    }
}

fn word(state: StepState) -> String {
    serde_json::to_value(state).ok().and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(steps: &str, more: &str) -> Mark {
        let text = format!(r#"{{"status":"running","state":7,"correlation":"c","life":"e","steps":[{steps}]{more}}}"#);
        Mark::of(&Instance::read(text.as_bytes()).unwrap())
    }

    fn step(name: &str, state: &str) -> String {
        format!(r#"{{"step":"{name}","state":"{state}","id":"i","attempt":1}}"#)
    }

    #[test]
    fn a_difference_is_said_in_words() {
        let old = mark(&step("pay", "sent"), "");
        let two = format!("{},{}", step("pay", "sent"), step("ship", "sent"));
        let timers = r#","timers":[{"name":"t","id":"x","at":""}]"#;
        for (new, words) in [
            (mark(&step("pay", "confirmed"), ""), "step pay is confirmed after it, not sent"),
            (mark(&step("ship", "sent"), ""), "its step is ship, not pay"),
            (mark(&two, ""), "step ship is there after it"),
            (mark("", ""), "step pay is missing after it"),
            (mark(&step("pay", "sent"), timers), "the timers are others after it"),
        ] {
            assert_eq!(Mark::difference(Some(&old), Some(&new)).as_deref(), Some(words));
        }
        assert_eq!(Mark::difference(Some(&old), Some(&old)), None);
        assert!(Mark::difference(Some(&old), None).is_some() && Mark::difference(None, Some(&old)).is_some());
    }

    #[test]
    fn what_the_state_and_the_payloads_say_is_no_difference() {
        let old = mark(&step("pay", "sent"), "");
        let more = step("pay", "sent").replace("\"attempt\"", r#""payload":{"n":1},"within_ms":7,"attempt""#);
        assert_eq!(Mark::difference(Some(&old), Some(&mark(&more, r#","late":3"#))), None);
        let timer = |due| Outgoing::Timer {
            id: "i".into(),
            due,
            body: Vec::new(),
            correlation: String::new(),
            causation: String::new(),
        };
        assert_eq!(other_effects(&[timer(1)], &[timer(2)]), None);
        assert_eq!(other_effects(&[timer(1)], &[]).unwrap(), "the running module sets a timer, and it does not");
    }
}
