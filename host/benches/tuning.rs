//! The settings that a bench runs with: the defaults, or what somebody wants to try.

use millstream::settings::Settings;

/// The defaults, or with what `MILLSTREAM_BENCH_SET` says (`batch_events=1000 prefetch_events=4000`).
pub(crate) fn settings() -> anyhow::Result<Settings> {
    let pairs = std::env::var("MILLSTREAM_BENCH_SET").unwrap_or_default();
    Ok(Settings::default().with(&pairs.split_whitespace().map(str::to_owned).collect::<Vec<_>>())?)
}
