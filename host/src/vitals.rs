//! Whether a host's own loops turn, and what it makes of its handlers. In: a beat from each loop, the handlers as they are taken up.
//! Out: which loops stand still, and what each handler is doing. Never: asks the server, or counts traffic: an idle host is well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::progress::{Progress, State};

/// A loop that has not turned for so long stands still. The slowest turn is a few requests that each time out after 5 s.
pub const STILL_AFTER: Duration = Duration::from_secs(15);

/// A loop of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loop {
    /// Follows the deployments.
    Deployments,
    /// Says that the host lives.
    Announcing,
}

impl Loop {
    fn in_words(self) -> &'static str {
        match self {
            Self::Deployments => "the loop that follows the deployments",
            Self::Announcing => "the loop that announces this host",
        }
    }
}

/// What this host makes of a deployed handler.
#[derive(Clone)]
pub enum Taken {
    /// It keeps it.
    Kept(Arc<Progress>),
    /// It kept it until its own task broke off.
    Lost,
    /// Its deployment cannot be read, which the log and every listing say.
    Unreadable,
}

/// All of it.
#[derive(Default)]
pub struct Vitals {
    beats: Mutex<BTreeMap<Loop, Instant>>,
    handlers: Mutex<BTreeMap<String, Taken>>,
}

impl Vitals {
    /// A loop has turned.
    pub fn beat(&self, which: Loop) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).insert(which, Instant::now());
    }

    /// This is what the host makes of a handler from here on.
    pub fn take(&self, handler: &str, taken: Taken) {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).insert(handler.to_owned(), taken);
    }

    /// The handler is none of its any more.
    pub fn leave(&self, handler: &str) {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).remove(handler);
    }

    /// What is the matter with the host itself, in sentences; nothing where all is well.
    #[must_use]
    pub fn complaints(&self, now: Instant) -> Vec<String> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = beats.iter().map(|(which, beat)| (which, now.saturating_duration_since(*beat)));
        let still = silence.filter(|(_, silence)| *silence > STILL_AFTER);
        let mut complaints: Vec<String> = still
            .map(|(which, silence)| format!("{} has not turned for {} s", which.in_words(), silence.as_secs()))
            .collect();
        drop(beats);
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = handlers.iter().filter(|(_, taken)| matches!(taken, Taken::Lost));
        complaints.extend(lost.map(|(name, _)| format!("the task that keeps handler {name} broke off")));
        complaints
    }

    /// Why a deployed handler is not taken up, if it is not. One that failed is: no other host would do better with it.
    #[must_use]
    pub fn not_taken(&self, handler: &str) -> Option<String> {
        let taken = self.handlers.lock().unwrap_or_else(PoisonError::into_inner).get(handler).cloned();
        let report = match taken {
            None => return Some(format!("handler {handler} is not taken up yet")),
            Some(Taken::Lost) => return Some(format!("the task that keeps handler {handler} broke off")),
            Some(Taken::Unreadable) => return None,
            Some(Taken::Kept(progress)) => progress.report(0),
        };
        let because = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
        match report.state {
            State::Starting => Some(format!("handler {handler} is starting{because}")),
            State::Retrying => Some(format!("handler {handler} is retrying{because}")),
            State::Running | State::Failing | State::Paused | State::Fenced => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_named_and_an_idle_host_is_well() {
        let vitals = Vitals::default();
        assert!(vitals.complaints(Instant::now()).is_empty(), "before anything began");
        let before = Instant::now();
        vitals.beat(Loop::Deployments);
        assert!(vitals.complaints(before + STILL_AFTER).is_empty());
        let later = vitals.complaints(Instant::now() + STILL_AFTER + Duration::from_secs(1));
        assert_eq!(later, ["the loop that follows the deployments has not turned for 16 s"]);
        vitals.beat(Loop::Announcing);
        vitals.take("chain", Taken::Lost);
        assert_eq!(vitals.complaints(Instant::now()), ["the task that keeps handler chain broke off"]);
        vitals.leave("chain");
        assert!(vitals.complaints(Instant::now()).is_empty());
    }

    #[test]
    fn what_is_not_taken_up_says_why() {
        let vitals = Vitals::default();
        assert_eq!(vitals.not_taken("a").unwrap(), "handler a is not taken up yet");
        let progress = Arc::new(Progress::new("h", ""));
        vitals.take("a", Taken::Kept(Arc::clone(&progress)));
        for (state, reason, expected) in [
            (State::Starting, "", Some("handler a is starting")),
            (State::Retrying, "no leader", Some("handler a is retrying: no leader")),
            (State::Running, "", None),
            (State::Failing, "an event", None),
            (State::Paused, "", None),
            (State::Fenced, "", None),
        ] {
            progress.set(state, reason);
            assert_eq!(vitals.not_taken("a").as_deref(), expected);
        }
        vitals.take("a", Taken::Unreadable);
        assert_eq!(vitals.not_taken("a"), None);
    }
}
