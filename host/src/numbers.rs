//! The figures of one handler that only its host can know, or knows best: rates, where the time goes, sizes, instances. In: what the
//! host measured. Out: the same as JSON, a part of its report. Each group carries its own age where it is not as old as the report.
//! Pure. Never: a position or a lag that a reader could not compute from JetStream without it.

use serde::{Deserialize, Serialize};

/// All of them. Totals count from the host's start of the handler and only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Numbers {
    /// When the host began with the handler, nanoseconds since 1970: totals count from there.
    pub since: i64,
    /// When the last batch was decided, nanoseconds since 1970.
    pub last_decided: Option<i64>,
    /// Batches decided.
    pub batches: u64,
    /// Events decided.
    pub events: u64,
    /// Where the time went.
    pub busy: Busy,
    /// Fuel that the guest used: about one for each instruction.
    pub fuel: u64,
    /// Memory of the live guest, bytes.
    pub guest_memory_bytes: u64,
    /// From the time an event was stored in its stream until it was decided, while the handler was not behind.
    pub latency: Latency,
    /// Lag and rates of each input stream, as the host samples them.
    pub streams: Vec<Measured>,
    /// What is stored.
    pub sizes: Sizes,
    /// A saga's instances and timers.
    pub census: Option<Census>,
    /// Keys that are parked, and when the oldest was, nanoseconds since 1970; none before the host has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked_keys: Option<u64>,
    /// See `parked_keys`.
    pub oldest_parked: Option<i64>,
}

/// Microseconds that the pipeline spent, in total. The rest of the time is none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Busy {
    /// Waiting for events.
    pub waiting: u64,
    /// Loading documents.
    pub loading: u64,
    /// In the guest.
    pub guest: u64,
    /// Waiting for the journal.
    pub commit: u64,
    /// Waiting for documents to be shown or effects to be published, or for the throttle.
    pub held_back: u64,
}

/// Upper bounds of the buckets of [`Latency`], microseconds; one more bucket holds the rest.
pub const LATENCY_MICROSECONDS: [u64; 14] =
    [250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000];

/// A histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Observations in each bucket, not summed up.
    pub buckets: [u64; LATENCY_MICROSECONDS.len() + 1],
    /// Sum of all, microseconds.
    pub sum: u64,
}

impl Latency {
    /// Counts one observation, nanoseconds.
    pub fn observe(&mut self, nanoseconds: i64) {
        let microseconds = u64::try_from(nanoseconds / 1000).unwrap_or_default();
        let bucket = LATENCY_MICROSECONDS.partition_point(|bound| *bound < microseconds);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(microseconds);
    }
}

/// One input stream, sampled by the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Stream name.
    pub stream: String,
    /// Events decided: it only grows, and does not wait for a sample.
    pub decided: u64,
    /// When the rest was sampled, nanoseconds since 1970; 0 before the first time.
    pub time: i64,
    /// Undecided events.
    pub events: u64,
    /// When the oldest of them was stored, nanoseconds since 1970.
    pub oldest: Option<i64>,
    /// Last decided sequence.
    pub position: u64,
    /// The stream's last sequence.
    pub head: u64,
    /// Rates over the last samples, where there are enough of them.
    pub rates: Option<Rates>,
}

/// How lag moves, events per second, and when it will be gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Events that come in under the handler's filters.
    pub in_rate: f64,
    /// Events that are decided.
    pub out_rate: f64,
    /// By how much the lag grows; negative where it shrinks.
    pub trend: f64,
    /// Seconds until nothing is undecided at this pace; none where it does not shrink or is nothing.
    pub eta_seconds: Option<f64>,
}

/// A pace below which nothing is said to end, events per second.
const STILL: f64 = 0.01;

impl Rates {
    /// The same, with the end of so many undecided events.
    #[must_use]
    pub fn with_end_of(self, events: u64) -> Self {
        let eta_seconds = (events > 0 && self.trend < -STILL).then(|| events as f64 / -self.trend);
        Self { eta_seconds, ..self }
    }
}

/// What is stored, bytes; sampled every few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sizes {
    /// When, nanoseconds since 1970.
    pub time: i64,
    /// The journal's records.
    pub journal_records: u64,
    /// Their bytes.
    pub journal_bytes: u64,
    /// The bucket's keys, deleted ones that left a marker included.
    pub documents: u64,
    /// Its bytes.
    pub documents_bytes: u64,
}

/// A saga's instances, counted now and then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Census {
    /// When, nanoseconds since 1970.
    pub time: i64,
    /// Instances that run.
    pub running: u64,
    /// Instances whose steps are being taken back.
    pub compensating: u64,
    /// Instances that are over, and well.
    pub completed: u64,
    /// Instances that are over, and taken back.
    pub compensated: u64,
    /// Instances whose compensation failed: somebody must help.
    pub compensation_failed: u64,
    /// Instances that failed.
    pub failed: u64,
    /// Key of the running instance that changed longest ago, and the time of that change, nanoseconds since 1970.
    pub oldest_running: Option<(String, i64)>,
    /// Timers that instances wait for.
    pub timers_pending: u64,
    /// Of these, the ones whose time has passed.
    pub timers_overdue: u64,
    /// There are more: so many were counted before the count was broken off.
    pub partial: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_counted_in_the_first_bucket_that_holds_it() {
        let mut latency = Latency::default();
        for (microseconds, bucket) in [(-5, 0), (0, 0), (250, 0), (251, 1), (5_000_000, 13), (5_000_001, 14)] {
            let before = latency.buckets;
            latency.observe(microseconds * 1000);
            let changed: Vec<usize> = (0..before.len()).filter(|at| latency.buckets[*at] != before[*at]).collect();
            assert_eq!(changed, [bucket], "{microseconds}");
        }
        assert_eq!((latency.buckets.iter().sum::<u64>(), latency.sum), (6, 250 + 251 + 5_000_000 + 5_000_001));
    }
}
