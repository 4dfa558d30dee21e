//! A service that does right may answer a step more than once: a command that was sent again is another command to it. The first
//! answer counts, every other one is late, and nothing is sent twice for it.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::harness::{World, until};
use crate::services::{Command, reply, reply_as, stored};
use crate::shop::{self, done, instance, place, shop};

/// A deadline that is missed in this test, and long enough for two answers on a slow machine.
const SOON: u64 = 4_000;
const LATE: u64 = 600_000;

const INSTANCES: usize = 10;

async fn commands(world: &World, kind: &str, count: usize) -> Vec<Command> {
    until(&format!("{count} of {kind}"), async || {
        let mut commands = stored(&world.jetstream, "COMMANDS").await;
        commands.retain(|command| command.kind == kind);
        (commands.len() >= count).then_some(commands)
    })
    .await
}

async fn tell(world: &World, id: &str, script: &Value) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let publish = world.jetstream.publish_with_headers("scripts.Told", headers, script.to_string().into());
    publish.await.expect("the server is there").await.expect("it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_attempts_are_answered_and_every_instance_goes_on_once() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world.deploy("scripted", "scripted", &[]);
    let _host = world.host(&[]);
    let step = |name: &str, within: u64| json!({ "step": { "name": name, "within": within, "retries": 1, "undo": "command" } });
    let keys: Vec<String> = (0..INSTANCES).map(|number| format!("k{number}")).collect();
    for key in &keys {
        tell(&world, key, &json!({ "key": key, "starts": true, "asks": [step("one", SOON)] })).await;
    }
    // The services were away until every command was sent twice. They answer all of them, and each answer asks for the next step.
    for one in commands(&world, "one", 2 * INSTANCES).await {
        let next = json!({ "key": one.key, "asks": [step("two", LATE)] });
        reply(&world.jetstream, "scripts", &one, "Told", &next).await;
    }
    for two in commands(&world, "two", INSTANCES).await {
        reply(&world.jetstream, "scripts", &two, "Told", &json!({ "key": two.key, "asks": [] })).await;
    }
    // Once more, under other ids, when the saga is past that step.
    for one in commands(&world, "one", 2 * INSTANCES).await {
        let id = format!("{}.once-more", one.id);
        let next = json!({ "key": one.key, "asks": [step("two", LATE)] });
        reply_as(&id, &world.jetstream, "scripts", &one, "Told", &next).await;
    }
    for key in &keys {
        tell(&world, &format!("end {key}"), &json!({ "key": key, "asks": ["complete"] })).await;
    }
    for key in &keys {
        let instance = instance(&world, "scripted", key, "completed").await;
        assert_eq!((&instance["late"], &instance["state"]["seen"]), (&json!(3), &json!(4)), "{instance:#}");
        assert_eq!(instance["steps"].as_array().expect("steps").len(), 2, "{instance:#}");
    }
    world.caught_up("scripted").await;
    let kinds: Vec<String> =
        stored(&world.jetstream, "COMMANDS").await.into_iter().map(|command| command.kind).collect();
    let count = |kind: &str| kinds.iter().filter(|each| *each == kind).count();
    assert_eq!((kinds.len(), count("one"), count("two")), (3 * INSTANCES, 2 * INSTANCES, INSTANCES), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_answer_twice_under_other_ids_double_no_command() {
    let world = shop(std::time::Duration::from_secs(120), &[]).await;
    let _host = world.host(&[]);
    let orders = INSTANCES as u64;
    place(&world, 0..orders).await;
    for kind in ["ReserveInventory", "ChargePayment", "BookShipping", "SendConfirmation"] {
        for command in commands(&world, kind, INSTANCES).await {
            let (answer, payload) = done(&command).expect("an answer");
            for id in [format!("{}.answer", command.id), format!("{}.once-more", command.id)] {
                reply_as(&id, &world.jetstream, "orders", &command, &answer, &payload).await;
            }
        }
    }
    for number in 0..orders {
        let instance = instance(&world, shop::HANDLER, &format!("O{number}"), "completed").await;
        let late = until("each second answer is noted", async || {
            let document = world.documents(shop::HANDLER).await.remove(&format!("O{number}"))?;
            let instance: Value = serde_json::from_str(&document).expect("JSON");
            (instance["late"] == 4).then_some(())
        });
        late.await;
        assert_eq!(instance["steps"].as_array().expect("steps").len(), 4, "{instance:#}");
    }
    world.caught_up(shop::HANDLER).await;
    let sent = stored(&world.jetstream, "COMMANDS").await;
    let unique: BTreeSet<&str> = sent.iter().map(|command| command.id.as_str()).collect();
    assert_eq!((sent.len(), unique.len()), (4 * INSTANCES, 4 * INSTANCES), "each command once, and no other");
    assert!(sent.iter().all(|command| command.attempt == 1), "{sent:?}");
    let events = stored(&world.jetstream, "ORDERS").await;
    assert_eq!(events.iter().filter(|event| event.kind == "OrderFulfilled").count(), INSTANCES);
}
