//! A server, a host with the saga, and one run: start sagas as others complete, and measure each.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, Context, stream};
use futures::StreamExt as _;
use millstream::generation::Generation;
use millstream::generation::Generation;
use millstream::handler::{Ended, Handler};
use millstream::progress::Progress;
use millstream::sandbox::{Cache, Sandbox};
use millstream::server::Server;
use millstream::version::Version;
use millstream::{examples, names};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::services;
use crate::tuning::settings;
use crate::usage::{cpu_seconds, resident_bytes};

const NAME: &str = "transfer-money";
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

    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// The module, built by cargo.
pub(crate) fn module() -> anyhow::Result<Arc<Version>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is gone")?;
    examples::build(root, &[NAME])?;
    let bytes = std::fs::read(examples::module(root, NAME))?;
    Ok(Arc::new(Version::prepare(&Sandbox::new()?, &Cache::for_user(), NAME, settings()?, &bytes)?))
}

/// A server and a host.
pub(crate) struct World {
    server: Server,
    jetstream: Context,
    stop: watch::Sender<bool>,
    host: JoinHandle<Ended>,
    services: JoinHandle<anyhow::Result<()>>,
}

impl World {
    pub(crate) async fn new(version: &Arc<Version>) -> anyhow::Result<Self> {
        let server = Server::builder().start().await?;
        let jetstream = connect(&server).await?;
        for (name, subject) in [(EVENTS, "transfers.>"), (COMMANDS, "transfer-commands.*")] {
            let (name, subjects) = (name.to_owned(), vec![subject.to_owned()]);
            jetstream
                .create_stream(stream::Config { name, subjects, allow_direct: true, ..Default::default() })
                .await?;
        }
        let progress = Arc::new(Progress::new("bench", &version.digest.to_string()));
        let (_versions, versions) = watch::channel(Arc::clone(version));
        let generation = Generation::first(NAME);
        let (name, host) = (NAME.to_owned(), "bench".to_owned());
        let handler = Handler { name, generation, bound: None, host, versions, progress };
        let (stop, stopped) = watch::channel(false);
        let host = tokio::spawn(handler.run(connect(&server).await?, stopped));
        let services = tokio::spawn(services::answer(connect(&server).await?, COMMANDS));
        Ok(Self { server, jetstream, stop, host, services })
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
        let ended = self.host.await?;
        ensure!(ended == Ended::Stopped, "the host ended as {ended:?}");
        Ok(())
    }
}

async fn connect(server: &Server) -> anyhow::Result<Context> {
    Ok(jetstream::new(async_nats::connect(server.url()).await?))
}
