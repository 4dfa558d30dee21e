//! Which units of a batch are set aside. In: a staged batch, the keys that are parked, those that this batch is to blame for, what the
//! guest refused. Out: the routes to leave alone, and the units as a record holds them. Pure. Never: lets a unit pass one of its
//! key that is set aside.

use std::collections::{BTreeMap, HashMap};

use super::{BACKTRACE_BYTES, FOLLOWS, LETTER_ROOM, REASON_BYTES, Room};
use crate::decision::{Fault, Undecided};
use crate::intake::Arrival;
use crate::journal::{Park, ParkedUnit};
use crate::sandbox::{str_slice, wire};

/// What a unit is guilty of.
#[derive(Clone, Debug)]
pub(crate) struct Blamed {
    pub(crate) class: Fault,
    pub(crate) reason: String,
    pub(crate) backtrace: String,
}

impl Blamed {
    pub(crate) fn unit(&self, key: Option<&str>) -> ParkedUnit {
        ParkedUnit {
            key: key.map(str::to_owned),
            class: self.class.to_string(),
            reason: head(&self.reason, REASON_BYTES),
            backtrace: head(&self.backtrace, BACKTRACE_BYTES),
            first: true,
        }
    }
}

/// Keys whose next unit in the batch fails, by what it is guilty of.
pub(crate) type Culprits = HashMap<String, Blamed>;

/// The units of a batch that are set aside, by event.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    units: BTreeMap<usize, Vec<ParkedUnit>>,
}

fn follower(key: &str) -> ParkedUnit {
    ParkedUnit {
        key: Some(key.to_owned()),
        class: FOLLOWS.to_owned(),
        reason: "an earlier event of its key is parked".to_owned(),
        backtrace: String::new(),
        first: false,
    }
}

/// The beginning of a text, of so many bytes at most.
fn head(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

impl Aside {
    pub(crate) fn add(&mut self, event: usize, unit: ParkedUnit) {
        self.units.entry(event).or_default().push(unit);
    }

    pub(crate) fn follow(&mut self, event: usize, key: &str) {
        self.add(event, follower(key));
    }

    pub(crate) fn is_aside(&self, event: usize) -> bool {
        self.units.contains_key(&event)
    }

    /// How many events have a unit that is set aside.
    pub(crate) fn events(&self) -> u64 {
        self.units.len() as u64
    }

    /// Sets aside what the guest could not decode, units of parked keys, and those of `culprits`. Answers the routes to leave alone.
    pub(crate) fn begin(
        &mut self,
        staged: &wire::Staged,
        is_parked: &dyn Fn(&str) -> bool,
        culprits: Option<&Culprits>,
    ) -> Vec<u32> {
        for rejection in &staged.rejections {
            let reason = str_slice(&staged.blob, rejection.reason).to_owned();
            let blamed = Blamed { class: Fault::Undecodable, reason, backtrace: String::new() };
            if !self.is_aside(rejection.event as usize) {
                self.add(rejection.event as usize, blamed.unit(None));
            }
        }
        let rejected: Vec<usize> = self.units.keys().copied().collect();
        let name = |key: &wire::Key| str_slice(&staged.blob, key.name);
        let mut parked: Vec<bool> = staged.keys.iter().map(|key| is_parked(name(key))).collect();
        let mut skip = Vec::new();
        for (number, route) in (0..).zip(&staged.routes) {
            let event = route.event as usize;
            let Some(key) = staged.keys.get(route.key as usize).map(name) else { continue };
            if !rejected.is_empty() && rejected.binary_search(&event).is_ok() {
                skip.push(number);
                continue;
            }
            let Some(parked) = parked.get_mut(route.key as usize) else { continue };
            if *parked {
                self.follow(event, key);
            } else if let Some(blamed) = culprits.and_then(|culprits| culprits.get(key)) {
                self.add(event, blamed.unit(Some(key)));
                *parked = true;
            } else {
                continue;
            }
            skip.push(number);
        }
        skip
    }

    /// Sets aside what the guest refused, and what came after it for the same key: the guest left that alone.
    ///
    /// # Errors
    /// A guest that did not.
    pub(crate) fn refused(
        &mut self,
        staged: &wire::Staged,
        outcome: &wire::Outcome,
        skip: &[u32],
    ) -> Result<(), Undecided> {
        let mut from: HashMap<u32, (u32, &wire::Refusal)> = HashMap::with_capacity(outcome.refusals.len());
        for refusal in &outcome.refusals {
            let Some(route) = staged.routes.get(refusal.route as usize) else { continue };
            let first = from.entry(route.key).or_insert((refusal.route, refusal));
            if refusal.route < first.0 {
                *first = (refusal.route, refusal);
            }
        }
        if from.is_empty() {
            return Ok(());
        }
        let after = |route: u32| {
            let key = staged.routes.get(route as usize).map(|route| route.key);
            key.and_then(|key| from.get(&key)).is_some_and(|(refused, _)| route >= *refused)
        };
        let changed = outcome.changes.iter().map(|change| change.route);
        if let Some(route) = changed.chain(outcome.effects.iter().map(|effect| effect.route)).find(|one| after(*one)) {
            let event = staged.routes.get(route as usize).map_or(0, |route| route.event as usize);
            let reason = "the handler refused a unit and did not leave a later one of its key alone";
            return Err(Undecided::at(event, Fault::Answer, reason));
        }
        for (number, route) in (0..).zip(&staged.routes) {
            let Some((refused, refusal)) = from.get(&route.key).filter(|(refused, _)| number >= *refused) else {
                continue;
            };
            if skip.binary_search(&number).is_ok() {
                continue;
            }
            let key = staged.keys.get(route.key as usize).map(|key| str_slice(&staged.blob, key.name));
            let key = key.unwrap_or_default();
            if number == *refused {
                let reason = str_slice(&outcome.blob, refusal.reason).to_owned();
                let blamed = Blamed { class: Fault::Refused, reason, backtrace: String::new() };
                self.add(route.event as usize, blamed.unit(Some(key)));
            } else {
                self.follow(route.event as usize, key);
            }
        }
        Ok(())
    }

    /// The events with units that are set aside, for a record.
    ///
    /// # Errors
    /// The first event with which too many keys would be parked, or that no dead letter can hold.
    pub(crate) fn parks(
        self,
        stream: &str,
        arrivals: &[Arrival],
        room: Room,
        letter_bytes: usize,
    ) -> Result<Vec<Park>, Undecided> {
        let mut left = room.keys;
        let mut parks = Vec::with_capacity(self.units.len());
        for (event, units) in self.units {
            let Some(arrival) = arrivals.get(event) else { continue };
            for unit in units.iter().filter(|unit| unit.first) {
                left = left.checked_sub(1).ok_or_else(|| Undecided::Guilty {
                    index: Some(event),
                    class: Fault::named(&unit.class),
                    reason: unit.reason.clone(),
                    backtrace: unit.backtrace.clone(),
                })?;
            }
            let park = park(stream, arrival, units);
            if park.event_bytes() + LETTER_ROOM > letter_bytes {
                let reason = "the event is so large that no dead letter can hold it beside what is wrong with it; \
                              hint: raise the server's max_payload by 16 KiB";
                return Err(Undecided::at(event, Fault::TooLarge, reason));
            }
            parks.push(park);
        }
        Ok(parks)
    }
}

fn park(stream: &str, arrival: &Arrival, units: Vec<ParkedUnit>) -> Park {
    let headers = arrival.message.headers.iter().flat_map(async_nats::HeaderMap::iter);
    let headers = headers.flat_map(|(name, values)| {
        values.iter().map(move |value| (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned()))
    });
    Park {
        stream: stream.to_owned(),
        sequence: arrival.sequence,
        stored: arrival.stored,
        subject: arrival.message.subject.to_string(),
        headers: headers.collect(),
        payload: arrival.message.payload.to_vec(),
        units,
    }
}
