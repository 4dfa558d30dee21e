use super::*;
use crate::lag::Lag;
use crate::numbers::Census;
use crate::registry::Desired;

const START: i64 = 1_700_000_000 * SECOND;

/// A handler that is watched every two seconds, and the alerts that are raised.
struct Case {
    watch: Watch,
    handler: Handler,
    settings: Settings,
    rebuilding: bool,
    near: Vec<Near>,
    raised: Vec<Alarm>,
    now: i64,
    /// Raised and cleared, with seconds since the start.
    told: Vec<(i64, Alarm, bool)>,
}

impl Case {
    fn new() -> Self {
        let mut handler = Handler { state: "running".to_owned(), host: "h1".to_owned(), ..Handler::default() };
        handler.reported_seconds_ago = Some(0.5);
        handler.counts.delivered = 1000;
        handler.counts.applied = 1000;
        let settings = Settings::default();
        let (raised, told, near) = (Vec::new(), Vec::new(), Vec::new());
        Self { watch: Watch::default(), handler, settings, rebuilding: false, near, raised, now: START, told }
    }

    fn decided(&mut self, events: u64) {
        self.handler.counts.delivered += events;
        self.handler.counts.applied += events;
    }

    fn waits(&mut self, events: u64, seconds: f64) {
        self.handler.lag = vec![Lag { events, seconds, ..Lag::default() }];
    }

    /// Looks, and goes on two seconds.
    fn look(&mut self) {
        let near = Some(self.near.as_slice());
        let sight = Sight { handler: &self.handler, settings: &self.settings, rebuilding: self.rebuilding, near };
        let raised = self.raised.clone();
        for change in self.watch.look(self.now, &sight, |alarm| raised.contains(&alarm)) {
            let at = (self.now - START) / SECOND;
            match change {
                Change::Raise { alarm, .. } => {
                    self.raised.push(alarm);
                    self.told.push((at, alarm, true));
                }
                Change::Clear { alarm } => {
                    self.raised.retain(|raised| *raised != alarm);
                    self.told.push((at, alarm, false));
                }
            }
        }
        self.now += 2 * SECOND;
    }

    /// Looks for so long.
    fn stays(&mut self, seconds: i64) {
        for _ in 0..seconds / 2 {
            self.look();
        }
    }

    /// A stream that takes and a handler that decides so many events a second, for so long; `noise` waits on top of that.
    fn flows(&mut self, lag: &mut f64, rates: (f64, f64), seconds: i64, mut noise: impl FnMut() -> f64) {
        let (takes, decides) = rates;
        for _ in 0..seconds / 2 {
            *lag = (*lag + 2.0 * (takes - decides)).max(0.0);
            let all = (*lag + noise()).round();
            self.waits(all as u64, if decides > 0.0 { all / decides } else { all });
            self.decided((2.0 * decides) as u64);
            self.look();
        }
    }

    fn since_start(&self) -> i64 {
        (self.now - START) / SECOND
    }

    fn raises(&self, alarm: Alarm) -> usize {
        self.told.iter().filter(|told| told.1 == alarm && told.2).count()
    }
}

/// Numbers that look like chance and are the same each time.
fn dice(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn growing_lag_is_told_within_half_a_minute_once_and_cleared_after_recovery() {
    for (takes, decides, noise) in
        [(100.0_f64, 50.0, 0.0), (110.0, 100.0, 20.0), (11.0, 10.0, 0.0), (2000.0, 1500.0, 1500.0), (6.0, 0.0, 0.0)]
    {
        let mut case = Case::new();
        let (mut lag, mut throw) = (0.0, dice(7));
        case.flows(&mut lag, (takes.min(decides), decides), 60, || noise * throw());
        assert_eq!(case.told, [], "keeps up: {takes}/{decides}");
        let began = case.since_start();
        case.flows(&mut lag, (takes, decides), 120, || noise * throw());
        let told = case.told.iter().find(|told| told.1 == Alarm::LagGrowing).copied().expect("it is told");
        // Two seconds for a host's report to be written and read.
        assert!(told.0 - began <= 28, "{takes}/{decides}: after {} s", told.0 - began);
        assert_eq!(case.raises(Alarm::LagGrowing), 1);
        let ends = case.since_start();
        case.flows(&mut lag, (takes, takes * 4.0 + 100.0), 120, || 0.0);
        let cleared = case.told.iter().find(|told| told.1 == Alarm::LagGrowing && !told.2).expect("it is cleared");
        assert!((10..=60).contains(&(cleared.0 - ends)), "{takes}/{decides}: after {} s", cleared.0 - ends);
        assert_eq!((case.raises(Alarm::LagGrowing), case.raised.len()), (1, 0), "{:?}", case.told);
    }
}

#[test]
fn lag_that_grows_slowly_or_among_bursts_is_told_in_some_minutes() {
    for (slope, noise) in [(1.0, 30.0), (10.0, 800.0)] {
        let mut case = Case::new();
        let (mut lag, mut throw) = (0.0, dice(3));
        case.flows(&mut lag, (100.0 + slope, 100.0), 900, || noise * throw());
        let first = case.told.iter().find(|told| told.1 == Alarm::LagGrowing).expect("it is told");
        assert!(first.0 <= 330, "{slope}: after {} s", first.0);
        assert_eq!(case.raises(Alarm::LagGrowing), 1, "it does not flap: {:?}", case.told);
    }
}

/// How often a queue whose events come in bursts, at that share of what it can do, is said to grow in two hours.
fn queue(busy: f64, seed: u64) -> usize {
    let (mut throw, mut case, mut lag) = (dice(seed), Case::new(), 0.0_f64);
    for _ in 0..3600 {
        for _ in 0..20 {
            let takes = if throw() < 0.2 { 2000.0 * busy * throw() } else { 0.0 };
            lag = (lag + takes - 200.0).max(0.0);
        }
        case.waits(lag as u64, lag / 2000.0);
        case.decided(2000);
        case.look();
    }
    case.raises(Alarm::LagGrowing)
}

#[test]
fn noise_never_raises_and_neither_do_bursts() {
    // Queues that are three fifths and nine tenths busy, for two hours each. The second one lags for a minute now and then.
    for (busy, most) in [(0.6, 0), (0.9, 3)] {
        let raised: Vec<usize> = (1..20).map(|seed| queue(busy, seed)).collect();
        assert!(raised.iter().all(|raised| *raised <= most), "{busy}: {raised:?}");
    }
    for (every, burst, decides) in [(20, 5000.0, 500.0), (60, 100_000.0, 2500.0), (10, 900.0, 100.0), (45, 20.0, 1.0)] {
        let mut case = Case::new();
        let mut lag = 0.0;
        for round in 0..900 {
            if (round * 2) % every < 2 {
                lag += burst;
            }
            case.flows(&mut lag, (0.0, decides), 2, || 0.0);
        }
        assert_eq!(case.told, [], "{burst} every {every} s");
    }
}

#[test]
fn a_lag_that_stays_high_without_growing_is_not_growing() {
    let mut throw = dice(5);
    for noise in [0.0, 5000.0] {
        let mut case = Case::new();
        let mut lag = 50_000.0;
        case.flows(&mut lag, (100.0, 100.0), 7200, || noise * throw());
        assert_eq!(case.told, []);
    }
}

#[test]
fn a_threshold_is_told_once_though_lag_moves_about_it() {
    let mut case = Case::new();
    case.settings.alert_lag_events = 1000;
    case.stays(10);
    for round in 0..300_u64 {
        case.waits(if round % 2 == 0 { 1100 } else { 950 }, 1.0);
        case.decided(10);
        case.look();
    }
    assert_eq!(case.told, [], "never for long");
    case.waits(1100, 1.0);
    for round in 0..300 {
        case.waits(if round % 5 == 4 { 900 } else { 1100 }, 1.0);
        case.decided(10);
        case.look();
    }
    assert_eq!((case.raises(Alarm::Lag), case.told.len()), (1, 1), "{:?}", case.told);
    case.waits(700, 1.0);
    for _ in 0..10 {
        case.decided(10);
        case.look();
    }
    assert_eq!(case.told.len(), 2);
    assert_eq!(case.raised, []);
}

#[test]
fn the_age_of_the_oldest_event_has_a_threshold_too() {
    let mut case = Case::new();
    case.settings.alert_lag_seconds = 10;
    for age in 0..20 {
        case.waits(3, f64::from(age) * 2.0);
        case.decided(10);
        case.look();
    }
    let [(at, Alarm::Lag, true)] = case.told[..] else { panic!("{:?}", case.told) };
    assert!((10..=16).contains(&at), "after {at} s");
}

#[test]
fn a_new_handler_that_works_its_way_through_old_events_raises_no_threshold() {
    let mut case = Case::new();
    case.settings.alert_lag_events = 1000;
    case.watch = Watch::of_new();
    case.handler.counts = crate::journal::Counts::default();
    let mut lag = 100_000.0;
    case.flows(&mut lag, (10.0, 1000.0), 110, || 0.0);
    assert_eq!((case.told.clone(), lag), (Vec::new(), 0.0));
    case.flows(&mut lag, (1500.0, 1000.0), 10, || 0.0);
    assert_eq!(case.raised, [Alarm::Lag], "once it was caught up, it counts");
}

#[test]
fn stuck_is_told_after_its_time_and_never_while_anything_is_decided() {
    let mut case = Case::new();
    case.waits(5, 3.0);
    for _ in 0..100 {
        case.decided(1);
        case.look();
    }
    assert_eq!(case.told, []);
    let began = case.since_start();
    case.stays(60);
    let [(at, Alarm::Stuck, true)] = case.told[..] else { panic!("{:?}", case.told) };
    assert!((28..=32).contains(&(at - began)), "after {} s", at - began);
    for _ in 0..4 {
        case.decided(1);
        case.look();
    }
    assert_eq!((case.told.len(), case.raised.len()), (2, 0));

    let mut off = Case::new();
    off.settings.alert_stuck_seconds = 0;
    off.waits(5, 3.0);
    off.stays(300);
    assert_eq!(off.told, []);
}

#[test]
fn a_silent_host_is_told_within_ten_seconds_and_nothing_else_with_it() {
    let mut case = Case::new();
    case.stays(20);
    case.waits(5, 1.0);
    for silent in 0..60 {
        case.handler.reported_seconds_ago = Some(f64::from(silent) * 2.0);
        case.look();
    }
    let [(at, Alarm::NotReporting, true)] = case.told[..] else { panic!("{:?}", case.told) };
    assert!(at - 20 <= 10, "after {} s", at - 20);
    case.handler.reported_seconds_ago = Some(0.2);
    case.waits(0, 0.0);
    case.stays(20);
    assert_eq!((case.told.len(), case.raised.len()), (2, 0));
}

#[test]
fn a_handler_that_no_host_takes_is_told() {
    let mut case = Case::new();
    case.handler.reported_seconds_ago = None;
    case.handler.state = crate::lag::NOT_STARTED.to_owned();
    case.stays(14);
    assert_eq!(case.told, [], "a host may be on its way");
    case.stays(10);
    assert_eq!(case.raised, [Alarm::NotReporting]);
}

#[test]
fn pause_start_and_rebuild_are_no_alerts_and_end_those_there_were() {
    let mut case = Case::new();
    case.settings.alert_lag_events = 10;
    let mut lag = 0.0;
    case.flows(&mut lag, (100.0, 10.0), 40, || 0.0);
    case.raised.sort();
    assert_eq!(case.raised, [Alarm::Lag, Alarm::LagGrowing]);
    case.rebuilding = true;
    case.flows(&mut lag, (100.0, 10.0), 300, || 0.0);
    assert_eq!(case.raised, [], "while another generation is built");
    case.rebuilding = false;
    case.flows(&mut lag, (10.0, 4000.0), 60, || 0.0);
    let before = case.told.len();
    case.handler.desired = Desired::Paused;
    case.handler.state = "paused".to_owned();
    case.handler.reported_seconds_ago = Some(3600.0);
    case.flows(&mut lag, (100.0, 0.0), 300, || 0.0);
    assert_eq!(case.told.len(), before, "{:?}", case.told);
    case.handler.desired = Desired::Running;
    case.handler.state = "starting".to_owned();
    case.handler.reported_seconds_ago = Some(0.5);
    case.flows(&mut lag, (100.0, 0.0), 60, || 0.0);
    assert_eq!(case.told.len(), before, "{:?}", case.told);
    case.flows(&mut lag, (100.0, 0.0), 120, || 0.0);
    assert!(case.raised.contains(&Alarm::Stuck), "a start has an end: {:?}", case.told);
}

#[test]
fn what_a_handler_did_while_nobody_looked_is_nobody_s_fault() {
    let mut case = Case::new();
    case.waits(5, 1.0);
    case.stays(20);
    case.now += 3600 * SECOND;
    case.stays(20);
    assert_eq!(case.told, []);
    case.stays(20);
    assert_eq!(case.raised, [Alarm::Stuck]);
}

#[test]
fn conditions_of_the_moment_are_raised_and_cleared() {
    type Turn = fn(&mut Case);
    let set: [(Alarm, Turn, Turn); 9] = [
        (
            Alarm::Failing,
            |case| {
                case.handler.state = crate::lag::FAILING.to_owned();
                case.handler.reason = "event ORDERS:2\u{1b} cannot be applied".to_owned();
            },
            |case| case.handler.state = "running".to_owned(),
        ),
        (Alarm::Parked, |case| case.handler.numbers.parked_keys = 2, |case| case.handler.numbers.parked_keys = 0),
        (
            Alarm::DeadLetters,
            |case| {
                case.look();
                case.handler.counts.parked += 1;
                case.handler.counts.delivered += 1;
            },
            |_| {},
        ),
        (
            Alarm::EventsLost,
            |case| {
                case.look();
                case.handler.counts.lost += 7;
            },
            |case| {
                for _ in 0..300 {
                    case.look();
                }
            },
        ),
        (
            Alarm::CompensationsFailed,
            |case| {
                case.handler.numbers.census = Some(Census { compensation_failed: 1, ..Census::default() });
            },
            |case| case.handler.numbers.census = None,
        ),
        (Alarm::Undelivered, |case| case.handler.undelivered_effects = 3, |case| case.handler.undelivered_effects = 0),
        (
            Alarm::TimersOverdue,
            |case| case.handler.numbers.census = Some(Census { timers_overdue: 4, ..Census::default() }),
            |case| case.handler.numbers.census = None,
        ),
        (
            Alarm::LimitNear,
            |case| case.near = vec![Near { share: 0.93, text: "stream X is 93 % full".to_owned() }],
            |case| case.near = vec![Near { share: 0.5, text: String::new() }],
        ),
        (
            Alarm::OutcomesDiffer,
            |case| case.handler.counts.applied -= 1,
            |case| case.handler.counts.applied = case.handler.counts.delivered,
        ),
    ];
    for (alarm, happens, passes) in set {
        let mut case = Case::new();
        case.stays(10);
        happens(&mut case);
        case.stays(30);
        assert_eq!(case.raised, [alarm]);
        passes(&mut case);
        case.stays(70);
        assert_eq!((case.raised.len(), case.told.len()), (0, 2), "{alarm:?}: {:?}", case.told);
    }
}

#[test]
fn another_host_s_alert_is_cleared_only_on_what_this_one_has_seen() {
    let mut case = Case::new();
    // It was raised elsewhere; this host has just begun.
    case.raised = vec![Alarm::LagGrowing, Alarm::Stuck];
    let mut lag = 1000.0;
    case.flows(&mut lag, (100.0, 0.0), 20, || 0.0);
    assert!(case.raised.contains(&Alarm::LagGrowing), "{:?}", case.told);
    case.flows(&mut lag, (100.0, 0.0), 40, || 0.0);
    assert_eq!(case.raised, [Alarm::LagGrowing, Alarm::Stuck]);
}
