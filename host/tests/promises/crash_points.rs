//! Every crash point: the host is aborted at each named place of a batch's journey, several times at different depths, and
//! each time a fresh host must lead to the same bytes.

use millstream::crash::POINTS;

use crate::harness::{World, at_each_point, chains, orders, outcomes, spend, until};

/// Aborts at the nth passage: the first, and some in the middle of the work. Documents of many batches are shown together,
/// so there are fewer passages there.
const PASSAGES: [u64; 3] = [1, 4, 9];
const SHOWING_PASSAGES: [u64; 3] = [1, 2, 3];

async fn survives(point: &'static str) {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let settings = ["--set", "batch_events=50", "--set", "show_interval_milliseconds=1"];
    world.deploy("customer-spend", "spend", &settings);
    world.deploy("order-chain", "chain", &settings);
    let events = orders(0, 3000);
    let mut aborted = 0;
    let passages = if point.contains("sho") { SHOWING_PASSAGES } else { PASSAGES };
    for (round, passage) in passages.iter().enumerate() {
        world.publish(&events[round * 1000..(round + 1) * 1000]).await;
        let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:{passage}"))]);
        let status = host.end().await;
        assert!(!status.success(), "the host ends by the abort; its log:\n{}", host.log());
        assert!(!host.log().contains("stopped;"), "not by a request");
        aborted += 1;
    }
    assert_eq!(aborted, passages.len(), "each passage was reached");
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    world.settled("chain", &chains(&events)).await;
    for handler in ["spend", "chain"] {
        let counts = until("all events decided", async || {
            world.last_record(handler).await.map(|(_, counts, _)| counts).filter(|counts| counts.delivered == 3000)
        })
        .await;
        assert_eq!((counts.applied, outcomes(&counts)), (3000, 3000), "{handler}: {counts:?}");
    }
}

at_each_point! {
    POINTS.to_vec();
    same_bytes_after_a_crash_when_a_batch_has_arrived: "arrived",
    same_bytes_after_a_crash_when_a_batch_is_staged: "staged",
    same_bytes_after_a_crash_when_documents_are_loaded: "loaded",
    same_bytes_after_a_crash_when_a_batch_is_applied: "applied",
    same_bytes_after_a_crash_before_the_commit: "encoded",
    same_bytes_after_a_crash_between_commit_and_ack: "committed",
    same_bytes_after_a_crash_after_the_ack: "acked",
    same_bytes_after_a_crash_before_documents_are_shown: "showing",
    same_bytes_after_a_crash_when_half_of_the_documents_are_shown: "half-shown",
    same_bytes_after_a_crash_when_all_documents_are_shown: "shown",
}
