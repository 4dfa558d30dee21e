use super::*;
use crate::lag::Lag;
use crate::numbers::{Census, Measured, Rates};
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
    /// How many events waited when lag was said to grow.
    then: u64,
    /// What was said last of each that was raised, and since when it was.
    texts: HashMap<Alarm, String>,
    since: HashMap<Alarm, i64>,
}

impl Case {
    fn new() -> Self {
        let mut handler = Handler { state: "running".to_owned(), host: "h1".to_owned(), ..Handler::default() };
        handler.reported_seconds_ago = Some(0.5);
        handler.counts.delivered = 1000;
        handler.counts.applied = 1000;
        let settings = Settings::default();
        let (raised, told, near) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            watch: Watch::default(),
            handler,
            settings,
            rebuilding: false,
            near,
            raised,
            now: START,
            told,
            then: 0,
            texts: HashMap::new(),
            since: HashMap::new(),
        }
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
        let fullness = Fullness { taken: self.now, near: self.near.clone() };
        let (handler, settings, rebuilding) = (&self.handler, &self.settings, self.rebuilding);
        let sight = Sight { handler, settings, rebuilding, fullness: Some(&fullness) };
        let (raised, then) = (self.raised.clone(), Raised { revision: 1, events: self.then });
        for change in self.watch.look(self.now, &sight, |alarm| raised.contains(&alarm).then_some(then)) {
            let at = (self.now - START) / SECOND;
            match change {
                Change::Raise { alarm, text, since } => {
                    self.texts.insert(alarm, text);
                    self.since.insert(alarm, since);
                    if alarm == Alarm::LagGrowing {
                        self.then = self.handler.events();
                    }
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

    /// Looks once while it tries again.
    fn tries(&mut self) {
        self.handler.state = RETRYING.to_owned();
        self.handler.reason = "bucket chain refused: no answer within 2s".to_owned();
        self.look();
    }

    /// Looks once while it runs, and its host has sampled it: in a claim that has just begun no rates are known.
    fn runs(&mut self, has_just_begun: bool) {
        self.handler.state = RUNNING.to_owned();
        self.handler.reason.clear();
        let rates = (!has_just_begun).then(Rates::default);
        self.handler.numbers.streams = vec![Measured { time: self.now, rates, ..Measured::default() }];
        self.decided(10);
        self.look();
    }

    /// Claims that end soon, for so long: so many looks see it try again, and so many see it run.
    fn flaps(&mut self, tries: usize, runs: usize, has_just_begun: bool, seconds: i64) {
        let ends = self.now + seconds * SECOND;
        while self.now < ends {
            (0..tries).for_each(|_| self.tries());
            (0..runs).for_each(|_| self.runs(has_just_begun));
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
fn bursts_that_passed_hide_no_lag_that_grows_above_them() {
    let cases = [(20.0, 300.0, 20.0), (20.0, 300.0, 10.0), (20.0, 300.0, 5.0), (90.0, 1000.0, 50.0)];
    for (decides, burst, grows) in cases {
        let (mut case, mut lag, mut throw) = (Case::new(), 0.0, dice(9));
        case.flows(&mut lag, (0.0, decides), 40, || 0.0);
        for _ in 0..2 {
            lag += burst;
            case.flows(&mut lag, (0.0, decides), 20, || 0.0);
        }
        assert_eq!((case.told.clone(), lag), (Vec::new(), 0.0));
        let passes = case.since_start() + (burst / grows) as i64;
        case.flows(&mut lag, (decides + grows, decides), 120, || 5.0 * throw());
        let [(at, Alarm::LagGrowing, true)] = case.told[..] else { panic!("{grows}: {:?}", case.told) };
        assert!(at - passes <= 28, "{grows}: {} s after it was above them", at - passes);
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
        (
            Alarm::Parked,
            |case| case.handler.numbers.parked_keys = Some(2),
            |case| case.handler.numbers.parked_keys = Some(0),
        ),
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
            |case| case.handler.numbers.census = Some(Census::default()),
        ),
        (Alarm::Undelivered, |case| case.handler.undelivered_effects = 3, |case| case.handler.undelivered_effects = 0),
        (
            Alarm::TimersOverdue,
            |case| case.handler.numbers.census = Some(Census { timers_overdue: 4, ..Census::default() }),
            |case| case.handler.numbers.census = Some(Census::default()),
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

#[test]
fn whoever_has_not_watched_for_long_clears_nothing_that_takes_long_to_know() {
    let mut case = Case::new();
    case.raised = vec![Alarm::DeadLetters, Alarm::EventsLost, Alarm::Stuck, Alarm::NotReporting, Alarm::Failing];
    case.handler.counts.lost = 7;
    case.handler.state = crate::lag::FAILING.to_owned();
    case.handler.reported_seconds_ago = Some(100.0);
    case.waits(5, 30.0);
    case.stays(58);
    // Silence is told by the words of the one that stopped; all else is as it was found.
    assert_eq!(case.told, [(2, Alarm::NotReporting, false)]);
    case.stays(4);
    assert_eq!(case.told[1..], [(60, Alarm::DeadLetters, false)]);
    case.stays(540);
    assert_eq!(case.told[2..], [(600, Alarm::EventsLost, false)]);
    assert_eq!(case.raised, [Alarm::Stuck, Alarm::Failing]);
}

/// What hosts that look at one handler see of each other: the alerts that are raised, with revision and since when.
#[derive(Default)]
struct Shared {
    raised: HashMap<Alarm, (u64, i64)>,
    revision: u64,
    /// Raised and cleared, and since when.
    told: Vec<(Alarm, bool, i64)>,
}

impl Shared {
    fn look(&mut self, watch: &mut Watch, now: i64, handler: &Handler, fullness: &Fullness) {
        let settings = Settings::default();
        let sight = Sight { handler, settings: &settings, rebuilding: false, fullness: Some(fullness) };
        let stand = self.raised.clone();
        let raised = |alarm: Alarm| stand.get(&alarm).map(|(revision, _)| Raised { revision: *revision, events: 0 });
        for change in watch.look(now, &sight, raised) {
            match change {
                Change::Raise { alarm, since, .. } => {
                    self.revision += 1;
                    self.raised.insert(alarm, (self.revision, since));
                    self.told.push((alarm, true, since));
                }
                Change::Clear { alarm } => {
                    let (_, since) = self.raised.remove(&alarm).expect("it was raised");
                    self.told.push((alarm, false, since));
                }
            }
        }
    }

    /// What was told, which is one alert and its end.
    fn once(&self, alarm: Alarm) -> bool {
        matches!(self.told[..], [(raised, true, since), (cleared, false, same)]
            if raised == alarm && cleared == alarm && since == same)
    }
}

#[test]
fn a_limit_is_told_once_by_hosts_that_ask_at_different_times() {
    for offset in 0..30 {
        let (mut shared, handler) = (Shared::default(), Case::new().handler);
        let share = |at: i64| if (100..250).contains(&at) { 0.95 } else { 0.1 };
        let mut hosts = [(0, Watch::default()), (offset, Watch::default())];
        for at in 0..500 {
            for (begun, watch) in hosts.iter_mut().filter(|(begun, _)| at >= *begun && (at - begun) % 2 == 0) {
                let asked = at - (at - *begun) % 30;
                let near = vec![Near { share: share(asked), text: String::new() }];
                let fullness = Fullness { taken: START + asked * SECOND, near };
                shared.look(watch, START + at * SECOND, &handler, &fullness);
            }
            let is_raised = shared.raised.contains_key(&Alarm::LimitNear);
            // Whoever sees it last may do something about it as late.
            let settles = [100, 250].iter().any(|turn| (*turn..*turn + 32).contains(&at));
            assert!(settles || is_raised == (share(at) > NEARLY), "{offset}: {at}: {:?}", shared.told);
        }
        assert!(shared.once(Alarm::LimitNear), "{offset}: {:?}", shared.told);
    }
}

#[test]
fn a_host_that_was_away_raises_nothing_on_what_it_knew_before() {
    let (mut case, mut watch, mut shared) = (Case::new(), Watch::default(), Shared::default());
    let full = |taken| Fullness { taken, near: vec![Near { share: 0.95, text: String::new() }] };
    shared.look(&mut watch, case.now, &case.handler, &full(START));
    assert_eq!(shared.told, [(Alarm::LimitNear, true, START)]);
    // Meanwhile another host clears it.
    shared.raised.clear();
    case.now += GAP + SECOND;
    for _ in 0..5 {
        shared.look(&mut watch, case.now, &case.handler, &full(START));
        case.now += 2 * SECOND;
    }
    assert_eq!(shared.told.len(), 1, "{:?}", shared.told);
    shared.look(&mut watch, case.now, &case.handler, &full(case.now));
    assert_eq!(shared.told[1..], [(Alarm::LimitNear, true, case.now)]);
}

#[test]
fn a_dead_letter_is_told_once_by_hosts_that_look_one_after_the_other() {
    // The second one looks a moment later, or is told of it later.
    for (seed, late) in (1..20).flat_map(|seed| [(seed, 0), (seed, 20)]) {
        let (mut shared, mut handler, mut throw) = (Shared::default(), Case::new().handler, dice(seed));
        let fullness = Fullness { taken: i64::MAX, near: Vec::new() };
        let (mut one, mut other) = (Watch::default(), Watch::default());
        for round in 0..100 {
            for (watch, offset, sees) in [(&mut one, 0, 10), (&mut other, SECOND, 10 + late)] {
                handler.counts.parked = u64::from(round >= sees);
                handler.counts.delivered = 1000 + handler.counts.parked;
                let now = START + round * 2 * SECOND + offset + (throw() * 50_000_000.0) as i64;
                shared.look(watch, now, &handler, &fullness);
            }
        }
        assert!(shared.once(Alarm::DeadLetters), "{seed}, {late}: {:?}", shared.told);
    }
}

#[test]
fn a_look_that_began_before_an_alert_was_raised_or_cleared_does_not_do_the_opposite() {
    let mut case = Case::new();
    case.handler.numbers.parked_keys = Some(0);
    case.stays(10);
    // It is parked, and another host raises it, while this one looks.
    case.raised = vec![Alarm::Parked];
    case.look();
    case.handler.numbers.parked_keys = Some(1);
    case.stays(10);
    // It is taken up again, and the other one clears it.
    case.raised.clear();
    case.look();
    case.handler.numbers.parked_keys = Some(0);
    case.stays(10);
    assert_eq!(case.told, []);
    // What this one has seen since is another thing.
    case.raised = vec![Alarm::Parked];
    case.stays(4);
    case.handler.numbers.parked_keys = Some(1);
    case.stays(4);
    assert_eq!(case.told, [(36, Alarm::Parked, false), (40, Alarm::Parked, true)]);
}

#[test]
fn what_was_seen_before_another_host_raised_an_alert_does_not_clear_it() {
    let begin = |alarm: Alarm, seconds: i64| {
        let mut case = Case::new();
        case.waits(5000, 10.0);
        for _ in 0..seconds / 2 {
            case.runs(false);
        }
        assert_eq!(case.told, []);
        case.raised = vec![alarm];
        case
    };
    let mut runs = begin(Alarm::Failing, 40);
    (0..5).for_each(|_| runs.runs(false));
    assert_eq!(runs.told, [], "it has run for 8 s since");
    runs.runs(false);
    assert_eq!(runs.told, [(50, Alarm::Failing, false)]);

    let mut takes = begin(Alarm::Undelivered, 40);
    (0..5).for_each(|_| takes.runs(false));
    assert_eq!(takes.told, [], "for 8 s since");
    takes.runs(false);
    assert_eq!(takes.told, [(50, Alarm::Undelivered, false)]);

    let mut parks = begin(Alarm::DeadLetters, 100);
    (0..30).for_each(|_| parks.runs(false));
    assert_eq!(parks.told, [], "none was parked for 58 s since");
    parks.runs(false);
    assert_eq!(parks.told, [(160, Alarm::DeadLetters, false)]);

    let mut stands = begin(Alarm::LagGrowing, 400);
    stands.then = 5000;
    (0..150).for_each(|_| stands.runs(false));
    assert_eq!(stands.told, [], "it has stood still for less than five minutes since");
    (0..10).for_each(|_| stands.runs(false));
    assert_eq!(stands.told, [(710, Alarm::LagGrowing, false)]);

    let mut stuck = begin(Alarm::Stuck, 40);
    stuck.stays(20);
    assert_eq!(stuck.told, [], "nothing was decided since");
    stuck.decided(1);
    stuck.stays(10);
    assert_eq!(stuck.told, [(64, Alarm::Stuck, false)]);
}

#[test]
fn an_alert_that_comes_back_has_another_since() {
    type Turn = fn(&mut Case);
    let stuck: Turn = |case| case.waits(5, 3.0);
    let fails: Turn = |case| {
        case.handler.state = RETRYING.to_owned();
        case.handler.reason = "no stream".to_owned();
    };
    let full: Turn = |case| case.near = vec![Near { share: 0.95, text: String::new() }];
    let parked: Turn = |case| case.handler.numbers.parked_keys = Some(1);
    let lost: Turn = |case| case.handler.counts.lost += 1;
    let alarms = [
        (Alarm::Stuck, stuck),
        (Alarm::Failing, fails),
        (Alarm::LimitNear, full),
        (Alarm::Parked, parked),
        (Alarm::EventsLost, lost),
    ];
    for (alarm, happens) in alarms {
        let mut case = Case::new();
        case.stays(10);
        let mut last = 0;
        for _ in 0..3 {
            happens(&mut case);
            case.stays(60);
            assert_eq!(case.raised, [alarm], "{:?}", case.told);
            let since = case.since[&alarm];
            assert!(since > last, "{alarm:?}: {since} after {last}");
            last = since;
            // Another host clears it, and is mistaken.
            case.raised.clear();
        }
    }
}

#[test]
fn a_fresh_host_does_not_take_a_silence_that_it_has_not_heard_for_an_end() {
    for ago in [Some(100.0), None] {
        let mut case = Case::new();
        case.handler.reported_seconds_ago = ago;
        case.handler.state = "not reporting".to_owned();
        case.raised = vec![Alarm::NotReporting];
        case.stays(60);
        assert_eq!(case.told, []);
        // It was away, and takes what it finds for new.
        case.now += 7 * SECOND;
        for since in 0..10 {
            case.handler.reported_seconds_ago = Some(f64::from(since) * 2.0);
            case.look();
        }
        assert_eq!(case.told, [], "{ago:?}");
    }
}

#[test]
fn what_nobody_knows_is_neither_raised_nor_cleared() {
    let mut case = Case::new();
    case.handler.kind = "saga".to_owned();
    case.stays(10);
    case.handler.numbers.parked_keys = Some(1);
    let census = Census { compensation_failed: 1, timers_overdue: 2, ..Census::default() };
    case.handler.numbers.census = Some(census.clone());
    case.handler.undelivered_effects = 3;
    case.stays(30);
    case.raised.sort();
    let raised = [Alarm::Parked, Alarm::CompensationsFailed, Alarm::Undelivered, Alarm::TimersOverdue];
    assert_eq!((case.raised.as_slice(), case.told.len()), (raised.as_slice(), 4));
    for (alarm, text) in [
        (Alarm::Parked, "1 key is parked, the oldest for 0 s"),
        (Alarm::CompensationsFailed, "the compensation of 1 instance failed"),
        (Alarm::TimersOverdue, "2 timers are overdue"),
    ] {
        assert_eq!(case.texts[&alarm], text);
    }
    // Its host is started anew: for a while it knows nothing of what was before.
    case.handler.numbers = crate::numbers::Numbers::default();
    case.handler.undelivered_effects = 0;
    case.handler.state = "starting".to_owned();
    case.stays(20);
    assert_eq!(case.told.len(), 4, "{:?}", case.told);
    // It dies, and what it last said is old.
    case.handler.reported_seconds_ago = Some(60.0);
    case.handler.state = "not reporting".to_owned();
    case.stays(60);
    assert_eq!(case.told.split_off(4), [(62, Alarm::NotReporting, true)]);
    // It stops at its start.
    case.handler.reported_seconds_ago = Some(0.5);
    case.handler.state = crate::lag::FAILING.to_owned();
    case.handler.undelivered_effects = 3;
    case.stays(60);
    let cleared: Vec<Alarm> = case.told.drain(4..).filter(|told| !told.2).map(|told| told.1).collect();
    assert_eq!(cleared, [Alarm::NotReporting]);
    // A count that was broken off may have missed some.
    case.handler.state = "running".to_owned();
    case.handler.undelivered_effects = 0;
    case.handler.numbers.census = Some(Census { partial: true, ..Census::default() });
    case.stays(60);
    case.raised.sort();
    assert_eq!(case.raised, [Alarm::Parked, Alarm::CompensationsFailed, Alarm::TimersOverdue]);
    case.handler.numbers.census = Some(Census::default());
    case.handler.numbers.parked_keys = Some(0);
    case.stays(20);
    assert_eq!(case.raised, []);
}

#[test]
fn counts_that_could_not_be_read_are_no_counts() {
    let mut case = Case::new();
    case.handler.counts.lost = 7;
    case.handler.counts.applied -= 3;
    case.handler.counts.parked = 2;
    case.stays(60);
    assert_eq!(case.raised, [Alarm::OutcomesDiffer]);
    let counts = std::mem::take(&mut case.handler.counts);
    case.handler.lag_fault = "the journal does not answer".to_owned();
    case.stays(20);
    case.handler.lag_fault = String::new();
    case.handler.counts = counts;
    case.stays(60);
    assert_eq!((case.told.len(), case.raised), (1, vec![Alarm::OutcomesDiffer]), "{:?}", case.told);
}

#[test]
fn a_loss_tells_what_is_new() {
    let mut case = Case::new();
    case.handler.counts.lost = 100;
    case.handler.counts.parked = 40;
    case.handler.counts.delivered += 40;
    case.stays(700);
    for (lost, parked, told) in [
        (1, 1, ["up to 1 event was dropped", "1 more event was parked"]),
        (7, 2, ["up to 7 events were dropped", "2 more events were parked"]),
    ] {
        case.handler.counts.lost += lost;
        case.handler.counts.parked += parked;
        case.handler.counts.delivered += parked;
        case.stays(2);
        assert!(case.texts[&Alarm::EventsLost].starts_with(told[0]), "{:?}", case.texts);
        assert!(case.texts[&Alarm::DeadLetters].starts_with(told[1]), "{:?}", case.texts);
        case.stays(700);
        assert_eq!(case.raised, []);
    }
}

#[test]
fn the_time_in_which_it_could_not_decide_does_not_count_as_stuck() {
    type Turn = fn(&mut Case);
    let states: [(&str, Turn); 3] = [
        ("failing", |case| case.handler.state = crate::lag::FAILING.to_owned()),
        ("paused", |case| {
            case.handler.desired = Desired::Paused;
            case.handler.state = "paused".to_owned();
        }),
        ("not reporting", |case| case.handler.reported_seconds_ago = Some(90.0)),
    ];
    for (name, stops) in states {
        let mut case = Case::new();
        case.stays(10);
        case.waits(5, 3.0);
        stops(&mut case);
        case.stays(300);
        // It goes on, and what it last said of itself may be a moment old.
        case.handler.desired = Desired::Running;
        case.handler.reported_seconds_ago = Some(0.5);
        case.stays(4);
        case.handler.state = "running".to_owned();
        let mended = case.since_start();
        case.stays(26);
        assert_eq!(case.raises(Alarm::Stuck), 0, "{name}: {:?}", case.told);
        case.stays(10);
        let stuck = case.told.iter().find(|told| told.1 == Alarm::Stuck).expect("then it is stuck indeed");
        assert!((26..=32).contains(&(stuck.0 - mended)), "{name}: {stuck:?}");
    }
}

#[test]
fn a_lag_that_grows_in_waves_is_told_once() {
    for (period, height) in [(50.0, 700.0), (90.0, 1500.0), (30.0, 300.0)] {
        let mut case = Case::new();
        let (mut lag, begun) = (0.0, case.now);
        for _ in 0..300 {
            let at = (case.now - begun) as f64 / SECOND as f64;
            let wave = height * (at * std::f64::consts::TAU / period).sin();
            case.flows(&mut lag, (120.0, 100.0), 2, || wave.max(0.0));
        }
        let raised = case.told.first().copied();
        assert!(raised.is_some_and(|told| told.1 == Alarm::LagGrowing), "{period}: {raised:?}");
        assert_eq!(case.told.len(), 1, "{period}: {:?}", case.told);
        case.flows(&mut lag, (120.0, 1000.0), 60, || 0.0);
        assert_eq!((case.raises(Alarm::LagGrowing), case.raised.len()), (1, 0), "{period}: {:?}", case.told);
    }
}

#[test]
fn a_lag_that_has_grown_is_over_when_it_is_half_of_its_peak_or_has_stood_still_for_long() {
    // Another host raised it; this one knows from the alert how much waited then.
    let mut case = Case::new();
    case.raised = vec![Alarm::LagGrowing];
    case.then = 10_000;
    let mut lag = 6000.0;
    case.flows(&mut lag, (100.0, 100.0), 200, || 0.0);
    assert_eq!(case.told, [], "it has come down by less than half");
    lag = 5000.0;
    case.flows(&mut lag, (100.0, 100.0), 20, || 0.0);
    assert_eq!(case.told, [(210, Alarm::LagGrowing, false)]);

    let mut stays = Case::new();
    let mut lag = 0.0;
    stays.flows(&mut lag, (150.0, 100.0), 60, || 0.0);
    assert_eq!(stays.raised, [Alarm::LagGrowing]);
    let stopped = stays.since_start();
    stays.flows(&mut lag, (100.0, 100.0), 280, || 0.0);
    assert_eq!(stays.raised, [Alarm::LagGrowing]);
    stays.flows(&mut lag, (100.0, 100.0), 60, || 0.0);
    assert_eq!(stays.raised, []);
    let cleared = stays.told[1].0 - stopped;
    assert!((290..=330).contains(&cleared), "after {cleared} s");
}

#[test]
fn a_handler_that_tries_again_for_long_fails_and_says_why() {
    let mut case = Case::new();
    case.handler.state = crate::lag::RETRYING.to_owned();
    case.handler.reason = "no stream holds subject `told.>`".to_owned();
    case.stays(20);
    assert_eq!(case.raised, [], "a server that restarts is back before");
    // Each try begins with a start.
    for _ in 0..5 {
        case.handler.state = crate::lag::STARTING.to_owned();
        case.look();
        case.handler.state = crate::lag::RETRYING.to_owned();
        case.look();
        case.look();
        case.look();
    }
    assert_eq!(case.raised, [Alarm::Failing]);
    assert!(case.texts[&Alarm::Failing].ends_with("no stream holds subject `told.>`"), "{:?}", case.texts);
    case.handler.state = crate::lag::RUNNING.to_owned();
    case.stays(20);
    assert_eq!(case.raised, []);
}

#[test]
fn a_handler_whose_claims_end_soon_fails_though_it_runs_and_decides_between_two_tries() {
    // Under load it tries again at once, and is seldom seen to.
    for (tries, runs, has_just_begun) in [(1, 1, true), (2, 2, true), (1, 20, true), (1, 1, false), (1, 4, false)] {
        let what = format!("{tries} looks see it try again, {runs} see it run");
        let mut case = Case::new();
        (0..30).for_each(|_| case.runs(false));
        case.flaps(tries, runs, has_just_begun, 300);
        let [(at, Alarm::Failing, true)] = case.told[..] else { panic!("{what}: {:?}", case.told) };
        assert!((90..=105).contains(&at), "{what}: after {} s", at - 60);
        let text = &case.texts[&Alarm::Failing];
        let (begin, end) = ("it has been trying again for ", "s: bucket chain refused: no answer within 2s");
        assert!(text.starts_with(begin) && text.ends_with(end), "{text}");
        case.runs(true);
        (0..5).for_each(|_| case.runs(false));
        assert_eq!(case.raised, [Alarm::Failing], "{what}: it has run for 8 s");
        case.runs(false);
        assert_eq!(case.raised, [], "{what}");
    }
}

#[test]
fn a_handler_that_goes_on_after_it_tried_again_does_not_fail() {
    // Servers are restarted one after the other.
    let mut case = Case::new();
    for _ in 0..20 {
        case.flaps(1, 1, true, 2);
        (0..6).for_each(|_| case.runs(false));
    }
    assert_eq!(case.told, []);
    // One takes longer.
    (0..13).for_each(|_| case.tries());
    case.runs(true);
    (0..60).for_each(|_| case.runs(false));
    assert_eq!(case.told, []);
}

#[test]
fn a_fresh_host_does_not_take_a_moment_between_two_tries_for_an_end() {
    for has_just_begun in [true, false] {
        let mut case = Case::new();
        case.raised = vec![Alarm::Failing];
        case.runs(has_just_begun);
        case.flaps(1, 4, has_just_begun, 100);
        assert_eq!(case.told, []);
    }
}

#[test]
fn a_host_whose_clock_is_wrong_or_that_samples_seldom_does_not_keep_an_alert() {
    let mut case = Case::new();
    case.flaps(1, 1, true, 60);
    assert_eq!(case.raised, [Alarm::Failing]);
    case.handler.state = RUNNING.to_owned();
    // What it sampled last has no rates, and is never of now.
    case.stays(30);
    assert_eq!(case.raised, []);
}

#[test]
fn a_new_handler_that_waits_for_its_first_event_is_caught_up() {
    let mut case = Case::new();
    (case.handler.counts.delivered, case.handler.counts.applied) = (0, 0);
    case.settings.alert_lag_events = 100;
    case.settings.alert_lag_growing = false;
    case.stays(10);
    case.waits(1000, 5.0);
    for _ in 0..10 {
        case.decided(10);
        case.look();
    }
    assert_eq!(case.raised, [Alarm::Lag]);
}
