//! Zombie: host A is stopped in the middle of its work, B takes the handler, A continues. A writes nothing more, says
//! `fenced`, and is one host among two from then on.

use crate::harness::{World, chains, orders, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_claim_writes_nothing_and_says_fenced() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "batch_events=20", "--set", "throttle_events_per_second=4000"]);
    let events = orders(0, 10_000);
    world.publish(&events[..6000]).await;

    let mut zombie = world.host(&[]);
    until("the first host works", async || {
        world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > 500)
    })
    .await;
    zombie.signal("STOP");
    let (_, stopped_at, _) = world.last_record("chain").await.expect("a record");
    assert!(stopped_at.delivered < 6000, "it was stopped in the middle of its work");

    let _heir = world.host(&[]);
    until("the second host works", async || {
        world.last_record("chain").await.filter(|(_, counts, _)| counts.delivered > stopped_at.delivered + 500)
    })
    .await;
    zombie.signal("CONT");
    world.publish(&events[6000..]).await;
    until("it learns of it", async || zombie.log().contains("fenced").then_some(())).await;
    world.settled("chain", &chains(&events)).await;
    let claims = world.claims("chain").await;
    let once: std::collections::BTreeSet<u64> = claims.iter().copied().collect();
    assert_eq!(once.len(), claims.len(), "no record of one follows another's claim: {claims:?}");
    // The first may be the better host for it, and get it back in good order.
    assert!((2..=3).contains(&claims.len()), "{claims:?}");
    assert_eq!(zombie.ended(), None, "it goes on:\n{}", zombie.log());
    let (_, counts, _) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (10_000, 10_000), "each event was decided by exactly one record");
}
