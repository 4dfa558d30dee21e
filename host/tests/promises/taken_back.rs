//! A promotion is taken back until a host is about to cut, and never after; whoever waits for one is told what it waits for.

use std::collections::BTreeMap;
use std::process::Output;

use async_nats::jetstream::kv;
use millstream::generation::ledger::{self, Ledgers};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::generations::{is, listed};
use crate::harness::{Dice, Event, World, module, orders, pause, spend, spend_v2, until};
use crate::promotion::{promote, rebuild_v2, receipts, shop};

/// A promotion that somebody waits for.
pub fn asked(world: &World, handler: &'static str, number: u64) -> JoinHandle<Output> {
    let url = world.server.url();
    let number = number.to_string();
    tokio::task::spawn_blocking(move || {
        crate::harness::cli(&url, &["promote", handler, "--generation", &number, "--json"])
    })
}

async fn all_receipts_once(world: &World, events: &[Event]) {
    let expected: BTreeMap<String, u64> = events.iter().map(|event| (event.id.clone(), 1)).collect();
    until("all receipts", async || (receipts(world).await.len() == events.len()).then_some(())).await;
    world.caught_up("receipt").await;
    assert_eq!(receipts(world).await, expected);
}

/// A reaction with a second generation that is ready, on a host that stops at this point of a promotion.
async fn reaction(point: &str) -> (World, crate::harness::Host) {
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=50"]);
    world.publish(&orders(0, 500)).await;
    let host = world.host(&[("MILLSTREAM_STOP_AT", &format!("{point}:1"))]);
    world.ok(&["rebuild", "receipt"]);
    is(&world, "receipt", 2, "ready").await;
    until("the first receipts", async || (receipts(&world).await.len() == 500).then_some(())).await;
    (world, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_taken_back_while_its_host_is_about_to_decide_the_cut() {
    let (world, host) = reaction("stopping").await;
    let events = orders(0, 1_000);
    let waits = asked(&world, "receipt", 2);
    until("the live generation has stopped", async || host.is_stopped().then_some(())).await;
    let taken: Value = serde_json::from_str(&world.ok(&["promote", "receipt", "--cancel", "--json"])).expect("JSON");
    assert_eq!(taken, json!({ "handler": "receipt", "live": 1, "generation": 2 }));
    let nothing = world.refused(2, &["promote", "receipt", "--cancel"]);
    assert!(nothing.contains("no generation of handler receipt is being promoted"), "{nothing}");
    let output = waits.await.expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("generation 1 goes on: it was taken back"), "{told}");
    world.publish(&events[500..]).await;
    host.signal("CONT");
    all_receipts_once(&world, &events).await;
    is(&world, "receipt", 1, "live").await;
    is(&world, "receipt", 2, "ready").await;
    until("the copy is gone", async || (!world.traces().await.contains(&"KV_receipt_g1".to_owned())).then_some(()))
        .await;
    assert_eq!(promote(&world, "receipt", &[])["live"], 2, "and it can be promoted all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_whose_cut_is_decided_is_not_taken_back() {
    let (world, host) = reaction("cutting").await;
    let events = orders(0, 1_000);
    let waits = asked(&world, "receipt", 2);
    until("it is about to cut", async || host.is_stopped().then_some(())).await;
    let late = world.refused(2, &["promote", "receipt", "--cancel"]);
    assert!(
        late.contains("takes over already") && late.contains("`millstream promote receipt --generation 1`"),
        "{late}"
    );
    let busy = world.refused(2, &["abandon", "receipt", "--generation", "2"]);
    assert!(busy.contains("generation 2 of handler receipt is being promoted"), "{busy}");
    world.publish(&events[500..]).await;
    host.signal("CONT");
    let output = waits.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    all_receipts_once(&world, &events).await;
    is(&world, "receipt", 2, "live").await;
}

/// Whoever takes it back does so at any moment, as it happens.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_promotion_and_its_taking_back_exactly_one_happens() {
    const ROUNDS: u64 = 16;
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=50"]);
    world.publish(&orders(0, 200)).await;
    let _host = world.host(&[]);
    world.ok(&["rebuild", "receipt"]);
    let ledgers = Ledgers::open(&world.jetstream).await.expect("the ledgers");
    let (mut dice, mut live, mut published, mut taken_back) = (Dice::new(11), 1_u64, 200, 0);
    for _ in 0..ROUNDS {
        let other = 3 - live;
        until("the other is near", async || {
            let row = listed(&world, "receipt").into_iter().find(|row| row["generation"] == other)?;
            (row["waiting"] == 0 && row["state"] != "building").then_some(())
        })
        .await;
        let before = ledger::look(&world.jetstream, "receipt").await.expect("the ledger").ended.map(|ended| ended.id);
        let waits = asked(&world, "receipt", other);
        until("it is asked for", async || {
            let ledger = ledger::look(&world.jetstream, "receipt").await.expect("the ledger");
            (ledger.promotion.is_some() || ledger.ended.map(|ended| ended.id) != before).then_some(())
        })
        .await;
        for _ in 0..dice.roll(120) {
            ledger::look(&world.jetstream, "receipt").await.expect("the ledger");
        }
        let taken = ledgers.change("receipt", |ledger| ledger.take_back("receipt", None, "by the test")).await;
        world.publish(&orders(published, 20)).await;
        published += 20;
        let output = waits.await.expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), taken.is_err(), "{taken:?}: {told}");
        match taken {
            Ok(_) => taken_back += 1,
            Err(_) => live = other,
        }
        is(&world, "receipt", u32::try_from(live).expect("a number"), "live").await;
    }
    all_receipts_once(&world, &orders(0, published)).await;
    eprintln!("taken back {taken_back} of {ROUNDS} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_nobody_carries_out_says_so_and_is_taken_back() {
    let world = shop().await;
    world.publish(&orders(0, 500)).await;
    let mut host = world.host(&[("MILLSTREAM_STOP_AT", "aligned:1")]);
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    let _waits = asked(&world, "spend", 2);
    until("it has begun", async || host.is_stopped().then_some(())).await;
    host.kill();
    // A host for other handlers is no help.
    let _other = world.host(&[("MILLSTREAM_HANDLER", "nobody"), ("MILLSTREAM_HOST", "other")]);
    let reason = "no host that is running looks after spend";
    until("it is told what it waits for", async || {
        (listed(&world, "spend")[1]["reason"] == reason && listed(&world, "spend")[1]["state"] == "promoting")
            .then_some(())
    })
    .await;
    assert_eq!(world.listed("spend")["promotion"], json!({ "generation": 2, "reason": reason }));
    let still = world.refused(1, &["promote", "spend", "--generation", "2", "--timeout", "2"]);
    assert!(still.contains(&format!("waiting: {reason}")) && still.contains("--cancel"), "{still}");
    let busy = world.refused(2, &["abandon", "spend", "--generation", "2"]);
    assert!(busy.contains("--cancel"), "{busy}");
    let v2 = module("customer-spend-v2");
    let busy = world.refused(2, &["deploy", v2.to_str().unwrap(), "--name", "spend"]);
    assert!(busy.starts_with("error: ") && busy.contains("--cancel"), "{busy}");
    world.ok(&["promote", "spend", "--cancel"]);
    let none = world.refused(2, &["promote", "spend", "--generation", "2"]);
    assert!(none.contains(reason) && none.contains("`--handler spend`"), "{none}");
    assert_eq!(listed(&world, "spend")[1]["state"], "ready", "nothing was asked for");
    let _host = world.host(&[]);
    world.publish(&orders(500, 100)).await;
    world.settled("spend", &spend(&orders(0, 600))).await;
    world.ok(&["abandon", "spend", "--generation", "2"]);
    world.ok(&["deploy", v2.to_str().unwrap(), "--name", "spend", "--promote", "auto"]);
    world.settled("spend", &spend_v2(&orders(0, 600))).await;
}

/// Makes a bucket where Millstream needs one of its own.
pub async fn somebody_s_bucket(world: &World, name: &str) {
    let _ = world.jetstream.delete_key_value(name).await;
    let config = kv::Config { bucket: name.to_owned(), ..kv::Config::default() };
    world.jetstream.create_key_value(config).await.expect("a bucket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_tried_again_and_again_says_why() {
    let world = shop().await;
    world.publish(&orders(0, 500)).await;
    let host = world.host(&[("MILLSTREAM_STOP_AT", "closed:1")]);
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    somebody_s_bucket(&world, "spend_g1").await;
    let tried = async |what: &str| {
        until(what, async || {
            let reason = listed(&world, "spend")[1]["reason"].as_str().unwrap_or_default().to_owned();
            (reason.starts_with("its host tries again") && reason.contains("spend_g1")).then_some(reason)
        })
        .await
    };
    let waits = asked(&world, "spend", 2);
    tried("before the cut").await;
    world.publish(&orders(500, 100)).await;
    world.settled("spend", &spend(&orders(0, 600))).await;
    world.ok(&["promote", "spend", "--cancel"]);
    assert_eq!(waits.await.expect("it ends").status.code(), Some(1));
    world.jetstream.delete_key_value("spend_g1").await.expect("it is moved away");

    let waits = asked(&world, "spend", 2);
    until("the cut is written", async || host.is_stopped().then_some(())).await;
    somebody_s_bucket(&world, "spend_g1").await;
    host.signal("CONT");
    let reason = tried("after the cut").await;
    assert!(reason.contains("it goes through as soon as that is mended"), "{reason}");
    let row = world.in_state("spend", "retrying").await;
    assert!(row["reason"].as_str().unwrap_or_default().contains("spend_g1"), "{row}");
    world.refused(2, &["promote", "spend", "--cancel"]);
    world.jetstream.delete_key_value("spend_g1").await.expect("it is moved away");
    let output = waits.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    pause().await;
    world.publish(&orders(600, 100)).await;
    world.settled("spend", &spend_v2(&orders(0, 700))).await;
    world.settled("spend_g1", &spend(&orders(0, 700))).await;
}

/// A handler that was removed, and deployed again, while its second generation was being promoted: its host died at this point. Somebody
/// waits for the promotion; and whether it is still asked for.
async fn removed_at(point: &str) -> (World, JoinHandle<Output>, bool) {
    let world = shop().await;
    world.publish(&orders(0, 500)).await;
    let mut host = world.host(&[("MILLSTREAM_STOP_AT", &format!("{point}:1"))]);
    world.settled("spend", &spend(&orders(0, 500))).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    let waits = asked(&world, "spend", 2);
    until("it has begun", async || host.is_stopped().then_some(())).await;
    host.kill();
    world.ok(&["remove", "spend", "--yes"]);
    let is_asked_for = ledger::look(&world.jetstream, "spend").await.expect("the ledger").promotion.is_some();
    world.deploy("customer-spend", "spend", &[]);
    world.publish(&orders(500, 100)).await;
    (world, waits, is_asked_for)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_asked_for_is_taken_back_when_its_handler_is_removed() {
    let (world, waits, is_asked_for) = removed_at("aligned").await;
    assert!(!is_asked_for);
    let output = waits.await.expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && told.contains("generation 1 goes on: the handler was removed"),
        "{told}"
    );
    let _host = world.host(&[]);
    world.settled("spend", &spend(&orders(0, 600))).await;
    is(&world, "spend", 1, "live").await;
    is(&world, "spend", 2, "ready").await;
    let ended = ledger::look(&world.jetstream, "spend").await.expect("the ledger").ended.expect("how it ended");
    assert_eq!((ended.to, ended.reason.as_str()), (2, "the handler was removed"));
    assert_eq!(promote(&world, "spend", &[])["live"], 2, "and it can be promoted all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_whose_cut_is_decided_goes_through_though_its_handler_was_removed_meanwhile() {
    let (world, waits, is_asked_for) = removed_at("cutting").await;
    assert!(is_asked_for);
    let _host = world.host(&[]);
    let output = waits.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.settled("spend", &spend_v2(&orders(0, 600))).await;
    is(&world, "spend", 2, "live").await;
    is(&world, "spend", 1, "kept").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_nobody_can_read_hides_no_handler() {
    let world = shop().await;
    world.deploy("order-receipt", "receipt", &[]);
    world.publish(&orders(0, 100)).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&orders(0, 100))).await;
    world.caught_up("receipt").await;
    for handler in ["spend", "receipt"] {
        world.in_state(handler, "running").await;
    }
    Ledgers::open(&world.jetstream).await.expect("the bucket is there");
    let bucket = world.jetstream.get_key_value("MILLSTREAM_GENERATIONS").await.expect("the bucket");
    bucket.put("spend", r#"{"live":"#.into()).await.expect("put");
    let listed = |handler: &str| {
        let row = world.listed(handler);
        (row["state"].clone(), row["counts"]["delivered"].clone(), row["ledger_fault"].is_string())
    };
    assert_eq!(listed("spend"), (json!("running"), json!(100), true));
    assert_eq!(listed("receipt"), (json!("running"), json!(100), false));
    let output = world.cli(&["list"]);
    let told = String::from_utf8(output.stderr).expect("text");
    let line = told.lines().find(|line| line.starts_with("spend: the generations of spend cannot be read: "));
    let look = "`nats kv history MILLSTREAM_GENERATIONS spend`";
    assert!(output.status.success() && line.is_some_and(|line| line.contains(look)), "{told}");
    let told = world.refused(1, &["rebuild", "spend", "--list"]);
    assert!(told.contains("the generations of spend cannot be read") && told.contains(look), "{told}");
    bucket.put("spend", r#"{"live":1,"last":1}"#.into()).await.expect("put");
    assert_eq!(listed("spend"), (json!("running"), json!(100), false));
    world.publish(&orders(100, 100)).await;
    world.settled("spend", &spend(&orders(0, 200))).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
}
