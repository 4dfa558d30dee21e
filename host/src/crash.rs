//! Named places where a test can end the process or stop it, to prove that every one of them is survived. In: the
//! environment: `MILLSTREAM_CRASH_AT=committed:3` aborts at the third passage of `committed`;
//! `MILLSTREAM_STOP_AT=committed:3` stops the process there, until somebody sends it SIGCONT. Out: nothing. Never: in a
//! release build.

/// The places, in the order of a batch's journey. `before` and `after` each step.
pub const POINTS: [&str; 10] =
    ["arrived", "staged", "loaded", "applied", "encoded", "committed", "acked", "showing", "half-shown", "shown"];

/// The places of a saga's effects, which come after `acked`: before one leaves, when one is stored, when all of a record are.
pub const ACTING: [&str; 3] = ["publishing", "published", "acted"];

/// The places of parked units, which come after `committed`: before their dead letters are stored, once they are, when those that
/// were taken up again are removed.
pub const PARKING: [&str; 3] = ["burying", "buried", "unparked"];

/// The places of a promotion, in its order.
pub const PROMOTING: [&str; 13] = [
    "aligned",
    "stopping",
    "cutting",
    "stopped",
    "caught-up",
    "closed",
    "copied",
    "kept",
    "pouring",
    "poured",
    "taken-over",
    "deployed",
    "promoted",
];

/// Ends or stops the process here if a test asked for it.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    use std::sync::OnceLock;

    static CRASH: OnceLock<Option<Wanted>> = OnceLock::new();
    static STOP: OnceLock<Option<Wanted>> = OnceLock::new();
    debug_assert!(
        [&POINTS[..], &ACTING[..], &PARKING[..], &PROMOTING[..]].iter().any(|points| points.contains(&name)),
        "{name} is not in the lists that the tests walk through"
    );
    if Wanted::is_here(&CRASH, "MILLSTREAM_CRASH_AT", name) {
        std::process::abort();
    }
    if Wanted::is_here(&STOP, "MILLSTREAM_STOP_AT", name) {
        // Comes back when the process goes on.
        let _ = std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
        // The signal may reach this thread a moment after `kill` has ended; it must not run on meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A passage that a test waits for.
#[cfg(debug_assertions)]
struct Wanted {
    name: String,
    left: std::sync::atomic::AtomicU64,
}

#[cfg(debug_assertions)]
impl Wanted {
    fn parse(variable: &str) -> Option<Self> {
        let text = std::env::var(variable).ok()?;
        let (name, count) = text.split_once(':')?;
        Some(Self { name: name.to_owned(), left: count.parse::<u64>().ok()?.into() })
    }

    fn is_here(wanted: &std::sync::OnceLock<Option<Self>>, variable: &str, name: &str) -> bool {
        let wanted = wanted.get_or_init(|| Self::parse(variable)).as_ref().filter(|wanted| wanted.name == name);
        wanted.is_some_and(|wanted| wanted.left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1)
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
