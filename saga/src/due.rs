//! Timers that come back. In: the handler's own, deadlines, waits before a retry, and somebody's wish to resume. Out:
//! whether the handler is to see it, or what was settled without. The instance alone decides whether one still means
//! anything; a deadline that lost against its answer is noted. Never: lets one that was cancelled too late do anything.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::compensation;
use crate::effect::Retry;
use crate::id::scatter;
use crate::instance::{Attempt, Instance, Status, Step, StepState, json};
use crate::outgoing::{Outgoing, Sender};
use crate::unit::{Meets, Reaction, Unit};

/// Longest wait before a retry, unless a longer one was asked for.
const LONGEST_WAIT: u64 = 300_000;

/// The event type of a timer that fired.
pub const TIMER_TYPE: &str = "millstream.timer";

/// The stream that it comes from.
pub const TIMER_STREAM: &str = "MILLSTREAM_TIMERS";

/// What a timer of the host says when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// Key of the instance.
    pub key: String,
    /// Which of its lives.
    pub life: String,
    /// What it is about.
    pub timer: Waiting,
}

/// What a timer is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiting {
    /// A timer of the handler.
    User {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
    /// Nobody answered this command in time.
    Deadline {
        /// Its step.
        step: String,
        /// Its id.
        id: String,
    },
    /// It is time to send once more what had this command id.
    Retry {
        /// Its step.
        step: String,
        /// Its id.
        id: String,
    },
    /// Take up a compensation that failed.
    Resume,
}

/// What is to become of a timer that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DueVerdict {
    /// The handler is to be woken, then its effects are folded. Nothing has changed yet.
    Wake {
        /// For [`Unit::fold`].
        reaction: Reaction,
        /// JSON for the handler: `{"key","name","payload"}`.
        payload: Vec<u8>,
    },
    /// Nobody waits for it any more. Nothing changed.
    Ignored,
    /// A deadline that lost against its answer; the instance has a note of it.
    Late,
    /// It needed no handler, and is folded.
    Settled,
}

/// What the handler gets with a timer.
#[derive(Serialize)]
struct Wake<'a> {
    key: &'a str,
    name: &'a str,
    payload: Option<&'a RawValue>,
}

impl Unit<'_> {
    /// Judges a timer; the unit's cause is the message that it came with.
    pub fn due(&self, due: &Due, instance: &mut Option<Instance>, out: &mut Vec<Outgoing>) -> DueVerdict {
        let Some(instance) = instance.as_mut().filter(|instance| instance.life == due.life) else {
            return DueVerdict::Ignored;
        };
        let before = instance.status;
        let did = match &due.timer {
            Waiting::User { id, .. } => return self.wake(id, instance),
            Waiting::Deadline { id, .. } => self.deadline(id, instance, out),
            Waiting::Retry { id, .. } => self.retry(id, instance, out),
            Waiting::Resume => compensation::resume(self, instance, out).map(|step| format!("resume at step {step}")),
        };
        match did {
            Some(did) => {
                self.record(instance, did, before);
                DueVerdict::Settled
            }
            None => self.lost(&due.timer, instance),
        }
    }

    /// A timer that nobody waits for: noted if it is a deadline, and what came in time was the answer.
    fn lost(&self, timer: &Waiting, instance: &mut Instance) -> DueVerdict {
        let Waiting::Deadline { id, .. } = timer else { return DueVerdict::Ignored };
        if instance.knows(self.cause.id) {
            return DueVerdict::Ignored;
        }
        match instance.find(id).and_then(|(number, attempt)| instance.steps.get(number)?.answered(attempt)) {
            Some(what) => {
                let did = format!("late: deadline of {what}, which was answered");
                instance.late += 1;
                self.record(instance, did, instance.status);
                DueVerdict::Late
            }
            None => DueVerdict::Ignored,
        }
    }

    fn wake(&self, id: &str, instance: &Instance) -> DueVerdict {
        let timers = instance.timers.iter().enumerate();
        match timers.into_iter().find(|(_, timer)| timer.id == id) {
            Some((number, timer)) if instance.status == Status::Running => DueVerdict::Wake {
                reaction: Reaction(Meets::Timer(number)),
                payload: json(&Wake { key: self.key, name: &timer.name, payload: timer.payload.as_deref() }),
            },
            _ => DueVerdict::Ignored,
        }
    }

    /// Nobody answered in time: again after a wait, or it is given up.
    fn deadline(&self, id: &str, instance: &mut Instance, out: &mut Vec<Outgoing>) -> Option<String> {
        let (number, attempt) = waiting(id, false, instance)?;
        let Instance { correlation, life, steps, .. } = &mut *instance;
        let step = steps.get_mut(number)?;
        let retry = step.retry(attempt.undo);
        let tried = tried(step, attempt);
        let what = if attempt.undo { format!("undo of step {}", step.step) } else { format!("step {}", step.step) };
        let within = milliseconds(step.within(attempt.undo).unwrap_or_default());
        if tried <= retry.times && (attempt.undo || step.payload.is_some()) {
            step.backing_off = true;
            let after = wait_before_retry(step, attempt, id);
            Sender { unit: *self, correlation, life, out }.back_off(step, id, after);
            return Some(format!("{what}: no answer within {within}, attempt {}", attempt.number));
        }
        let times = if tried == 1 { String::new() } else { format!(", {tried} times") };
        let reason = format!("{what}: no answer within {within}{times}");
        if attempt.undo {
            compensation::fail(self, instance, number, reason.clone(), out);
        } else {
            step.state = StepState::TimedOut;
            compensation::begin(self, instance, reason.clone(), out);
        }
        Some(reason)
    }

    /// The wait is over: the next attempt.
    fn retry(&self, id: &str, instance: &mut Instance, out: &mut Vec<Outgoing>) -> Option<String> {
        let (number, attempt) = waiting(id, true, instance)?;
        let Instance { correlation, life, steps, .. } = instance;
        let step = steps.get_mut(number)?;
        let mut sender = Sender { unit: *self, correlation, life, out };
        if attempt.undo {
            compensation::send(step, &mut sender);
            return Some(format!("undo of step {} sent again", step.step));
        }
        step.backing_off = false;
        step.attempt += 1;
        sender.command(step, step.payload.as_deref()?);
        Some(format!("step {} sent again", step.step))
    }
}

/// The step whose last try had this command id, if it still has no answer.
fn waiting(id: &str, backing_off: bool, instance: &Instance) -> Option<(usize, Attempt)> {
    let (number, attempt) = instance.find(id)?;
    let step = instance.steps.get(number)?;
    let status = if attempt.undo { Status::Compensating } else { Status::Running };
    let same = instance.status == status && step.awaits() == Some(attempt) && step.backing_off == backing_off;
    same.then_some((number, attempt))
}

/// How many tries there were, this one included, since somebody resumed.
fn tried(step: &Step, attempt: Attempt) -> u32 {
    attempt.number.saturating_sub(if attempt.undo { step.undo_attempts_before } else { 0 })
}

/// Milliseconds after this attempt, whose command has this id, until the next.
pub(crate) fn wait_before_retry(step: &Step, attempt: Attempt, id: &str) -> u64 {
    wait(step.retry(attempt.undo), tried(step, attempt), id)
}

/// Twice as long each time, and a little longer by chance, so that what failed at once does not come back at once.
fn wait(retry: Retry, tried: u32, id: &str) -> u64 {
    let doubled = 1_u64.checked_shl(tried.saturating_sub(1)).unwrap_or(u64::MAX);
    let wait = retry.wait.saturating_mul(doubled).min(LONGEST_WAIT.max(retry.wait));
    wait.saturating_add((wait / 4).saturating_mul(scatter(id)) / 1024)
}

fn milliseconds(milliseconds: u64) -> String {
    match (milliseconds / 1000, milliseconds % 1000) {
        (seconds, 0) => format!("{seconds} s"),
        _ => format!("{milliseconds} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{COMPENSATE, COMPLETE, TIME, Trial, firm, step, timer};
    use crate::{Cause, Late};

    #[test]
    fn an_answer_and_its_deadline_have_one_outcome_and_the_loser_is_late() {
        let mut trial = Trial::new();
        trial.event("e1", &[&firm("pay")]);
        assert_eq!(trial.answer("e2", "pay", &[]), "react");
        assert_eq!(trial.fire("pay.deadline", &[]), "late");
        assert_eq!(trial.did(), "late: deadline of step pay, which was answered");
        assert_eq!((trial.status(), trial.steps()), ("running".into(), "pay confirmed".into()));
        assert_eq!(trial.fire("pay.deadline", &[]), "ignored", "it is noted once");
        assert_eq!(trial.instance.as_ref().unwrap().late, 1);

        let mut trial = Trial::new();
        trial.event("e1", &[&firm("pay")]);
        assert_eq!(trial.fire("pay.deadline", &[]), "settled");
        assert_eq!(trial.answer("e2", "pay", &[]), "late");
        assert_eq!((trial.status(), trial.steps()), ("compensated".into(), "pay kept".into()));
        assert_eq!(trial.instance.as_ref().unwrap().reason.as_deref(), Some("step pay: no answer within 30 s"));
        assert_eq!(trial.fire("pay.deadline", &[]), "ignored");
    }

    #[test]
    fn a_deadline_that_lost_against_anything_but_its_answer_is_no_loser() {
        for end in [COMPLETE, COMPENSATE] {
            let mut trial = Trial::new();
            trial.event("e1", &[&firm("pay")]);
            trial.event("e2", &[end]);
            assert_eq!(trial.fire("pay.deadline", &[]), "ignored", "{end}");
        }
        // The deadline of an undo, though the saga is over by then.
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.answer("e2", "pay", &[COMPENSATE]);
        trial.answer("e3", "pay.undo", &[]);
        assert_eq!((trial.status(), trial.fire("pay.undo.deadline", &[])), ("compensated".into(), "late".into()));
        assert_eq!(trial.did(), "late: deadline of the undo of step pay, which was answered");
        assert_eq!(trial.fire("pay.deadline", &[]), "late", "the step's own, too");
    }

    #[test]
    fn any_attempt_may_be_answered_even_while_waiting_for_the_next() {
        for (answered, waiting) in [("pay", "pay.retry"), ("pay", "pay.2.deadline"), ("pay.2", "pay.2.deadline")] {
            let mut trial = Trial::new();
            trial.event("e1", &[&step("pay")]);
            trial.fire("pay.deadline", &[]);
            if waiting == "pay.2.deadline" {
                trial.fire("pay.retry", &[]);
            }
            trial.lines();
            assert_eq!(trial.answer("e2", answered, &[]), "react");
            assert_eq!(trial.steps(), "pay confirmed");
            assert_eq!(trial.lines(), [format!("cancel {waiting}")]);
            assert_eq!(trial.fire(waiting, &[]), if waiting.ends_with("deadline") { "late" } else { "ignored" });
        }
    }

    #[test]
    fn each_timer_counts_once() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay"), &timer("remind", 5)]);
        for (timer, fate) in [
            ("pay.deadline", "settled"),
            ("pay.deadline", "ignored"),
            ("pay.retry", "settled"),
            ("pay.retry", "ignored"),
            ("pay.deadline", "ignored"),
            ("pay.2.deadline", "settled"),
            ("pay.retry", "ignored"),
            ("remind", "wake"),
            ("remind", "ignored"),
        ] {
            assert_eq!(trial.fire(timer, &[]), fate, "{timer}");
        }
    }

    #[test]
    fn an_instance_that_begins_again_gets_none_of_the_old_timers() {
        let mut trial = Trial::new().late(Late::Start);
        let effects = [step("pay"), step("ship"), timer("remind", 5)];
        let effects: Vec<&str> = effects.iter().map(String::as_str).collect();
        trial.event("e1", &effects);
        trial.fire("ship.deadline", &[]);
        let old: Vec<_> = ["pay.deadline", "ship.retry", "remind"]
            .map(|timer| trial.id_of(timer))
            .iter()
            .map(|id| trial.out.iter().find_map(|outgoing| crate::trial::due(outgoing, id)).unwrap())
            .collect();
        trial.event("e2", &[COMPLETE]);
        assert_eq!(trial.event("e3", &effects), "react");
        for given in &old {
            assert_eq!(trial.give(given, |_, _| unreachable!()), "ignored", "{given:?}");
        }
        // Even if it bore the same ids: the life says whose it is.
        for timer in ["pay.deadline", "remind"] {
            let id = trial.id_of(timer);
            let mut given = trial.out.iter().find_map(|outgoing| crate::trial::due(outgoing, &id)).unwrap();
            given.due.as_mut().unwrap().life = "e1".into();
            assert_eq!(trial.give(&given, |_, _| unreachable!()), "ignored", "{given:?}");
            given.due.as_mut().unwrap().life = "e3".into();
            assert_ne!(trial.give(&given, |_, _| (None, Vec::new())), "ignored", "{given:?}");
        }
        trial.instance = None;
        assert_eq!(trial.give(&old[0], |_, _| unreachable!()), "ignored", "there is no instance at all");
    }

    #[test]
    fn a_timer_wakes_the_handler_with_what_it_left() {
        let mut trial = Trial::new();
        trial.event("e1", &[&timer("remind", 5), r#"{"timer":{"name":"plain","at":0}}"#]);
        let cause = Cause { id: "t", event_type: TIMER_TYPE, time: TIME, correlation: "", causation: "", depth: 0 };
        for (name, expected) in [
            ("remind", r#"{"key":"C42","name":"remind","payload":{"n":1}}"#),
            ("plain", r#"{"key":"C42","name":"plain","payload":null}"#),
        ] {
            let timer = Waiting::User { name: name.into(), id: trial.id_of(name) };
            let due = Due { key: "C42".into(), life: "e1".into(), timer };
            let unit = Unit { rules: &trial.rules, key: "C42", cause: &cause };
            let DueVerdict::Wake { payload, .. } = unit.due(&due, &mut trial.instance, &mut Vec::new()) else {
                panic!("{name}")
            };
            assert_eq!(String::from_utf8(payload).unwrap(), expected);
        }
        let refused = trial.fire("remind", &[r#"{"confirm":{"step":"x"}}"#]);
        assert!(refused.starts_with("refused"), "{refused}");
        assert_eq!(trial.fire("remind", &[&step("pay")]), "wake", "a refused timer stays");
        assert_eq!(trial.did(), "timer remind");
        assert_eq!(trial.instance.as_ref().unwrap().timers.len(), 1);
        trial.event("e2", &[COMPENSATE]);
        assert_eq!(trial.fire("plain", &[]), "ignored", "compensation cancels timers");
    }

    #[test]
    fn waits_double_up_to_five_minutes_and_scatter_by_a_quarter() {
        let cases =
            [(1000, 1, 1000), (1000, 2, 2000), (1000, 9, 256_000), (1000, 10, 300_000), (1000, 99, 300_000), (0, 5, 0)];
        // An hour was asked for.
        for (wait_ms, tried, least) in cases.into_iter().chain([(3_600_000, 1, 3_600_000), (3_600_000, 2, 3_600_000)]) {
            let waits =
                (0..100).map(|number| wait(Retry { times: 99, wait: wait_ms }, tried, &format!("orders.{number}")));
            let waits: std::collections::BTreeSet<u64> = waits.collect();
            let (first, last) = (waits.first().unwrap(), waits.last().unwrap());
            assert!(*first >= least && *first <= least + least / 20, "{wait_ms} {tried} {first}");
            assert!(*last <= least + least / 4 && *last >= least + least / 5, "{wait_ms} {tried} {last}");
        }
        wait(Retry { times: u32::MAX, wait: u64::MAX }, u32::MAX, "x");
    }

    #[test]
    fn the_wire_is_what_the_host_and_its_commands_write() {
        let due = |timer| serde_json::to_string(&Due { key: "C42".into(), life: "e1".into(), timer }).unwrap();
        let (step, id) = (String::from("pay"), String::from("orders.1"));
        let cases = [
            (Waiting::Resume, r#""resume""#),
            (Waiting::User { name: "t".into(), id: id.clone() }, r#"{"user":{"name":"t","id":"orders.1"}}"#),
            (
                Waiting::Deadline { step: step.clone(), id: id.clone() },
                r#"{"deadline":{"step":"pay","id":"orders.1"}}"#,
            ),
            (Waiting::Retry { step, id }, r#"{"retry":{"step":"pay","id":"orders.1"}}"#),
        ];
        for (timer, expected) in cases {
            assert_eq!(due(timer), format!(r#"{{"key":"C42","life":"e1","timer":{expected}}}"#));
        }
    }
}
