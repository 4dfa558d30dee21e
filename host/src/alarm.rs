//! When somebody should be told, and when it is over. In: how a handler looks, every few seconds, and which alerts are raised.
//! Out: those to raise and those to clear. Pure: time comes in, what is raised lives elsewhere, so several hosts agree. Never:
//! takes noise for a trend, a pause, a start or a rebuild for a fault, or one good moment for a recovery.

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
    /// How full its streams and buckets are, those that have limits; none where nobody looked yet.
    pub near: Option<&'a [Near]>,
}

/// How full something is.
#[derive(Clone, Debug, PartialEq)]
pub struct Near {
    /// 1 is full.
    pub share: f64,
    /// In words.
    pub text: String,
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

/// How long an alarm's condition has held, and how long its opposite.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bad: Option<i64>,
    good: Option<i64>,
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

    /// Looks. `raised` says which alerts are raised already, by whomever, and how many events waited then.
    pub fn look(&mut self, now: i64, sight: &Sight<'_>, raised: impl Fn(Alarm) -> Option<u64>) -> Vec<Change> {
        self.remember(now, sight);
        let events = if sight.handler.lag_fault.is_empty() { sight.handler.events() } else { 0 };
        self.peak = raised(Alarm::LagGrowing).map(|then| then.max(events).max(self.peak.unwrap_or_default()));
        let raised = |alarm: Alarm| raised(alarm).is_some();
        let mut changes = Vec::new();
        for alarm in Alarm::ALL {
            let verdict = self.verdict(alarm, now, sight);
            let held = self.held.entry(alarm).or_default();
            match verdict {
                Verdict::Bad(text) => {
                    held.good = None;
                    let began = *held.bad.get_or_insert(now);
                    if now - began >= alarm.raise_after() && !raised(alarm) {
                        let since = self.still.filter(|_| alarm == Alarm::Stuck).unwrap_or(began);
                        changes.push(Change::Raise { alarm, since, text });
                    }
                }
                Verdict::Unclear => *held = Held::default(),
                Verdict::Good => {
                    held.bad = None;
                    let began = *held.good.get_or_insert(now);
                    if now - began >= alarm.clear_after() && raised(alarm) {
                        changes.push(Change::Clear { alarm });
                    }
                }
                Verdict::Mute => {
                    *held = Held::default();
                    if raised(alarm) {
                        changes.push(Change::Clear { alarm });
                    }
                }
            }
        }
        changes
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

        self.retrying = match handler.state.as_str() {
            RETRYING => Some((self.retrying.take().map_or(now, |(since, _)| since), handler.reason.clone())),
            // On its way to the next try.
            lag::STARTING => self.retrying.take(),
            _ => None,
        };

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
