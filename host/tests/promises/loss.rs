//! Something that the handler stands on is gone: the journal, the bucket, a record, a document, events of the stream. It stops
//! and says so, every time it is started, and never folds on from what is left.

use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::Value;

use crate::generations::is;
use crate::harness::{Host, World, chains, orders, spend_v2, until};
use crate::promotion::{promote, rebuild_v2, shop};
use crate::services::stored;

/// A world in which `chain` has decided `count` orders and shown them, and its last record says so of all but the last one:
/// what it does not say, the next claim shows again from the journal.
async fn decided(count: u64) -> World {
    decided_in(World::new().await, count).await
}

/// The same in a world that is there.
pub async fn decided_in(world: World, count: u64) -> World {
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let events = orders(0, count);
    let (last, before) = events.split_last().expect("some orders");
    world.publish(before).await;
    let mut host = world.host(&[]);
    world.settled("chain", &chains(before)).await;
    world.publish(std::slice::from_ref(last)).await;
    world.settled("chain", &chains(&events)).await;
    host.signal("TERM");
    assert!(host.end().await.success(), "it ends well:\n{}", host.log());
    world
}

/// Starts a host and waits until `handler` fails with a reason that contains `expected`; does so twice.
pub async fn refused(world: &World, handler: &str, expected: &str) {
    for start in 1..=2 {
        let (_host, reason) = failing(world, handler).await;
        assert!(reason.contains(expected), "start {start}: {reason}");
    }
}

/// A host on which `handler` fails, and the reason.
pub async fn failing(world: &World, handler: &str) -> (Host, String) {
    let begun = millstream::clock::now();
    let host = world.host(&[]);
    let reason = until("the handler fails", async || {
        let report = world.report(handler).await.filter(|report| report["time"].as_i64() > Some(begun))?;
        (report["state"] == "failing").then(|| report["reason"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    (host, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_journal_is_gone_never_folds_its_events_again() {
    let world = decided(2000).await;
    world.jetstream.delete_stream("MILLSTREAM_JOURNAL_chain").await.unwrap();
    refused(&world, "chain", "the journal MILLSTREAM_JOURNAL_chain is empty").await;
    assert_eq!(world.documents("chain").await, chains(&orders(0, 2000)), "nothing was folded twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_bucket_is_gone_never_begins_documents_anew() {
    let world = decided(2000).await;
    world.jetstream.delete_key_value("chain").await.unwrap();
    world.publish(&orders(2000, 10)).await;
    refused(&world, "chain", "bucket was deleted and made anew").await;
    assert_eq!(world.documents("chain").await.len(), 0, "no document was begun from nothing");

    // Doing what the hint says builds everything anew.
    world.jetstream.delete_stream("MILLSTREAM_JOURNAL_chain").await.unwrap();
    let _host = world.host(&[]);
    world.settled("chain", &chains(&orders(0, 2010))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_journal_or_bucket_is_gone_is_not_told_to_begin_anew() {
    let facts =
        [("the journal MILLSTREAM_JOURNAL_scripted is empty", true), ("bucket was deleted and made anew", false)];
    for (fact, is_journal) in facts {
        let world = World::new().await;
        world.stream("SCRIPTS", &["scripts.>"]).await;
        world.stream("COMMANDS", &["script-commands.*"]).await;
        world.deploy("scripted", "scripted", &[]);
        let script = r#"{"key":"k","starts":true,"asks":[{"send":{"subject":"script-commands.x","letters":1}}]}"#;
        world.jetstream.publish("scripts.Told", script.into()).await.unwrap().await.unwrap();
        let mut host = world.host(&[]);
        until("the command", async || {
            (stored(&world.jetstream, "COMMANDS").await.len() == 1 && world.documents("scripted").await.len() == 1)
                .then_some(())
        })
        .await;
        host.signal("TERM");
        host.end().await;
        if is_journal {
            world.jetstream.delete_stream("MILLSTREAM_JOURNAL_scripted").await.unwrap();
        } else {
            world.jetstream.delete_key_value("scripted").await.unwrap();
        }
        refused(&world, "scripted", fact).await;
        refused(&world, "scripted", "hint: restore journal and bucket of the saga from one backup").await;
        let said = world.report("scripted").await.unwrap()["reason"].to_string();
        assert!(!said.contains("kv del") && !said.contains("stream rm"), "{said}");
        assert_eq!(stored(&world.jetstream, "COMMANDS").await.len(), 1, "nothing is sent again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_gone_before_its_documents_are_shown_stops_the_handler() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let slow = ["--set", "batch_events=20", "--set", "show_interval_milliseconds=600000"];
    world.deploy("order-chain", "chain", &[&slow[..], &["--set", "throttle_events_per_second=2000"]].concat());
    world.publish(&orders(0, 5000)).await;
    let mut host = world.host(&[]);
    until("some records", async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > 1000))
        .await;
    host.kill();
    let journal = world.jetstream.get_stream("MILLSTREAM_JOURNAL_chain").await.unwrap();
    journal.purge().keep(1).await.unwrap();
    refused(&world, "chain", "is gone, and its documents may not be in the bucket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_somebody_else_wrote_is_never_folded_on() {
    let world = decided(2000).await;
    let subject = "$KV.chain.order-1";
    world.jetstream.publish(subject, r#"{"hash":"forged","events":1000}"#.into()).await.unwrap().await.unwrap();
    world.publish(&orders(2000, 2000)).await;
    refused(&world, "chain", "document order-1 in bucket chain was written or deleted by somebody else").await;
}

/// A stream that keeps 1,000 messages, and a handler on it that has begun and is too slow for what follows.
async fn forgetful(on_lost: &str) -> (World, Host) {
    let world = World::new().await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        max_messages: 1000,
        allow_direct: true,
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.unwrap();
    let on_lost = format!("on_lost_events={on_lost}");
    let slow = ["--set", "throttle_events_per_second=2000", "--set", "prefetch_events=100", "--set", "batch_events=50"];
    world.deploy("order-chain", "chain", &[&slow[..], &["--set", &on_lost]].concat());
    let host = world.host(&[]);
    let events = orders(0, 10_000);
    world.publish(&events[..100]).await;
    until("it has begun", async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered == 100))
        .await;
    world.publish(&events[100..]).await;
    (world, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_dropped_by_the_stream_while_the_handler_runs_stop_it() {
    let (world, _host) = forgetful("stop").await;
    let reason = until("the handler fails", async || {
        let report = world.report("chain").await.filter(|report| report["state"] == "failing")?;
        Some(report["reason"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    assert!(reason.contains("are gone") && reason.contains("on_lost_events=continue"), "{reason}");
    let (_, counts, positions) = world.last_record("chain").await.unwrap();
    assert_eq!(positions, [counts.delivered], "everything up to the gap is decided, nothing behind it");
    let events = orders(0, counts.delivered);
    world.settled("chain", &chains(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_dropped_by_the_stream_are_counted_when_that_is_configured() {
    let (world, _host) = forgetful("continue").await;
    let (_, counts, _) = until("the head is reached", async || {
        world.last_record("chain").await.filter(|(_, _, positions)| positions == &[10_000])
    })
    .await;
    assert!(counts.lost > 0, "the stream was faster than the handler");
    assert_eq!(counts.delivered + counts.lost, 10_000, "each event is either decided or counted as lost");
    assert_eq!(counts.applied, counts.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_relieve_each_other_under_load_lose_nothing_and_fence_nobody() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let events = orders(0, 24_000);
    let mut on_duty: Option<crate::harness::Host> = None;
    for part in events.chunks(3000) {
        let next = world.host(&[]);
        let before = world.last_record("chain").await.map_or(0, |(_, counts, _)| counts.delivered);
        for (number, few) in part.chunks(100).enumerate() {
            if let Some(host) = on_duty.as_ref().filter(|_| number == 15) {
                host.signal("TERM");
            }
            world.publish(few).await;
        }
        if let Some(mut host) = on_duty.replace(next) {
            assert!(host.end().await.success(), "{}", host.log());
            assert!(!host.log().contains("fenced"), "{}", host.log());
        }
        until("the next host works", async || {
            world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > before)
        })
        .await;
    }
    world.settled("chain", &chains(&events)).await;
    let claims = world.claims("chain").await;
    let once: std::collections::BTreeSet<u64> = claims.iter().copied().collect();
    assert_eq!(once.len(), claims.len(), "one after the other: {claims:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_ends_in_time_while_its_server_is_away() {
    let mut world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=1000"]);
    world.publish(&orders(0, 5000)).await;
    let mut host = world.host(&[]);
    until("it works", async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > 100)).await;
    world.server.kill();
    host.signal("TERM");
    let begun = std::time::Instant::now();
    assert!(host.end().await.success(), "{}", host.log());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    assert!(!host.log().contains("everything decided is in the buckets"), "it cannot know:\n{}", host.log());
}

/// What a stream drops of others' messages, nobody misses: the position moves over them before they go.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_others_that_the_stream_drops_are_no_loss() {
    let world = World::new().await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned(), "noise.>".to_owned()],
        max_messages: 1000,
        allow_direct: true,
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.unwrap();
    world.deploy("order-chain", "chain", &[]);
    let mut host = world.host(&[]);
    let mut events = orders(0, 100);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;
    for _ in 1..=6 {
        for _ in 0..500 {
            world.jetstream.publish("noise.x", "{}".into()).await.unwrap().await.unwrap();
        }
        let state = world.jetstream.get_stream("ORDERS").await.unwrap().cached_info().state.clone();
        let half = state.first_sequence + (state.last_sequence - state.first_sequence) / 2;
        until("its position is in the newer half", async || {
            world.last_record("chain").await.filter(|(_, _, positions)| positions[0] >= half)
        })
        .await;
    }
    let first = world.jetstream.get_stream("ORDERS").await.unwrap().cached_info().state.first_sequence;
    assert!(first > 2000, "all of the orders are gone by now: {first}");
    for kill in [true, false] {
        let more = orders(events.len() as u64, 100);
        world.publish(&more).await;
        events.extend(more);
        world.settled("chain", &chains(&events)).await;
        if kill {
            host.kill();
            host = world.host(&[]);
        }
    }
    let (_, counts, _) = world.last_record("chain").await.unwrap();
    assert_eq!((counts.delivered, counts.lost), (300, 0), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_ledger_is_gone_goes_on_and_is_not_begun_as_another_generation() {
    let world = shop().await;
    let mut events = orders(0, 200);
    world.publish(&events).await;
    let host = world.host(&[]);
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    promote(&world, "spend", &[]);
    let ledgers = world.jetstream.get_key_value("MILLSTREAM_GENERATIONS").await.expect("the bucket");
    ledgers.delete("spend").await.expect("deleted");
    until("the host says so", async || host.log().contains("generation 2 goes on").then_some(())).await;
    let more = orders(200, 100);
    world.publish(&more).await;
    events.extend(more);
    world.settled("spend", &spend_v2(&events)).await;
    drop(host);

    // Nobody takes generation 1 for the live one.
    let host = world.host(&[]);
    let row = world.in_state("spend", "failing").await;
    let put = r#"nats kv put MILLSTREAM_GENERATIONS spend '{"live":2,"last":2}'"#;
    assert!(row["reason"].as_str().is_some_and(|reason| reason.contains(put)), "{row}");
    for command in [&["rebuild", "spend"][..], &["promote", "spend"], &["rollback", "spend"]] {
        let said = world.refused(2, command);
        assert!(said.contains("by its journal generation 2 is live") && said.contains(put), "{command:?}: {said}");
    }
    let output = world.cli(&["doctor", "--json"]);
    let found = String::from_utf8(output.stdout).expect("UTF-8");
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of_it: Vec<&str> = found
        .iter()
        .filter(|finding| finding["thing"].as_str().is_some_and(|thing| thing.contains("spend")))
        .filter_map(|finding| finding["check"].as_str())
        .collect();
    assert_eq!(of_it, ["lost-ledger"], "{found:?}");

    // Put back as the hint says, it goes on where it stood.
    let more = orders(300, 100);
    world.publish(&more).await;
    events.extend(more);
    ledgers.put("spend", r#"{"live":2,"last":2}"#.into()).await.expect("put");
    world.settled("spend", &spend_v2(&events)).await;
    world.in_state("spend", "running").await;
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_dropped_before_a_handler_decided_any_are_lost_all_the_same() {
    let world = World::new().await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        max_messages: 50,
        ..stream::Config::default()
    };
    world.jetstream.create_stream(config).await.expect("a stream");
    world.deploy("order-chain", "chain", &[]);
    let mut host = world.host(&[]);
    world.in_state("chain", "running").await;
    until("it has claimed", async || world.last_record("chain").await).await;
    host.signal("TERM");
    assert!(host.end().await.success(), "it ends well:\n{}", host.log());
    world.publish(&orders(0, 80)).await;
    refused(&world, "chain", "so 30 messages after the decided event 0 are gone").await;
    // To a handler that comes later, what was dropped before is nobody's.
    world.deploy("order-chain", "late", &[]);
    let _host = world.host(&[]);
    let counts = until("the late one has decided what is left", async || {
        world.last_record("late").await.map(|(_, counts, _)| counts).filter(|counts| counts.delivered == 50)
    })
    .await;
    assert_eq!((counts.applied, counts.lost), (50, 0));
}
