//! Where a pipeline's time goes. In: which part of its work it enters, a few times a batch. Out: microseconds by part. At any moment it
//! is in one part, so the sum never exceeds the time that passed. Never: looks at an event.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::numbers::Busy;

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    /// Anything else, or it does not run.
    #[default]
    Other,
    /// Waiting for events.
    Waiting,
    /// Loading documents.
    Loading,
    /// In the guest.
    Guest,
    /// Waiting for the journal.
    Commit,
    /// Waiting for room, or for the throttle.
    HeldBack,
}

/// The watch of one handler, for all its claims.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Stand>);

struct Stand {
    part: Part,
    since: Instant,
    spent: [Duration; 6],
}

impl Default for Stand {
    fn default() -> Self {
        Self { part: Part::Other, since: Instant::now(), spent: [Duration::ZERO; 6] }
    }
}

impl Stand {
    fn settle(&mut self, now: Instant) {
        if let Some(spent) = self.spent.get_mut(self.part as usize) {
            *spent += now.saturating_duration_since(self.since);
        }
        self.since = now;
    }

    fn microseconds(&self, part: Part) -> u64 {
        let spent = self.spent.get(part as usize).copied().unwrap_or_default();
        u64::try_from(spent.as_micros()).unwrap_or(u64::MAX)
    }
}

impl Watch {
    /// The pipeline is in this part until the answer is dropped, and then where it was before.
    #[must_use]
    pub(crate) fn during(self: &Arc<Self>, part: Part) -> During {
        During { watch: Arc::clone(self), before: self.enter(part) }
    }

    /// Microseconds by part, the running one included.
    pub(crate) fn read(&self) -> Busy {
        let mut stand = self.lock();
        stand.settle(Instant::now());
        Busy {
            waiting: stand.microseconds(Part::Waiting),
            loading: stand.microseconds(Part::Loading),
            guest: stand.microseconds(Part::Guest),
            commit: stand.microseconds(Part::Commit),
            held_back: stand.microseconds(Part::HeldBack),
        }
    }

    fn enter(&self, part: Part) -> Part {
        let mut stand = self.lock();
        stand.settle(Instant::now());
        std::mem::replace(&mut stand.part, part)
    }

    fn lock(&self) -> MutexGuard<'_, Stand> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part that lasts. Dropped with the future that holds it, so a pipeline that is broken off is in no part.
pub(crate) struct During {
    watch: Arc<Watch>,
    before: Part,
}

impl Drop for During {
    fn drop(&mut self) {
        self.watch.enter(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(busy: Busy) -> u64 {
        busy.waiting + busy.loading + busy.guest + busy.commit + busy.held_back
    }

    #[test]
    fn the_parts_never_exceed_the_time_that_passed() {
        let begun = Instant::now();
        let watch = Arc::new(Watch::default());
        for round in 0..1000 {
            let _waiting = watch.during(Part::Waiting);
            for part in [Part::Loading, Part::Guest, Part::Commit, Part::HeldBack] {
                let _part = watch.during(part);
                let _inner = (round % 7 == 0).then(|| watch.during(Part::Commit));
                std::hint::black_box((0..100).sum::<u64>());
            }
            if round % 100 == 0 {
                let (told, passed) = (sum(watch.read()), begun.elapsed());
                assert!(u128::from(told) <= passed.as_micros(), "{told} of {passed:?}");
            }
        }
        let busy = watch.read();
        assert!(busy.waiting > 0 && busy.guest > 0 && u128::from(sum(busy)) <= begun.elapsed().as_micros(), "{busy:?}");
    }

    #[test]
    fn a_part_ends_where_it_began() {
        let watch = Arc::new(Watch::default());
        {
            let _waiting = watch.during(Part::Waiting);
            assert_eq!(watch.enter(Part::Waiting), Part::Waiting);
            drop(watch.during(Part::Guest));
            assert_eq!(watch.enter(Part::Waiting), Part::Waiting);
        }
        assert_eq!(watch.enter(Part::Other), Part::Other);
        let told = watch.read();
        let deadline = Instant::now() + Duration::from_millis(2);
        while Instant::now() < deadline {
            std::hint::spin_loop();
        }
        assert_eq!(watch.read(), told, "who does not run spends nothing");
    }
}
