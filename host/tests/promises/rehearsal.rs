//! A new version of a saga rehearses the past of live instances before it is deployed: one that goes on with all of them takes
//! over, one that does not is refused, naming them. `scripted-next` does otherwise than `scripted` where an event tells it to.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{World, module, until};
use crate::hostile::file;
use crate::reload::variant;
use crate::services::Services;

/// A world with the saga `scripted` on a host.
pub async fn scripted() -> (World, crate::harness::Host) {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world.deploy("scripted", "saga", &["--label", "one"]);
    let host = world.host(&[]);
    (world, host)
}

/// Tells instances what to do, in order.
pub async fn tell(world: &World, scripts: impl IntoIterator<Item = Value>) {
    let mut acks = Vec::new();
    for script in scripts {
        let event = json!({ "eventType": "Told", "payload": script }).to_string();
        acks.push(world.jetstream.publish("scripts.Told", event.into()).await.expect("sent"));
    }
    for ack in acks {
        ack.await.expect("stored");
    }
}

fn step(name: &str) -> Value {
    json!({ "step": { "name": name, "undo": "command" } })
}

pub fn begin(key: &str) -> Value {
    json!({ "key": key, "starts": true, "asks": [step("one")] })
}

/// An instance's next event, at which the next version does otherwise.
pub fn go_on(key: &str, next: &Value) -> Value {
    json!({ "key": key, "asks": [step("two")], "next": next })
}

/// Documents, once all instances have seen so many events.
pub async fn seen(world: &World, instances: usize, events: u64) -> BTreeMap<String, Value> {
    until("all events are in the documents", async || {
        let documents = world.documents("saga").await;
        let documents = documents.into_iter().map(|(key, text)| (key, serde_json::from_str(&text).expect("JSON")));
        let documents: BTreeMap<String, Value> = documents.collect();
        let all = documents.values().filter(|document| document["state"]["seen"] == events).count();
        (all == instances).then_some(documents)
    })
    .await
}

fn deploy(world: &World, path: &Path, more: &[&str]) -> std::process::Output {
    let path = path.to_str().expect("path");
    world.cli(&[&["deploy", path, "--name", "saga", "--json", "--label", "two"], more].concat())
}

/// What a deployment that went through says.
#[track_caller]
fn deployed(world: &World, path: &Path, more: &[&str]) -> Value {
    let output = deploy(world, path, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What a refused one says: to programs and to people.
#[track_caller]
fn refused(world: &World, path: &Path, more: &[&str]) -> (Value, String) {
    let output = deploy(world, path, more);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), stderr)
}

/// Key and reason of each instance that diverges.
fn diverging(said: &Value) -> Vec<(String, String)> {
    let all = said["live_instances"]["diverging"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    all.iter().map(|each| (text(&each["key"]), text(&each["reason"]))).collect()
}

/// The labels that were deployed, newest first, with their notes.
fn versions(world: &World) -> Vec<(String, String)> {
    let lines = world.ok(&["list", "--versions", "saga", "--json"]);
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.map(|row| (text(&row["label"]), text(&row["note"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compatible_version_takes_over_a_thousand_live_instances() {
    let (world, _host) = scripted().await;
    let keys: Vec<String> = (0..1000).map(|number| format!("k{number}")).collect();
    tell(&world, keys.iter().map(|key| begin(key))).await;
    tell(&world, keys.iter().map(|key| go_on(key, &Value::Null))).await;
    // One that is over is not live.
    tell(&world, [json!({ "key": "over", "starts": true, "asks": ["complete"] })]).await;
    seen(&world, 1000, 2).await;

    let said = deployed(&world, &module("scripted-next"), &[]);
    let expected = json!({
        "live": 1000, "looked_at": 1000, "replayed": 1000, "handed_over_only": 0, "events": 2001,
        "other_state": 1000, "other_payload": 0, "diverging": [],
    });
    assert_eq!(said["live_instances"], expected, "{said:#}");
    assert!(said["state"].as_str().expect("a state").starts_with("running on "), "{said:#}");

    tell(&world, keys.iter().map(|key| json!({ "key": key, "asks": ["complete"] }))).await;
    let documents = seen(&world, 1000, 3).await;
    let digest: String = said["digest"].as_str().expect("a digest").chars().take(12).collect();
    for key in &keys {
        let document = &documents[key];
        assert_eq!(
            (&document["status"], &document["state"]["asked"]),
            (&json!("completed"), &json!(1)),
            "{document:#}"
        );
        let last = document["history"].as_array().and_then(|history| history.last()).expect("a transition");
        assert_eq!(last["digest"], digest.as_str(), "the new module decided it");
    }
    let commands = world.jetstream.get_stream("COMMANDS").await.expect("the stream").cached_info().state.messages;
    assert_eq!(commands, 2000, "the rehearsal sent nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_diverges_on_three_of_a_thousand_is_refused_naming_the_three() {
    let (world, _host) = scripted().await;
    let keys: Vec<String> = (0..1000).map(|number| format!("k{number}")).collect();
    let others = BTreeMap::from([("k7", "trap"), ("k500", "more"), ("k993", "nothing")]);
    tell(&world, keys.iter().map(|key| begin(key))).await;
    tell(&world, keys.iter().map(|key| go_on(key, &json!(others.get(key.as_str()))))).await;
    seen(&world, 1000, 2).await;
    let next = module("scripted-next");

    for more in [&[][..], &["--dry-run"]] {
        let (said, told) = refused(&world, &next, more);
        let expected = [
            ("k500", "it sends more to script-commands.more, and the running module does not"),
            ("k7", "trap: the handler panicked: the next version cannot take this"),
            ("k993", "the running module sends two to script-commands.two for step two, and it does not"),
        ];
        let expected = expected.map(|(key, reason)| (key.to_owned(), reason.to_owned()));
        let found = diverging(&said);
        assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["k500", "k7", "k993"]);
        for ((_, found), (key, reason)) in found.iter().zip(&expected) {
            assert!(found.starts_with(reason), "{key}: {found}");
        }
        assert_eq!(said["live_instances"]["replayed"], 1000, "{said:#}");
        let at = &said["live_instances"]["diverging"][0]["at"];
        assert_eq!((&at["stream"], &at["sequence"]), (&json!("SCRIPTS"), &json!(1501)));
        for words in ["cannot go on with 3 live instances", "k500 at SCRIPTS:1501 (Told): it sends", "--force"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(versions(&world), [("one".to_owned(), String::new())], "nothing was deployed");
    }

    let said = deployed(&world, &next, &["--force"]);
    assert_eq!(diverging(&said).len(), 3, "{said:#}");
    let note = "forced: 3 of 1000 live instances diverge: k500, k7, k993";
    assert_eq!(versions(&world)[0], ("two".to_owned(), note.to_owned()));
    // Said again it is the same deployment.
    deployed(&world, &next, &[]);
    assert_eq!(versions(&world).len(), 2);

    // And the way back is open: what ran before arrives at what is stored, and the one that was forced does not.
    let said = deployed(&world, &module("scripted"), &[]);
    assert_eq!((diverging(&said), &said["live_instances"]["replayed"]), (Vec::new(), &json!(1000)), "{said:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_as_a_divergence_and_what_does_not() {
    let (world, _host) = scripted().await;
    let nexts = ["trap", "refuse", "nothing", "more", "payload", "pass-by"];
    tell(&world, nexts.iter().map(|key| begin(key))).await;
    tell(&world, ["note", "number"].map(begin)).await;
    tell(&world, nexts.iter().map(|next| go_on(next, &json!(next)))).await;
    tell(
        &world,
        [("note", json!("a text")), ("number", json!(7))].map(|(key, note)| json!({ "key": key, "note": note })),
    )
    .await;
    seen(&world, 8, 2).await;

    let (said, told) = refused(&world, &module("scripted-next"), &[]);
    let reasons: BTreeMap<String, String> = diverging(&said).into_iter().collect();
    let expected = [
        ("trap", "trap: the handler panicked"),
        ("refuse", "refused: the next version does not take this"),
        ("nothing", "the running module sends two"),
        ("more", "it sends more to script-commands.more"),
        ("pass-by", "it passes the event by"),
        ("note", "it cannot go on from its document: the document of `note` does not read as this handler's type"),
    ];
    assert_eq!(reasons.len(), expected.len(), "{told}");
    for (key, reason) in expected {
        assert!(reasons[key].starts_with(reason), "{key}: {}", reasons[key]);
    }
    let counts = &said["live_instances"];
    assert_eq!((&counts["live"], &counts["replayed"], &counts["other_payload"]), (&json!(8), &json!(8), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_past_is_gone_is_handed_over_and_a_sample_is_said_to_be_one() {
    let (world, _host) = scripted().await;
    let keys: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    tell(&world, keys.iter().map(|key| begin(key))).await;
    tell(&world, keys[..3].iter().map(|key| json!({ "key": key, "note": "a text" }))).await;
    tell(&world, keys[3..].iter().map(|key| json!({ "key": key, "next": "trap" }))).await;
    seen(&world, 50, 2).await;
    let stream = world.jetstream.get_stream("SCRIPTS").await.expect("the stream");
    // The beginnings of all but the last ten are gone.
    stream.purge().sequence(41).await.expect("purged");

    let (said, told) = refused(&world, &module("scripted-next"), &[]);
    let counts = &said["live_instances"];
    assert_eq!((&counts["replayed"], &counts["handed_over_only"]), (&json!(10), &json!(40)), "{said:#}");
    let found: Vec<String> = diverging(&said).into_iter().map(|(key, _)| key).collect();
    let expected: Vec<String> =
        ["k0", "k1", "k2"].iter().map(ToString::to_string).chain((40..50).map(|number| format!("k{number}"))).collect();
    assert_eq!(found, expected);
    assert!(told.contains("10 replayed from 60 events, 40 only handed over"), "{told}");

    let output = deploy(&world, &module("scripted-next"), &["--sample", "10", "--force"]);
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let counts = &said["live_instances"];
    assert_eq!((&counts["live"], &counts["looked_at"]), (&json!(50), &json!(10)), "{said:#}");
    let back = world.ok(&["deploy", module("scripted").to_str().expect("path"), "--name", "saga", "--sample", "10"]);
    assert!(back.is_empty(), "stdout is data");
}

/// Declines the payment of the poor and never books for the unlucky; of the slow, the first command goes unheard.
fn moody(command: &crate::services::Command) -> Option<crate::services::Answer> {
    let order = command.payload["order"].as_str().unwrap_or_default().to_owned();
    let done = |kind: &str| Some((kind.to_owned(), json!({ "order": order })));
    match command.kind.as_str() {
        "ReserveInventory" if order.starts_with("slow") && command.attempt == 1 => None,
        "ReserveInventory" => done("InventoryReserved"),
        "ChargePayment" if order.starts_with("poor") => {
            Some(("PaymentDeclined".to_owned(), json!({ "order": order, "reason": "no money" })))
        }
        "ChargePayment" => done("PaymentCharged"),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_deadlines_and_undos_of_the_past_are_played_too() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["one", "two"].map(|name| file(&folder, name, &variant("order-fulfilment", name)));
    deployed(&world, &paths[0], &["--no-wait"]);
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", moody).await;
    for number in 0..20 {
        for kind in ["usual", "slow", "poor", "unlucky"] {
            let order = format!("{kind}-{number}");
            let express = kind == "slow" || kind == "unlucky";
            let payload = json!({ "order": order, "customer": "C", "cents": 5, "express": express });
            let event = json!({ "eventType": "OrderPlaced", "eventId": format!("placed-{order}"), "payload": payload });
            world.jetstream.publish("orders.OrderPlaced", event.to_string().into()).await.unwrap().await.unwrap();
        }
    }
    // Where each comes to rest: an undo that nobody answers lasts.
    let wanted = |document: &Value| match (document["status"].as_str(), document["steps"].as_array()) {
        (Some("compensating"), Some(steps)) => steps.iter().any(|step| step["state"] == "undoing"),
        (Some("running"), Some(steps)) => steps.iter().any(|step| step["step"] == "ship" && step["attempt"] == 1),
        _ => false,
    };
    until("all have come to rest", async || {
        let documents = world.documents("saga").await;
        let resting = documents.values().filter(|text| wanted(&serde_json::from_str(text).expect("JSON"))).count();
        (resting == 80).then_some(())
    })
    .await;
    let said = deployed(&world, &paths[1], &["--dry-run"]);
    let counts = &said["live_instances"];
    assert_eq!((&counts["live"], &counts["diverging"]), (&json!(80), &json!([])), "{said:#}");
    assert_eq!((&counts["replayed"], &counts["other_state"]), (&json!(80), &json!(0)), "{said:#}");
    let documents = world.documents("saga").await;
    let played = |words: &str| documents.values().filter(|text| text.contains(words)).count();
    assert!(played("sent again") >= 20 && played("no answer within") >= 20, "there were timers to play");
}
