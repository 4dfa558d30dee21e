//! Timers: each fires once, though host and server were down when it was due; one that was taken back never does; an answer and
//! its deadline have one outcome, and the loser is noted as late; what fired and is decided is removed; and lag counts what has fired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use crate::harness::{Documents, World, until};
use crate::services::{Command, stored};

const HANDLER: &str = "remind";
const TIMERS: &str = "MILLSTREAM_TIMERS";
const HOUR: u64 = 3_600_000;

/// A shop that sends invoices, and a stream for what its mail room is told.
async fn office() -> World {
    let world = World::new().await;
    world.stream("INVOICES", &["invoices.>"]).await;
    world.stream("COMMANDS", &["invoice-commands.*"]).await;
    world.deploy("reminder", HANDLER, &[]);
    world
}

/// A message to be published.
struct Letter {
    subject: String,
    headers: HeaderMap,
    body: String,
}

fn letter(id: &str, kind: &str, invoice: &str, more: Value) -> Letter {
    let mut payload = more;
    payload["invoice"] = json!(invoice);
    let body = json!({ "eventId": id, "eventType": kind, "aggregateId": invoice, "payload": payload });
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    Letter { subject: format!("invoices.{kind}"), headers, body: body.to_string() }
}

fn sent(id: &str, invoice: &str, pay_within: u64) -> Letter {
    letter(id, "InvoiceSent", invoice, json!({ "pay_within": pay_within, "answer_within": HOUR }))
}

fn of(id: &str, kind: &str, invoice: &str) -> Letter {
    letter(id, kind, invoice, json!({}))
}

/// What the mail room says.
fn reminded(command: &Command) -> Letter {
    let invoice = command.payload["invoice"].as_str().expect("a number");
    let id = format!("{}.answer", command.id);
    let mut reply = of(&id, "Reminded", invoice);
    let body: Value = serde_json::from_str(&reply.body).expect("JSON");
    reply.body = body["payload"].to_string();
    let names = [("ce-specversion", "1.0"), ("ce-source", "mail-room"), ("ce-id", &id), ("ce-type", "Reminded")];
    for (name, value) in names {
        reply.headers.insert(name, value);
    }
    reply.headers.insert("ce-causationid", command.id.as_str());
    reply
}

/// Publishes in order, pipelined, and waits until all is stored.
async fn publish(world: &World, letters: Vec<Letter>) {
    let mut letters = letters.into_iter().peekable();
    while letters.peek().is_some() {
        let mut acks = Vec::new();
        for Letter { subject, headers, body } in letters.by_ref().take(1000) {
            acks.push(world.jetstream.publish_with_headers(subject, headers, body.into()).await.expect("sent"));
        }
        for ack in acks {
            ack.await.expect("stored");
        }
    }
}

/// Messages of a handler in the stream of timers: `due`, `set.>` or `cancel`.
pub async fn timers(world: &World, handler: &str, kind: &str) -> u64 {
    let Ok(stream) = world.jetstream.get_stream(TIMERS).await else { return 0 };
    let subjects = stream.info_with_subjects(format!("millstream.timers.{handler}.{kind}")).await.expect("an answer");
    let subjects: Vec<(String, usize)> = subjects.try_collect().await.expect("subjects");
    subjects.into_iter().map(|(_, count)| count as u64).sum()
}

async fn timers_are(world: &World, kind: &str, count: u64) {
    let what = format!("{count} messages on {kind}");
    until(&what, async || (timers(world, HANDLER, kind).await == count).then_some(())).await;
}

async fn decided(world: &World) -> u64 {
    world.last_record(HANDLER).await.map_or(0, |(_, counts, _)| counts.delivered)
}

async fn decided_are(world: &World, count: u64) {
    until(&format!("{count} decided"), async || (decided(world).await >= count).then_some(())).await;
}

async fn messages(world: &World, stream: &str) -> u64 {
    world.jetstream.get_stream(stream).await.expect("the stream").cached_info().state.messages
}

async fn instance(world: &World, key: &str) -> Value {
    let document = world.documents(HANDLER).await.remove(key).expect("an instance");
    serde_json::from_str(&document).expect("JSON")
}

/// A message as it lies in a stream.
struct Stored {
    headers: HeaderMap,
    body: String,
    /// Nanoseconds since 1970.
    time: i128,
}

/// What lies in a stream on a subject.
async fn read(world: &World, stream: &str, filter: &str) -> Vec<Stored> {
    let stream = world.jetstream.get_stream(stream).await.expect("the stream");
    let config = pull::OrderedConfig {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ..pull::OrderedConfig::default()
    };
    let mut consumer = stream.create_consumer(config).await.expect("a consumer");
    let count = consumer.info().await.expect("an answer").num_pending;
    let messages = consumer.messages().await.expect("messages").take(usize::try_from(count).expect("a count"));
    let stored = messages.map(|message| {
        let message = message.expect("a message");
        Stored {
            headers: message.headers.clone().expect("headers"),
            body: String::from_utf8(message.payload.to_vec()).expect("JSON"),
            time: message.info().expect("a reply subject").published.unix_timestamp_nanos(),
        }
    });
    stored.collect().await
}

impl Stored {
    fn id(&self) -> &str {
        self.headers.get("ce-id").expect("an event id").as_str()
    }

    /// What the server makes of a schedule whose time has come.
    fn fired(&self) -> Letter {
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers.iter().filter(|(name, _)| !AsRef::<str>::as_ref(*name).starts_with("Nats-"))
        {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        let subject = format!("millstream.timers.{HANDLER}.due");
        Letter { subject, headers, body: self.body.clone() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_whose_stream_is_deleted_while_the_host_is_stopped_are_set_again_and_fire_once() {
    for came in [false, true] {
        lose_timers(true, came).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_whose_stream_is_deleted_while_the_host_runs_are_set_again_and_fire_once() {
    lose_timers(false, true).await;
}

/// Deletes the stream of timers; `came`: after a timer of it was decided.
async fn lose_timers(stopped: bool, came: bool) {
    const SOON: u64 = 6000;
    let world = office().await;
    let mut host = world.host(&[]);
    // One is far away, one comes soon, and one is over.
    let first = if came { 50 } else { 24 * HOUR };
    publish(&world, vec![sent("s1", "I1", first), sent("s2", "I2", 24 * HOUR), sent("s3", "I3", SOON)]).await;
    publish(&world, vec![sent("s4", "I4", 24 * HOUR), of("p4", "InvoicePaid", "I4")]).await;
    let decisions = 5 + u64::from(came);
    decided_are(&world, decisions).await;
    until("all is told", async || world.has_told_its_effects(HANDLER).await.then_some(())).await;
    if stopped {
        host.signal("TERM");
        host.end().await;
    }
    world.jetstream.delete_stream(TIMERS).await.expect("it is deleted");
    let host = if stopped { world.host(&[]) } else { host };
    decided_are(&world, decisions + 1).await;
    // Two invoices that are not due, or the deadlines of their reminders, and that of the third.
    timers_are(&world, "set.>", 3).await;
    world.caught_up(HANDLER).await;
    assert_eq!(decided(&world).await, decisions + 1, "each fires once");
    let commands = stored(&world.jetstream, "COMMANDS").await;
    let mut keys: Vec<&str> = commands.iter().map(|command| command.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, if came { vec!["I1", "I3"] } else { vec!["I3"] }, "each once");
    assert!(host.log().contains("all that instances wait for is set again"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_timers_fire_once_each_though_host_and_server_were_down() {
    const INVOICES: u64 = 10_000;
    const PAY_WITHIN: u64 = 30_000;
    let mut world = office().await;
    let mut host = world.host(&[]);
    let begun = Instant::now();
    let name = |number: u64| format!("I{number}");
    publish(&world, (0..INVOICES).map(|n| sent(&format!("sent-{n}"), &name(n), PAY_WITHIN)).collect()).await;
    timers_are(&world, "set.>", INVOICES).await;
    let end = |n: u64| match n % 10 {
        3 => Some(of(&format!("paid-{n}"), "InvoicePaid", &name(n))),
        7 => Some(of(&format!("disputed-{n}"), "InvoiceDisputed", &name(n))),
        _ => None,
    };
    publish(&world, (0..INVOICES).filter_map(end).collect()).await;
    timers_are(&world, "set.>", 8000).await;
    host.kill();
    let was = decided(&world).await;
    assert_eq!((was, timers(&world, HANDLER, "due").await), (12_000, 0));
    assert!(begun.elapsed() < Duration::from_millis(PAY_WITHIN), "the machine is too slow for timers so short");
    world.server.kill();
    world.server.restart().await.expect("the server restarts on its folder");
    timers_are(&world, "due", 8000).await;
    assert!(begun.elapsed() >= Duration::from_millis(PAY_WITHIN), "timers fired early");

    let started = Instant::now();
    let mut host = world.host(&[]);
    until("first progress", async || (decided(&world).await > was).then_some(())).await;
    let first = started.elapsed();
    until("8000 commands", async || (messages(&world, "COMMANDS").await >= 8000).then_some(())).await;
    eprintln!("first progress after {first:?}, all after {:?}", started.elapsed());
    assert!(first < Duration::from_secs(2), "the first progress took {first:?}");
    world.caught_up(HANDLER).await;
    timers_are(&world, "due", 0).await;
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "{}", host.log());

    let commands = stored(&world.jetstream, "COMMANDS").await;
    let invoices: BTreeSet<&str> =
        commands.iter().map(|command| command.payload["invoice"].as_str().expect("a number")).collect();
    let expected: BTreeSet<String> = (0..INVOICES).filter(|n| end(*n).is_none()).map(name).collect();
    assert_eq!((commands.len(), expected.len()), (8000, 8000));
    assert_eq!(invoices, expected.iter().map(String::as_str).collect());
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, counts.ignored), (20_000, 20_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_life_gets_none_of_the_first_one_s_timers() {
    let world = office().await;
    let _host = world.host(&[]);
    publish(&world, vec![sent("e1", "I1", HOUR)]).await;
    timers_are(&world, "set.>", 1).await;
    let old = read(&world, TIMERS, &format!("millstream.timers.{HANDLER}.set.>")).await.remove(0);
    publish(&world, vec![of("e2", "InvoicePaid", "I1")]).await;
    timers_are(&world, "set.>", 0).await;
    publish(&world, vec![sent("e3", "I1", HOUR)]).await;
    timers_are(&world, "set.>", 1).await;
    // As if it had fired in the moment before it was taken back.
    publish(&world, vec![old.fired()]).await;
    decided_are(&world, 4).await;
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert_eq!((counts.applied, counts.ignored), (3, 1));
    let second = instance(&world, "I1").await;
    assert_eq!((&second["life"], second["timers"].as_array().map(Vec::len)), (&json!("e3"), Some(1)), "{second:#}");

    assert_eq!(world.listed(HANDLER)["counts"]["ignored"], 1);
    let table = world.ok(&["list"]);
    let columns = |row: usize| table.lines().nth(row).expect("a row").split_whitespace().rev().skip(2).take(4);
    assert!(columns(0).eq(["IGNORED", "IRRELEVANT", "APPLIED", "DELIVERED"]), "{table}");
    assert!(columns(1).eq(["1", "0", "3", "4"]), "{table}");

    // And one that a late event began: there is nothing that it could have set.
    publish(&world, vec![of("e4", "InvoicePaid", "I1"), of("e5", "InvoiceDisputed", "I1")]).await;
    decided_are(&world, 6).await;
    publish(&world, vec![old.fired()]).await;
    decided_are(&world, 7).await;
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert_eq!((counts.applied, counts.ignored), (5, 2));
    let third = until("the third life", async || {
        Some(instance(&world, "I1").await).filter(|instance| instance["life"] == "e5")
    })
    .await;
    assert_eq!((&third["status"], &third["late"]), (&json!("running"), &json!(0)), "{third:#}");
    assert_eq!(messages(&world, "COMMANDS").await, 0);
}

/// Lets the host have nothing more of a stream for now, or again.
async fn pause(world: &World, stream: &str) {
    let hour = time::OffsetDateTime::now_utc() + Duration::from_secs(3600);
    let stream = world.jetstream.get_stream(stream).await.expect("the stream");
    assert!(stream.pause_consumer(HANDLER, hour).await.expect("paused").paused);
}

async fn resume(world: &World, stream: &str) {
    let stream = world.jetstream.get_stream(stream).await.expect("the stream");
    assert!(!stream.resume_consumer(HANDLER).await.expect("resumed").paused);
}

/// Stores an answer and a deadline for each of these commands while the host has neither, and answers how many of the pairs were
/// stored within a millisecond. Each answer stands beside another instance's deadline: for half of them it came first.
async fn race(world: &World, commands: &[Command], deadlines: &BTreeMap<String, Stored>) -> usize {
    let mut at_once = 0;
    for some in commands.chunks(20) {
        let pairs = some.iter().zip(some.iter().rev());
        publish(world, pairs.flat_map(|(one, other)| [reminded(one), deadlines[&other.id].fired()]).collect()).await;
    }
    let times = async |stream: &str, filter: &str, suffix: &str| -> BTreeMap<String, i128> {
        let stored = read(world, stream, filter).await;
        let time = |stored: &Stored| Some((stored.id().strip_suffix(suffix)?.to_owned(), stored.time));
        stored.iter().filter_map(time).collect()
    };
    let replies = times("INVOICES", "invoices.Reminded", ".answer").await;
    let fired = times(TIMERS, &format!("millstream.timers.{HANDLER}.due"), ".deadline").await;
    for command in commands {
        at_once += usize::from((replies[&command.id] - fired[&command.id]).abs() < 1_000_000);
    }
    at_once
}

/// What became of an instance: its history, status, late answers, and its step.
type Outcome = (Vec<String>, Value, Value, Value);

fn outcome(documents: &Documents, command: &Command) -> Outcome {
    let key = command.payload["invoice"].as_str().expect("a number");
    let instance: Value = serde_json::from_str(&documents[key]).expect("JSON");
    let history = instance["history"].as_array().expect("a list").iter();
    let history = history.map(|line| line["did"].as_str().expect("text").to_owned()).collect();
    (history, instance["status"].clone(), instance["late"].clone(), instance["steps"][0]["state"].clone())
}

fn expected(history: &[&str], status: &str, late: u64, step: &str) -> Outcome {
    let history = ["begin", "timer unpaid"].iter().chain(history);
    (history.map(ToString::to_string).collect(), json!(status), json!(late), json!(step))
}

/// Which of the two is decided first is up to the order in which the inputs come, and here that is set for each half.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_and_its_deadline_in_the_same_millisecond_have_one_outcome() {
    const INSTANCES: u64 = 1000;
    let world = office().await;
    let mut host = world.host(&[]);
    let letters = (0..INSTANCES).map(|number| sent(&format!("sent-{number}"), &format!("I{number}"), 0));
    publish(&world, letters.collect()).await;
    timers_are(&world, "set.>", INSTANCES).await;
    timers_are(&world, "due", 0).await;
    let commands = stored(&world.jetstream, "COMMANDS").await;
    let set = read(&world, TIMERS, &format!("millstream.timers.{HANDLER}.set.>")).await;
    let deadlines: BTreeMap<String, Stored> =
        set.into_iter().filter_map(|set| Some((set.id().strip_suffix(".deadline")?.to_owned(), set))).collect();
    assert_eq!((commands.len(), deadlines.len()), (1000, 1000));

    let (answered, silent) = commands.split_at(500);
    let mut counted = 2 * INSTANCES;
    for (half, first, second) in [(answered, "INVOICES", TIMERS), (silent, TIMERS, "INVOICES")] {
        pause(&world, first).await;
        pause(&world, second).await;
        let at_once = race(&world, half, &deadlines).await;
        eprintln!("{at_once} of {} within a millisecond", half.len());
        assert!(at_once >= half.len() / 4, "{at_once}");
        assert_eq!(decided(&world).await, counted, "the host has neither");
        for stream in [first, second] {
            resume(&world, stream).await;
            counted += half.len() as u64;
            decided_are(&world, counted).await;
        }
    }
    // Nobody takes back a deadline that has fired; the server would have removed its schedule.
    timers_are(&world, "set.>", silent.len() as u64).await;
    timers_are(&world, "due", 0).await;
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "{}", host.log());

    let documents = world.documents(HANDLER).await;
    assert_eq!(documents.len(), 1000);
    for command in answered {
        let history = ["step remind confirmed; completed", "late: deadline of step remind, which was answered"];
        assert_eq!(outcome(&documents, command), expected(&history, "completed", 1, "confirmed"));
    }
    for command in silent {
        let history = [
            "step remind: no answer within 3600 s; compensated",
            "late: answer to step remind, the saga is compensated",
        ];
        assert_eq!(outcome(&documents, command), expected(&history, "compensated", 1, "kept"));
    }
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (4000, 4000), "the late are noted: {counts:?}");
    assert_eq!(messages(&world, "COMMANDS").await, INSTANCES);
}

#[tokio::test(flavor = "multi_thread")]
async fn fired_timers_are_removed_when_they_are_decided_and_their_commands_are_stored() {
    const FIRED: u64 = 2000;
    const LATER: u64 = 50;
    let world = office().await;
    let mut host = world.host(&[]);
    world.jetstream.delete_stream("COMMANDS").await.expect("deleted");
    let letters = (0..FIRED + LATER)
        .map(|number| sent(&format!("sent-{number}"), &format!("I{number}"), if number < FIRED { 1 } else { HOUR }));
    publish(&world, letters.collect()).await;
    decided_are(&world, 2 * FIRED + LATER).await;
    world.caught_up(HANDLER).await;
    assert_eq!(timers(&world, HANDLER, "due").await, FIRED, "no command is stored, so the timers must stay");
    world.stream("COMMANDS", &["invoice-commands.*"]).await;
    timers_are(&world, "due", 0).await;
    assert_eq!(messages(&world, "COMMANDS").await, FIRED);
    timers_are(&world, "set.>", LATER + FIRED).await;

    // What a host that is gone has decided is removed by the next one, without any event.
    publish(&world, vec![of("paid", "InvoicePaid", "I0"), sent("again", "I0", 1)]).await;
    until("one more command", async || (messages(&world, "COMMANDS").await > FIRED).then_some(())).await;
    host.kill();
    let _host = world.host(&[]);
    timers_are(&world, "due", 0).await;
    let stream = world.jetstream.get_stream(TIMERS).await.expect("the stream of timers");
    let kept = LATER + FIRED;
    assert_eq!(stream.cached_info().state.messages, kept + timers(&world, HANDLER, "cancel").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_counts_fired_timers_and_none_that_are_set() {
    let world = office().await;
    let mut host = world.host(&[]);
    let letters = (0..150)
        .map(|number| sent(&format!("sent-{number}"), &format!("I{number}"), if number < 50 { 3000 } else { HOUR }));
    publish(&world, letters.collect()).await;
    timers_are(&world, "set.>", 150).await;
    world.caught_up(HANDLER).await;
    let behind = |rows: Vec<Value>| -> BTreeMap<String, u64> {
        let row = |row: Value| {
            (row["stream"].as_str().expect("a name").to_owned(), row["events"].as_u64().expect("a number"))
        };
        rows.into_iter().map(row).collect()
    };
    let lag =
        |invoices: u64, timers: u64| BTreeMap::from([("INVOICES".to_owned(), invoices), (TIMERS.to_owned(), timers)]);
    assert_eq!(behind(world.lag(HANDLER)), lag(0, 0));
    host.kill();
    timers_are(&world, "due", 50).await;
    publish(&world, vec![of("paid", "InvoicePaid", "I149")]).await;
    let rows = world.lag(HANDLER);
    assert!(rows.iter().all(|row| row["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0)), "{rows:?}");
    assert_eq!(behind(rows), lag(1, 50));
    let _host = world.host(&[]);
    world.caught_up(HANDLER).await;
    timers_are(&world, "due", 0).await;
    timers_are(&world, "set.>", 99 + 50).await;
    assert_eq!(behind(world.lag(HANDLER)), lag(0, 0));
    assert_eq!(decided(&world).await, 150 + 50 + 1);

    // Looking makes nothing.
    world.jetstream.delete_stream(TIMERS).await.expect("deleted");
    assert_eq!(behind(world.lag(HANDLER)), BTreeMap::from([("INVOICES".to_owned(), 0)]));
    assert!(world.jetstream.get_stream(TIMERS).await.is_err());
}
