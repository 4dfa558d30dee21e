//! What a saga wants done, as it crosses from the handler to the host: one JSON value per effect, in the order asked
//! for. In: the handler's words. Out: the same as types. Never: judges them; `check.rs` does.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// A command.
    Send(Send),
    /// An event.
    Publish(Publish),
    /// A step that has already happened without a command of ours; only its undo matters.
    Done(Done),
    /// Sets a timer; one of that name is replaced.
    Timer(SetTimer),
    /// Takes a timer back.
    Cancel(Named),
    /// A step's command was carried out.
    Confirm(Step),
    /// A step's command was refused by its service: there is nothing to undo.
    Reject(Rejected),
    /// Takes back what was done, last step first.
    Compensate(Because),
    /// The saga is over and went well.
    Complete,
    /// The saga is over and went wrong; nothing is taken back.
    Fail(Because),
}

/// A command; with a step somebody waits for its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// Target subject, without wildcards.
    pub subject: String,
    /// Command type for the envelope.
    #[serde(rename = "type")]
    pub command_type: String,
    /// JSON.
    pub payload: Box<RawValue>,
    /// Name of the step, unique among the unfinished steps of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Milliseconds from publication to the deadline; none waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<u64>,
    /// What to do at the deadline before giving up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How to take the step back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// It cannot be taken back, on purpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub irreversible: bool,
}

/// Attempts after the first, and the wait before the first of them; each further wait is twice as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How many further attempts.
    pub times: u32,
    /// Milliseconds.
    pub wait: u64,
}

/// A command that takes a step back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    /// Target subject.
    pub subject: String,
    /// Command type for the envelope.
    #[serde(rename = "type")]
    pub command_type: String,
    /// JSON.
    pub payload: Box<RawValue>,
    /// Milliseconds to its own deadline; the step's if not said, or else 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<u64>,
    /// The step's if not said, or else three times after a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// An event to publish.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Target subject, without wildcards.
    pub subject: String,
    /// Event type for the envelope.
    #[serde(rename = "type")]
    pub event_type: String,
    /// JSON.
    pub payload: Box<RawValue>,
}

/// A step that is done already.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Its name.
    pub step: String,
    /// How to take it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// It cannot be taken back, on purpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub irreversible: bool,
}

/// A timer; exactly one of `after` and `at`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTimer {
    /// Its name, unique in the instance.
    pub name: String,
    /// Milliseconds after the time of the event that sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    /// JSON for the handler when it fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

/// A timer by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: String,
}

/// A step by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The name.
    pub step: String,
}

/// A step that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    /// The name.
    pub step: String,
    /// Why, for people.
    pub reason: String,
}

/// A reason for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Because {
    /// The reason.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_reads_back_as_it_was_written() {
        for text in [
            r#"{"send":{"subject":"pay","type":"Pay","payload":{"cents":5},"step":"pay","within":30000,"retry":{"times":3,"wait":2000},"undo":{"subject":"refund","type":"Refund","payload":null}}}"#,
            r#"{"publish":{"subject":"e","type":"E","payload":[1]}}"#,
            r#"{"done":{"step":"order","irreversible":true}}"#,
            r#"{"timer":{"name":"abandoned","after":86400000}}"#,
            r#""complete""#,
        ] {
            let effect: Effect = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&effect).unwrap(), text);
        }
    }

    #[test]
    fn what_the_host_does_not_know_is_refused() {
        for text in
            [r#""launch""#, r#"{"cancel":{"name":"a","nom":"b"}}"#, r#"{"send":{"subject":"pay","type":"Pay"}}"#]
        {
            assert!(serde_json::from_str::<Effect>(text).is_err(), "{text}");
        }
    }
}
