//! The NATS service `millstream`: found by stock tools, answers what the command line says, refuses what it does not understand.

use std::process::Command;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use millstream::server::Server;
use serde_json::{Value, json};

use crate::harness::{Host, World, orders, until};
use crate::shop::{HANDLER, place, shop};

async fn ask(world: &World, subject: &str, payload: &str) -> (Value, HeaderMap) {
    let client = world.jetstream.client();
    let request = client.request(subject.to_owned(), payload.to_owned().into());
    let message = tokio::time::timeout(Duration::from_secs(20), request).await.expect("in time").expect("an answer");
    let headers = message.headers.unwrap_or_default();
    (serde_json::from_slice(&message.payload).unwrap_or(Value::Null), headers)
}

/// The code of a refusal, which ends in a hint.
async fn refusal(world: &World, subject: &str, payload: &str) -> String {
    let (_, headers) = ask(world, subject, payload).await;
    let text = headers.get("Nats-Service-Error").map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("hint: "), "{subject} {payload}: {text}");
    headers.get("Nats-Service-Error-Code").expect("a code").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_and_status_are_answered_as_the_command_line_tells_them() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    world.deploy("order-chain", "other", &["--set", "throttle_events_per_second=1"]);
    let _hosts = [world.host(&[("MILLSTREAM_HANDLER", "chain")]), world.host(&[("MILLSTREAM_HANDLER", "other")])];
    world.publish(&orders(0, 300)).await;
    world.caught_up("chain").await;
    let (rows, _) = ask(&world, "millstream.lag", "").await;
    let names: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["handler"].as_str()).collect();
    assert_eq!(names, ["chain", "other"]);
    let (rows, _) = ask(&world, "millstream.lag", "chain").await;
    let [told] = &world.lag("chain")[..] else { panic!("one row") };
    let row = &rows[0];
    for field in ["handler", "stream", "events", "seconds", "position", "head"] {
        assert_eq!(row[field], told[field], "{field}");
    }
    assert_eq!((row["position"].as_u64(), row["events"].as_u64()), (Some(300), Some(0)));
    let (status, _) = ask(&world, "millstream.status", "").await;
    assert_eq!(status["handlers"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["hosts"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["alerts"], json!([]));

    for (subject, payload, code) in [
        ("millstream.lag", "unknown", "404"),
        ("millstream.lag", "a.b", "400"),
        ("millstream.status", "[1]", "400"),
        ("millstream.explain", "", "400"),
        ("millstream.explain", r#"{"handler":"chain","key":"x"}"#, "400"),
        ("millstream.explain", r#"{"handler":"unknown","key":"x"}"#, "404"),
    ] {
        assert_eq!(refusal(&world, subject, payload).await, code, "{subject} {payload}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_is_told_as_the_command_line_tells_it() {
    let world = shop(Duration::from_secs(120), &[]).await;
    let _host = world.host(&[]);
    place(&world, 0..1).await;
    let key = until("an instance is there", async || {
        let rows = world.ok(&["sagas", HANDLER, "--json"]);
        let row: Value = serde_json::from_str(rows.lines().next()?).expect("JSON");
        Some(row["key"].as_str()?.to_owned())
    })
    .await;
    let asked = json!({ "handler": HANDLER, "key": key }).to_string();
    let (story, _) = ask(&world, "millstream.explain", &asked).await;
    let told: Value = serde_json::from_str(&world.ok(&["explain", HANDLER, &key, "--json"])).expect("JSON");
    for field in ["handler", "key", "correlation", "life"] {
        assert_eq!(story[field], told[field], "{field}");
    }
    assert_eq!(story["events"][0]["event"], told["events"][0]["event"]);
    let unknown = json!({ "handler": HANDLER, "key": "nobody's\u{1b}[2J" }).to_string();
    assert_eq!(refusal(&world, "millstream.explain", &unknown).await, "404");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_tools_find_the_service_and_ask_it() {
    if Command::new("nats").arg("--version").output().is_err() {
        eprintln!("there is no nats CLI here: not tried");
        return;
    }
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let _host = world.host(&[]);
    world.caught_up("chain").await;
    let nats = |arguments: &[&str]| {
        let output = Command::new("nats").args(["--server", &world.server.url()]).args(arguments).output();
        let output = output.expect("nats runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    until("the service is listed", async || {
        let listed: Value = serde_json::from_str(&nats(&["micro", "list", "--json"])).ok()?;
        let listed = listed.to_string();
        (listed.contains(r#""name":"millstream""#) && listed.contains(env!("CARGO_PKG_VERSION"))).then_some(())
    })
    .await;
    let info = nats(&["micro", "info", "millstream"]);
    for subject in ["millstream.lag", "millstream.status", "millstream.explain"] {
        assert!(info.contains(subject), "{info}");
    }
    let rows: Value = serde_json::from_str(nats(&["req", "--raw", "millstream.lag", ""]).trim()).expect("JSON");
    assert_eq!(rows[0]["handler"], "chain");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_server_would_not_carry_is_refused_by_name() {
    let world = World::with(Server::builder().extra("max_payload: 2100")).await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(0, 1)).await;
    // Deployed as a stock tool would: a module does not fit through here.
    let bucket = jetstream::kv::Config { bucket: "MILLSTREAM_HANDLERS".to_owned(), ..Default::default() };
    let bucket = world.jetstream.create_key_value(bucket).await.expect("a bucket");
    let deployment = json!({ "digest": "0".repeat(64), "subjects": ["orders.>"] }).to_string();
    for number in 0..12 {
        bucket.put(format!("handler-{number}"), deployment.clone().into()).await.expect("deployed");
    }
    let _host = Host::start(&world.server.url(), &[("MILLSTREAM_HANDLER", "none")]);
    let client = world.jetstream.client();
    until("the service is there", async || client.request("millstream.lag", "handler-1".into()).await.ok()).await;
    assert_eq!(refusal(&world, "millstream.lag", "").await, "413");
    let (rows, _) = ask(&world, "millstream.lag", "handler-1 handler-2").await;
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
}
