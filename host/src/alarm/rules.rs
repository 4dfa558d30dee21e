//! The condition of each alert. In: how the handler looks now, and what is remembered of it. Out: bad, good, or neither, so that what
//! lies in between changes nothing. Pure. Never: raises two alerts for one cause where the other one says more.

use super::trail::Going;
use super::{AWAY, Alarm, Fullness, Growth, Near, SECOND, Sight, Watch, words};
use crate::lag::{FAILING, RUNNING, SILENT_AFTER_SECONDS};
use crate::numbers::Census;
use crate::overview::Handler;
use crate::registry::Desired;

/// A handler of which nobody has ever said anything may be on its way to its host.
const NEVER_REPORTED: i64 = 15 * SECOND;

/// How long whoever begins to watch lets others begin to report.
const BEGINS_WITHIN: i64 = 5 * SECOND;

/// For how long a loss, or a new dead letter, is news.
pub(super) const LOST: i64 = 600 * SECOND;
pub(super) const DEAD: i64 = 60 * SECOND;

/// A handler that decides at least so often moves.
const MOVES: i64 = 10 * SECOND;

/// Whoever has been trying again for so long needs a person: a server that restarts, or changes its leader, is back before.
const RETRIES: i64 = 30 * SECOND;

/// Whoever has run for so long in one go does not try again any more: a document that cannot be put stops a claim after 2 s.
const RAN: i64 = 10 * SECOND;

/// A sample that is no older tells of now, nanoseconds.
const SAMPLED: u64 = 5_000_000_000;

/// What is this full is nearly full, and below that it is not any more.
pub(crate) const NEARLY: f64 = 0.9;
pub(crate) const NOT_ANY_MORE: f64 = 0.85;

/// The kind of a handler that has documents and no instances.
const PROJECTION: &str = "projection";

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
        match alarm {
            Alarm::Lag | Alarm::LagGrowing if handler.desired == Desired::Paused || sight.rebuilding => Verdict::Mute,
            Alarm::Stuck | Alarm::NotReporting | Alarm::Failing | Alarm::Undelivered | Alarm::TimersOverdue
                if handler.desired == Desired::Paused =>
            {
                Verdict::Mute
            }
            Alarm::Failing if let Some((since, reason)) = self.retried(now) => {
                Verdict::Bad(words::retrying(reason, now - since))
            }
            // What was the matter before a start may be the matter again behind it.
            Alarm::Lag | Alarm::LagGrowing | Alarm::Stuck | Alarm::Failing if self.is_starting(now) => Verdict::Unclear,
            Alarm::Undelivered | Alarm::TimersOverdue if self.is_starting(now) => Verdict::Unclear,
            // Figures that could not be read are no figures.
            Alarm::Lag | Alarm::LagGrowing | Alarm::Stuck | Alarm::LimitNear | Alarm::OutcomesDiffer
                if !handler.lag_fault.is_empty() =>
            {
                Verdict::Unclear
            }
            Alarm::Lag => self.lag(sight),
            Alarm::LagGrowing => self.growing(sight),
            Alarm::Stuck => self.stuck(now, sight),
            Alarm::NotReporting => self.not_reporting(now, handler),
            Alarm::Failing => match handler.state.as_str() {
                FAILING => Verdict::Bad(words::failing(handler)),
                RUNNING if self.has_run(now) && now - self.turned(alarm) >= RAN => Verdict::Good,
                _ => Verdict::Unclear,
            },
            Alarm::Parked => match handler.numbers.parked_keys {
                Some(keys) => bad_if(keys > 0, || words::parked(handler, keys, now)),
                None => Verdict::Unclear,
            },
            Alarm::DeadLetters => self.grew(alarm, now, DEAD, words::dead_letters),
            Alarm::EventsLost => self.grew(alarm, now, LOST, words::lost),
            Alarm::CompensationsFailed => {
                instances(handler, |census| census.compensation_failed, words::compensations_failed)
            }
            Alarm::Undelivered if self.is_silent(now, handler) => Verdict::Unclear,
            Alarm::Undelivered => bad_if(handler.undelivered_effects > 0, || words::undelivered(handler)),
            Alarm::TimersOverdue => instances(handler, |census| census.timers_overdue, words::timers_overdue),
            Alarm::LimitNear => match sight.fullness {
                // Each host asks when its turn comes, and not at each look.
                Some(Fullness { taken, near }) if *taken >= self.turned(alarm).max(self.first) => near_limits(near),
                _ => Verdict::Unclear,
            },
            Alarm::OutcomesDiffer => bad_if(!handler.counts.add_up(), || words::outcomes(handler)),
        }
    }

    /// Whether it has been running for so long that it goes on.
    pub(super) fn has_run(&self, now: i64) -> bool {
        self.ran.is_some_and(|since| now - since >= RAN)
    }

    /// Since when it has been trying again, and why, where that is too long. Not while it may have got over it.
    fn retried(&self, now: i64) -> Option<(i64, &str)> {
        self.retrying
            .as_ref()
            .filter(|(since, _)| self.ran.is_none() && now - since >= RETRIES)
            .map(|(since, reason)| (*since, reason.as_str()))
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
            return Verdict::Bad(words::lag(sight.handler));
        }
        if worst < WELL { Verdict::Good } else { Verdict::Unclear }
    }

    fn growing(&self, sight: &Sight<'_>) -> Verdict {
        if !sight.settings.alert_lag_growing {
            return Verdict::Mute;
        }
        match self.trail.going() {
            Going::Up(slope) => Verdict::Bad(words::growing(sight.handler, slope)),
            going => match self.peak {
                None if going == Going::Rest => Verdict::Good,
                // A lag that grows in waves rests between them. It has come down, or does not grow any more for long.
                Some(peak) if sight.handler.events() <= peak / 2 => Verdict::Good,
                Some(_) if self.trail.has_stopped_since(self.turned(Alarm::LagGrowing)) => Verdict::Good,
                _ => Verdict::Unclear,
            },
        }
    }

    fn stuck(&self, now: i64, sight: &Sight<'_>) -> Verdict {
        let after = i64::try_from(sight.settings.alert_stuck_seconds).unwrap_or(i64::MAX).saturating_mul(SECOND);
        if after == 0 {
            return Verdict::Mute;
        }
        if sight.handler.events() == 0 {
            return Verdict::Good;
        }
        // Their own alerts say why nothing is decided.
        let Some(since) = self.still else { return Verdict::Unclear };
        if now - since < after {
            // Whoever has seen nothing decided does not know that anything is.
            let moves = self.moved.is_some_and(|moved| now - moved <= after / 2 && moved > self.turned(Alarm::Stuck));
            return if moves { Verdict::Good } else { Verdict::Unclear };
        }
        Verdict::Bad(words::stuck(sight.handler, now - since))
    }

    pub(super) fn is_silent(&self, now: i64, handler: &Handler) -> bool {
        match handler.reported_seconds_ago {
            Some(ago) => ago > SILENT_AFTER_SECONDS,
            None => now - self.first >= NEVER_REPORTED,
        }
    }

    fn not_reporting(&self, now: i64, handler: &Handler) -> Verdict {
        if handler.desired == Desired::Paused || handler.state == FAILING {
            return Verdict::Mute;
        }
        // Hosts that are all started at once need a moment, and so does whoever was away.
        if now - self.came < BEGINS_WITHIN {
            return Verdict::Unclear;
        }
        match self.is_silent(now, handler) {
            true => Verdict::Bad(words::silent(handler)),
            false if handler.reported_seconds_ago.is_some() => Verdict::Good,
            false => Verdict::Unclear,
        }
    }

    /// Whoever has not watched for as long as it is news cannot know that it is none. Another host may have seen it sooner: what somebody
    /// raised it for may be new, and what was seen before somebody cleared it was told, but for what came with the last look before.
    fn grew(&self, alarm: Alarm, now: i64, lasts: i64, text: fn(u64) -> String) -> Verdict {
        let Some(Growth { before, count, since, grew }) = self.grew.get(&alarm) else { return Verdict::Unclear };
        let turned = self.turned(alarm);
        match grew {
            Some(when) if now - when < lasts && turned - when <= AWAY => Verdict::Bad(text(count - before)),
            _ if now - turned.max(*since) < lasts => Verdict::Unclear,
            _ => Verdict::Good,
        }
    }
}

/// Whether its host began with it a moment ago: the first samples of a claim tell no rates. A handler whose claims end soon may be seen
/// to run at each look, because it waits shortly between two tries.
pub(super) fn has_just_begun(handler: &Handler, now: i64) -> bool {
    let streams = &handler.numbers.streams;
    streams.iter().any(|sample| sample.rates.is_none() && now.abs_diff(sample.time) <= SAMPLED)
}

/// What a saga's census says; a projection has none, and where nobody counted, nobody knows.
fn instances(handler: &Handler, of: fn(&Census) -> u64, text: fn(u64) -> String) -> Verdict {
    match &handler.numbers.census {
        Some(census) if of(census) > 0 => Verdict::Bad(text(of(census))),
        Some(census) if !census.partial => Verdict::Good,
        None if handler.kind == PROJECTION => Verdict::Good,
        _ => Verdict::Unclear,
    }
}

fn near_limits(near: &[Near]) -> Verdict {
    let full: Vec<&str> = near.iter().filter(|near| near.share >= NEARLY).map(|near| near.text.as_str()).collect();
    if !full.is_empty() {
        return Verdict::Bad(full.join("; "));
    }
    if near.iter().all(|near| near.share < NOT_ANY_MORE) { Verdict::Good } else { Verdict::Unclear }
}
