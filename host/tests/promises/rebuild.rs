//! Rebuild equals live, and the consumer is only a convenience: deleting it, stealing from it, naks and stale acks change no
//! document, for own positions rule.

use async_nats::jetstream::consumer::{Info, PullConsumer};
use async_nats::jetstream::stream::Stream;
use futures::StreamExt as _;

use crate::harness::{Dice, World, chains, orders, pause, spend, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_another_name_gives_the_same_bytes_as_the_live_run() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    for (example, name) in [("order-chain", "chain"), ("customer-spend", "spend")] {
        world.deploy(example, name, &["--set", "batch_events=13", "--set", "show_interval_milliseconds=1"]);
    }
    let events = orders(0, 6000);
    let mut dice = Dice::new(7);
    for part in events.chunks(1000) {
        let mut host = world.host(&[]);
        let goal = 200 + dice.roll(700);
        let before = world.last_record("chain").await.map_or(0, |(_, counts, _)| counts.delivered);
        world.publish(part).await;
        let progress =
            async || world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered >= before + goal);
        until("progress", progress).await;
        host.kill();
    }
    let _host = world.host(&[]);
    world.settled("chain", &chains(&events)).await;
    world.settled("spend", &spend(&events)).await;
    assert!(world.claims("chain").await.len() >= 7, "the live run was interrupted");

    for (example, name, live) in [("order-chain", "chain-again", "chain"), ("customer-spend", "spend-again", "spend")] {
        world.deploy(example, name, &[]);
        world.caught_up(name).await;
        let live = world.documents(live).await;
        assert!(!live.is_empty());
        world.settled(name, &live).await;
    }
}

/// The handler's consumer as the server knows it.
async fn consumer(world: &World, handler: &str) -> Option<Info> {
    let stream: Stream = world.jetstream.get_stream("ORDERS").await.ok()?;
    stream.consumer_info(handler).await.ok()
}

async fn decided(world: &World) -> u64 {
    world.last_record("chain").await.map_or(0, |(_, counts, _)| counts.delivered)
}

async fn throttled(events: usize) -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=2000", "--set", "batch_events=130"]);
    world.publish(&orders(0, events as u64)).await;
    world
}

async fn all_is_well(world: &World, events: u64) {
    world.settled("chain", &chains(&orders(0, events))).await;
    let (_, counts, positions) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, positions), (events, events, vec![events]), "each was decided once");
    let known = until("the consumer is there", async || consumer(world, "chain").await).await;
    assert_eq!(known.num_pending, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_deleted_by_hand_comes_back_and_nothing_is_lost() {
    let world = throttled(4000).await;
    let _host = world.host(&[]);
    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    for goal in [500, 1500, 2500] {
        until("it works", async || (decided(&world).await > goal).then_some(())).await;
        stream.delete_consumer("chain").await.expect("deleted");
        until("it comes back", async || consumer(&world, "chain").await).await;
    }
    all_is_well(&world, 4000).await;
    // Also when there is nothing to do.
    stream.delete_consumer("chain").await.expect("deleted");
    until("it comes back", async || consumer(&world, "chain").await).await;
    world.publish(&orders(0, 5000)[4000..]).await;
    all_is_well(&world, 5000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_that_takes_events_from_the_consumer_withholds_none() {
    let world = throttled(3000).await;
    let _host = world.host(&[]);
    until("it works", async || (decided(&world).await > 300).then_some(())).await;
    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    let mut stolen = 0;
    for round in 0..6_u64 {
        let theirs: PullConsumer = until("the consumer", async || stream.get_consumer("chain").await.ok()).await;
        let fetch = theirs.fetch().max_messages(500).expires(std::time::Duration::from_millis(500)).messages();
        let Ok(mut messages) = fetch.await else { continue };
        let next = 3000 + round * 200;
        world.publish(&orders(next, 200)).await;
        while let Some(message) = messages.next().await {
            let Ok(message) = message else { break };
            stolen += 1;
            if round % 2 == 0 {
                let _ = message.ack_with(async_nats::jetstream::AckKind::Nak(None)).await;
            }
        }
    }
    assert!(stolen > 0, "the foreign client got something");
    all_is_well(&world, 4200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stolen_from_an_idle_handler_is_decided_all_the_same() {
    let world = throttled(100).await;
    // One event a request: the host's request is served before the thief's, and the thief's before the host's next.
    world.deploy("order-chain", "chain", &["--set", "prefetch_events=1"]);
    let _host = world.host(&[]);
    all_is_well(&world, 100).await;
    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    let mut published = 100;
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    loop {
        assert!(std::time::Instant::now() < deadline, "the thief gets nothing");
        let theirs: PullConsumer = until("the consumer", async || stream.get_consumer("chain").await.ok()).await;
        let mut messages = theirs.stream().max_messages_per_batch(1).messages().await.expect("a request");
        // They go round among the requests that wait, and the host may have more than one of them.
        world.publish(&orders(published, 8)).await;
        published += 8;
        let stolen = tokio::time::timeout(std::time::Duration::from_millis(300), messages.next()).await;
        if matches!(stolen, Ok(Some(Ok(_)))) {
            break;
        }
    }
    all_is_well(&world, published).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn naks_and_stale_acks_change_nothing() {
    let world = throttled(6000).await;
    let host = world.host(&[]);
    let client = world.jetstream.client();
    let reply = |sequence: u64, consumer_sequence: u64| {
        format!("$JS.ACK.ORDERS.chain.1.{sequence}.{consumer_sequence}.1700000000000000000.0")
    };
    // What was handed out and is not decided: refused by somebody, so that it comes again behind newer ones.
    let redelivered = async || {
        let info = consumer(&world, "chain").await?.delivered;
        for back in 1..20.min(info.consumer_sequence) {
            let subject = reply(info.stream_sequence - back, info.consumer_sequence - back);
            client.publish(subject, "-NAK".into()).await.expect("sent");
        }
        host.log().contains("was delivered again after").then_some(())
    };
    until("a redelivery is told", redelivered).await;
    // Acks of what is not decided, of what was decided long ago, and of what is not there yet.
    while decided(&world).await < 5900 {
        if let Some(info) = consumer(&world, "chain").await {
            let info = info.delivered;
            for (sequence, consumer_sequence) in [
                (info.stream_sequence, info.consumer_sequence),
                (1, 1),
                (info.stream_sequence + 500, info.consumer_sequence + 500),
            ] {
                client.publish(reply(sequence, consumer_sequence), "+ACK".into()).await.expect("sent");
            }
        }
        pause().await;
    }
    all_is_well(&world, 6000).await;
}
