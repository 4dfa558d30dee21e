//! What greedy handlers do to their neighbours on one host:
//!
//! ```text
//! cargo bench -p millstream --bench neighbours -- [--handlers N] [--greedy N] [--rate N] [--rounds N] [--short]
//! ```
//!
//! Calm handlers, each with its own subject, get events at an even rate, and the time from publish to visible is measured. In turn with that
//! the same beside handlers each of whose events loops until its fuel is used up, which is then parked while the next one loops. The host is a
//! process of its own. Trust the ratio of the two: absolute times are this machine's.

#[path = "figures.rs"]
mod figures;
#[path = "usage.rs"]
mod usage;

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, Context, stream};
use clap::Parser;
use futures::StreamExt as _;
use millstream::examples;
use millstream::overview;
use millstream::registry::{Deployment, Desired, Registry};
use millstream::sandbox::Digest;
use millstream::server::Server;
use millstream::settings::Settings;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Fuel of one call of a greedy handler: about a tenth of a second.
const FUEL: u64 = 100_000_000;

/// Events of a greedy handler in a round: more than it can get through.
const SPINS: u64 = 400;

/// Measure neighbours against an embedded server.
#[derive(Parser)]
struct Arguments {
    /// Handlers in all.
    #[arg(long, default_value_t = 200)]
    handlers: usize,
    /// How many of them are greedy.
    #[arg(long, default_value_t = 10)]
    greedy: usize,
    /// Events a second for all calm ones together.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Times that each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Few handlers, one round, as CI runs it.
    #[arg(long)]
    short: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Milliseconds from publish to visible.
#[derive(Clone, Copy, Debug)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// A calm handler's events on their way.
#[derive(Default)]
struct Waiting {
    seen: u64,
    published: VecDeque<Instant>,
}

/// The host, ended with this.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.short {
        (arguments.handlers, arguments.greedy, arguments.rounds) = (20, 2, 1);
    }
    let seconds = if arguments.short { 4 } else { 15 };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    examples::build(root, &["customer-spend", "fragile"])?;
    let module = |name: &str| std::fs::read(examples::module(root, name));
    let server = Server::builder().start().await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    for (name, subject) in [("ORDERS", "orders.>"), ("TOLD", "told.>")] {
        let subjects = vec![subject.to_owned()];
        let config =
            stream::Config { name: name.to_owned(), subjects, allow_direct: true, ..stream::Config::default() };
        jetstream.create_stream(config).await?;
    }
    let registry = Registry::open(&jetstream).await?;
    let digests =
        [registry.put_module(&module("customer-spend")?).await?, registry.put_module(&module("fragile")?).await?];
    let calm = arguments.handlers - arguments.greedy;
    for number in 0..calm {
        let settings = Settings { subjects: vec![format!("orders.{number}")], ..Settings::default() };
        registry.deploy(&format!("calm-{number}"), &deployment(digests[0], settings, Desired::Running)).await?;
    }
    greedy(&registry, digests[1], arguments.greedy, Desired::Paused).await?;
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(["--server", &server.url(), "run", "--host", "bench"]).stdin(Stdio::null()).stdout(Stdio::null());
    let host = Host(command.stderr(log.reopen()?).spawn()?);
    all_run(&jetstream, calm).await?;
    let waiting: Mutex<Vec<Waiting>> = Mutex::new((0..calm).map(|_| Waiting::default()).collect());
    // The first events make each document.
    measure(&jetstream, &waiting, arguments.rate, 3).await?;
    let (mut alone, mut beside, mut memory) = (Vec::new(), Vec::new(), 0);
    for _ in 0..arguments.rounds {
        greedy(&registry, digests[1], arguments.greedy, Desired::Paused).await?;
        alone.push(tell("alone", measure(&jetstream, &waiting, arguments.rate, seconds).await?));
        spin(&jetstream, arguments.greedy).await?;
        greedy(&registry, digests[1], arguments.greedy, Desired::Running).await?;
        let before = parked(&jetstream).await?;
        let cpu = usage::cpu_seconds(host.0.id())?;
        let begun = Instant::now();
        beside.push(tell("beside", measure(&jetstream, &waiting, arguments.rate, seconds).await?));
        let cores = (usage::cpu_seconds(host.0.id())? - cpu) / begun.elapsed().as_secs_f64();
        eprintln!(
            "  the host used {cores:.2} cores; {} looping events were parked",
            parked(&jetstream).await? - before
        );
        memory = memory.max(usage::resident_bytes(host.0.id())?);
    }
    let row = |name: &str, of: &[Latency]| {
        let spread = |number: fn(&Latency) -> f64| figures::spread_of(of.iter().map(number), 2);
        vec![name.to_owned(), spread(|it| it.p50), spread(|it| it.p99), spread(|it| it.max)]
    };
    let header = [&format!("{calm} CALM HANDLERS, {}/s", arguments.rate), "P50 ms", "P99 ms", "MAX ms"];
    let with = format!("beside {} greedy ones", arguments.greedy);
    println!("{}", figures::table(&header, 1, vec![row("alone", &alone), row(&with, &beside)]));
    let p99 = |of: &[Latency]| figures::middle(of.iter().map(|it| it.p99)).0;
    println!("p99 beside greedy ones: {:.2} of alone; host at most {} MiB", p99(&beside) / p99(&alone), memory >> 20);
    drop(host);
    server.stop().await;
    Ok(())
}

fn tell(what: &str, latency: Latency) -> Latency {
    eprintln!("  {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms", latency.p50, latency.p99, latency.max);
    latency
}

fn deployment(digest: Digest, settings: Settings, desired: Desired) -> Deployment {
    let subjects = settings.subjects.clone();
    Deployment { digest, label: "bench".to_owned(), subjects, settings, desired, note: String::new(), signature: None }
}

async fn greedy(registry: &Registry, digest: Digest, count: usize, desired: Desired) -> anyhow::Result<()> {
    for number in 0..count {
        let mut settings = Settings {
            subjects: vec![format!("told.{number}")],
            batch_events: 1,
            probation_events: 0,
            max_failing_keys: 50_000,
            max_parked_keys: 50_000,
            ..Settings::default()
        };
        settings.limits.fuel_per_call = FUEL;
        registry.deploy(&format!("greedy-{number}"), &deployment(digest, settings, desired)).await?;
    }
    Ok(())
}

/// Waits until all calm handlers run.
async fn all_run(jetstream: &Context, calm: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let overview = overview::read(jetstream).await?;
        if overview.handlers.iter().filter(|handler| handler.state == "running").count() == calm {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the handlers do not run");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Events that loop, each under a key of its own.
async fn spin(jetstream: &Context, greedy: usize) -> anyhow::Result<()> {
    let round = millstream::clock::now();
    for handler in 0..greedy {
        for number in 0..SPINS {
            let told = format!(r#"{{"keys":["k{round}-{number}"],"number":{number},"harm":"spin","at":null}}"#);
            let id = format!("{round}-{handler}-{number}");
            let body = format!(r#"{{"eventId":"{id}","eventType":"Told","aggregateId":"it","payload":{told}}}"#);
            jetstream.publish(format!("told.{handler}"), body.into()).await?.await?;
        }
    }
    Ok(())
}

async fn parked(jetstream: &Context) -> anyhow::Result<u64> {
    Ok(overview::read(jetstream).await?.handlers.iter().map(|handler| handler.counts.parked).sum())
}

/// Publishes at that rate to all calm handlers in turn, and watches their documents.
async fn measure(
    jetstream: &Context,
    waiting: &Mutex<Vec<Waiting>>,
    rate: u64,
    seconds: u64,
) -> anyhow::Result<Latency> {
    let client = jetstream.client();
    let documents = client.subscribe("$KV.*.C0").await?;
    client.flush().await?;
    let (count, handlers) = (rate * seconds, lock(waiting).len());
    let publishing = async {
        let begun = Instant::now();
        for index in 0..count {
            tokio::time::sleep_until((begun + Duration::from_nanos(index * 1_000_000_000 / rate)).into()).await;
            let handler = usize::try_from(index)? % handlers;
            if let Some(waiting) = lock(waiting).get_mut(handler) {
                waiting.published.push_back(Instant::now());
            }
            let body = format!(
                r#"{{"eventId":"{}-{index}","eventType":"OrderPlaced","aggregateId":"it","payload":{{"customer":"C0","cents":7}}}}"#,
                millstream::clock::now()
            );
            client.publish(format!("orders.{handler}"), body.into()).await?;
        }
        anyhow::Ok(())
    };
    let watching = watch(documents, count, waiting);
    let both = async { tokio::try_join!(publishing, watching) };
    let ((), mut latencies) = tokio::time::timeout(PATIENCE, both).await.context("some documents never came")??;
    latencies.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).copied().unwrap_or_default()
    };
    Ok(Latency { p50: at(0.5), p99: at(0.99), max: at(1.0) })
}

/// Milliseconds from publish to visible, of so many events.
async fn watch(
    mut documents: async_nats::Subscriber,
    count: u64,
    waiting: &Mutex<Vec<Waiting>>,
) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    while (latencies.len() as u64) < count {
        let message = documents.next().await.context("the watch ended")?;
        let arrived = Instant::now();
        let Some(number) = message.subject.strip_prefix("$KV.calm-").and_then(|rest| rest.strip_suffix(".C0")) else {
            continue;
        };
        let handler: usize = number.parse()?;
        let document: serde_json::Value = serde_json::from_slice(&message.payload)?;
        let orders = document.get("orders").and_then(serde_json::Value::as_u64).unwrap_or_default();
        let mut known = lock(waiting);
        let Some(waiting) = known.get_mut(handler) else { continue };
        for _ in waiting.seen..orders {
            let published = waiting.published.pop_front().context("a document counts what nobody published")?;
            latencies.push(arrived.duration_since(published).as_secs_f64() * 1e3);
        }
        waiting.seen = waiting.seen.max(orders);
    }
    Ok(latencies)
}

fn lock(waiting: &Mutex<Vec<Waiting>>) -> MutexGuard<'_, Vec<Waiting>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
