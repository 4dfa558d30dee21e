//! What the host must do once a unit is committed. In: a saga's messages, deadlines and waits. Out: things to do, in
//! their order, with ids and a whole chain of causes. Never: does them.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::due::{Due, Waiting};
use crate::instance::{Instance, Status, Transition};
use crate::instance::{Step, json};
use crate::timestamp::rfc3339;
use crate::unit::Unit;

/// What the id of a command's deadline adds to the command's.
pub const DEADLINE: &str = ".deadline";

/// What the id of the wait before its next attempt adds.
pub const RETRY: &str = ".retry";

/// One thing to do; they are done in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outgoing {
    /// Publish a message.
    Message(Message),
    /// Set a timer to a time; if that has passed, it is due at once.
    Timer {
        /// Its id.
        id: String,
        /// Nanoseconds since 1970.
        due: i64,
        /// JSON of a [`Due`].
        #[serde(with = "serde_bytes")]
        body: Vec<u8>,
        /// Correlation id.
        correlation: String,
        /// Id of the event that set it.
        causation: String,
    },
    /// Set a timer that counts from when this is done: a deadline, right after its message, or the wait before a retry.
    Wait {
        /// Its id.
        id: String,
        /// Milliseconds.
        after_ms: u64,
        /// JSON of a [`Due`].
        #[serde(with = "serde_bytes")]
        body: Vec<u8>,
        /// Correlation id.
        correlation: String,
        /// Id of the event that set it.
        causation: String,
    },
    /// Take a timer back. It may have fired already; the instance knows that nobody waits for it.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// A command or an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its id: the same whenever the unit runs again.
    pub id: String,
    /// Target subject.
    pub subject: String,
    /// Type for the envelope.
    pub event_type: String,
    /// It is a command, not an event.
    pub command: bool,
    /// JSON.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Key of the instance.
    pub key: String,
    /// Correlation id.
    pub correlation: String,
    /// Id of the event that caused it.
    pub causation: String,
    /// The step it belongs to.
    pub step: Option<String>,
    /// From 1.
    pub attempt: u32,
    /// How many messages of handlers led to it, itself included.
    pub depth: u32,
    /// Milliseconds to its deadline.
    pub within_ms: Option<u64>,
}

/// Bytes of one in a record beside its texts, at most: their lengths, its numbers, what kind it is.
const ROOM: usize = 64;

impl Outgoing {
    /// Bytes that it takes in a record, at most, and about those that it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = match self {
            Self::Message(message) => message.texts(),
            Self::Timer { id, body, correlation, causation, .. }
            | Self::Wait { id, body, correlation, causation, .. } => {
                id.len() + body.len() + correlation.len() + causation.len()
            }
            Self::Cancel { id } => id.len(),
        };
        texts + ROOM
    }
}

impl Message {
    fn texts(&self) -> usize {
        let Self { id, subject, event_type, payload, key, correlation, causation, step, .. } = self;
        let step = step.as_ref().map_or(0, String::len);
        let texts = [id, subject, event_type, key, correlation, causation];
        texts.into_iter().map(String::len).sum::<usize>() + payload.len() + step
    }
}

/// Writes what one unit sends.
pub(crate) struct Sender<'a> {
    pub(crate) unit: Unit<'a>,
    pub(crate) correlation: &'a str,
    pub(crate) life: &'a str,
    pub(crate) out: &'a mut Vec<Outgoing>,
}

/// What a message is made from, apart from where it comes from.
pub(crate) struct Letter<'a> {
    pub(crate) id: String,
    pub(crate) subject: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) command: bool,
    pub(crate) payload: &'a [u8],
}

impl Sender<'_> {
    /// A message that nobody waits for.
    pub(crate) fn message(&mut self, letter: Letter<'_>) {
        self.push(letter, None, 1, None);
    }

    /// The command that this step waits for now, and its deadline.
    pub(crate) fn command(&mut self, step: &Step, payload: &RawValue) {
        let Some(attempt) = step.awaits() else { return };
        let (subject, event_type) = match &step.undo {
            Some(undo) if attempt.undo => (&undo.subject, &undo.command_type),
            _ => (&step.subject, &step.command_type),
        };
        let id = step.command_id(attempt);
        let within = step.within(attempt.undo);
        let payload = payload.get().as_bytes();
        let letter = Letter { id: id.clone(), subject, event_type, command: true, payload };
        self.push(letter, Some(step.step.clone()), attempt.number, within);
        if let Some(within) = within {
            self.deadline(step, id, within);
        }
    }

    /// The deadline of the command with this id.
    pub(crate) fn deadline(&mut self, step: &Step, id: String, within: u64) {
        self.wait(format!("{id}{DEADLINE}"), within, Waiting::Deadline { step: step.step.clone(), id });
    }

    /// The wait before the next try at this step.
    pub(crate) fn back_off(&mut self, step: &Step, id: &str, after_ms: u64) {
        self.wait(format!("{id}{RETRY}"), after_ms, Waiting::Retry { step: step.step.clone(), id: id.to_owned() });
    }

    /// Takes back the deadline or the wait that this step has set.
    pub(crate) fn stop(&mut self, step: &Step) {
        let Some(attempt) = step.awaits() else { return };
        let timer = match step.within(attempt.undo) {
            _ if step.backing_off => RETRY,
            Some(_) => DEADLINE,
            None => return,
        };
        self.out.push(Outgoing::Cancel { id: format!("{}{timer}", step.command_id(attempt)) });
    }

    /// A timer of the handler.
    pub(crate) fn timer(&mut self, id: &str, due: i64, name: &str) {
        let body = self.body(Waiting::User { name: name.to_owned(), id: id.to_owned() });
        self.out.push(Outgoing::Timer {
            id: id.to_owned(),
            due,
            body,
            correlation: self.correlation.to_owned(),
            causation: self.unit.cause.id.to_owned(),
        });
    }

    fn wait(&mut self, id: String, after_ms: u64, timer: Waiting) {
        let body = self.body(timer);
        self.out.push(Outgoing::Wait {
            id,
            after_ms,
            body,
            correlation: self.correlation.to_owned(),
            causation: self.unit.cause.id.to_owned(),
        });
    }

    fn body(&self, timer: Waiting) -> Vec<u8> {
        json(&Due { key: self.unit.key.to_owned(), life: self.life.to_owned(), timer })
    }

    fn push(&mut self, letter: Letter<'_>, step: Option<String>, attempt: u32, within_ms: Option<u64>) {
        self.out.push(Outgoing::Message(Message {
            id: letter.id,
            subject: letter.subject.to_owned(),
            event_type: letter.event_type.to_owned(),
            command: letter.command,
            payload: letter.payload.to_vec(),
            key: self.unit.key.to_owned(),
            correlation: self.correlation.to_owned(),
            causation: self.unit.cause.id.to_owned(),
            step,
            attempt,
            depth: self.unit.cause.depth.saturating_add(1),
            within_ms,
        }));
    }
}

impl<'a> Unit<'a> {
    pub(crate) fn sender<'b>(&self, instance: &'b Instance, out: &'b mut Vec<Outgoing>) -> Sender<'b>
    where
        'a: 'b,
    {
        Sender { unit: *self, correlation: &instance.correlation, life: &instance.life, out }
    }

    /// Adds a line to the history, which also says if the status changed.
    pub(crate) fn record(&self, instance: &mut Instance, mut did: String, before: Status) {
        if instance.status != before {
            did.push_str("; ");
            did.push_str(&instance.status.to_string());
        }
        instance.record(Transition {
            event: self.cause.id.to_owned(),
            event_type: self.cause.event_type.to_owned(),
            at: rfc3339(self.cause.time),
            digest: self.rules.digest.chars().take(12).collect(),
            did,
        });
    }
}
