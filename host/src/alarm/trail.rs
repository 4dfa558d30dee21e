//! Where a handler's lag is going. In: lag as it was seen. Out: whether it rises, rests, or cannot be told. Pure. Never: takes a
//! burst that passes for a rise: what counts is how low the lag gets between bursts.
//!
//! A window is cut into four quarters, and each is known by its lowest lag. Lag rises where each quarter's lowest is well above the one
//! before, by more than the lag moves within a quarter, and the oldest event gets older. A short window finds a steep rise within half a
//! minute; a long one finds a rise that is slow, or hidden by bursts.

use std::collections::VecDeque;

use super::SECOND;

/// The windows, and how much older the oldest event must get in them, seconds.
const SHORT: (i64, f64) = (24 * SECOND, 1.0);
const LONG: (i64, f64) = (300 * SECOND, 2.0);

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
        if let Some(slope) = self.rises(SHORT).or_else(|| self.rises(LONG)) {
            return Going::Up(slope);
        }
        match self.quarters(SHORT.0) {
            Some([_, second, third, fourth]) => {
                let noise = (second.range + third.range + fourth.range) / 3.0;
                if fourth.lowest - second.lowest <= noise / 2.0 { Going::Rest } else { Going::Unclear }
            }
            None => Going::Unclear,
        }
    }

    /// Its slope, if it rises all through the window.
    fn rises(&self, (span, older): (i64, f64)) -> Option<f64> {
        let quarters = self.quarters(span)?;
        let [first, second, third, fourth] = quarters;
        let rise = fourth.lowest - first.lowest;
        let steps = [second.lowest - first.lowest, third.lowest - second.lowest, fourth.lowest - third.lowest];
        let noise = quarters.iter().map(|quarter| quarter.range).sum::<f64>() / 4.0;
        let steady = steps.iter().all(|step| *step > 0.0 && *step >= rise / 6.0);
        let rises = rise >= 2.0 && steady && rise >= 2.0 * noise && fourth.youngest - first.youngest >= older;
        // From the middle of the first quarter to that of the last.
        rises.then(|| rise / (span as f64 / SECOND as f64 * 0.75))
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
