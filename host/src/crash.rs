//! Named places where a test can end the process, to prove that every one of them is survived. Absent from release builds.
//! `MILLSTREAM_CRASH_AT=committed:3` aborts at the third passage of `committed`.

/// The places, in the order of a batch's journey. `before` and `after` each step.
pub const POINTS: [&str; 10] =
    ["arrived", "staged", "loaded", "applied", "encoded", "committed", "acked", "showing", "half-shown", "shown"];

/// Ends the process here if a test asked for it.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not in the list that the test walks through");
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("MILLSTREAM_CRASH_AT").ok()?;
        let (name, count) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(count.parse().ok()?)))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        std::process::abort();
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
