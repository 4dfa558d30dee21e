//! What a saga asks for. In: its words, in order. Out: effects for the host, which does them after the commit. Never:
//! does anything while the saga runs, or anything of a refused event.

mod sending;

pub use sending::{Command, Done, Publishing, Step, Timing, Undoing};

use core::time::Duration;
use std::fmt::Display;

use millstream_saga::{Effect, Undo, effect};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::Refusal;

/// What a saga wants done because of one event, in the order it asks.
///
/// ```
/// use millstream_sdk::prelude::*;
/// use millstream_sdk::serde_json::json;
///
/// fn order(effects: &mut Effects) {
///     effects
///         .send("inventory.reserve", &json!({ "order": "o-1" })) // a command
///         .step("reserve") // that somebody answers
///         .within(seconds(30)) // soon
///         .retry(3, seconds(2)) // or is asked again, after 2, 4 and 8 seconds
///         .undo("inventory.release", &json!({ "order": "o-1" })); // or takes back, with all other steps
///     effects.publish("orders.accepted", &json!({ "order": "o-1" })).named("OrderAccepted");
///     effects.after(hours(24), "abandoned");
/// }
/// ```
///
/// A payload is anything that serde can write:
///
/// ```compile_fail
/// struct Reserve { order: String } // lacks #[derive(Serialize)]
/// fn order(effects: &mut millstream_sdk::Effects) {
///     effects.send("inventory.reserve", &Reserve { order: String::from("o-1") });
/// }
/// ```
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
    problem: Option<Refusal>,
}

impl Effects {
    /// Sends a command. Nobody waits for its answer, unless it goes on with [`.step(…)`](Command::step).
    pub fn send(&mut self, subject: impl Into<String>, payload: &(impl Serialize + ?Sized)) -> Command<'_> {
        let subject = subject.into();
        let payload = self.payload(&subject, payload);
        self.list.push(Effect::Send(effect::Send {
            command_type: last_name(&subject).to_owned(),
            payload,
            subject,
            step: None,
            within: None,
            retry: None,
            undo: None,
            irreversible: false,
        }));
        Command(self)
    }

    /// Publishes an event.
    pub fn publish(&mut self, subject: impl Into<String>, payload: &(impl Serialize + ?Sized)) -> Publishing<'_> {
        let subject = subject.into();
        let payload = self.payload(&subject, payload);
        let event_type = last_name(&subject).to_owned();
        self.list.push(Effect::Publish(effect::Publish { subject, event_type, payload }));
        Publishing(self)
    }

    /// Notes a step that has already happened without a command, such as what began the saga, so that it can be undone.
    pub fn done(&mut self, step: impl Into<String>) -> Done<'_> {
        self.list.push(Effect::Done(effect::Done { step: step.into(), undo: None, irreversible: false }));
        Done(self)
    }

    /// Sets a timer, counted from the time of this event; one of the same name is replaced.
    pub fn after(&mut self, duration: Duration, name: impl Into<String>) -> Timing<'_> {
        self.timer(name.into(), Some(milliseconds(duration)), None)
    }

    /// Sets a timer for a moment, in nanoseconds since 1970 as [`Recorded::time`](crate::Recorded::time) has it, rounded up to
    /// milliseconds; one of the same name is replaced. A moment in the past comes at once.
    pub fn at(&mut self, nanoseconds: i64, name: impl Into<String>) -> Timing<'_> {
        let rest = i64::from(nanoseconds.rem_euclid(1_000_000) > 0);
        self.timer(name.into(), None, Some(nanoseconds.div_euclid(1_000_000) + rest))
    }

    fn timer(&mut self, name: String, after: Option<u64>, at: Option<i64>) -> Timing<'_> {
        self.list.push(Effect::Timer(effect::SetTimer { name, after, at, payload: None }));
        Timing(self)
    }

    /// Takes a timer back.
    pub fn cancel(&mut self, timer: impl Into<String>) {
        self.list.push(Effect::Cancel(effect::Named { name: timer.into() }));
    }

    /// A step's command was carried out. Not needed where the answer carries the command's id as its causation id.
    pub fn confirm(&mut self, step: impl Into<String>) {
        self.list.push(Effect::Confirm(effect::Step { step: step.into() }));
    }

    /// A step's command was refused by its service: there is nothing to undo for it.
    pub fn reject(&mut self, step: impl Into<String>, reason: impl Display) {
        self.list.push(Effect::Reject(effect::Rejected { step: step.into(), reason: reason.to_string() }));
    }

    /// Takes back what was done, last step first, one at a time. The saga sees no more events meanwhile.
    pub fn compensate(&mut self, reason: impl Display) {
        self.list.push(Effect::Compensate(effect::Because { reason: reason.to_string() }));
    }

    /// The saga is over and went well. Its timers are taken back.
    pub fn complete(&mut self) {
        self.list.push(Effect::Complete);
    }

    /// The saga is over and went wrong; nothing is taken back.
    pub fn fail(&mut self, reason: impl Display) {
        self.list.push(Effect::Fail(effect::Because { reason: reason.to_string() }));
    }

    /// What was asked for so far.
    #[must_use]
    pub fn as_slice(&self) -> &[Effect] {
        &self.list
    }

    /// Forgets everything, for the next unit.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.problem = None;
    }

    /// Whether all of it can be handed over.
    pub(crate) fn check(&mut self) -> Result<(), Refusal> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        match self.list.iter().find_map(left_open) {
            Some(step) => Err(Refusal::new(format_args!(
                "step `{step}` does not say how it is taken back: add `.undo(…)`, or `.irreversible()` if it cannot be"
            ))),
            None => Ok(()),
        }
    }

    /// The payload as JSON; one that JSON cannot hold refuses the event.
    fn payload(&mut self, of: &str, payload: &(impl Serialize + ?Sized)) -> Box<RawValue> {
        to_raw_value(payload).unwrap_or_else(|error| {
            let problem = || Refusal::new(format_args!("the payload for `{of}` cannot be written as JSON: {error}"));
            self.problem.get_or_insert_with(problem);
            RawValue::NULL.to_owned()
        })
    }

    fn last_send(&mut self) -> Option<&mut effect::Send> {
        match self.list.last_mut() {
            Some(Effect::Send(send)) => Some(send),
            _ => None,
        }
    }

    fn last_undo(&mut self) -> Option<&mut Undo> {
        match self.list.last_mut() {
            Some(Effect::Send(send)) => send.undo.as_mut(),
            Some(Effect::Done(done)) => done.undo.as_mut(),
            _ => None,
        }
    }

    fn undo_last(&mut self, subject: String, payload: &(impl Serialize + ?Sized)) {
        let command_type = last_name(&subject).to_owned();
        let payload = self.payload(&subject, payload);
        let undo = Some(Undo { subject, command_type, payload, within: None, retry: None });
        match self.list.last_mut() {
            Some(Effect::Send(send)) => send.undo = undo,
            Some(Effect::Done(done)) => done.undo = undo,
            _ => {}
        }
    }
}

/// The step that says neither how it is undone nor that it cannot be.
fn left_open(effect: &Effect) -> Option<&str> {
    match effect {
        Effect::Send(send) if send.undo.is_none() && !send.irreversible => send.step.as_deref(),
        Effect::Done(done) if done.undo.is_none() && !done.irreversible => Some(&done.step),
        _ => None,
    }
}

/// The type of a message that has no name of its own, as the host takes it from a subject: the last token that is a name.
fn last_name(subject: &str) -> &str {
    let is_name = |token: &&str| {
        token.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && token.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-')
    };
    subject.rsplit('.').find(is_name).unwrap_or(subject)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duration::{hours, seconds};
    use serde_json::json;

    fn written(ask: impl FnOnce(&mut Effects)) -> Vec<String> {
        let mut effects = Effects::default();
        ask(&mut effects);
        assert_eq!(effects.check(), Ok(()));
        effects.as_slice().iter().map(|effect| serde_json::to_string(effect).unwrap()).collect()
    }

    #[test]
    fn effects_are_written_as_the_host_reads_them_in_the_order_asked() {
        let written = written(|effects| {
            effects.send("mail.send.o-1", "hello");
            effects
                .send("pay", &json!({ "cents": 5 }))
                .named("Pay")
                .step("pay")
                .within(seconds(30))
                .retry(3, seconds(2))
                .undo("refund", &json!({ "cents": 5 }))
                .named("Refund")
                .within(seconds(60))
                .retry(9, seconds(1));
            effects.send("ship", &1).step("ship").named("Ship").irreversible();
            effects.done("order").undo("orders.reject", &());
            effects.done("paper").irreversible();
            effects.publish("orders.accepted", &[1]);
            effects.publish("orders.accepted", &[1]).named("Accepted");
            effects.after(hours(24), "abandoned");
            effects.at(1_000_001, "due").payload(&json!({ "id": 7 }));
            effects.cancel("abandoned");
            effects.confirm("pay");
            effects.reject("ship", "no van");
            effects.compensate("no van");
            effects.fail("no van");
            effects.complete();
        });
        assert_eq!(
            written,
            [
                r#"{"send":{"subject":"mail.send.o-1","type":"send","payload":"hello"}}"#,
                r#"{"send":{"subject":"pay","type":"Pay","payload":{"cents":5},"step":"pay","within":30000,"retry":{"times":3,"wait":2000},"undo":{"subject":"refund","type":"Refund","payload":{"cents":5},"within":60000,"retry":{"times":9,"wait":1000}}}}"#,
                r#"{"send":{"subject":"ship","type":"Ship","payload":1,"step":"ship","irreversible":true}}"#,
                r#"{"done":{"step":"order","undo":{"subject":"orders.reject","type":"reject","payload":null}}}"#,
                r#"{"done":{"step":"paper","irreversible":true}}"#,
                r#"{"publish":{"subject":"orders.accepted","type":"accepted","payload":[1]}}"#,
                r#"{"publish":{"subject":"orders.accepted","type":"Accepted","payload":[1]}}"#,
                r#"{"timer":{"name":"abandoned","after":86400000}}"#,
                r#"{"timer":{"name":"due","at":2,"payload":{"id":7}}}"#,
                r#"{"cancel":{"name":"abandoned"}}"#,
                r#"{"confirm":{"step":"pay"}}"#,
                r#"{"reject":{"step":"ship","reason":"no van"}}"#,
                r#"{"compensate":{"reason":"no van"}}"#,
                r#"{"fail":{"reason":"no van"}}"#,
                r#""complete""#,
            ]
        );
    }

    #[test]
    #[allow(unused_must_use, reason = "the mistake that is tested")]
    fn what_cannot_be_handed_over_is_refused_with_its_name() {
        let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
        type Ask<'a> = Box<dyn Fn(&mut Effects) + 'a>;
        let cases: [(&str, Ask<'_>); 5] = [
            ("step `pay` does not say how it is taken back", Box::new(|e| _ = e.send("pay", &1).step("pay"))),
            ("step `order` does not say", Box::new(|e| _ = e.done("order"))),
            (
                "the payload for `pay` cannot be written as JSON: key must be",
                Box::new(|e| _ = e.send("pay", &unwritable)),
            ),
            ("the payload for `undo` cannot", Box::new(|e| _ = e.done("order").undo("undo", &unwritable))),
            ("the payload for `later` cannot", Box::new(|e| _ = e.after(hours(1), "later").payload(&unwritable))),
        ];
        for (expected, ask) in cases {
            let mut effects = Effects::default();
            ask(&mut effects);
            effects.send("mail", &1);
            let refusal = effects.check().expect_err(expected);
            assert!(refusal.reason().contains(expected), "{refusal}");
        }
    }

    #[test]
    fn a_moment_is_never_rounded_into_the_past() {
        for (nanoseconds, milliseconds) in [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (-1, 0), (-1_000_001, -1)] {
            let mut effects = Effects::default();
            effects.at(nanoseconds, "t");
            let Some(Effect::Timer(timer)) = effects.as_slice().first() else { panic!("no timer") };
            assert_eq!(timer.at, Some(milliseconds), "{nanoseconds}");
        }
    }

    #[test]
    fn a_message_is_named_by_the_last_token_that_is_a_name() {
        for (subject, name) in [("orders.cancel", "cancel"), ("a.Go-on.o1", "Go-on"), ("1.2", "1.2"), ("pay", "pay")] {
            assert_eq!(last_name(subject), name);
        }
    }
}
