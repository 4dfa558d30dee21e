//! Tables for people, ratios first, and all numbers as JSON.

use serde::Serialize;

use crate::figures::{middle, spread_of, table};
use crate::live::Latency;
use crate::shop::Spread;
use crate::world::Run;

/// All numbers of one invocation.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) events: u64,
    pub(crate) keys: usize,
    pub(crate) repeats: usize,
    pub(crate) drains: Vec<Drains>,
    pub(crate) live: Vec<Latency>,
}

/// All runs over one backlog, in the order they were made.
#[derive(Serialize)]
pub(crate) struct Drains {
    pub(crate) spread: Spread,
    pub(crate) bare: Vec<Run>,
    pub(crate) plain: Vec<Run>,
    pub(crate) native: Vec<Run>,
    pub(crate) wasm: Vec<Run>,
}

/// One kind of run against another.
pub(crate) struct Ratio {
    pub(crate) name: &'static str,
    pub(crate) keys: &'static str,
    pub(crate) median: f64,
    /// Median, least and most, for people.
    spread: String,
}

impl Report {
    /// Each ratio is taken between neighbours in time, then the median of the repeats.
    pub(crate) fn ratios(&self) -> Vec<Ratio> {
        self.drains.iter().flat_map(ratios).collect()
    }

    pub(crate) fn print(&self) {
        let row = |ratio: Ratio| vec![ratio.name.to_owned(), ratio.keys.to_owned(), ratio.spread];
        let rows = self.ratios().into_iter().map(row).collect();
        println!("{}\n", table(&["RATIO", "KEYS", "MEDIAN (MIN-MAX)"], 2, rows));
        println!("{}\n", costs(&self.drains));
        println!("{}", latencies(&self.live));
        if let Some(change) = change(&self.live) {
            println!("\n{change}");
        }
    }
}

fn ratios(drains: &Drains) -> [Ratio; 4] {
    let ratio = |name, above: &[Run], below: &[Run]| {
        let all = || above.iter().zip(below).map(|(above, below)| above.rate() / below.rate());
        Ratio { name, keys: drains.spread.name(), median: middle(all()).0, spread: spread_of(all(), 2) }
    };
    [
        ratio("wasm / bare drain", &drains.wasm, &drains.bare),
        ratio("wasm / native", &drains.wasm, &drains.native),
        ratio("native / wasm (tax)", &drains.native, &drains.wasm),
        ratio("wasm / plain consumer", &drains.wasm, &drains.plain),
    ]
}

fn costs(drains: &[Drains]) -> String {
    let mut rows = Vec::new();
    for drains in drains {
        for (name, runs) in [
            ("bare drain", &drains.bare),
            ("plain consumer", &drains.plain),
            ("native", &drains.native),
            ("wasm", &drains.wasm),
        ] {
            let all = |number: fn(&Run) -> f64, digits| spread_of(runs.iter().map(number), digits);
            let median = |number: fn(&Run) -> f64, digits| {
                let (median, _, _) = middle(runs.iter().map(number));
                format!("{median:.digits$}")
            };
            rows.push(vec![
                name.to_owned(),
                drains.spread.name().to_owned(),
                all(|run| run.rate() / 1e3, 1),
                median(|run| run.host_cpu_seconds * 1e6 / run.events as f64, 2),
                median(|run| run.server_cpu_seconds * 1e6 / run.events as f64, 2),
                median(|run| run.guest_seconds * 1e6 / run.events as f64, 2),
                median(|run| run.host_rss_bytes as f64 / 1e6, 0),
                median(|run| run.server_rss_bytes as f64 / 1e6, 0),
                median(|run| run.guest_bytes as f64 / 1e6, 1),
            ]);
        }
    }
    let header =
        ["ROW", "KEYS", "1,000 EVENTS/S", "HOST US", "SERVER US", "GUEST US", "HOST MB", "SERVER MB", "GUEST MB"];
    let table = table(&header, 2, rows);
    format!(
        "{table}\n(us: CPU microseconds an event, the same number as CPU seconds a million events; guest: time in its calls; MB: resident at the end)"
    )
}

fn latencies(live: &[Latency]) -> String {
    let kind = |one: &Latency| (one.per_second, one.new_keys, one.swaps);
    let mut loads: Vec<(u64, bool, u64)> = live.iter().map(kind).collect();
    loads.sort_unstable();
    loads.dedup();
    let mut rows = Vec::new();
    for load in loads {
        let all = |number: fn(&Latency) -> f64| spread_of(live.iter().filter(|one| kind(one) == load).map(number), 2);
        let (per_second, new_keys, swaps) = load;
        let keys = if new_keys { "new" } else { "known" };
        let swaps = if swaps > 0 { format!(", {swaps} changes of module") } else { String::new() };
        rows.push(vec![
            format!("{per_second}/s, {keys} keys{swaps}"),
            all(|one| one.p50_milliseconds),
            all(|one| one.p99_milliseconds),
            all(|one| one.max_milliseconds),
        ]);
    }
    table(&["PUBLISH TO VISIBLE, MS", "P50", "P99", "MAX"], 1, rows)
}

/// What changes of module do to the latency: each load with them against the same without, run just before.
fn change(live: &[Latency]) -> Option<String> {
    let pairs =
        || live.windows(2).filter(|pair| matches!(pair, [without, with] if with.swaps > 0 && without.swaps == 0));
    let ratio = |number: fn(&Latency) -> f64| {
        spread_of(pairs().filter_map(|pair| Some(number(pair.get(1)?) / number(pair.first()?))), 2)
    };
    let swapped = live.iter().filter(|one| one.swaps > 0);
    let pauses = spread_of(swapped.map(|one| one.longest_pause_milliseconds), 2);
    pairs().next()?;
    let rows = vec![
        vec!["p50 with changes of module / without".to_owned(), ratio(|one| one.p50_milliseconds)],
        vec!["p99 with changes of module / without".to_owned(), ratio(|one| one.p99_milliseconds)],
        vec!["longest pause of a change, ms".to_owned(), pauses],
    ];
    Some(table(&["RELOAD", "MEDIAN (MIN-MAX)"], 1, rows))
}
