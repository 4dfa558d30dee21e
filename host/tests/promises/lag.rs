//! Lag: what `millstream lag` says is what is published and not decided, while a handler works, when it is caught up, and when
//! nobody runs it.

use std::time::Instant;

use async_nats::jetstream::stream;

use crate::harness::{Event, World, orders, pause, until};

async fn decided(world: &World, handler: &str) -> u64 {
    world.last_record(handler).await.map_or(0, |(_, counts, _)| counts.delivered)
}

/// Asks for the lag between two looks at the journal: the truth lies in between.
async fn check(world: &World, handler: &str, published: u64) -> u64 {
    let before = decided(world, handler).await;
    let rows = world.lag(handler);
    let after = decided(world, handler).await;
    let [row] = rows.as_slice() else { panic!("one stream, one row: {rows:?}") };
    let events = row["events"].as_u64().expect("a number");
    assert!(
        (published - after..=published - before).contains(&events),
        "lag {events}, but between {} and {} of {published} were decided",
        before,
        after
    );
    assert_eq!(row["head"], published);
    assert_eq!(row["position"].as_u64().expect("a number"), published - events, "every event of this stream is ours");
    let seconds = row["seconds"].as_f64().expect("a number");
    assert_eq!(events == 0, seconds == 0.0, "caught up is 0 seconds, and behind is not: {row}");
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_published_minus_decided_at_every_moment() {
    let begun = Instant::now();
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=2000"]);
    let rows = world.lag("chain");
    assert_eq!((&rows[0]["events"], &rows[0]["state"]), (&0.into(), &"not-started".into()), "an empty stream");
    world.publish(&orders(0, 4000)).await;
    assert_eq!(check(&world, "chain", 4000).await, 4000, "the lag is known before anybody runs it");

    let mut host = world.host(&[]);
    until("it works", async || (decided(&world, "chain").await > 100).then_some(())).await;
    let mut seen = Vec::new();
    loop {
        let lag = check(&world, "chain", 4000).await;
        seen.push(lag);
        let oldest = world.lag("chain")[0]["seconds"].as_f64().expect("a number");
        assert!(oldest <= begun.elapsed().as_secs_f64() + 1.0, "no event is older than this test");
        if lag == 0 {
            break;
        }
        assert!(begun.elapsed() < crate::harness::PATIENCE);
        pause().await;
    }
    assert!(seen.iter().filter(|lag| (1..4000).contains(*lag)).count() >= 3, "it was seen on its way: {seen:?}");
    assert!(seen.is_sorted_by(|one, next| one >= next), "nothing was published meanwhile: {seen:?}");
    assert_eq!(world.lag("chain")[0]["state"], "running");

    // Stock tools see the same: nothing pending, nothing unacknowledged.
    let consumer = async || {
        let consumer = world.jetstream.get_stream("ORDERS").await.ok()?.consumer_info("chain").await.ok()?;
        (consumer.num_pending == 0 && consumer.num_ack_pending == 0).then_some(consumer.ack_floor.stream_sequence)
    };
    assert_eq!(until("the consumer is acknowledged to its end", consumer).await, 4000);

    host.kill();
    world.publish(&orders(4000, 1000)).await;
    assert_eq!(check(&world, "chain", 5000).await, 1000, "the lag stays true though nobody tells it");
    let silent = async || {
        let row = world.lag("chain").remove(0);
        (row["state"] == "not-reporting").then_some(row)
    };
    let row = until("the silence is told", silent).await;
    assert!(row["reported_seconds_ago"].as_f64().expect("an age") > 5.0, "{row}");
    assert_eq!(check(&world, "chain", 5000).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn caught_up_on_a_sparse_filter_of_a_busy_stream_is_zero() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "rare", &["--set", "subjects=orders.rare"]);
    let rare = |number: u64| Event {
        id: format!("rare-{number}"),
        subject: "orders.rare".to_owned(),
        ..orders(number, 1).remove(0)
    };
    world.publish(&[rare(1), rare(2)]).await;
    world.publish(&orders(0, 10_000)).await;
    world.publish(&[rare(3)]).await;
    world.publish(&orders(10_000, 10_000)).await;
    let told = |world: &World| {
        let row = world.lag("rare").remove(0);
        (row["events"].as_u64().expect("a number"), row["seconds"].as_f64().expect("a number") > 0.0)
    };
    assert_eq!(told(&world), (3, true));
    let _host = world.host(&[]);
    until("all rare ones are decided", async || (decided(&world, "rare").await == 3).then_some(())).await;
    assert_eq!(told(&world), (0, false));
    world.publish(&orders(20_000, 1000)).await;
    assert_eq!(told(&world), (0, false), "what others publish is none of its business");
    let row = world.lag("rare").remove(0);
    assert_eq!((row["position"].as_u64(), row["head"].as_u64()), (Some(10_003), Some(21_003)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_told_of_a_stream_that_allows_no_direct_reads() {
    let world = World::new().await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        allow_direct: false,
        ..stream::Config::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    world.deploy("order-chain", "chain", &[]);
    world.publish(&orders(0, 500)).await;
    assert_eq!(check(&world, "chain", 500).await, 500);
    let _host = world.host(&[]);
    world.caught_up("chain").await;
    assert_eq!(check(&world, "chain", 500).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_input_stream_has_its_own_lag() {
    let world = World::new().await;
    world.stream("PLACED", &["orders.placed"]).await;
    world.stream("RARE", &["orders.rare"]).await;
    world.deploy(
        "order-chain",
        "chain",
        &["--set", "subjects=orders.placed,orders.rare", "--set", "throttle_events_per_second=400"],
    );
    world.publish(&orders(0, 600)).await;
    let rare: Vec<Event> =
        orders(0, 200).into_iter().map(|event| Event { subject: "orders.rare".to_owned(), ..event }).collect();
    world.publish(&rare).await;
    let lags = |world: &World| -> Vec<(String, u64)> {
        let row = |row: serde_json::Value| {
            (row["stream"].as_str().expect("a name").to_owned(), row["events"].as_u64().expect("a number"))
        };
        world.lag("chain").into_iter().map(row).collect()
    };
    assert_eq!(lags(&world), [("PLACED".to_owned(), 600), ("RARE".to_owned(), 200)]);
    let _host = world.host(&[]);
    world.caught_up("chain").await;
    assert_eq!(lags(&world), [("PLACED".to_owned(), 0), ("RARE".to_owned(), 0)]);
    let (_, counts, positions) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, positions), (800, vec![600, 200]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_host_s_words_were_deleted_is_not_said_never_to_have_run() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let mut host = world.host(&[]);
    world.publish(&orders(0, 10)).await;
    until("all is decided", async || (decided(&world, "chain").await == 10).then_some(())).await;
    host.kill();
    for bucket in ["STATUS", "HOSTS"] {
        world.jetstream.delete_stream(format!("KV_MILLSTREAM_{bucket}")).await.expect("it is deleted");
    }
    let states = [world.lag("chain")[0]["state"].take(), world.listed("chain")["state"].take()];
    assert_eq!(states, ["not-reporting", "not-reporting"]);
    assert!(world.ok(&["lag"]).trim_end().ends_with("unknown"), "nor that nobody ever said anything");
    let _host = world.host(&[]);
    world.in_state("chain", "running").await;
    world.jetstream.delete_stream("KV_MILLSTREAM_STATUS").await.expect("it is deleted");
    world.in_state("chain", "running").await;
}
