//! What the cost of an event depends on: the same drain with one thing changed at a time, beside the bare drain of the same stream. In: which
//! thing. Out: a row for each value; the documents of each are checked like any other run's. Never: compares rows of different machines.

use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use clap::ValueEnum;
use millstream::generation::Generation;
use millstream::names;
use millstream::settings::Settings;
use serde::Serialize;

use crate::figures::table;
use crate::floor;
use crate::guest;
use crate::ours::{self, Candidate, Running};
use crate::shop::{BODY_BYTES, Order, Shop, Spread};
use crate::world::{Run, SUBJECT, World};

/// Documents, where something else is changed.
const KEYS: usize = 10_000;

/// Two looks at the buckets of several handlers are so far apart.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// The thing that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sweep {
    /// Documents, all alike often.
    Keys,
    /// Bytes of an event.
    Size,
    /// Events of one batch at most.
    Batch,
    /// Handlers that share the same events among them.
    Handlers,
    /// Events that wait.
    Backlog,
    /// Messages of others that the stream holds from before.
    Older,
    /// A second generation beside the live one, built from the first event on.
    Rebuild,
    /// A host that died with so many events decided and no document written since the first.
    Recovery,
    /// A module never seen before, until its first document is there.
    Start,
    /// A key whose second event cannot be applied: it is parked, with all that follow it.
    Poison,
}

/// One value.
#[derive(Serialize)]
pub(crate) struct Point {
    sweep: Sweep,
    value: String,
    /// Of a bare drain just before; none where there is none to compare with.
    bare: Option<Run>,
    ours: Run,
}

/// All values of one sweep. `scale` divides the events.
pub(crate) async fn run(world: &World, sweep: Sweep, scale: u64) -> anyhow::Result<Vec<Point>> {
    let bench = Bench { world, sweep, wasm: wasm()? };
    let mut points = Vec::new();
    match sweep {
        Sweep::Keys => {
            for (keys, events) in [(100, 500_000), (10_000, 500_000), (100_000, 500_000), (1_000_000, 2_000_000)] {
                let shop = Shop::new(Spread::Uniform, keys);
                world.fill(&shop, events / scale).await?;
                points.push(bench.drain(keys, &bench.wasm, &shop, events / scale).await?);
            }
        }
        Sweep::Size => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            for (bytes, events) in [(64, 500_000), (256, 500_000), (1024, 300_000), (4096, 100_000), (65_536, 8_000)] {
                let events = events / scale;
                world.empty().await?;
                world.append(events, |index| (SUBJECT.to_owned(), shop.order(index).body(bytes))).await?;
                points.push(bench.drain(bytes, &bench.wasm, &shop, events).await?);
            }
        }
        Sweep::Batch => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            for (batch_events, events) in [
                (1, 20_000),
                (10, 200_000),
                (100, 500_000),
                (1000, 500_000),
                (2000, 1_000_000),
                (4000, 1_000_000),
                (8000, 1_000_000),
            ] {
                let candidate = bench.with(|settings| settings.batch_events = batch_events);
                world.fill(&shop, events / scale).await?;
                points.push(bench.drain(batch_events, &candidate, &shop, events / scale).await?);
            }
        }
        Sweep::Handlers => {
            for handlers in [1, 10, 50, 200] {
                points.push(bench.handlers(handlers, 1_000_000 / scale).await?);
            }
        }
        Sweep::Backlog => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            for events in [10_000, 100_000, 1_000_000] {
                world.fill(&shop, events / scale).await?;
                points.push(bench.drain(events / scale, &bench.wasm, &shop, events / scale).await?);
            }
        }
        Sweep::Older => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            for older in [0, 1_000_000, 10_000_000] {
                points.push(bench.older(older / scale, &shop, 300_000 / scale).await?);
            }
        }
        Sweep::Rebuild => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            let events = 1_000_000 / scale;
            world.fill(&shop, events).await?;
            let shadow = Candidate { generation: Generation::shadow("wasm", 2), ..bench.wasm.clone() };
            points.push(bench.drain("live", &bench.wasm, &shop, events).await?);
            points.push(bench.drain("beside it", &shadow, &shop, events).await?);
        }
        Sweep::Recovery => {
            let shop = Shop::new(Spread::Zipf, KEYS);
            for events in [10_000, 100_000, 1_000_000] {
                points.push(bench.recovery(&shop, events / scale).await?);
            }
        }
        Sweep::Start => {
            for number in 0..5 {
                points.push(bench.start(number).await?);
            }
        }
        Sweep::Poison => {
            let shop = Shop::new(Spread::Uniform, KEYS);
            for _ in 0..3 {
                points.push(bench.poison("no key", u64::MAX, &shop, 500_000 / scale).await?);
                points.push(bench.poison("one key", second_of_a_customer(&shop), &shop, 500_000 / scale).await?);
            }
        }
    }
    Ok(points)
}

/// A table of all points.
pub(crate) fn print(points: &[Point]) {
    let rows = points.iter().map(|point| {
        let Point { sweep, value, bare, ours } = point;
        let micros = |seconds: f64| format!("{:.2}", seconds * 1e6 / ours.events as f64);
        let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        vec![
            format!("{sweep:?}").to_lowercase(),
            value.clone(),
            ours.events.to_string(),
            format!("{:.3}", ours.seconds),
            format!("{:.1}", ours.rate() / 1e3),
            bare.as_ref().map_or_else(String::new, |bare| format!("{:.2}", ours.rate() / bare.rate())),
            micros(ours.host_cpu_seconds),
            micros(ours.server_cpu_seconds),
            megabytes(ours.host_rss_bytes),
            megabytes(ours.server_rss_bytes),
            format!("{:.1}", ours.guest_bytes as f64 / 1e6),
        ]
    });
    let header = [
        "CHANGED",
        "TO",
        "EVENTS",
        "SECONDS",
        "1,000 EVENTS/S",
        "OF BARE",
        "HOST US",
        "SERVER US",
        "HOST MB",
        "SERVER MB",
        "GUEST MB",
    ];
    println!("{}", table(&header, 1, rows.collect()));
}

/// The second order of whoever ordered first.
fn second_of_a_customer(shop: &Shop) -> u64 {
    let customer = shop.order(0).customer;
    (1..).find(|index| shop.order(*index).customer == customer).unwrap_or(u64::MAX)
}

fn wasm() -> anyhow::Result<Candidate> {
    let (make, digest) = guest::module()?;
    Candidate::new("wasm", make, digest)
}

struct Bench<'a> {
    world: &'a World,
    sweep: Sweep,
    wasm: Candidate,
}

impl Bench<'_> {
    fn with(&self, change: impl FnOnce(&mut Settings)) -> Candidate {
        let mut candidate = self.wasm.clone();
        change(&mut candidate.settings);
        candidate
    }

    fn point(&self, value: impl ToString, bare: Option<Run>, ours: Run) -> Point {
        let value = value.to_string();
        eprintln!("  {:?} {value}: {:.0} events/s", self.sweep, ours.rate());
        Point { sweep: self.sweep, value, bare, ours }
    }

    /// The stream as it is: bare, then ours.
    async fn drain(
        &self,
        value: impl ToString,
        candidate: &Candidate,
        shop: &Shop,
        events: u64,
    ) -> anyhow::Result<Point> {
        let bare = floor::bare(self.world, events).await?;
        let ours = ours::drain(self.world, candidate, events, &shop.fold(events)).await?;
        Ok(self.point(value, Some(bare), ours))
    }

    /// So many handlers, each with a subject, a bucket and a share of events and keys of its own.
    async fn handlers(&self, handlers: u64, events: u64) -> anyhow::Result<Point> {
        let shop = Shop::new(Spread::Zipf, KEYS / usize::try_from(handlers)?);
        // The last token is the type of the event.
        let subject = |number: u64| format!("orders.{number}.placed");
        let each = events / handlers;
        // Handler n has orders n * each and following, all in turn.
        let order = |index: u64| (index % handlers) * each + index / handlers;
        self.world.empty().await?;
        self.world
            .append(each * handlers, |index| (subject(index % handlers), shop.order(order(index)).body(BODY_BYTES)))
            .await?;
        let subjects: Vec<String> = (0..handlers).map(subject).collect();
        let bare = floor::bare_each(self.world, &subjects, each).await?;
        let (before, begun) = (self.world.cpu()?, SystemTime::now());
        let mut running = Vec::new();
        for (number, subject) in subjects.iter().enumerate() {
            let generation = Generation::first(&format!("wasm-{number}"));
            let candidate = Candidate { generation, subject: subject.clone(), ..self.wasm.clone() };
            running.push(Running::start(self.world, &candidate).await?);
        }
        for (number, running) in (0..).zip(&running) {
            running.decided((each - 1) * handlers + number + 1).await?;
        }
        self.quiet(&running).await?;
        let mut ours = self.world.cost(each * handlers, Instant::now(), before)?;
        for (number, running) in (0..).zip(running) {
            let expected = shop.fold_of(number * each..(number + 1) * each);
            let run = running.caught_up(self.world, 0, &expected).await?;
            // From the first one's beginning until the last document of the last is there.
            ours.seconds = ours.seconds.max(running.ended(self.world).await?.duration_since(begun)?.as_secs_f64());
            ours.guest_bytes += run.guest_bytes;
            ours.guest_seconds += run.guest_seconds;
            running.end(self.world).await?;
        }
        Ok(self.point(handlers, Some(bare), ours))
    }

    /// Waits until none of them writes documents any more.
    async fn quiet(&self, running: &[Running]) -> anyhow::Result<()> {
        let mut before = 0;
        loop {
            let mut revisions = 0;
            for running in running {
                revisions += running.revision(self.world).await?;
            }
            if revisions == before {
                return Ok(());
            }
            before = revisions;
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// All orders, of which one asks for more than a sum can hold: the documents of all other customers are as ever.
    async fn poison(&self, value: &str, bad: u64, shop: &Shop, events: u64) -> anyhow::Result<Point> {
        let order = |index: u64| match index == bad {
            true => Order { cents: u64::MAX, ..shop.order(index) },
            false => shop.order(index),
        };
        self.world.empty().await?;
        self.world.append(events, |index| (SUBJECT.to_owned(), order(index).body(BODY_BYTES))).await?;
        let bare = floor::bare(self.world, events).await?;
        let is_parked = |index: u64| index >= bad && shop.order(index).customer == shop.order(bad).customer;
        let expected = shop.fold_of((0..events).filter(|index| !is_parked(*index)));
        let ours = ours::drain(self.world, &self.wasm, events, &expected).await?;
        if bad < events {
            let letters = self.world.jetstream.get_stream(names::DEAD).await?.cached_info().state.messages;
            let parked = (0..events).filter(|index| is_parked(*index)).count();
            ensure!(letters == parked as u64, "{letters} dead letters instead of {parked}");
            self.world.jetstream.delete_stream(names::DEAD).await?;
        }
        Ok(self.point(value, Some(bare), ours))
    }

    /// A stream that has held so many messages of others for long.
    async fn older(&self, older: u64, shop: &Shop, events: u64) -> anyhow::Result<Point> {
        self.world.empty().await?;
        self.world.append(older, |index| ("orders.old".to_owned(), shop.order(index).body(64))).await?;
        self.world.append(events, |index| (SUBJECT.to_owned(), shop.order(index).body(BODY_BYTES))).await?;
        let bare = floor::bare_each(self.world, &[SUBJECT.to_owned()], events).await?;
        let running = Running::start(self.world, &self.wasm).await?;
        let mut ours = running.caught_up(self.world, older + events, &shop.fold(events)).await?;
        ours.events = events;
        running.end(self.world).await?;
        Ok(self.point(older, Some(bare), ours))
    }

    /// A host that shows nothing decides all, dies, and another takes over: from its start until all is shown.
    async fn recovery(&self, shop: &Shop, events: u64) -> anyhow::Result<Point> {
        self.world.fill(shop, events).await?;
        let silent = self.with(|settings| settings.show_interval_milliseconds = 3_600_000);
        let first = Running::start(self.world, &silent).await?;
        first.decided(events).await?;
        first.crash().await;
        let next = Running::start(self.world, &self.wasm).await?;
        let ours = next.caught_up(self.world, events, &shop.fold(events)).await?;
        next.end(self.world).await?;
        Ok(self.point(events, None, ours))
    }

    /// From the bytes of a module until its first document is there.
    async fn start(&self, number: u64) -> anyhow::Result<Point> {
        let shop = Shop::new(Spread::Zipf, KEYS);
        self.world.fill(&shop, 1).await?;
        let begun = Instant::now();
        let (make, digest) = tokio::task::spawn_blocking(move || guest::variant(100 + number)).await??;
        let compiled = begun.elapsed();
        let candidate = Candidate { make, digest, ..self.wasm.clone() };
        let running = Running::start(self.world, &candidate).await?;
        let mut ours = running.caught_up(self.world, 1, &shop.fold(1)).await?;
        ours.seconds += compiled.as_secs_f64();
        running.end(self.world).await?;
        Ok(self.point(format!("compiled in {:.0} ms", compiled.as_secs_f64() * 1e3), None, ours))
    }
}
