//! The shop that sagas are tried on: orders, services that refuse some of them by a fixed rule, and what must come of each order,
//! computed without a line of the host's or the saga's code.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Documents, World, pause, until};
use crate::services::{Answer, Command, stored};

/// The handler's name, and so the beginning of every id.
pub const HANDLER: &str = "fulfil";

/// Each command with its undo, and its place among what the saga asks for at once.
const STEPS: [(&str, &str, u64); 4] = [
    ("ReserveInventory", "ReleaseInventory", 1),
    ("ChargePayment", "RefundPayment", 0),
    ("BookShipping", "CancelShipping", 0),
    ("SendConfirmation", "", 0),
];

/// What a willing service says to a command.
pub fn done(command: &Command) -> Option<Answer> {
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

/// The same, but of five orders one is refused by the stock, one by the bank and one by the carriers.
pub fn by_rule(command: &Command) -> Option<Answer> {
    let order = command.payload["order"].as_str().expect("an order");
    let number: u64 = order.strip_prefix('O').expect("O").parse().expect("a number");
    let refusal = match (command.kind.as_str(), refused_at(number)) {
        ("ReserveInventory", Some(0)) => "InventoryRejected",
        ("ChargePayment", Some(1)) => "PaymentDeclined",
        ("BookShipping", Some(2)) => "ShippingRejected",
        _ => return done(command),
    };
    Some((refusal.to_owned(), json!({ "order": order, "reason": "no" })))
}

/// Which step of this order is refused.
fn refused_at(number: u64) -> Option<usize> {
    usize::try_from(number % 5).ok().filter(|step| *step < 3)
}

/// A shop with this duplicate window of its commands, and the saga deployed with these settings.
pub async fn shop(window: Duration, settings: &[&str]) -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let config = stream::Config {
        name: "COMMANDS".to_owned(),
        subjects: vec!["order-commands.*".to_owned(), "probe".to_owned()],
        duplicate_window: window,
        allow_direct: true,
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    world.deploy("order-fulfilment", HANDLER, &settings);
    world
}

/// Places orders. They are of a year in which no timer of ours is due yet.
pub async fn place(world: &World, numbers: std::ops::Range<u64>) {
    let mut acks = Vec::new();
    for number in numbers {
        let body = json!({
            "eventId": format!("placed-O{number}"),
            "eventType": "OrderPlaced",
            "aggregateId": format!("O{number}"),
            "timestamp": "2100-01-01T00:00:00Z",
            "payload": { "order": format!("O{number}"), "customer": "C42", "cents": 1200 + number },
        });
        let publish = world.jetstream.publish("orders.OrderPlaced", body.to_string().into());
        acks.push(publish.await.expect("the server is there"));
    }
    for ack in acks {
        ack.await.expect("the order is stored");
    }
}

/// A message of the saga: id, kind, causation, correlation.
pub type Sent = [String; 4];

/// What the saga must send for an order: commands in their order, and the event at the end.
pub fn due(number: u64) -> (Vec<Sent>, Option<Sent>) {
    let (key, root) = (format!("O{number}"), format!("placed-O{number}"));
    let mut commands = Vec::new();
    let mut causation = root.clone();
    let mut send = |id: String, kind: &str, causation: &mut String| {
        let answer = format!("{id}.answer");
        commands.push([id, kind.to_owned(), std::mem::replace(causation, answer), root.clone()]);
    };
    let mut done: Vec<(String, &str)> = Vec::new();
    for (step, (kind, undo, ordinal)) in STEPS.into_iter().enumerate() {
        let id = id(&causation, &key, ordinal);
        send(id.clone(), kind, &mut causation);
        if refused_at(number) == Some(step) {
            for (id, undo) in done.iter().rev() {
                send(format!("{id}.undo"), undo, &mut causation);
            }
            return (commands, None);
        }
        done.push((id, undo));
    }
    let fulfilled = [id(&causation, &key, 0), "OrderFulfilled".to_owned(), causation, root];
    (commands, Some(fulfilled))
}

fn id(event: &str, key: &str, ordinal: u64) -> String {
    let mut hash = Sha256::new();
    for part in [HANDLER, event, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(ordinal.to_be_bytes());
    format!("{HANDLER}.{}", &hex::encode(hash.finalize())[..32])
}

/// The instance, as soon as it has this status.
pub async fn instance(world: &World, handler: &str, key: &str, status: &str) -> Value {
    until(&format!("{key} is {status}"), async || {
        let document = world.documents(handler).await.remove(key)?;
        let instance: Value = serde_json::from_str(&document).expect("JSON");
        (instance["status"] == status).then_some(instance)
    })
    .await
}

/// Insists that the streams hold for each order exactly what is due, each once, in its order, and that each has ended as due.
/// Answers the instances.
pub async fn as_due(world: &World, orders: u64) -> Documents {
    counts_add_up(world, orders).await;
    let documents = until("all orders are over", async || {
        let documents = world.documents(HANDLER).await;
        let over = |text: &String| {
            text.starts_with(r#"{"status":"completed""#) || text.starts_with(r#"{"status":"compensated""#)
        };
        (documents.len() as u64 == orders && documents.values().all(over)).then_some(documents)
    })
    .await;
    let mut commands: BTreeMap<String, Vec<Sent>> = BTreeMap::new();
    for command in stored(&world.jetstream, "COMMANDS").await {
        assert_eq!(command.attempt, 1, "{command:?}");
        let order = command.payload["order"].as_str().expect("an order").to_owned();
        commands.entry(order).or_default().push(sent(command));
    }
    let events = stored(&world.jetstream, "ORDERS").await;
    let fulfilled = events.into_iter().filter(|event| event.kind == "OrderFulfilled").map(sent);
    let mut fulfilled: Vec<Sent> = fulfilled.collect();
    fulfilled.sort();
    let mut fulfilled_due = Vec::new();
    for number in 0..orders {
        let order = format!("O{number}");
        let (commands_due, end) = due(number);
        assert_eq!(commands.remove(&order), Some(commands_due), "{order}");
        let instance: Value = serde_json::from_str(&documents[&order]).expect("JSON");
        let states: Vec<&str> =
            instance["steps"].as_array().expect("steps").iter().filter_map(|step| step["state"].as_str()).collect();
        let (status, states_due) = match refused_at(number) {
            Some(step) => ("compensated", [vec!["undone"; step], vec!["rejected"]].concat()),
            None => ("completed", vec!["confirmed"; 4]),
        };
        assert_eq!((instance["status"].as_str(), states), (Some(status), states_due), "{instance:#}");
        assert_eq!(instance["correlation"], format!("placed-{order}"), "{instance:#}");
        fulfilled_due.extend(end);
    }
    assert!(commands.is_empty(), "commands of no order: {commands:?}");
    fulfilled_due.sort();
    assert_eq!(fulfilled, fulfilled_due);
    documents
}

/// The same of a command as it came.
pub fn sent(command: Command) -> Sent {
    [command.id, command.kind, command.causation, command.correlation]
}

/// Waits until every event of these orders is decided, and insists that each counts once and as one thing.
async fn counts_add_up(world: &World, orders: u64) {
    let due: Vec<_> = (0..orders).map(due).collect();
    // What the saga publishes at the end comes by, and is nothing to it.
    let ends = due.iter().filter(|(_, end)| end.is_some()).count() as u64;
    let events = orders + ends + due.iter().map(|(commands, _)| commands.len() as u64).sum::<u64>();
    let (_, counts, positions) = until("every event is decided", async || {
        world.last_record(HANDLER).await.filter(|(_, counts, _)| counts.delivered >= events)
    })
    .await;
    assert_eq!((counts.delivered, positions[0]), (events, events), "{counts:?}");
    assert_eq!((counts.irrelevant, counts.ignored, counts.parked, counts.expired, counts.lost), (ends, 0, 0, 0, 0));
    assert_eq!(counts.applied, events - ends, "{counts:?}");
}

/// Returns when the stream of commands has forgotten all message ids of before.
pub async fn window_over(world: &World) {
    // One that the stream has not seen: it must be younger than what is to be forgotten.
    static PROBES: AtomicU64 = AtomicU64::new(0);
    let id = format!("probe-{}", PROBES.fetch_add(1, Ordering::Relaxed));
    let probe = async || {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        let ack = world.jetstream.publish_with_headers("probe", headers, "".into()).await.expect("the server is there");
        ack.await.expect("an answer").duplicate
    };
    assert!(!probe().await, "a probe of another's");
    while probe().await {
        pause().await;
    }
}
