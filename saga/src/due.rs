//! Timers that come back: the handler's own, deadlines, waits before a retry, and somebody's wish to resume. The instance
//! alone decides whether one still means anything; a timer that was cancelled too late does nothing.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::compensation;
use crate::effect::Retry;
use crate::id::scatter;
use crate::instance::{Attempt, Instance, Status, StepState, json};
use crate::outgoing::{Outgoing, Sender};
use crate::unit::{Meets, Reaction, Unit};

/// Longest wait before a retry, unless a longer one was asked for.
const LONGEST_WAIT: u64 = 300_000;

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
        let before = if attempt.undo { step.undo_attempts_before } else { 0 };
        let tried = attempt.number.saturating_sub(before);
        let what = if attempt.undo { format!("undo of step {}", step.step) } else { format!("step {}", step.step) };
        let within = milliseconds(step.within(attempt.undo).unwrap_or_default());
        if tried <= retry.times && (attempt.undo || step.payload.is_some()) {
            step.backing_off = true;
            Sender { unit: *self, correlation, life, out }.back_off(step, id, wait(retry, tried, id));
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
