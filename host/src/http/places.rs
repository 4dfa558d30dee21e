//! Places for connections: most for whoever comes, a few for questions about health where all of those are taken. In: that somebody
//! knocks. Out: a place, at once or when there is one. Whoever has a place for probes and asks nothing loses it to the next, so strangers
//! who are slow on purpose keep no probe waiting. Never: ends a connection whose question is being answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Connections at once. Browsers hold one each for the live page.
const CONNECTIONS: usize = 256;

/// Further connections, for one question each, about health and nothing else: a host that many look at is well. The next ones wait to
/// be accepted.
const PROBES: usize = 16;

/// A probe sends its question with its first bytes. Whoever has not within this gives way to the next.
const ASKS_WITHIN: Duration = Duration::from_millis(20);

/// All places, and who has one of the few.
pub(super) struct Places {
    all: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    /// The oldest first.
    guests: VecDeque<Guest>,
}

/// A connection's place, given back when it ends.
pub(super) enum Place {
    All(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit),
    Probe(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit),
}

/// A connection that may ask one question.
struct Guest {
    came: Instant,
    has_asked: Arc<AtomicBool>,
    connection: AbortHandle,
}

impl Places {
    pub(super) fn new() -> Self {
        Self::with(CONNECTIONS, PROBES)
    }

    fn with(all: usize, probes: usize) -> Self {
        let (all, probes) = (Arc::new(Semaphore::new(all)), Arc::new(Semaphore::new(probes)));
        Self { all, probes, guests: VecDeque::new() }
    }

    /// A place like any other, where there is one.
    pub(super) async fn next(&mut self) -> anyhow::Result<Place> {
        if let Ok(place) = Arc::clone(&self.all).try_acquire_owned() {
            return Ok(Place::All(place));
        }
        loop {
            self.guests.retain(|guest| !guest.connection.is_finished() && !guest.has_asked.load(Ordering::Acquire));
            let oldest = self.guests.front().map(|guest| guest.came + ASKS_WITHIN);
            tokio::select! {
                biased;
                place = Arc::clone(&self.all).acquire_owned() => return Ok(Place::All(place?)),
                place = Arc::clone(&self.probes).acquire_owned() => return Ok(Place::Probe(place?)),
                () = tokio::time::sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                    let silent = self.guests.pop_front().filter(|guest| !guest.has_asked.load(Ordering::Acquire));
                    if let Some(guest) = silent {
                        guest.connection.abort();
                    }
                }
            }
        }
    }

    /// This connection has a place for probes; it says when it has asked.
    pub(super) fn came(&mut self, has_asked: Arc<AtomicBool>, connection: AbortHandle) {
        self.guests.push_back(Guest { came: Instant::now(), has_asked, connection });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that lasts until it is ended, and has asked or not.
    fn guest(places: &mut Places, place: Place, has_asked: bool) -> tokio::task::JoinHandle<()> {
        let connection = tokio::spawn(async move {
            let _place = place;
            std::future::pending::<()>().await;
        });
        places.came(Arc::new(AtomicBool::new(has_asked)), connection.abort_handle());
        connection
    }

    #[tokio::test]
    async fn who_asks_nothing_gives_way_and_who_is_answered_does_not() {
        let mut places = Places::with(1, 2);
        let first = places.next().await.unwrap();
        assert!(matches!(first, Place::All(_)));
        let place = places.next().await.unwrap();
        let asks = guest(&mut places, place, true);
        let mut silent = Vec::new();
        for _ in 0..50 {
            let place = places.next().await.unwrap();
            assert!(matches!(place, Place::Probe(_)));
            silent.push(guest(&mut places, place, false));
        }
        let ended = silent.iter().filter(|connection| connection.is_finished()).count();
        assert_eq!((ended, asks.is_finished()), (49, false), "all but the last");
        // Where everybody is being answered, the next one waits.
        places.guests.back().unwrap().has_asked.store(true, Ordering::Release);
        let waits = tokio::time::timeout(10 * ASKS_WITHIN, places.next()).await;
        assert!(waits.is_err(), "there is no place");
        drop(first);
        assert!(matches!(places.next().await.unwrap(), Place::All(_)));
    }
}
