//! Sizes: what cannot be stored is named, event and all; what only together is too large is decided in parts.

use millstream::server::Server;
use serde_json::json;

use crate::harness::{Documents, World, chains, orders, until};
use crate::hostile::NEVER_PARK;

const MAX_PAYLOAD: usize = 64 << 10;

fn edit(channel: &str, user: &str) -> String {
    json!({ "eventType": "PageEdited", "aggregateId": channel, "payload": { "channel": channel, "user": user, "added": 1,
        "deleted": 0, "isRobot": false, "isAnonymous": false, "isNew": false } })
    .to_string()
}

/// What channel-stats holds of a channel that these users edited, once each.
fn stats(users: &[&str]) -> String {
    let users = serde_json::to_string(&std::collections::BTreeSet::from_iter(users)).expect("JSON");
    let count = users.matches("\",\"").count() + 1;
    format!(r#"{{"events":{count},"added":{count},"deleted":0,"robots":0,"anonymous":0,"created":0,"users":{users}}}"#)
}

async fn world() -> World {
    let world = World::with(Server::builder().max_payload(MAX_PAYLOAD)).await;
    world.stream("EDITS", &["edits.>"]).await;
    world
}

async fn publish(world: &World, body: String) {
    let ack = world.jetstream.publish("edits.x", body.into()).await.expect("sent");
    ack.await.expect("stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_outgrows_max_payload_stops_the_handler_at_that_event() {
    let world = world().await;
    for (name, batch) in [("one", "1"), ("many", "500")] {
        let batch = format!("batch_events={batch}");
        world.deploy("channel-stats", name, &["--set", &batch, "--set", NEVER_PARK]);
    }
    let users: Vec<String> = (0..8).map(|number| format!("{number}{}", "u".repeat(10_000))).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    for user in &users {
        publish(&world, edit("#growing", user)).await;
    }
    let _host = world.host(&[]);
    for name in ["one", "many"] {
        let row = world.in_state(name, "failing").await;
        let said = row["reason"].as_str().expect("a reason");
        assert!(said.contains("EDITS:7 ") && said.contains("(too-large)") && said.contains("max_payload"), "{said}");
        world.settled(name, &[("#growing".to_owned(), stats(&users[..6]))].into()).await;
        let (_, counts, positions) = world.last_record(name).await.expect("a record");
        assert_eq!((counts.delivered, counts.applied, positions), (6, 6, vec![6]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_documents_exceed_max_payload_together_is_decided_in_parts() {
    let world = world().await;
    world.deploy("channel-stats", "stats", &["--set", "batch_wait_milliseconds=200"]);
    let name = |number: usize| format!("{number:02}{}", "u".repeat(4000));
    let mut expected = Documents::new();
    for number in 0..60 {
        publish(&world, edit(&format!("#{number}"), &name(number))).await;
        expected.insert(format!("#{number}"), stats(&[&name(number)]));
    }
    let host = world.host(&[]);
    world.settled("stats", &expected).await;
    let (_, counts, positions) = world.last_record("stats").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, positions), (60, 60, vec![60]));
    // 60 documents of 4 KB need four records of 60 KB at least, though batch_events would take them all at once.
    let records = records(&world, "stats").await;
    assert!((4..30).contains(&records.len()), "{} records", records.len());
    assert!(records.iter().all(|bytes| *bytes <= MAX_PAYLOAD), "{records:?}");
    assert!(!host.log().contains("ERROR"), "{}", host.log());
}

/// Sizes of the batch records in a journal.
async fn records(world: &World, handler: &str) -> Vec<usize> {
    let journal = millstream::journal::Journal::open(&world.jetstream, handler, 1).await.expect("the journal");
    let (last, _) = journal.last().await.expect("an answer").expect("a record");
    let records = journal.read(0, last).await.expect("all records");
    let of_batches = records.into_iter().filter(|(sequence, bytes)| {
        let record = millstream::journal::Record::decode(bytes, *sequence).expect("a record");
        record.kind == millstream::journal::Kind::Batch
    });
    of_batches.map(|(_, bytes)| bytes.len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_bucket_can_hold_stops_the_handler_at_that_event() {
    let world = world().await;
    world.deploy("channel-stats", "stats", &["--set", NEVER_PARK]);
    world.deploy("channel-stats", "escaped", &["--set", NEVER_PARK]);
    // 1024 bytes of plain letters fit; so do 341 characters that are escaped to three bytes each, and one more letter.
    let longest = "k".repeat(1024);
    let longest_escaped = format!("{}k", "#".repeat(341));
    for channel in [&longest, &longest_escaped, &"k".repeat(1025)] {
        publish(&world, edit(channel, "u")).await;
    }
    let _host = world.host(&[]);
    for handler in ["stats", "escaped"] {
        let row = world.in_state(handler, "failing").await;
        let said = row["reason"].as_str().expect("a reason");
        assert!(said.contains("EDITS:3 ") && said.contains("(key-too-long)") && said.contains("1025 bytes"), "{said}");
        let expected = [(longest.clone(), stats(&["u"])), (longest_escaped.clone(), stats(&["u"]))].into();
        world.settled(handler, &expected).await;
    }
    let shown = world.ok(&["get", "stats", &longest_escaped]);
    assert_eq!(shown.trim_end(), stats(&["u"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_the_largest_size_that_the_server_takes_is_decided() {
    let world = world().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let mut events = orders(0, 20);
    for event in events.iter_mut().step_by(3) {
        let room = MAX_PAYLOAD - event.body().len() - 200;
        event.customer.push_str(&"x".repeat(room));
    }
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("chain", &chains(&events)).await;
    let all = async || world.last_record("chain").await.filter(|(_, counts, _)| counts.applied == 20);
    until("all decided", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_keys_than_one_request_holds_are_read_in_several() {
    let world = world().await;
    millstream::documents::Documents::open(&world.jetstream, "stats", 1, 1).await.expect("the bucket");
    let bucket = world.jetstream.get_key_value("stats").await.expect("the bucket");
    // 120 subjects of about a kilobyte are twice what max_payload lets through.
    let keys: Vec<String> = (0..120).map(|number| format!("{number:03}{}", "k".repeat(1000))).collect();
    for key in &keys {
        bucket.put(key, "1".into()).await.expect("stored");
    }
    let expected: String = keys.iter().map(|key| format!("{key}\t1\n")).collect();
    assert_eq!(world.ok(&["get", "stats"]), expected);
    let asked: Vec<&str> = ["get", "stats"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    assert_eq!(world.ok(&asked), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_for_another_guest_says_so_and_tries_again_until_there_is() {
    const HANDLERS: [&str; 3] = ["one", "two", "three"];
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let events = orders(0, 600);
    world.publish(&events[..300]).await;
    world.deploy("order-chain", HANDLERS[0], &[]);
    let mut host = world.host(&[]);
    let held = until("it is told what a guest holds", async || {
        world.report(HANDLERS[0]).await?["numbers"]["guest_memory_bytes"].as_u64().filter(|bytes| *bytes > 0)
    })
    .await;
    host.kill();
    for name in &HANDLERS[1..] {
        world.deploy("order-chain", name, &[]);
    }
    // Of three, two find room.
    let ceiling = (held * 5 / 2).to_string();
    let _host = world.host(&[("MILLSTREAM_GUEST_MEMORY", &ceiling)]);
    world.publish(&events[300..400]).await;
    let states = || HANDLERS.map(|name| world.listed(name));
    let rows = until("two run", async || {
        let rows = states();
        let count = |state: &str| rows.iter().filter(|row| row["state"] == state).count();
        (count("running") == 2 && count("retrying") == 1).then_some(rows)
    })
    .await;
    let waits = rows.iter().find(|row| row["state"] == "retrying").expect("one waits");
    let reason = waits["reason"].as_str().expect("a reason");
    assert!(reason.contains(&ceiling) && reason.contains("--guest-memory"), "{waits}");
    for row in rows.iter().filter(|row| row["state"] == "running") {
        let name = row["handler"].as_str().expect("a name");
        world.settled(name, &chains(&events[..400])).await;
    }
    let waits = waits["handler"].as_str().expect("a name").to_owned();
    let gone = HANDLERS.into_iter().find(|name| *name != waits).expect("another");
    world.ok(&["remove", gone, "--yes"]);
    world.publish(&events[400..]).await;
    for name in HANDLERS.into_iter().filter(|name| *name != gone) {
        world.settled(name, &chains(&events)).await;
        let (_, counts, _) = world.last_record(name).await.expect("a record");
        assert_eq!((counts.delivered, counts.applied, counts.parked), (600, 600, 0), "{name}");
    }
}
