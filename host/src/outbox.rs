//! The step after a commit: the effects of a record are published. In: effects of committed records, in their order. Out:
//! messages with whole envelopes, schedules for timers, and the journal sequence up to which all of it is stored
//! (`acted_through`). Never: decides; gives up an effect; lets one subject that nobody holds, or one message that no stream takes,
//! stop the others.
//!
//! Once each: an effect's id is its message id, so a stream takes it once within its duplicate window. What may be older than half
//! that window is looked for in the stream before it is sent, after a recovery, a pause or a long failure alike.
//!
//! Fenced: an owner may publish what it committed, whoever owns the handler by then: the heir publishes the same under the same
//! ids. Only where the window has passed would that be twice. So when more time has passed since ownership was proved than a
//! quarter of the window, or a second, the journal is asked (`still_ours`) before anything leaves.
//!
//! What remains: a process that stops, or a connection that stalls, between that question and the server's reading of the bytes,
//! for longer than half the window, while an heir publishes the same effect and the window passes for his copy as well; a stream
//! whose window is made shorter while this runs; a work queue, whose consumed messages leave no trace, if the host dies within a
//! second of them and comes back after the window; a command whose time to live has passed before a recovery looks; clocks of host
//! and servers further apart than `SKEW` of `clock.rs`.

mod deferred;
mod effect;
mod flight;
mod lane;
mod queue;
mod refused;
mod rendering;
mod stamp;
mod targets;
#[cfg(test)]
mod tests;
mod turns;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::Context;
use tokio::sync::Notify;

use crate::crash;
use crate::traces::Effects;
use queue::Queue;
use targets::Targets;

pub use stamp::Stamp;

/// Effects listed that cannot be delivered.
const LISTED: usize = 100;

/// Bounds of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Effects committed and not published; the pipeline waits above this.
    pub queued_effects: usize,
    /// Bytes of these effects; the pipeline waits above this.
    pub queued_bytes: usize,
    /// Effects on the way at once. Enough to hide a round trip, few enough not to fill the server's queue.
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queued_effects: 10_000, queued_bytes: 64 << 20, in_flight: 512 }
    }
}

/// Why nothing more is published under this claim. Nothing is lost; the journal has it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another host owns the handler.
    #[error("fenced: another host claimed the handler before its effects were published")]
    Fenced,
    /// The connection was closed for good.
    #[error("effects cannot be published: {0}")]
    Unreachable(String),
}

/// An effect that nobody takes at present.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Undelivered {
    /// The instance that sends it, or the timer's id.
    pub key: String,
    /// Where it should go.
    pub subject: String,
    /// Its id.
    pub id: String,
    /// Why it does not.
    pub reason: String,
}

/// What became of effects under this claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored by this outbox.
    pub published: u64,
    /// Already in their stream, by its account or by looking.
    pub known: u64,
    /// Tries that failed; each is tried again.
    pub failed: u64,
}

/// The effects of one handler under one claim.
pub struct Outbox {
    jetstream: Context,
    handler: String,
    limits: Limits,
    targets: Targets,
    queue: Mutex<Queue>,
    counts: Mutex<Counts>,
    acted_through: AtomicU64,
    /// When the handler was known to be ours.
    owned: Mutex<Option<Stamp>>,
    arrived: Notify,
    /// `acted_through` has moved: there may be room.
    pub acted: Notify,
}

impl Outbox {
    /// An outbox for what comes after this journal sequence.
    #[must_use]
    pub fn new(jetstream: &Context, handler: &str, acted_through: u64, limits: Limits) -> Self {
        Self {
            jetstream: jetstream.clone(),
            handler: handler.to_owned(),
            limits,
            targets: Targets::new(jetstream.clone()),
            queue: Mutex::new(Queue::new(handler, acted_through)),
            counts: Mutex::default(),
            acted_through: AtomicU64::new(acted_through),
            owned: Mutex::default(),
            arrived: Notify::new(),
            acted: Notify::new(),
        }
    }

    /// Takes the effects of a record that was just committed, or none. `sent` is the moment before the record was sent: a process
    /// that stood still before it read the acknowledgement must not take itself for the owner.
    pub fn publish(&self, journal: u64, sent: Stamp, effects: impl Into<Effects>) {
        *lock(&self.owned) = Some(sent);
        self.push(journal, sent, effects.into());
    }

    /// Takes the effects of a record that an earlier owner committed, stored at this time (nanoseconds since 1970).
    pub fn republish(&self, journal: u64, stored: i64, effects: impl Into<Effects>) {
        self.push(journal, Stamp::stored(stored), effects.into());
    }

    /// The effects of records up to this journal sequence are stored.
    #[must_use]
    pub fn acted_through(&self) -> u64 {
        self.acted_through.load(Ordering::Acquire)
    }

    /// Waits until the effects of records up to this journal sequence are stored.
    pub async fn has_acted(&self, through: u64) {
        loop {
            let acted = self.acted.notified();
            if self.acted_through() >= through {
                return;
            }
            acted.await;
        }
    }

    /// Effects that nobody takes at present: how many, and the first hundred.
    #[must_use]
    pub fn undelivered(&self) -> (usize, Vec<Undelivered>) {
        lock(&self.queue).undelivered(LISTED)
    }

    /// What became of effects so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Sets every deadline at once from now on: the host is about to stop, and leaves no more behind than it must.
    pub fn hurry(&self) {
        lock(&self.queue).hurry();
        self.arrived.notify_one();
    }

    /// True while the queue is full: whoever decides must wait, so that what is decided and not published stays bounded.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let queue = lock(&self.queue);
        queue.effects >= self.limits.queued_effects || queue.bytes >= self.limits.queued_bytes
    }

    fn push(&self, journal: u64, absent: Stamp, effects: Effects) {
        lock(&self.queue).push(journal, absent, effects);
        self.arrived.notify_one();
        self.tell();
    }

    /// Says how far it is, if that has changed or there may be room.
    fn tell(&self) {
        let acted_through = lock(&self.queue).acted_through();
        if self.acted_through.swap(acted_through, Ordering::AcqRel) < acted_through {
            crash::point("acted");
        }
        self.acted.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
