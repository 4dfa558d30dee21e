//! What every test stands on: a server of its own, modules built once, hosts as real processes, conditions with deadlines,
//! and folds that share no code with the handlers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, stream};
use futures::TryStreamExt as _;
use millstream::server::Server;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// How long a condition may take on a loaded machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");

/// Documents by key, as the handler wrote the key.
pub type Documents = BTreeMap<String, String>;

/// A server with its own folder, and a client.
pub struct World {
    pub server: Server,
    pub jetstream: Context,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Server::builder()).await
    }

    pub async fn with(builder: millstream::server::Builder) -> Self {
        let server = builder.start().await.expect("nats-server starts");
        let options = async_nats::ConnectOptions::new()
            .max_reconnects(None)
            .reconnect_delay_callback(|_| Duration::from_millis(50));
        let client = options.connect(server.url()).await.expect("client connects");
        let mut jetstream = jetstream::new(client);
        jetstream.set_timeout(Duration::from_secs(10));
        Self { server, jetstream }
    }

    /// Makes a user's stream, as a user would with the stock CLI.
    pub async fn stream(&self, name: &str, subjects: &[&str]) {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(ToString::to_string).collect(),
            allow_direct: true,
            ..Default::default()
        };
        self.jetstream.create_stream(config).await.expect("stream is made");
    }

    /// Runs the program to its end against this server.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        cli(&self.server.url(), arguments)
    }

    /// Runs the program, insists on success, and answers its stdout.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "millstream {} failed:\n{stderr}", arguments.join(" "));
        String::from_utf8(output.stdout).expect("stdout is UTF-8")
    }

    /// Deploys an example under `name` with more arguments.
    #[track_caller]
    pub fn deploy(&self, example: &str, name: &str, more: &[&str]) {
        let module = module(example);
        let mut arguments = vec!["deploy", module.to_str().expect("path"), "--name", name, "--no-wait"];
        arguments.extend(more);
        self.ok(&arguments);
    }

    /// Starts a host.
    pub fn host(&self, environment: &[(&str, &str)]) -> Host {
        Host::start(&self.server.url(), environment)
    }

    /// All documents of a handler, read as any NATS client would read them.
    pub async fn documents(&self, handler: &str) -> Documents {
        let Ok(bucket) = self.jetstream.get_key_value(handler).await else { return Documents::new() };
        let Ok(keys) = bucket.keys().await else { return Documents::new() };
        let Ok(escaped) = keys.try_collect::<Vec<String>>().await else { return Documents::new() };
        let mut documents = Documents::new();
        for part in escaped.chunks(millstream::direct_get::KEYS) {
            let subjects: Vec<String> = part.iter().map(|key| format!("$KV.{handler}.{key}")).collect();
            let Ok((messages, _)) =
                millstream::direct_get::last_of(&self.jetstream, &format!("KV_{handler}"), &subjects).await
            else {
                return Documents::new();
            };
            for message in messages.into_iter().filter(|message| message.headers.get("KV-Operation").is_none()) {
                let key = message.subject.strip_prefix(&format!("$KV.{handler}.")).expect("a key of this bucket");
                let key = millstream::keys::unescape(key).expect("a key that the host escaped");
                documents.insert(key, String::from_utf8(message.payload.to_vec()).expect("JSON"));
            }
        }
        documents
    }

    /// Waits until a handler's documents are exactly these; shows the difference otherwise.
    #[track_caller]
    pub fn settled<'a>(&'a self, handler: &'a str, expected: &'a Documents) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let found = self.documents(handler).await;
                if found == *expected {
                    return;
                }
                if Instant::now() > deadline {
                    let wrong: Vec<_> =
                        expected.iter().filter(|(key, value)| found.get(*key) != Some(value)).take(5).collect();
                    let found_wrong: Vec<_> = wrong.iter().map(|(key, _)| found.get(*key)).collect();
                    panic!(
                        "{caller}: {handler}: {} documents of {} expected; first wrong: {wrong:?}, found {found_wrong:?}",
                        found.len(),
                        expected.len()
                    );
                }
                pause().await;
            }
        }
    }

    /// The row of `millstream list` for this handler.
    #[track_caller]
    pub fn listed(&self, handler: &str) -> serde_json::Value {
        let rows = json_lines(&self.ok(&["list", "--json"]));
        rows.into_iter().find(|row| row["handler"] == handler).unwrap_or_else(|| panic!("{handler} is not listed"))
    }

    /// The rows of `millstream lag` for this handler.
    #[track_caller]
    pub fn lag(&self, handler: &str) -> Vec<serde_json::Value> {
        json_lines(&self.ok(&["lag", handler, "--json"]))
    }

    /// Waits until all that is published is decided, as `millstream lag` tells it.
    pub async fn caught_up(&self, handler: &str) {
        until("lag 0", async || self.lag(handler).iter().all(|row| row["events"] == 0).then_some(())).await;
    }

    /// Waits until a handler stands in this state in `millstream list`, and answers its row.
    pub async fn in_state(&self, handler: &str, state: &str) -> serde_json::Value {
        until(&format!("{handler} {state}"), async || Some(self.listed(handler)).filter(|row| row["state"] == state))
            .await
    }

    /// Runs the program, insists on this exit code and a hint, and answers its stderr.
    #[track_caller]
    pub fn refused(&self, code: i32, arguments: &[&str]) -> String {
        refused(&self.server.url(), code, arguments)
    }

    /// Names of the streams that Millstream made on this server, buckets included.
    pub async fn traces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.jetstream.stream_names().try_collect().await.expect("stream names");
        names.retain(|name| name.contains("MILLSTREAM_") || name.starts_with("KV_"));
        names.sort();
        names
    }

    /// What the handler's host said last.
    pub async fn report(&self, handler: &str) -> Option<serde_json::Value> {
        let bucket = self.jetstream.get_key_value("MILLSTREAM_STATUS").await.ok()?;
        serde_json::from_slice(&bucket.get(handler).await.ok()??).ok()
    }

    /// The record that a handler's journal ends with: its positions, counts and claim.
    pub async fn last_record(&self, handler: &str) -> Option<(u64, millstream::journal::Counts, Vec<u64>)> {
        let stream = self.jetstream.get_stream(format!("MILLSTREAM_JOURNAL_{handler}")).await.ok()?;
        let live = millstream::generation::ledger::live(&self.jetstream, handler).await.ok()?;
        let subject = millstream::names::journal_subject(handler, live, 0);
        let message = stream.get_last_raw_message_by_subject(&subject).await.ok()?;
        let record = millstream::journal::Record::decode(&message.payload, message.sequence).expect("a record");
        Some((message.sequence, record.counts, record.positions.iter().map(|position| position.sequence).collect()))
    }

    /// Whether the handler's last record says that the effects of all before it are published.
    pub async fn has_told_its_effects(&self, handler: &str) -> bool {
        let journal = millstream::journal::Journal::open(&self.jetstream, handler, 1).await.expect("the journal");
        let (last, bytes) = journal.last().await.expect("an answer").expect("a record");
        let told = millstream::journal::Record::decode(&bytes, last).expect("a record").acted_through;
        let records = journal.read(0, last).await.expect("all records");
        let acts = |(sequence, bytes): &(u64, bytes::Bytes)| {
            !millstream::journal::Record::decode(bytes, *sequence).expect("a record").effects.is_empty()
        };
        records.iter().rev().find(|record| acts(record)).is_some_and(|(sequence, _)| *sequence <= told)
    }

    /// The claims under which a handler's records were written, a run of equal ones once.
    pub async fn claims(&self, handler: &str) -> Vec<u64> {
        let journal = millstream::journal::Journal::open(&self.jetstream, handler, 1).await.expect("the journal");
        let (last, _) = journal.last().await.expect("an answer").expect("a record");
        let records = journal.read(0, last).await.expect("all records");
        let claim = |(sequence, bytes): &(u64, bytes::Bytes)| {
            millstream::journal::Record::decode(bytes, *sequence).expect("a record").claim
        };
        let mut claims: Vec<u64> = records.iter().map(claim).collect();
        claims.dedup();
        claims
    }

    /// Publishes these events, pipelined, in order, through server losses: message ids make a second sending harmless.
    pub async fn publish(&self, events: &[Event]) {
        for part in events.chunks(1000) {
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = self.publish_part(part).await {
                assert!(Instant::now() < deadline, "events cannot be published: {error}");
                pause().await;
            }
        }
    }

    async fn publish_part(&self, part: &[Event]) -> Result<(), async_nats::Error> {
        let mut acks = Vec::with_capacity(part.len());
        for event in part {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", event.id.as_str());
            acks.push(self.jetstream.publish_with_headers(event.subject.clone(), headers, event.body().into()).await?);
        }
        for ack in acks {
            ack.await?;
        }
        Ok(())
    }
}

/// Runs the program to its end.
pub fn cli(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(MILLSTREAM);
    command.args(["--server", url]).args(arguments).stdin(Stdio::null());
    command.output().expect("millstream runs")
}

/// Runs the program, insists on this exit code and a hint, and answers its stderr.
#[track_caller]
pub fn refused(url: &str, code: i32, arguments: &[&str]) -> String {
    let output = cli(url, arguments);
    let stderr = String::from_utf8(output.stderr).expect("stderr is UTF-8");
    assert_eq!(output.status.code(), Some(code), "millstream {}:\n{stderr}", arguments.join(" "));
    // A guest's own lines and a host's log may stand before it.
    let told = stderr.lines().any(|line| line.starts_with("error: "));
    assert!(told, "millstream {}:\n{stderr}", arguments.join(" "));
    assert!(stderr.contains("\nhint: "), "no hint from millstream {}:\n{stderr}", arguments.join(" "));
    assert!(output.stdout.is_empty(), "stdout is data");
    stderr
}

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Lets others run before a condition is looked at again. The condition's deadline is the caller's.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Waits until `condition` answers something.
#[track_caller]
pub fn until<'a, T, F: Future<Output = Option<T>>>(
    what: &'a str,
    mut condition: impl FnMut() -> F + 'a,
) -> impl Future<Output = T> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            assert!(Instant::now() < deadline, "{caller}: {what} did not happen in time");
            pause().await;
        }
    }
}

/// A host process.
pub struct Host {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Host {
    pub fn start(url: &str, environment: &[(&str, &str)]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a log file");
        let mut command = Command::new(MILLSTREAM);
        command.args(["--server", url, "run"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.reopen().expect("the log file")).envs(environment.iter().copied());
        Self { child: command.spawn().expect("millstream runs"), log }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Sends a signal by name.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it stands still, as after SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // After the name in parentheses, which may hold anything.
        state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// The exit code, if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for the end.
    pub async fn end(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the host did not end; its log:\n{}", self.log());
            pause().await;
        }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log file")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(format!("--- a host's log ---\n{}", self.log()).as_bytes());
        }
    }
}

/// The `.wasm` of an example, built once per test run.
pub fn module(example: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root).args([
            "build",
            "--quiet",
            "--profile",
            "module",
            "--target",
            "wasm32-unknown-unknown",
        ]);
        for handler in [
            "customer-spend",
            "customer-spend-v2",
            "order-receipt",
            "fine-status",
            "page-edits",
            "channel-stats",
            "order-chain",
            "order-fulfilment",
            "fine-penalty",
            "fine-collection",
            "create-order",
            "transfer-money",
            "reminder",
            "scripted",
        ] {
            command.args(["--package", handler]);
        }
        assert!(command.status().expect("cargo runs").success(), "the examples build");
        target.join("wasm32-unknown-unknown/module")
    });
    folder.join(format!("{}.wasm", example.replace('-', "_")))
}

/// An event of the test shop.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub subject: String,
    pub aggregate: String,
    pub customer: String,
    pub cents: u64,
}

impl Event {
    pub fn body(&self) -> String {
        let payload = json!({ "customer": self.customer, "cents": self.cents });
        json!({ "eventId": self.id, "eventType": "OrderPlaced", "aggregateId": self.aggregate, "payload": payload })
            .to_string()
    }
}

/// `count` orders from number `from` on, spread over aggregates and customers by a fixed rule, on `orders.placed`.
pub fn orders(from: u64, count: u64) -> Vec<Event> {
    let event = |number: u64| {
        let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        Event {
            id: format!("e{number}"),
            subject: "orders.placed".to_owned(),
            aggregate: format!("order-{}", dice % 1000),
            customer: format!("C{}", (dice >> 32) % 300),
            cents: dice % 10_000,
        }
    };
    (from..from + count).map(event).collect()
}

/// What customer-spend must hold after these events.
pub fn spend(events: &[Event]) -> Documents {
    let mut totals: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in events {
        let total = totals.entry(&event.customer).or_default();
        total.0 += 1;
        total.1 += event.cents;
    }
    let document = |(orders, cents): (u64, u64)| format!(r#"{{"orders":{orders},"cents":{cents}}}"#);
    totals.into_iter().map(|(customer, total)| (customer.to_owned(), document(total))).collect()
}

/// What customer-spend-v2 must hold after these events.
pub fn spend_v2(events: &[Event]) -> Documents {
    let mut documents = spend(events);
    let mut large: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events.iter().filter(|event| event.cents >= 9_900) {
        *large.entry(&event.customer).or_default() += 1;
    }
    for (customer, count) in large {
        let document = documents.get_mut(customer).expect("a customer");
        *document = format!(r#"{},"large":{count}}}"#, document.trim_end_matches('}'));
    }
    documents
}

/// What order-chain must hold after these events: it sees every lost, doubled or swapped one.
pub fn chains(events: &[Event]) -> Documents {
    let mut chains: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    for event in events {
        let (hash, count) = chains.entry(&event.aggregate).or_default();
        *hash = hex::encode(Sha256::digest(format!("{hash}{}", event.id)));
        *count += 1;
    }
    let document = |(hash, events): (String, u64)| format!(r#"{{"hash":"{hash}","events":{events}}}"#);
    chains.into_iter().map(|(aggregate, chain)| (aggregate.to_owned(), document(chain))).collect()
}

/// A generator of test choices with a printed seed: the same seed makes the same run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// A number below `limit`.
    pub fn roll(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
