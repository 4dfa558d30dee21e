//! The condition of each alert. In: how the handler looks now, and what is remembered of it. Out: bad, good, or neither, so that what
//! lies in between changes nothing. Pure. Never: raises two alerts for one cause where the other one says more.

use super::trail::Going;
use super::{Alarm, Near, SECOND, Sight, Watch};
use crate::lag::{FAILING, SILENT_AFTER_SECONDS};
use crate::legible::{cut, duration, thousands};
use crate::overview::Handler;
use crate::registry::Desired;

/// A handler of which nobody has ever said anything may be on its way to its host.
const NEVER_REPORTED: i64 = 15 * SECOND;

/// How long whoever begins to watch lets others begin to report.
const BEGINS_WITHIN: i64 = 5 * SECOND;

/// For how long a loss, or a new dead letter, is news.
const LOST: i64 = 600 * SECOND;
const DEAD: i64 = 60 * SECOND;

/// A handler that decides at least so often moves.
const MOVES: i64 = 10 * SECOND;

/// What is this full is nearly full, and below that it is not any more.
pub(crate) const NEARLY: f64 = 0.9;
pub(crate) const NOT_ANY_MORE: f64 = 0.85;

/// Widest reason of others in a text.
const REASON: usize = 200;

/// Below this share of its threshold a lag is well again.
const WELL: f64 = 0.8;

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the matter; with its figures.
    Bad(String),
    /// In between, or unknown.
    Unclear,
    /// It is not.
    Good,
    /// The handler is in a state in which it never is.
    Mute,
}

fn bad_if(condition: bool, text: impl FnOnce() -> String) -> Verdict {
    if condition { Verdict::Bad(text()) } else { Verdict::Good }
}

impl Watch {
    pub(super) fn verdict(&self, alarm: Alarm, now: i64, sight: &Sight<'_>) -> Verdict {
        let handler = sight.handler;
        let muted = self.is_muted(now, sight);
        match alarm {
            Alarm::Lag | Alarm::LagGrowing if muted || sight.rebuilding => Verdict::Mute,
            Alarm::Stuck | Alarm::NotReporting | Alarm::Failing | Alarm::Undelivered | Alarm::TimersOverdue
                if muted =>
            {
                Verdict::Mute
            }
            Alarm::Lag | Alarm::LagGrowing | Alarm::Stuck if !handler.lag_fault.is_empty() => Verdict::Unclear,
            Alarm::Lag => self.lag(sight),
            Alarm::LagGrowing => self.growing(sight),
            Alarm::Stuck => self.stuck(now, sight),
            Alarm::NotReporting => self.not_reporting(now, handler),
            Alarm::Failing => bad_if(handler.state == FAILING, || cut(&handler.reason, REASON)),
            Alarm::Parked => bad_if(handler.numbers.parked_keys > 0, || {
                let oldest = handler.numbers.oldest_parked.map_or(0.0, |oldest| (now - oldest) as f64 / 1e9);
                let keys = thousands(handler.numbers.parked_keys);
                format!("{keys} keys are parked, the oldest for {}", duration(oldest))
            }),
            Alarm::DeadLetters => self.grew(alarm, now, DEAD, "events are parked"),
            Alarm::EventsLost => self.grew(alarm, now, LOST, "events were dropped before they were decided"),
            Alarm::CompensationsFailed => {
                let failed = handler.numbers.census.as_ref().map_or(0, |census| census.compensation_failed);
                bad_if(failed > 0, || format!("the compensation of {} instances failed", thousands(failed)))
            }
            Alarm::Undelivered => bad_if(handler.undelivered_effects > 0, || {
                format!("nobody takes {} of its effects", thousands(handler.undelivered_effects as u64))
            }),
            Alarm::TimersOverdue => {
                let overdue = handler.numbers.census.as_ref().map_or(0, |census| census.timers_overdue);
                bad_if(overdue > 0, || format!("{} timers are overdue", thousands(overdue)))
            }
            Alarm::LimitNear => match sight.near {
                Some(near) => near_limits(near),
                None => Verdict::Unclear,
            },
            Alarm::OutcomesDiffer => outcomes(handler),
        }
    }

    fn lag(&self, sight: &Sight<'_>) -> Verdict {
        let (most, oldest) = (sight.settings.alert_lag_events, sight.settings.alert_lag_seconds);
        if most == 0 && oldest == 0 {
            return Verdict::Mute;
        }
        // The first of all events may be years ago: a handler that works its way up to now is behind by design.
        if self.is_new && self.still.is_none_or(|since| self.last - since < MOVES) {
            return Verdict::Unclear;
        }
        let (events, seconds) = (sight.handler.events(), sight.handler.oldest_seconds());
        let share = |value: f64, limit: u64| if limit == 0 { 0.0 } else { value / limit as f64 };
        let worst = share(events as f64, most).max(share(seconds, oldest));
        if worst >= 1.0 {
            let told = format!("{} events wait, the oldest for {}", thousands(events), duration(seconds));
            return Verdict::Bad(told);
        }
        if worst < WELL { Verdict::Good } else { Verdict::Unclear }
    }

    fn growing(&self, sight: &Sight<'_>) -> Verdict {
        if !sight.settings.alert_lag_growing {
            return Verdict::Mute;
        }
        match self.trail.going() {
            Going::Up(slope) => {
                let (events, seconds) = (sight.handler.events(), sight.handler.oldest_seconds());
                Verdict::Bad(format!(
                    "lag grows by about {slope:.1} events a second: {} wait, the oldest for {}",
                    thousands(events),
                    duration(seconds)
                ))
            }
            Going::Unclear => Verdict::Unclear,
            Going::Rest => Verdict::Good,
        }
    }

    fn stuck(&self, now: i64, sight: &Sight<'_>) -> Verdict {
        let after = i64::try_from(sight.settings.alert_stuck_seconds).unwrap_or(i64::MAX).saturating_mul(SECOND);
        // Their own alerts say why nothing is decided.
        if after == 0 || sight.handler.state == FAILING || self.is_silent(now, sight.handler) {
            return Verdict::Mute;
        }
        let Some(since) = self.still else { return Verdict::Good };
        if now - since < after {
            return if now - since <= after / 2 { Verdict::Good } else { Verdict::Unclear };
        }
        let (events, stood) = (sight.handler.events(), duration((now - since) as f64 / 1e9));
        Verdict::Bad(format!("{} events wait, and nothing was decided for {stood}", thousands(events)))
    }

    fn is_silent(&self, now: i64, handler: &Handler) -> bool {
        match handler.reported_seconds_ago {
            Some(ago) => ago > SILENT_AFTER_SECONDS,
            None => now - self.first >= NEVER_REPORTED,
        }
    }

    fn not_reporting(&self, now: i64, handler: &Handler) -> Verdict {
        if handler.desired == Desired::Paused || handler.state == FAILING {
            return Verdict::Mute;
        }
        // Hosts that are all started at once need a moment.
        let is_silent = self.is_silent(now, handler) && now - self.first >= BEGINS_WITHIN;
        bad_if(is_silent, || match handler.reported_seconds_ago {
            Some(ago) => format!("host {} has said nothing for {}", cut(&handler.host, REASON), duration(ago)),
            None => "no host says that it runs it".to_owned(),
        })
    }

    fn grew(&self, alarm: Alarm, now: i64, lasts: i64, what: &str) -> Verdict {
        let Some((count, when)) = self.grew.get(&alarm) else { return Verdict::Unclear };
        bad_if(when.is_some_and(|when| now - when < lasts), || format!("{} {what}", thousands(*count)))
    }
}

fn near_limits(near: &[Near]) -> Verdict {
    let full: Vec<&str> = near.iter().filter(|near| near.share >= NEARLY).map(|near| near.text.as_str()).collect();
    if !full.is_empty() {
        return Verdict::Bad(full.join("; "));
    }
    if near.iter().all(|near| near.share < NOT_ANY_MORE) { Verdict::Good } else { Verdict::Unclear }
}

fn outcomes(handler: &Handler) -> Verdict {
    let counts = &handler.counts;
    bad_if(!counts.add_up(), || {
        let told = counts.applied + counts.irrelevant + counts.ignored + counts.parked + counts.expired;
        format!("{} events were delivered, but {} have an outcome", thousands(counts.delivered), thousands(told))
    })
}
