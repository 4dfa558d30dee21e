//! Compensation: what was done is taken back, last step first, one step at a time, and each undo is itself a command
//! with deadline and retries. In: an instance, and how an undo went. Out: the next undo, or the end. It is all in the
//! document, so it goes on wherever a host takes over. Never: passes over a step that could not be undone.

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

#[cfg(test)]
mod tests {
    use crate::trial::{COMPENSATE, Trial, done, firm, reject, step};

    const STEPS: [&str; 4] = ["reserve", "pay", "pack", "ship"];

    /// An order, and each step up to this one sent after the answer to the one before.
    fn order(steps: &[&str]) -> Trial {
        let mut trial = Trial::new();
        trial.event("begin", &[&done("order"), &step(steps[0])]);
        for pair in steps.windows(2) {
            trial.answer(&format!("{} done", pair[0]), pair[0], &[&step(pair[1])]);
        }
        trial.lines();
        trial
    }

    /// Answers the undos of these steps, and checks that each is sent once the one before is done.
    fn take_back(trial: &mut Trial, steps: &[&str]) {
        for (number, step) in steps.iter().enumerate() {
            assert_eq!(trial.status(), "compensating");
            assert_eq!(trial.answer(&format!("{step} undone"), &format!("{step}.undo"), &[]), "settled");
            let mut expected = vec![format!("cancel {step}.undo.deadline")];
            if let Some(next) = steps.get(number + 1) {
                expected.extend([format!("send {next}.undo"), format!("wait {next}.undo.deadline")]);
            }
            assert_eq!(trial.lines(), expected);
        }
        assert_eq!(trial.status(), "compensated");
    }

    /// What was done before step `number`, last first.
    fn before(number: usize) -> Vec<&'static str> {
        STEPS[..number].iter().rev().copied().chain(["order"]).collect()
    }

    #[test]
    fn a_step_that_is_rejected_is_not_taken_back_but_those_before_are() {
        for (number, failing) in STEPS.into_iter().enumerate() {
            let mut trial = order(&STEPS[..=number]);
            assert_eq!(trial.answer("no", failing, &[&reject(failing), COMPENSATE]), "react");
            let first = before(number)[0];
            assert_eq!(
                trial.lines(),
                [
                    format!("cancel {failing}.deadline"),
                    format!("send {first}.undo"),
                    format!("wait {first}.undo.deadline")
                ]
            );
            assert_eq!(trial.did(), format!("step {failing} rejected; compensating"));
            take_back(&mut trial, &before(number));
            assert_eq!(trial.instance.as_ref().unwrap().reason.as_deref(), Some("no longer wanted"));
            assert_eq!(trial.messages().filter(|message| message.id.contains("undo")).count(), number + 1);
            assert!(trial.steps().ends_with(&format!("{failing} rejected")));
        }
    }

    #[test]
    fn a_step_that_stays_silent_is_retried_then_taken_back_too() {
        for (number, failing) in STEPS.into_iter().enumerate() {
            let mut trial = order(&STEPS[..=number]);
            for (attempt, next) in
                [(failing.to_owned(), format!("{failing}.2")), (format!("{failing}.2"), format!("{failing}.3"))]
            {
                assert_eq!(trial.fire(&format!("{attempt}.deadline"), &[]), "settled");
                assert_eq!(trial.lines(), [format!("wait {attempt}.retry")]);
                assert_eq!(trial.fire(&format!("{attempt}.retry"), &[]), "settled");
                assert_eq!(trial.lines(), [format!("send {next}"), format!("wait {next}.deadline")]);
            }
            assert_eq!(trial.fire(&format!("{failing}.3.deadline"), &[]), "settled");
            assert_eq!(trial.lines(), [format!("send {failing}.undo"), format!("wait {failing}.undo.deadline")]);
            let reason = format!("step {failing}: no answer within 30 s, 3 times");
            assert_eq!(trial.did(), format!("{reason}; compensating"));
            assert_eq!(trial.instance.as_ref().unwrap().reason.as_ref(), Some(&reason));
            let mut due = before(number);
            due.insert(0, failing);
            take_back(&mut trial, &due);
        }
    }

    #[test]
    fn steps_side_by_side_are_taken_back_one_at_a_time_whether_they_answered_or_not() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("a"), &firm("b"), &step("c"), &step("d"), &firm("e")]);
        trial.answer("e2", "a", &[]);
        trial.fire("d.deadline", &[]);
        trial.lines();
        trial.answer("e3", "e", &[&reject("e"), COMPENSATE]);
        assert_eq!(
            trial.lines(),
            [
                "cancel e.deadline",
                "cancel b.deadline",
                "cancel c.deadline",
                "cancel d.retry",
                "send d.undo",
                "wait d.undo.deadline"
            ]
        );
        take_back(&mut trial, &["d", "c", "a"]);
        assert_eq!(trial.steps(), "a undone, b kept, c undone, d undone, e rejected");
    }

    #[test]
    fn what_cannot_be_taken_back_is_kept_and_said() {
        let mut trial = Trial::new();
        trial.event("e1", &[&firm("a"), &firm("b")]);
        trial.answer("e2", "a", &[COMPENSATE]);
        assert_eq!((trial.status(), trial.steps()), ("compensated".into(), "a kept, b kept".into()));
        assert_eq!(trial.did(), "step a confirmed; compensated");
    }

    #[test]
    fn with_nothing_to_take_back_it_is_over_at_once() {
        let mut trial = Trial::new();
        trial.event("e1", &[COMPENSATE]);
        assert_eq!((trial.status(), trial.did()), ("compensated".into(), "begin; compensated"));
    }

    #[test]
    fn an_undo_that_fails_for_good_waits_for_somebody_then_goes_on_once() {
        let mut trial = order(&STEPS[..2]);
        trial.answer("no", "pay", &[&reject("pay"), COMPENSATE]);
        assert_eq!(trial.lines(), ["cancel pay.deadline", "send reserve.undo", "wait reserve.undo.deadline"]);
        // Its retries are those of the step: two.
        for attempt in ["reserve.undo", "reserve.undo.2"] {
            assert_eq!(trial.fire(&format!("{attempt}.deadline"), &[]), "settled");
            assert_eq!(trial.fire(&format!("{attempt}.retry"), &[]), "settled");
        }
        assert_eq!(trial.lines().last().unwrap(), "wait reserve.undo.3.deadline");
        assert_eq!(trial.resume("too early"), "ignored");
        assert_eq!(trial.fire("reserve.undo.3.deadline", &[]), "settled");
        assert_eq!(trial.status(), "compensation-failed");
        assert_eq!(trial.did(), "undo of step reserve: no answer within 30 s, 3 times; compensation-failed");
        assert_eq!(trial.steps(), "order confirmed, reserve undo-failed, pay rejected");
        assert_eq!(trial.lines(), ["publish millstream.compensation-failed"]);
        let alert = trial.messages().last().unwrap();
        assert_eq!(alert.subject, "millstream.events.orders.compensation-failed");
        assert_eq!(
            String::from_utf8_lossy(&alert.payload),
            r#"{"handler":"orders","key":"C42","reason":"undo of step reserve: no answer within 30 s, 3 times","step":"reserve"}"#
        );
        assert_eq!(trial.answer("lost", "reserve.undo.2", &[]), "late", "only somebody who resumes goes on");

        assert_eq!(trial.resume("r1"), "settled");
        assert_eq!(trial.lines(), ["send reserve.undo.4", "wait reserve.undo.4.deadline"]);
        assert_eq!(trial.resume("r2"), "ignored");
        // All its retries are there again, and the ids go on, lest JetStream takes them for duplicates.
        trial.fire("reserve.undo.4.deadline", &[]);
        trial.fire("reserve.undo.4.retry", &[]);
        assert_eq!(trial.lines(), ["wait reserve.undo.4.retry", "send reserve.undo.5", "wait reserve.undo.5.deadline"]);
        assert_eq!(trial.answer("at last", "reserve.undo.4", &[]), "settled");
        assert_eq!(trial.lines(), ["cancel reserve.undo.5.deadline", "send order.undo", "wait order.undo.deadline"]);
        assert_eq!(trial.answer("again", "reserve.undo.5", &[]), "late", "it is undone once");
        take_back(&mut trial, &["order"]);
        assert_eq!(trial.steps(), "order undone, reserve undone, pay rejected");
        assert_eq!(trial.resume("r3"), "ignored");
    }

    #[test]
    fn an_undo_has_deadline_and_retries_though_nobody_said_so() {
        let mut trial = Trial::new();
        trial.event("e1", &[&done("order"), COMPENSATE]);
        assert_eq!(trial.messages().last().unwrap().within_ms, Some(30_000));
        for attempt in ["order.undo", "order.undo.2", "order.undo.3"] {
            trial.fire(&format!("{attempt}.deadline"), &[]);
            trial.fire(&format!("{attempt}.retry"), &[]);
        }
        trial.fire("order.undo.4.deadline", &[]);
        assert_eq!(trial.status(), "compensation-failed");
    }

    #[test]
    fn nothing_more_is_remembered_once_all_is_taken_back() {
        let mut trial = order(&STEPS[..2]);
        trial.answer("no", "pay", &[&reject("pay"), COMPENSATE]);
        trial.lines();
        trial.fire("reserve.undo.deadline", &[]);
        trial.lines();
        assert_eq!(trial.answer("late but well", "reserve.undo", &[]), "settled");
        assert_eq!(trial.lines()[0], "cancel reserve.undo.retry");
        take_back(&mut trial, &["order"]);
        let steps = &trial.instance.as_ref().unwrap().steps;
        assert!(steps.iter().all(|step| step.undo.is_none() && step.payload.is_none() && !step.backing_off));
    }
}
