//! Sagas end to end: events in, commands out, answers in, and the instance that everyone can read.

use serde_json::{Value, json};

use crate::harness::{World, until};
use crate::services::{Answer, Command, Services, stored};

/// What a willing service says to a command.
fn done(command: &Command) -> Option<Answer> {
    let kind = match command.kind.as_str() {
        "ReserveInventory" => "InventoryReserved",
        "ChargePayment" => "PaymentCharged",
        "BookShipping" => "ShippingBooked",
        "SendConfirmation" => "ConfirmationSent",
        "ReleaseInventory" => "InventoryReleased",
        "RefundPayment" => "PaymentRefunded",
        "CancelShipping" => "ShippingCancelled",
        other => panic!("a command that no service knows: {other}"),
    };
    Some((kind.to_owned(), json!({ "order": command.payload["order"] })))
}

fn declined(command: &Command) -> Option<Answer> {
    match command.kind.as_str() {
        "ChargePayment" => {
            let payload = json!({ "order": command.payload["order"], "reason": "no money" });
            Some(("PaymentDeclined".to_owned(), payload))
        }
        _ => done(command),
    }
}

async fn shop() -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    world.deploy("order-fulfilment", "fulfil", &[]);
    world
}

async fn place(world: &World, order: &str) {
    let body = json!({
        "eventId": format!("placed-{order}"),
        "eventType": "OrderPlaced",
        "aggregateId": order,
        "payload": { "order": order, "customer": "C42", "cents": 1200 },
    });
    world.jetstream.publish("orders.OrderPlaced", body.to_string().into()).await.unwrap().await.unwrap();
}

/// The instance, as soon as it has this status.
async fn instance(world: &World, handler: &str, key: &str, status: &str) -> Value {
    until(&format!("{key} is {status}"), async || {
        let document = world.documents(handler).await.remove(key)?;
        let instance: Value = serde_json::from_str(&document).expect("JSON");
        (instance["status"] == status).then_some(instance)
    })
    .await
}

fn kinds(commands: &[Command]) -> Vec<&str> {
    commands.iter().map(|command| command.kind.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_through_its_steps_with_one_correlation_id() {
    let world = shop().await;
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", done).await;
    place(&world, "O1").await;
    let instance = instance(&world, "fulfil", "O1", "completed").await;
    assert_eq!(instance["state"], json!({ "customer": "C42", "cents": 1200 }), "{instance:#}");
    let commands = stored(&world.jetstream, "COMMANDS").await;
    assert_eq!(kinds(&commands), ["ReserveInventory", "ChargePayment", "BookShipping", "SendConfirmation"]);
    let mut causation = "placed-O1".to_owned();
    for command in &commands {
        assert_eq!((&*command.correlation, &command.causation), ("placed-O1", &causation), "{command:?}");
        causation = format!("{}.answer", command.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_payment_is_compensated_in_reverse_order() {
    let world = shop().await;
    let _host = world.host(&[]);
    let services = Services::start(&world.jetstream, "COMMANDS", "orders", declined).await;
    place(&world, "O1").await;
    let instance = instance(&world, "fulfil", "O1", "compensated").await;
    assert_eq!(instance["reason"], "no money", "{instance:#}");
    let commands = stored(&world.jetstream, "COMMANDS").await;
    assert_eq!(kinds(&commands), ["ReserveInventory", "ChargePayment", "ReleaseInventory"]);
    assert!(commands.iter().all(|command| command.attempt == 1));
    assert_eq!(kinds(&services.commands.lock().unwrap()), kinds(&commands), "each was delivered once");
}
