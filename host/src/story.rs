//! The story of one instance of a saga, put together from what is left of it: its document, the journal's records, the messages
//! in the streams. In: these. Out: every event with what was decided on it, what was sent, and what came of that. Here are the
//! words for all that; `scan.rs` reads, `telling.rs` puts together, `missing.rs` says what is not there, `drawing.rs` draws.
//! Never: passes over in silence what it could not find.

pub mod drawing;
mod missing;
pub mod scan;
mod telling;

use millstream_saga::instance::Transition;
use millstream_saga::{Instance, Outgoing, Status};
use serde::Serialize;
use serde_json::value::RawValue;

/// What is left of an instance.
#[derive(Debug)]
pub struct Sources {
    /// The saga.
    pub handler: String,
    /// The instance's key.
    pub key: String,
    /// Its document.
    pub instance: Instance,
    /// What happened to it in this life, in order.
    pub transitions: Vec<Transition>,
    /// Records of the journal that are about it.
    pub decisions: Vec<Decision>,
    /// Messages that may be about it.
    pub letters: Vec<Letter>,
    /// What could not be looked at, in sentences.
    pub gaps: Vec<String>,
    /// Why something may be missing, if something is.
    pub reasons: Vec<String>,
}

/// A journal record, as far as it is about the instance.
#[derive(Debug)]
pub struct Decision {
    /// Its journal sequence.
    pub record: u64,
    /// When, nanoseconds since 1970.
    pub time: i64,
    /// The host that decided.
    pub host: String,
    /// Ids of the events in it that changed the instance.
    pub events: Vec<String>,
    /// What the instance asked for.
    pub effects: Vec<Outgoing>,
}

/// A message in a stream.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where it lies.
    pub place: Place,
    /// When it was stored, nanoseconds since 1970.
    pub stored: i64,
    /// Event or command id.
    pub id: String,
    /// Its type.
    pub event_type: String,
    /// Who says that it was published by a handler: the handler's name.
    pub sender: Option<String>,
    /// What it is about.
    pub aggregate: String,
    /// The root of its chain.
    pub correlation: String,
    /// What caused it.
    pub causation: String,
    /// The step that it belongs to.
    pub step: Option<String>,
    /// Which attempt, where it is a command.
    pub attempt: Option<u32>,
    /// JSON, or none.
    pub payload: Option<Box<RawValue>>,
}

/// Where a message lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Stream.
    pub stream: String,
    /// Sequence.
    pub sequence: u64,
    /// Subject.
    pub subject: String,
}

/// The whole story.
#[derive(Debug, Serialize)]
pub struct Story {
    /// The saga.
    pub handler: String,
    /// The instance's key.
    pub key: String,
    /// Where it stands.
    pub status: Status,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The root of its chain of events.
    pub correlation: String,
    /// Id of the event that began it.
    pub life: String,
    /// The handler's own state.
    pub state: Option<Box<RawValue>>,
    /// Events that came too late.
    pub late: u64,
    /// What happened, in the order in which it was decided.
    pub events: Vec<Chapter>,
    /// What could not be found, in sentences.
    pub missing: Vec<String>,
}

/// An event, and what was decided on it.
#[derive(Debug, Serialize)]
pub struct Chapter {
    /// Its id; a timer's is the timer's.
    pub event: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it happened: RFC 3339.
    pub at: String,
    /// Where it lies, if it still does.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Its payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// What was decided.
    pub did: String,
    /// The beginning of the module's digest.
    pub digest: String,
    /// The journal record that decided it, if it is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// The host that decided it, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What it led to.
    pub effects: Vec<Deed>,
}

/// Something that the saga did.
#[derive(Debug, Serialize)]
pub struct Deed {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Event or command type, or the timer's name.
    pub name: String,
    /// The step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Which attempt, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When it was published: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// When the timer is due: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<String>,
    /// Where it lies, if it still does.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Its payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a saga can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It sent a command.
    Command,
    /// It sent the command that takes a step back.
    Undo,
    /// It published an event.
    Event,
    /// It set a timer.
    Timer,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// An event answered it.
    Answered {
        /// The event's id.
        by: String,
        /// Its type.
        event_type: String,
        /// Milliseconds from command to answer, where both are still there.
        after_ms: Option<i64>,
    },
    /// Its deadline passed.
    NoAnswer,
    /// It still waits.
    Waits,
    /// No answer was found.
    Unknown,
    /// Nobody answers such a thing.
    Sent,
    /// The timer came.
    Fired,
    /// The timer is not set any more, and has not come.
    Cancelled,
}
