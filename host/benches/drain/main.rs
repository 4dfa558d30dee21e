//! Drains one backlog in four ways, side by side on one embedded server, and measures how soon a live event is visible:
//!
//! ```text
//! cargo bench -p millstream --bench drain -- [--events N] [--keys K] [--spread zipf] [--json FILE] [--chart FILE] [--gate FILE] [--short]
//! cargo bench -p millstream --bench drain -- --rows live --rates 25000,50000,100000
//! cargo bench -p millstream --bench drain -- --sweep keys,size,batch,handlers,backlog,older,rebuild,recovery,start,poison [--short]
//! ```
//!
//! bare: the client counts messages (the floor). plain: get, put, ack for each event. native: the projection compiled into
//! this process, in the real pipeline. wasm: the same projection as a module in the real pipeline. The rows take turns, so
//! that whatever else the machine does hits all of them; trust the ratios. Wrong documents fail the bench.

mod chart;
#[path = "../figures.rs"]
mod figures;
mod floor;
mod gate;
mod guest;
mod live;
mod ours;
mod report;
mod shop;
mod sweep;
#[path = "../tuning.rs"]
mod tuning;
#[path = "../usage.rs"]
mod usage;
mod world;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use millstream::examples;
use millstream::legible::thousands;

use live::{Latency, Load};
use ours::{Candidate, Running};
use report::{Drains, Report};
use shop::{Shop, Spread};
use sweep::Sweep;
use world::{Run, World};

/// Events of the plain consumer, a fiftieth of the backlog: it is that slow.
const PLAIN_SHARE: u64 = 50;

/// With `--short` a sweep has so many times fewer events.
const SHORT_SHARE: u64 = 20;

/// Changes of module during a load.
const SWAPS: u64 = 20;

/// A row of the interleaved runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Row {
    Bare,
    Plain,
    Native,
    Wasm,
    Live,
}

/// Measure drains and latency against an embedded server.
#[derive(Parser)]
struct Arguments {
    /// Events in the backlog; 1,000,000, or 100,000 with --short.
    #[arg(long)]
    events: Option<u64>,
    /// Customers, and so documents.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Only this spread of keys, instead of both.
    #[arg(long)]
    spread: Option<Spread>,
    /// Only these rows, for profiles; ratios need all.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Publish at these rates, instead of those of the tables; one that is too high shows in latencies that grow with the time.
    #[arg(long, value_name = "PER_SECOND", value_delimiter = ',')]
    rates: Vec<u64>,
    /// Times that each row is run.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write all numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the drains into this SVG.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Fail where a ratio is below what this table allows.
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Instead of that: change one thing at a time, and show what the cost of an event depends on.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    sweep: Vec<Sweep>,
    /// A small backlog, as CI runs it.
    #[arg(long)]
    short: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn runs(&self, row: Row) -> bool {
        self.rows.is_empty() || self.rows.contains(&row)
    }

    fn spreads(&self) -> Vec<Spread> {
        self.spread.map_or_else(|| vec![Spread::Zipf, Spread::Uniform], |spread| vec![spread])
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let events = arguments.events.unwrap_or(if arguments.short { 100_000 } else { 1_000_000 });
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is gone")?;
    examples::build(root, &["customer-spend"])?;
    let (wasm, digest) = guest::module()?;
    let native = Candidate::new("native", guest::native(), digest)?;
    let wasm = Candidate::new("wasm", wasm, digest)?;
    let world = World::new().await?;
    if !arguments.sweep.is_empty() {
        return sweeps(&arguments, &world).await;
    }
    let mut report =
        Report { events, keys: arguments.keys, repeats: arguments.repeats, drains: Vec::new(), live: Vec::new() };
    for spread in arguments.spreads() {
        let shop = Shop::new(spread, arguments.keys);
        eprintln!("{}: {events} events of 256 bytes, {} keys", spread.name(), arguments.keys);
        world.fill(&shop, events).await?;
        report.drains.push(drains(&arguments, &world, &shop, spread, events, [&native, &wasm]).await?);
        if report.live.is_empty() && arguments.runs(Row::Live) {
            report.live = live(&arguments, &world, &shop, events, &wasm).await?;
        }
    }
    report.print();
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(file) = &arguments.chart {
        let (count, keys) = (thousands(events), thousands(arguments.keys as u64));
        let title = format!("Draining {count} events of 256 bytes, {keys} keys");
        std::fs::write(file, chart::svg(&report.drains, &title))?;
    }
    if let Some(file) = &arguments.gate {
        let bars = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        gate::check(&report.ratios(), &bars)?;
    }
    Ok(())
}

/// One sweep after the other.
async fn sweeps(arguments: &Arguments, world: &World) -> anyhow::Result<()> {
    let mut points = Vec::new();
    for sweep in &arguments.sweep {
        points.extend(sweep::run(world, *sweep, if arguments.short { SHORT_SHARE } else { 1 }).await?);
    }
    sweep::print(&points);
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&points)?)?;
    }
    Ok(())
}

/// The rows in turn, so that drift hits all of them.
async fn drains(
    arguments: &Arguments,
    world: &World,
    shop: &Shop,
    spread: Spread,
    events: u64,
    [native, wasm]: [&Candidate; 2],
) -> anyhow::Result<Drains> {
    let expected = shop.fold(events);
    let mut drains = Drains { spread, bare: Vec::new(), plain: Vec::new(), native: Vec::new(), wasm: Vec::new() };
    for _ in 0..arguments.repeats {
        if arguments.runs(Row::Bare) {
            drains.bare.push(tell("bare", floor::bare(world, events).await?));
        }
        if arguments.runs(Row::Native) {
            drains.native.push(tell("native", ours::drain(world, native, events, &expected).await?));
        }
        if arguments.runs(Row::Wasm) {
            drains.wasm.push(tell("wasm", ours::drain(world, wasm, events, &expected).await?));
        }
        if arguments.runs(Row::Plain) {
            drains.plain.push(tell("plain", floor::plain(world, (events / PLAIN_SHARE).max(1)).await?));
        }
    }
    Ok(drains)
}

async fn live(
    arguments: &Arguments,
    world: &World,
    shop: &Shop,
    events: u64,
    wasm: &Candidate,
) -> anyhow::Result<Vec<Latency>> {
    let seconds = if arguments.short { 2 } else { 5 };
    let mut loads = vec![
        (200, false, 0),
        (1000, false, 0),
        (2000, false, 0),
        (10_000, false, 0),
        (25_000, false, 0),
        (50_000, false, 0),
        (200, true, 0),
        (5000, false, 0),
        (5000, false, SWAPS),
    ];
    if !arguments.rates.is_empty() {
        loads = arguments.rates.iter().map(|rate| (*rate, false, 0)).collect();
    }
    let load = |(per_second, new_keys, swaps)| Load { per_second, seconds, new_keys, swaps };
    let loads: Vec<Load> = loads.into_iter().map(load).collect();
    let spend = shop.fold(events);
    let running = Running::start(world, wasm).await?;
    running.caught_up(world, events, &spend).await?;
    let latencies = live::all(world, shop, &running, &loads, arguments.repeats, (events, spend)).await?;
    running.end(world).await?;
    Ok(latencies)
}

fn tell(row: &str, run: Run) -> Run {
    eprintln!("  {row}: {:.0} events/s", run.rate());
    run
}
