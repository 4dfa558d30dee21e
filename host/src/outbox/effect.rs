//! One effect on its way: what is to be published, with its place among all. In: what a record asks for. Out: its key, its id,
//! what it takes. Pure. Never: is copied; it stands in one place at a time.

use std::hash::{BuildHasher as _, BuildHasherDefault};
use std::sync::Arc;

use bytes::Bytes;
use millstream_saga::{DEADLINE, Outgoing};
use rustc_hash::FxHasher;

use super::stamp::Stamp;
use crate::traces::Context;

/// One effect.
#[derive(Debug)]
pub(super) struct Effect {
    /// Its place among all of this outbox.
    pub(super) order: u64,
    /// Journal sequence of its record.
    pub(super) record: u64,
    pub(super) outgoing: Outgoing,
    pub(super) body: Bytes,
    /// Where it stands in a trace, if in any.
    pub(super) context: Option<Arc<Context>>,
    /// When it was decided, nanoseconds since 1970.
    pub(super) decided: i64,
    /// When its stream was known not to hold it.
    pub(super) absent: Stamp,
    /// It stands outside its instance's turns: no stream held its subject.
    pub(super) gives_way: bool,
    /// Waits for this one's acknowledgement: nobody has seen a command that is not there.
    pub(super) deadline: Option<Box<Effect>>,
}

impl Effect {
    pub(super) fn id(&self) -> &str {
        match &self.outgoing {
            Outgoing::Message(message) => &message.id,
            Outgoing::Timer { id, .. } | Outgoing::Wait { id, .. } | Outgoing::Cancel { id } => id,
        }
    }

    /// What must be in order among its kind.
    pub(super) fn key(&self) -> &str {
        match &self.outgoing {
            Outgoing::Message(message) => &message.key,
            Outgoing::Timer { id, .. } | Outgoing::Wait { id, .. } | Outgoing::Cancel { id } => id,
        }
    }

    /// Its key as the turns and lanes know it. Two keys with one hash only wait for each other.
    pub(super) fn hash(&self) -> u64 {
        BuildHasherDefault::<FxHasher>::default().hash_one(self.key())
    }

    /// Bytes that it takes while it is here, about. Its payload stands in `body` alone.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.outgoing.bytes() + self.body.len()
    }

    /// A cancellation may come any number of times.
    pub(super) fn is_unique(&self) -> bool {
        !matches!(self.outgoing, Outgoing::Cancel { .. })
    }

    /// Whether this is the deadline of that command.
    pub(super) fn is_deadline_of(&self, command: &Self) -> bool {
        let of = match &self.outgoing {
            Outgoing::Wait { id, .. } => id.strip_suffix(DEADLINE),
            Outgoing::Message(_) | Outgoing::Timer { .. } | Outgoing::Cancel { .. } => None,
        };
        matches!(command.outgoing, Outgoing::Message(_)) && command.deadline.is_none() && of == Some(command.id())
    }
}
