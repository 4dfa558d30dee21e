//! How many events the guest may have at once, so that whoever shares the cores is not held up. In: how long it had so many. Out: how many
//! it may have next. Pure. Never: fewer than are worth a call and a record.

use std::time::Duration;

/// How long the guest may have a batch.
const TIMELY: Duration = Duration::from_millis(10);

/// So many events go together however long that takes: of fewer, each would cost more.
const WORTH_A_BATCH: usize = 1000;

/// What was learnt of one version.
#[derive(Debug)]
pub(super) struct Timely {
    most: usize,
}

impl Default for Timely {
    fn default() -> Self {
        Self { most: WORTH_A_BATCH }
    }
}

impl Timely {
    /// As many as are timely, for all that is known.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// The guest had so many events for so long. A few tell nothing of many.
    pub(super) fn took(&mut self, events: usize, took: Duration) {
        if events < WORTH_A_BATCH {
            return;
        }
        let fitting = (events as f64 * TIMELY.as_secs_f64() / took.as_secs_f64()) as usize;
        if events >= self.most || fitting < self.most {
            self.most = fitting.clamp(WORTH_A_BATCH, events.saturating_mul(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_the_guest_is_quick_and_shrink_once_it_is_slow() {
        let mut timely = Timely::default();
        let mut taken = |nanoseconds_each: u64| {
            let events = timely.most().min(4000);
            timely.took(events, Duration::from_nanos(nanoseconds_each * events as u64));
            events
        };
        assert_eq!([taken(2_000), taken(2_000), taken(2_000)], [1000, 2000, 4000]);
        assert_eq!([taken(5_000), taken(5_000)], [4000, 2000], "20 ms, then 10 ms");
        assert_eq!([taken(1_000_000), taken(1_000_000)], [2000, 1000], "never fewer than are worth a batch");
        assert_eq!([taken(0), taken(2_000), taken(2_000)], [1000, 2000, 4000]);
    }

    #[test]
    fn a_few_events_tell_nothing_of_many() {
        let mut timely = Timely::default();
        timely.took(2000, Duration::from_millis(4));
        timely.took(999, Duration::from_secs(1));
        assert_eq!(timely.most(), 4000);
        timely.took(1500, Duration::from_millis(3));
        assert_eq!(timely.most(), 4000, "as quick, and fewer than it could be");
    }
}
