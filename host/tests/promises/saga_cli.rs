//! What the commands for sagas say of instances, and how they refuse what cannot be.

use millstream::server::Server;
use serde_json::{Value, json};

use crate::harness::{World, cli, until};
use crate::services::{Answer, Command, Services};

/// What a willing service says to a command.
fn done(command: &Command) -> Option<Answer> {
    let kind = match command.kind.as_str() {
        "ReserveInventory" => "InventoryReserved",
        "ChargePayment" => "PaymentCharged",
        "BookShipping" => "ShippingBooked",
        "SendConfirmation" => "ConfirmationSent",
        "ReleaseInventory" => "InventoryReleased",
        "RefundPayment" => "PaymentRefunded",
        _ => "ShippingCancelled",
    };
    Some((kind.to_owned(), json!({ "order": command.payload["order"] })))
}

/// Declines the payment of orders that begin with `poor`, and is silent to those that begin with `lost`.
fn moody(command: &Command) -> Option<Answer> {
    let order = command.payload["order"].as_str().unwrap_or_default();
    match command.kind.as_str() {
        "ChargePayment" if order.starts_with("poor") => {
            Some(("PaymentDeclined".to_owned(), json!({ "order": order, "reason": "no money" })))
        }
        "ReserveInventory" if order.starts_with("lost") => None,
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

/// The rows of `millstream sagas`.
fn rows(world: &World, more: &[&str]) -> Vec<Value> {
    let text = world.ok(&[&["sagas", "fulfil", "--json"], more].concat());
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The row of an instance, as soon as it has this status.
async fn standing(world: &World, key: &str, status: &str) -> Value {
    until(&format!("{key} is {status}"), async || {
        rows(world, &[]).into_iter().find(|row| row["key"] == key && row["status"] == status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_listed_with_what_they_wait_for() {
    let world = shop().await;
    assert!(rows(&world, &[]).is_empty(), "before anybody runs it");
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    for order in ["fine", "poor", "lost"] {
        place(&world, order).await;
    }
    let fine = standing(&world, "fine", "completed").await;
    let poor = standing(&world, "poor", "compensated").await;
    let lost = standing(&world, "lost", "running").await;
    assert_eq!((&fine["open_steps"], &fine["timers"], &fine["reason"]), (&json!([]), &json!([]), &Value::Null));
    assert_eq!((&poor["reason"], &poor["open_steps"], &poor["late"]), (&json!("no money"), &json!([]), &json!(0)));
    assert_eq!(lost["open_steps"], json!([{ "step": "reserve", "state": "sent", "attempt": 1 }]), "{lost:#}");
    assert_eq!(lost["timers"][0]["name"], "abandoned");
    assert_eq!((&lost["life"], &lost["handler"]), (&json!("placed-lost"), &json!("fulfil")));
    assert!(lost["changed_seconds_ago"].as_f64().expect("an age") < 60.0, "{lost:#}");

    let keys = |status: &str| -> Vec<Value> {
        rows(&world, &["--status", status]).into_iter().map(|mut row| row["key"].take()).collect()
    };
    assert_eq!(keys("compensated"), ["poor"]);
    assert_eq!(keys("running"), ["lost"]);
    assert!(keys("compensation-failed").is_empty());

    let table = world.ok(&["sagas", "fulfil"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("KEY   STATUS       OPEN STEPS    TIMERS"), "{table}");
    assert!(lines[2].starts_with("lost  running      reserve sent  abandoned in 24 h     0"), "{table}");
    assert!(lines[3].ends_with("no money") && lines.len() == 4, "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_saga_has_no_instances() {
    let world = shop().await;
    world.deploy("customer-spend", "spend", &[]);
    for command in ["sagas", "explain", "resume-compensation"] {
        let with = |handler| if command == "sagas" { vec![command, handler] } else { vec![command, handler, "o-1"] };
        let said = world.refused(2, &with("fulfill"));
        assert!(said.contains("handler fulfill is not deployed") && said.contains("millstream list"), "{said}");
        let said = world.refused(2, &with("spend"));
        assert!(said.contains("spend is a projection") && said.contains("millstream get spend"), "{said}");
    }
    for command in ["explain", "resume-compensation"] {
        let said = world.refused(1, &[command, "fulfil", "o-1"]);
        assert!(said.contains(r#"no instance "o-1""#) && said.contains("millstream sagas fulfil"), "{said}");
    }
    let output = world.cli(&["sagas", "fulfil", "--status", "asleep"]);
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_that_nobody_takes_are_told() {
    let world = shop().await;
    let _host = world.host(&[]);
    world.jetstream.delete_stream("COMMANDS").await.unwrap();
    place(&world, "o-1").await;
    standing(&world, "o-1", "running").await;
    let told = async || {
        let output = world.cli(&["sagas", "fulfil"]);
        let said = String::from_utf8(output.stderr).unwrap();
        said.contains("1 effects of fulfil cannot be delivered yet").then_some(said)
    };
    let said = until("it is told", told).await;
    assert!(said.contains(" of o-1 to order-commands.ReserveInventory: "), "{said}");
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let quiet = async || world.cli(&["sagas", "fulfil"]).stderr.is_empty().then_some(());
    until("it is delivered", quiet).await;
}

/// The story of an instance, for programs.
fn story(world: &World, key: &str) -> Value {
    serde_json::from_str(&world.ok(&["explain", "fulfil", key, "--json"])).expect("JSON")
}

/// Of each event: its type, what it did, and what each effect of it came to.
fn told(story: &Value) -> Vec<(String, String, Vec<String>)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let effect = |effect: &Value| {
        let outcome = match &effect["outcome"] {
            Value::String(word) => word.clone(),
            outcome => text(&outcome["answered"]["event_type"]),
        };
        format!("{} {}: {outcome}", text(&effect["kind"]), text(&effect["name"]))
    };
    let event = |event: &Value| {
        let effects = event["effects"].as_array().expect("effects").iter().map(effect).collect();
        (text(&event["type"]), text(&event["did"]), effects)
    };
    story["events"].as_array().expect("events").iter().map(event).collect()
}

fn line(event_type: &str, did: &str, effects: &[&str]) -> (String, String, Vec<String>) {
    (event_type.to_owned(), did.to_owned(), effects.iter().map(ToString::to_string).collect())
}

fn compensated() -> Vec<(String, String, Vec<String>)> {
    vec![
        line("OrderPlaced", "begin", &["timer abandoned: cancelled", "command ReserveInventory: InventoryReserved"]),
        line("InventoryReserved", "step reserve confirmed", &["command ChargePayment: PaymentDeclined"]),
        line("PaymentDeclined", "step charge rejected; compensating", &["undo ReleaseInventory: InventoryReleased"]),
        line("InventoryReleased", "step reserve undone; compensated", &[]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_has_every_event_command_answer_timer_and_undo() {
    let world = shop().await;
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    // Neighbours in the same streams, with the same correlation ids as nobody.
    for order in ["fine", "poor", "lost", "other"] {
        place(&world, order).await;
    }
    standing(&world, "poor", "compensated").await;
    standing(&world, "fine", "completed").await;
    let poor = story(&world, "poor");
    assert_eq!(told(&poor), compensated(), "{poor:#}");
    assert_eq!(poor["missing"], json!([]));
    assert_eq!((&poor["reason"], &poor["correlation"]), (&json!("no money"), &json!("placed-poor")));
    for event in poor["events"].as_array().unwrap() {
        assert_eq!(event["digest"].as_str().unwrap().len(), 12, "{event:#}");
        assert_eq!(event["stream"], "ORDERS");
        assert!(event["record"].as_u64().is_some_and(|record| record > 0) && event["host"].is_string(), "{event:#}");
        for effect in event["effects"].as_array().unwrap().iter().filter(|effect| effect["kind"] != "timer") {
            assert_eq!(effect["stream"], "COMMANDS", "{effect:#}");
            assert_eq!(effect["payload"]["order"], "poor");
            assert!(effect["outcome"]["answered"]["after_ms"].as_i64().unwrap() >= 0);
        }
    }

    let fine = story(&world, "fine");
    let kinds: Vec<String> = told(&fine).into_iter().map(|(kind, _, _)| kind).collect();
    let all = ["OrderPlaced", "InventoryReserved", "PaymentCharged", "ShippingBooked", "ConfirmationSent"];
    assert_eq!(kinds, all);
    assert_eq!(told(&fine)[4].2, ["event OrderFulfilled: sent"]);
    let lost = story(&world, "lost");
    assert_eq!(
        told(&lost),
        [line("OrderPlaced", "begin", &["timer abandoned: waits", "command ReserveInventory: waits"])]
    );

    let bounded = world.ok(&["explain", "fulfil", "poor", "--scan", "3"]);
    assert!(bounded.contains("3 messages were looked at (--scan looks at more)"), "{bounded}");
    let text = world.ok(&["explain", "fulfil", "poor"]);
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    assert!(text.starts_with("fulfil poor  compensated: no money\nstate "), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains("not found"), "{text}");
    assert!(
        text.contains("└─ ReleaseInventory") && text.contains("undo of reserve: InventoryReleased after "),
        "{text}"
    );
    println!("{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_says_what_is_not_there_any_more() {
    let world = shop().await;
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    place(&world, "poor").await;
    standing(&world, "poor", "compensated").await;

    // The journal alone: commands and answers are still told, and that their messages are gone.
    world.jetstream.get_stream("ORDERS").await.unwrap().purge().await.unwrap();
    world.jetstream.get_stream("COMMANDS").await.unwrap().purge().await.unwrap();
    let trimmed = story(&world, "poor");
    let expected: Vec<(String, String, Vec<String>)> = compensated()
        .into_iter()
        .map(|(kind, did, effects)| {
            // The undo's answer was known by its causation id only.
            let gone = |effect: String| {
                if effect.starts_with("undo") { "undo ReleaseInventory: unknown".to_owned() } else { effect }
            };
            (kind, did, effects.into_iter().map(gone).collect())
        })
        .collect();
    assert_eq!(told(&trimmed), expected, "{trimmed:#}");
    let missing: Vec<&str> = trimmed["missing"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(missing[0].starts_with("4 events that no stream has any more"), "{missing:?}");
    assert!(missing[1].starts_with("3 messages that no stream has"), "{missing:?}");
    let most = world.ok(&["explain", "fulfil", "poor", "--scan", "0"]);
    assert!(!most.contains("--scan looks at more"), "there is nothing to look at: {most}");

    // Nor the journal's records.
    world.jetstream.get_stream("MILLSTREAM_JOURNAL_fulfil").await.unwrap().purge().keep(1).await.unwrap();
    let bare = story(&world, "poor");
    assert!(told(&bare).iter().take(3).all(|(_, _, effects)| effects.is_empty()), "{bare:#}");
    let missing = bare["missing"].to_string();
    assert!(missing.contains("the journal's records of 3 decisions"), "{missing}");
    let text = world.ok(&["explain", "fulfil", "poor"]);
    assert!(text.contains("\nnot found:\n  ") && text.lines().all(|line| line.chars().count() <= 120), "{text}");

    // Nor the document, but a record that has it.
    let bucket = world.jetstream.get_key_value("fulfil").await.unwrap();
    bucket.purge("poor").await.unwrap();
    let gone = story(&world, "poor");
    assert!(gone["missing"].to_string().contains("its document: "), "{gone:#}");
    assert_eq!(gone["status"], "compensated");
}

/// As `moody`, and nothing that begins with `stuck` is released while `mended` is false.
fn stubborn(mended: &std::sync::atomic::AtomicBool, command: &Command) -> Option<Answer> {
    let is_undo = command.kind == "CancelShipping";
    if is_undo && !mended.load(std::sync::atomic::Ordering::SeqCst) { None } else { done(command) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_that_failed_is_resumed_once_somebody_asks() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let world = shop().await;
    let host = world.host(&[]);
    let mended = Arc::new(AtomicBool::new(false));
    let of_services = Arc::clone(&mended);
    let silent = move |command: &Command| match command.kind.as_str() {
        "BookShipping" => None,
        _ => stubborn(&of_services, command),
    };
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", silent).await;
    express(&world, "stuck").await;
    let row = standing(&world, "stuck", "running").await;
    let said = world.refused(2, &["resume-compensation", "fulfil", "stuck"]);
    assert!(
        said.contains("there is nothing to resume") && said.contains("--status compensation-failed"),
        "{said} {row}"
    );

    let row = standing(&world, "stuck", "compensation-failed").await;
    assert_eq!(row["open_steps"][0]["state"], "undo-failed", "{row:#}");
    let listed = rows(&world, &["--status", "compensation-failed"]);
    assert_eq!(listed.len(), 1);
    let with_alert = until("the alert in its story", async || {
        let story = story(&world, "stuck");
        story.to_string().contains(r#""stream":"MILLSTREAM_EVENTS""#).then_some(story)
    })
    .await;
    assert!(!with_alert["missing"].to_string().contains("no stream has"), "{:#}", with_alert["missing"]);
    mended.store(true, Ordering::SeqCst);
    // Three people at once: each learns that it is resumed, whoever's wish came first.
    let url = world.server.url();
    let asks = (0..3).map(|_| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || cli(&url, &["resume-compensation", "fulfil", "stuck", "--json"]))
    });
    for asked in futures::future::join_all(asks).await {
        let output = asked.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // One that comes late finds nothing to resume.
        if output.status.code() == Some(2) {
            assert!(said.contains("there is nothing to resume"), "{said}");
            continue;
        }
        assert!(output.status.success(), "{said}");
        let row: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_ne!(row["status"], "compensation-failed", "{row:#}");
    }
    standing(&world, "stuck", "compensated").await;
    let story = story(&world, "stuck");
    let did: Vec<String> = told(&story).into_iter().map(|(_, did, _)| did).collect();
    let resumed = did.iter().filter(|did| *did == "resume at step ship; compensating").count();
    assert_eq!(resumed, 1, "{did:#?}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_resume_waits_for_a_host_no_longer_than_told() {
    let world = shop().await;
    let mut host = world.host(&[]);
    let silent = |command: &Command| if command.kind.ends_with("Shipping") { None } else { done(command) };
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", silent).await;
    express(&world, "stuck").await;
    standing(&world, "stuck", "compensation-failed").await;
    host.kill();
    let said = world.refused(1, &["resume-compensation", "fulfil", "stuck", "--timeout", "1"]);
    assert!(said.contains("no host has decided it within 1 s") && said.contains("millstream lag fulfil"), "{said}");
    world.ok(&["resume-compensation", "fulfil", "stuck", "--no-wait"]);
    let _host = world.host(&[]);
    standing(&world, "stuck", "compensating").await;
}

/// Places an order whose services have a second each.
async fn express(world: &World, order: &str) {
    let payload = json!({ "order": order, "customer": "C42", "cents": 1200, "express": true });
    let body = json!({ "eventId": format!("placed-{order}"), "eventType": "OrderPlaced", "payload": payload });
    world.jetstream.publish("orders.OrderPlaced", body.to_string().into()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_sent_and_its_answer_awaited() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    let command = "order-commands.ReserveInventory";
    let send = ["send", command, r#"{"order":"o-1"}"#, "--reply-subject", "orders.*"];
    assert_eq!(world.ok(&send), "{\"order\":\"o-1\"}\n");
    let sent: Value = serde_json::from_str(&world.ok(&[&send[..], &["--json", "--key", "o-1"]].concat())).unwrap();
    assert_eq!((&sent["reply"]["type"], &sent["reply"]["stream"]), (&json!("InventoryReserved"), &json!("ORDERS")));
    assert_eq!(
        (&sent["stream"], &sent["sequence"], &sent["reply"]["sequence"]),
        (&json!("COMMANDS"), &json!(2), &json!(2))
    );
    let stored = crate::services::stored(&world.jetstream, "COMMANDS").await;
    assert_eq!((&*stored[1].kind, &stored[1].correlation, stored[1].attempt), ("ReserveInventory", &stored[1].id, 1));

    assert_eq!(world.ok(&["send", command, "{}", "--id", "mine"]), "", "nothing is waited for");
    let output = world.cli(&["send", command, "{}", "--id", "mine"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("nothing new was stored"));
    let said =
        world.refused(1, &["send", command, r#"{"order":"lost"}"#, "--reply-subject", "orders.*", "--timeout", "1"]);
    assert!(said.contains("within 1 s") && said.contains("nats consumer report COMMANDS"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_was_answered_before_has_its_answer_at_once_and_no_consumer_stays() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    let send = ["send", "order-commands.ReserveInventory", r#"{"order":"o-1"}"#, "--reply-subject", "orders.*"];
    let named = [&send[..], &["--id", "mine", "--json"]].concat();
    let first: Value = serde_json::from_str(&world.ok(&named)).unwrap();
    world.ok(&send);
    let again: Value = serde_json::from_str(&world.ok(&named)).unwrap();
    assert_eq!((&again, &again["reply"]["sequence"]), (&first, &json!(1)));
    drop(services);
    // Its command is gone, and so is the stream's memory of its id.
    world.jetstream.delete_stream("COMMANDS").await.unwrap();
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let late: Value = serde_json::from_str(&world.ok(&[&named[..], &["--timeout", "1"]].concat())).unwrap();
    assert_eq!(late["reply"], first["reply"]);
    let mut orders = world.jetstream.get_stream("ORDERS").await.unwrap();
    assert_eq!(orders.info().await.unwrap().state.consumer_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_not_permit_is_named() {
    let users = r#"authorization { users: [ { user: ada, password: ada, permissions: { publish: { allow: ["$JS.API.>"] } } },
        { user: root, password: root } ] }
        no_auth_user: root"#;
    let world = World::with(Server::builder().extra(users)).await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let ada = world.server.url().replace("nats://", "nats://ada:ada@");
    let module = crate::harness::module("order-fulfilment");
    for (arguments, subject) in [
        (&["send", "order-commands.ReserveInventory", "{}"][..], "order-commands.ReserveInventory"),
        (&["deploy", module.to_str().unwrap(), "--no-wait"], "$O.MILLSTREAM_MODULES."),
    ] {
        let said = crate::harness::refused(&ada, 1, arguments);
        assert!(said.contains(&format!("Permissions Violation for Publish to \"{subject}")), "{said}");
        assert!(said.contains("hint: permit it to this user"), "{said}");
    }
    let stream = world.jetstream.get_stream("COMMANDS").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_sent_is_refused_and_nothing_is_stored() {
    let world = World::with(Server::builder().max_payload(64 << 10)).await;
    // Too large with its headers only.
    let large = format!("\"{}\"", "x".repeat((64 << 10) - 2));
    world.stream("COMMANDS", &["order-commands.*"]).await;
    for name in ["ONE", "TWO"] {
        world.stream(name, &[&format!("{}.x", name.to_lowercase())]).await;
    }
    let cases: &[(&[&str], &str)] = &[
        (&["billing.Charge", "{}"], "no stream holds `billing.Charge`"),
        (&["order-commands.X", "{}", "--reply-subject", "orders.*"], "no stream holds `orders.*`"),
        (&["order-commands.X", "{}", "--reply-subject", "*.x"], "held by several streams: COMMANDS, ONE, TWO"),
        (&["order-commands.*", "{}"], "`order-commands.*` is not a subject"),
        (
            &["order-commands.X", "{}", "--reply-subject", "orders.*", "--reply-stream", "NOPE"],
            "there is no stream NOPE",
        ),
        (
            &["order-commands.X", "{}", "--reply-subject", "orders.*", "--reply-stream", "ONE"],
            "stream ONE does not hold `orders.*`",
        ),
        (&["order-commands.X", "{order}"], "the payload is not JSON"),
        (&["order-commands.X", "{}", "--id", "a\nb"], r#"--id is "a\nb""#),
        (&["order-commands.X", "{}", "--id", ""], "--id is empty"),
        (&["order-commands.X", "{}", "--type", ""], "--type is empty"),
        (&["order-commands.X", "{}", "--correlation", ""], "--correlation is empty"),
        (&["order-commands.X", &large], "the server takes 65536 (its max_payload)"),
    ];
    for (arguments, expected) in cases {
        let said = world.refused(2, &[&["send"], *arguments].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let stream = world.jetstream.get_stream("COMMANDS").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_of_the_example_answer_its_saga() {
    let world = shop().await;
    let _host = world.host(&[]);
    let client = async_nats::connect(world.server.url()).await.unwrap();
    let services = order_services::Services {
        commands: "COMMANDS".to_owned(),
        limit_cents: 1000,
        ..order_services::Services::default()
    };
    let services = tokio::spawn(services.run(client));
    // What nobody can read or answer is no reason to leave the others waiting.
    for kind in ["ReserveInventory", "PaintTheHouse"] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("ce-id", kind);
        headers.insert("ce-type", kind);
        let subject = format!("order-commands.{kind}");
        world.jetstream.publish_with_headers(subject, headers, "{".into()).await.unwrap().await.unwrap();
    }
    world.jetstream.publish("order-commands.ReserveInventory", "{}".into()).await.unwrap().await.unwrap();
    place(&world, "dear").await;
    let row = standing(&world, "dear", "compensated").await;
    assert_eq!(row["reason"], "1200 cents are over the limit of 1000");
    let body = r#"{"order":"cheap","customer":"C1","cents":900}"#;
    world.jetstream.publish("orders.OrderPlaced", body.into()).await.unwrap().await.unwrap();
    standing(&world, "cheap", "completed").await;
    let consumer = async || {
        let info = world.jetstream.get_stream("COMMANDS").await.ok()?.consumer_info("order-services").await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    };
    until("all commands are acknowledged", consumer).await;
    services.abort();
}
