//! Parking: a unit that no module of this version can take is set aside, and all later units of its key follow it, in order; other
//! keys go on. In: what is set aside and taken up again, record by record. Out: which keys are parked, and how many more may be.
//! `aside.rs` says which units of a batch those are, `letter.rs` how one looks as a message, `dead.rs` keeps the messages,
//! `wishes.rs` holds what people want done with them, `capsule.rs` takes one out of the house, `surplus.rs` clears what came back. Pure here. Never: forgets a parked key while one of its units is left.

pub(crate) mod aside;
pub mod capsule;
pub mod dead;
pub mod letter;
mod surplus;
pub mod wishes;

use std::collections::HashMap;

use crate::journal::Park;
use crate::names;
use crate::settings::Settings;

/// Newly parked keys are counted over so many events.
pub const FAILING_WITHIN: u64 = 1000;

/// The class of units that only follow one that failed.
pub const FOLLOWS: &str = "follows";

/// What the first of a key's letters may be guilty of: those of `decision::Fault`, and what followed one that was taken up.
pub(crate) const CLASSES: [&str; 11] = [
    "undecodable",
    "key-too-long",
    "unreadable",
    "refused",
    "too-large",
    "trap",
    "fuel",
    "memory",
    "output",
    "answer",
    FOLLOWS,
];

/// Bytes of a reason and of a backtrace that are kept.
pub(crate) const REASON_BYTES: usize = 1000;
pub(crate) const BACKTRACE_BYTES: usize = 2500;

/// Bytes that a dead letter has beside its event, at most.
pub(crate) const LETTER_ROOM: usize = 8 << 10;

/// What can go wrong with the stream of dead letters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream of this name is somebody else's.
    #[error(
        "stream {0} is already there and was not made by Millstream for dead letters; \
        hint: rename or remove it (`nats stream rm {0}`), Millstream makes its own"
    )]
    NotOurs(String),
    /// A message among the dead letters that none of ours wrote.
    #[error(
        "message {sequence} of stream {} is no dead letter of ours; hint: remove it with `nats stream rmm {} {sequence} -f`, then pause \
         and resume the handler, which counts its letters anew",
        names::DEAD,
        names::DEAD
    )]
    Foreign {
        /// Its sequence there.
        sequence: u64,
    },
    /// Letters that nobody knows of: taking them up would apply events twice.
    #[error(
        "{units} more dead letters of {handler} are there than were set aside, as after an older backup of stream {dead} was restored; \
         hint: restore {dead} as it was with the journal, or build the documents anew: `millstream rebuild {handler}`, then `millstream \
         promote {handler}`",
        dead = names::DEAD
    )]
    Surplus {
        /// The handler's name.
        handler: String,
        /// How many.
        units: u64,
    },
    /// The server refused, or is away. Nothing is lost; the journal has it.
    #[error("dead letters cannot be stored or read: {0}")]
    Refused(String),
    /// Another host took the handler before its dead letters were stored; it stores them.
    #[error("fenced: another host claimed the handler before its dead letters were stored")]
    Fenced,
}

/// The parked keys of one generation, and what else is known of parking.
#[derive(Debug, Default)]
pub struct Parked {
    keys: HashMap<String, u64>,
    /// Events that never got as far as a key; each stands for itself.
    keyless: u64,
    recent: Vec<u64>,
    /// When the oldest was parked, nanoseconds since 1970.
    oldest: Option<i64>,
    /// Units whose dead letters somebody removed by hand; nobody knows of which keys.
    missing: u64,
    /// Messages among the letters that none of ours wrote: those that a claim found beyond what its record counts.
    foreign: u64,
}

/// How many more keys may be parked now, and which setting says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Keys.
    pub keys: usize,
    /// What keeps it from being more.
    pub bound: Bound,
}

/// What bounds parking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `max_parked_keys` is 0.
    Never,
    /// `max_parked_keys` keys are parked.
    Full(usize),
    /// `max_failing_keys` were newly parked among the last events.
    Failing(usize),
    /// The module is on probation: the one before takes over.
    Probation,
}

impl Bound {
    /// Why an event is not parked, as the end of a sentence; nothing where nobody wants it parked.
    #[must_use]
    pub fn explain(self, handler: &str) -> String {
        match self {
            Self::Never | Self::Probation => String::new(),
            Self::Full(most) => format!(
                "; {most} keys are parked, and no more may be; hint: look at them with `millstream dead {handler}`, mend the \
                 module, deploy it and take them up with `millstream redrive {handler} --all`; or raise max_parked_keys"
            ),
            Self::Failing(most) => format!(
                "; {most} keys were parked within {FAILING_WITHIN} events, so it is the module, not the events; hint: look \
                 at them with `millstream dead {handler}`, mend the module and deploy it, then `millstream redrive {handler} \
                 --all`; if it is the events, raise max_failing_keys"
            ),
        }
    }
}

/// How many keys are newly parked with these.
pub(crate) fn newly(parks: &[Park]) -> usize {
    parks.iter().flat_map(|park| &park.units).filter(|unit| unit.first).count()
}

impl Parked {
    /// What a claim finds: units by key, none for those without one, and after how many events keys were newly parked.
    #[must_use]
    pub fn new(units: HashMap<Option<String>, u64>, recent: Vec<u64>, oldest: Option<i64>) -> Self {
        let mut parked = Self { recent, oldest, ..Self::default() };
        for (key, units) in units {
            match key {
                Some(key) => drop(parked.keys.insert(key, units)),
                None => parked.keyless = units,
            }
        }
        parked
    }

    /// Whether nothing is parked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parked keys; an event without a key counts as one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len().saturating_add(usize::try_from(self.keyless).unwrap_or(usize::MAX))
    }

    /// Whether this key is parked.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Units that are parked under this key.
    #[must_use]
    pub fn units(&self, key: Option<&str>) -> u64 {
        match key {
            Some(key) => self.keys.get(key).copied().unwrap_or_default(),
            None => self.keyless,
        }
    }

    /// The same, where there should be so many units in all, and so many of those that were found are messages of others.
    #[must_use]
    pub fn of_so_many(self, in_line: u64, foreign: u64) -> Self {
        let missing = in_line.saturating_sub(self.in_line().saturating_sub(foreign));
        Self { missing, foreign, ..self }
    }

    /// How many more were found than there should be.
    #[must_use]
    pub fn beyond(&self, in_line: u64) -> u64 {
        self.in_line().saturating_sub(in_line)
    }

    /// Units whose dead letters somebody removed by hand.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Messages that were counted as units, and are none.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Units that are parked, all in all, and those whose letters are gone.
    #[must_use]
    pub fn in_line(&self) -> u64 {
        (self.keys.values().sum::<u64>() + self.keyless + self.missing).saturating_sub(self.foreign)
    }

    /// All of them, in no order.
    #[must_use]
    pub fn keys(&self) -> Vec<Option<String>> {
        let keyless = (self.keyless > 0).then_some(None);
        self.keys.keys().cloned().map(Some).chain(keyless).collect()
    }

    /// When the oldest was parked, nanoseconds since 1970.
    #[must_use]
    pub fn oldest(&self) -> Option<i64> {
        self.oldest.filter(|_| !self.is_empty())
    }

    /// The oldest is this one now.
    pub fn set_oldest(&mut self, oldest: Option<i64>) {
        self.oldest = oldest;
    }

    /// How many more keys may be parked, so many events after the generation began.
    #[must_use]
    pub fn room(&self, settings: &Settings, delivered: u64, on_probation: bool) -> Room {
        if settings.max_parked_keys == 0 {
            return Room { keys: 0, bound: Bound::Never };
        }
        if on_probation {
            return Room { keys: 0, bound: Bound::Probation };
        }
        let recent = self.recent.iter().filter(|at| **at + FAILING_WITHIN > delivered).count();
        let left = settings.max_parked_keys.saturating_sub(self.len());
        let failing = settings.max_failing_keys.saturating_sub(recent);
        if left <= failing {
            return Room { keys: left, bound: Bound::Full(settings.max_parked_keys) };
        }
        Room { keys: failing, bound: Bound::Failing(settings.max_failing_keys) }
    }

    /// These are set aside, so many events after the generation began, at this time.
    pub fn park(&mut self, parks: &[Park], delivered: u64, now: i64) {
        if parks.is_empty() {
            return;
        }
        if self.is_empty() {
            self.oldest = Some(now);
        }
        self.recent.retain(|at| *at + FAILING_WITHIN > delivered);
        for unit in parks.iter().flat_map(|park| &park.units) {
            match &unit.key {
                Some(key) => *self.keys.entry(key.clone()).or_default() += 1,
                None => self.keyless += 1,
            }
            if unit.first {
                self.recent.push(delivered);
            }
        }
    }

    /// So many units of a key are set aside no more.
    pub fn unpark(&mut self, key: Option<&str>, units: u64) {
        let Some(key) = key else {
            self.keyless = self.keyless.saturating_sub(units);
            return;
        };
        if let Some(left) = self.keys.get_mut(key) {
            *left = left.saturating_sub(units);
            if *left == 0 {
                self.keys.remove(key);
            }
        }
    }

    /// A key is given up, with so many messages that none of ours wrote.
    pub fn discard(&mut self, key: &str, foreign: u64) {
        self.keys.remove(key);
        self.foreign = self.foreign.saturating_sub(foreign);
    }

    /// After how many events keys were newly parked.
    #[must_use]
    pub fn recent(&self) -> Vec<u64> {
        self.recent.clone()
    }

    /// Another module has yet to fail.
    pub fn begin_anew(&mut self) {
        self.recent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Fault;
    use crate::journal::ParkedUnit;

    /// Its place among the classes: a fault that is added here belongs there too.
    fn place(fault: Fault) -> usize {
        match fault {
            Fault::Undecodable => 0,
            Fault::KeyTooLong => 1,
            Fault::Unreadable => 2,
            Fault::Refused => 3,
            Fault::TooLarge => 4,
            Fault::Trap => 5,
            Fault::Fuel => 6,
            Fault::Memory => 7,
            Fault::Output => 8,
            Fault::Answer => 9,
        }
    }

    #[test]
    fn every_fault_is_a_class() {
        for (index, class) in CLASSES.iter().take(10).enumerate() {
            let fault = Fault::named(class);
            assert_eq!((fault.to_string().as_str(), place(fault)), (*class, index));
        }
        assert_eq!(CLASSES[10], FOLLOWS);
    }

    fn park(key: Option<&str>, first: bool) -> Park {
        let text = String::new;
        let unit = ParkedUnit { key: key.map(str::to_owned), class: text(), reason: text(), backtrace: text(), first };
        let (stream, subject, headers, payload) = (text(), text(), Vec::new(), Vec::new());
        Park { stream, sequence: 1, stored: 1, subject, headers, payload, units: vec![unit] }
    }

    #[test]
    fn a_key_is_parked_until_its_last_unit_is_taken_up() {
        let mut parked = Parked::default();
        parked.park(&[park(Some("a"), true), park(Some("a"), false), park(None, true)], 10, 5);
        assert_eq!((parked.len(), parked.units(Some("a")), parked.units(None), parked.oldest()), (2, 2, 1, Some(5)));
        assert_eq!(parked.in_line(), 3);
        let parked = Parked::new(HashMap::from([(Some("a".to_owned()), 2), (None, 1)]), Vec::new(), None);
        let mut parked = parked.of_so_many(5, 0);
        assert_eq!((parked.missing(), parked.in_line(), parked.len()), (2, 5, 2));
        parked.unpark(None, 1);
        assert_eq!((parked.missing(), parked.in_line()), (2, 4));
        let mut parked = Parked::new(HashMap::from([(Some("a".to_owned()), 2), (None, 1)]), Vec::new(), Some(5));
        parked.unpark(Some("a"), 1);
        assert!(parked.has("a"));
        parked.unpark(Some("a"), 1);
        parked.unpark(None, 1);
        assert!(parked.is_empty() && parked.oldest().is_none());
    }

    #[test]
    fn messages_of_others_are_no_units_in_line() {
        let found = HashMap::from([(Some("a".to_owned()), 3), (Some("b".to_owned()), 2), (None, 1)]);
        let mut parked = Parked::new(found, Vec::new(), None).of_so_many(4, 2);
        assert_eq!((parked.missing(), parked.foreign(), parked.in_line()), (0, 2, 4));
        parked.park(&[park(Some("a"), false)], 1, 1);
        assert_eq!(parked.in_line(), 5);
        // Removed by hand, as the hint says, nothing is missing.
        let found = HashMap::from([(Some("a".to_owned()), 4), (None, 1)]);
        let claimed = Parked::new(found, Vec::new(), None).of_so_many(5, 0);
        assert_eq!((claimed.missing(), claimed.foreign(), claimed.in_line()), (0, 0, 5));
        // Given up with the key.
        parked.discard("b", 2);
        assert_eq!((parked.has("b"), parked.foreign(), parked.in_line()), (false, 0, 5));
    }

    #[test]
    fn room_ends_where_too_many_are_parked_or_too_many_fail_in_a_row() {
        let mut parked = Parked::default();
        let settings =
            |all, failing| Settings { max_parked_keys: all, max_failing_keys: failing, ..Settings::default() };
        assert_eq!(parked.room(&settings(0, 10), 0, false), Room { keys: 0, bound: Bound::Never });
        assert_eq!(parked.room(&settings(5, 10), 0, true), Room { keys: 0, bound: Bound::Probation });
        assert_eq!(parked.room(&settings(5, 3), 0, false), Room { keys: 3, bound: Bound::Failing(3) });
        for (number, key) in ["a", "b", "c"].iter().enumerate() {
            parked.park(&[park(Some(key), true), park(Some(key), false)], number as u64, 1);
        }
        assert_eq!(parked.room(&settings(5, 3), 2, false), Room { keys: 0, bound: Bound::Failing(3) });
        assert_eq!(parked.room(&settings(5, 3), 1001, false), Room { keys: 2, bound: Bound::Full(5) });
        assert_eq!(parked.room(&settings(4, 10), 1001, false), Room { keys: 1, bound: Bound::Full(4) });
        parked.begin_anew();
        assert_eq!(parked.room(&settings(50, 3), 2, false), Room { keys: 3, bound: Bound::Failing(3) });
    }
}
