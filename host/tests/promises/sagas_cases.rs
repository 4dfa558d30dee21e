//! Known sagas of other projects, from the first command to the last, through the real module on the real host: the services
//! answer as a case says, and the commands in the stream are those that the original sends. Skipped where the cases are missing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{World, until};
use crate::real_logs::{data, text};
use crate::services::{Answer, Command, Services, stored};

/// Begins an instance per case, named after it.
async fn begin(world: &World, kind: &str, subject: &str, field: &str, cases: &[Value]) {
    for case in cases {
        let id = text(&case["name"]);
        let mut payload = json!({ "from": "A", "to": "B", "cents": 700 });
        payload[field] = json!(id);
        let body = json!({ "eventId": id, "eventType": kind, "aggregateId": id, "payload": payload });
        let ack = world.jetstream.publish(subject.to_owned(), body.to_string().into()).await.expect("sent");
        ack.await.expect("stored");
    }
}

/// Waits until every instance has ended, and answers its status and its commands: subject's kind by kind, in order.
async fn ended(world: &World, handler: &str, field: &str, cases: usize) -> BTreeMap<String, (String, Vec<String>)> {
    let documents = until("all instances end", async || {
        let documents = world.documents(handler).await;
        let over = |document: &String| {
            let instance: Value = serde_json::from_str(document).expect("JSON");
            matches!(text(&instance["status"]), "completed" | "compensated")
        };
        (documents.len() == cases && documents.values().all(over)).then_some(documents)
    })
    .await;
    let instances = documents.into_iter().map(|(key, document)| {
        let instance: Value = serde_json::from_str(&document).expect("JSON");
        (key, (text(&instance["status"]).to_owned(), Vec::new()))
    });
    let mut ended: BTreeMap<String, (String, Vec<String>)> = instances.collect();
    for command in stored(&world.jetstream, "COMMANDS").await {
        assert_eq!(command.attempt, 1, "{command:?}");
        let key = text(&command.payload[field]);
        ended.get_mut(key).expect("an instance").1.push(command.kind);
    }
    ended
}

/// Commands in order, and the status in the end.
fn expected(commands: impl Iterator<Item = String>, status: &str) -> (String, Vec<String>) {
    (status.to_owned(), commands.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_ftgo_s_create_order_saga_give_their_commands() {
    let Some((_, table)) = data("saga-cases/ftgo-create-order.json") else { return };
    let cases = table["cases"].as_array().expect("cases").clone();
    let world = World::new().await;
    world.stream("ORDERS", &["restaurant-orders.>"]).await;
    let services = ["consumerService.*", "kitchenService.*", "accountingService.*", "orderService.*"];
    world.stream("COMMANDS", &services).await;
    world.deploy("create-order", "create-order", &[]);
    let _host = world.host(&[]);
    let told = cases.clone();
    let answer = move |command: &Command| -> Option<Answer> {
        let case = told.iter().find(|case| case["name"] == command.payload["order"]).expect("a case");
        let steps = case["steps"].as_array().expect("steps");
        let step = steps.iter().find(|step| step["expectCommand"] == *command.kind).expect("a command of the case");
        let kind = match text(&step["thenReply"]) {
            // The last command of a case: the original does not wait for it; an order that was rejected is over here.
            "" if command.kind == "RejectOrderCommand" => "Success",
            "" => return None,
            "success" => "Success",
            "failure" => "Failure",
            other => panic!("a reply {other}"),
        };
        Some((kind.to_owned(), command.payload.clone()))
    };
    let _services = Services::start(&world.jetstream, "COMMANDS", "restaurant-orders", answer).await;
    begin(&world, "OrderCreated", "restaurant-orders.OrderCreated", "order", &cases).await;
    let expected: BTreeMap<String, (String, Vec<String>)> = cases
        .iter()
        .map(|case| {
            let commands = case["steps"].as_array().expect("steps").iter();
            let commands: Vec<String> = commands.map(|step| text(&step["expectCommand"]).to_owned()).collect();
            let last = commands.last().map(String::as_str);
            let status = if last == Some("ApproveOrderCommand") { "completed" } else { "compensated" };
            (text(&case["name"]).to_owned(), expected(commands.into_iter(), status))
        })
        .collect();
    assert_eq!(expected.len(), 3);
    assert_eq!(ended(&world, "create-order", "order", cases.len()).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_temporal_s_transfer_money_saga_give_their_commands() {
    let Some((_, table)) = data("saga-cases/temporal-transfer-money.json") else { return };
    let cases = table["cases"].as_array().expect("cases").clone();
    let world = World::new().await;
    world.stream("TRANSFERS", &["transfers.>"]).await;
    world.stream("COMMANDS", &["transfer-commands.*"]).await;
    world.deploy("transfer-money", "transfer-money", &[]);
    let _host = world.host(&[]);
    let told = cases.clone();
    let answer = move |command: &Command| -> Option<Answer> {
        let transfer = &command.payload["transfer"];
        let case = told.iter().find(|case| case["name"] == *transfer).expect("a case");
        if case["failing"] == *command.kind {
            return Some(("Failed".to_owned(), json!({ "transfer": transfer, "reason": "the bank says no" })));
        }
        Some(("Done".to_owned(), json!({ "transfer": transfer })))
    };
    let _services = Services::start(&world.jetstream, "COMMANDS", "transfers", answer).await;
    begin(&world, "TransferRequested", "transfers.TransferRequested", "transfer", &cases).await;
    let expected: BTreeMap<String, (String, Vec<String>)> = cases
        .iter()
        .map(|case| {
            let commands = case["expectCommandsInOrder"].as_array().expect("commands").iter();
            let status = if case["expectOutcome"] == "completed" { "completed" } else { "compensated" };
            (text(&case["name"]).to_owned(), expected(commands.map(|command| text(command).to_owned()), status))
        })
        .collect();
    assert_eq!(expected.len(), 4);
    assert_eq!(ended(&world, "transfer-money", "transfer", cases.len()).await, expected);
}
