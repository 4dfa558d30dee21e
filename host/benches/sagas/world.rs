//! A server, a host with the saga, and one run: start sagas as others complete, and measure each. A projection reads the same stream,
//! beside the saga or after it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, Context, stream};
use futures::StreamExt as _;
use millstream::generation::Generation;
use millstream::handler::{Ended, Handler};
use millstream::progress::Progress;
use millstream::sandbox::{Cache, Sandbox};
use millstream::server::Server;
use millstream::settings::Settings;
use millstream::version::Version;
use millstream::{examples, names};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::services;
use crate::tuning::settings;
use crate::usage::{cpu_seconds, resident_bytes};

const NAME: &str = "transfer-money";
const PROJECTION: &str = "order-chain";
const REMINDER: &str = "reminder";
const INVOICES: &str = "INVOICES";
const EVENTS: &str = "TRANSFERS";
const COMMANDS: &str = "COMMANDS";

/// How long nothing may complete.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one run showed.
pub(crate) struct Run {
    pub(crate) sagas: u64,
    pub(crate) seconds: f64,
    latencies: Vec<Duration>,
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    pub(crate) host_cpu_seconds: f64,
    pub(crate) server_cpu_seconds: f64,
    pub(crate) host_rss_bytes: u64,
}

impl Run {
    pub(crate) fn rate(&self) -> f64 {
        self.sagas as f64 / self.seconds
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.host_cpu_seconds + self.server_cpu_seconds
    }

    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// The saga, a projection that reads all its events, and a saga that does nothing but wait.
pub(crate) struct Modules {
    saga: Arc<Version>,
    projection: Arc<Version>,
    reminder: Arc<Version>,
}

impl Modules {
    /// Built by cargo.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let transfers = "transfers.>";
        Ok(Self {
            saga: module(NAME, transfers)?,
            projection: module(PROJECTION, transfers)?,
            reminder: module(REMINDER, "invoices.>")?,
        })
    }
}

fn module(name: &str, subject: &str) -> anyhow::Result<Arc<Version>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is gone")?;
    examples::build(root, &[name])?;
    let bytes = std::fs::read(examples::module(root, name))?;
    let settings = Settings { subjects: vec![subject.to_owned()], ..settings()? };
    Ok(Arc::new(Version::prepare(&Sandbox::new()?, &Cache::for_user(), name, settings, &bytes)?))
}

/// A server and a host.
pub(crate) struct World {
    server: Server,
    jetstream: Context,
    stop: watch::Sender<bool>,
    handlers: Vec<JoinHandle<Ended>>,
    services: JoinHandle<anyhow::Result<()>>,
}

impl World {
    pub(crate) async fn new(modules: &Modules, beside: bool) -> anyhow::Result<Self> {
        let server = Server::builder().start().await?;
        let jetstream = connect(&server).await?;
        for (name, subject) in [(EVENTS, "transfers.>"), (COMMANDS, "transfer-commands.*")] {
            let (name, subjects) = (name.to_owned(), vec![subject.to_owned()]);
            jetstream
                .create_stream(stream::Config { name, subjects, allow_direct: true, ..Default::default() })
                .await?;
        }
        let services = tokio::spawn(services::answer(connect(&server).await?, COMMANDS));
        let mut world = Self { server, jetstream, stop: watch::Sender::new(false), handlers: Vec::new(), services };
        world.handle(&modules.saga, NAME).await?;
        if beside {
            world.handle(&modules.projection, PROJECTION).await?;
        }
        Ok(world)
    }

    async fn handle(&mut self, version: &Arc<Version>, name: &'static str) -> anyhow::Result<()> {
        let progress = Arc::new(Progress::new("bench", &version.digest.to_string()));
        let (_versions, versions) = watch::channel(Arc::clone(version));
        let (generation, host) = (Generation::first(name), "bench".to_owned());
        let handler = Handler { name: name.to_owned(), generation, bound: None, host, versions, progress };
        self.handlers.push(tokio::spawn(handler.run(connect(&self.server).await?, self.stop.subscribe())));
        Ok(())
    }

    /// CPU seconds, of host and server, that the projection takes for what the stream holds.
    pub(crate) async fn project(&mut self, modules: &Modules) -> anyhow::Result<f64> {
        let cpu = self.cpu()?;
        self.handle(&modules.projection, PROJECTION).await?;
        self.projected().await?;
        let now = self.cpu()?;
        Ok(now.0 - cpu.0 + now.1 - cpu.1)
    }

    /// Waits until the projection has decided all that is there.
    async fn projected(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let stream = self.jetstream.get_stream(EVENTS).await?;
            let last = stream.cached_info().state.last_sequence;
            match stream.consumer_info(PROJECTION).await {
                Ok(info) if info.ack_floor.stream_sequence >= last => return Ok(()),
                _ => ensure!(begun.elapsed() < PATIENCE, "the projection does not catch up with {last} events"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Timers set a second, by a saga that sets one for each of so many events that wait for it.
    pub(crate) async fn timers(&mut self, modules: &Modules, timers: u64) -> anyhow::Result<f64> {
        let (name, subjects) = (INVOICES.to_owned(), vec!["invoices.>".to_owned()]);
        self.jetstream
            .create_stream(stream::Config { name, subjects, allow_direct: true, ..Default::default() })
            .await?;
        let mut acks = Vec::new();
        for number in 0..timers {
            // Due in a day.
            let payload = serde_json::json!({ "invoice": format!("i-{number}"), "pay_within": 86_400_000, "answer_within": 1000 });
            let body = serde_json::json!({
                "eventId": format!("sent-{number}"),
                "eventType": "InvoiceSent",
                "aggregateId": format!("i-{number}"),
                "payload": payload,
            });
            acks.push(self.jetstream.publish("invoices.sent", body.to_string().into()).await?);
            if acks.len() == 1000 || number + 1 == timers {
                for ack in acks.drain(..) {
                    ack.await?;
                }
            }
        }
        let begun = Instant::now();
        self.handle(&modules.reminder, REMINDER).await?;
        loop {
            let set = match self.jetstream.get_stream(names::TIMERS).await {
                Ok(stream) => stream.cached_info().state.messages,
                // Not made yet.
                Err(_) => 0,
            };
            if set >= timers {
                ensure!(set == timers, "{set} timers instead of {timers}");
                return Ok(timers as f64 / begun.elapsed().as_secs_f64());
            }
            ensure!(begun.elapsed() < PATIENCE, "{set} of {timers} timers were set");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs so many sagas, so many at a time.
    pub(crate) async fn run(&self, sagas: u64, in_flight: u64) -> anyhow::Result<Run> {
        let client = connect(&self.server).await?.client();
        let mut shown = client.subscribe(names::bucket_subject(NAME, ">")).await?;
        client.flush().await?;
        let (cpu, begun) = (self.cpu()?, Instant::now());
        let mut running: HashMap<String, Instant> = HashMap::new();
        let mut latencies = Vec::new();
        let mut next = 0;
        while (latencies.len() as u64) < sagas {
            while next < sagas && (running.len() as u64) < in_flight {
                let transfer = format!("t-{next}");
                let body = serde_json::json!({
                    "eventId": format!("requested-{next}"),
                    "eventType": "TransferRequested",
                    "aggregateId": transfer,
                    "payload": { "transfer": transfer, "from": "A", "to": "B", "cents": 700 },
                });
                running.insert(transfer, Instant::now());
                client.publish("transfers.requested", body.to_string().into()).await?;
                next += 1;
            }
            let put = tokio::time::timeout(PATIENCE, shown.next()).await;
            let put = put.with_context(|| format!("stuck with {} sagas done", latencies.len()))?;
            let put = put.context("the bucket's subject was closed")?;
            if !put.payload.starts_with(br#"{"status":"completed""#) {
                continue;
            }
            let key = put.subject.rsplit('.').next().unwrap_or_default();
            if let Some(started) = running.remove(key) {
                latencies.push(started.elapsed());
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        if self.handlers.len() > 1 {
            self.projected().await?;
        }
        let now = self.cpu()?;
        self.check(sagas).await?;
        latencies.sort_unstable();
        let (writes, bytes) = self.written(sagas).await?;
        Ok(Run {
            sagas,
            seconds,
            latencies,
            writes,
            bytes,
            host_cpu_seconds: now.0 - cpu.0,
            server_cpu_seconds: now.1 - cpu.1,
            host_rss_bytes: resident_bytes(std::process::id())?,
        })
    }

    /// Each saga sent its three commands, once.
    async fn check(&self, sagas: u64) -> anyhow::Result<()> {
        let commands = self.jetstream.get_stream(COMMANDS).await?.cached_info().state.messages;
        ensure!(commands == 3 * sagas, "{commands} commands of {sagas} sagas");
        Ok(())
    }

    /// Messages stored in all streams, and bytes of those that stay, without the events that begin sagas.
    async fn written(&self, sagas: u64) -> anyhow::Result<(u64, u64)> {
        let (mut writes, mut bytes) = (0, 0);
        for name in [EVENTS, COMMANDS, names::TIMERS, &names::journal_stream(NAME), &names::bucket_stream(NAME)] {
            let state = self.jetstream.get_stream(name).await?.cached_info().state.clone();
            writes += state.last_sequence;
            bytes += state.bytes;
        }
        Ok((writes - sagas, bytes))
    }

    fn cpu(&self) -> anyhow::Result<(f64, f64)> {
        Ok((cpu_seconds(std::process::id())?, cpu_seconds(self.server.pid())?))
    }

    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.services.abort();
        let _ = self.stop.send(true);
        for handler in self.handlers {
            let ended = handler.await?;
            ensure!(ended == Ended::Stopped, "a handler ended as {ended:?}");
        }
        Ok(())
    }
}

async fn connect(server: &Server) -> anyhow::Result<Context> {
    Ok(jetstream::new(async_nats::connect(server.url()).await?))
}
