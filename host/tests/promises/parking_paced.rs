//! A module whose every event uses up all that a call has, and which nothing is to stop: its neighbours are spared, and whoever mends or
//! ends it does not wait for it.

use crate::harness::{Host, World, until};
use crate::parking::{Told, decided, fold, harmful, mend, publish, world};

/// More than it gets through while anybody looks.
const EVENTS: u64 = 600;

/// So many in a row are taken as fast as they come.
const AT_ONCE: u64 = 128;

async fn resting(world: &World) -> (Vec<Told>, Host) {
    let settings =
        ["limits.fuel_per_call=30000000", "max_parked_keys=50000", "max_failing_keys=50000", "probation_events=0"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    world.deploy("fragile", "fragile", &settings);
    let events: Vec<Told> = (1..=EVENTS).map(|number| harmful(&format!("k{number}"), number, "spin")).collect();
    publish(world, &events).await;
    let host = world.host(&[]);
    until("the handler rests", async || host.log().contains("the handler rests").then_some(())).await;
    (events, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mended_module_takes_over_in_the_middle_of_a_batch_and_before_a_rest_is_over() {
    let world = world().await;
    let (events, mut host) = resting(&world).await;
    mend(&world).await;
    let counts = decided(&world, "fragile", events.len()).await;
    assert_eq!(counts.applied + counts.parked, EVENTS);
    assert!((AT_ONCE + 1..AT_ONCE + 20).contains(&counts.parked), "{counts:?}");
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    assert!(host.ended().is_none(), "the host lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_told_to_stop_does_not_wait_for_a_handler_that_rests() {
    let world = world().await;
    let (_, mut host) = resting(&world).await;
    host.signal("TERM");
    let status = host.end().await;
    assert!(status.success() && host.log().contains("everything decided is in the buckets"), "{}", host.log());
    let (_, counts, _) = world.last_record("fragile").await.expect("a record");
    assert_eq!((counts.applied, counts.delivered), (0, counts.parked));
    let rests = host.log().matches("the handler rests").count() as u64;
    // The first that is to rest finds nobody before it, and goes on at once.
    assert_eq!(counts.parked, AT_ONCE + 1 + rests, "no event more after the last rest");
}
