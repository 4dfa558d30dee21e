//! Kill storm with sagas: 2,000 orders of four steps, of which three in five are refused on their way; the host is killed with -9
//! ten times and the server twice, at random. What is in the streams must equal what is computed for each order alone.

use std::time::{Duration, Instant};

use crate::harness::{Dice, pause, until};
use crate::services::Services;
use crate::shop::{HANDLER, as_due, by_rule, place, shop};

const ORDERS: u64 = 2000;
const HOST_KILLS: usize = 10;
const SERVER_KILLS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_sent_once_and_every_order_ends_as_due_after_a_storm_of_kills() {
    // Throttled, so that there is work left at every kill.
    let mut world = shop(Duration::from_secs(120), &["throttle_events_per_second=1600"]).await;
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", by_rule).await;
    place(&world, 0..ORDERS).await;

    let seed = std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut dice = Dice::new(seed.unwrap_or(20_260_102));
    let mut decided = 0;
    for kill in 0..HOST_KILLS {
        let mut host = world.host(&[]);
        decided = until("progress", async || {
            let (_, counts, _) = world.last_record(HANDLER).await?;
            Some(counts.delivered).filter(|delivered| *delivered > decided)
        })
        .await;
        let end = Instant::now() + Duration::from_millis(20 + dice.roll(400));
        if kill % (HOST_KILLS / SERVER_KILLS) == 2 {
            world.server.kill();
            world.server.restart().await.expect("the server restarts on its folder");
        }
        while Instant::now() < end {
            pause().await;
        }
        host.kill();
    }
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert!(counts.delivered < 4 * ORDERS, "no work was left at the last kills: lower the throttle; {counts:?}");
    let _host = world.host(&[]);
    as_due(&world, ORDERS).await;
}
