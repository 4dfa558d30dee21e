//! A handler that has much to catch up with takes thousands of events at once; how many keys fail within a thousand is counted all the same.

use crate::harness::World;
use crate::parking::{Told, dead, decided, fold_parked, harmful, mend, publish, told, world};

const EVENTS: u64 = 12_000;

/// One event in so many fails, each on a key of its own: three or four within a thousand, of ten that may.
const APART: u64 = 300;

fn story() -> Vec<Told> {
    let event = |number: u64| match number % APART {
        0 => harmful(&format!("bad {number}"), number, "refuse"),
        rest => told(&format!("k{}", rest % 50), number),
    };
    (1..=EVENTS).map(event).collect()
}

async fn caught_up(world: &World, events: &[Told]) {
    let counts = decided(world, "fragile", events.len()).await;
    assert_eq!((counts.parked, counts.applied), (EVENTS / APART, EVENTS - EVENTS / APART));
    assert_eq!(dead(world, "fragile").len() as u64, EVENTS / APART);
    world.settled("fragile", &fold_parked(events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_fail_far_apart_stop_no_handler_however_much_it_takes_at_once() {
    let world = world().await;
    let events = story();
    publish(&world, &events).await;
    world.deploy("fragile", "fragile", &[]);
    let mut host = world.host(&[]);
    caught_up(&world, &events).await;
    assert!(host.ended().is_none(), "the host lives");
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &crate::parking::fold(&events)).await;
}
