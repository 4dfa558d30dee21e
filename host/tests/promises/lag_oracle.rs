//! Lag against an oracle that counts in another way: with a consumer, from the position in the last record on. What `millstream lag`
//! says, and what the host says that samples, are both compared.

use std::net::SocketAddr;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream;
use millstream::journal::Record;
use millstream::overview::{Glance, Totals};
use serde_json::{Value, json};

use crate::harness::web::{get, web_host};
use crate::harness::{Event, Host, World, orders, pause, until};

/// Messages under these filters from a sequence on.
async fn waiting(world: &World, stream: &str, filters: &[&str], from: u64) -> u64 {
    let stream = world.jetstream.get_stream(stream).await.expect("the stream");
    let counter = pull::Config {
        filter_subjects: filters.iter().map(ToString::to_string).collect(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(counter).await.expect("a consumer");
    let count = consumer.cached_info().num_pending;
    stream.delete_consumer(&consumer.cached_info().name).await.expect("it is deleted");
    count
}

async fn head(world: &World, stream: &str) -> u64 {
    world.jetstream.get_stream(stream).await.expect("the stream").cached_info().state.last_sequence
}

/// Where the handler stands in a stream, by its last record.
async fn position(world: &World, handler: &str, stream: &str) -> u64 {
    let Ok(journal) = world.jetstream.get_stream(format!("MILLSTREAM_JOURNAL_{handler}")).await else { return 0 };
    let subject = millstream::names::journal_subject(handler, 1);
    let Ok(message) = journal.get_last_raw_message_by_subject(&subject).await else { return 0 };
    let record = Record::decode(&message.payload, message.sequence).expect("a record");
    record.positions.iter().find(|position| position.stream == stream).map_or(0, |position| position.sequence)
}

/// Asks for the lag between two looks at stream and journal: the truth lies in between. Nothing may be removed meanwhile.
async fn check(world: &World, handler: &str, stream: &str, filters: &[&str]) -> u64 {
    let (stood, began) = (position(world, handler, stream).await, head(world, stream).await);
    let rows = world.lag(handler);
    let (stands, ends) = (position(world, handler, stream).await, head(world, stream).await);
    let row = rows.iter().find(|row| row["stream"] == stream).unwrap_or_else(|| panic!("no row of {stream}: {rows:?}"));
    let events = row["events"].as_u64().expect("a number");
    // What is published while the oracle counts makes the least smaller and the most larger, never the other way round.
    let least = waiting(world, stream, filters, stands + 1).await;
    let least = least.saturating_sub(waiting(world, stream, filters, began + 1).await);
    let after = waiting(world, stream, filters, ends + 1).await;
    let most = waiting(world, stream, filters, stood + 1).await - after;
    assert!(
        (least..=most).contains(&events),
        "{handler} on {stream}: lag {events}, but the truth is {least} to {most}"
    );
    let seconds = row["seconds"].as_f64().expect("a number");
    assert_eq!(events == 0, seconds == 0.0, "caught up is 0 seconds, and behind is not: {row}");
    assert!(row["position"].as_u64() <= row["head"].as_u64(), "{row}");
    events
}

/// What the host measured last of this stream.
async fn measured(world: &World, handler: &str, stream: &str) -> Option<Value> {
    let report = world.report(handler).await?;
    let streams = report["numbers"]["streams"].as_array()?;
    streams.iter().find(|measured| measured["stream"] == stream && measured["time"] != 0).cloned()
}

/// Compares a sample of the host with the oracle at the position of the sample, while nothing is published or removed: each is right.
async fn check_sample(world: &World, handler: &str, stream: &str, filters: &[&str]) -> Option<u64> {
    let measured = measured(world, handler, stream).await?;
    let from = measured["position"].as_u64().expect("a number") + 1;
    let events = measured["events"].as_u64().expect("a number");
    assert_eq!(events, waiting(world, stream, filters, from).await, "{measured}");
    assert_eq!(events == 0, measured["oldest"].is_null(), "{measured}");
    Some(events)
}

/// Waits until the host has sampled what the oracle counts.
async fn sampled(world: &World, handler: &str, stream: &str, filters: &[&str]) -> u64 {
    until("a sample that is right", async || {
        let from = position(world, handler, stream).await + 1;
        let truth = waiting(world, stream, filters, from).await;
        let measured = measured(world, handler, stream).await?;
        (measured["events"] == truth && measured["position"] == from - 1).then_some(truth)
    })
    .await
}

fn rare(count: std::ops::Range<u64>) -> Vec<Event> {
    let rare = |number: u64| Event {
        id: format!("rare-{number}"),
        subject: "orders.rare".to_owned(),
        ..orders(number, 1).remove(0)
    };
    count.map(rare).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_right_under_a_throttle_and_after_each_burst() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=1000"]);
    world.publish(&orders(0, 2000)).await;
    let _host = world.host(&[]);
    let all = ["orders.>"];
    let (mut seen, mut samples) = (Vec::new(), Vec::new());
    let mut bursts = 0;
    loop {
        let events = check(&world, "chain", "ORDERS", &all).await;
        seen.push(events);
        samples.extend(check_sample(&world, "chain", "ORDERS", &all).await);
        samples.dedup();
        if events < 500 && bursts < 2 {
            bursts += 1;
            world.publish(&orders(bursts * 2000, 2000)).await;
            assert!(check(&world, "chain", "ORDERS", &all).await >= 1000, "a burst is seen at once");
            until("the host has sampled the burst", async || {
                let measured = measured(&world, "chain", "ORDERS").await?;
                (measured["head"] == (bursts + 1) * 2000).then_some(())
            })
            .await;
        } else if events == 0 {
            break;
        }
    }
    assert!(seen.iter().filter(|events| **events > 0).count() >= 5, "it was seen on its way: {seen:?}");
    assert!(samples.len() >= 3, "the host sampled it on its way: {samples:?}");
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_filter_on_a_busy_stream_is_right_and_a_restart_reads_nothing_again() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "rare", &["--set", "subjects=orders.rare"]);
    let mut host = world.host(&[]);
    let busy = async {
        for part in 0..20 {
            world.publish(&orders(part * 1000, 1000)).await;
            world.publish(&rare(part..part + 1)).await;
        }
    };
    let looking = async {
        loop {
            check(&world, "rare", "ORDERS", &["orders.rare"]).await;
            pause().await;
        }
    };
    tokio::select! { () = busy => {}, () = looking => {} }
    until("all rare ones are decided", async || {
        (check(&world, "rare", "ORDERS", &["orders.rare"]).await == 0).then_some(())
    })
    .await;
    world.publish(&orders(20_000, 5000)).await;
    assert_eq!(sampled(&world, "rare", "ORDERS", &["orders.rare"]).await, 0);
    let last = position(&world, "rare", "ORDERS").await;
    assert_eq!((last, head(&world, "ORDERS").await), (20_020, 25_020));

    host.kill();
    let before = world.claims("rare").await.len();
    let _host = world.host(&[]);
    until("it is claimed again", async || (world.claims("rare").await.len() > before).then_some(())).await;
    let consumer = until("its consumer is made anew", async || {
        let info = world.jetstream.get_stream("ORDERS").await.ok()?.consumer_info("rare").await.ok()?;
        // The one of the host before has delivered all of them.
        (info.delivered.consumer_sequence == 0).then_some(info)
    })
    .await;
    assert_eq!(consumer.config.deliver_policy, DeliverPolicy::ByStartSequence { start_sequence: last + 1 });
    assert_eq!(consumer.num_pending, 0, "and there is nothing behind it");
    world.publish(&rare(20..21)).await;
    until("the next one is decided", async || (position(&world, "rare", "ORDERS").await == 25_021).then_some(())).await;
    let info =
        world.jetstream.get_stream("ORDERS").await.expect("it").consumer_info("rare").await.expect("its consumer");
    assert_eq!(info.delivered.consumer_sequence, 1, "of 25,021 messages one was fetched");
    assert_eq!(check(&world, "rare", "ORDERS", &["orders.rare"]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_right_on_each_of_two_streams() {
    let world = World::new().await;
    world.stream("PLACED", &["orders.placed", "orders.other"]).await;
    world.stream("RARE", &["orders.rare"]).await;
    let subjects = "subjects=orders.placed,orders.rare";
    world.deploy("order-chain", "chain", &["--set", subjects, "--set", "throttle_events_per_second=500"]);
    world.publish(&orders(0, 800)).await;
    world.publish(&rare(0..300)).await;
    world.jetstream.publish("orders.other", "not ours".into()).await.expect("sent").await.expect("stored");
    let _host = world.host(&[]);
    loop {
        let placed = check(&world, "chain", "PLACED", &["orders.placed"]).await;
        let rare = check(&world, "chain", "RARE", &["orders.rare"]).await;
        check_sample(&world, "chain", "PLACED", &["orders.placed"]).await;
        check_sample(&world, "chain", "RARE", &["orders.rare"]).await;
        if placed + rare == 0 {
            break;
        }
        pause().await;
    }
    assert_eq!(sampled(&world, "chain", "PLACED", &["orders.placed"]).await, 0);
    assert_eq!(sampled(&world, "chain", "RARE", &["orders.rare"]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_or_purged_is_not_waited_for() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=20", "--set", "prefetch_events=20"]);
    world.publish(&orders(0, 1000)).await;
    let mut host = world.host(&[]);
    let all = ["orders.>"];
    until("it works", async || check_sample(&world, "chain", "ORDERS", &all).await.filter(|events| *events < 1000))
        .await;
    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    for sequence in (900..1000).step_by(2) {
        stream.delete_message(sequence).await.expect("it is deleted");
    }
    let behind = check(&world, "chain", "ORDERS", &all).await;
    assert!((100..950).contains(&behind), "{behind}");
    // A handler that stands still makes nothing move but what was removed.
    world.ok(&["pause", "chain"]);
    world.in_state("chain", "paused").await;
    let behind = sampled(&world, "chain", "ORDERS", &all).await;
    stream.delete_message(999).await.expect("it is deleted");
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, behind - 1);
    stream.purge().await.expect("it is purged");
    assert_eq!(check(&world, "chain", "ORDERS", &all).await, 0, "nothing is there to be decided");
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, 0);
    world.publish(&orders(1000, 10)).await;
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, 10);
    host.kill();
    assert_eq!(check(&world, "chain", "ORDERS", &all).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_right_while_the_consumer_is_gone_and_after() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=2000"]);
    let _host = world.host(&[]);
    world.publish(&orders(0, 500)).await;
    let all = ["orders.>"];
    until("it has begun", async || (position(&world, "chain", "ORDERS").await > 0).then_some(())).await;
    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    stream.delete_consumer("chain").await.expect("it is deleted");
    world.publish(&orders(500, 3000)).await;
    while check(&world, "chain", "ORDERS", &all).await > 0 {
        check_sample(&world, "chain", "ORDERS", &all).await;
        pause().await;
    }
    assert_eq!(position(&world, "chain", "ORDERS").await, 3500);
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_direct_reads_is_sampled_too_and_no_consumer_is_left() {
    let world = World::new().await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        allow_direct: false,
        ..stream::Config::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=100"]);
    world.publish(&orders(0, 300)).await;
    let _host = world.host(&[]);
    let all = ["orders.>"];
    until("a sample on the way", async || {
        check_sample(&world, "chain", "ORDERS", &all).await.filter(|events| *events > 0)
    })
    .await;
    check(&world, "chain", "ORDERS", &all).await;
    world.caught_up("chain").await;
    assert_eq!(sampled(&world, "chain", "ORDERS", &all).await, 0);
    until("only the handler's consumer is there", async || {
        let stream = world.jetstream.get_stream("ORDERS").await.ok()?;
        (stream.cached_info().state.consumer_count == 1).then_some(())
    })
    .await;
}

/// Exit code, stdout and the first line of stderr.
fn told(world: &World, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = world.cli(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let first = text(output.stderr).lines().next().unwrap_or_default().to_owned();
    (output.status.code(), text(output.stdout), first)
}

/// What the host says of the one stream of `chain`, once it says so much of it; `decided` is its own count.
async fn says_nothing_measured(world: &World, decided: u64) {
    let nothing = json!({
        "stream": "ORDERS", "decided": decided, "time": 0, "events": 0, "oldest": null, "position": 0, "head": 0, "rates": null,
    });
    until("nothing is measured", async || {
        (world.report("chain").await?["numbers"]["streams"] == json!([nothing])).then_some(())
    })
    .await;
}

async fn hosted(world: &World) -> (Host, SocketAddr) {
    web_host(world, &[("MILLSTREAM_HOST", "here")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_on_a_stream_that_was_made_anew_is_unknown_and_not_zero() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    world.publish(&orders(0, 95)).await;
    let (mut host, mut address) = hosted(&world).await;
    let all = ["orders.>"];
    until("all is decided", async || (position(&world, "chain", "ORDERS").await == 95).then_some(())).await;
    assert_eq!((sampled(&world, "chain", "ORDERS", &all).await, check(&world, "chain", "ORDERS", &all).await), (0, 0));

    world.jetstream.delete_stream("ORDERS").await.expect("it is deleted");
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(95, 10)).await;
    let why = "stream ORDERS was deleted and made anew since event 95 was decided";
    // While the host runs that had decided them, and when another has begun.
    for decided in [95, 0] {
        let untold = format!("error: the lag of some handlers cannot be told: chain: {why}");
        assert_eq!(told(&world, &["lag", "--json"]), (Some(1), String::new(), untold));
        for limit in ["--max-lag=5", "--max-lag=1000000", "--max-age=1h"] {
            let exceeded = format!("error: too far behind: the lag cannot be told of chain: {why}");
            assert_eq!(told(&world, &["lag", "--json", limit]), (Some(1), String::new(), exceeded), "{limit}");
        }
        until("it fails", async || world.report("chain").await.filter(|report| report["state"] == "failing")).await;
        says_nothing_measured(&world, decided).await;
        let glimpse = Glance::new(world.jetstream.clone(), usize::MAX).look().await.expect("a look");
        let seen = &glimpse.overview.handlers[0];
        assert_eq!((seen.lag_fault.as_str(), seen.lag.len(), seen.totals), (why, 0, Totals::default()));
        let known = "millstream_handler_lag_known{handler=\"chain\",host=\"here\"} ";
        let lines = until("metrics say so", async || {
            let page = get(address, "/metrics").body;
            let line = page.lines().find_map(|line| line.strip_prefix(known))?.to_owned();
            let lags = page.lines().filter(|line| line.starts_with("millstream_handler_lag_events{")).count();
            (line == "0").then_some(lags)
        })
        .await;
        assert_eq!(lines, 0, "and no figure");
        if decided > 0 {
            host.kill();
            let before = world.report("chain").await.expect("a report")["time"].as_i64();
            (host, address) = hosted(&world).await;
            until("another reports", async || {
                world.report("chain").await.filter(|report| report["time"].as_i64() > before)
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_was_paused_has_no_end_though_it_decided_a_moment_ago() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=100"]);
    world.publish(&orders(0, 5000)).await;
    let _host = world.host(&[]);
    until("an end is in sight", async || world.lag("chain")[0]["rates"]["eta_seconds"].as_f64()).await;
    world.ok(&["pause", "chain"]);
    let row =
        until("it is paused", async || Some(world.lag("chain").remove(0)).filter(|row| row["state"] == "paused")).await;
    assert_eq!((row["rates"].is_object(), &row["rates"]["eta_seconds"]), (true, &Value::Null), "{row}");
    let glimpse = Glance::new(world.jetstream.clone(), usize::MAX).look().await.expect("a look");
    let lag = &glimpse.overview.handlers[0].lag[0];
    assert_eq!((lag.state.as_str(), lag.rates.map(|rates| rates.eta_seconds)), ("paused", Some(None)), "{lag:?}");
}
