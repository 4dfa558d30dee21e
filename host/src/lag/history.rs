//! How lag moves. In: samples of one handler and input stream, about one a second. Out: rates over the last seconds, and when nothing
//! will be undecided. Pure: time comes in with each sample. Never: takes what a purge removed for decided, or goes on where the
//! position went back.

use std::collections::VecDeque;

use crate::numbers::Rates;

/// Rates are over so long: enough to be even, and short enough that a stop is seen while it matters.
const WINDOW: i64 = 10_000_000_000;

/// The least time that rates are told of.
const LEAST: i64 = 1_500_000_000;

/// After a longer silence between two samples everything begins anew.
const GAP: i64 = 30_000_000_000;

/// One sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// When it was taken, nanoseconds since 1970.
    pub time: i64,
    /// Undecided events.
    pub events: u64,
    /// Events decided so far, by any count that only grows.
    pub decided: u64,
    /// Last decided sequence.
    pub position: u64,
    /// Which claim of its host: what another host decided meanwhile, nobody counted here.
    pub claim: u64,
}

impl Moment {
    fn follows(&self, before: &Self) -> bool {
        self.claim == before.claim
            && self.time > before.time
            && self.time - before.time <= GAP
            && self.decided >= before.decided
            && self.position >= before.position
    }
}

/// What came and went until one moment.
#[derive(Clone, Copy, Debug)]
struct Point {
    time: i64,
    arrived: u64,
    decided: u64,
}

/// The samples of the last seconds.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
    last: Option<Moment>,
}

impl History {
    /// Adds a sample, the newest.
    pub fn add(&mut self, moment: Moment) {
        let before = self.last.replace(moment).filter(|before| moment.follows(before));
        let arrived = match before {
            Some(before) => {
                let left = moment.events + (moment.decided - before.decided);
                // What is missing was removed from the stream: nobody decided it, and it did not come.
                self.points.back().map_or(0, |point| point.arrived) + left.saturating_sub(before.events)
            }
            None => {
                self.points.clear();
                0
            }
        };
        self.points.push_back(Point { time: moment.time, arrived, decided: moment.decided });
        while self.points.get(1).is_some_and(|second| second.time <= moment.time - WINDOW) {
            self.points.pop_front();
        }
    }

    /// The rates of the last seconds; none as long as too few are known.
    #[must_use]
    pub fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        let time = last.time - first.time;
        if time < LEAST {
            return None;
        }
        let seconds = time as f64 / 1e9;
        let in_rate = (last.arrived - first.arrived) as f64 / seconds;
        let out_rate = (last.decided - first.decided) as f64 / seconds;
        let trend = in_rate - out_rate;
        let events = self.last.map_or(0, |last| last.events);
        Some(Rates { in_rate, out_rate, trend, eta_seconds: None }.with_end_of(events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream and its handler, in steps of a second.
    #[derive(Default)]
    struct Trial {
        history: History,
        now: Moment,
    }

    impl Trial {
        /// So many come, and so many of those that wait are decided.
        fn second(&mut self, come: u64, decided: u64) -> Option<Rates> {
            self.now.time += 1_000_000_000;
            let decided = decided.min(self.now.events + come);
            self.now.events = self.now.events + come - decided;
            self.now.decided += decided;
            self.now.position += decided;
            self.history.add(self.now);
            self.history.rates()
        }

        fn seconds(&mut self, count: u64, come: u64, decided: u64) -> Rates {
            let rates = (0..count).map(|_| self.second(come, decided)).last();
            rates.flatten().expect("enough seconds")
        }
    }

    fn rates(in_rate: f64, out_rate: f64, eta_seconds: Option<f64>) -> Rates {
        Rates { in_rate, out_rate, trend: in_rate - out_rate, eta_seconds }
    }

    #[test]
    fn nothing_is_told_before_there_are_two_seconds() {
        let mut trial = Trial::default();
        assert_eq!((trial.second(5, 5), trial.second(5, 5)), (None, None));
        assert_eq!(trial.second(5, 5), Some(rates(5.0, 5.0, None)));
    }

    #[test]
    fn a_constant_stream_has_its_rate_and_no_end() {
        assert_eq!(Trial::default().seconds(60, 200, 200), rates(200.0, 200.0, None));
        let mut behind = Trial::default();
        assert_eq!(behind.seconds(60, 200, 150), rates(200.0, 150.0, None), "it grows: it will never be over");
    }

    #[test]
    fn a_burst_is_worked_off_at_the_pace_of_the_last_seconds() {
        let mut trial = Trial::default();
        trial.seconds(20, 100, 100);
        trial.second(10_000, 500);
        let after = trial.seconds(10, 100, 500);
        assert_eq!(after, rates(100.0, 500.0, Some(5500.0 / 400.0)), "the burst itself is out of the window");
        assert_eq!(trial.seconds(40, 100, 500), rates(100.0, 100.0, None), "and then it is over");
    }

    #[test]
    fn a_stop_is_seen_within_the_window() {
        let mut trial = Trial::default();
        trial.seconds(30, 100, 100);
        let slowing = trial.seconds(5, 100, 0);
        assert_eq!((slowing.in_rate, slowing.out_rate), (100.0, 50.0));
        assert_eq!(trial.seconds(5, 100, 0), rates(100.0, 0.0, None));
    }

    #[test]
    fn what_a_purge_removes_was_not_decided_and_did_not_come() {
        let mut trial = Trial::default();
        trial.seconds(20, 100, 50);
        trial.now.events = 0;
        let purged = trial.second(0, 0).expect("rates");
        assert_eq!((purged.in_rate, purged.out_rate, purged.eta_seconds), (90.0, 45.0, None));
        assert_eq!(trial.seconds(10, 100, 100), rates(100.0, 100.0, None));
    }

    #[test]
    fn another_life_begins_anew() {
        for other in [
            Moment { time: 61_000_000_000, decided: 0, position: 6_000, events: 0, claim: 0 },
            Moment { time: 61_000_000_000, decided: 6_000, position: 10, events: 0, claim: 0 },
            Moment { time: 5_000_000_000, decided: 6_000, position: 6_000, events: 0, claim: 0 },
            Moment { time: 99_000_000_000, decided: 6_000, position: 6_000, events: 0, claim: 0 },
            Moment { time: 61_000_000_000, decided: 6_000, position: 6_000, events: 0, claim: 1 },
        ] {
            let mut trial = Trial::default();
            trial.seconds(60, 100, 100);
            trial.history.add(other);
            assert_eq!(trial.history.rates(), None, "{other:?}");
            trial.now = other;
            assert_eq!(trial.seconds(2, 30, 30), rates(30.0, 30.0, None));
        }
    }

    #[test]
    fn a_host_that_takes_over_again_tells_the_rates_since_then() {
        let mut trial = Trial::default();
        trial.seconds(20, 150, 150);
        // Another host decides; this one sees what comes after the place where it stood.
        for _ in 0..9 {
            trial.second(150, 0);
        }
        trial.now = Moment { claim: 1, position: trial.now.position + trial.now.events, events: 0, ..trial.now };
        assert_eq!(trial.second(150, 150), None, "too little is known of so far");
        for _ in 0..30 {
            trial.second(150, 150);
            let found = trial.history.rates().unwrap_or(rates(150.0, 150.0, None));
            assert_eq!(found, rates(150.0, 150.0, None));
        }
    }

    #[test]
    fn samples_that_come_late_give_the_same_rates() {
        let mut history = History::default();
        for (second, decided) in [(0, 0), (1, 40), (7, 280), (8, 320), (19, 760)] {
            history.add(Moment { time: second * 1_000_000_000, decided, position: decided, ..Moment::default() });
        }
        assert_eq!(history.rates(), Some(rates(40.0, 40.0, None)));
    }
}
