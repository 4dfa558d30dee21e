//! Third: the handler's effects become part of its instance. In: a unit that the handler saw, and effects that were
//! checked, so nothing here can fail. Out: the instance and what goes out. Never: half of them.

use serde_json::value::RawValue;

use crate::effect::{Done, Effect, Rejected, Send, SetTimer, Undo};
use crate::instance::{Instance, Status, Step, StepState, Timer};
use crate::outgoing::{Letter, Outgoing, Sender};
use crate::refusal::Refusal;
use crate::timestamp::rfc3339;
use crate::unit::{Meets, Reaction, Unit};
use crate::{check, compensation, id};

impl Unit<'_> {
    /// Folds what the handler answered. `state`: its new state; none if that is as it was.
    ///
    /// # Errors
    /// The first effect that cannot be; nothing has changed.
    pub fn fold(
        &self,
        reaction: Reaction,
        instance: &mut Option<Instance>,
        state: Option<Box<RawValue>>,
        effects: Vec<Effect>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Refusal> {
        self.is_as_judged(reaction.0, instance.as_ref())?;
        check::effects(self, reaction.0, instance.as_ref(), &effects)?;
        let instance = match reaction.0 {
            Meets::Nothing => {
                self.without_instance_fold(effects, out);
                return Ok(());
            }
            Meets::New => {
                let before = instance.take();
                instance.insert(Instance::begin(self.cause.id, self.correlation(), before))
            }
            Meets::Running | Meets::Step(_) | Meets::Timer(_) => match instance {
                Some(instance) => instance,
                None => return Err(self.changed()),
            },
        };
        let mut did = self.met(reaction.0, instance, out);
        if state.is_some() {
            instance.state = state;
        }
        for (ordinal, effect) in effects.into_iter().enumerate() {
            self.effect(ordinal, effect, instance, out);
        }
        if let Meets::Step(number) = reaction.0 {
            let rejected = instance.steps.get(number).is_some_and(|step| step.state == StepState::Rejected);
            did.push_str(if rejected { " rejected" } else { " confirmed" });
        }
        self.record(instance, did, Status::Running);
        Ok(())
    }

    fn is_as_judged(&self, meets: Meets, instance: Option<&Instance>) -> Result<(), Refusal> {
        let running = instance.filter(|instance| instance.status == Status::Running);
        let same = match meets {
            Meets::Nothing => self.rules.stateless,
            Meets::New => instance.is_none_or(|instance| instance.status.has_ended()),
            Meets::Running => running.is_some(),
            Meets::Step(number) => {
                let step = running.and_then(|instance| instance.steps.get(number));
                step.is_some_and(|step| step.state == StepState::Sent)
            }
            Meets::Timer(number) => running.is_some_and(|instance| number < instance.timers.len()),
        };
        if same { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> Refusal {
        Refusal::Changed { key: self.key.to_owned() }
    }

    fn without_instance_fold(&self, effects: Vec<Effect>, out: &mut Vec<Outgoing>) {
        let mut sender = Sender { unit: *self, correlation: self.correlation(), life: "", out };
        for (ordinal, effect) in effects.iter().enumerate() {
            self.message(ordinal, effect, &mut sender);
        }
    }

    /// What the event itself does to the instance, before what the handler wants.
    fn met(&self, meets: Meets, instance: &mut Instance, out: &mut Vec<Outgoing>) -> String {
        match meets {
            Meets::Nothing | Meets::Running => String::from("react"),
            Meets::New => String::from("begin"),
            Meets::Step(number) => {
                self.answered(number, instance, StepState::Confirmed, out);
                let name = instance.steps.get(number).map_or("", |step| &step.step);
                format!("step {name}")
            }
            Meets::Timer(number) => {
                let timer =
                    instance.timers.get(number).map_or_else(String::new, |timer| format!("timer {}", timer.name));
                instance.timers.drain(number..=number);
                timer
            }
        }
    }

    fn effect(&self, ordinal: usize, effect: Effect, instance: &mut Instance, out: &mut Vec<Outgoing>) {
        match effect {
            Effect::Send(Send {
                step: Some(step),
                subject,
                command_type,
                payload,
                within,
                retry,
                undo,
                irreversible,
            }) => {
                let mut step = Step {
                    subject,
                    command_type,
                    within_ms: within,
                    retry,
                    attempt: 1,
                    ..self.step(ordinal, step, undo, irreversible)
                };
                self.sender(instance, out).command(&step, &payload);
                step.payload = (retry.is_some_and(|retry| retry.times > 0)).then_some(payload);
                instance.steps.push(step);
            }
            Effect::Send(_) | Effect::Publish(_) => self.message(ordinal, &effect, &mut self.sender(instance, out)),
            Effect::Done(Done { step, undo, irreversible }) => {
                let step = self.step(ordinal, step, undo, irreversible);
                instance.steps.push(Step { state: StepState::Confirmed, ..step });
            }
            Effect::Timer(timer) => self.timer(ordinal, timer, instance, out),
            Effect::Cancel(cancel) => cancel_timer(&cancel.name, instance, out),
            Effect::Confirm(confirm) => {
                if let Some(number) = last_of(&confirm.step, instance) {
                    self.answered(number, instance, StepState::Confirmed, out);
                }
            }
            Effect::Reject(reject) => self.rejected(reject, instance, out),
            Effect::Compensate(because) => compensation::begin(self, instance, because.reason, out),
            Effect::Complete => {
                instance.status = Status::Completed;
                compensation::stop_waiting(self, instance, out);
                compensation::forget_undos(instance);
            }
            Effect::Fail(because) => {
                instance.status = Status::Failed;
                instance.reason = Some(because.reason);
                compensation::stop_waiting(self, instance, out);
            }
        }
    }

    /// A command or event that nobody waits for.
    fn message(&self, ordinal: usize, effect: &Effect, sender: &mut Sender<'_>) {
        let (subject, event_type, payload, command) = match effect {
            Effect::Send(send) => (&send.subject, &send.command_type, &send.payload, true),
            Effect::Publish(publish) => (&publish.subject, &publish.event_type, &publish.payload, false),
            Effect::Done(_)
            | Effect::Timer(_)
            | Effect::Cancel(_)
            | Effect::Confirm(_)
            | Effect::Reject(_)
            | Effect::Compensate(_)
            | Effect::Complete
            | Effect::Fail(_) => return,
        };
        let payload = payload.get().as_bytes();
        sender.message(Letter { id: self.id(ordinal), subject, event_type, command, payload });
    }

    fn id(&self, ordinal: usize) -> String {
        id::id(self.rules.handler, self.cause.id, self.key, ordinal)
    }

    fn step(&self, ordinal: usize, step: String, undo: Option<Undo>, irreversible: bool) -> Step {
        Step {
            step,
            state: StepState::Sent,
            id: self.id(ordinal),
            attempt: 0,
            subject: String::new(),
            command_type: String::new(),
            payload: None,
            within_ms: None,
            retry: None,
            backing_off: false,
            undo,
            irreversible,
            reply: None,
            reply_type: String::new(),
            reply_attempt: 0,
            reason: None,
            undo_attempt: 0,
            undo_attempts_before: 0,
        }
    }

    fn timer(&self, ordinal: usize, timer: SetTimer, instance: &mut Instance, out: &mut Vec<Outgoing>) {
        cancel_timer(&timer.name, instance, out);
        let nanoseconds = |milliseconds: i64| milliseconds.saturating_mul(1_000_000);
        let due = match (timer.after, timer.at) {
            (Some(after), _) => self.cause.time.saturating_add(nanoseconds(i64::try_from(after).unwrap_or(i64::MAX))),
            (None, Some(at)) => nanoseconds(at),
            (None, None) => return,
        };
        let id = self.id(ordinal);
        self.sender(instance, out).timer(&id, due, &timer.name);
        instance.timers.push(Timer { name: timer.name, id, at: rfc3339(due), payload: timer.payload });
    }

    fn answered(&self, number: usize, instance: &mut Instance, state: StepState, out: &mut Vec<Outgoing>) {
        let answered = instance.find(self.cause.causation).filter(|(answered, _)| *answered == number);
        let Instance { correlation, life, steps, .. } = instance;
        let Some(step) = steps.get_mut(number) else { return };
        if step.state == StepState::Sent {
            let tried = answered.map_or(step.attempt, |(_, attempt)| attempt.number);
            Sender { unit: *self, correlation, life, out }.stop(step);
            step.backing_off = false;
            step.payload = None;
            step.reply = Some(self.cause.id.to_owned());
            self.cause.event_type.clone_into(&mut step.reply_type);
            step.reply_attempt = tried;
        }
        step.state = state;
    }

    fn rejected(&self, reject: Rejected, instance: &mut Instance, out: &mut Vec<Outgoing>) {
        let Some(number) = last_of(&reject.step, instance) else { return };
        self.answered(number, instance, StepState::Rejected, out);
        if let Some(step) = instance.steps.get_mut(number) {
            step.undo = None;
            step.reason = Some(reject.reason);
        }
    }
}

/// A name is free again once its step is finished: the last one is meant.
fn last_of(step: &str, instance: &Instance) -> Option<usize> {
    instance.steps.iter().rposition(|each| each.step == step)
}

/// A timer that is not set is not there to cancel: it may have fired already.
fn cancel_timer(name: &str, instance: &mut Instance, out: &mut Vec<Outgoing>) {
    if let Some(number) = instance.timers.iter().position(|timer| timer.name == name) {
        out.extend(instance.timers.drain(number..=number).map(|timer| Outgoing::Cancel { id: timer.id }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::due::{Due, Waiting};
    use crate::outgoing::Message;
    use crate::trial::{COMPENSATE, COMPLETE, FAIL, Given, TIME, Trial, done, reject, step, timer};
    use crate::{Cause, Late, Rules};

    fn body(life: &str, timer: Waiting) -> Vec<u8> {
        serde_json::to_vec(&Due { key: "C42".into(), life: life.into(), timer }).unwrap()
    }

    #[test]
    fn what_goes_out_says_all_the_host_needs() {
        let sends = [String::from("shop.*")];
        let rules = Rules { handler: "orders", sends: &sends, ..Rules::default() };
        let cause = Cause { id: "e1", event_type: "Placed", time: TIME, correlation: "c1", causation: "x", depth: 4 };
        let effects = [
            step("pay"),
            timer("remind", 1500),
            r#"{"publish":{"subject":"shop.e","type":"E","payload":[1, 2]}}"#.into(),
        ];
        let effects = effects.map(|effect| serde_json::from_str(&effect.replace("shop.un.pay", "shop.unpay")).unwrap());
        let (mut instance, mut out) = (None, Vec::new());
        let unit = Unit { rules: &rules, key: "C42", cause: &cause };
        unit.fold(Reaction(Meets::New), &mut instance, None, effects.into(), &mut out).unwrap();

        let ids: Vec<String> = (0..3).map(|ordinal| id::id("orders", "e1", "C42", ordinal)).collect();
        let message = Message {
            id: ids[0].clone(),
            subject: "shop.pay".into(),
            event_type: "pay".into(),
            command: true,
            payload: br#"{"n":1}"#.into(),
            key: "C42".into(),
            correlation: "c1".into(),
            causation: "e1".into(),
            step: Some("pay".into()),
            attempt: 1,
            depth: 5,
            within_ms: Some(30_000),
        };
        let expected = [
            Outgoing::Message(message.clone()),
            Outgoing::Wait {
                id: format!("{}.deadline", ids[0]),
                after_ms: 30_000,
                body: body("e1", Waiting::Deadline { step: "pay".into(), id: ids[0].clone() }),
                correlation: "c1".into(),
                causation: "e1".into(),
            },
            Outgoing::Timer {
                id: ids[1].clone(),
                due: TIME + 1_500_000_000,
                body: body("e1", Waiting::User { name: "remind".into(), id: ids[1].clone() }),
                correlation: "c1".into(),
                causation: "e1".into(),
            },
            Outgoing::Message(Message {
                id: ids[2].clone(),
                subject: "shop.e".into(),
                event_type: "E".into(),
                command: false,
                payload: b"[1, 2]".into(),
                step: None,
                within_ms: None,
                ..message
            }),
        ];
        assert_eq!(out, expected);
        // The journal keeps it until it is published.
        let journalled = postcard::to_stdvec(&out).unwrap();
        assert_eq!(postcard::from_bytes::<Vec<Outgoing>>(&journalled).unwrap(), expected);
    }

    #[test]
    fn the_handler_finds_its_state_until_a_new_life_begins() {
        let mut trial = Trial::new().late(Late::Start);
        let mut give = |id: &str, found: Option<&str>, state: Option<&str>, effect: &[&str]| {
            let given = Given { id: id.into(), event_type: "E".into(), causation: String::new(), depth: 0, due: None };
            let fate = trial.give(&given, |before, _| {
                assert_eq!(before.map(RawValue::get), found, "{id}");
                (state.map(Into::into), effect.iter().map(|effect| String::from(*effect)).collect())
            });
            assert_eq!(fate, "react");
        };
        give("e1", None, None, &[]);
        give("e2", None, Some(r#"{"n": 1}"#), &[]);
        give("e3", Some(r#"{"n": 1}"#), None, &[]);
        give("e4", Some(r#"{"n": 1}"#), Some("2"), &[COMPLETE]);
        give("e5", None, Some("3"), &[]);
        give("e6", Some("3"), None, &[]);
    }

    #[test]
    fn a_new_life_keeps_nothing_but_the_history() {
        let mut trial = Trial::new().late(Late::Start);
        trial.event("e1", &[&step("pay")]);
        trial.event("e2", &[FAIL]);
        trial.event("e3", &[]);
        let instance = trial.instance.as_ref().unwrap();
        assert_eq!((&*instance.life, &*instance.correlation, &instance.reason), ("e3", "e3", &None));
        assert!(instance.steps.is_empty() && instance.timers.is_empty());
        assert_eq!(
            instance.history.iter().map(|transition| &*transition.did).collect::<Vec<_>>(),
            ["begin", "react; failed", "begin"]
        );
    }

    #[test]
    fn a_rejection_wins_over_the_confirmation_that_the_answer_is() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.lines();
        trial.answer("e2", "pay", &[&reject("pay")]);
        assert_eq!(trial.steps(), "pay rejected");
        assert_eq!(trial.lines(), ["cancel pay.deadline"]);
        assert_eq!(trial.instance.unwrap().steps[0].reason.as_deref(), Some("no pay"));
    }

    #[test]
    fn a_step_may_be_confirmed_or_rejected_by_any_event() {
        for (effect, state) in [(r#"{"confirm":{"step":"pay"}}"#, "pay confirmed"), (&*reject("pay"), "pay rejected")] {
            let mut trial = Trial::new();
            trial.event("e1", &[&step("pay")]);
            trial.lines();
            trial.event("e2", &[effect]);
            assert_eq!(trial.steps(), state);
            assert_eq!(trial.lines(), ["cancel pay.deadline"]);
            assert_eq!(trial.fire("pay.deadline", &[]), "late");
        }
    }

    #[test]
    fn an_end_cancels_all_that_waits() {
        for (end, status, undo_left) in [(COMPLETE, "completed", false), (FAIL, "failed", true)] {
            let mut trial = Trial::new();
            trial.event("e1", &[&done("order"), &step("pay"), &step("ship"), &timer("remind", 5)]);
            trial.fire("ship.deadline", &[]);
            trial.lines();
            trial.event("e2", &[end]);
            assert_eq!(trial.lines(), ["cancel pay.deadline", "cancel ship.retry", "cancel remind"]);
            assert_eq!(trial.status(), status);
            for timer in ["pay.deadline", "ship.retry", "remind"] {
                assert_eq!(trial.fire(timer, &[]), "ignored", "{timer}");
            }
            let instance = trial.instance.as_ref().unwrap();
            assert!(instance.timers.is_empty() && instance.steps.iter().all(|step| step.payload.is_none()));
            assert_eq!(instance.steps.iter().any(|step| step.undo.is_some()), undo_left);
        }
    }

    #[test]
    fn a_timer_is_replaced_by_one_of_its_name_and_can_be_taken_back() {
        let mut trial = Trial::new();
        trial.event("e1", &[&timer("remind", 5)]);
        let first = trial.id_of("remind");
        trial.event("e2", &[&timer("remind", 7)]);
        let second = trial.id_of("remind");
        let instance = trial.instance.as_ref().unwrap();
        assert_eq!(instance.timers.len(), 1);
        assert_eq!((&*instance.timers[0].id, &*instance.timers[0].at), (&*second, "2026-01-01T00:00:00.007Z"));
        assert_eq!(trial.lines(), ["timer remind", "cancel remind", "timer remind"]);
        assert_eq!(trial.out[1], Outgoing::Cancel { id: first.clone() });

        let fire = |trial: &mut Trial, id: &str| {
            let given = trial.out.iter().find_map(|outgoing| crate::trial::due(outgoing, id)).unwrap();
            trial.give(&given, |_, _| (None, Vec::new()))
        };
        assert_eq!(fire(&mut trial, &first), "ignored", "it was replaced");
        assert_eq!(fire(&mut trial, &second), "wake");
        assert_eq!(fire(&mut trial, &second), "ignored", "it has fired");

        trial.event("e3", &[&timer("remind", 9), r#"{"cancel":{"name":"remind"}}"#]);
        assert_eq!(trial.lines().len(), 2);
        let third = id::id("orders", "e3", "C42", 0);
        assert_eq!(fire(&mut trial, &third), "ignored", "it was taken back");
    }

    #[test]
    fn a_time_beyond_all_times_is_the_last_one() {
        for effect in [
            r#"{"timer":{"name":"t","after":18446744073709551615}}"#,
            r#"{"timer":{"name":"t","at":9223372036854775807}}"#,
        ] {
            let mut trial = Trial::new();
            trial.event("e1", &[effect]);
            assert!(matches!(trial.out[0], Outgoing::Timer { due: i64::MAX, .. }));
            assert_eq!(trial.instance.unwrap().timers[0].at, "2262-04-11T23:47:16.854Z");
        }
    }

    #[test]
    fn a_payload_is_kept_only_while_it_may_be_sent_again() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay"), &crate::trial::firm("ship")]);
        let kept = |trial: &Trial| -> Vec<bool> {
            trial.instance.as_ref().unwrap().steps.iter().map(|step| step.payload.is_some()).collect()
        };
        assert_eq!(kept(&trial), [true, false], "only one has retries");
        trial.answer("e2", "pay", &[]);
        assert_eq!(kept(&trial), [false, false]);
    }

    #[test]
    fn an_instance_that_changed_since_it_was_judged_is_left_alone() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.event("e2", &[COMPENSATE]);
        let cause = Cause { id: "e3", event_type: "E", time: TIME, correlation: "", causation: "", depth: 0 };
        let unit = Unit { rules: &trial.rules, key: "C42", cause: &cause };
        for meets in [Meets::Nothing, Meets::New, Meets::Running, Meets::Step(0), Meets::Step(9), Meets::Timer(0)] {
            let before = trial.instance.as_ref().unwrap().write();
            let refusal = unit.fold(Reaction(meets), &mut trial.instance, None, Vec::new(), &mut trial.out);
            assert_eq!(refusal, Err(Refusal::Changed { key: "C42".into() }), "{meets:?}");
            assert_eq!(trial.instance.as_ref().unwrap().write(), before);
        }
        let refusal = unit.fold(Reaction(Meets::Running), &mut None, None, Vec::new(), &mut trial.out);
        assert_eq!(refusal, Err(Refusal::Changed { key: "C42".into() }));
    }
}
