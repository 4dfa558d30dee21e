//! Second: may a handler ask for this? All effects of a unit are checked before the first is folded, so folding cannot fail
//! halfway.

use crate::effect::{Effect, Undo};
use crate::instance::{Instance, StepState};
use crate::refusal::Refusal;
use crate::subject::{is_subject, subject_matches};
use crate::unit::{Meets, Unit};

/// Refuses the first effect that cannot be.
pub(crate) fn effects(
    unit: &Unit<'_>,
    meets: Meets,
    instance: Option<&Instance>,
    effects: &[Effect],
) -> Result<(), Refusal> {
    let limit = unit.rules.effects_per_unit;
    if effects.len() > limit {
        return Err(Refusal::TooMany { effects: effects.len(), limit });
    }
    let mut steps = Steps { meets, instance, changed: Vec::new() };
    let mut end = None;
    for effect in effects {
        if let Some(end) = end {
            return Err(Refusal::AfterEnd { effect: name(effect), end });
        }
        let (bytes, limit) = (size(effect), unit.rules.effect_bytes);
        if bytes > limit {
            return Err(Refusal::TooLarge { effect: name(effect), bytes, limit });
        }
        if unit.rules.stateless && !is_stateless(effect) {
            return Err(Refusal::Stateless { effect: name(effect) });
        }
        messages(unit, effect)?;
        steps.check(effect)?;
        end = ending(effect);
    }
    Ok(())
}

const fn ending(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::Complete => Some("complete"),
        Effect::Fail(_) => Some("fail"),
        Effect::Compensate(_) => Some("compensate"),
        _ => None,
    }
}

const fn is_stateless(effect: &Effect) -> bool {
    match effect {
        Effect::Send(send) => send.step.is_none(),
        Effect::Publish(_) => true,
        _ => false,
    }
}

/// Checks where the effect's messages go, and how deep in a chain they are. An undo does not count as deeper: when it is
/// sent, it is sent.
fn messages(unit: &Unit<'_>, effect: &Effect) -> Result<(), Refusal> {
    let (message, undo) = match effect {
        Effect::Send(send) => (Some((&send.subject, &send.command_type)), send.undo.as_ref()),
        Effect::Publish(publish) => (Some((&publish.subject, &publish.event_type)), None),
        Effect::Done(done) => (None, done.undo.as_ref()),
        _ => (None, None),
    };
    let limit = unit.rules.max_depth;
    let depth = unit.cause.depth.saturating_add(1);
    if message.is_some() && depth > limit {
        return Err(Refusal::TooDeep { effect: name(effect), depth, limit });
    }
    let undo = undo.map(|Undo { subject, command_type, .. }| (subject, command_type));
    for (subject, message_type) in message.into_iter().chain(undo) {
        if !is_subject(subject) {
            return Err(Refusal::NoSubject { effect: name(effect), subject: subject.clone() });
        }
        if !unit.rules.sends.iter().any(|pattern| subject_matches(pattern, subject)) {
            return Err(Refusal::Undeclared { effect: name(effect), subject: subject.clone() });
        }
        if message_type.is_empty() {
            return Err(Refusal::NoType { effect: name(effect) });
        }
    }
    Ok(())
}

/// Where the steps stand after the effects so far.
struct Steps<'a> {
    meets: Meets,
    instance: Option<&'a Instance>,
    changed: Vec<(&'a str, StepState)>,
}

impl<'a> Steps<'a> {
    fn check(&mut self, effect: &'a Effect) -> Result<(), Refusal> {
        match effect {
            Effect::Send(send) => match &send.step {
                Some(step) => {
                    self.begin(step, effect, StepState::Sent)?;
                    has_one_undo(step, send.undo.is_some(), send.irreversible)?;
                    if send.retry.is_some() && send.within.is_none() {
                        return Err(Refusal::RetryWithoutDeadline { step: step.clone() });
                    }
                }
                None if send.within.is_some() || send.retry.is_some() || send.undo.is_some() || send.irreversible => {
                    return Err(Refusal::NoStep { effect: name(effect) });
                }
                None => {}
            },
            Effect::Done(done) => {
                self.begin(&done.step, effect, StepState::Confirmed)?;
                has_one_undo(&done.step, done.undo.is_some(), done.irreversible)?;
            }
            Effect::Confirm(confirm) => match self.state(&confirm.step) {
                None => return Err(Refusal::UnknownStep { effect: name(effect) }),
                Some(StepState::Rejected) => return Err(Refusal::WasRejected { effect: name(effect) }),
                Some(_) => self.changed.push((&confirm.step, StepState::Confirmed)),
            },
            Effect::Reject(reject) => match self.state(&reject.step) {
                None => return Err(Refusal::UnknownStep { effect: name(effect) }),
                Some(_) => self.changed.push((&reject.step, StepState::Rejected)),
            },
            Effect::Timer(timer) if timer.name.is_empty() => return Err(Refusal::NoName { effect: name(effect) }),
            Effect::Timer(timer) if timer.after.is_some() == timer.at.is_some() => {
                return Err(Refusal::TimerWithoutTime { name: timer.name.clone() });
            }
            Effect::Timer(_)
            | Effect::Cancel(_)
            | Effect::Publish(_)
            | Effect::Compensate(_)
            | Effect::Complete
            | Effect::Fail(_) => {}
        }
        Ok(())
    }

    fn begin(&mut self, step: &'a str, effect: &Effect, state: StepState) -> Result<(), Refusal> {
        if step.is_empty() {
            return Err(Refusal::NoName { effect: name(effect) });
        }
        if self.state(step) == Some(StepState::Sent) {
            return Err(Refusal::StillWaiting { step: step.to_owned() });
        }
        self.changed.push((step, state));
        Ok(())
    }

    fn state(&self, name: &str) -> Option<StepState> {
        if let Some((_, state)) = self.changed.iter().rev().find(|(step, _)| *step == name) {
            return Some(*state);
        }
        if self.meets == Meets::New {
            return None;
        }
        let steps = &self.instance?.steps;
        let (number, step) = steps.iter().enumerate().rev().find(|(_, step)| step.step == name)?;
        Some(if self.meets == Meets::Step(number) { StepState::Confirmed } else { step.state })
    }
}

fn has_one_undo(step: &str, undo: bool, irreversible: bool) -> Result<(), Refusal> {
    match (undo, irreversible) {
        (false, false) => Err(Refusal::NoUndo { step: step.to_owned() }),
        (true, true) => Err(Refusal::UndoOfIrreversible { step: step.to_owned() }),
        (true, false) | (false, true) => Ok(()),
    }
}

/// An effect as people would speak of it.
fn name(effect: &Effect) -> String {
    let (what, which) = match effect {
        Effect::Send(send) => match &send.step {
            Some(step) => ("step", step),
            None => ("command", &send.command_type),
        },
        Effect::Publish(publish) => ("event", &publish.event_type),
        Effect::Done(done) => ("step", &done.step),
        Effect::Timer(timer) => ("timer", &timer.name),
        Effect::Cancel(cancel) => ("cancel", &cancel.name),
        Effect::Confirm(confirm) => ("confirm", &confirm.step),
        Effect::Reject(reject) => ("reject", &reject.step),
        Effect::Compensate(_) => return String::from("`compensate`"),
        Effect::Complete => return String::from("`complete`"),
        Effect::Fail(_) => return String::from("`fail`"),
    };
    // A name may be as long as an effect; a reason is to be read.
    match which.char_indices().nth(100) {
        Some((end, _)) => format!("{what} `{}…`", which.get(..end).unwrap_or_default()),
        None => format!("{what} `{which}`"),
    }
}

/// The bytes of all texts in an effect.
fn size(effect: &Effect) -> usize {
    let undo = |undo: &Option<Undo>| {
        undo.as_ref().map_or(0, |undo| undo.subject.len() + undo.command_type.len() + undo.payload.get().len())
    };
    match effect {
        Effect::Send(send) => {
            send.subject.len()
                + send.command_type.len()
                + send.payload.get().len()
                + send.step.as_ref().map_or(0, String::len)
                + undo(&send.undo)
        }
        Effect::Publish(publish) => publish.subject.len() + publish.event_type.len() + publish.payload.get().len(),
        Effect::Done(done) => done.step.len() + undo(&done.undo),
        Effect::Timer(timer) => timer.name.len() + timer.payload.as_ref().map_or(0, |payload| payload.get().len()),
        Effect::Cancel(cancel) => cancel.name.len(),
        Effect::Confirm(confirm) => confirm.step.len(),
        Effect::Reject(reject) => reject.step.len() + reject.reason.len(),
        Effect::Compensate(because) | Effect::Fail(because) => because.reason.len(),
        Effect::Complete => 0,
    }
}
