//! The journal and the deployments that lead to it: bounded while running, enough to resume after trimming; several handlers on
//! one host, pausing and re-deploying under load lose nothing.

use std::cell::Cell;

use async_nats::jetstream::kv::Store;
use millstream::crash::POINTS;

use crate::harness::{Documents, World, chains, orders, spend, until};

/// Records in a handler's journal.
async fn records(world: &World, handler: &str) -> u64 {
    let name = format!("MILLSTREAM_JOURNAL_{handler}");
    world.jetstream.get_stream(name).await.expect("the journal").cached_info().state.messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_journal_stays_bounded_and_is_enough_to_resume() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    // At this rate showing keeps up on any machine, so the bound below does not depend on its speed.
    let settings = [
        "--set",
        "journal_keep_records=10",
        "--set",
        "batch_events=2",
        "--set",
        "show_interval_milliseconds=20",
        "--set",
        "throttle_events_per_second=4000",
    ];
    world.deploy("order-chain", "chain", &settings);
    let events = orders(0, 10_000);
    world.publish(&events[..8000]).await;
    let most = Cell::new(0);
    let mut host = world.host(&[]);
    until("8000 events are decided", async || {
        if let Some((last, counts, _)) = world.last_record("chain").await {
            most.set(most.get().max(records(&world, "chain").await));
            return (counts.delivered == 8000 && last > 4000).then_some(());
        }
        None
    })
    .await;
    // 4001 records were written. Trimming begins again every 500, and what is not shown yet may not go.
    let most = most.get();
    assert!(most < 2000, "{most} records were held at once");
    assert!(records(&world, "chain").await < 1600);
    host.kill();

    // Each restart reads what the last record says is not shown: none of that may be trimmed.
    for point in ["committed", "showing", "half-shown"] {
        assert!(POINTS.contains(&point));
        let from =
            8000 + 500 * ["committed", "showing", "half-shown"].iter().position(|at| *at == point).expect("listed");
        world.publish(&events[from..from + 500]).await;
        let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:2"))]);
        assert!(!host.end().await.success());
    }
    world.publish(&events[9500..]).await;
    let _host = world.host(&[]);
    world.settled("chain", &chains(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shown_is_never_trimmed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let settings =
        ["--set", "journal_keep_records=10", "--set", "batch_events=2", "--set", "show_interval_milliseconds=300"];
    world.deploy("order-chain", "chain", &settings);
    let events = orders(0, 20_000);
    world.publish(&events).await;
    let first = async || {
        let stream = world.jetstream.get_stream("MILLSTREAM_JOURNAL_chain").await.ok()?;
        Some(stream.cached_info().state.first_sequence)
    };
    let mut kills_with_work = 0;
    for _ in 0..4 {
        let mut host = world.host(&[]);
        let before = until("the journal", async || first().await).await;
        // Right after a trim, with documents of the last 300 ms not in the bucket.
        until("a trim, or the end", async || {
            let (_, counts, _) = world.last_record("chain").await?;
            (counts.delivered == 20_000 || first().await? > before.max(1)).then_some(())
        })
        .await;
        host.kill();
        let (_, counts, _) = world.last_record("chain").await.expect("a record");
        kills_with_work += usize::from(counts.delivered < 20_000);
    }
    assert!(kills_with_work >= 2, "only {kills_with_work} kills met work");
    let _host = world.host(&[]);
    world.settled("chain", &chains(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_of_one_host_go_on_without_each_other() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    world.deploy("customer-spend", "spend", &[]);
    world.deploy("order-chain", "slow", &["--set", "throttle_events_per_second=20"]);
    let events = orders(0, 5000);
    world.publish(&events).await;
    let mut host = world.host(&[]);
    world.settled("chain", &chains(&events)).await;
    world.settled("spend", &spend(&events)).await;
    let (_, counts, _) = world.last_record("slow").await.expect("a record");
    assert!(counts.delivered < 5000, "the slow one held nobody up");
    world.deploy("order-chain", "slow", &["--set", "throttle_events_per_second=0"]);
    world.settled("slow", &chains(&events)).await;
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "{}", host.log());
    for handler in ["chain", "slow"] {
        assert_eq!(world.claims(handler).await.len(), if handler == "slow" { 2 } else { 1 }, "{handler}");
    }
}

async fn desire(handlers: &Store, handler: &str, desired: &str) {
    let value = handlers.get(handler).await.expect("an answer").expect("a deployment");
    let mut value: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
    value["desired"] = desired.into();
    handlers.put(handler, value.to_string().into()).await.expect("put");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_handler_decides_nothing_until_it_is_resumed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=2000"]);
    world.deploy("order-chain", "neighbour", &[]);
    let handlers = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the deployments");
    let events = orders(0, 6000);
    world.publish(&events[..3000]).await;
    let _host = world.host(&[]);
    let begun = async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > 200);
    until("it works", begun).await;
    desire(&handlers, "chain", "paused").await;
    world.in_state("chain", "paused").await;
    let (paused_at, counts, _) = world.last_record("chain").await.expect("a record");
    assert!(counts.delivered < 3000, "it was paused in the middle of its work");
    // What is decided is shown, also at a pause.
    world.settled("chain", &chains(&events[..usize::try_from(counts.delivered).expect("small")])).await;
    world.publish(&events[3000..]).await;
    world.settled("neighbour", &chains(&events)).await;
    assert_eq!(
        world.last_record("chain").await.expect("a record").0,
        paused_at,
        "nothing was decided while it was paused"
    );
    assert_eq!(world.lag("chain")[0]["events"], 6000 - counts.delivered, "and the lag is told");

    desire(&handlers, "chain", "running").await;
    world.settled("chain", &chains(&events)).await;
    let (_, counts, _) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (6000, 6000));
}

#[tokio::test(flavor = "multi_thread")]
async fn deploying_again_under_load_loses_and_doubles_nothing() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=5000"]);
    let events = orders(0, 20_000);
    world.publish(&events[..5000]).await;
    let host = world.host(&[]);
    let sets = [
        "batch_events=1",
        "batch_events=501",
        "prefetch_events=3",
        "show_interval_milliseconds=1",
        "batch_wait_milliseconds=5",
    ];
    for (round, set) in sets.iter().chain(&sets[..1]).enumerate() {
        let decided = async || world.last_record("chain").await.map_or(0, |(_, counts, _)| counts.delivered);
        let before = decided().await;
        until("progress", async || (decided().await > before.min(19_000)).then_some(())).await;
        let next = 5000 + round * 2500;
        world.publish(&events[next..next + 2500]).await;
        world.deploy("order-chain", "chain", &["--set", set]);
    }
    world.deploy(
        "order-chain",
        "chain",
        &["--set", "throttle_events_per_second=0", "--set", "batch_events=500", "--set", "prefetch_events=2000"],
    );
    world.settled("chain", &chains(&events)).await;
    let (_, counts, positions) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, positions), (20_000, 20_000, vec![20_000]));
    assert!(!host.log().contains("ERROR"), "{}", host.log());
    // The very same deployment again restarts nothing.
    let before = world.claims("chain").await.len();
    world.deploy("order-chain", "chain", &[]);
    world.publish(&orders(20_000, 1)).await;
    until("one more is decided", async || {
        world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered == 20_001)
    })
    .await;
    assert_eq!(world.claims("chain").await.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_stops_at_once_though_its_batch_would_take_minutes() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=2"]);
    let events = orders(0, 1000);
    world.publish(&events).await;
    let mut host = world.host(&[]);
    until("it works", async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > 1)).await;
    let begun = std::time::Instant::now();
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "{}", host.log());
    assert!(begun.elapsed().as_secs() < 10, "it took {:?}", begun.elapsed());
    let (_, counts, _) = world.last_record("chain").await.expect("a record");
    let decided: Documents = chains(&events[..usize::try_from(counts.delivered).expect("small")]);
    assert!(counts.delivered < 100);
    world.settled("chain", &decided).await;
}
