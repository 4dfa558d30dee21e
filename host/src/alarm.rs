//! When somebody should be told, and when it is over. In: how a handler looks, every few seconds, and which alerts are raised.
//! Out: those to raise and those to clear. Pure: time comes in, what is raised lives elsewhere, so several hosts agree. Never:
//! takes noise for a trend, a pause, a start or a rebuild for a fault, or one good moment for a recovery.

mod kind;
mod rules;
mod trail;

use std::collections::HashMap;

use crate::overview::Handler;
use crate::settings::Settings;

pub use kind::Alarm;
use rules::Verdict;
pub(crate) use rules::{NEARLY, NOT_ANY_MORE};
use trail::Trail;

/// Looks that are further apart say nothing about the time between: the machine or the server was away.
const GAP: i64 = 10 * SECOND;

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

/// What is remembered of one handler from look to look.
#[derive(Debug, Default)]
pub struct Watch {
    /// When it was first looked at.
    first: i64,
    last: i64,
    trail: Trail,
    /// Events decided, and since when that has not changed while some waited.
    decided: u64,
    still: Option<i64>,
    /// Since when it is starting.
    starting: Option<i64>,
    /// It has never been caught up since it began with its first event.
    is_new: bool,
    /// When more events were lost or parked than before.
    grew: HashMap<Alarm, (u64, Option<i64>)>,
    held: HashMap<Alarm, Held>,
}

impl Watch {
    /// Of a handler that was not there a moment ago: it begins with its first event.
    #[must_use]
    pub fn of_new() -> Self {
        Self { is_new: true, ..Self::default() }
    }

    /// Looks. `raised` says which alerts are raised already, by whomever.
    pub fn look(&mut self, now: i64, sight: &Sight<'_>, raised: impl Fn(Alarm) -> bool) -> Vec<Change> {
        self.remember(now, sight);
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
        if self.last == 0 || !(0..=GAP).contains(&(now - self.last)) {
            let is_new = self.is_new || (self.last == 0 && handler.counts.delivered == 0);
            *self = Self { first: now, is_new, grew: std::mem::take(&mut self.grew), ..Self::default() };
        }
        self.last = now;
        self.starting = (handler.state == "starting").then(|| self.starting.unwrap_or(now));

        let decided = handler.counts.delivered + handler.lag.iter().map(|row| row.position).sum::<u64>();
        let waiting = handler.events() > 0;
        let moved = std::mem::replace(&mut self.decided, decided) != decided;
        self.still = (waiting && !self.is_muted(now, sight)).then(|| self.still.filter(|_| !moved).unwrap_or(now));

        if self.is_muted(now, sight) || sight.rebuilding {
            self.trail.clear();
        } else if handler.lag_fault.is_empty() {
            self.trail.push(now, handler.events(), handler.oldest_seconds());
            self.is_new &= handler.events() > 0 || handler.counts.delivered == 0;
        }
        for (alarm, count) in [(Alarm::EventsLost, handler.counts.lost), (Alarm::DeadLetters, handler.counts.parked)] {
            let (before, when) = self.grew.entry(alarm).or_insert((count, None));
            if count > *before {
                *when = Some(now);
            }
            *before = count;
        }
    }

    /// Paused by a person, or on its way to its first event: nothing that it leaves undone is a fault.
    fn is_muted(&self, now: i64, sight: &Sight<'_>) -> bool {
        sight.handler.desired == crate::registry::Desired::Paused
            || self.starting.is_some_and(|since| now - since < STARTING)
    }
}

#[cfg(test)]
mod tests;
