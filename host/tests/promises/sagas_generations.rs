//! Generations of sagas: what one has sent, the other never sends again; timers that are set wake whichever is live; and instances
//! that a rebuild cannot know stand in the way of a promotion, by name.

use std::time::Duration;

use serde_json::{Value, json};

use crate::generations::is;
use crate::harness::{World, until};
use crate::services::{Services, stored};
use crate::shop::{HANDLER, as_due, by_rule, place, shop};

async fn promote(world: &World, handler: &'static str, more: &'static [&'static str]) -> (Option<i32>, String) {
    let url = world.server.url();
    let asked = tokio::task::spawn_blocking(move || {
        crate::harness::cli(&url, &[&["promote", handler, "--json"], more].concat())
    });
    let output = asked.await.expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_sent_once_though_two_generations_of_a_saga_take_turns() {
    let world = shop(Duration::from_secs(120), &[]).await;
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", by_rule).await;
    let _host = world.host(&[]);
    place(&world, 0..200).await;
    as_due(&world, 200).await;
    world.ok(&["rebuild", HANDLER]);
    for (turn, number) in [(1, "2"), (2, "1"), (3, "2")] {
        let load = place(&world, turn * 200..turn * 200 + 200);
        let more: &'static [&'static str] = match number {
            "1" => &["--generation", "1"],
            _ => &["--generation", "2"],
        };
        let ((code, stderr), ()) = tokio::join!(promote(&world, HANDLER, more), load);
        assert_eq!(code, Some(0), "{stderr}");
    }
    as_due(&world, 800).await;
}

/// An office in which invoice `A` has been reminded of, `B` will be in a while, and a rebuild has caught up.
async fn office() -> World {
    let world = World::new().await;
    world.stream("INVOICES", &["invoices.>"]).await;
    world.stream("COMMANDS", &["invoice-commands.*"]).await;
    world.deploy("reminder", "remind", &[]);
    world
}

async fn invoice(world: &World, number: &str, pay_within: u64) {
    let payload = json!({ "invoice": number, "pay_within": pay_within, "answer_within": 3_600_000 });
    let body = json!({ "eventId": number, "eventType": "InvoiceSent", "aggregateId": number, "payload": payload });
    let publish = world.jetstream.publish("invoices.InvoiceSent", body.to_string().into()).await.expect("sent");
    publish.await.expect("stored");
}

async fn reminded(world: &World) -> Vec<Value> {
    let commands = stored(&world.jetstream, "COMMANDS").await;
    commands.into_iter().map(|command| command.payload["invoice"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_is_set_wakes_the_generation_that_is_live_when_it_is_due() {
    let world = office().await;
    let _host = world.host(&[]);
    invoice(&world, "A", 6_000).await;
    world.caught_up("remind").await;
    world.ok(&["rebuild", "remind"]);
    let (code, stderr) = promote(&world, "remind", &[]).await;
    assert_eq!(code, Some(0), "{stderr}");
    is(&world, "remind", 2, "live").await;
    assert_eq!(reminded(&world).await, Vec::<Value>::new(), "it is not due yet");
    until("the reminder", async || (!reminded(&world).await.is_empty()).then_some(())).await;
    // The shadow decides the same, and says nothing.
    world.caught_up("remind").await;
    until("both are alike", async || {
        (world.documents("remind").await == world.documents("remind_g1").await).then_some(())
    })
    .await;
    assert_eq!(reminded(&world).await, ["A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_lacks_a_timer_is_not_promoted_unless_it_is_forced() {
    let world = office().await;
    let _host = world.host(&[]);
    invoice(&world, "A", 1).await;
    invoice(&world, "B", 8_000).await;
    until("a reminder", async || (reminded(&world).await == ["A"]).then_some(())).await;
    until("what fired is removed", async || {
        (crate::sagas_time::timers(&world, "remind", "due").await == 0).then_some(())
    })
    .await;
    world.ok(&["rebuild", "remind"]);
    let (code, stderr) = promote(&world, "remind", &[]).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("1 instances that have not ended differ: \"A\""), "{stderr}");
    let (code, stderr) = promote(&world, "remind", &["--force"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    until("the other reminder", async || (reminded(&world).await.len() == 2).then_some(())).await;
    world.caught_up("remind").await;
    assert_eq!(reminded(&world).await, ["A", "B"], "each once");
}
