//! An event that cannot be applied stops one key and nothing else: it is set aside with all later ones of its key, in order, and
//! taken up again when somebody asks for it. Documents hash their events, so any that is lost, doubled or swapped is seen.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use millstream::journal::Counts;
use serde_json::{Value, json};

use crate::harness::{Documents, World, module, outcomes, until};

/// An event of the handler `fragile`.
#[derive(Clone, Debug)]
pub struct Told {
    pub keys: Vec<String>,
    pub number: u64,
    pub harm: Option<&'static str>,
}

pub fn told(key: &str, number: u64) -> Told {
    Told { keys: vec![key.to_owned()], number, harm: None }
}

pub fn harmful(key: &str, number: u64, harm: &'static str) -> Told {
    Told { harm: Some(harm), ..told(key, number) }
}

/// What `fragile` must hold after these events, folded here: hash and count by key.
pub fn fold(events: &[Told]) -> Documents {
    let mut hashes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in events {
        for key in &event.keys {
            let (hash, count) = hashes.entry(key).or_default();
            *hash = hash.wrapping_mul(31).wrapping_add(event.number);
            *count += 1;
        }
    }
    let document = |(hash, events): (u64, u64)| format!(r#"{{"hash":{hash},"events":{events}}}"#);
    hashes.into_iter().map(|(key, hash)| (key.to_owned(), document(hash))).collect()
}

/// The same, while what harms `fragile` is parked with all that follows it.
pub fn fold_parked(events: &[Told]) -> Documents {
    let mut parked: Vec<&str> = Vec::new();
    let mut through = Vec::new();
    for event in events {
        if event.harm.is_some() {
            parked.extend(event.keys.iter().map(String::as_str));
        }
        let keys = event.keys.iter().filter(|key| !parked.contains(&key.as_str())).cloned().collect();
        through.push(Told { keys, ..event.clone() });
    }
    fold(&through)
}

pub async fn publish(world: &World, events: &[Told]) {
    for part in events.chunks(500) {
        let mut acks = Vec::with_capacity(part.len());
        for Told { keys, number, harm } in part {
            let body = json!({ "keys": keys, "number": number, "harm": harm, "at": null });
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("told-{number}"));
            let sent = world.jetstream.publish_with_headers("told.Told", headers, body.to_string().into()).await;
            acks.push(sent.expect("sent"));
        }
        for ack in acks {
            ack.await.expect("stored");
        }
    }
}

pub async fn world() -> World {
    let world = World::new().await;
    world.stream("TOLD", &["told.>"]).await;
    world
}

/// What is parked for a handler, as `millstream dead` lists it.
pub fn dead(world: &World, handler: &str) -> Vec<Value> {
    let text = world.ok(&["dead", handler, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Waits until the handler has decided so many events, and answers what became of them.
pub async fn decided(world: &World, handler: &str, events: usize) -> Counts {
    until(&format!("{events} events decided"), async || {
        world.last_record(handler).await.map(|(_, counts, _)| counts).filter(|counts| counts.delivered >= events as u64)
    })
    .await
}

fn deploy(world: &World, module: &str, more: &[&str]) {
    world.deploy(module, "fragile", more);
}

/// `fragile-mended` in the place of `fragile`, running.
pub async fn mend(world: &World) {
    world.ok(&["deploy", module("fragile-mended").to_str().expect("path"), "--name", "fragile"]);
}

/// Forty keys, ten events each; what is in `harms` happens to the fourth event of its key.
fn story(harms: &[(&str, &'static str)]) -> Vec<Told> {
    let mut events = Vec::new();
    for round in 0..10 {
        for number in 0..40 {
            let key = format!("k{number}");
            let mut event = told(&key, events.len() as u64 + 1);
            event.harm = harms.iter().find(|(harmed, _)| *harmed == key && round == 3).map(|(_, harm)| *harm);
            events.push(event);
        }
    }
    events
}

/// Each way to fail that has a key, and the class under which it is listed.
const HARMS: [(&str, &str, &str); 6] = [
    ("k1", "refuse", "refused"),
    ("k2", "trap", "trap"),
    ("k3", "spin", "fuel"),
    ("k4", "hoard", "memory"),
    ("k5", "grow", "too-large"),
    ("k6", "babble", "output"),
];

fn settled_counts(counts: Counts) -> Counts {
    assert_eq!(outcomes(&counts), counts.delivered, "each event has one outcome");
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_fail_parks_its_key_alone_and_a_mended_module_takes_all_of_it_up_in_order() {
    let world = world().await;
    let events = story(&HARMS.map(|(key, harm, _)| (key, harm)));
    let limits = ["limits.fuel_per_call=300000000", "limits.output_bytes=4194304"];
    let limits: Vec<&str> = limits.iter().flat_map(|limit| ["--set", limit]).collect();
    deploy(&world, "fragile", &limits);
    publish(&world, &events).await;
    let mut host = world.host(&[]);
    let counts = settled_counts(decided(&world, "fragile", events.len()).await);
    assert_eq!((counts.applied, counts.parked), (400 - 6 * 7, 6 * 7));
    world.settled("fragile", &fold_parked(&events)).await;
    let mut rows = dead(&world, "fragile");
    rows.sort_by_key(|row| row["key"].as_str().map(str::to_owned));
    let seen: Vec<_> =
        rows.iter().map(|row| (row["key"].as_str(), row["class"].as_str(), row["units"].as_u64())).collect();
    let expected: Vec<_> = HARMS.iter().map(|(key, _, class)| (Some(*key), Some(*class), Some(7))).collect();
    assert_eq!(seen, expected);
    assert!(rows[1]["reason"].as_str().is_some_and(|reason| reason.contains("told to trap")), "{}", rows[1]);
    assert!(rows[1]["backtrace"].as_str().is_some_and(|frames| frames.contains("fragile")), "{}", rows[1]);
    let row =
        until("parked keys are listed", async || Some(world.listed("fragile")).filter(|row| row["parked_keys"] == 6))
            .await;
    assert_eq!(row["state"], "running");

    let refused = world.refused(1, &["redrive", "fragile", "--key", "k2"]);
    assert!(refused.contains("attempt 2") && refused.contains("told to trap"), "{refused}");
    mend(&world).await;
    let said = world.ok(&["redrive", "fragile", "--all", "--json"]);
    let outcome: Value = serde_json::from_str(said.trim()).expect("JSON");
    assert_eq!((outcome["units"].as_u64(), outcome["keys"].as_u64()), (Some(42), Some(6)), "{outcome}");
    world.settled("fragile", &fold(&events)).await;
    assert!(dead(&world, "fragile").is_empty());
    let counts = settled_counts(decided(&world, "fragile", events.len()).await);
    assert_eq!((counts.applied, counts.parked), (400, 0));
    let more: Vec<Told> = (401..=440).map(|number| told(&format!("k{}", number % 40), number)).collect();
    publish(&world, &more).await;
    world.settled("fragile", &fold(&[events, more].concat())).await;
    assert!(host.ended().is_none(), "the host lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_never_got_as_far_as_a_key_are_parked_by_themselves() {
    let world = world().await;
    let mut events = story(&[]);
    for (place, harm) in [(50, "trap-in-stage"), (90, "long-key")] {
        events[place].harm = Some(harm);
    }
    deploy(&world, "fragile", &[]);
    publish(&world, &events[..200]).await;
    let torn = world.jetstream.publish("told.Told", r#"{"keys":["k1"]}"#.into()).await.expect("sent");
    torn.await.expect("stored");
    let envelope = r#"{"eventType":"Told","time":"yesterday","timestamp":false,"payload":{}}"#;
    let broken = world.jetstream.publish("told.Told", envelope.into()).await.expect("sent");
    broken.await.expect("stored");
    publish(&world, &events[200..]).await;
    let _host = world.host(&[]);
    let counts = settled_counts(decided(&world, "fragile", 402).await);
    assert_eq!((counts.applied, counts.parked), (398, 4));
    // Nothing follows them: later events of their keys are applied.
    let whole: Vec<Told> = events.iter().filter(|event| event.harm.is_none()).cloned().collect();
    world.settled("fragile", &fold(&whole)).await;
    let rows = dead(&world, "fragile");
    let seen: Vec<_> = rows.iter().map(|row| (row["key"].as_str(), row["class"].as_str().expect("a class"))).collect();
    assert_eq!(seen, [(None, "trap"), (None, "key-too-long"), (None, "undecodable"), (None, "undecodable")]);
    each_is_looked_at_by_itself(&world, &rows);
    mend(&world).await;
    let left = world.refused(1, &["redrive", "fragile", "--all"]);
    assert!(left.contains("2 stay parked"), "{left}");
    let counts = settled_counts(decided(&world, "fragile", 402).await);
    assert_eq!((counts.applied, counts.parked), (400, 2));
    let letter = dead(&world, "fragile")[0]["letter"].to_string();
    let asked = world.refused(2, &["discard", "fragile", "--letter", &letter, "--reason", "nonsense"]);
    assert!(asked.contains("nobody is there to be asked"), "{asked}");
    world.ok(&["discard", "fragile", "--class", "undecodable", "--reason", "nonsense", "--yes"]);
    assert!(dead(&world, "fragile").is_empty());
}

/// Each of four events without a key is saved and tried, alone and among all, under the module that it fails at.
fn each_is_looked_at_by_itself(world: &World, rows: &[Value]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("letter.json");
    let file = file.to_str().expect("path");
    for row in rows {
        let letter = row["letter"].to_string();
        world.ok(&["dead", "fragile", "--letter", &letter, "--save", file]);
        let capsule: Value = serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON");
        assert_eq!(capsule["events"].as_array().map(Vec::len), Some(1), "{capsule}");
        assert_eq!(capsule["events"][0]["sequence"], row["sequence"]);
        assert_eq!(forecast(world, &["--letter", &letter]), [(letter, row["class"].as_str().map(str::to_owned))]);
    }
    let expected: Vec<_> =
        rows.iter().map(|row| (row["letter"].to_string(), row["class"].as_str().map(str::to_owned))).collect();
    assert_eq!(forecast(world, &["--all"]), expected);
}

/// What a dry run foresees: letters, and of what each is guilty; it fails as a redrive would.
fn forecast(world: &World, which: &[&str]) -> Vec<(String, Option<String>)> {
    let output = world.cli(&[&["redrive", "fragile", "--dry-run", "--json"], which].concat());
    let rows = crate::harness::json_lines(&String::from_utf8_lossy(&output.stdout));
    let seen: Vec<(String, Option<String>)> =
        rows.iter().map(|row| (row["letter"].to_string(), row["fails"]["class"].as_str().map(str::to_owned))).collect();
    let code = i32::from(seen.iter().any(|(_, class)| class.is_some()));
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_done_is_kept_until_it_is_done_or_taken_back() {
    let world = world().await;
    let events = story(&[("k1", "trap"), ("k2", "refuse")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    until("both keys are parked", async || (dead(&world, "fragile").len() == 2).then_some(())).await;
    drop(host);
    let said = world.refused(1, &["redrive", "fragile", "--key", "k1", "--timeout", "0"]);
    assert!(said.contains("it stays asked for") && said.contains("redrive fragile --cancel"), "{said}");
    let others: [&[&str]; 3] = [
        &["redrive", "fragile", "--key", "k2", "--timeout", "0"],
        &["redrive", "fragile", "--all", "--timeout", "0"],
        &["discard", "fragile", "--key", "k1", "--reason", "no", "--yes", "--timeout", "0"],
    ];
    for other in others {
        let said = world.refused(1, other);
        assert!(said.contains("redrive of key \"k1\" was asked for") && said.contains("--cancel"), "{said}");
    }
    let said = world.refused(1, &["redrive", "fragile", "--key", "k1", "--timeout", "0"]);
    assert!(said.contains("the same was asked for"), "{said}");

    let taken: Value =
        serde_json::from_str(world.ok(&["redrive", "fragile", "--cancel", "--json"]).trim()).expect("JSON");
    assert_eq!(taken["what"], json!({ "kind": "key", "key": "k1" }));
    let said = world.refused(2, &["redrive", "fragile", "--cancel"]);
    assert!(said.contains("nothing that was asked for waits for fragile"), "{said}");
    world.refused(1, &["redrive", "fragile", "--key", "k2", "--timeout", "0"]);
    deploy(&world, "fragile-mended", &[]);
    let _host = world.host(&[]);
    until("the second key alone is taken up", async || {
        let rows = dead(&world, "fragile");
        (rows.len() == 1 && rows[0]["key"] == "k1").then_some(())
    })
    .await;

    let bucket = world.jetstream.get_key_value("MILLSTREAM_REDRIVES").await.expect("the bucket");
    let is_done = async || {
        let entry = bucket.get("fragile.1").await.expect("an answer").expect("a value");
        let entry: Value = serde_json::from_slice(&entry).expect("JSON");
        entry["wanted"].is_null().then_some(())
    };
    until("it is said to be done", is_done).await;
    bucket.put("fragile.1", "garbage".into()).await.expect("stored");
    assert_eq!(dead(&world, "fragile").len(), 1);
    let said = world.refused(1, &["redrive", "fragile", "--all"]);
    assert!(said.contains("the wish in bucket MILLSTREAM_REDRIVES under key fragile.1 cannot be read"), "{said}");
    assert!(said.contains("nats kv del MILLSTREAM_REDRIVES fragile.1 -f"), "{said}");
    bucket.delete("fragile.1").await.expect("deleted");
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_record_can_hold_fails_in_a_trial_as_it_does_in_the_host() {
    let world = world().await;
    let events = story(&[("k5", "grow"), ("k6", "babble")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let _host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    let rows =
        until("both keys are parked", async || Some(dead(&world, "fragile")).filter(|rows| rows.len() == 2)).await;
    let told: Vec<_> =
        rows.iter().map(|row| (row["letter"].to_string(), row["class"].as_str().map(str::to_owned))).collect();
    assert!(told.iter().any(|(_, class)| class.as_deref() == Some("too-large")), "{told:?}");
    assert_eq!(forecast(&world, &["--all"]), told);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k5.json");
    let file = file.to_str().expect("path");
    world.ok(&["dead", "fragile", "--key", "k5", "--save", file]);
    let (bad, good) = (module("fragile"), module("fragile-mended"));
    let (bad, good) = (bad.to_str().expect("path"), good.to_str().expect("path"));
    let said = world.refused(1, &["replay", file, "--module", bad]);
    assert!(said.contains("(too-large)") && said.contains("may have 1044480"), "{said}");
    world.ok(&["replay", file, "--module", good]);
    let mut capsule: Value = serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON");
    assert_eq!(capsule["record_bytes"], 1_044_480);
    // One that was saved before capsules said so.
    capsule.as_object_mut().expect("an object").remove("record_bytes");
    std::fs::write(file, capsule.to_string()).expect("written");
    let said = world.refused(1, &["replay", file, "--module", bad]);
    assert!(said.contains("may have 1044480"), "{said}");
    capsule["record_bytes"] = json!(10);
    std::fs::write(file, capsule.to_string()).expect("written");
    let said = world.refused(1, &["replay", file, "--module", good]);
    assert!(said.contains("may have 10 "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused() {
    let world = world().await;
    deploy(&world, "fragile", &[]);
    let said = world.refused(2, &["dead", "nosuchhandler"]);
    assert!(said.contains("handler nosuchhandler is not deployed"), "{said}");
    assert!(dead(&world, "fragile").is_empty());
    for command in ["dead", "redrive"] {
        let said = world.refused(2, &[command, "fragile", "--class", "nonsense"]);
        assert!(said.contains("undecodable") && said.contains("too-large"), "{said}");
    }
    let said = world.refused(2, &["discard", "fragile", "--key", "k1", "--reason", "", "--yes"]);
    assert!(said.contains("--reason"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_several_keys_parks_those_that_fail_and_goes_on_under_the_others() {
    let world = world().await;
    let mut events = story(&[]);
    for harm in ["refuse", "trap"] {
        let number = events.len() as u64 + 1;
        let keys = ["k7", "k8", "k9", "fresh"].map(|key| format!("{key}{}", if key == "fresh" { harm } else { "" }));
        events.push(Told { keys: keys.to_vec(), number, harm: Some(harm) });
    }
    deploy(&world, "fragile", &[]);
    let (harmful, plain): (Vec<Told>, Vec<Told>) = events.iter().cloned().partition(|event| event.harm.is_some());
    publish(&world, &plain).await;
    for Told { keys, number, harm } in &harmful {
        // It fails only where nothing was before.
        let body = json!({ "keys": keys, "number": number, "harm": harm, "at": "0" });
        world.jetstream.publish("told.Told", body.to_string().into()).await.expect("sent").await.expect("stored");
    }
    let _host = world.host(&[]);
    let counts = settled_counts(decided(&world, "fragile", events.len()).await);
    assert_eq!((counts.applied, counts.parked), (400, 2));
    let mut expected = fold(&events);
    expected.retain(|key, _| !key.starts_with("fresh"));
    world.settled("fragile", &expected).await;
    let mut keys: Vec<Value> = dead(&world, "fragile").iter().map(|row| row["key"].clone()).collect();
    keys.sort_by_key(Value::to_string);
    assert_eq!(keys, ["freshrefuse", "freshtrap"]);
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    assert_eq!(settled_counts(decided(&world, "fragile", events.len()).await).applied, 402);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_parked_keys_stop_the_handler_and_nothing_is_lost() {
    let world = world().await;
    let harms = ["k1", "k2", "k3", "k4", "k5"].map(|key| (key, "refuse"));
    let events = story(&harms);
    for (name, setting, parked, said) in [
        ("never", "max_parked_keys=0", 0, "(refused): told to refuse"),
        ("full", "max_parked_keys=2", 2, "2 keys are parked, and no more may be"),
        ("bad", "max_failing_keys=3", 3, "3 keys were parked within 1000 events"),
    ] {
        world.deploy("fragile", name, &["--set", setting]);
        publish(&world, &events).await;
        let mut host = world.host(&[]);
        let row = world.in_state(name, "failing").await;
        let reason = row["reason"].as_str().expect("a reason");
        let event = format!("TOLD:{} ", 3 * 40 + 2 + parked);
        assert!(reason.contains(said) && reason.contains(&event), "{name}: {reason}");
        assert_eq!(dead(&world, name).len(), parked, "{name}");
        let (_, counts, _) = world.last_record(name).await.expect("a record");
        assert_eq!(settled_counts(counts).delivered as usize, 3 * 40 + 1 + parked, "{name}");
        world.settled(name, &fold_parked(&events[..3 * 40 + 1 + parked])).await;
        // A restart parks no more.
        host.kill();
        drop(host);
        let host = world.host(&[]);
        world.in_state(name, "failing").await;
        assert_eq!(dead(&world, name).len(), parked, "{name}");
        world.ok(&["deploy", module("fragile-mended").to_str().expect("path"), "--name", name]);
        decided(&world, name, events.len()).await;
        if parked > 0 {
            world.ok(&["redrive", name, "--all"]);
        }
        world.settled(name, &fold(&events)).await;
        world.ok(&["remove", name, "--with-documents", "--yes"]);
        drop(host);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_module_that_fails_within_its_probation_parks_nothing() {
    let world = world().await;
    deploy(&world, "fragile-mended", &[]);
    let _host = world.host(&[]);
    let events = story(&[("k1", "refuse")]);
    publish(&world, &events[..50]).await;
    world.settled("fragile", &fold(&events[..50])).await;
    world.ok(&["deploy", module("fragile").to_str().expect("path"), "--name", "fragile"]);
    publish(&world, &events[50..]).await;
    world.settled("fragile", &fold(&events)).await;
    assert!(dead(&world, "fragile").is_empty());
    let refused = until("what was refused is told", async || {
        Some(world.listed("fragile")).filter(|row| row["refused"].is_object())
    })
    .await;
    assert!(refused["refused"]["reason"].as_str().is_some_and(|reason| reason.contains("told to refuse")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_is_taken_home_and_tried_on_modules_without_a_server() {
    let world = world().await;
    let events = story(&[("k2", "trap")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    world.settled("fragile", &fold_parked(&events)).await;
    let tried = world.cli(&["redrive", "fragile", "--all", "--dry-run"]);
    let told = String::from_utf8_lossy(&tried.stdout);
    assert!(tried.status.code() == Some(1) && told.contains("fails at TOLD:123: trap"), "{told}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k2.json");
    let file = file.to_str().expect("path");
    world.ok(&["dead", "fragile", "--key", "k2", "--save", file]);
    drop(host);
    let (bad, good) = (module("fragile"), module("fragile-mended"));
    let nowhere = "nats://127.0.0.1:1";
    let said = crate::harness::refused(nowhere, 1, &["replay", file, "--module", bad.to_str().expect("path")]);
    assert!(
        said.contains("TOLD:123, fails (trap)") && said.contains("told to trap") && said.contains("fragile"),
        "{said}"
    );
    let output = crate::harness::cli(nowhere, &["replay", file, "--module", good.to_str().expect("path")]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), fold(&events)["k2"]);
    std::fs::write(file, r#"{"millstream_capsule":1}"#).expect("written");
    crate::harness::refused(nowhere, 2, &["replay", file, "--module", bad.to_str().expect("path")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_plain_messages_and_a_failure_is_told_once() {
    let world = world().await;
    let events = story(&[("k1", "trap")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let _host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    until("all letters are stored", async || (dead(&world, "fragile")[0]["units"] == 7).then_some(())).await;
    let stream = world.jetstream.get_stream("MILLSTREAM_DEAD").await.expect("the stream");
    let letter = stream.get_raw_message(1).await.expect("a letter");
    assert_eq!(letter.subject.as_str(), "millstream.dead.fragile.1.k1");
    let body: Value = serde_json::from_slice(&letter.payload).expect("the event's body");
    assert_eq!(body["number"], 122);
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    assert_eq!(
        ["Millstream-Class", "Millstream-Key", "Millstream-Stream", "Millstream-Sequence", "Millstream-Unit"]
            .map(header),
        ["trap", "k1", "TOLD", "122", "first"]
    );
    assert_eq!(header("Millstream-Event-Nats-Msg-Id"), "told-122");
    // It pages, so it wants a terminal.
    let command = format!("nats --server {} stream view MILLSTREAM_DEAD 25", world.server.url());
    let view = std::process::Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(std::process::Stdio::null())
        .output();
    if let Ok(view) = view {
        let shown = String::from_utf8_lossy(&view.stdout).into_owned() + &String::from_utf8_lossy(&view.stderr);
        assert!(
            shown.contains("Millstream-Reason: the handler panicked") && shown.contains("\"number\":122"),
            "{shown}"
        );
    }
    let told = until("the failure is told", async || {
        let stream = world.jetstream.get_stream("MILLSTREAM_EVENTS").await.ok()?;
        stream.get_last_raw_message_by_subject("millstream.events.fragile.key-parked").await.ok()
    })
    .await;
    let told: Value = serde_json::from_slice(&told.payload).expect("JSON");
    assert_eq!((told["key"].as_str(), told["sequence"].as_u64()), (Some("k1"), Some(122)));
    let events = world.jetstream.get_stream("MILLSTREAM_EVENTS").await.expect("the stream");
    let mut told = events.info_with_subjects("millstream.events.fragile.key-parked").await.expect("its subjects");
    assert_eq!(told.try_next().await.expect("an answer").map(|(_, count)| count), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_journal_that_was_removed_are_not_taken_for_those_of_the_next() {
    let world = world().await;
    let events = story(&[("k1", "trap"), ("k2", "refuse")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    until("both keys are parked", async || (dead(&world, "fragile").len() == 2).then_some(())).await;
    drop(host);
    // A wish that nobody has heard, and then what the page on failures says of documents that are to be built anew.
    world.refused(1, &["redrive", "fragile", "--all", "--timeout", "0"]);
    for stream in ["MILLSTREAM_JOURNAL_fragile", "KV_fragile"] {
        world.jetstream.delete_stream(stream).await.expect("deleted");
    }
    let _host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    world.settled("fragile", &fold_parked(&events)).await;
    until("all letters are stored", async || {
        let units: Vec<_> = dead(&world, "fragile").iter().map(|row| row["units"].as_u64()).collect();
        (units == [Some(7), Some(7)]).then_some(())
    })
    .await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    let counts = settled_counts(decided(&world, "fragile", events.len()).await);
    assert_eq!((counts.delivered, counts.applied, counts.parked), (400, 400, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_were_removed_by_hand_are_told_by_whoever_takes_the_handler_up() {
    let world = world().await;
    let events = story(&[("k1", "trap"), ("k2", "refuse")]);
    deploy(&world, "fragile", &[]);
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    until("all letters are stored", async || {
        let units: Vec<_> = dead(&world, "fragile").iter().map(|row| row["units"].as_u64()).collect();
        (units == [Some(7), Some(7)]).then_some(())
    })
    .await;
    drop(host);
    let news = async || {
        let stream = world.jetstream.get_stream("MILLSTREAM_EVENTS").await.ok()?;
        let message = stream.get_last_raw_message_by_subject("millstream.events.fragile.dead-letters-gone").await;
        serde_json::from_slice::<Value>(&message.ok()?.payload).ok()
    };
    // Who finds all of them says nothing.
    let host = world.host(&[]);
    let more: Vec<Told> = (401..=440).map(|number| told(&format!("k{}", number % 40), number)).collect();
    publish(&world, &more).await;
    decided(&world, "fragile", events.len() + more.len()).await;
    until("later ones stand in line", async || {
        let units: u64 = dead(&world, "fragile").iter().filter_map(|row| row["units"].as_u64()).sum();
        (units == 16).then_some(())
    })
    .await;
    assert_eq!(news().await, None);
    drop(host);

    let stream = world.jetstream.get_stream("MILLSTREAM_DEAD").await.expect("the stream");
    stream.purge().filter("millstream.dead.fragile.1.k1").await.expect("purged");
    let first = stream.get_first_raw_message_by_subject("millstream.dead.fragile.1.k2", 1).await.expect("a letter");
    assert!(stream.delete_message(first.sequence).await.expect("removed"));
    let host = world.host(&[]);
    let found = until("what is missing is told", news).await;
    assert_eq!((found["units"].as_u64(), found["generation"].as_u64()), (Some(9), Some(1)), "{found}");
    until("the doctor finds it", async || {
        let doctor = String::from_utf8(world.cli(&["doctor", "--json"]).stdout).expect("UTF-8");
        (doctor.contains(r#""check":"letters-gone""#) && doctor.contains("9 dead letters were removed")).then_some(())
    })
    .await;
    assert!(host.log().contains("dead letters were removed by hand"), "{}", host.log());
    // What only followed a letter that is gone is not taken up without it.
    mend(&world).await;
    let said = world.refused(1, &["redrive", "fragile", "--all"]);
    assert!(said.contains("its first dead letter followed another one, and 9 of the handler's are gone"), "{said}");
    world.ok(&["discard", "fragile", "--key", "k2", "--reason", "its first is gone", "--yes"]);
    // A message that somebody put in front of a key's letters holds up that key alone, and is named.
    let alien = world.jetstream.publish("millstream.dead.fragile.1.k3", "alien".into()).await.expect("sent");
    let alien = alien.await.expect("stored").sequence;
    drop(host);
    let _host = world.host(&[]);
    let row = until("it is listed", async || dead(&world, "fragile").into_iter().find(|row| row["key"] == "k3")).await;
    assert_eq!((row["class"].as_str(), row["letter"].as_u64()), (Some("unreadable"), Some(alien)), "{row}");
    let said = world.refused(1, &["redrive", "fragile", "--all"]);
    let remove = format!("nats stream rmm MILLSTREAM_DEAD {alien} -f");
    assert!(said.contains(&remove), "{said}");
    assert_eq!(dead(&world, "fragile").len(), 1);
    assert!(stream.delete_message(alien).await.expect("removed"));
    world.ok(&["pause", "fragile"]);
    world.ok(&["resume", "fragile"]);
    let next = told("k3", 441);
    publish(&world, std::slice::from_ref(&next)).await;
    let left: Vec<Told> = [events, more, vec![next]].concat();
    let mut kept: Vec<Told> =
        left.iter().filter(|event| !["k1", "k2"].contains(&event.keys[0].as_str())).cloned().collect();
    for key in ["k1", "k2"] {
        kept.extend(left.iter().filter(|event| event.keys == [key]).take(3).cloned());
    }
    world.settled("fragile", &fold(&kept)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_with_parked_keys_takes_no_live_one_s_place_unasked() {
    let world = world().await;
    let _host = world.host(&[]);
    world.deploy("fragile-mended", "fragile", &[]);
    let mut events: Vec<Told> = (0..20).map(|number| told(&format!("k{}", number % 4), number)).collect();
    events.push(harmful("k1", 20, "trap"));
    publish(&world, &events).await;
    world.caught_up("fragile").await;
    let path = crate::harness::module("fragile");
    let output = world.cli(&["rebuild", "fragile", "--module", path.to_str().expect("path")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("generation 2: 1 key is parked"), "{said}");
    let rows = crate::harness::json_lines(&world.ok(&["rebuild", "fragile", "--list", "--json"]));
    let parked: Vec<_> = rows.iter().map(|row| (&row["state"], &row["parked_keys"])).collect();
    assert_eq!(parked, [(&json!("live"), &json!(0)), (&json!("ready"), &json!(1))]);
    let said = world.refused(2, &["promote", "fragile"]);
    assert!(said.contains("generation 2 of handler fragile has 1 parked keys, and the live one 0"), "{said}");
    assert!(said.contains("millstream dead fragile --generation 2"), "{said}");
    world.ok(&["promote", "fragile", "--force"]);
    assert_eq!(dead(&world, "fragile").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_key_or_by_event_and_all_that_is_parked_is_given_up_at_once() {
    let world = world().await;
    deploy(&world, "fragile", &[]);
    publish(&world, &[told("k1", 1), harmful("k2", 2, "refuse"), told("k2", 3)]).await;
    world.jetstream.publish("told.Told", "garbage".into()).await.expect("sent").await.expect("stored");
    let _host = world.host(&[]);
    decided(&world, "fragile", 4).await;
    until("all letters are stored", async || {
        let units: u64 = dead(&world, "fragile").iter().filter_map(|row| row["units"].as_u64()).sum();
        (units == 3).then_some(())
    })
    .await;
    let attempts = || {
        let rows = dead(&world, "fragile");
        let mut attempts: Vec<_> =
            rows.iter().map(|row| (row["key"].as_str().map(str::to_owned), row["attempts"].as_u64())).collect();
        attempts.sort();
        attempts
    };
    let of = |event: u64, key: u64| [(None, Some(event)), (Some("k2".to_owned()), Some(key))];
    assert_eq!(attempts(), of(1, 1));
    for attempt in [2, 3] {
        let said = world.refused(1, &["redrive", "fragile", "--class", "undecodable"]);
        let told = format!("first an event without a key, at event TOLD:4, attempt {attempt}: undecodable: ");
        assert!(said.contains(&told) && said.contains("--letter NUMBER --save FILE"), "{said}");
        assert_eq!(attempts(), of(attempt, 1));
    }
    world.refused(1, &["redrive", "fragile", "--all"]);
    assert_eq!(attempts(), of(4, 2));

    // Letters that are gone are at no event, and nobody can take them home.
    let stream = world.jetstream.get_stream("MILLSTREAM_DEAD").await.expect("the stream");
    let parked = dead(&world, "fragile").into_iter().find(|row| row["key"] == "k2").expect("the key");
    let letter = parked["letter"].as_u64().expect("a number");
    assert!(stream.delete_message(letter).await.expect("removed"));
    let said = world.refused(1, &["redrive", "fragile", "--key", "k2"]);
    assert!(said.contains("first key \"k2\", attempt 3: gone: 1 of its 2 dead letters are gone"), "{said}");
    assert!(said.contains("\nhint: give up the rest with `millstream discard`"), "{said}");
    assert!(!said.contains("at event") && !said.contains("take it home"), "{said}");

    let said = world.refused(2, &["discard", "fragile", "--reason", "nonsense", "--yes"]);
    assert!(said.contains("it is not said which keys") && said.contains("or --all"), "{said}");
    let said = world.refused(2, &["discard", "fragile", "--all", "--reason", "nonsense"]);
    assert!(said.contains("this removes 2 parked events") && said.contains("nobody is there to be asked"), "{said}");
    world.ok(&["discard", "fragile", "--all", "--reason", "nonsense", "--yes"]);
    assert!(dead(&world, "fragile").is_empty());
}
