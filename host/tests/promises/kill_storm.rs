//! Kill storm: 100,000 events, five projections, the host killed with -9 twenty times and the server five times, at random.
//! Every document must equal an independent fold, outcome counts must add up, and each start must show progress within 2 s.

use std::time::{Duration, Instant};

use crate::harness::{Dice, World, chains, orders, outcomes, pause, spend, until};

const EVENTS: u64 = 100_000;
const HOST_KILLS: usize = 20;
const SERVER_KILLS: usize = 5;
const HANDLERS: [&str; 5] = ["spend", "spend-small", "chain", "chain-small", "chain-one"];

/// Events decided so far, over all handlers.
async fn decided(world: &World) -> u64 {
    let mut sum = 0;
    for handler in HANDLERS {
        sum += world.last_record(handler).await.map_or(0, |(_, counts, _)| counts.delivered);
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_equal_an_independent_fold_after_a_storm_of_kills() {
    let mut world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    // Throttled, so that there is work left at every kill.
    let pace = ["--set", "throttle_events_per_second=12000"];
    world.deploy("customer-spend", "spend", &pace);
    world.deploy("customer-spend", "spend-small", &[&pace[..], &["--set", "batch_events=37"]].concat());
    world.deploy("order-chain", "chain", &pace);
    world.deploy("order-chain", "chain-small", &[&pace[..], &["--set", "batch_events=101"]].concat());
    world.deploy("order-chain", "chain-one", &[&pace[..], &["--set", "show_interval_milliseconds=50"]].concat());
    let events = orders(0, EVENTS);
    world.publish(&events).await;

    let mut dice =
        Dice::new(std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260_101));
    let mut slowest = Duration::ZERO;
    let mut starts_with_work = 0;
    for kill in 0..HOST_KILLS {
        let before = decided(&world).await;
        let mut host = world.host(&[]);
        let begun = Instant::now();
        if before < EVENTS * HANDLERS.len() as u64 {
            until("first progress", async || (decided(&world).await > before).then_some(())).await;
            slowest = slowest.max(begun.elapsed());
            starts_with_work += 1;
        }
        let lifetime = Duration::from_millis(50 + dice.roll(400));
        let end = begun + lifetime;
        if kill % (HOST_KILLS / SERVER_KILLS) == 2 {
            world.server.kill();
            world.server.restart().await.expect("the server restarts on its folder");
        }
        while Instant::now() < end {
            pause().await;
        }
        host.kill();
    }
    assert!(
        starts_with_work >= HOST_KILLS / 2,
        "only {starts_with_work} of the starts had work left: lower the throttle"
    );
    assert!(slowest < Duration::from_secs(2), "the slowest start took {slowest:?} to its first progress");

    let _host = world.host(&[]);
    let (spend, chains) = (spend(&events), chains(&events));
    for handler in HANDLERS {
        let expected = if handler.starts_with("spend") { &spend } else { &chains };
        world.settled(handler, expected).await;
        let (_, counts, positions) = world.last_record(handler).await.expect("a record");
        assert_eq!((counts.delivered, counts.applied), (EVENTS, EVENTS), "{handler}: outcome counts add up");
        assert_eq!((outcomes(&counts), counts.lost), (counts.delivered, 0), "{handler}: {counts:?}");
        assert_eq!(positions, [EVENTS], "{handler}: position is the stream's head");
    }
    eprintln!("{HOST_KILLS} host kills, {SERVER_KILLS} server kills; slowest first progress {slowest:?}");
}
