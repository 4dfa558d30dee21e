//! A unit. In: an event, or a timer, for one instance, and the rules it is judged by. Out: what the judgement can be.
//! Types, and little else. Never: decides.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::instance::Instance;

/// What holds for every unit of one handler.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    /// Name of the handler; ids begin with it.
    pub handler: &'a str,
    /// The module's digest in hex, for the history.
    pub digest: &'a str,
    /// What becomes of events that find no running instance.
    pub late: Late,
    /// Subjects it may send to, wildcards allowed.
    pub sends: &'a [String],
    /// It keeps no instances: every event is a reaction of its own.
    pub stateless: bool,
    /// Most bytes of one effect, its payloads included.
    pub effect_bytes: usize,
    /// Most effects of one unit.
    pub effects_per_unit: usize,
    /// Longest chain of messages that cause each other, against loops.
    pub max_depth: u32,
}

/// Most bytes of an id, of a name and of a subject. Ids of an event are copied into every message that it leads to, and a stream
/// takes 64 KiB of headers; a subject must fit the server's control line of 4 KiB.
pub const NAME_BYTES: usize = 1024;

impl Default for Rules<'_> {
    fn default() -> Self {
        Self {
            handler: "",
            digest: "",
            late: Late::Ignore,
            sends: &[],
            stateless: false,
            effect_bytes: 256 * 1024,
            effects_per_unit: 1000,
            max_depth: 100,
        }
    }
}

/// What becomes of an event that begins no instance and finds none, or one that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Late {
    /// It begins an instance.
    Start,
    /// It is counted, and recorded if there is an instance.
    Ignore,
    /// It is refused, so that somebody looks at it.
    Park,
}

/// The event of a unit.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// Its id; a timer's is the timer's.
    pub id: &'a str,
    /// Its type.
    pub event_type: &'a str,
    /// When it happened, or was due: nanoseconds since 1970.
    pub time: i64,
    /// Its correlation id, or nothing.
    pub correlation: &'a str,
    /// Its causation id, or nothing.
    pub causation: &'a str,
    /// How many messages of handlers led to it, each caused by the one before.
    pub depth: u32,
}

/// One event for one instance.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// The handler's.
    pub rules: &'a Rules<'a>,
    /// The instance's key.
    pub key: &'a str,
    /// The event.
    pub cause: &'a Cause<'a>,
}

impl<'a> Unit<'a> {
    /// The event's correlation id; an event without one begins a correlation of its own.
    pub(crate) const fn correlation(&self) -> &'a str {
        if self.cause.correlation.is_empty() { self.cause.id } else { self.cause.correlation }
    }
}

/// What is to become of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The handler is to see it, then its effects are folded. Nothing has changed yet.
    React(Reaction),
    /// It concerns no instance. Nothing changed.
    Ignored,
    /// It came too late; that is recorded.
    Late,
    /// It was there before. Nothing changed.
    Duplicate,
    /// It needed no handler, and is folded.
    Settled,
}

/// How an event meets its instance: from [`Unit::judge`] or [`Unit::due`] to [`Unit::fold`], with no change of the instance
/// in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction(pub(crate) Meets);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meets {
    /// There are no instances.
    Nothing,
    /// It begins one, in place of one that has ended.
    New,
    /// It is an event like any other.
    Running,
    /// It answers the command of this step, which waits for it.
    Step(usize),
    /// It is this timer.
    Timer(usize),
}

impl Reaction {
    /// Whether it begins an instance. The handler then starts from nothing, even if it holds the state of one that has ended.
    pub const fn begins(self) -> bool {
        matches!(self.0, Meets::New)
    }

    /// The state that the handler goes on from.
    pub fn state(self, instance: Option<&Instance>) -> Option<&RawValue> {
        match self.0 {
            Meets::Nothing | Meets::New => None,
            Meets::Running | Meets::Step(_) | Meets::Timer(_) => instance.and_then(Instance::state),
        }
    }
}
