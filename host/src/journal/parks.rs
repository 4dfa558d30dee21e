//! What a record says of units that are set aside, and of those that are taken up again. In: events with what is wrong with them.
//! Out: their bytes in a record. Pure. Never: holds more than a dead letter can.

use serde::{Deserialize, Serialize};

/// Bytes of a park in a record beside its texts and payload, at most; as much for each header and unit.
const PARK_ROOM: usize = 64;

/// Parked units of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parking {
    /// Dead letters of records up to this journal sequence are stored, and those that were taken up again are removed.
    pub through: u64,
    /// After how many delivered events a key was newly parked: the latest of them, for this module.
    pub recent: Vec<u64>,
    /// Events with a unit that is set aside, in stream order.
    pub parks: Vec<Park>,
    /// What is taken up again, or given up.
    pub unparked: Option<Unparked>,
}

/// An event with units that are set aside, whole: its stream may drop it before its dead letters are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Park {
    /// Name of its stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// When the server stored it there, nanoseconds since 1970.
    pub stored: i64,
    /// Its subject.
    pub subject: String,
    /// Its headers, in order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Its units that are set aside.
    pub units: Vec<ParkedUnit>,
}

/// One of its units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedUnit {
    /// The key; none for an event that never got as far as one.
    pub key: Option<String>,
    /// What it is guilty of, in a word.
    pub class: String,
    /// What happened, in a sentence.
    pub reason: String,
    /// Guest frames, or empty.
    pub backtrace: String,
    /// It failed itself; the others only follow one that did.
    pub first: bool,
}

/// Dead letters of one key that are decided after all, or given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unparked {
    /// The key; none for events that never got as far as one.
    pub key: Option<String>,
    /// The last of them, by its sequence in the stream of dead letters.
    pub through: u64,
    /// How many.
    pub units: u64,
    /// Why they were given up; none: they were decided.
    pub discarded: Option<String>,
}

impl Park {
    /// About the bytes that it takes in a record, and never less.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let units = self.units.iter().map(|unit| {
            let key = unit.key.as_ref().map_or(0, String::len);
            key + unit.class.len() + unit.reason.len() + unit.backtrace.len() + PARK_ROOM
        });
        self.event_bytes() + self.stream.len() + units.sum::<usize>()
    }

    /// The bytes of the event alone.
    #[must_use]
    pub fn event_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + PARK_ROOM);
        self.subject.len() + headers.sum::<usize>() + self.payload.len() + PARK_ROOM
    }
}
