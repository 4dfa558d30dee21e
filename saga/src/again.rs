//! What an instance waits for, once more. In: the instance alone. Out: its timers, deadlines and waits, under the ids that they
//! had, for a stream of timers that has lost them. Never: what is not needed any more, or anything but timers.
//!
//! Timers are due when they were, to the millisecond. A deadline or wait begins anew, for the instance does not know when it began.

use crate::due::wait_before_retry;
use crate::instance::{Instance, Status};
use crate::outgoing::{Outgoing, Sender};
use crate::unit::{Cause, Rules, Unit};

impl Instance {
    /// All that it waits for. `read` makes nanoseconds since 1970 of RFC 3339.
    pub fn waits(&self, handler: &str, key: &str, read: impl Fn(&str) -> Option<i64>) -> Vec<Outgoing> {
        let mut out = Vec::new();
        let undo = match self.status {
            Status::Running => false,
            Status::Compensating => true,
            Status::Completed | Status::Compensated | Status::CompensationFailed | Status::Failed => return out,
        };
        let rules = Rules { handler, ..Rules::default() };
        let cause = Cause { id: &self.life, event_type: "", time: 0, correlation: "", causation: "", depth: 0 };
        let unit = Unit { rules: &rules, key, cause: &cause };
        let mut sender = Sender { unit, correlation: &self.correlation, life: &self.life, out: &mut out };
        for timer in &self.timers {
            sender.timer(&timer.id, read(&timer.at).unwrap_or_default(), &timer.name);
        }
        for step in &self.steps {
            let Some(attempt) = step.awaits().filter(|attempt| attempt.undo == undo) else { continue };
            let id = step.command_id(attempt);
            if step.backing_off {
                sender.back_off(step, &id, wait_before_retry(step, attempt, &id));
            } else if let Some(within) = step.within(undo) {
                sender.deadline(step, id, within);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::Outgoing;
    use crate::trial::{COMPENSATE, COMPLETE, TIME, Trial, done, firm, step, timer};

    /// Timers by id, without what caused them: what was set and not taken back.
    fn set(out: &[Outgoing]) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut set = BTreeMap::new();
        for outgoing in out {
            match outgoing {
                Outgoing::Timer { id, due, body, .. } => drop(set.insert(id.clone(), (*due as u64, body.clone()))),
                Outgoing::Wait { id, after_ms, body, .. } => drop(set.insert(id.clone(), (*after_ms, body.clone()))),
                Outgoing::Cancel { id } => drop(set.remove(id)),
                Outgoing::Message(_) => {}
            }
        }
        set
    }

    fn again(trial: &Trial) -> BTreeMap<String, (u64, Vec<u8>)> {
        let read = |text: &str| (text == "2026-01-01T00:00:00.005Z").then_some(TIME + 5_000_000);
        let out = trial.instance.as_ref().unwrap().waits("orders", "C42", read);
        let unique = set(&out);
        assert_eq!((out.len(), out.iter().all(|out| !matches!(out, Outgoing::Message(_)))), (unique.len(), true));
        unique
    }

    #[test]
    fn it_is_what_was_set_and_neither_came_nor_was_taken_back() {
        let mut trial = Trial::new();
        trial.event("e1", &[&done("order"), &step("pay"), &step("ship"), &firm("mail"), &timer("remind", 5)]);
        assert_eq!(again(&trial), set(&trial.out));
        assert_eq!(again(&trial).len(), 4);
        let mut came = Vec::new();
        for (timer, left) in [("ship.deadline", 4), ("ship.retry", 4), ("ship.2.deadline", 4), ("ship.2.retry", 4)] {
            assert_eq!(trial.fire(timer, &[]), "settled");
            came.push(trial.id_of(timer));
            let mut expected = set(&trial.out);
            came.iter().for_each(|id| drop(expected.remove(id)));
            assert_eq!((again(&trial), again(&trial).len()), (expected, left), "{timer}");
        }
        trial.answer("e2", "pay", &[COMPENSATE]);
        let undo = |step: &str| trial.id_of(&format!("{step}.undo.deadline"));
        assert_eq!(again(&trial).into_keys().collect::<Vec<_>>(), [undo("ship")], "of what is taken back, the one");
    }

    #[test]
    fn what_is_over_waits_for_nothing() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay"), &timer("remind", 5)]);
        trial.event("e2", &[COMPLETE]);
        assert!(again(&trial).is_empty());
    }
}
