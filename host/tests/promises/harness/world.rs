//! A server with a client, and what tests ask of both: documents, records, rows of the command line.

use std::process::Output;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, stream};
use futures::TryStreamExt as _;
use millstream::journal::{Counts, Record};
use millstream::server::Server;

use super::{Documents, Event, Host, PATIENCE, claims_in_turn, cli, module, pause, records, refused, until};

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
        documents_of(&self.jetstream, handler).await
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
    pub async fn last_record(&self, handler: &str) -> Option<(u64, Counts, Vec<u64>)> {
        let stream = self.jetstream.get_stream(format!("MILLSTREAM_JOURNAL_{handler}")).await.ok()?;
        let live = millstream::generation::ledger::live(&self.jetstream, handler).await.ok()?;
        let subject = millstream::names::journal_subject(handler, live);
        let message = stream.get_last_raw_message_by_subject(&subject).await.ok()?;
        let record = Record::decode(&message.payload, message.sequence).expect("a record");
        Some((message.sequence, record.counts, record.positions.iter().map(|position| position.sequence).collect()))
    }

    /// Whether the handler's last record says that the effects of all before it are published.
    pub async fn has_told_its_effects(&self, handler: &str) -> bool {
        let records = records(&self.jetstream, handler, 1).await;
        let told = records.last().expect("a record").acted_through;
        records.iter().rfind(|record| record.has_effects).is_some_and(|record| record.sequence <= told)
    }

    /// The claims under which a handler's records were written, in turn.
    pub async fn claims(&self, handler: &str) -> Vec<u64> {
        claims_in_turn(handler, &records(&self.jetstream, handler, 1).await)
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

pub fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// All documents of a handler, read as any NATS client would read them.
pub async fn documents_of(jetstream: &Context, handler: &str) -> Documents {
    let Ok(bucket) = jetstream.get_key_value(handler).await else { return Documents::new() };
    let Ok(keys) = bucket.keys().await else { return Documents::new() };
    let Ok(escaped) = keys.try_collect::<Vec<String>>().await else { return Documents::new() };
    let mut documents = Documents::new();
    for part in escaped.chunks(millstream::direct_get::KEYS) {
        let subjects: Vec<String> = part.iter().map(|key| format!("$KV.{handler}.{key}")).collect();
        let Ok((messages, _)) = millstream::direct_get::last_of(jetstream, &format!("KV_{handler}"), &subjects).await
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
