//! A line for the operator, within limits that the host sets. In: a text. Out: in a module a line of the host's log,
//! natively of stderr, in the test kit of the scenario. It is the only thing a handler can do besides answering. Never:
//! changes what is decided.
//!
//! ```
//! use millstream_sdk::log;
//!
//! log::info("nothing to do");
//! log::warn(format_args!("paid {} cents too much", 7));
//! ```

use std::fmt::Display;

pub use crate::contract::Level;

/// For following single events; usually switched off.
pub fn trace(message: impl Display) {
    write(Level::Trace, &message);
}

/// For finding a mistake; usually switched off.
pub fn debug(message: impl Display) {
    write(Level::Debug, &message);
}

/// Worth a line in normal running.
pub fn info(message: impl Display) {
    write(Level::Info, &message);
}

/// Somebody should look at it, though the event was applied.
pub fn warn(message: impl Display) {
    write(Level::Warn, &message);
}

/// Something is wrong. To refuse the event use [`refuse`](crate::refuse()) instead.
pub fn error(message: impl Display) {
    write(Level::Error, &message);
}

#[cfg(target_arch = "wasm32")]
fn write(level: Level, message: &dyn Display) {
    crate::contract::log(level, &message.to_string());
}

#[cfg(not(target_arch = "wasm32"))]
fn write(level: Level, message: &dyn Display) {
    let level = match level {
        Level::Trace => "Trace",
        Level::Debug => "Debug",
        Level::Info => "Info",
        Level::Warn => "Warn",
        Level::Error => "Error",
    };
    let line = format!("{level}: {message}");
    native::CAPTURED.with_borrow_mut(|captured| match captured {
        Some(lines) => lines.push(line),
        None => eprintln!("{line}"),
    });
}

/// Where lines go outside a module.
#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::cell::RefCell;

    thread_local! {
        pub(super) static CAPTURED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    }

    /// Runs something and returns the lines it logged on this thread, instead of printing them.
    pub(crate) fn capture<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
        let before = CAPTURED.replace(Some(Vec::new()));
        let result = run();
        (result, CAPTURED.replace(before).unwrap_or_default())
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::capture;
