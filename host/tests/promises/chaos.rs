//! Whatever happens to hosts, servers and the network between them: in the end each event was decided once, in order, and each message
//! sent once. A seed chooses what happens; it is printed, and the same seed makes the same choices.
//!
//! Three servers form a cluster, everything has three replicas; three hosts share out three handlers while events come in. Hosts are killed
//! and stopped, their links cut, servers killed, leaders asked to step down, modules deployed that fail at poisoned events, and what is
//! parked is taken up. The oracle reads the stream itself and folds it on its own.
//!
//! `MILLSTREAM_CHAOS_SEEDS=1,2,3` runs these seeds, `MILLSTREAM_CHAOS_SECONDS=50` each for so long.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::StreamExt as _;
use millstream::journal::{Counts, Journal, Record};
use millstream::registry::Registry;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::cluster::{Cluster, Link};
use crate::harness::{Dice, Documents, Host, claims_in_turn, cli, documents_of, module, pause, records};
use crate::parking::{Told, fold};

/// How long anything may take once the chaos is over. A cluster on two cores that has lost servers is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Seeds that once failed stay here.
const SEEDS: [u64; 1] = [1];

const HANDLERS: [&str; 3] = ["fragile", "chain", "receipt"];

/// Host and link; a host that is down comes back at that moment.
struct Seat {
    link: Link,
    host: Option<Host>,
    lives: u64,
    is_stopped: bool,
    again_at: Option<Instant>,
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    hosts_killed: u64,
    hosts_stopped: u64,
    links_cut: u64,
    servers_killed: u64,
    leaders_changed: u64,
    deployments: u64,
    redrives: u64,
    /// After they ended because no server answered when they began.
    hosts_begun_again: u64,
}

struct Chaos {
    cluster: Cluster,
    seats: Vec<Seat>,
    server_again_at: Option<(usize, Instant)>,
    dice: Dice,
    done: Done,
    /// Commands that are under way: in trouble they take long, and more is to happen meanwhile.
    asked: JoinSet<(Command, bool)>,
}

/// A command of a person.
#[derive(Clone, Copy, Debug)]
enum Command {
    Deploy,
    Redrive,
}

/// Commands under way at once, at most: people are few.
const ASKED: usize = 2;

impl Chaos {
    async fn new(seed: u64) -> Self {
        let cluster = Cluster::new().await;
        cluster.stream("TOLD", &["told.>"]).await;
        cluster.stream("ORDERS", &["orders.>"]).await;
        cluster.stream("RECEIPTS", &["receipts.>"]).await;
        let mut seats = Vec::new();
        for number in 0..3 {
            let link = Link::new(cluster.ports(), number).await;
            seats.push(Seat { link, host: None, lives: 0, is_stopped: false, again_at: None });
        }
        let mut chaos = Self {
            cluster,
            seats,
            server_again_at: None,
            dice: Dice::new(seed),
            done: Done::default(),
            asked: JoinSet::new(),
        };
        chaos.deploy("fragile", "fragile").await;
        chaos.deploy("order-chain", "chain").await;
        chaos.deploy("order-receipt", "receipt").await;
        for number in 0..3 {
            chaos.begin(number);
        }
        chaos
    }

    fn begin(&mut self, number: usize) {
        let seat = &mut self.seats[number];
        seat.lives += 1;
        let name = format!("host-{number}");
        seat.host = Some(Host::start(&seat.link.url(), &[("MILLSTREAM_HOST", &name)]));
        (seat.is_stopped, seat.again_at) = (false, None);
    }

    /// Any server that takes it; false where none did in time.
    fn ask(&self, arguments: &[&str]) -> bool {
        cli(&self.urls(), arguments).status.success()
    }

    fn urls(&self) -> String {
        let urls: Vec<String> = self.cluster.servers.iter().map(|server| server.url()).collect();
        urls.join(",")
    }

    /// The same beside all else, unless enough is asked already.
    fn ask_beside(&mut self, command: Command, arguments: Vec<String>) {
        self.count_asked();
        if self.asked.len() < ASKED {
            let urls = self.urls();
            self.asked.spawn_blocking(move || {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                (command, cli(&urls, &arguments).status.success())
            });
        }
    }

    fn count_asked(&mut self) {
        while let Some(Ok((command, done))) = self.asked.try_join_next() {
            match command {
                Command::Deploy => self.done.deployments += u64::from(done),
                Command::Redrive => self.done.redrives += u64::from(done),
            }
        }
    }

    async fn deploy(&self, example: &str, name: &str) {
        let arguments = deployment(example, name);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let deadline = Instant::now() + PATIENCE;
        while !self.ask(&arguments) {
            assert!(Instant::now() < deadline, "{name} cannot be deployed");
            pause().await;
        }
    }

    fn later(&mut self, from: u64, to: u64) -> Instant {
        Instant::now() + Duration::from_millis(from + self.dice.roll(to - from))
    }

    /// One thing that happens.
    async fn happen(&mut self) {
        let number = usize::try_from(self.dice.roll(3)).expect("small");
        match self.dice.roll(12) {
            0 | 1 => self.kill_host(number),
            2 | 3 => self.stop_host(number),
            4 | 5 => self.cut_link(number),
            6 if self.server_again_at.is_none() => {
                self.cluster.servers[number].kill();
                self.done.servers_killed += 1;
                self.server_again_at = Some((number, self.later(500, 3000)));
            }
            7 | 8 => {
                let streams = [
                    "TOLD",
                    "ORDERS",
                    "KV_chain",
                    "KV_fragile",
                    "MILLSTREAM_JOURNAL_chain",
                    "MILLSTREAM_JOURNAL_fragile",
                    "KV_MILLSTREAM_HOSTS",
                ];
                let stream = streams[usize::try_from(self.dice.roll(streams.len() as u64)).expect("small")];
                self.done.leaders_changed += u64::from(self.cluster.step_down(stream).await);
            }
            9 => {
                let example = if self.dice.roll(3) == 0 { "fragile-mended" } else { "fragile" };
                self.ask_beside(Command::Deploy, deployment(example, "fragile"));
            }
            _ => {
                let redrive = ["redrive", "fragile", "--all", "--timeout", "1"].map(str::to_owned);
                self.ask_beside(Command::Redrive, redrive.into());
            }
        }
    }

    fn kill_host(&mut self, number: usize) {
        let again = self.later(0, 3000);
        let seat = &mut self.seats[number];
        if let Some(mut host) = seat.host.take() {
            host.kill();
            seat.again_at = Some(again);
            self.done.hosts_killed += 1;
        }
    }

    fn stop_host(&mut self, number: usize) {
        let again = self.later(200, 4000);
        let seat = &mut self.seats[number];
        if let Some(host) = seat.host.as_ref().filter(|_| seat.again_at.is_none()) {
            host.signal("STOP");
            (seat.is_stopped, seat.again_at) = (true, Some(again));
            self.done.hosts_stopped += 1;
        }
    }

    fn cut_link(&mut self, number: usize) {
        let again = self.later(200, 4000);
        let seat = &mut self.seats[number];
        if seat.again_at.is_none() {
            seat.link.cut();
            seat.again_at = Some(again);
            self.done.links_cut += 1;
        }
    }

    /// Brings back what is due by then, all of it where `all`.
    async fn bring_back(&mut self, all: bool) {
        let now = Instant::now();
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            if !seat.again_at.is_some_and(|at| all || at <= now) {
                continue;
            }
            seat.again_at = None;
            seat.link.mend();
            match &seat.host {
                None => self.begin(number),
                Some(host) if seat.is_stopped => {
                    host.signal("CONT");
                    seat.is_stopped = false;
                }
                Some(_) => {}
            }
        }
        if let Some((number, _)) = self.server_again_at.filter(|(_, at)| all || *at <= now) {
            self.cluster.servers[number].restart().await.expect("the server restarts on its folder");
            self.server_again_at = None;
        }
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            let Some(status) = seat.host.as_mut().and_then(Host::ended) else { continue };
            // As a service manager would: one that finds no server that answers when it begins says so and ends.
            let log = seat.host.as_ref().map(Host::log).unwrap_or_default();
            assert_eq!(status.code(), Some(1), "host {number}, its log:\n{log}");
            assert!(!log.contains("panicked"), "host {number}, its log:\n{log}");
            self.done.hosts_begun_again += 1;
            self.begin(number);
        }
    }

    /// Brings back everything, until three hosts live.
    async fn all_live(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.bring_back(true).await;
            let hosts = match Registry::open(&self.cluster.jetstream).await {
                Ok(registry) => registry.live_hosts().await.map_or(0, |hosts| hosts.len()),
                Err(_) => 0,
            };
            if hosts == self.seats.len() {
                return;
            }
            assert!(Instant::now() < deadline, "{hosts} hosts live");
            pause().await;
        }
    }

    /// What a stream holds, in its order.
    async fn read(&self, stream: &str) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(all) = self.read_once(stream).await {
                return all;
            }
            assert!(Instant::now() < deadline, "{stream} cannot be read");
            pause().await;
        }
    }

    async fn read_once(&self, stream: &str) -> Option<Vec<Value>> {
        let stream = self.cluster.jetstream.get_stream(stream).await.ok()?;
        let count = stream.cached_info().state.messages;
        let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() };
        let mut messages = stream.create_consumer(config).await.ok()?.messages().await.ok()?;
        let mut all = Vec::new();
        while (all.len() as u64) < count {
            let message = tokio::time::timeout(Duration::from_secs(5), messages.next()).await.ok()??.ok()?;
            let mut body: Value = serde_json::from_slice(&message.payload).ok()?;
            body["sequence"] = json!(message.info().ok()?.stream_sequence);
            all.push(body);
        }
        Some(all)
    }

    async fn counts(&self, handler: &str) -> Option<Counts> {
        let journal = Journal::open(&self.cluster.jetstream, handler, 3).await.ok()?;
        let (last, bytes) = journal.last().await.ok()??;
        Some(Record::decode(&bytes, last).ok()?.counts)
    }

    /// Waits, and says what is wrong where it takes too long.
    async fn settle(&self, what: &str, mut wrong: impl AsyncFnMut() -> Option<String>) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(wrong) = wrong().await {
            if Instant::now() > deadline {
                let mut logs = String::new();
                for (number, seat) in self.seats.iter().enumerate() {
                    let log = seat.host.as_ref().map(Host::log).unwrap_or_default();
                    let _ = write!(logs, "--- host {number}, life {} ---\n{log}\n", seat.lives);
                }
                panic!("{what}: {wrong}\n{:?}\n{logs}", self.done);
            }
            pause().await;
        }
    }
}

fn deployment(example: &str, name: &str) -> Vec<String> {
    let module = module(example);
    let settings =
        ["replicas=3", "batch_events=50", "probation_events=0", "max_failing_keys=1000", "max_parked_keys=1000"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments = ["deploy", module.to_str().expect("path"), "--name", name, "--no-wait"].into_iter().chain(settings);
    arguments.map(str::to_owned).collect()
}

/// Publishes until it is told to stop; what the cluster took is found in the streams.
async fn publish(cluster: async_nats::jetstream::Context, stop: Arc<AtomicBool>, seed: u64) {
    let mut dice = Dice::new(seed ^ 0xC4A05);
    let mut number = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let mut acks = Vec::new();
        for _ in 0..20 {
            number += 1;
            let harm = (dice.roll(200) == 0).then_some(if dice.roll(3) == 0 { "trap" } else { "refuse" });
            let told = json!({ "keys": [format!("k{}", dice.roll(40))], "number": number, "harm": harm, "at": null });
            let payload = json!({ "customer": format!("C{}", dice.roll(20)), "cents": dice.roll(1000) });
            let order = json!({ "eventId": format!("e{number}"), "eventType": "OrderPlaced",
                "aggregateId": format!("order-{}", dice.roll(50)), "payload": payload });
            for (subject, id, body) in [("told.Told", "told", told), ("orders.placed", "order", order)] {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("{id}-{number}"));
                if let Ok(ack) = cluster.publish_with_headers(subject, headers, body.to_string().into()).await {
                    acks.push(ack);
                }
            }
        }
        for ack in acks {
            // One that is lost may be stored or not: the stream tells.
            let _ = tokio::time::timeout(Duration::from_secs(2), ack.into_future()).await;
        }
    }
}

fn told(body: &Value) -> Told {
    let keys = body["keys"].as_array().expect("keys").iter();
    Told {
        keys: keys.map(|key| key.as_str().expect("a key").to_owned()).collect(),
        number: body["number"].as_u64().expect("a number"),
        harm: None,
    }
}

fn chains(orders: &[Value]) -> Documents {
    use sha2::{Digest as _, Sha256};
    let mut chains: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    for order in orders {
        let (aggregate, id) = (order["aggregateId"].as_str().expect("it"), order["eventId"].as_str().expect("it"));
        let (hash, count) = chains.entry(aggregate).or_default();
        *hash = hex::encode(Sha256::digest(format!("{hash}{id}")));
        *count += 1;
    }
    let document = |(hash, events): (String, u64)| format!(r#"{{"hash":"{hash}","events":{events}}}"#);
    chains.into_iter().map(|(aggregate, chain)| (aggregate.to_owned(), document(chain))).collect()
}

async fn survives(seed: u64, length: Duration) {
    let begun = Instant::now();
    let mut chaos = Chaos::new(seed).await;
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish(chaos.cluster.jetstream.clone(), Arc::clone(&stop), seed));
    let until = Instant::now() + length;
    while Instant::now() < until {
        chaos.happen().await;
        let next = chaos.later(50, 900);
        while Instant::now() < next {
            chaos.bring_back(false).await;
            pause().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    publishing.await.expect("the publisher ends");
    let calm = Instant::now();
    chaos.all_live().await;
    while !chaos.asked.is_empty() {
        chaos.count_asked();
        pause().await;
    }
    chaos.deploy("fragile-mended", "fragile").await;

    let (events, orders) = (chaos.read("TOLD").await, chaos.read("ORDERS").await);
    let due = [("fragile", events.len()), ("chain", orders.len()), ("receipt", orders.len())];
    for (handler, due) in due {
        chaos
            .settle(handler, async || {
                let counts = chaos.counts(handler).await;
                let decided = counts.is_some_and(|counts| counts.delivered == due as u64);
                (!decided).then(|| format!("{counts:?}, {due} events"))
            })
            .await;
    }
    chaos
        .settle("nothing is parked any more", async || {
            let counts = chaos.counts("fragile").await;
            let is_whole = counts.is_some_and(|counts| (counts.applied, counts.parked) == (events.len() as u64, 0));
            (!is_whole && !chaos.ask(&["redrive", "fragile", "--all", "--timeout", "5"])).then(|| format!("{counts:?}"))
        })
        .await;
    let folded = fold(&events.iter().map(told).collect::<Vec<_>>());
    for (handler, expected) in [("fragile", folded), ("chain", chains(&orders))] {
        chaos
            .settle("documents equal the fold of the stream", async || {
                let found = documents_of(&chaos.cluster.jetstream, handler).await;
                let wrong = expected.iter().find(|(key, document)| found.get(*key) != Some(document));
                (found != expected)
                    .then(|| format!("{handler}: {wrong:?}, found {:?}", wrong.map(|(key, _)| found.get(key))))
            })
            .await;
    }
    let ids: BTreeSet<&str> = orders.iter().map(|order| order["eventId"].as_str().expect("an id")).collect();
    chaos
        .settle("each order has its receipt", async || {
            let count = chaos.read("RECEIPTS").await.len();
            (count < ids.len()).then(|| format!("{count} receipts of {}", ids.len()))
        })
        .await;
    let receipts = chaos.read("RECEIPTS").await;
    let sent: BTreeSet<&str> = receipts.iter().map(|receipt| receipt["order"].as_str().expect("an order")).collect();
    assert_eq!((sent.len(), receipts.len()), (ids.len(), ids.len()), "each once");
    assert_eq!(sent, ids);
    for handler in HANDLERS {
        claims_in_turn(handler, &records(&chaos.cluster.jetstream, handler, 3).await);
    }
    println!(
        "seed {seed}: {} events in {:.0?}, calm after {:.1?}: {:?}",
        events.len() + orders.len(),
        begun.elapsed(),
        calm.elapsed(),
        chaos.done
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_stuck_whatever_happens() {
    let seeds = std::env::var("MILLSTREAM_CHAOS_SEEDS").ok();
    let seeds: Vec<u64> = match &seeds {
        Some(seeds) => seeds.split(',').map(|seed| seed.trim().parse().expect("a seed")).collect(),
        None => SEEDS.to_vec(),
    };
    let seconds = std::env::var("MILLSTREAM_CHAOS_SECONDS").ok().map_or(20, |text| text.parse().expect("seconds"));
    for seed in seeds {
        survives(seed, Duration::from_secs(seconds)).await;
    }
}
