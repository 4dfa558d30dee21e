//! The virtual clock of a scenario. In: what sets and cancels timers. Out: what fires next. Never: moves unless an
//! event or the test moves it.

use std::collections::{BTreeMap, HashMap};

use millstream_saga::Outgoing;

/// A timer, a deadline or a wait.
#[derive(Clone, Debug)]
pub(super) struct Alarm {
    pub(super) id: String,
    /// When it fires, in nanoseconds since 1970.
    pub(super) due: i64,
    /// What the host wrote for itself.
    pub(super) body: Vec<u8>,
    pub(super) correlation: String,
    pub(super) causation: String,
}

/// Time, and what waits for it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: Option<i64>,
    set: u64,
    alarms: BTreeMap<(i64, u64), Alarm>,
    places: HashMap<String, (i64, u64)>,
}

impl Clock {
    /// The time, if there was one yet.
    pub(super) const fn now(&self) -> Option<i64> {
        self.now
    }

    /// Moves on to that time, never back.
    pub(super) fn move_to(&mut self, time: i64) {
        self.now = Some(self.now.map_or(time, |now| now.max(time)));
    }

    /// Notes what is to fire, or what no longer is.
    pub(super) fn note(&mut self, outgoing: &Outgoing) {
        let now = self.now.unwrap_or_default();
        let (id, due, body, correlation, causation) = match outgoing {
            Outgoing::Timer { id, due, body, correlation, causation } => (id, *due, body, correlation, causation),
            Outgoing::Wait { id, after_ms, body, correlation, causation } => {
                let after = i64::try_from(*after_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                (id, now.saturating_add(after), body, correlation, causation)
            }
            Outgoing::Cancel { id } => return self.cancel(id),
            Outgoing::Message(_) => return,
        };
        self.cancel(id);
        self.set += 1;
        let (correlation, causation) = (correlation.clone(), causation.clone());
        let alarm = Alarm { id: id.clone(), due, body: body.clone(), correlation, causation };
        self.places.insert(id.clone(), (due, self.set));
        self.alarms.insert((due, self.set), alarm);
    }

    /// The next to fire up to that time; what is due at the same time fires in the order it was set.
    pub(super) fn fire(&mut self, until: i64) -> Option<Alarm> {
        let place = *self.alarms.first_key_value()?.0;
        if place.0 > until {
            return None;
        }
        let alarm = self.alarms.remove(&place)?;
        self.places.remove(&alarm.id);
        self.move_to(alarm.due);
        Some(alarm)
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<i64> {
        self.alarms.first_key_value().map(|((due, _), _)| *due)
    }

    fn cancel(&mut self, id: &str) {
        if let Some(place) = self.places.remove(id) {
            self.alarms.remove(&place);
        }
    }
}
