//! The test kit fails when it should, at the line that asked, with words that help.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod projections;
mod sagas;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

/// The message of a failing scenario and where it failed.
pub(crate) fn failure(scenario: impl FnOnce()) -> (String, String, u32) {
    static HOOK: Mutex<()> = Mutex::new(());
    static SEEN: Mutex<Option<(String, String, u32)>> = Mutex::new(None);
    let _one_at_a_time = HOOK.lock().unwrap();
    let before = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().unwrap();
        let message = panic.payload_as_str().unwrap().to_owned();
        *SEEN.lock().unwrap() = Some((message, place.file().to_owned(), place.line()));
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(scenario));
    panic::set_hook(before);
    assert!(result.is_err(), "the scenario should have failed");
    SEEN.lock().unwrap().take().unwrap()
}
