//! Compensation: what was done is taken back, last step first, one step at a time, and each undo is itself a command with
//! deadline and retries. It is all in the document, so it goes on wherever a host takes over.

use serde_json::json;

use crate::effect::Undo;
use crate::instance::{Instance, Status, Step, StepState};
use crate::outgoing::{Letter, Outgoing, Sender};
use crate::unit::Unit;

/// Begins to take back.
pub(crate) fn begin(unit: &Unit<'_>, instance: &mut Instance, reason: String, out: &mut Vec<Outgoing>) {
    instance.status = Status::Compensating;
    instance.reason = Some(reason);
    stop_waiting(unit, instance, out);
    go_on(unit, instance, out);
}

/// Takes back the next step, or is done.
pub(crate) fn go_on(unit: &Unit<'_>, instance: &mut Instance, out: &mut Vec<Outgoing>) {
    let Instance { correlation, life, steps, .. } = instance;
    let mut sender = Sender { unit: *unit, correlation, life, out };
    for step in steps.iter_mut().rev() {
        match step.state {
            // A step that nobody answered may have been carried out: its answer may be what got lost.
            StepState::Sent | StepState::Confirmed | StepState::TimedOut => {}
            StepState::Rejected | StepState::Undone | StepState::Kept => continue,
            StepState::Undoing | StepState::UndoFailed => return,
        }
        if step.undo.is_some() {
            step.state = StepState::Undoing;
            send(step, &mut sender);
            return;
        }
        step.state = StepState::Kept;
    }
    instance.status = Status::Compensated;
    forget_undos(instance);
}

/// The step was taken back.
pub(crate) fn undone(unit: &Unit<'_>, instance: &mut Instance, number: usize, out: &mut Vec<Outgoing>) {
    let Instance { correlation, life, steps, .. } = instance;
    if let Some(step) = steps.get_mut(number) {
        Sender { unit: *unit, correlation, life, out }.stop(step);
        step.state = StepState::Undone;
        step.backing_off = false;
        step.reason = None;
    }
    go_on(unit, instance, out);
}

/// The step could not be taken back: nothing more happens until somebody helps and resumes.
pub(crate) fn fail(unit: &Unit<'_>, instance: &mut Instance, number: usize, reason: String, out: &mut Vec<Outgoing>) {
    instance.status = Status::CompensationFailed;
    let Instance { correlation, life, steps, .. } = instance;
    let Some(step) = steps.get_mut(number) else { return };
    let Some(attempt) = step.awaits() else { return };
    let alert = json!({ "handler": unit.rules.handler, "key": unit.key, "step": step.step, "reason": reason });
    Sender { unit: *unit, correlation, life, out }.message(Letter {
        id: format!("{}.alert", step.command_id(attempt)),
        subject: &format!("millstream.events.{}.compensation-failed", unit.rules.handler),
        event_type: "millstream.compensation-failed",
        command: false,
        payload: alert.to_string().as_bytes(),
    });
    step.state = StepState::UndoFailed;
    step.reason = Some(reason);
}

/// Tries again to take back what could not be taken back, with all its retries.
pub(crate) fn resume(unit: &Unit<'_>, instance: &mut Instance, out: &mut Vec<Outgoing>) -> Option<String> {
    let Instance { correlation, life, steps, .. } = instance;
    let step = steps.iter_mut().find(|step| step.state == StepState::UndoFailed)?;
    step.state = StepState::Undoing;
    step.undo_attempts_before = step.undo_attempt;
    send(step, &mut Sender { unit: *unit, correlation, life, out });
    instance.status = Status::Compensating;
    Some(step.step.clone())
}

/// One more try at the undo.
pub(crate) fn send(step: &mut Step, sender: &mut Sender<'_>) {
    step.undo_attempt += 1;
    step.backing_off = false;
    if let Some(Undo { payload, .. }) = &step.undo {
        sender.command(step, payload);
    }
}

/// Nobody waits any more, neither for answers nor for timers.
pub(crate) fn stop_waiting(unit: &Unit<'_>, instance: &mut Instance, out: &mut Vec<Outgoing>) {
    let Instance { correlation, life, steps, timers, .. } = instance;
    let mut sender = Sender { unit: *unit, correlation, life, out };
    for step in steps {
        sender.stop(step);
        step.backing_off = false;
        step.payload = None;
    }
    out.extend(timers.drain(..).map(|timer| Outgoing::Cancel { id: timer.id }));
}

/// The undos will not be needed: what remains of the instance is to be small.
pub(crate) fn forget_undos(instance: &mut Instance) {
    for step in &mut instance.steps {
        step.undo = None;
    }
}
