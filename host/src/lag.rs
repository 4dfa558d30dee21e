//! How far behind a handler is. In: what JetStream and the journal say of one input stream. Out: events, seconds, and words.
//! Pure: time comes in as an argument. Never: a number without its age, or a guess where the stream can be read.

mod history;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::numbers::Rates;
use crate::progress::{Report, State};

pub use history::{History, Moment};

/// A report older than this means that no host is telling.
pub const SILENT_AFTER_SECONDS: f64 = 5.0;

/// A host that has said nothing for longer may be gone: no end is foretold.
const ENDS_WITHIN_SECONDS: f64 = 3.0;

/// A handler that decides events as they come.
pub const RUNNING: &str = "running";

/// A handler that stopped.
pub const FAILING: &str = "failing";

/// A handler that was stopped by its deployment.
pub const PAUSED: &str = "paused";

/// The state of a handler whose host begins it again and again, because something keeps it from running.
pub const RETRYING: &str = "retrying";

/// The state of a handler that is on its way to its first event.
pub const STARTING: &str = "starting";

/// A handler that nothing was ever heard of.
pub const NOT_STARTED: &str = "not-started";

/// A handler whose host is silent.
pub const NOT_REPORTING: &str = "not-reporting";

/// What was read of one handler and input stream.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Undecided events in the stream.
    pub events: u64,
    /// When the oldest of them was stored, nanoseconds since 1970.
    pub oldest: Option<i64>,
    /// Last decided sequence.
    pub position: u64,
    /// The stream's last sequence.
    pub head: u64,
    /// Whether the handler has decided anything at all, on whatever stream.
    pub decided: bool,
}

/// Lag of one handler and input stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Handler.
    pub handler: String,
    /// Input stream.
    pub stream: String,
    /// What the handler is doing, in one of a few fixed words; [`in_words`] has them for people.
    pub state: String,
    /// Undecided events.
    pub events: u64,
    /// Age of the oldest undecided event, seconds.
    pub seconds: f64,
    /// Last decided sequence.
    pub position: u64,
    /// The stream's last sequence.
    pub head: u64,
    /// How it moves, as the host measured; none where no host reports.
    pub rates: Option<Rates>,
    /// Age of the host's last word, seconds; absent when there is none.
    pub reported_seconds_ago: Option<f64>,
    /// Why it is not running, where that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Lag {
    /// The same with rates. Of a handler that does not run, or whose host has been silent for some seconds, nobody can say when it will
    /// be done, though it still decided within the time that rates are over.
    #[must_use]
    pub fn with(self, rates: Option<Rates>) -> Self {
        let is_new = self.reported_seconds_ago.is_some_and(|ago| ago <= ENDS_WITHIN_SECONDS);
        let ends = is_new && self.state == RUNNING;
        let rates = rates.map(|rates| Rates { eta_seconds: rates.eta_seconds.filter(|_| ends), ..rates });
        Self { rates, ..self }
    }
}

/// What the host last said.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// State in its report.
    pub state: State,
    /// Reason in its report.
    pub reason: String,
    /// When, nanoseconds since 1970; none when it never said anything.
    pub time: Option<i64>,
}

impl Said {
    /// What is in a host's report, if there is one.
    #[must_use]
    pub fn of(report: Option<&Report>) -> Self {
        report.map_or_else(Self::default, |report| Self {
            state: report.state,
            reason: report.reason.clone(),
            time: Some(report.time),
        })
    }
}

/// Whether what was said at that time is too old to be told.
#[must_use]
pub fn is_old(time: i64, now: i64) -> bool {
    clock::seconds(now - time) > SILENT_AFTER_SECONDS
}

/// Puts sample and report together. `now` is in nanoseconds since 1970.
#[must_use]
pub fn lag(handler: &str, stream: &str, sample: &Sample, said: &Said, now: i64) -> Lag {
    let ago = said.time.map(|time| clock::seconds(now - time));
    Lag {
        handler: handler.to_owned(),
        stream: stream.to_owned(),
        state: state(said.state, ago, sample.decided),
        events: sample.events,
        seconds: sample.oldest.map_or(0.0, |oldest| clock::seconds(now - oldest)),
        position: sample.position,
        head: sample.head,
        rates: None,
        reported_seconds_ago: ago,
        reason: said.reason.clone(),
    }
}

/// The state. A host that ended on purpose left a last word that stays true; any other silence is shown as such. What hosts
/// said can be deleted; then the journal still tells that there was one.
fn state(said: State, ago: Option<f64>, decided: bool) -> String {
    let word = match said {
        State::Starting => STARTING,
        State::Running => RUNNING,
        State::Retrying => RETRYING,
        State::Failing => return FAILING.to_owned(),
        State::Paused => PAUSED,
        State::StandingBy => "standing-by",
        State::Stopped => "stopped",
    };
    match ago {
        None if decided => NOT_REPORTING.to_owned(),
        None => NOT_STARTED.to_owned(),
        Some(ago) if ago > SILENT_AFTER_SECONDS => NOT_REPORTING.to_owned(),
        Some(_) => word.to_owned(),
    }
}

/// The state for people, with how long a silence lasts.
#[must_use]
pub fn in_words(state: &str, reported_seconds_ago: Option<f64>) -> String {
    match reported_seconds_ago.filter(|_| state == NOT_REPORTING) {
        Some(ago) => format!("not reporting for {ago:.0} s"),
        None => state.replace('-', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000_000;

    fn said(state: State, seconds_ago: Option<i64>) -> Said {
        Said { state, reason: String::new(), time: seconds_ago.map(|ago| NOW - ago * 1_000_000_000) }
    }

    #[test]
    fn caught_up_is_zero_events_and_zero_seconds() {
        let sample = Sample { events: 0, oldest: None, position: 7, head: 900, decided: true };
        let lag = lag("h", "S", &sample, &said(State::Running, Some(1)), NOW);
        assert_eq!((lag.events, lag.seconds, lag.state.as_str()), (0, 0.0, "running"));
    }

    #[test]
    fn age_is_that_of_the_oldest_undecided_event() {
        let sample = Sample { events: 3, oldest: Some(NOW - 12_500_000_000), position: 7, head: 10, decided: true };
        assert_eq!(lag("h", "S", &sample, &said(State::Running, Some(0)), NOW).seconds, 12.5);
    }

    #[test]
    fn no_end_is_foretold_of_a_host_that_has_been_silent_for_three_seconds() {
        let rates = Rates { in_rate: 1.0, out_rate: 2.0, trend: -1.0, eta_seconds: Some(7.0) };
        for (ago, eta) in [(Some(0), Some(7.0)), (Some(3), Some(7.0)), (Some(4), None), (None, None)] {
            let lag = lag("h", "S", &Sample::default(), &said(State::Running, ago), NOW).with(Some(rates));
            assert_eq!(lag.rates, Some(Rates { eta_seconds: eta, ..rates }), "{ago:?}");
        }
    }

    #[test]
    fn no_end_is_foretold_of_a_handler_that_does_not_run() {
        let rates = Rates { in_rate: 1.0, out_rate: 2.0, trend: -1.0, eta_seconds: Some(7.0) };
        for state in [State::Paused, State::Failing, State::Retrying, State::Starting, State::Stopped] {
            let lag = lag("h", "S", &Sample::default(), &said(state, Some(0)), NOW).with(Some(rates));
            assert_eq!(lag.rates, Some(Rates { eta_seconds: None, ..rates }), "{state:?}");
        }
    }

    #[test]
    fn silence_is_never_taken_for_running() {
        for (state, ago, expected, words) in [
            (State::Running, Some(1), "running", "running"),
            (State::Running, Some(12), "not-reporting", "not reporting for 12 s"),
            (State::Stopped, Some(1), "stopped", "stopped"),
            (State::Stopped, Some(12), "not-reporting", "not reporting for 12 s"),
            (State::StandingBy, Some(1), "standing-by", "standing by"),
            (State::Running, None, "not-started", "not started"),
            (State::Paused, Some(60), "not-reporting", "not reporting for 60 s"),
            (State::Failing, Some(60), "failing", "failing"),
        ] {
            let lag = lag("h", "S", &Sample::default(), &said(state, ago), NOW);
            assert_eq!(
                (lag.state.as_str(), in_words(&lag.state, lag.reported_seconds_ago)),
                (expected, words.to_owned())
            );
        }
        let decided = Sample { decided: true, ..Sample::default() };
        let silent = lag("h", "S", &decided, &said(State::Starting, None), NOW);
        assert_eq!((silent.state.as_str(), in_words(&silent.state, None).as_str()), ("not-reporting", "not reporting"));
    }

    #[test]
    fn clocks_that_disagree_give_zero_not_nonsense() {
        let sample = Sample { events: 1, oldest: Some(NOW + 5), position: 0, head: 1, decided: false };
        assert_eq!(lag("h", "S", &sample, &said(State::Running, Some(-5)), NOW).seconds, 0.0);
    }
}
