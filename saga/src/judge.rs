//! First: what is an event to its instance? Decided before the handler sees it. What needs no handler is folded here.

use crate::compensation;
use crate::instance::{Attempt, Instance, Status, StepState};
use crate::outgoing::Outgoing;
use crate::refusal::Refusal;
use crate::unit::{Late, Meets, Reaction, Unit, Verdict};

impl Unit<'_> {
    /// Judges an event. `starts`: the handler says that it may begin an instance.
    pub fn judge(
        &self,
        starts: bool,
        instance: &mut Option<Instance>,
        out: &mut Vec<Outgoing>,
    ) -> Result<Verdict, Refusal> {
        if self.rules.stateless {
            return Ok(Verdict::React(Reaction(Meets::Nothing)));
        }
        let Some(instance) = instance else { return self.without_instance(starts) };
        if instance.knows(self.cause.id) {
            return Ok(Verdict::Duplicate);
        }
        let Some((number, attempt)) = instance.find(self.cause.causation) else { return self.unasked(instance) };
        Ok(self.answer(instance, number, attempt, out))
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
