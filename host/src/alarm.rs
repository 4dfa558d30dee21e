//! When somebody should be told, and when it is over. In: how a handler looks, every few seconds, and which alerts are raised.
//! Out: those to raise and those to clear. Pure: time comes in, what is raised lives elsewhere, so several hosts agree. Never:
//! takes noise for a trend, a pause, a start or a rebuild for a fault, one good moment for a recovery, or what it saw before another host
//! raised or cleared an alert for a reason to do the opposite.

mod kind;
mod rules;
mod trail;
mod words;

use std::collections::HashMap;

use crate::lag::{self, FAILING, PAUSED, RETRYING, RUNNING};
use crate::overview::Handler;
use crate::registry::Desired;
use crate::settings::Settings;

pub use kind::Alarm;
use rules::Verdict;
pub(crate) use rules::{NEARLY, NOT_ANY_MORE};
use trail::Trail;
pub use words::bring_up_to_date;

/// Looks that are further apart say nothing about the time between: the machine or the server was away.
const GAP: i64 = 10 * SECOND;

/// Whoever has not looked for so long has heard nobody.
const AWAY: i64 = 5 * SECOND;

/// A handler that starts for longer than this does not only start.
const STARTING: i64 = 120 * SECOND;

const SECOND: i64 = 1_000_000_000;

/// How a handler looks.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The handler.
    pub handler: &'a Handler,
    /// What is set for it.
    pub settings: &'a Settings,
    /// Whether another generation of it is being built, or takes over.
    pub rebuilding: bool,
    /// How full its streams and buckets are; none where nobody looked yet.
    pub fullness: Option<&'a Fullness>,
}

/// How full a handler's streams and buckets are.
#[derive(Clone, Debug, PartialEq)]
pub struct Fullness {
    /// When the first of them was looked at, nanoseconds since 1970, by the clock of whoever asks.
    pub taken: i64,
    /// Those that have limits.
    pub near: Vec<Near>,
}

/// How full something is.
#[derive(Clone, Debug, PartialEq)]
pub struct Near {
    /// 1 is full.
    pub share: f64,
    /// In words.
    pub text: String,
}

/// An alert that is raised, by whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Its revision where all hosts see it. One that comes back has another.
    pub revision: u64,
    /// How many events waited then.
    pub events: u64,
}

/// What is to be done about an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is to be raised.
    Raise {
        /// Which.
        alarm: Alarm,
        /// Since when, nanoseconds since 1970.
        since: i64,
        /// What is the matter, with its figures.
        text: String,
    },
    /// It is over.
    Clear {
        /// Which.
        alarm: Alarm,
    },
}

/// How long an alarm's condition has held, and how long its opposite, since it was raised or cleared last.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bad: Option<i64>,
    good: Option<i64>,
    /// Its revision, where it is raised.
    revision: Option<u64>,
    /// When it was first seen so; 0 where it has never been seen otherwise.
    turned: i64,
}

impl Held {
    /// Somebody raised or cleared it: hosts do not see the same at the same time, so what was seen before counts no more.
    fn turns(&mut self, revision: Option<u64>, now: i64) {
        if self.revision != revision {
            *self = Self { bad: None, good: None, revision, turned: now };
        }
    }
}

/// A count that only grows within a generation.
#[derive(Clone, Copy, Debug)]
struct Growth {
    /// As it was before it grew.
    before: u64,
    count: u64,
    /// When it was first seen.
    since: i64,
    /// When it was last seen to grow.
    grew: Option<i64>,
}

impl Growth {
    fn new(count: u64, now: i64) -> Self {
        Self { before: count, count, since: now, grew: None }
    }

    /// What grew longer ago than `lasts` is no news any more.
    fn counts(&mut self, count: u64, now: i64, lasts: i64) {
        if self.grew.is_none_or(|grew| now - grew >= lasts) || count < self.count {
            self.before = self.count.min(count);
        }
        if count > self.count {
            self.grew = Some(now);
        }
        self.count = count;
    }
}

/// What is remembered of one handler from look to look.
#[derive(Debug, Default)]
pub struct Watch {
    /// When it was first looked at, and since when it has been without a pause in which a host may have spoken unheard.
    first: i64,
    came: i64,
    last: i64,
    trail: Trail,
    /// Most events that waited since its lag has been said to grow.
    peak: Option<u64>,
    /// Events decided, when that was seen to change last, and since when it has not while it should have.
    decided: Option<u64>,
    moved: Option<i64>,
    still: Option<i64>,
    /// Since when it is starting.
    starting: Option<i64>,
    /// Since when it has been trying again, and why it did last.
    retrying: Option<(i64, String)>,
    /// Since when it has been running in one go.
    ran: Option<i64>,
    /// It has never been caught up since it began with its first event.
    is_new: bool,
    /// Events lost or parked.
    grew: HashMap<Alarm, Growth>,
    held: HashMap<Alarm, Held>,
}

impl Watch {
    /// Of a handler that was not there a moment ago: it begins with its first event.
    #[must_use]
    pub fn of_new() -> Self {
        Self { is_new: true, ..Self::default() }
    }

    /// Looks. `raised` says which alerts are raised already, as that was seen after the rest.
    pub fn look(&mut self, now: i64, sight: &Sight<'_>, raised: impl Fn(Alarm) -> Option<Raised>) -> Vec<Change> {
        self.remember(now, sight);
        let events = if sight.handler.lag_fault.is_empty() { sight.handler.events() } else { 0 };
        let then = raised(Alarm::LagGrowing).map(|raised| raised.events);
        self.peak = then.map(|then| then.max(events).max(self.peak.unwrap_or_default()));
        let mut changes = Vec::new();
        for alarm in Alarm::ALL {
            let revision = raised(alarm).map(|raised| raised.revision);
            self.held.entry(alarm).or_default().turns(revision, now);
            let verdict = self.verdict(alarm, now, sight);
            changes.extend(self.change(alarm, verdict, now));
        }
        changes
    }

    /// What is to be done about it. What a look saw that found it raised, or cleared, may be older than that.
    fn change(&mut self, alarm: Alarm, verdict: Verdict, now: i64) -> Option<Change> {
        let known = match alarm {
            Alarm::Stuck => self.still,
            Alarm::Failing => self.retrying.as_ref().map(|(since, _)| *since),
            _ => None,
        };
        let held = self.held.entry(alarm).or_default();
        let (is_raised, is_newer) = (held.revision.is_some(), now > held.turned);
        let clear = |is_over: bool| (is_raised && is_newer && is_over).then_some(Change::Clear { alarm });
        match verdict {
            Verdict::Bad(text) => {
                held.good = None;
                let began = *held.bad.get_or_insert(now);
                // One that comes back is another one, and is told again.
                let since = known.unwrap_or(began).max(held.turned);
                let is_due = !is_raised && is_newer && now - since >= alarm.raise_after();
                is_due.then_some(Change::Raise { alarm, since, text })
            }
            Verdict::Good => {
                held.bad = None;
                let began = *held.good.get_or_insert(now);
                clear(now - began >= alarm.clear_after())
            }
            Verdict::Unclear | Verdict::Mute => {
                (held.bad, held.good) = (None, None);
                clear(verdict == Verdict::Mute)
            }
        }
    }

    /// When it was first seen to be raised, or cleared, as it is now; 0 where it has never been seen otherwise.
    fn turned(&self, alarm: Alarm) -> i64 {
        self.held.get(&alarm).map_or(0, |held| held.turned)
    }

    /// Takes down what the rules need to know of the past.
    fn remember(&mut self, now: i64, sight: &Sight<'_>) {
        let handler = sight.handler;
        let is_known = handler.lag_fault.is_empty();
        if self.last == 0 || !(0..=GAP).contains(&(now - self.last)) {
            let is_new = self.is_new || (self.last == 0 && is_known && handler.counts.delivered == 0);
            let grew = std::mem::take(&mut self.grew);
            *self = Self { first: now, came: now, last: now, is_new, grew, ..Self::default() };
        }
        if now - self.last > AWAY {
            self.came = now;
        }
        self.last = now;
        self.starting = (handler.state == lag::STARTING).then(|| self.starting.unwrap_or(now));
        self.remember_tries(now, handler);

        if is_known {
            let decided = handler.counts.delivered + handler.lag.iter().map(|row| row.position).sum::<u64>();
            let moved = self.decided.replace(decided).is_some_and(|before| before != decided);
            self.moved = if moved { Some(now) } else { self.moved };
            let should = handler.events() > 0 && self.should_decide(now, handler);
            self.still = should.then(|| self.still.filter(|_| !moved).unwrap_or(now));
        } else {
            self.still = None;
        }

        if self.is_muted(now, sight) || sight.rebuilding {
            self.trail.clear();
        } else if is_known {
            self.trail.push(now, handler.events(), handler.oldest_seconds());
            self.is_new &= handler.events() > 0 || handler.state != RUNNING;
        }
        let counts = [
            (Alarm::EventsLost, handler.counts.lost, rules::LOST),
            (Alarm::DeadLetters, handler.counts.parked, rules::DEAD),
        ];
        for (alarm, count, lasts) in counts.into_iter().filter(|_| is_known) {
            self.grew.entry(alarm).or_insert_with(|| Growth::new(count, now)).counts(count, now, lasts);
        }
    }

    /// It goes on trying until it has run for a while: what fails may fail each time some seconds after it began.
    fn remember_tries(&mut self, now: i64, handler: &Handler) {
        let runs = handler.state == RUNNING && !rules::has_just_begun(handler, now);
        self.ran = runs.then(|| self.ran.unwrap_or(now));
        self.retrying = match handler.state.as_str() {
            RETRYING => Some((self.retrying.take().map_or(now, |(since, _)| since), handler.reason.clone())),
            // On its way to the next try.
            lag::STARTING => self.retrying.take(),
            RUNNING if !self.has_run(now) => self.retrying.take(),
            _ => None,
        };
    }

    /// Whether it is a fault that nothing is decided, and one that nothing else says.
    fn should_decide(&self, now: i64, handler: &Handler) -> bool {
        let is_paused = handler.desired == Desired::Paused || handler.state == PAUSED;
        !is_paused && !self.is_starting(now) && handler.state != FAILING && !self.is_silent(now, handler)
    }

    /// Paused by a person, or on its way to its first event: nothing that it leaves undone is a fault.
    fn is_muted(&self, now: i64, sight: &Sight<'_>) -> bool {
        sight.handler.desired == Desired::Paused || self.is_starting(now)
    }

    fn is_starting(&self, now: i64) -> bool {
        self.starting.is_some_and(|since| now - since < STARTING)
    }
}

#[cfg(test)]
mod tests;
