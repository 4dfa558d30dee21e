//! Sagas end to end: events in, commands out, answers in, and the instance that everyone can read.

use std::time::Duration;

use serde_json::json;

use crate::services::{Answer, Command, Services, stored};
use crate::shop::{done, instance, place, shop};

const WINDOW: Duration = Duration::from_secs(120);

fn declined(command: &Command) -> Option<Answer> {
    match command.kind.as_str() {
        "ChargePayment" => {
            let payload = json!({ "order": command.payload["order"], "reason": "no money" });
            Some(("PaymentDeclined".to_owned(), payload))
        }
        _ => done(command),
    }
}

fn kinds(commands: &[Command]) -> Vec<&str> {
    commands.iter().map(|command| command.kind.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_through_its_steps_with_one_correlation_id() {
    let world = shop(WINDOW, &[]).await;
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", done).await;
    place(&world, 1..2).await;
    let instance = instance(&world, "fulfil", "O1", "completed").await;
    assert_eq!(instance["state"], json!({ "customer": "C42", "cents": 1201 }), "{instance:#}");
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
    let world = shop(WINDOW, &[]).await;
    let _host = world.host(&[]);
    let services = Services::start(&world.jetstream, "COMMANDS", "orders", declined).await;
    place(&world, 1..2).await;
    let instance = instance(&world, "fulfil", "O1", "compensated").await;
    assert_eq!(instance["reason"], "no money", "{instance:#}");
    let commands = stored(&world.jetstream, "COMMANDS").await;
    assert_eq!(kinds(&commands), ["ReserveInventory", "ChargePayment", "ReleaseInventory"]);
    assert!(commands.iter().all(|command| command.attempt == 1));
    assert_eq!(kinds(&services.commands.lock().unwrap()), kinds(&commands), "each was delivered once");
}
