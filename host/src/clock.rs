//! Time as this host writes it: nanoseconds since 1970, and RFC 3339 for people and headers. In: the clock, or a text. Out: the
//! other form. Never: waits; what must not be late counts with `outbox::Stamp`, for this clock can be set.

use jiff::Timestamp;

/// Clocks of publishers, hosts and servers may differ so much, nanoseconds.
pub const SKEW: i64 = 10_000_000_000;

/// The host's clock, nanoseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// So many nanoseconds in seconds; 0 where clocks disagree and they are fewer than none.
#[must_use]
pub fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds.max(0) as f64 / 1e9
}

/// RFC 3339 in UTC, with as many digits as the time has.
#[must_use]
pub fn text(nanoseconds: i64) -> String {
    // Each time of 64 bits is within what the library takes.
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default().to_string()
}

/// Nanoseconds since 1970 of a text in RFC 3339; none for what is none, or not within 1678 to 2261.
#[must_use]
pub fn read(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok())
}
