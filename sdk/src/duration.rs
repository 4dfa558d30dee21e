//! Spans of time that read as they are said: `hours(24)`. In: a count. Out: a duration. Never: overflows.

use core::time::Duration;

/// So many seconds.
#[must_use]
pub const fn seconds(count: u32) -> Duration {
    Duration::from_secs(count as u64)
}

/// So many minutes.
#[must_use]
pub const fn minutes(count: u32) -> Duration {
    Duration::from_secs(count as u64 * 60)
}

/// So many hours.
#[must_use]
pub const fn hours(count: u32) -> Duration {
    Duration::from_secs(count as u64 * 3600)
}

/// So many days of 24 hours.
#[must_use]
pub const fn days(count: u32) -> Duration {
    Duration::from_secs(count as u64 * 86_400)
}
