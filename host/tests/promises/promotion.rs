//! One generation takes the place of another: at one exact event, readers never see half of it, no effect is published twice and
//! none is missing, and it can be taken back. Also when the host is killed at any step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream::crash::PROMOTING;
use serde_json::{Value, json};

use crate::generations::{diff, is, listed, tells};
use crate::harness::{World, at_each_point, module, orders, pause, spend, spend_v2, until};

/// What `promote --json` says.
pub fn promote(world: &World, handler: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["promote", handler, "--json"];
    arguments.extend(more);
    serde_json::from_str(&world.ok(&arguments)).expect("JSON")
}

pub fn rebuild_v2(world: &World) {
    let v2 = module("customer-spend-v2");
    world.ok(&["rebuild", "spend", "--module", v2.to_str().unwrap()]);
}

pub async fn shop() -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("RECEIPTS", &["receipts.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "batch_events=500"]);
    world
}

/// The receipts that were sent, by the order they are for.
pub async fn receipts(world: &World) -> BTreeMap<String, u64> {
    let mut receipts = BTreeMap::new();
    for command in crate::services::stored(&world.jetstream, "RECEIPTS").await {
        *receipts.entry(command.payload["order"].as_str().expect("an order").to_owned()).or_default() += 1;
    }
    receipts
}

/// Waits for as many receipts as there are orders.
async fn all_receipts(world: &World, orders: u64) {
    until("all receipts", async || {
        let stored = world.jetstream.get_stream("RECEIPTS").await.ok()?.cached_info().state.messages;
        (stored == orders).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_generation_is_what_readers_see_and_can_be_taken_back() {
    let world = shop().await;
    let events = orders(0, 8_000);
    world.publish(&events[..5_000]).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events[..5_000])).await;
    rebuild_v2(&world);
    let promoted = promote(&world, "spend", &[]);
    assert_eq!((&promoted["live"], &promoted["before"]), (&json!(2), &json!(1)), "{promoted}");
    assert_eq!(promoted["positions"], json!(["ORDERS:5000"]));
    let changed = spend_v2(&events[..5_000]).values().filter(|text| text.contains("large")).count();
    assert_eq!(promoted["written"], changed, "only what differs is written");
    world.settled("spend", &spend_v2(&events[..5_000])).await;
    // Both go on, the old one as a shadow.
    world.publish(&events[5_000..6_000]).await;
    world.settled("spend", &spend_v2(&events[..6_000])).await;
    world.settled("spend_g1", &spend(&events[..6_000])).await;
    tells(&diff(&world, "spend", &[]), &spend_v2(&events[..6_000]), &spend(&events[..6_000]));
    // Back, and forth again.
    assert_eq!(promote(&world, "spend", &[])["live"], 1);
    world.settled("spend", &spend(&events[..6_000])).await;
    world.publish(&events[6_000..7_000]).await;
    world.settled("spend", &spend(&events[..7_000])).await;
    world.settled("spend_g2", &spend_v2(&events[..7_000])).await;
    assert_eq!(promote(&world, "spend", &["--generation", "2"])["live"], 2);
    world.publish(&events[7_000..]).await;
    world.settled("spend", &spend_v2(&events)).await;
    world.in_state("spend", "running").await;
    let (_, counts, _) = world.last_record("spend").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (8_000, 8_000), "each was decided once");
    // Nothing is left of a generation that was abandoned.
    world.ok(&["abandon", "spend", "--generation", "1"]);
    assert!(!world.traces().await.contains(&"KV_spend_g1".to_owned()));
    assert_eq!(listed(&world, "spend").len(), 1);
    assert_eq!(world.documents("spend").await, spend_v2(&events));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_promoted_is_named() {
    let world = shop().await;
    world.publish(&orders(0, 4_000)).await;
    let missing = world.refused(2, &["promote", "nobody"]);
    assert!(missing.contains("handler nobody is not deployed"), "{missing}");
    let nothing = world.refused(2, &["promote", "spend"]);
    assert!(nothing.contains("there is nothing to promote"), "{nothing}");
    for command in ["promote", "abandon", "diff"] {
        let unknown = world.refused(2, &[command, "spend", "--generation", "7"]);
        assert!(unknown.contains("handler spend has no generation 7"), "{unknown}");
        let live = world.refused(2, &[command, "spend", "--generation", "1"]);
        assert!(live.contains("generation 1 of handler spend is live"), "{live}");
    }
    let _host = world.host(&[]);
    world.settled("spend", &spend(&orders(0, 4_000))).await;
    world.ok(&["rebuild", "spend", "--throttle", "100", "--no-wait"]);
    let behind = world.refused(2, &["promote", "spend"]);
    assert!(behind.contains("generation 2 of handler spend is behind"), "{behind}");
    world.ok(&["rebuild", "spend"]);
    let several = world.refused(2, &["promote", "spend"]);
    assert!(several.contains("several generations beside the live one: 2, 3"), "{several}");
    let v = module("order-receipt");
    let kind = world.refused(2, &["rebuild", "spend", "--module", v.to_str().unwrap()]);
    assert!(kind.contains("cannot take each other's place"), "{kind}");
    assert_eq!(world.documents("spend").await, spend(&orders(0, 4_000)), "nothing was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_promotions_at_once_one_happens() {
    let world = shop().await;
    let events = orders(0, 3_000);
    world.publish(&events[..2_000]).await;
    let _host = world.host(&[]);
    rebuild_v2(&world);
    world.ok(&["rebuild", "spend"]);
    let url = world.server.url();
    let ask = |number: &'static str| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || crate::harness::cli(&url, &["promote", "spend", "--generation", number]))
    };
    let (two, three, again) = (ask("2"), ask("3"), ask("2"));
    let codes = [two.await.unwrap(), three.await.unwrap(), again.await.unwrap()].map(|output| output.status.code());
    assert!(codes.contains(&Some(0)), "one is through: {codes:?}");
    world.publish(&events[2_000..]).await;
    let live = listed(&world, "spend")[0]["generation"].as_u64().expect("a number");
    let expected = if live == 2 { spend_v2(&events) } else { spend(&events) };
    assert_ne!(live, 1);
    world.settled("spend", &expected).await;
    let (_, counts, _) = world.last_record("spend").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (3_000, 3_000));
}

/// The one that follows is slow, so that it has events to decide when the live one stops; and there are more behind the cut by the
/// time that it does.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_the_cut_is_decided_muted_and_what_came_after_it_is_not() {
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=500"]);
    let events = orders(0, 1_000);
    world.publish(&events[..100]).await;
    let mut host = world.host(&[("MILLSTREAM_STOP_AT", "stopped:1")]);
    world.ok(&["rebuild", "receipt", "--throttle", "50"]);
    world.publish(&events[100..500]).await;
    until("receipts", async || (receipts(&world).await.len() == 500).then_some(())).await;
    let url = world.server.url();
    let asked = tokio::task::spawn_blocking(move || crate::harness::cli(&url, &["promote", "receipt", "--json"]));
    until("the old generation is closed", async || host.is_stopped().then_some(())).await;
    let waiting = &listed(&world, "receipt")[1]["waiting"];
    assert!(waiting.as_u64() > Some(100), "the other has something to decide: {waiting}");
    world.publish(&events[500..]).await;
    host.signal("CONT");
    let output = asked.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let promoted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(promoted["positions"], json!(["ORDERS:500"]), "{promoted}");
    let expected: BTreeMap<String, u64> = events.iter().map(|event| (event.id.clone(), 1)).collect();
    until("all receipts", async || (receipts(&world).await.len() == 1_000).then_some(())).await;
    world.caught_up("receipt").await;
    assert_eq!(receipts(&world).await, expected);
    assert_eq!(host.ended(), None);
}

/// Polls one customer's document while the world turns: no document may ever lose an order, or be torn.
struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    fn start(world: &World, handler: &'static str) -> Self {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, jetstream) = (Arc::clone(&stop), Arc::clone(&reads), world.jetstream.clone());
        let task = tokio::spawn(async move {
            let mut seen: BTreeMap<String, u64> = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let subjects: Vec<String> = (0..300).map(|number| format!("$KV.{handler}.C{number}")).collect();
                let stream = format!("KV_{handler}");
                let Ok((messages, _)) = millstream::direct_get::last_of(&jetstream, &stream, &subjects).await else {
                    continue;
                };
                for message in messages {
                    assert!(message.headers.get("KV-Operation").is_none(), "{} is gone", message.subject);
                    let document: Value = serde_json::from_slice(&message.payload).expect("a whole document");
                    let orders = document["orders"].as_u64().expect("orders");
                    let before = seen.insert(message.subject.clone(), orders).unwrap_or_default();
                    assert!(orders >= before, "{} went back from {before} to {orders}", message.subject);
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, reads, task }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no reader saw anything but whole, newer documents");
        assert!(self.reads.load(Ordering::Relaxed) > 10, "the reader read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_load_killed_twice_is_promoted_taken_back_and_promoted_and_no_reader_sees_half_of_it() {
    // Longer by hand: MILLSTREAM_REBUILD_EVENTS=1000000.
    let size = std::env::var("MILLSTREAM_REBUILD_EVENTS").ok().and_then(|size| size.parse().ok()).unwrap_or(100_000);
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=500"]);
    let mut host = world.host(&[]);
    let events = orders(0, size);
    let mut published = 0;
    for part in events.chunks(100_000) {
        world.publish(part).await;
        published += part.len() as u64;
        all_receipts(&world, published).await;
    }
    world.settled("spend", &spend(&events)).await;
    let (v2, throttle) = (module("customer-spend-v2"), (size * 2 / 5).to_string());
    world.ok(&["rebuild", "spend", "--module", v2.to_str().unwrap(), "--throttle", &throttle, "--no-wait"]);
    world.ok(&["rebuild", "receipt", "--throttle", &throttle, "--no-wait"]);
    let reader = Reader::start(&world, "spend");
    let done = AtomicBool::new(false);
    let load = async {
        let mut published = size;
        while !done.load(Ordering::Relaxed) {
            world.publish(&orders(published, 200)).await;
            published += 200;
            pause().await;
        }
        published
    };
    let turns = async {
        for goal in [size / 5, size / 2] {
            until("progress", async || {
                let row = listed(&world, "spend").into_iter().find(|row| row["generation"] == 2)?;
                (row["decided"].as_u64()? > goal).then_some(())
            })
            .await;
            host.kill();
            host = world.host(&[]);
        }
        for live in [2, 1, 2] {
            for handler in ["spend", "receipt"] {
                let other = if live == 2 { 2 } else { 1 };
                // A moment later it may be behind again, for the load goes on.
                let output = until("it is near", async || {
                    let row = listed(&world, handler).into_iter().find(|row| row["generation"] == other)?;
                    if row["waiting"].as_u64()? > 500 || row["decided"].as_u64()? < size {
                        return None;
                    }
                    let url = world.server.url();
                    let promoted = tokio::task::spawn_blocking(move || {
                        crate::harness::cli(&url, &["promote", handler, "--json", "--generation", &live.to_string()])
                    });
                    let output = promoted.await.expect("it ends");
                    (!String::from_utf8_lossy(&output.stderr).contains(" is behind: ")).then_some(output)
                })
                .await;
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let promoted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                println!("{handler}: generation {live} live after {} ms", promoted["pause_milliseconds"]);
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    let (published, ()) = tokio::join!(load, turns);
    let events = orders(0, published);
    world.settled("spend", &spend_v2(&events)).await;
    world.settled("spend_g1", &spend(&events)).await;
    reader.end().await;
    world.caught_up("receipt").await;
    all_receipts(&world, published).await;
    let receipts = receipts(&world).await;
    assert_eq!(receipts.len() as u64, published, "one for each order");
    assert!(receipts.values().all(|count| *count == 1), "each once");
}

async fn survives(point: &'static str) {
    survives_passage(point, 1).await;
}

/// `passage`: a bucket is filled twice, first the one for what was live.
async fn survives_passage(point: &'static str, passage: u64) {
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=100"]);
    let events = orders(0, 4_000);
    world.publish(&events[..3_000]).await;
    let mut host = world.host(&[]);
    rebuild_v2(&world);
    world.ok(&["rebuild", "receipt"]);
    world.settled("spend", &spend(&events[..3_000])).await;
    until("all receipts", async || (receipts(&world).await.len() == 3_000).then_some(())).await;
    host.signal("TERM");
    assert!(host.end().await.success(), "{}", host.log());
    for (handler, live) in [("spend", 2), ("receipt", 2)] {
        let mut crashing = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:{passage}"))]);
        let url = world.server.url();
        let asked = tokio::task::spawn_blocking(move || crate::harness::cli(&url, &["promote", handler, "--json"]));
        // A reaction has no documents to bring over.
        if point != "pouring" || handler == "spend" {
            let status = crashing.end().await;
            assert!(!status.success(), "{point}: the host ends by the abort; its log:\n{}", crashing.log());
            crashing = world.host(&[]);
        }
        let output = asked.await.expect("it ends");
        assert!(output.status.success(), "{point}: {}", String::from_utf8_lossy(&output.stderr));
        is(&world, handler, live, "live").await;
        crashing.kill();
    }
    let _host = world.host(&[]);
    world.publish(&events[3_000..]).await;
    world.settled("spend", &spend_v2(&events)).await;
    world.settled("spend_g1", &spend(&events)).await;
    let expected: BTreeMap<String, u64> = events.iter().map(|event| (event.id.clone(), 1)).collect();
    until("every receipt, once", async || (receipts(&world).await.len() == 4_000).then_some(())).await;
    world.caught_up("receipt").await;
    assert_eq!(receipts(&world).await, expected, "{point}");
}

at_each_point! {
    PROMOTING;
    a_host_that_dies_once_both_stand_alike_leads_to_the_same_end: "aligned",
    a_host_that_dies_before_the_old_generation_is_closed_leads_to_the_same_end: "stopping",
    a_host_that_dies_when_it_is_about_to_cut_leads_to_the_same_end: "cutting",
    a_host_that_dies_after_the_old_generation_is_closed_leads_to_the_same_end: "stopped",
    a_host_that_dies_before_the_new_generation_is_closed_leads_to_the_same_end: "caught-up",
    a_host_that_dies_after_the_new_generation_is_closed_leads_to_the_same_end: "closed",
    a_host_that_dies_after_the_copy_leads_to_the_same_end: "copied",
    a_host_that_dies_after_the_old_generation_became_a_shadow_leads_to_the_same_end: "kept",
    a_host_that_dies_while_documents_come_over_leads_to_the_same_end: "pouring",
    a_host_that_dies_when_documents_came_over_leads_to_the_same_end: "poured",
    a_host_that_dies_after_the_new_generation_became_live_leads_to_the_same_end: "taken-over",
    a_host_that_dies_after_the_deployment_leads_to_the_same_end: "deployed",
    a_host_that_dies_after_the_promotion_leads_to_the_same_end: "promoted",
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_when_half_of_the_documents_came_over_leads_to_the_same_end() {
    survives_passage("pouring", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_state_version_is_built_beside_the_live_one_by_deploying_it() {
    let world = shop().await;
    let events = orders(0, 3_000);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    let v2 = module("customer-spend-v2");
    let v2 = v2.to_str().unwrap();
    assert!(
        world
            .refused(2, &["deploy", v2, "--name", "spend", "--set", "batch_events=7"])
            .contains("settings of its handler")
    );
    world.ok(&["deploy", v2, "--name", "spend", "--dry-run"]);
    assert_eq!(listed(&world, "spend").len(), 1, "nothing was begun");
    world.ok(&["deploy", v2, "--name", "spend", "--label", "second"]);
    world.settled("spend_g2", &spend_v2(&events)).await;
    world.settled("spend", &spend(&events)).await;
    world.ok(&["abandon", "spend", "--generation", "2"]);
    world.ok(&["deploy", v2, "--name", "spend", "--label", "second", "--promote", "auto"]);
    world.settled("spend", &spend_v2(&events)).await;
    let row = world.in_state("spend", "running").await;
    assert_eq!((&row["label"], &row["counts"]["delivered"]), (&json!("second"), &json!(3_000)), "{row}");
    // Its documents are of the new state version: the way back is the other generation, and nothing is written.
    let told = world.refused(2, &["rollback", "spend"]);
    assert!(told.contains("cannot go back to") && told.contains("millstream promote spend --generation"), "{told}");
    assert_eq!(world.listed("spend")["label"], "second");
}
