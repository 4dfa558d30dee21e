//! Third: the handler's effects become its instance and what goes out. They were checked, so nothing here can fail.

use serde_json::value::RawValue;

use crate::effect::{Done, Effect, Rejected, Send, SetTimer, Undo};
use crate::instance::{Instance, Status, Step, StepState, Timer};
use crate::outgoing::{Letter, Outgoing, Sender};
use crate::refusal::Refusal;
use crate::timestamp::rfc3339;
use crate::unit::{Meets, Reaction, Unit};
use crate::{check, compensation, id};

impl Unit<'_> {
    /// Folds what the handler answered. `state`: its new state; none if that is as it was. An error changes nothing.
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
        let did = self.met(reaction.0, instance, out);
        if state.is_some() {
            instance.state = state;
        }
        for (ordinal, effect) in effects.into_iter().enumerate() {
            self.effect(ordinal, effect, instance, out);
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
                format!("step {name} confirmed")
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
            _ => return,
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
        let Instance { correlation, life, steps, .. } = instance;
        let Some(step) = steps.get_mut(number) else { return };
        if step.state == StepState::Sent {
            Sender { unit: *self, correlation, life, out }.stop(step);
            step.backing_off = false;
            step.payload = None;
            step.reply = Some(self.cause.id.to_owned());
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
