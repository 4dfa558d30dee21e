//! What hostile handlers do to their neighbours on one host:
//!
//! ```text
//! cargo bench -p millstream --bench neighbours -- [--handlers N] [--hostile N] [--harms spin,hoard,...] [--rate N] [--rounds N] [--short]
//! ```
//!
//! Calm handlers, each with its own subject, get events at an even rate, and the time from publish to visible is measured. In turn with that
//! the same beside handlers each of whose events loops, leaks or floods: with the settings that a handler has by default, first from their
//! start and then when each was stopped for its failing keys; and with settings by which nothing ever stops them, all of them looping. The
//! host is a process of its own. Trust the ratios: absolute times are this machine's.

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

/// Fuel of one call of a handler that nothing stops: about a tenth of a second.
const FUEL: u64 = 100_000_000;

/// Events of a hostile handler in a round: more than it can get through.
const EVENTS: u64 = 400;

/// What is done to hostile handlers.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    /// What a handler has by default: ten failing keys stop it.
    Usual,
    /// No number of failing keys stops it.
    None,
}

impl Guard {
    fn name(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::None => "none",
        }
    }

    fn settings(self, subject: String) -> Settings {
        let mut settings = Settings { subjects: vec![subject], ..Settings::default() };
        if self == Self::None {
            settings.batch_events = 1;
            (settings.max_failing_keys, settings.max_parked_keys) = (50_000, 50_000);
            settings.limits.fuel_per_call = FUEL;
        }
        settings
    }
}

/// Measure neighbours against an embedded server.
#[derive(Parser)]
struct Arguments {
    /// Handlers in all.
    #[arg(long, default_value_t = 200)]
    handlers: usize,
    /// How many of them are hostile.
    #[arg(long, default_value_t = 10)]
    hostile: usize,
    /// Events a second for all calm ones together.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Times that each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What the events of those by usual settings do: each does one of it.
    #[arg(long, value_delimiter = ',', default_value = "spin,hoard,babble,grow,trap")]
    harms: Vec<String>,
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
        (arguments.handlers, arguments.hostile, arguments.rounds) = (20, 2, 1);
    }
    let (seconds, settle) = if arguments.short { (4, 2) } else { (15, 12) };
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
    let calm = arguments.handlers - arguments.hostile;
    for number in 0..calm {
        let settings = Settings { subjects: vec![format!("orders.{number}")], ..Settings::default() };
        registry.deploy(&format!("calm-{number}"), &deployment(digests[0], settings)).await?;
    }
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(["--server", &server.url(), "run", "--host", "bench"]).stdin(Stdio::null()).stdout(Stdio::null());
    let host = Host(command.stderr(log.reopen()?).spawn()?);
    all_are(&jetstream, "running", "calm-", calm).await?;
    let waiting: Mutex<Vec<Waiting>> = Mutex::new((0..calm).map(|_| Waiting::default()).collect());
    // The first events make each document, and the server is done with what it began for each handler.
    measure(&jetstream, &waiting, arguments.rate, settle).await?;
    let mut rows: [(String, Vec<Latency>); 4] = [
        "alone".to_owned(),
        format!("beside {} hostile ones, from their start", arguments.hostile),
        "once these are stopped for their failing keys".to_owned(),
        format!("beside {} looping ones that nothing stops", arguments.hostile),
    ]
    .map(|name| (name, Vec::new()));
    let mut memory = 0;
    for round in 0..arguments.rounds {
        let hostile =
            Hostile { jetstream: &jetstream, registry: &registry, digest: digests[1], round, arguments: &arguments };
        let latency = || measure(&jetstream, &waiting, arguments.rate, seconds);
        rows[0].1.push(tell("alone", latency().await?));
        hostile.start(Guard::Usual).await?;
        rows[1].1.push(tell("from their start", latency().await?));
        hostile.all_are_stopped().await?;
        rows[2].1.push(tell("once stopped", latency().await?));
        hostile.remove(Guard::Usual).await?;
        hostile.start(Guard::None).await?;
        // What they do to others is measured, not how they start: until each is known for what it is.
        measure(&jetstream, &waiting, arguments.rate, settle).await?;
        let before = parked(&jetstream).await?;
        let cpu = usage::cpu_seconds(host.0.id())?;
        let begun = Instant::now();
        rows[3].1.push(tell("never stopped", latency().await?));
        let cores = (usage::cpu_seconds(host.0.id())? - cpu) / begun.elapsed().as_secs_f64();
        let parked = parked(&jetstream).await? - before;
        eprintln!("  the host used {cores:.2} cores; {parked} looping events were parked");
        memory = memory.max(usage::resident_bytes(host.0.id())?);
        hostile.remove(Guard::None).await?;
    }
    let p99 = |of: &[Latency]| figures::middle(of.iter().map(|it| it.p99)).0;
    let alone = p99(&rows[0].1);
    let row = |(name, of): &(String, Vec<Latency>)| {
        let spread = |number: fn(&Latency) -> f64| figures::spread_of(of.iter().map(number), 2);
        let ratio = format!("{:.2}", p99(of) / alone);
        vec![name.to_owned(), spread(|it| it.p50), spread(|it| it.p99), ratio, spread(|it| it.max)]
    };
    let header = [&format!("{calm} CALM HANDLERS, {}/s", arguments.rate), "P50 ms", "P99 ms", "OF ALONE", "MAX ms"];
    println!("{}", figures::table(&header, 1, rows.iter().map(row).collect()));
    println!("host at most {} MiB", memory >> 20);
    drop(host);
    server.stop().await;
    Ok(())
}

fn tell(what: &str, latency: Latency) -> Latency {
    eprintln!("  {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms", latency.p50, latency.p99, latency.max);
    latency
}

fn deployment(digest: Digest, settings: Settings) -> Deployment {
    let (subjects, desired) = (settings.subjects.clone(), Desired::Running);
    Deployment { digest, label: "bench".to_owned(), subjects, settings, desired, note: String::new(), signature: None }
}

/// The hostile handlers of a round.
struct Hostile<'a> {
    jetstream: &'a Context,
    registry: &'a Registry,
    digest: Digest,
    round: usize,
    arguments: &'a Arguments,
}

impl Hostile<'_> {
    /// How the names of all of a kind begin.
    fn names(&self, guard: Guard) -> String {
        format!("hostile-{}-{}-", guard.name(), self.round)
    }

    fn name(&self, guard: Guard, number: usize) -> String {
        format!("{}{number}", self.names(guard))
    }

    /// Deploys them and then, when each runs, lets them have their events.
    async fn start(&self, guard: Guard) -> anyhow::Result<()> {
        for number in 0..self.arguments.hostile {
            let name = self.name(guard, number);
            let settings = guard.settings(format!("told.{name}"));
            self.registry.deploy(&name, &deployment(self.digest, settings)).await?;
        }
        all_are(self.jetstream, "running", &self.names(guard), self.arguments.hostile).await?;
        for number in 0..self.arguments.hostile {
            let name = self.name(guard, number);
            let harm = match guard {
                Guard::Usual => self.arguments.harms.iter().cycle().nth(number).map_or("spin", String::as_str),
                Guard::None => "spin",
            };
            let client = self.jetstream.client();
            for event in 0..EVENTS {
                let told = format!(r#"{{"keys":["k{event}"],"number":{event},"harm":"{harm}","at":null}}"#);
                let body =
                    format!(r#"{{"eventId":"{name}-{event}","eventType":"Told","aggregateId":"it","payload":{told}}}"#);
                client.publish(format!("told.{name}"), body.into()).await?;
            }
            client.flush().await?;
        }
        Ok(())
    }

    /// Waits until each of those by usual settings was stopped.
    async fn all_are_stopped(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        all_are(self.jetstream, "failing", &self.names(Guard::Usual), self.arguments.hostile).await?;
        eprintln!("  all were stopped {:.1} s later", begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn remove(&self, guard: Guard) -> anyhow::Result<()> {
        for number in 0..self.arguments.hostile {
            self.registry.remove(&self.name(guard, number)).await?;
        }
        Ok(())
    }
}

/// Waits until all of the handlers whose names begin so are in a state.
async fn all_are(jetstream: &Context, state: &str, name: &str, count: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let overview = overview::read(jetstream).await?;
        let are = overview.handlers.iter().filter(|it| it.state == state && it.handler.starts_with(name));
        if are.count() == count {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the handlers {name}* are not {state}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
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
