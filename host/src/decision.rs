//! What a guest's answer means. In: the staged batch and the outcome of `apply`. Out: the changes and counts that a record will
//! hold, or which event is to blame. Pure. Never: lets through what no record or bucket can hold.

use std::fmt;

use bytes::Bytes;
use millstream_saga::Outgoing;

use crate::documents::{Decided, KEY_BYTES};
use crate::intake::Arrival;
use crate::journal::{CHANGE_ROOM, Counts, Park, RECORD_ROOM};
use crate::keys;
use crate::parking::Room;
use crate::parking::aside::Aside;
use crate::pipeline;
use crate::sandbox::{Class, Failure, slice, str_slice, wire};
use crate::traces::Carried;

/// A batch that the sandbox has folded, not yet committed.
#[derive(Default)]
pub(crate) struct Decision {
    pub(crate) changes: Vec<Decided>,
    pub(crate) counts: Counts,
    pub(crate) effects: Vec<Outgoing>,
    pub(crate) carried: Carried,
    pub(crate) parks: Vec<Park>,
}

/// What a decision must fit.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    /// Name of the stream that the events are from.
    pub(crate) stream: &'a str,
    /// How many keys may be parked.
    pub(crate) room: Room,
    /// Bytes of a record.
    pub(crate) record_bytes: usize,
}

impl Bounds<'_> {
    /// Bytes of a dead letter: all that the server takes.
    pub(crate) fn letter_bytes(&self) -> usize {
        self.record_bytes + RECORD_ROOM
    }
}

/// Why a batch could not be decided.
pub(crate) enum Undecided {
    /// The events' or the guest's fault; the index where it is known.
    Guilty { index: Option<usize>, class: Fault, reason: String, backtrace: String },
    /// Not the events' fault.
    Trouble(pipeline::Error),
}

/// What an event, or the guest that was given it, is guilty of. Each comes back with the same events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The event is no envelope, or not one that the guest can read.
    Undecodable,
    /// No bucket can hold its key.
    KeyTooLong,
    /// The instance's document cannot be read.
    Unreadable,
    /// The handler said no, or asked for what it may not have.
    Refused,
    /// No record can hold what it decides.
    TooLarge,
    /// The guest trapped.
    Trap,
    /// The guest used up its fuel.
    Fuel,
    /// The guest asked for more memory than it may have.
    Memory,
    /// The guest said more than it may.
    Output,
    /// The guest's answer breaks the contract.
    Answer,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Undecodable,
        Self::KeyTooLong,
        Self::Unreadable,
        Self::Refused,
        Self::TooLarge,
        Self::Trap,
        Self::Fuel,
        Self::Memory,
        Self::Output,
        Self::Answer,
    ];

    /// The fault of that word.
    pub(crate) fn named(word: &str) -> Self {
        Self::ALL.into_iter().find(|fault| fault.to_string() == word).unwrap_or(Self::Refused)
    }
}

/// The words that people see, and look up in `docs/when-it-fails.md`.
impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Undecodable => "undecodable",
            Self::KeyTooLong => "key-too-long",
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
            Self::TooLarge => "too-large",
            Self::Trap => "trap",
            Self::Fuel => "fuel",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Answer => "answer",
        })
    }
}

impl Undecided {
    /// The fault of the event at this index.
    pub(crate) fn at(index: usize, class: Fault, reason: &str) -> Self {
        Self::Guilty { index: Some(index), class, reason: reason.to_owned(), backtrace: String::new() }
    }

    /// A call that failed; the guest did not say at which event.
    pub(crate) fn failure(failure: Failure) -> Self {
        let class = match failure.class {
            Class::Trap => Fault::Trap,
            Class::Fuel => Fault::Fuel,
            Class::Memory => Fault::Memory,
            Class::Output => Fault::Output,
            Class::Answer => Fault::Answer,
            Class::Host => return Self::Trouble(pipeline::Error::Instance(failure)),
        };
        Self::Guilty { index: None, class, reason: failure.message, backtrace: failure.backtrace }
    }
}

/// Refuses events that the guest could not decode, and keys that no bucket can hold.
pub(crate) fn check_staged(staged: &wire::Staged) -> Result<(), Undecided> {
    if let Some(rejection) = staged.rejections.iter().min_by_key(|rejection| rejection.event) {
        let reason = str_slice(&staged.blob, rejection.reason);
        return Err(Undecided::at(rejection.event as usize, Fault::Undecodable, reason));
    }
    check_keys(staged)
}

/// Refuses keys that no bucket can hold.
pub(crate) fn check_keys(staged: &wire::Staged) -> Result<(), Undecided> {
    for (index, key) in (0..).zip(&staged.keys) {
        let name = str_slice(&staged.blob, key.name);
        let length = if name.len() > KEY_BYTES / 3 { keys::escape(name).len() } else { 0 };
        if length > KEY_BYTES {
            let event = staged.routes.iter().find(|route| route.key == index).map_or(0, |route| route.event);
            let reason = format!("its key has {length} bytes when escaped; the limit is {KEY_BYTES}");
            return Err(Undecided::at(event as usize, Fault::KeyTooLong, &reason));
        }
    }
    Ok(())
}

/// Takes the changes out of an answer, and what is set aside: before the call, and by refusals.
///
/// # Errors
/// The first event for which there is no room among parked keys, or what does not fit into a record: one event alone is to blame
/// for that, several are decided in smaller parts.
pub(crate) fn of(
    arrivals: &[Arrival],
    staged: &wire::Staged,
    outcome: &wire::Outcome,
    (mut aside, skip): (Aside, &[u32]),
    bounds: Bounds<'_>,
) -> Result<Decision, Undecided> {
    aside.refused(staged, outcome, skip)?;
    if let Some(effect) = outcome.effects.first() {
        let event = staged.routes.get(effect.route as usize).map_or(0, |route| route.event);
        return Err(Undecided::at(event as usize, Fault::Refused, "a projection may not ask for effects"));
    }
    let mut changes = Vec::with_capacity(outcome.changes.len());
    let mut bytes = 0;
    for change in &outcome.changes {
        let name =
            staged.keys.get(change.key as usize).map(|key| str_slice(&staged.blob, key.name)).unwrap_or_default();
        let event = staged.routes.get(change.route as usize).map_or(0, |route| route.event as usize);
        let value = slice(&outcome.blob, change.value);
        bytes += name.len() + value.len() + CHANGE_ROOM;
        changes.push(Decided {
            key: name.to_owned(),
            value: (!change.deleted).then(|| Bytes::copy_from_slice(value)),
            sequence: arrivals.get(event).map_or(0, |arrival| arrival.sequence),
            keep_seconds: None,
        });
    }
    let counts = count(arrivals.len() as u64, &staged.routes, &aside);
    let parks = aside.parks(bounds.stream, arrivals, bounds.room, bounds.letter_bytes())?;
    bytes += parks.iter().map(Park::bytes).sum::<usize>();
    check_size(bytes, bounds.record_bytes)?;
    Ok(Decision { changes, counts, parks, ..Decision::default() })
}

/// Refuses what no record of `record_bytes` can hold.
pub(crate) fn check_size(bytes: usize, record_bytes: usize) -> Result<(), Undecided> {
    if bytes <= record_bytes {
        return Ok(());
    }
    let reason = format!(
        "what it decides has {bytes} bytes; a record, and so a document, may have {record_bytes} (the server's max_payload)"
    );
    Err(Undecided::Guilty { index: None, class: Fault::TooLarge, reason, backtrace: String::new() })
}

/// Refuses the first event that the guest refused.
pub(crate) fn check_refusals(staged: &wire::Staged, outcome: &wire::Outcome) -> Result<(), Undecided> {
    let event = |route: u32| staged.routes.get(route as usize).map_or(0, |route| route.event);
    match outcome.refusals.iter().min_by_key(|refusal| event(refusal.route)) {
        Some(refusal) => {
            let reason = str_slice(&outcome.blob, refusal.reason);
            Err(Undecided::at(event(refusal.route) as usize, Fault::Refused, reason))
        }
        None => Ok(()),
    }
}

/// Routes stand in the order of events: an event with at least one was applied, unless a unit of it is set aside.
fn count(delivered: u64, routes: &[wire::Route], aside: &Aside) -> Counts {
    let mut applied = 0;
    let mut last = None;
    for route in routes {
        if last != Some(route.event) {
            last = Some(route.event);
            applied += u64::from(!aside.is_aside(route.event as usize));
        }
    }
    let parked = aside.events();
    Counts { delivered, applied, parked, irrelevant: delivered.saturating_sub(applied + parked), ..Counts::default() }
}
