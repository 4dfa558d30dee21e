//! Three-step sagas, from the event that begins one to the instance that says `completed` in the bucket. The services that carry
//! the commands out, and whoever asks for transfers, are simulated in this process; so many sagas are in flight at a time. And the
//! same with a projection beside it on the same stream: do the two slow each other by more than their own work? And timers alone.
//!
//! `cargo bench -p millstream --bench sagas [-- --short]`

#[path = "../figures.rs"]
mod figures;
mod services;
#[path = "../tuning.rs"]
mod tuning;
#[path = "../usage.rs"]
mod usage;
mod world;

use std::time::Duration;

use clap::Parser;

use crate::figures::{spread_of, table};
use crate::world::{Modules, Run, World};

#[derive(Parser)]
struct Arguments {
    /// Sagas of one run.
    #[arg(long)]
    sagas: Option<u64>,
    /// Sagas in flight; several make several rows.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10])]
    in_flight: Vec<u64>,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Few sagas, as CI runs it.
    #[arg(long)]
    short: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let sagas = arguments.sagas.unwrap_or(if arguments.short { 3000 } else { 30_000 });
    let modules = Modules::build()?;
    let mut rows = Vec::new();
    for &in_flight in &arguments.in_flight {
        let mut runs = Vec::new();
        // Few in flight cannot be many a second: fewer make the same picture.
        let sagas = if in_flight < 100 { sagas / 10 } else { sagas };
        for _ in 0..arguments.repeats {
            let world = World::new(&modules, false).await?;
            let run = world.run(sagas, in_flight).await?;
            eprintln!("{in_flight} in flight: {:.0} sagas/s", run.rate());
            runs.push(run);
            world.end().await?;
        }
        rows.push((in_flight.to_string(), runs));
    }
    let most = arguments.in_flight.iter().copied().max().unwrap_or(1000);
    let mut timers = Vec::new();
    for _ in 0..arguments.repeats {
        let mut world = World::new(&modules, false).await?;
        timers.push(world.timers(&modules, sagas).await?);
        world.end().await?;
    }
    let neighbours = neighbours(&modules, sagas, most, arguments.repeats).await?;
    print(&rows);
    println!("\n{sagas} timers: {} set a second", spread_of(timers.into_iter(), 0));
    println!("\na projection beside the saga, {most} in flight, CPU us a saga of host and server:");
    for (number, (saga, projection, both)) in neighbours.into_iter().enumerate() {
        let ratio = both / (saga + projection);
        println!("{}: saga {saga:.0} + projection {projection:.0}, together {both:.0}: {ratio:.2}", number + 1);
    }
    Ok(())
}

/// CPU microseconds a saga: of the saga alone, of the projection alone over the same events afterwards, and of both at once.
async fn neighbours(
    modules: &Modules,
    sagas: u64,
    in_flight: u64,
    repeats: usize,
) -> anyhow::Result<Vec<(f64, f64, f64)>> {
    let micros = |seconds: f64| seconds * 1e6 / sagas as f64;
    let mut rows = Vec::new();
    for _ in 0..repeats {
        let mut world = World::new(modules, false).await?;
        let alone = world.run(sagas, in_flight).await?;
        let projection = world.project(modules).await?;
        world.end().await?;
        let world = World::new(modules, true).await?;
        let both = world.run(sagas, in_flight).await?;
        world.end().await?;
        eprintln!("{in_flight} in flight: {:.0} sagas/s alone, {:.0} beside a projection", alone.rate(), both.rate());
        rows.push((micros(alone.cpu_seconds()), micros(projection), micros(both.cpu_seconds())));
    }
    Ok(rows)
}

fn print(rows: &[(String, Vec<Run>)]) {
    let row = |(label, runs): &(String, Vec<Run>)| {
        let column = |value: &dyn Fn(&Run) -> f64, digits: usize| spread_of(runs.iter().map(value), digits);
        let micros = |seconds: f64, run: &Run| seconds * 1e6 / run.sagas as f64;
        vec![
            label.clone(),
            column(&Run::rate, 0),
            column(&|run| millis(run.quantile(0.5)), 2),
            column(&|run| millis(run.quantile(0.99)), 2),
            column(&|run| run.writes as f64 / run.sagas as f64, 2),
            column(&|run| run.bytes as f64 / run.sagas as f64, 0),
            column(&|run| micros(run.host_cpu_seconds, run), 0),
            column(&|run| micros(run.server_cpu_seconds, run), 0),
            column(&|run| run.host_rss_bytes as f64 / 1e6, 0),
        ]
    };
    let header = [
        "IN FLIGHT",
        "SAGAS/S",
        "P50 MS",
        "P99 MS",
        "WRITES A SAGA",
        "BYTES A SAGA",
        "HOST US",
        "SERVER US",
        "HOST MB",
    ];
    println!("{}", table(&header, 0, rows.iter().map(row).collect()));
    println!(
        "(median (min-max); start to the completed instance in the bucket; writes and bytes of all streams but the events \
         that begin sagas; CPU a saga, host's with services and publisher)"
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
