//! The figures that only a host knows: rates, where its time goes, fuel, latency, sizes, a saga's census. Each is compared with what
//! the test did, or counted in another way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millstream::numbers::Numbers;
use millstream::overview;
use serde_json::{Value, json};

use crate::harness::{World, orders, spend, until};
use crate::services::{Answer, Command, Services};
use crate::shop;

async fn numbers(world: &World, handler: &str) -> Option<Numbers> {
    serde_json::from_value(world.report(handler).await?["numbers"].take()).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_follow_what_is_published_and_what_is_decided() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=100"]);
    let _host = world.host(&[]);
    world.in_state("chain", "running").await;
    // Twice as many come as the throttle lets through.
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut published = 0;
    while begun.elapsed() < Duration::from_secs(13) {
        ticks.tick().await;
        world.publish(&orders(published, 20)).await;
        published += 20;
    }
    let rate = published as f64 / begun.elapsed().as_secs_f64();
    let overview = overview::read(&world.jetstream).await.expect("an overview");
    let lag = &overview.handlers[0].lag[0];
    let rates = lag.rates.expect("the host reports");
    let near = |found: f64, wanted: f64| (found - wanted).abs() <= wanted * 0.2;
    assert!(near(rates.in_rate, rate), "{rates:?}, but {rate:.0} a second came");
    assert!(near(rates.out_rate, 100.0), "{rates:?}");
    assert!(near(rates.trend, rate - 100.0) && rates.eta_seconds.is_none(), "it grows: {rates:?}");
    // Nothing comes any more: it shrinks, and an end is in sight.
    let ending = async || {
        let overview = overview::read(&world.jetstream).await.ok()?;
        let lag = overview.handlers.first()?.lag.first()?;
        let eta = lag.rates.filter(|rates| rates.in_rate == 0.0)?.eta_seconds?;
        assert!(near(eta, lag.events as f64 / 100.0), "{eta:.1} s for {} events at 100/s", lag.events);
        Some(())
    };
    until("an ETA", ending).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_are_what_was_done_and_the_parts_fit_into_the_time() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "throttle_events_per_second=200"]);
    let mut host = world.host(&[]);
    world.in_state("spend", "running").await;
    let events = orders(0, 500);
    world.publish(&events).await;
    let told = async |count: u64| {
        until("all is told", async || numbers(&world, "spend").await.filter(|numbers| numbers.events == count)).await
    };
    let first = told(500).await;
    let (now, busy) = (millstream::clock::now(), first.busy);
    let sum = busy.waiting + busy.loading + busy.guest + busy.commit + busy.held_back;
    assert!(sum as i64 <= (now - first.since) / 1000, "{busy:?}");
    assert!(busy.held_back > 1_500_000, "500 events at 200 a second: {busy:?}");
    assert!(busy.guest > 0 && busy.commit > 0 && busy.waiting > 0, "{busy:?}");
    assert!(first.fuel > 0 && first.guest_memory_bytes > 0 && first.batches > 0, "{first:?}");
    assert!(first.last_decided.is_some_and(|time| (first.since..=now).contains(&time)));
    let observed: u64 = first.latency.buckets.iter().sum();
    assert!((1..=2 * first.batches).contains(&observed), "one or two a batch: {:?}", first.latency);
    assert_eq!((first.streams[0].decided, first.streams[0].stream.as_str()), (500, "ORDERS"));

    world.publish(&orders(500, 100)).await;
    let second = told(600).await;
    assert!(second.fuel > first.fuel && second.batches > first.batches && second.busy.guest > busy.guest);
    let fuel = |numbers: &Numbers| numbers.fuel as f64 / numbers.events as f64;
    assert!(fuel(&second) < 2.0 * fuel(&first), "fuel is by event: {} {}", fuel(&first), fuel(&second));
    let all: Vec<_> = events.into_iter().chain(orders(500, 100)).collect();
    let documents = spend(&all);
    world.settled("spend", &documents).await;
    let sized = until("the bucket is weighed", async || {
        numbers(&world, "spend")
            .await
            .map(|numbers| numbers.sizes)
            .filter(|sizes| sizes.documents == documents.len() as u64)
    })
    .await;
    assert!(sized.documents_bytes > 0 && sized.journal_records > 0 && sized.journal_bytes > 0, "{sized:?}");

    // Idle: all of the time that passes is spent waiting.
    let before = numbers(&world, "spend").await.expect("numbers");
    let idle = until("two seconds more", async || {
        numbers(&world, "spend").await.filter(|numbers| numbers.busy.waiting > before.busy.waiting + 2_000_000)
    })
    .await;
    assert_eq!((idle.busy.guest, idle.busy.commit), (before.busy.guest, before.busy.commit));
    assert_eq!(idle.fuel, second.fuel);

    host.kill();
    let overview = async || overview::read(&world.jetstream).await.expect("an overview").handlers.remove(0);
    let gone =
        until("silence", async || Some(overview().await).filter(|handler| handler.state == "not-reporting")).await;
    assert_eq!(gone.numbers, Numbers::default(), "what nobody tells any more is not shown");
    assert_eq!((gone.lag[0].rates, gone.outcomes_add_up, gone.counts.delivered), (None, true, 600));
    assert_eq!(gone.revision, 1);
}

/// Silent to orders that begin with `lost`.
fn often(command: &Command) -> Option<Answer> {
    let order = command.payload["order"].as_str().unwrap_or_default();
    if order.starts_with("lost") { None } else { shop::done(command) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_census_is_what_the_instances_say() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    world.deploy("order-fulfilment", "fulfil", &[]);
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", often).await;
    for number in 0..30 {
        let order = format!("{}{number}", if number % 3 == 0 { "lost" } else { "fine" });
        let body = json!({
            "eventId": format!("placed-{order}"), "eventType": "OrderPlaced", "aggregateId": order,
            "payload": { "order": order, "customer": "C42", "cents": 1200 },
        });
        world
            .jetstream
            .publish("orders.OrderPlaced", body.to_string().into())
            .await
            .expect("sent")
            .await
            .expect("stored");
    }
    let rows = async || -> Vec<Value> {
        let text = world.ok(&["sagas", "fulfil", "--json"]);
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    };
    let count = |rows: &[Value], status: &str| rows.iter().filter(|row| row["status"] == status).count() as u64;
    until("twenty are done", async || (count(&rows().await, "completed") == 20).then_some(())).await;
    let equal = async || {
        let census = numbers(&world, "fulfil").await?.census?;
        let rows = rows().await;
        let told: BTreeMap<&str, u64> = [
            ("running", census.running),
            ("compensating", census.compensating),
            ("completed", census.completed),
            ("compensated", census.compensated),
            ("compensation-failed", census.compensation_failed),
            ("failed", census.failed),
        ]
        .into();
        let same = told.iter().all(|(status, told)| count(&rows, status) == *told);
        let timers: usize = rows.iter().filter_map(|row| row["timers"].as_array()).map(Vec::len).sum();
        let oldest = rows.iter().filter(|row| row["status"] == "running");
        let oldest = oldest.filter_map(|row| millstream::clock::read(row["changed"].as_str()?)).min();
        let found = census.oldest_running.as_ref().map(|(_, changed)| *changed);
        (same && census.timers_pending == timers as u64 && found == oldest).then_some(census)
    };
    let census = until("the census says the same", equal).await;
    assert_eq!((census.running + census.compensating, census.completed), (10, 20));
    assert!(census.oldest_running.is_none_or(|(key, _)| key.starts_with("lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_handlers_are_read_quickly_and_each_is_right() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(0, 50)).await;
    world.deploy("order-chain", "first", &[]);
    let bucket = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the bucket");
    let deployment = bucket.get("first").await.expect("an answer").expect("it is deployed");
    for number in 0..1100 {
        bucket.put(format!("handler-{number}"), deployment.clone()).await.expect("it is deployed");
    }
    let begun = Instant::now();
    let overview = overview::read(&world.jetstream).await.expect("an overview");
    let took = begun.elapsed();
    assert_eq!(overview.handlers.len(), 1101, "more than one answer holds");
    assert!(overview.handlers.is_sorted_by_key(|handler| handler.handler.as_str()));
    assert!(overview.handlers.iter().all(|handler| handler.lag[0].events == 50 && handler.state == "not-started"));
    assert!(overview.handlers.iter().all(|handler| handler.revision > 0 && handler.outcomes_add_up));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let one = overview::of(&world.jetstream, &["first".to_owned()]).await.expect("an overview");
    assert_eq!((one.handlers.len(), one.handlers[0].handler.as_str()), (1, "first"));
}
