//! Whether this run is as good as the committed one. In: ratios, and the table of what each was in repeated runs. Out: a table that says
//! how they stand, and an error that names those that fell below. Ratios, not times: both sides run on the same machine.

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::figures::table;
use crate::report::Ratio;

/// What a ratio was, and what it may not fall below.
#[derive(Deserialize)]
struct Bar {
    ratio: String,
    keys: String,
    /// Medians of repeated runs of the same length, least and most.
    seen: (f64, f64),
    /// What it may not fall below: half of the least. Machines differ by more than runs on one of them do.
    least: f64,
}

/// Compares with the table in this JSON.
///
/// # Errors
/// Which ratios fell, or that the table has none.
pub(crate) fn check(ratios: &[Ratio], bars: &str) -> anyhow::Result<()> {
    let bars: Vec<Bar> = serde_json::from_str(bars).context("the table of ratios")?;
    ensure!(!bars.is_empty(), "the table of ratios is empty");
    let (mut rows, mut fallen) = (Vec::new(), Vec::new());
    for Bar { ratio, keys, seen: (least_seen, most_seen), least } in bars {
        let now = ratios.iter().find(|one| one.name == ratio && one.keys == keys);
        let now = now.with_context(|| format!("{ratio} with {keys} keys was not measured"))?.median;
        let verdict = if now < least { "FELL" } else { "ok" };
        if now < least {
            fallen.push(format!("{ratio} ({keys}): {now:.2}, at least {least:.2}"));
        }
        let seen = format!("{least_seen:.2}-{most_seen:.2}");
        rows.push(vec![ratio, keys, format!("{now:.2}"), seen, format!("{least:.2}"), verdict.to_owned()]);
    }
    println!("\n{}", table(&["GATE", "KEYS", "NOW", "SEEN", "AT LEAST", ""], 2, rows));
    ensure!(fallen.is_empty(), "slower than it was: {}", fallen.join("; "));
    Ok(())
}
