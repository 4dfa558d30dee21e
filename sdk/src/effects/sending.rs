//! The second half of asking. In: an effect that was just asked for, and what it says besides its subject and payload.
//! Out: the same effect, said in full. The types see to it that only a step has a deadline, and that the compiler warns
//! where a step says nothing about being taken back. Never: fails at run time where it could fail to compile.

use core::time::Duration;

use millstream_saga::{Effect, Retry};
use serde::Serialize;

use super::{Effects, milliseconds};

/// A command; see [`Effects::send`].
#[derive(Debug)]
pub struct Command<'a>(pub(super) &'a mut Effects);

impl<'a> Command<'a> {
    /// Its type. Not set: the last token of the subject that is a name.
    pub fn named(self, command_type: impl Into<String>) -> Self {
        name_last(self.0, command_type.into());
        self
    }

    /// Makes it a step: the saga waits for its answer, and takes it back when it compensates. The name is unique among the
    /// steps that are not finished.
    pub fn step(self, name: impl Into<String>) -> Step<'a> {
        if let Some(send) = self.0.last_send() {
            send.step = Some(name.into());
        }
        Step(self.0)
    }
}

/// A step; see [`Command::step`]. An event whose causation id is the command's id confirms it.
#[derive(Debug)]
#[must_use = "a step says how it is taken back: end with `.undo(subject, &payload)`, or with `.irreversible()`"]
pub struct Step<'a>(&'a mut Effects);

impl<'a> Step<'a> {
    /// The command's type, as [`Command::named`].
    pub fn named(self, command_type: impl Into<String>) -> Self {
        name_last(self.0, command_type.into());
        self
    }

    /// How long to wait for the answer, from the moment the command was published. Not set: for ever.
    pub fn within(self, duration: Duration) -> Self {
        if let Some(send) = self.0.last_send() {
            send.within = Some(milliseconds(duration));
        }
        self
    }

    /// How often to send it again when no answer came in time, and the wait before the first of these; each further wait is
    /// twice as long. After the last the saga compensates. Not set: it does so at the first deadline.
    pub fn retry(self, times: u32, wait: Duration) -> Self {
        if let Some(send) = self.0.last_send() {
            send.retry = Some(Retry { times, wait: milliseconds(wait) });
        }
        self
    }

    /// The command that takes it back.
    pub fn undo(self, subject: impl Into<String>, payload: &(impl Serialize + ?Sized)) -> Undoing<'a> {
        self.0.undo_last(subject.into(), payload);
        Undoing(self.0)
    }

    /// It cannot be taken back, on purpose: compensation passes it by.
    pub fn irreversible(self) {
        if let Some(send) = self.0.last_send() {
            send.irreversible = true;
        }
    }
}

/// A step that happened already; see [`Effects::done`].
#[derive(Debug)]
#[must_use = "a step says how it is taken back: end with `.undo(subject, &payload)`, or with `.irreversible()`"]
pub struct Done<'a>(pub(super) &'a mut Effects);

impl<'a> Done<'a> {
    /// The command that takes it back.
    pub fn undo(self, subject: impl Into<String>, payload: &(impl Serialize + ?Sized)) -> Undoing<'a> {
        self.0.undo_last(subject.into(), payload);
        Undoing(self.0)
    }

    /// It cannot be taken back, on purpose: compensation passes it by.
    pub fn irreversible(self) {
        if let Some(Effect::Done(done)) = self.0.list.last_mut() {
            done.irreversible = true;
        }
    }
}

/// The command that takes a step back; see [`Step::undo`] and [`Done::undo`].
#[derive(Debug)]
pub struct Undoing<'a>(&'a mut Effects);

impl Undoing<'_> {
    /// Its type. Not set: the last token of the subject that is a name.
    pub fn named(self, command_type: impl Into<String>) -> Self {
        if let Some(undo) = self.0.last_undo() {
            undo.command_type = command_type.into();
        }
        self
    }

    /// How long to wait for its answer. Not set: as long as for the step's, or else 30 seconds.
    pub fn within(self, duration: Duration) -> Self {
        if let Some(undo) = self.0.last_undo() {
            undo.within = Some(milliseconds(duration));
        }
        self
    }

    /// How often to send it again, as [`Step::retry`]. Not set: as often as the step, or else three times, after a second.
    /// After the last the saga stands as `compensation-failed`, until somebody has it resumed (`millstream resume-compensation`).
    pub fn retry(self, times: u32, wait: Duration) -> Self {
        if let Some(undo) = self.0.last_undo() {
            undo.retry = Some(Retry { times, wait: milliseconds(wait) });
        }
        self
    }
}

/// An event to publish; see [`Effects::publish`].
#[derive(Debug)]
pub struct Publishing<'a>(pub(super) &'a mut Effects);

impl Publishing<'_> {
    /// Its type. Not set: the last token of the subject that is a name.
    pub fn named(self, event_type: impl Into<String>) -> Self {
        name_last(self.0, event_type.into());
        self
    }
}

/// A timer; see [`Effects::after`] and [`Effects::at`].
#[derive(Debug)]
pub struct Timing<'a>(pub(super) &'a mut Effects);

impl Timing<'_> {
    /// What [`Timer::payload`](crate::Timer::payload) gives back when it fires.
    pub fn payload(self, payload: &(impl Serialize + ?Sized)) -> Self {
        let Some(Effect::Timer(timer)) = self.0.list.last() else { return self };
        let name = timer.name.clone();
        let payload = self.0.payload(&name, payload);
        if let Some(Effect::Timer(timer)) = self.0.list.last_mut() {
            timer.payload = Some(payload);
        }
        self
    }
}

fn name_last(effects: &mut Effects, message_type: String) {
    match effects.list.last_mut() {
        Some(Effect::Send(send)) => send.command_type = message_type,
        Some(Effect::Publish(publish)) => publish.event_type = message_type,
        _ => {}
    }
}
