//! Data that tests compare with, and skipping where it is not on this machine. In: a path in the folder of data: the one that
//! `MILLSTREAM_DATA` names, or `shared/data` beside the clone. Out: the file. Never: silent; who skips says so, and where the
//! folder is there and `CI` is set, a file that is missing is a failure.

#![allow(unreachable_pub, dead_code, clippy::panic, reason = "several crates include this file; not each needs all")]

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The folder, whether it is there or not.
pub fn folder() -> PathBuf {
    // This crate's folder lies one or two levels deep in the clone.
    let beside = |folder: &Path| folder.join("shared/data");
    let above = || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(2).take(2).map(beside);
    let found = || above().find(|data| data.is_dir()).or_else(|| above().next()).unwrap_or_default();
    std::env::var_os("MILLSTREAM_DATA").map_or_else(found, PathBuf::from)
}

/// A file of it.
///
/// # Panics
/// If it is not there, the folder is, and `CI` is set.
#[track_caller]
pub fn file(path: &str) -> Option<PathBuf> {
    let file = folder().join(path);
    if file.is_file() {
        return Some(file);
    }
    let why = format!("there is no {} (set MILLSTREAM_DATA)", file.display());
    assert!(!is_ci() || !folder().is_dir(), "{why}");
    skip(why);
    None
}

/// Whether nothing may be skipped that this machine has.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Says that this test proves nothing here.
pub fn skip(why: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not by `eprintln!`: that is not shown of a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}
