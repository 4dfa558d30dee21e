//! Where a handler's lag is going. In: lag as it was seen. Out: whether it rises, rests, or cannot be told. Pure. Never: takes a
//! burst that passes for a rise: what counts is how low the lag gets between bursts.
//!
//! A window is cut into four quarters, and each is known by its lowest lag. Lag rises where each quarter's lowest is well above the one
//! before, by more than the lag moves to and fro within a quarter, and the oldest event gets older. A short window finds a steep rise
//! within half a minute, unless there were several like it that passed and it is not well above them; a long one finds a rise that is
//! slow, or hidden by bursts.

use std::collections::VecDeque;

use super::SECOND;

/// The windows, and how much older the oldest event must get in them, seconds.
const SHORT: (i64, f64) = (26 * SECOND, 1.0);
const LONG: (i64, f64) = (300 * SECOND, 2.0);

/// By how much a rise must exceed what the lag moves beside it.
const OVER_NOISE: f64 = 3.0;

/// So many rises of half the size that passed make another one nothing new, until it is above them all by this part of itself: a burst
/// that is only somewhat higher than those before is no rise.
const USUAL: usize = 2;
const ABOVE: f64 = 0.75;

/// Points kept at most: one a second, and some.
const POINTS: usize = 400;

#[derive(Clone, Copy, Debug)]
struct Point {
    time: i64,
    events: f64,
    seconds: f64,
}

/// Lag as it was seen, the newest last.
#[derive(Debug, Default)]
pub(super) struct Trail {
    points: VecDeque<Point>,
}

/// Where it is going.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Going {
    /// Up, by so many events a second.
    Up(f64),
    /// Neither is sure.
    Unclear,
    /// Not up.
    Rest,
}

/// A rise all through a window.
#[derive(Clone, Copy, Debug)]
struct Rise {
    span: i64,
    by: f64,
    /// Lowest lag of the last quarter.
    to: f64,
}

/// A quarter of a window.
#[derive(Clone, Copy, Debug)]
struct Quarter {
    lowest: f64,
    range: f64,
    youngest: f64,
}

impl Trail {
    pub(super) fn clear(&mut self) {
        self.points.clear();
    }

    pub(super) fn push(&mut self, time: i64, events: u64, seconds: f64) {
        self.points.push_back(Point { time, events: events as f64, seconds });
        while self.points.len() > POINTS || self.points.front().is_some_and(|first| time - first.time > LONG.0) {
            self.points.pop_front();
        }
    }

    pub(super) fn going(&self) -> Going {
        let Some(last) = self.points.back() else { return Going::Unclear };
        if last.events == 0.0 {
            return Going::Rest;
        }
        let short = self.rises(SHORT).filter(|rise| !self.is_usual(rise));
        if let Some(Rise { span, by, .. }) = short.or_else(|| self.rises(LONG)) {
            // From the middle of the first quarter to that of the last.
            return Going::Up(by / (span as f64 / SECOND as f64 * 0.75));
        }
        match self.quarters(SHORT.0) {
            Some([_, second, third, fourth]) => {
                let noise = (second.range + third.range + fourth.range) / 3.0;
                if fourth.lowest - second.lowest <= noise / 2.0 { Going::Rest } else { Going::Unclear }
            }
            None => Going::Unclear,
        }
    }

    /// Whether it has not risen all through the long window, which has begun no sooner than at that time.
    pub(super) fn has_stopped_since(&self, time: i64) -> bool {
        let is_within = self.points.back().is_some_and(|last| last.time - time >= LONG.0);
        is_within && self.quarters(LONG.0).is_some_and(|[first, .., fourth]| fourth.lowest <= first.lowest)
    }

    /// Its rise, if it rises all through the window.
    fn rises(&self, (span, older): (i64, f64)) -> Option<Rise> {
        let quarters = self.quarters(span)?;
        let [first, second, third, fourth] = quarters;
        let rise = fourth.lowest - first.lowest;
        let steps = [second.lowest - first.lowest, third.lowest - second.lowest, fourth.lowest - third.lowest];
        let steady = steps.iter().all(|step| *step > 0.0 && *step >= rise / 6.0);
        // A steady rise moves by a third of itself within a quarter.
        let noise = quarters.iter().map(|quarter| quarter.range).sum::<f64>() / 4.0 - rise / 3.0;
        let rises = rise >= 2.0 && steady && rise >= OVER_NOISE * noise && fourth.youngest - first.youngest >= older;
        rises.then_some(Rise { span, by: rise, to: fourth.lowest })
    }

    /// Whether there were several like it that passed, and it is not well above them.
    fn is_usual(&self, rise: &Rise) -> bool {
        let peaks = self.passed(rise.span, rise.by / 2.0);
        let highest = peaks.iter().copied().fold(0.0, f64::max);
        peaks.len() >= USUAL && rise.to <= highest + ABOVE * rise.by
    }

    /// How high it was each time that it went up by so much and down again before the window.
    fn passed(&self, span: i64, by: f64) -> Vec<f64> {
        let mut passed = Vec::new();
        let Some(last) = self.points.back() else { return passed };
        let before = self.points.iter().take_while(|point| point.time <= last.time - span).map(|point| point.events);
        let (mut turn, mut is_up) = (f64::INFINITY, false);
        for events in before {
            turn = if is_up { turn.max(events) } else { turn.min(events) };
            if is_up && turn - events >= by {
                passed.push(turn);
                (turn, is_up) = (events, false);
            } else if !is_up && events - turn >= by {
                (turn, is_up) = (events, true);
            }
        }
        passed
    }

    /// The quarters of the last `span`; none where it is not covered.
    fn quarters(&self, span: i64) -> Option<[Quarter; 4]> {
        let from = self.points.back()?.time - span;
        if self.points.front()?.time > from + span / 8 {
            return None;
        }
        let quarter = |number: i64| {
            let (begin, end) = (from + span * number / 4, from + span * (number + 1) / 4);
            let within = |point: &&Point| point.time > begin && point.time <= end;
            let mut found: Option<(Quarter, f64)> = None;
            for point in self.points.iter().filter(within) {
                let (quarter, highest) = found
                    .unwrap_or((Quarter { lowest: point.events, range: 0.0, youngest: point.seconds }, point.events));
                let (lowest, highest) = (quarter.lowest.min(point.events), highest.max(point.events));
                let youngest = quarter.youngest.min(point.seconds);
                found = Some((Quarter { lowest, range: highest - lowest, youngest }, highest));
            }
            found.map(|(quarter, _)| quarter)
        };
        Some([quarter(0)?, quarter(1)?, quarter(2)?, quarter(3)?])
    }
}
