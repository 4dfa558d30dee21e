//! Zombie: host A is stopped in the middle of its work, B takes the handler, A continues. A writes nothing more, says
//! `fenced`, and is one host among two from then on.

use millstream::sandbox::Digest;

use crate::harness::{World, chains, module, orders, spend_v2, until};
use crate::promotion::{promote, rebuild_v2, shop};

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

/// The module that is live by then has another state version than the one that the host stood still with.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stood_still_through_a_promotion_never_decides_for_the_new_generation_with_its_old_module() {
    let world = shop().await;
    let events = orders(0, 3000);
    world.publish(&events[..1000]).await;
    let mut still = world.host(&[("MILLSTREAM_HOST", "still")]);
    world.caught_up("spend").await;
    rebuild_v2(&world);
    still.signal("STOP");
    let mut other = world.host(&[("MILLSTREAM_HOST", "other")]);
    until("the other runs it", async || {
        let row = world.listed("spend");
        (row["host"] == "other" && row["state"] == "running").then_some(())
    })
    .await;
    let promoted = promote(&world, "spend", &[]);
    assert_eq!(promoted["live"], 2, "{promoted}");
    world.publish(&events[1000..2000]).await;

    still.signal("CONT");
    until("it learns of it", async || still.log().contains("fenced").then_some(())).await;
    // Whoever runs it now, it is the new module, on the new documents.
    world.publish(&events[2000..]).await;
    world.settled("spend", &spend_v2(&events)).await;
    let row = until("it runs, and nothing was refused", async || {
        let row = world.listed("spend");
        (row["state"] == "running" && row["wanted"].is_null() && row["refused"].is_null()).then_some(row)
    })
    .await;
    let v2 = std::fs::read(module("customer-spend-v2")).expect("a module");
    assert_eq!(row["digest"], Digest::of(&v2).to_string(), "{row}");
    still.kill();
    other.kill();
    // A host that begins finds the module and the documents that belong together.
    let _host = world.host(&[]);
    let more = orders(3000, 500);
    world.publish(&more).await;
    world.settled("spend", &spend_v2(&[events, more].concat())).await;
}
