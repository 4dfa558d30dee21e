//! Alerts: what a person should know is told in time, once, and is over when it is over; what is only a state is never told.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use futures::{StreamExt as _, TryStreamExt as _};
use millstream::board;
use millstream::overview::Alert;
use millstream::webhook::Secret;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::{Host, World, orders, until};
use crate::parking;

/// Alerts as `millstream alerts` lists them: handler and alert.
fn raised(world: &World) -> Vec<String> {
    let rows = world.ok(&["alerts", "--json"]);
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    rows.map(|row| format!("{} {}", row["handler"].as_str().expect("text"), row["alert"].as_str().expect("text")))
        .collect()
}

async fn is_raised(world: &World, alert: &str) {
    until(&format!("{alert} is raised"), async || raised(world).iter().any(|raised| raised == alert).then_some(()))
        .await;
}

async fn is_over(world: &World, alert: &str) {
    until(&format!("{alert} is over"), async || (!raised(world).iter().any(|raised| raised == alert)).then_some(()))
        .await;
}

/// What the stream of events has of an alert, in order.
async fn news(world: &World, handler: &str, alert: &str) -> Vec<Value> {
    let Ok(stream) = world.jetstream.get_stream("MILLSTREAM_EVENTS").await else { return Vec::new() };
    let subject = format!("millstream.events.{handler}.{alert}");
    let mut subjects = stream.info_with_subjects(&subject).await.expect("subjects");
    let mut stored = 0;
    while let Some((_, count)) = subjects.try_next().await.expect("a subject") {
        stored += count;
    }
    let mut news: Vec<Value> = Vec::new();
    let mut from = 1;
    while news.len() < stored {
        let message = stream.get_first_raw_message_by_subject(&subject, from).await.expect("a message");
        from = message.sequence + 1;
        news.push(serde_json::from_slice(&message.payload).expect("JSON"));
    }
    news
}

async fn states(world: &World, handler: &str, alert: &str) -> Vec<String> {
    let news = news(world, handler, alert).await;
    news.iter().map(|news| news["state"].as_str().expect("text").to_owned()).collect()
}

async fn told(world: &World, handler: &str, alert: &str, expected: &[&str]) {
    until(&format!("{handler} {alert} is told as {expected:?}"), async || {
        (states(world, handler, alert).await == expected).then_some(())
    })
    .await;
}

/// Publishes orders, so many a second, while it lives.
struct Publisher(tokio::task::JoinHandle<()>);

impl Publisher {
    fn start(world: &World, per_second: u64) -> Self {
        let jetstream = world.jetstream.clone();
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            for round in 0.. {
                ticks.tick().await;
                for event in orders(1_000_000 + round * per_second / 10, per_second / 10) {
                    let ack = jetstream.publish(event.subject.clone(), event.body().into()).await.expect("sent");
                    ack.await.expect("stored");
                }
            }
        }))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn decided(world: &World, handler: &str) -> u64 {
    world.last_record(handler).await.map_or(0, |(_, counts, _)| counts.delivered)
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_that_grows_is_told_within_half_a_minute_and_is_over_after_recovery() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=50"]);
    let host = world.host(&[]);
    world.publish(&orders(0, 20)).await;
    until("it works", async || (decided(&world, "chain").await == 20).then_some(())).await;
    assert_eq!(raised(&world), Vec::<String>::new());
    assert!(world.cli(&["alerts", "--check"]).status.success());

    let began = Instant::now();
    let publisher = Publisher::start(&world, 100);
    is_raised(&world, "chain lag-growing").await;
    assert!(began.elapsed() < Duration::from_secs(30), "after {:?}; its log:\n{}", began.elapsed(), host.log());
    let check = world.cli(&["alerts", "chain", "--check"]);
    let said = String::from_utf8(check.stderr).expect("UTF-8");
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: 1 alert: chain lag-growing\nhint: "), "{said}");
    assert!(world.refused(2, &["alerts", "other", "--check"]).contains("handler other is not deployed\nhint: "));
    let lag = world.cli(&["lag"]);
    let below = String::from_utf8(lag.stderr).expect("UTF-8");
    assert!(below.contains("1 alert: chain lag-growing; see `millstream alerts`"), "{below}");

    drop(publisher);
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=0"]);
    world.caught_up("chain").await;
    is_over(&world, "chain lag-growing").await;
    told(&world, "chain", "lag-growing", &["raised", "cleared"]).await;
    assert_eq!(raised(&world), Vec::<String>::new(), "nothing else was the matter");
    assert!(host.log().contains("alert is over"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_and_a_rebuild_are_no_alerts_and_lag_grows_though_no_host_runs_the_handler() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let slow = ["--set", "throttle_events_per_second=20", "--set", "alert_lag_events=100"];
    for name in ["paused", "rebuilt", "nobodys"] {
        world.deploy("order-chain", name, &slow);
    }
    let _host = Host::start(&world.server.url(), &[("MILLSTREAM_HANDLER", "paused,rebuilt")]);
    world.publish(&orders(0, 200)).await;
    until("both work", async || {
        (decided(&world, "paused").await > 50 && decided(&world, "rebuilt").await > 50).then_some(())
    })
    .await;
    world.ok(&["pause", "paused"]);
    world.ok(&["rebuild", "rebuilt", "--throttle", "1"]);
    let _publisher = Publisher::start(&world, 50);
    let began = Instant::now();
    // All three lag alike; it is this one's alert that says when the others' would have come.
    is_raised(&world, "nobodys lag-growing").await;
    assert!(began.elapsed() < Duration::from_secs(30), "after {:?}", began.elapsed());
    until("their lag is over the threshold", async || {
        let lag = |name: &str| world.lag(name)[0]["events"].as_u64().expect("a number");
        (lag("paused") > 300 && lag("rebuilt") > 300).then_some(())
    })
    .await;
    let others: Vec<String> = raised(&world).into_iter().filter(|alert| !alert.starts_with("nobodys ")).collect();
    assert_eq!(others, Vec::<String>::new());
    for name in ["paused", "rebuilt"] {
        for alert in ["lag", "lag-growing", "stuck", "not-reporting"] {
            assert_eq!(news(&world, name, alert).await, Vec::<Value>::new(), "{name} {alert}");
        }
    }
    world.ok(&["remove", "nobodys", "--yes"]);
    is_over(&world, "nobodys lag-growing").await;
    told(&world, "nobodys", "lag-growing", &["raised", "cleared"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_or_hangs_is_told_by_the_others_once() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    for name in ["one", "two"] {
        world.deploy("order-chain", name, &[]);
    }
    let start = |name: &'static str, host: &'static str| {
        Host::start(&world.server.url(), &[("MILLSTREAM_HANDLER", name), ("MILLSTREAM_HOST", host)])
    };
    let mut dies = start("one", "host-1");
    // Two that look on; one of them runs nothing that is deployed.
    let (_looks, _looks_too) = (start("two", "host-2"), start("three", "host-3"));
    world.publish(&orders(0, 10)).await;
    until("both work", async || {
        (decided(&world, "one").await == 10 && decided(&world, "two").await == 10).then_some(())
    })
    .await;
    dies.kill();
    let died = Instant::now();
    is_raised(&world, "one not-reporting").await;
    assert!(died.elapsed() < Duration::from_secs(15), "after {:?}", died.elapsed());
    told(&world, "one", "not-reporting", &["raised"]).await;
    let text = news(&world, "one", "not-reporting").await.remove(0);
    assert!(text["text"].as_str().is_some_and(|text| text.starts_with("host host-1 has said nothing for ")), "{text}");
    assert_ne!(text["host"], "host-1");

    let hangs = start("one", "host-4");
    is_over(&world, "one not-reporting").await;
    told(&world, "one", "not-reporting", &["raised", "cleared"]).await;
    // Nothing waits and nothing is published.
    hangs.signal("STOP");
    let stopped = Instant::now();
    is_raised(&world, "one not-reporting").await;
    assert!(stopped.elapsed() < Duration::from_secs(15), "after {:?}", stopped.elapsed());
    hangs.signal("CONT");
    is_over(&world, "one not-reporting").await;
    told(&world, "one", "not-reporting", &["raised", "cleared", "raised", "cleared"]).await;
    assert_eq!(raised(&world), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_raised_and_could_not_tell_is_told_by_another() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let mut host = world.host(&[]);
    world.publish(&orders(0, 10)).await;
    until("it works", async || (decided(&world, "chain").await == 10).then_some(())).await;
    host.kill();
    // As a host leaves it that dies between the two.
    let alert = |handler: &str, alert: &str| Alert {
        handler: handler.to_owned(),
        alert: alert.to_owned(),
        since: 1_700_000_000_000_000_000,
        text: "5 events wait".to_owned(),
        ..Alert::default()
    };
    for left in [alert("chain", "stuck"), alert("gone", "failing")] {
        assert!(board::raise(&world.jetstream, &left).await.expect("an answer"));
        assert!(!board::raise(&world.jetstream, &left).await.expect("an answer"), "once");
    }
    let _hosts = [world.host(&[("MILLSTREAM_HANDLER", "chain")]), world.host(&[("MILLSTREAM_HANDLER", "other")])];
    told(&world, "chain", "stuck", &["raised", "cleared"]).await;
    told(&world, "gone", "failing", &["raised", "cleared"]).await;
    is_over(&world, "chain stuck").await;
    is_over(&world, "gone failing").await;
}

/// A request's head and body.
async fn request(stream: &mut TcpStream) -> (String, String) {
    let mut read = Vec::new();
    loop {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await.expect("a request");
        read.extend_from_slice(&part[..count]);
        let text = String::from_utf8(read.clone()).expect("UTF-8");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = header(head, "content-length").parse::<usize>().expect("a length");
        if body.len() == length {
            return (head.to_owned(), body.to_owned());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
    line.and_then(|line| line.split_once(": ")).map(|(_, value)| value).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_a_signed_post_after_a_first_try_that_fails() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("an address");
    let url = format!("http://{place}/hook?token=abc");
    let (gets, mut got) = mpsc::channel(10);
    let fails = Arc::new(AtomicBool::new(true));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let got = request(&mut stream).await;
            let answer = if fails.swap(false, Ordering::SeqCst) { "500 Oh" } else { "204 Thanks" };
            let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            gets.send(got).await.expect("looked at");
        }
    });
    let settings = ["--set", "throttle_events_per_second=5", "--set", "alert_lag_events=50"];
    world.deploy("order-chain", "chain", &settings);
    let host = world.host(&[("MILLSTREAM_WEBHOOK", &url), ("MILLSTREAM_WEBHOOK_SECRET", "s3cret-of-the-test")]);
    world.publish(&orders(0, 2)).await;
    world.caught_up("chain").await;
    // It must have been seen so: the first of all events may be old.
    let seen = Cell::new(0);
    until("its host says that it is caught up", async || {
        let report = world.report("chain").await?;
        let time = report["time"].as_i64()?;
        if seen.get() == 0 && report["counts"]["delivered"] == 2 {
            seen.set(time);
        }
        (seen.get() != 0 && time - seen.get() > 5_000_000_000).then_some(())
    })
    .await;
    world.publish(&orders(2, 200)).await;

    let (first, second) = (got.recv().await.expect("a post"), got.recv().await.expect("another"));
    assert_eq!(first.1, second.1, "the same news");
    let (head, body) = second;
    assert!(head.starts_with("POST /hook?token=abc HTTP/1.1\r\n"), "{head}");
    let news: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!([&news["handler"], &news["alert"], &news["state"]], ["chain", "lag", "raised"]);
    assert_eq!(news["id"], header(&head, "millstream-id"));
    let signature = header(&head, "millstream-signature");
    let time = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("a time").0;
    let expected = Secret::new("s3cret-of-the-test".to_owned()).sign(time.parse().expect("seconds"), &body);
    assert_eq!(signature, expected);
    told(&world, "chain", "lag", &["raised"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=0", "--set", "alert_lag_events=50"]);
    let (_, body) = got.recv().await.expect("a post");
    let over: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!([&over["state"], &over["since"]], [&Value::from("cleared"), &news["since"]]);
    let log = host.log();
    assert!(log.contains("it answered 500") && !log.contains("s3cret") && !log.contains("token=abc"), "{log}");
    let again = log.lines().find(|line| line.contains("webhook: trying again")).expect("a line");
    assert!(again.contains(&place.to_string()), "which of several it is: {again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_none_is_refused_before_anything_runs() {
    let world = World::new().await;
    for address in ["example.org", "http://somebody:his-word@example.org/"] {
        let told = world.refused(2, &["run", "--webhook", address]);
        assert!(!told.contains("his-word"), "{told}");
    }
    let told = world.refused(2, &["run", "--webhook", "http://127.0.0.1:9/", "--webhook-secret", ""]);
    assert!(told.contains("the secret for webhooks is empty\nhint: "), "{told}");
    let unsigned = [("MILLSTREAM_WEBHOOK", "http://127.0.0.1:9/"), ("MILLSTREAM_WEBHOOK_SECRET", "")];
    let mut host = world.host(&unsigned);
    assert_eq!(host.end().await.code(), Some(2), "{}", host.log());
    assert!(host.log().contains("the secret for webhooks is empty\nhint: "), "{}", host.log());
    assert_eq!(world.traces().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn news_that_wait_for_a_webhook_are_posted_before_a_host_ends() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let (gets, mut got) = mpsc::channel(10);
    let (opens, opened) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let (gets, mut opened) = (gets.clone(), opened.clone());
            tokio::spawn(async move {
                let (_, body) = request(&mut stream).await;
                gets.send(body).await.expect("looked at");
                opened.wait_for(|opened| *opened).await.expect("some time");
                let answer = "HTTP/1.1 204 Thanks\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.expect("answered");
            });
        }
    });
    world.deploy("order-chain", "chain", &[]);
    // What another host raised and did not tell: two news, of which the second waits for the first.
    for alert in ["stuck", "failing"] {
        let (handler, alert) = ("gone".to_owned(), alert.to_owned());
        let left = Alert {
            handler,
            alert,
            since: 1_700_000_000_000_000_000,
            text: "5 events wait".to_owned(),
            ..Alert::default()
        };
        assert!(board::raise(&world.jetstream, &left).await.expect("an answer"));
    }
    let mut host = world.host(&[("MILLSTREAM_WEBHOOK", &url)]);
    let mut bodies = vec![got.recv().await.expect("the first")];
    told(&world, "gone", "stuck", &["raised", "cleared"]).await;
    told(&world, "gone", "failing", &["raised", "cleared"]).await;
    host.signal("TERM");
    opens.send(true).expect("somebody waits");
    assert!(host.end().await.success(), "{}", host.log());
    while let Ok(body) = got.try_recv() {
        bodies.push(body);
    }
    let news = bodies.iter().map(|body| serde_json::from_str::<Value>(body).expect("JSON"));
    let mut news: Vec<String> = news.map(|news| format!("{} {}", news["alert"], news["state"])).collect();
    news.sort();
    // A first try may have waited too long for its answer.
    news.dedup();
    let all = [r#""failing" "cleared""#, r#""failing" "raised""#, r#""stuck" "cleared""#, r#""stuck" "raised""#];
    assert_eq!(news, all, "{}", host.log());
    assert!(!host.log().contains("are not posted"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_alert_is_removed_and_hides_none() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let left = Alert { handler: "gone".to_owned(), alert: "stuck".to_owned(), ..Alert::default() };
    assert!(board::raise(&world.jetstream, &left).await.expect("an answer"));
    let bucket = world.jetstream.get_key_value("MILLSTREAM_ALERTS").await.expect("the bucket");
    bucket.put("chain.stuck", "somebody's note".into()).await.expect("stored");
    let host = world.host(&[]);
    until("it is removed", async || bucket.get("chain.stuck").await.expect("an answer").is_none().then_some(())).await;
    until("it is told", async || host.log().contains("no alert that can be read").then_some(())).await;
    let line = host.log().lines().find(|line| line.contains("no alert that can be read")).map(str::to_owned);
    assert!(line.as_ref().is_some_and(|line| line.contains("key=\"chain.stuck\"")), "{line:?}");
    told(&world, "gone", "stuck", &["raised", "cleared"]).await;
    // Its news would go to a subject that is none.
    let odd = r#"{"handler":"a b","alert":"stuck","since":5,"text":"an odd one"}"#;
    bucket.put("a=20b.stuck", odd.into()).await.expect("stored");
    until("it is removed", async || bucket.get("a=20b.stuck").await.expect("an answer").is_none().then_some(())).await;
    assert!(!host.log().contains("alerts cannot be watched"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_is_told_within_half_a_minute_and_is_over_when_it_is_taken_up() {
    let world = parking::world().await;
    world.deploy("fragile", "fragile", &[]);
    let _host = world.host(&[]);
    parking::publish(&world, &[parking::told("fine", 1), parking::harmful("bad", 2, "refuse")]).await;
    until("it is parked", async || (world.ok(&["dead", "fragile", "--json"]).lines().count() == 1).then_some(())).await;
    let begun = Instant::now();
    is_raised(&world, "fragile parked").await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let text = news(&world, "fragile", "parked").await[0]["text"].as_str().expect("text").to_owned();
    assert!(text.starts_with("1 key is parked, the oldest for "), "{text}");
    world.ok(&["discard", "fragile", "--key", "bad", "--reason", "nobody needs it", "--yes"]);
    is_over(&world, "fragile parked").await;
    told(&world, "fragile", "parked", &["raised", "cleared"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_is_not_cleared_by_who_does_not_know() {
    let world = parking::world().await;
    world.deploy("fragile", "fragile", &[]);
    let mut runs = world.host(&[]);
    // It must be seen without first, for what was there before is not new.
    let watched =
        until("it is watched", async || world.report("fragile").await?["numbers"]["parked_keys"].as_u64()).await;
    assert_eq!(watched, 0);
    parking::publish(&world, &[parking::told("fine", 1), parking::harmful("bad", 2, "refuse")]).await;
    is_raised(&world, "fragile parked").await;
    let stand = raised(&world);
    runs.kill();
    let watches =
        Host::start(&world.server.url(), &[("MILLSTREAM_HANDLER", "none-such"), ("MILLSTREAM_HOST", "watches")]);
    // By then it has looked several times.
    is_raised(&world, "fragile not-reporting").await;
    for alert in &stand {
        assert!(raised(&world).contains(alert), "{alert}: {:?}; its log:\n{}", raised(&world), watches.log());
    }
    assert_eq!(world.listed("fragile")["parked_keys"], Value::Null, "nobody knows");
    drop(watches);
    until("nobody watches", async || {
        let check = world.cli(&["alerts", "--check"]);
        let said = String::from_utf8(check.stderr).expect("UTF-8");
        let is_told = said.contains("no host watches, so no alert is raised or cleared: the last word of a host is ");
        (is_told && check.status.code() == Some(1) && !check.stdout.is_empty()).then_some(())
    })
    .await;
    assert_eq!(world.ok(&["dead", "fragile", "--json"]).lines().count(), 1);
    let _runs = world.host(&[]);
    is_over(&world, "fragile not-reporting").await;
    until("it is known again", async || (world.listed("fragile")["parked_keys"] == 1).then_some(())).await;
    told(&world, "fragile", "not-reporting", &["raised", "cleared"]).await;
    assert_eq!(states(&world, "fragile", "parked").await, ["raised"], "once");
    assert!(raised(&world).contains(&"fragile parked".to_owned()), "{:?}", raised(&world));
}

/// A request of a connection, with how many messages it was told that a stream holds; none where it asked about the account.
struct Call {
    connection: u64,
    held: Option<u64>,
}

/// What is asked of JetStream, as the server tells of it.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<Call>>>);

impl Asked {
    /// Listens to what is asked about this stream and the account.
    async fn about(stream: &str, world: &World) -> Self {
        let client = world.jetstream.client();
        let mut calls = client.subscribe("$JS.EVENT.ADVISORY.API").await.expect("subscribed");
        client.flush().await.expect("the server knows");
        let (asked, subject) = (Self::default(), format!("$JS.API.STREAM.INFO.{stream}"));
        let Self(into) = asked.clone();
        tokio::spawn(async move {
            while let Some(call) = calls.next().await {
                let call: Value = serde_json::from_slice(&call.payload).expect("JSON");
                let is_of_stream = call["subject"] == subject.as_str();
                if is_of_stream || call["subject"] == "$JS.API.INFO" {
                    let answer: Value = serde_json::from_str(call["response"].as_str().expect("text")).expect("JSON");
                    let held = is_of_stream.then(|| answer["state"]["messages"].as_u64().expect("a number"));
                    let connection = call["client"]["id"].as_u64().expect("a number");
                    into.lock().expect("nobody panicked").push(Call { connection, held });
                }
            }
        });
        asked
    }

    /// So many hosts were told that the stream holds so many messages, and did with it what they do: they ask about the account last.
    async fn by(&self, hosts: usize, messages: u64) {
        until(&format!("{hosts} hosts have seen {messages} messages"), async || {
            let asked = self.0.lock().expect("nobody panicked");
            let (mut told, mut done) = (HashSet::new(), HashSet::new());
            for Call { connection, held } in asked.iter() {
                if *held == Some(messages) {
                    told.insert(*connection);
                } else if held.is_none() && told.contains(connection) {
                    done.insert(*connection);
                }
            }
            (done.len() >= hosts).then_some(())
        })
        .await;
    }

    /// What was asked until now counts no more.
    fn forget(&self) {
        self.0.lock().expect("nobody panicked").clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_told_once_though_hosts_ask_about_it_at_different_times() {
    let world = World::new().await;
    let config = Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        max_messages: 100,
        discard: DiscardPolicy::New,
        allow_direct: true,
        ..Config::default()
    };
    let stream = world.jetstream.create_stream(config).await.expect("stream is made");
    world.deploy("order-chain", "chain", &[]);
    let asked = Asked::about("ORDERS", &world).await;
    let _first = world.host(&[("MILLSTREAM_HOST", "h1")]);
    asked.by(1, 0).await;
    // The other one's turn comes some looks later.
    let said = async || world.report("chain").await?["time"].as_i64();
    let begun = until("the first says something", said).await;
    until("it has said something for eight seconds", async || (said().await? - begun > 8_000_000_000).then_some(()))
        .await;
    let _second = world.host(&[("MILLSTREAM_HOST", "w2"), ("MILLSTREAM_HANDLER", "nothing-here")]);
    asked.by(2, 0).await;

    world.publish(&orders(0, 95)).await;
    is_raised(&world, "chain limit-near").await;
    asked.by(2, 95).await;
    assert_eq!(states(&world, "chain", "limit-near").await, ["raised"], "it stands for both");
    assert_eq!(raised(&world), ["chain limit-near"]);

    world.caught_up("chain").await;
    asked.forget();
    stream.purge().await.expect("purged");
    is_over(&world, "chain limit-near").await;
    asked.by(2, 0).await;
    assert_eq!(states(&world, "chain", "limit-near").await, ["raised", "cleared"], "it is over for both");
    let news = news(&world, "chain", "limit-near").await;
    assert_eq!(news[0]["since"], news[1]["since"]);
    assert!(news[1]["at"].as_str() > news[0]["at"].as_str(), "{news:?}");
    assert_eq!(raised(&world), Vec::<String>::new(), "nothing else was the matter");
}
