//! First: what is an event to its instance? In: the event, before the handler sees it. Out: whether the handler is to
//! see it; what needs no handler is folded here. Never: asks the handler.

use crate::compensation;
use crate::instance::{Attempt, Instance, Status, StepState};
use crate::outgoing::Outgoing;
use crate::refusal::Refusal;
use crate::unit::{Late, Meets, NAME_BYTES, Reaction, Unit, Verdict};

impl Unit<'_> {
    /// Judges an event. `starts`: the handler says that it may begin an instance.
    ///
    /// # Errors
    /// When the policy sets such events aside; nothing has changed.
    pub fn judge(
        &self,
        starts: bool,
        instance: &mut Option<Instance>,
        out: &mut Vec<Outgoing>,
    ) -> Result<Verdict, Refusal> {
        if self.rules.stateless {
            return self.check_ids().map(|()| Verdict::React(Reaction(Meets::Nothing)));
        }
        let Some(instance) = instance else {
            let verdict = self.without_instance(starts)?;
            return if verdict == Verdict::Ignored { Ok(verdict) } else { self.check_ids().map(|()| verdict) };
        };
        if instance.knows(self.cause.id) {
            return Ok(Verdict::Duplicate);
        }
        self.check_ids()?;
        let Some((number, attempt)) = instance.find(self.cause.causation) else { return self.unasked(instance) };
        Ok(self.answer(instance, number, attempt, out))
    }

    /// Refuses ids that no message could carry along: every one that follows from the event does.
    fn check_ids(&self) -> Result<(), Refusal> {
        let ids = [("id", self.cause.id), ("correlation id", self.cause.correlation)];
        match ids.into_iter().find(|(_, text)| text.len() > NAME_BYTES) {
            Some((id, text)) => Err(Refusal::LongId { id, bytes: text.len(), limit: NAME_BYTES }),
            None => Ok(()),
        }
    }

    fn without_instance(&self, starts: bool) -> Result<Verdict, Refusal> {
        match self.rules.late {
            _ if starts => Ok(Verdict::React(Reaction(Meets::New))),
            Late::Start => Ok(Verdict::React(Reaction(Meets::New))),
            Late::Ignore => Ok(Verdict::Ignored),
            Late::Park => Err(Refusal::NoInstance { key: self.key.to_owned() }),
        }
    }

    /// An event that answers none of the instance's commands.
    fn unasked(&self, instance: &mut Instance) -> Result<Verdict, Refusal> {
        let status = instance.status;
        match (status, self.rules.late) {
            (Status::Running, _) => Ok(Verdict::React(Reaction(Meets::Running))),
            (Status::Completed | Status::Compensated | Status::Failed, Late::Start) => {
                Ok(Verdict::React(Reaction(Meets::New)))
            }
            (Status::Completed | Status::Compensated | Status::Failed, Late::Park) => {
                Err(Refusal::Ended { key: self.key.to_owned(), status })
            }
            (Status::Completed | Status::Compensated | Status::Failed, Late::Ignore)
            | (Status::Compensating | Status::CompensationFailed, _) => {
                Ok(self.late(instance, format!("late: the saga is {status}")))
            }
        }
    }

    /// An answer to one of the instance's own commands. It never begins a life, nor is it refused: whoever answers has done
    /// nothing wrong.
    fn answer(&self, instance: &mut Instance, number: usize, attempt: Attempt, out: &mut Vec<Outgoing>) -> Verdict {
        let Some(step) = instance.steps.get(number) else { return Verdict::Ignored };
        match (instance.status, step.state) {
            (Status::Running, StepState::Sent) => Verdict::React(Reaction(Meets::Step(number))),
            // A command that was sent again is answered again, by a service that does right; once counts.
            (Status::Running, _) if step.has_answer(attempt, self.cause.event_type) => {
                let did = format!("late: answer to step {}, which was answered", step.step);
                self.late(instance, did)
            }
            // A service may say more than one thing; the saga judges what that means.
            (Status::Running, _) => Verdict::React(Reaction(Meets::Running)),
            (Status::Compensating, StepState::Undoing) if attempt.undo => {
                let did = format!("step {} undone", step.step);
                compensation::undone(self, instance, number, out);
                self.record(instance, did, Status::Compensating);
                Verdict::Settled
            }
            (status, _) => {
                let what = if attempt.undo { "the undo of step" } else { "step" };
                let did = format!("late: answer to {what} {}, the saga is {status}", step.step);
                self.late(instance, did)
            }
        }
    }

    fn late(&self, instance: &mut Instance, did: String) -> Verdict {
        instance.late += 1;
        self.record(instance, did, instance.status);
        Verdict::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cause;
    use crate::trial::{COMPENSATE, COMPLETE, FAIL, Trial, done, reject, step};

    const LATES: [Late; 3] = [Late::Start, Late::Ignore, Late::Park];

    #[test]
    fn an_event_without_an_instance_meets_the_policy_unless_it_begins_one() {
        for late in LATES {
            let mut trial = Trial::new().late(late);
            assert_eq!(trial.event("e1", &[]), "react");
        }
        let none = "refused: there is no instance \"C42\", and this event begins none";
        for (late, fate) in [(Late::Start, "react"), (Late::Ignore, "ignored"), (Late::Park, none)] {
            let mut trial = Trial::new().late(late);
            trial.starts = false;
            assert_eq!(trial.event("e1", &[]), fate, "{late:?}");
            assert_eq!(trial.instance.is_some(), late == Late::Start);
        }
    }

    #[test]
    fn an_event_after_the_end_meets_the_policy_even_if_it_could_begin_one() {
        for (end, status) in [(COMPLETE, "completed"), (COMPENSATE, "compensated"), (FAIL, "failed")] {
            let ended = format!("refused: instance \"C42\" is {status}, and this event comes after that");
            for (late, fate) in [(Late::Start, "react"), (Late::Ignore, "late"), (Late::Park, &ended)] {
                let mut trial = Trial::new().late(late);
                trial.event("e1", &[end]);
                assert_eq!(trial.status(), status);
                assert_eq!(trial.event("e2", &[]), fate, "{late:?}");
                assert_eq!(trial.instance.as_ref().unwrap().late, u64::from(late == Late::Ignore));
                assert_eq!(trial.status(), if late == Late::Start { "running" } else { status });
                assert_eq!(trial.instance.as_ref().unwrap().life, if late == Late::Start { "e2" } else { "e1" });
            }
        }
    }

    #[test]
    fn while_it_takes_back_all_other_events_are_late_whatever_the_policy() {
        for late in LATES {
            let mut trial = Trial::new().late(late);
            trial.event("e1", &[&done("order"), &step("pay")]);
            trial.event("e2", &[COMPENSATE]);
            assert_eq!(trial.event("e3", &[]), "late");
            assert_eq!(trial.did(), "late: the saga is compensating");
            assert_eq!(trial.answer("e4", "pay", &[]), "late");
            assert_eq!(trial.did(), "late: answer to step pay, the saga is compensating");
            assert_eq!(trial.instance.as_ref().unwrap().late, 2);
            assert_eq!(trial.steps(), "order confirmed, pay undoing");
        }
    }

    #[test]
    fn an_answer_confirms_its_step_and_then_the_handler_sees_it() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        assert_eq!(trial.lines(), ["send pay", "wait pay.deadline"]);
        assert_eq!(trial.answer("e2", "pay", &[&step("ship")]), "react");
        assert_eq!(trial.lines(), ["cancel pay.deadline", "send ship", "wait ship.deadline"]);
        assert_eq!(trial.steps(), "pay confirmed, ship sent");
        assert_eq!(trial.did(), "step pay confirmed");
        let pay = &trial.instance.as_ref().unwrap().steps[0];
        assert_eq!((pay.reply.as_deref(), pay.payload.is_none()), (Some("e2"), true));
    }

    #[test]
    fn a_second_answer_is_late_and_the_handler_never_sees_it() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay"), &step("ship")]);
        trial.fire("pay.deadline", &[]);
        trial.fire("pay.retry", &[]);
        trial.answer("e2", "pay", &[]);
        trial.answer("e3", "ship", &[&reject("ship")]);
        trial.lines();
        // The other attempt, the same one, and the step that was rejected.
        for (id, command, step) in [("e4", "pay.2", "pay"), ("e5", "pay", "pay"), ("e6", "ship", "ship")] {
            assert_eq!(trial.answer(id, command, &[]), "late");
            assert_eq!(trial.did(), format!("late: answer to step {step}, which was answered"));
            assert_eq!(trial.answer(id, command, &[]), "duplicate");
        }
        assert_eq!(trial.steps(), "pay confirmed, ship rejected");
        assert_eq!((trial.lines(), trial.instance.unwrap().late), (Vec::<String>::new(), 3));
    }

    #[test]
    fn another_type_of_event_about_the_attempt_that_was_answered_is_an_event_like_any_other() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.fire("pay.deadline", &[]);
        trial.fire("pay.retry", &[]);
        trial.answer("e2", "pay.2", &[]);
        trial.lines();
        assert_eq!(trial.typed("e3", "Receipt", "pay", &[]), "late", "it is about the other attempt");
        assert_eq!(trial.typed("e4", "Receipt", "pay.2", &[&step("ship")]), "react");
        assert_eq!(trial.did(), "react");
        assert_eq!(trial.lines(), ["send ship", "wait ship.deadline"]);
        assert_eq!(trial.typed("e5", "Declined", "pay.2", &[&reject("pay"), COMPENSATE]), "react");
        assert_eq!(trial.steps(), "pay rejected, ship undoing");
    }

    #[test]
    fn where_the_handler_confirmed_a_step_itself_the_last_attempt_counts_as_answered() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.fire("pay.deadline", &[]);
        trial.fire("pay.retry", &[]);
        assert_eq!(trial.typed("e2", "Webhook", "", &[r#"{"confirm":{"step":"pay"}}"#]), "react");
        assert_eq!(trial.answer("e3", "pay", &[]), "late");
        assert_eq!(trial.answer("e4", "pay.2", &[]), "react", "it says something else than the webhook");
        assert_eq!(trial.typed("e5", "Webhook", "pay.2", &[]), "late");
    }

    #[test]
    fn a_step_of_a_document_that_does_not_say_what_answered_it_takes_more_answers() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.answer("e2", "pay", &[]);
        let pay = &mut trial.instance.as_mut().unwrap().steps[0];
        assert_eq!((std::mem::take(&mut pay.reply_type), std::mem::take(&mut pay.reply_attempt)), ("Event".into(), 1));
        assert_eq!(trial.answer("e3", "pay", &[]), "react");
    }

    #[test]
    fn an_answer_after_the_end_is_late_whatever_the_policy() {
        for late in LATES {
            let mut trial = Trial::new().late(late);
            trial.event("e1", &[&done("order"), &step("pay")]);
            trial.event("e2", &[COMPLETE]);
            assert_eq!(trial.answer("e3", "pay", &[]), "late", "{late:?}");
            assert_eq!(trial.did(), "late: answer to step pay, the saga is completed");
            assert_eq!(trial.status(), "completed");
        }
    }

    #[test]
    fn an_event_counts_once() {
        let mut trial = Trial::new().late(Late::Start);
        trial.event("e1", &[&step("pay")]);
        assert_eq!(trial.event("e1", &[&step("ship")]), "duplicate");
        trial.answer("e2", "pay", &[]);
        assert_eq!(trial.answer("e2", "pay", &[&step("ship")]), "duplicate");
        for number in 0..40 {
            trial.event(&format!("n{number}"), &[]);
        }
        assert_eq!(trial.event("e1", &[]), "duplicate", "it began this life");
        assert_eq!(trial.answer("e2", "pay", &[]), "duplicate", "it answered a step");
        assert_eq!(trial.event("n39", &[]), "duplicate", "it is in the history");
        assert_eq!(trial.event("n0", &[]), "react", "the history is bounded");

        trial.event("e3", &[COMPLETE]);
        assert_eq!(trial.event("e3", &[]), "duplicate", "no new life");
        assert_eq!(trial.event("e4", &[]), "react");
        assert_eq!(trial.event("e3", &[]), "duplicate", "it belongs to the life before");
    }

    #[test]
    fn an_event_whose_ids_no_message_could_carry_is_refused_wherever_it_would_count() {
        let (fits, long) = ("i".repeat(NAME_BYTES), "i".repeat(NAME_BYTES + 1));
        let refused = "refused: its id has 1025 bytes, more than the 1024 that a message of the saga may carry along";
        let mut trial = Trial::new();
        assert_eq!(trial.event(&long, &[&step("pay")]), refused);
        trial.starts = false;
        assert_eq!(trial.event(&long, &[]), "ignored", "it is nothing to the saga");
        trial.starts = true;
        assert_eq!(trial.event(&fits, &[&step("pay")]), "react");
        assert_eq!(trial.answer(&long, "pay", &[]), refused);
        trial.event("e2", &[COMPENSATE]);
        assert_eq!(trial.answer(&long, "pay.undo", &[]), refused);
        let mut trial = Trial::new();
        trial.rules.stateless = true;
        assert_eq!(trial.event(&long, &[]), refused);
        let cause = Cause { id: "e", event_type: "E", time: 0, correlation: &long, causation: "", depth: 0 };
        let unit = Unit { rules: &trial.rules, key: "k", cause: &cause };
        let said = unit.judge(true, &mut None, &mut Vec::new()).unwrap_err().to_string();
        assert!(said.starts_with("its correlation id has 1025 bytes"), "{said}");
    }

    #[test]
    fn a_late_event_counts_once() {
        let mut trial = Trial::new();
        trial.event("e1", &[COMPLETE]);
        assert_eq!(trial.event("e2", &[]), "late");
        assert_eq!(trial.event("e2", &[]), "duplicate");
        assert_eq!(trial.instance.unwrap().late, 1);
    }

    #[test]
    fn without_instances_every_event_is_a_reaction() {
        let mut trial = Trial::new();
        trial.rules.stateless = true;
        trial.starts = false;
        let publish = r#"{"publish":{"subject":"shop.e","type":"E","payload":1}}"#;
        assert_eq!(trial.event("e1", &[publish]), "react");
        assert_eq!(trial.event("e1", &[publish]), "react");
        assert!(trial.instance.is_none());
        let sent: Vec<_> = trial.messages().collect();
        assert_eq!(sent[0], sent[1], "the same id: JetStream drops the second");
        assert_eq!(sent[0].correlation, "e1");
    }
}
