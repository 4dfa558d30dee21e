//! A rebuild beside the live generation: nobody notices, kills change nothing, and `diff` names exactly what an independent fold
//! says differs, with the event behind it.

use std::collections::BTreeSet;

use futures::TryStreamExt as _;
use millstream::claim::{self, Claimant};
use millstream::journal::{Journal, Record, Standing};
use millstream::sandbox::Digest;
use serde_json::{Value, json};

use crate::harness::{Documents, Event, World, module, orders, spend, spend_v2, until};
use crate::promotion::{promote, rebuild_v2, shop};

/// What `diff --json` says.
pub fn diff(world: &World, handler: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["diff", handler, "--json", "--samples", "100000"];
    arguments.extend(more);
    serde_json::from_str(&world.ok(&arguments)).expect("JSON")
}

/// Insists that a comparison says exactly what differs between these documents.
#[track_caller]
pub fn tells(comparison: &Value, live: &Documents, other: &Documents) {
    let keys: BTreeSet<&String> = live.keys().chain(other.keys()).collect();
    let kind = |key: &String| match (live.get(key), other.get(key)) {
        (Some(_), None) => "removed",
        (None, Some(_)) => "added",
        (one, two) if one == two => "equal",
        _ => "changed",
    };
    for what in ["equal", "changed", "added", "removed"] {
        let expected = keys.iter().filter(|key| kind(key) == what).count();
        assert_eq!(comparison[what], json!(expected), "{what}: {comparison:#.3000}");
    }
    assert_eq!(comparison["moving"], 0, "{comparison:#.3000}");
    let samples = comparison["samples"].as_array().expect("samples");
    assert_eq!(samples.len(), keys.iter().filter(|key| kind(key) != "equal").count());
    for sample in samples {
        let key = sample["key"].as_str().expect("a key").to_owned();
        assert_eq!(sample["kind"], kind(&key), "{sample}");
        let value =
            |documents: &Documents| documents.get(&key).map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!((&sample["live"], &sample["other"]), (&json!(value(live)), &json!(value(other))), "{key}");
    }
}

/// The stream sequence of each customer's last order, as the samples must name it.
fn last_orders(events: &[Event]) -> std::collections::BTreeMap<&str, String> {
    let numbered = (1..).zip(events).map(|(sequence, event)| (event.customer.as_str(), format!("ORDERS:{sequence}")));
    numbered.collect()
}

/// The generations of a handler, as `rebuild --list` tells them.
pub fn listed(world: &World, handler: &str) -> Vec<Value> {
    let text = world.ok(&["rebuild", handler, "--list", "--json"]);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Waits until this generation is in this state.
pub async fn is(world: &World, handler: &str, generation: u32, state: &str) -> Value {
    until(&format!("generation {generation} is {state}"), async || {
        listed(world, handler).into_iter().find(|row| row["generation"] == generation && row["state"] == state)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_begins_empty_though_the_ledger_forgot_one_that_had_its_number() {
    let world = shop().await;
    let events = orders(0, 300);
    world.publish(&events).await;
    let host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    drop(host);
    let ledgers = world.jetstream.get_key_value("MILLSTREAM_GENERATIONS").await.expect("the bucket");
    ledgers.delete("spend").await.expect("deleted");
    let _host = world.host(&[]);
    world.ok(&["rebuild", "spend", "--no-wait"]);
    let row = is(&world, "spend", 3, "ready").await;
    assert_eq!((row["decided"].as_u64(), listed(&world, "spend").len()), (Some(300), 2), "{row}");
    promote(&world, "spend", &[]);
    is(&world, "spend", 3, "live").await;
    assert_eq!(world.documents("spend").await, spend(&events), "none of the other's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_changes_nothing_for_readers_and_diff_names_what_differs() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &[]);
    let events = orders(0, 12_000);
    world.publish(&events[..10_000]).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events[..10_000])).await;
    let v2 = module("customer-spend-v2");
    let begun: Value =
        serde_json::from_str(&world.ok(&["rebuild", "spend", "--module", v2.to_str().unwrap(), "--json"])).unwrap();
    assert_eq!((&begun["generation"], &begun["decided"]), (&json!(2), &json!(10_000)), "{begun}");
    // Both follow.
    world.publish(&events[10_000..]).await;
    world.settled("spend", &spend(&events)).await;
    world.settled("spend_g2", &spend_v2(&events)).await;
    let comparison = diff(&world, "spend", &[]);
    tells(&comparison, &spend(&events), &spend_v2(&events));
    let last = last_orders(&events);
    for sample in comparison["samples"].as_array().unwrap() {
        let event = &last[sample["key"].as_str().unwrap()];
        assert_eq!((&sample["live_event"], &sample["other_event"]), (&json!(event), &json!(event)));
    }
    assert_ne!((&comparison["changed"], &comparison["equal"]), (&json!(0), &json!(0)), "both kinds were there to tell");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_killed_on_the_way_goes_on_and_gives_the_same_bytes_under_live_load() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "batch_events=500"]);
    let events = orders(0, 60_000);
    world.publish(&events[..40_000]).await;
    let mut host = world.host(&[]);
    world.settled("spend", &spend(&events[..40_000])).await;
    world.ok(&["rebuild", "spend", "--throttle", "15000", "--no-wait"]);
    for (kill, part) in events[40_000..].chunks(10_000).enumerate() {
        until("progress", async || {
            let row = listed(&world, "spend").into_iter().find(|row| row["generation"] == 2)?;
            (row["decided"].as_u64()? > 10_000 * (kill as u64 + 1) - 5_000).then_some(())
        })
        .await;
        host.kill();
        host = world.host(&[]);
        world.publish(part).await;
    }
    let _host = host;
    world.settled("spend", &spend(&events)).await;
    world.settled("spend_g2", &spend(&events)).await;
    is(&world, "spend", 2, "ready").await;
    let comparison = diff(&world, "spend", &[]);
    tells(&comparison, &spend(&events), &spend(&events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_another_host_had_for_a_moment_begins_again() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &[]);
    let events = orders(0, 900);
    world.publish(&events[..300]).await;
    let host = world.host(&[]);
    world.ok(&["rebuild", "spend"]);
    is(&world, "spend", 2, "ready").await;
    let journal = Journal::open(&world.jetstream, "spend", 1).await.expect("the journal").of(2);
    for part in 1..3 {
        let (last, bytes) = journal.last().await.expect("an answer").expect("a record");
        let bucket = Record::decode(&bytes, last).expect("a record").bucket;
        let other = Claimant {
            handler: "spend".to_owned(),
            host: "other".to_owned(),
            digest: Digest([0; 32]),
            makes: None,
            standing: Standing::Shadow,
            id: claim::fresh_id(),
            held: false,
            begins: Vec::new(),
        };
        claim::take(&journal, &other, bucket).await.expect("it is taken away");
        world.publish(&events[part * 300..(part + 1) * 300]).await;
        world.settled("spend_g2", &spend(&events[..(part + 1) * 300])).await;
        is(&world, "spend", 2, "ready").await;
        assert_eq!(host.log().matches("another host had it; it begins again").count(), part, "{}", host.log());
    }
    assert_eq!(world.claims("spend").await.len(), 1, "the live one did not notice");
}

/// Keys of all of Millstream's own buckets.
async fn keys(world: &World) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for bucket in ["HANDLERS", "STATUS", "GENERATIONS"] {
        let bucket = world.jetstream.get_key_value(format!("MILLSTREAM_{bucket}")).await.expect("a bucket");
        let keys: Vec<String> = bucket.keys().await.expect("keys").try_collect().await.expect("keys");
        all.extend(keys.into_iter().map(|key| format!("{}/{key}", bucket.name)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_of_a_generation_that_is_gone_nor_left_of_a_handler_that_is_removed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "keep_generations=1"]);
    world.deploy("customer-spend", "spend-more", &[]);
    let events = orders(0, 300);
    world.publish(&events).await;
    // One that is gone by the time.
    let mut gone = world.host(&[("MILLSTREAM_HOST", "gone")]);
    world.settled("spend", &spend(&events)).await;
    gone.signal("TERM");
    assert!(gone.end().await.success());
    let _host = world.host(&[("MILLSTREAM_HOST", "left")]);
    let said_of = async |generations: &[u32]| {
        let expected: BTreeSet<String> =
            generations.iter().map(|number| format!("MILLSTREAM_STATUS/spend.generation.{number}")).collect();
        until("no more is said than of these", async || {
            let said: BTreeSet<String> =
                keys(&world).await.into_iter().filter(|key| key.contains(".generation.")).collect();
            (said == expected).then_some(())
        })
        .await;
    };
    world.ok(&["rebuild", "spend"]);
    is(&world, "spend", 2, "ready").await;
    said_of(&[2]).await;
    // Promoted: 2 is live, 1 is kept.
    world.ok(&["promote", "spend"]);
    said_of(&[1]).await;
    // Pruned: 3 is live, 2 is kept, 1 goes.
    world.ok(&["rebuild", "spend"]);
    is(&world, "spend", 3, "ready").await;
    world.ok(&["promote", "spend"]);
    said_of(&[2]).await;
    world.ok(&["rebuild", "spend"]);
    said_of(&[2, 4]).await;
    world.ok(&["abandon", "spend", "--generation", "4"]);
    said_of(&[2]).await;
    world.ok(&["remove", "spend", "--yes", "--with-documents"]);
    let left = |keys: BTreeSet<String>| -> Vec<String> {
        keys.into_iter().filter(|key| key.ends_with("/spend") || key.contains("/spend.")).collect()
    };
    assert_eq!(left(keys(&world).await), Vec::<String>::new());
    let traces: Vec<String> = world.traces().await.into_iter().filter(|name| name.contains("spend")).collect();
    assert_eq!(traces, ["KV_spend-more", "MILLSTREAM_JOURNAL_spend-more"], "and nothing of another");
    assert!(keys(&world).await.contains("MILLSTREAM_STATUS/spend-more"));
}
