//! The projection in the real pipeline: a handler run as the supervisor runs it. The clock stops at the moment the server
//! stored the last document or record, and only counts if every document equals the fold.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use millstream::generation::Generation;
use millstream::handler::{Ended, Handler};
use millstream::progress::Progress;
use millstream::sandbox::Digest;
use millstream::sandbox::wire::{Description, Kind};
use millstream::settings::Settings;
use millstream::version::Version;
use millstream::{direct_get, names};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::guest::{self, Gauge, Make};
use crate::shop::{self, Spend};
use crate::tuning::settings;
use crate::world::{Run, STREAM, SUBJECT, World};

/// How often positions and revisions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a handler may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A guest, and what it is to decide as which handler.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) generation: Generation,
    pub(crate) subject: String,
    pub(crate) settings: Settings,
    pub(crate) make: Make,
    pub(crate) digest: Digest,
}

impl Candidate {
    /// A handler of that name that decides all orders.
    pub(crate) fn new(name: &str, make: Make, digest: Digest) -> anyhow::Result<Self> {
        Ok(Self {
            generation: Generation::first(name),
            subject: SUBJECT.to_owned(),
            settings: settings()?,
            make,
            digest,
        })
    }

    fn version(&self, digest: Digest, make: &Make, gauge: &Arc<Gauge>) -> Version {
        let description = Description {
            name: self.generation.handler.clone(),
            kind: Kind::Projection,
            subjects: vec![self.subject.clone()],
            state_version: 1,
            extra: String::new(),
        };
        let (settings, instantiate) = (self.settings.clone(), make(Arc::clone(gauge)));
        Version { digest, description, saga: None, settings, instantiate, revision: Arc::default() }
    }
}

/// A handler that runs.
pub(crate) struct Running {
    candidate: Candidate,
    gauge: Arc<Gauge>,
    progress: Arc<Progress>,
    versions: watch::Sender<Arc<Version>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Ended>,
    begun: SystemTime,
    before: (f64, f64),
}

/// Runs a handler over the whole stream.
pub(crate) async fn drain(
    world: &World,
    candidate: &Candidate,
    events: u64,
    expected: &[Spend],
) -> anyhow::Result<Run> {
    let running = Running::start(world, candidate).await?;
    let run = running.caught_up(world, events, expected).await?;
    running.end(world).await?;
    Ok(run)
}

impl Running {
    pub(crate) async fn start(world: &World, candidate: &Candidate) -> anyhow::Result<Self> {
        let jetstream = world.connect().await?;
        let gauge = Arc::new(Gauge::default());
        let progress = Arc::new(Progress::new("bench", &candidate.digest.to_string()));
        let version = candidate.version(candidate.digest, &candidate.make, &gauge);
        let (newer, versions) = watch::channel(Arc::new(version));
        let (generation, host) = (candidate.generation.clone(), "bench".to_owned());
        let name = generation.handler.clone();
        let handler = Handler { name, generation, bound: None, host, versions, progress: Arc::clone(&progress) };
        let (stop, stopped) = watch::channel(false);
        let (before, begun) = (world.cpu()?, SystemTime::now());
        let task = tokio::spawn(handler.run(jetstream, stopped));
        let candidate = candidate.clone();
        Ok(Self { candidate, gauge, progress, versions: newer, stop, task, begun, before })
    }

    /// Changes the module so many times, evenly over this time: each is compiled beside the one that runs. Answers the pauses in
    /// milliseconds.
    pub(crate) async fn swap(&self, times: u64, over: Duration) -> anyhow::Result<Vec<f64>> {
        let begun = tokio::time::Instant::now();
        let mut pauses = Vec::new();
        for number in 0..times {
            tokio::time::sleep_until(begun + over * u32::try_from(number)? / u32::try_from(times)?).await;
            let (make, digest) = tokio::task::spawn_blocking(move || guest::variant(number)).await??;
            self.versions.send_replace(Arc::new(self.candidate.version(digest, &make, &self.gauge)));
            let mut report = self.progress.report(0);
            while report.digest != digest.to_string() {
                ensure!(!self.task.is_finished(), "the handler ended: {report:?}");
                tokio::time::sleep(LOOK_EVERY).await;
                report = self.progress.report(0);
            }
            pauses.push(report.pause_microseconds.context("a pause")? as f64 / 1e3);
        }
        Ok(pauses)
    }

    /// Waits until everything up to stream sequence `head` is decided and shown, and checks it.
    pub(crate) async fn caught_up(&self, world: &World, head: u64, expected: &[Spend]) -> anyhow::Result<Run> {
        let deadline = Instant::now() + PATIENCE;
        self.decided(head).await?;
        let mut revision = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY * 2).await;
            let now = self.revision(world).await?;
            if now == revision {
                // What follows is the check's own work, not the pipeline's.
                let mut run = world.cost(head, Instant::now(), self.before)?;
                match self.check(world, expected).await {
                    Ok(()) => {
                        run.seconds = self.ended(world).await?.duration_since(self.begun)?.as_secs_f64();
                        (run.guest_seconds, run.guest_bytes) = self.gauge.read();
                        return Ok(run);
                    }
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => {}
                }
            }
            revision = now;
        }
    }

    /// Waits until everything up to that stream sequence is decided.
    pub(crate) async fn decided(&self, head: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.position() < head {
            ensure!(
                !self.task.is_finished() && Instant::now() < deadline,
                "stuck at {}: {:?}",
                self.position(),
                self.progress.report(0)
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The subject of all its documents.
    pub(crate) fn documents(&self) -> String {
        names::bucket_subject(&self.candidate.generation.name(), ">")
    }

    /// The last revision in its bucket.
    pub(crate) async fn revision(&self, world: &World) -> anyhow::Result<u64> {
        let bucket = names::bucket_stream(&self.candidate.generation.name());
        Ok(world.jetstream.get_stream(bucket).await?.cached_info().state.last_sequence)
    }

    /// Ends it at once, as a crash does: nothing more is written.
    pub(crate) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends the handler and removes what it made.
    pub(crate) async fn end(self, world: &World) -> anyhow::Result<()> {
        let _ = self.stop.send(true);
        let ended = self.task.await?;
        ensure!(ended == Ended::Stopped, "the handler ended as {ended:?}");
        let Generation { handler, .. } = &self.candidate.generation;
        let name = self.candidate.generation.name();
        world.jetstream.delete_consumer_from_stream(&name, STREAM).await?;
        world.jetstream.delete_stream(names::bucket_stream(&name)).await?;
        world.jetstream.delete_stream(names::journal_stream(handler)).await?;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.progress.report(0).positions.first().map_or(0, |position| position.sequence)
    }

    /// When the server stored the last document or record.
    pub(crate) async fn ended(&self, world: &World) -> anyhow::Result<SystemTime> {
        let mut last = self.begun;
        let generation = &self.candidate.generation;
        for name in [names::bucket_stream(&generation.name()), names::journal_stream(&generation.handler)] {
            let stream = world.jetstream.get_stream(name).await?;
            let message = stream.get_raw_message(stream.cached_info().state.last_sequence).await?;
            last = last.max(message.time.into());
        }
        Ok(last)
    }

    /// Every document, its number included, must equal the fold.
    async fn check(&self, world: &World, expected: &[Spend]) -> anyhow::Result<()> {
        let bucket = self.candidate.generation.name();
        let stream = names::bucket_stream(&bucket);
        let ordered =
            |(customer, spend): (usize, &Spend)| (spend.orders > 0).then(|| (shop::key(customer), spend.document()));
        let documents: Vec<(String, String)> = expected.iter().enumerate().filter_map(ordered).collect();
        let stored = world.jetstream.get_stream(&stream).await?.cached_info().state.messages;
        ensure!(stored == documents.len() as u64, "{stored} documents instead of {}", documents.len());
        for part in documents.chunks(direct_get::KEYS) {
            let mut wanted: std::collections::HashMap<String, &str> =
                part.iter().map(|(key, document)| (names::bucket_subject(&bucket, key), document.as_str())).collect();
            let subjects: Vec<&String> = wanted.keys().collect();
            let (found, _) = direct_get::last_of(&world.jetstream, &stream, &subjects).await?;
            for message in found {
                let document = wanted.remove(&message.subject).context("a document that nobody asked for")?;
                if message.payload != document {
                    bail!("{} is {:?} instead of {document}", message.subject, message.payload);
                }
            }
            ensure!(wanted.is_empty(), "{} documents are missing", wanted.len());
        }
        Ok(())
    }
}
