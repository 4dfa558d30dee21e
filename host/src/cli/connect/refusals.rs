//! What a user was not let do. In: the client's events. Out: the server's words, each once. A server tells of a refused
//! publication by such an event alone: who waits for its answer only sees time pass. Never: more than a few.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Event, ServerError};

/// Refusals that are kept: the first is mostly the cause of the others.
const KEPT: usize = 3;

/// Shared with the connection that hears them.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Vec<String>>>);

impl Refusals {
    pub(super) fn note(&self, event: &Event) {
        let Event::ServerError(ServerError::Other(words)) = event else { return };
        if !words.to_ascii_lowercase().starts_with("permissions violation") {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && !kept.contains(words) {
            kept.push(words.clone());
        }
    }

    /// What was refused so far, in one line; none where nothing was.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!kept.is_empty()).then(|| kept.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_refused_is_kept_and_each_once() {
        let refusals = Refusals::default();
        assert_eq!(refusals.told(), None);
        let say = |words: &str| refusals.note(&Event::ServerError(ServerError::Other(words.to_owned())));
        refusals.note(&Event::Disconnected);
        say("Stale Connection");
        assert_eq!(refusals.told(), None);
        for subject in ["a", "b", "a", "c", "d"] {
            say(&format!("Permissions Violation for Publish to \"{subject}\""));
        }
        let told = refusals.told().unwrap();
        assert_eq!(told.matches("Publish to").count(), KEPT);
        assert!(told.starts_with("Permissions Violation for Publish to \"a\"; "), "{told}");
    }
}
