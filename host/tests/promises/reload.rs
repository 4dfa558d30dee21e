//! Hot reload: a new module takes over between two batches, a bad one never does, and what runs does not notice. Documents are
//! compared with a fold that shares no code with the handlers.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use millstream::journal::{Counts, Journal, Kind, Record};
use millstream::registry::{Deployment, Desired, Outcome, Registry, Verdict};
use millstream::sandbox::Digest;
use millstream::settings::Settings;
use serde_json::{Value, json};

use crate::harness::{Event, World, chains, module, orders, pause, spend, until};
use crate::hostile::{Mischief, NEVER_PARK, SOUND, TRIGGER, file, wasm};

/// The bytes of an example with a custom section more: the same code under another digest.
pub fn variant(example: &str, name: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(module(example)).expect("a module");
    let name = name.as_bytes();
    let length = u8::try_from(name.len()).expect("a short name");
    bytes.extend([0, length + 1, length]);
    bytes.extend(name);
    bytes
}

fn deployment(bytes: &[u8]) -> Deployment {
    Deployment {
        digest: Digest::of(bytes),
        label: String::new(),
        subjects: vec!["orders.>".to_owned()],
        settings: Settings::default(),
        desired: Desired::Running,
        note: String::new(),
        signature: None,
    }
}

/// Deploys without any of the checks that `millstream deploy` makes, as stock tools can.
pub async fn put(world: &World, handler: &str, bytes: &[u8]) -> u64 {
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    registry.put_module(bytes).await.expect("stored");
    registry.deploy(handler, &deployment(bytes)).await.expect("deployed")
}

/// What the only host says of this revision.
pub async fn verdict(world: &World, handler: &str, revision: u64) -> Verdict {
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    until("a verdict", async || {
        let hosts = registry.live_hosts().await.expect("the hosts");
        let said = registry.verdict(handler, &hosts.first()?.name).await.expect("the verdict");
        said.filter(|verdict| verdict.revision >= revision)
    })
    .await
}

/// The digests of a handler's batches, in their order.
async fn digests(world: &World, handler: &str) -> Vec<[u8; 32]> {
    let journal = Journal::open(&world.jetstream, handler, 1).await.expect("the journal");
    let (last, _) = journal.last().await.expect("an answer").expect("a record");
    let records = journal.read(0, last).await.expect("all records");
    let records = records.iter().map(|(sequence, bytes)| Record::decode(bytes, *sequence).expect("a record"));
    records.filter(|record| record.kind == Kind::Batch).map(|record| record.digest).collect()
}

pub fn deploy(world: &World, path: &std::path::Path, more: &[&str]) -> Value {
    let arguments = [&["deploy", path.to_str().expect("path"), "--json"], more].concat();
    serde_json::from_str(&world.ok(&arguments)).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_swaps_under_load_lose_nothing_double_nothing_and_take_the_handler_once() {
    const SWAPS: usize = 20;
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["one", "two"].map(|name| file(&folder, name, &variant("order-chain", name)));
    let settings = ["--name", "chain", "--set", "journal_keep_records=1000000"];
    let _host = world.host(&[]);
    deploy(&world, &paths[0], &settings);

    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let load = async {
        let mut events: Vec<Event> = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        while stopped.try_recv().is_err() {
            ticks.tick().await;
            let more = orders(events.len() as u64, 250);
            world.publish(&more).await;
            events.extend(more);
        }
        events
    };
    let swaps = async {
        let mut pauses = Vec::new();
        for swap in 1..=SWAPS {
            let path = paths[swap % 2].clone();
            let url = world.server.url();
            let done = tokio::task::spawn_blocking(move || {
                let path = path.to_str().expect("path").to_owned();
                crate::harness::cli(&url, &["deploy", &path, "--name", "chain", "--json"])
            });
            let output = done.await.expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert!(said["state"].as_str().expect("a state").starts_with("running on "), "{said}");
            pauses.push(said["pause_milliseconds"].as_f64().expect("a pause"));
        }
        let _ = stop.send(());
        pauses
    };
    let (events, mut pauses) = tokio::join!(load, swaps);
    world.settled("chain", &chains(&events)).await;
    let (_, counts, positions) = world.last_record("chain").await.expect("a record");
    let all = events.len() as u64;
    assert_eq!((counts.delivered, counts.applied, positions), (all, all, vec![all]));
    assert_eq!(world.claims("chain").await.len(), 1, "nobody had to claim it again");
    let digests = digests(&world, "chain").await;
    let changes = digests.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(changes, SWAPS, "each version decided, in its turn");
    assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), 2);
    pauses.sort_by(f64::total_cmp);
    eprintln!("{all} events, {SWAPS} swaps; pause median {:.2} ms, longest {:.2} ms", pauses[10], pauses[19]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_cannot_run_is_refused_and_the_running_one_does_not_notice() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let good = variant("order-chain", "good");
    let host = world.host(&[]);
    put(&world, "chain", &good).await;
    let mut events = orders(0, 300);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;
    let claims = world.claims("chain").await;

    let describing = |describe| wasm(Mischief { describe, ..SOUND });
    let chain = std::fs::read(module("order-chain")).expect("a module");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("text", b"#!/bin/sh\n".to_vec(), "not a WASM module"),
        ("half", chain[..chain.len() / 2].to_vec(), "not a WASM module"),
        ("no contract", wat::parse_str("(module)").expect("WAT"), "does not export the handler contract"),
        ("foreign", wat::parse_str(r#"(module (import "env" "now" (func)))"#).expect("WAT"), "env.now"),
        ("trap", describing("unreachable"), "fails at describe"),
        ("endless", describing("(loop $again (br $again))"), "used up its fuel"),
        ("saga", std::fs::read(module("order-fulfilment")).expect("a module"), "it is a saga, and a projection runs"),
        (
            "state version",
            wasm(Mischief { words: &[(1044, &[9])], ..SOUND }),
            "its state version is 9, and the documents here are of state version 1",
        ),
    ];
    for (name, bytes, reason) in &cases {
        let revision = put(&world, "chain", bytes).await;
        let verdict = verdict(&world, "chain", revision).await;
        assert_eq!(verdict.outcome, Outcome::Refused, "{name}");
        assert!(verdict.reason.contains(reason), "{name}: {}", verdict.reason);
        let row = world.listed("chain");
        assert_eq!(row["state"], "running", "{name}: {row}");
        assert_eq!(row["refused"]["digest"], Digest::of(bytes).to_string(), "{name}: {row}");
        let more = orders(events.len() as u64, 50);
        world.publish(&more).await;
        events.extend(more);
        world.caught_up("chain").await;
    }
    // Bytes that are not the ones their name says, and none at all.
    let (other, missing) = (variant("order-chain", "other"), variant("order-chain", "missing"));
    let store = world.jetstream.get_object_store("MILLSTREAM_MODULES").await.expect("the modules");
    store.put(Digest::of(&other).to_string().as_str(), &mut &good[..]).await.expect("stored");
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    for (bytes, reason) in [(&other, "is damaged: its bytes have digest"), (&missing, "is not in the object store")] {
        let revision = registry.deploy("chain", &deployment(bytes)).await.expect("deployed");
        let verdict = verdict(&world, "chain", revision).await;
        assert!(verdict.outcome == Outcome::Refused && verdict.reason.contains(reason), "{verdict:?}");
    }

    world.settled("chain", &chains(&events)).await;
    assert_eq!(world.claims("chain").await, claims, "the one that ran was never disturbed");
    let ours = BTreeSet::from([Digest::of(&good).0]);
    assert_eq!(digests(&world, "chain").await.into_iter().collect::<BTreeSet<_>>(), ours);
    assert_eq!(host.log().matches("deployment refused").count(), cases.len() + 2, "{}", host.log());

    // A host that begins with such a deployment runs the newest one before it that can be run.
    drop(host);
    let _host = world.host(&[]);
    let more = orders(events.len() as u64, 50);
    world.publish(&more).await;
    events.extend(more);
    world.settled("chain", &chains(&events)).await;
    let row = world.in_state("chain", "running").await;
    assert_eq!(row["refused"]["digest"], Digest::of(&missing).to_string(), "{row}");

    // Stored again, the module that is wanted runs without another word; and one that was damaged is whole.
    registry.put_module(&missing).await.expect("stored");
    until("the module that was missing runs", async || {
        let row = world.listed("chain");
        (row["digest"] == Digest::of(&missing).to_string() && row["state"] == "running").then_some(())
    })
    .await;
    registry.put_module(&other).await.expect("stored");
    assert_eq!(registry.module(Digest::of(&other)).await.expect("whole"), other);
    let more = orders(events.len() as u64, 50);
    world.publish(&more).await;
    events.extend(more);
    world.settled("chain", &chains(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_begins_with_documents_of_another_kind_or_state_version_runs_what_made_them() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let good = variant("order-chain", "good");
    let host = world.host(&[]);
    put(&world, "chain", &good).await;
    let mut events = orders(0, 100);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;
    drop(host);
    let others =
        [wasm(Mischief { words: &[(1044, &[9])], ..SOUND }), std::fs::read(module("reminder")).expect("a module")];
    for other in &others {
        put(&world, "chain", other).await;
        let _host = world.host(&[]);
        let more = orders(events.len() as u64, 50);
        world.publish(&more).await;
        events.extend(more);
        world.settled("chain", &chains(&events)).await;
        let row = world.in_state("chain", "running").await;
        assert_eq!(row["digest"], Digest::of(&good).to_string(), "{row}");
        assert_eq!(row["refused"]["digest"], Digest::of(other).to_string(), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_fails_at_its_first_events_gives_way_to_the_one_before() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let good = file(&folder, "good", &wasm(SOUND));
    let bad = file(&folder, "bad", &wasm(Mischief { stage: "unreachable", ..SOUND }));
    let host = world.host(&[]);
    deploy(&world, &good, &["--name", "careful", "--label", "first"]);
    let events = orders(0, 60);
    world.publish(&events[..3]).await;
    world.caught_up("careful").await;
    let said = deploy(&world, &bad, &["--name", "careful", "--label", "second"]);
    assert!(said["state"].as_str().expect("a state").starts_with("running on "), "it takes the first events: {said}");
    world.publish(&events[3..]).await;

    let wanted = Digest::of(&std::fs::read(&good).expect("a module")).to_string();
    let refused = Digest::of(&std::fs::read(&bad).expect("a module")).to_string();
    until("the one before runs", async || {
        let row = world.listed("careful");
        (row["digest"] == wanted.as_str() && row["state"] == "running" && row["counts"]["delivered"] == 60)
            .then_some(())
    })
    .await;
    let row = world.listed("careful");
    assert_eq!(row["refused"]["digest"], refused.as_str(), "{row}");
    let reason = row["refused"]["reason"].as_str().expect("a reason");
    assert!(reason.contains(&format!("ORDERS:{TRIGGER} ")), "the event is named: {reason}");
    let (_, counts, positions) = world.last_record("careful").await.expect("a record");
    let expected = Counts { delivered: 60, irrelevant: 59, applied: 1, ..Counts::default() };
    assert_eq!((counts, positions), (expected, vec![60]), "nothing is lost");

    // The audit says so, and so does the stream of what happens to handlers.
    let versions = world.ok(&["list", "--versions", "careful", "--json"]);
    let newest: Value = serde_json::from_str(versions.lines().next().expect("a version")).expect("JSON");
    assert_eq!((&newest["digest"], &newest["label"]), (&json!(wanted), &json!("first")), "{versions}");
    assert!(
        newest["note"].as_str().expect("a note").starts_with(&format!("went back from {:.12}: ", refused)),
        "{newest}"
    );
    let stream = world.jetstream.get_stream("MILLSTREAM_EVENTS").await.expect("the stream of news");
    let news = stream.get_last_raw_message_by_subject("millstream.events.careful.went-back").await.expect("news");
    let news: Value = serde_json::from_slice(&news.payload).expect("JSON");
    assert_eq!((&news["from"], &news["to"]), (&json!(refused), &json!(wanted)), "{news}");

    // With the event that it cannot take waiting for it, the command itself says that the module was given up.
    let held = world
        .refused(1, &["deploy", bad.to_str().expect("path"), "--name", "other", "--label", "bad", "--set", NEVER_PARK]);
    assert!(held.contains("does not run it") && held.contains(&format!("ORDERS:{TRIGGER} ")), "{held}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_resume_rollback_and_remove_do_what_they_say() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["one", "two"].map(|name| file(&folder, name, &variant("customer-spend", name)));
    for command in ["pause", "resume", "rollback", "remove"] {
        assert!(world.refused(2, &[command, "spend"]).contains("spend is not deployed"), "{command}");
    }
    let _host = world.host(&[]);
    deploy(&world, &paths[0], &["--name", "spend", "--label", "one"]);
    assert!(world.refused(2, &["rollback", "spend"]).contains("no earlier version"), "there is one only");
    let said = deploy(&world, &paths[1], &["--name", "spend", "--label", "two"]);
    assert!(said["changes"][0].as_str().expect("a change").starts_with("module "), "{said}");
    let again = deploy(&world, &paths[1], &["--name", "spend", "--label", "two"]);
    assert_eq!(
        world.ok(&["list", "--versions", "spend", "--json"]).lines().count(),
        2,
        "said again it is no version: {again}"
    );

    let events = orders(0, 200);
    world.ok(&["pause", "spend"]);
    assert_eq!(world.listed("spend")["state"], "paused");
    world.publish(&events).await;
    world.ok(&["pause", "spend"]);
    assert_eq!(world.listed("spend")["counts"]["delivered"], 0, "nothing is decided");
    assert_eq!(world.lag("spend")[0]["events"], 200, "and what comes waits");
    world.ok(&["resume", "spend"]);
    world.settled("spend", &spend(&events)).await;

    world.ok(&["rollback", "spend"]);
    let one = Digest::of(&std::fs::read(&paths[0]).expect("a module")).to_string();
    let row = world.listed("spend");
    assert_eq!(
        (&row["digest"], &row["label"], &row["state"]),
        (&json!(one), &json!("one"), &json!("running")),
        "{row}"
    );
    assert!(world.refused(2, &["rollback", "spend", "three"]).contains("no earlier version `three`"));
    assert!(world.refused(2, &["rollback", "spend", "one"]).contains("version `one` of handler spend is what runs"));
    world.ok(&["rollback", "spend", "two"]);
    assert_eq!(world.listed("spend")["label"], "two");

    assert!(world.refused(2, &["remove", "spend"]).contains("nothing was removed"), "nobody is there to be asked");
    world.ok(&["remove", "spend", "--yes"]);
    assert_eq!(world.ok(&["list", "--json"]), "");
    assert!(world.report("spend").await.is_none());
    let consumers = world.jetstream.get_stream("ORDERS").await.expect("the stream").cached_info().state.consumer_count;
    assert_eq!(consumers, 0, "its consumer is gone");
    world.settled("spend", &spend(&events)).await;
    // Under the same name it goes on where it stopped.
    deploy(&world, &paths[0], &["--name", "spend"]);
    let more = orders(200, 100);
    world.publish(&more).await;
    world.settled("spend", &spend(&[events, more].concat())).await;
    assert_eq!(world.listed("spend")["counts"]["delivered"], 300);
    world.ok(&["remove", "spend", "--yes", "--with-documents"]);
    let traces = world.traces().await;
    assert!(!traces.iter().any(|name| name.ends_with("spend")), "{traces:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_follow_one_deployment_and_one_that_was_away_follows_the_last() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["a", "b", "c", "d", "e", "f"].map(|name| file(&folder, name, &variant("order-chain", name)));
    let mut first = world.host(&[("MILLSTREAM_HOST", "early")]);
    deploy(&world, &paths[0], &["--name", "chain"]);
    world.deploy("customer-spend", "spend", &[]);
    world.in_state("spend", "running").await;
    let second = world.host(&[("MILLSTREAM_HOST", "second"), ("MILLSTREAM_HANDLER", "chain")]);
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let settled = async || {
        let hosts = registry.live_hosts().await.expect("the hosts");
        let has: Vec<&str> = hosts
            .iter()
            .filter(|host| host.holds.iter().any(|held| held == "chain"))
            .map(|host| host.name.as_str())
            .collect();
        (hosts.len() == 2 && has == ["second"]).then_some(())
    };
    // Of these two names the second is the one for `chain`.
    until("the second has it", settled).await;
    let said = deploy(&world, &paths[1], &["--name", "chain"]);
    let state = said["state"].as_str().expect("a state");
    assert!(state.contains("early stands by") && state.contains("running on second"), "{said}");

    let events = orders(0, 500);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;
    first.kill();
    until("its name is gone", async || (registry.live_hosts().await.expect("hosts").len() == 1).then_some(())).await;
    for path in &paths[1..] {
        deploy(&world, path, &["--name", "chain"]);
    }
    drop(second);
    let _first = world.host(&[("MILLSTREAM_HOST", "early")]);
    let last = Digest::of(&std::fs::read(&paths[5]).expect("a module"));
    let runs = async || (world.report("chain").await?["digest"] == last.to_string().as_str()).then_some(());
    until("it runs the last one", runs).await;
    world.in_state("chain", "running").await;
    let more = orders(500, 100);
    world.publish(&more).await;
    world.settled("chain", &chains(&[events, more].concat())).await;
    assert_eq!(digests(&world, "chain").await.last(), Some(&last.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_without_the_registry_and_with_a_restarted_server() {
    let mut world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["one", "two"].map(|name| file(&folder, name, &variant("order-chain", name)));
    let host = world.host(&[]);
    deploy(&world, &paths[0], &["--name", "chain"]);
    let mut events = orders(0, 200);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;

    for bucket in ["KV_MILLSTREAM_HANDLERS", "KV_MILLSTREAM_STATUS", "KV_MILLSTREAM_HOSTS", "OBJ_MILLSTREAM_MODULES"] {
        world.jetstream.delete_stream(bucket).await.expect("deleted by hand");
    }
    let more = orders(200, 200);
    world.publish(&more).await;
    events.extend(more);
    world.settled("chain", &chains(&events)).await;
    // Deployed again, the host follows: it says so in stores that are made anew.
    deploy(&world, &paths[1], &["--name", "chain"]);
    let two = Digest::of(&std::fs::read(&paths[1]).expect("a module")).to_string();
    until("the second runs", async || (world.listed("chain")["digest"] == two.as_str()).then_some(())).await;
    assert_eq!(world.claims("chain").await.len(), 1, "it was swapped, not begun again");

    world.server.kill();
    world.server.restart().await.expect("the server restarts on its folder");
    deploy(&world, &paths[0], &["--name", "chain"]);
    let more = orders(400, 200);
    world.publish(&more).await;
    events.extend(more);
    world.settled("chain", &chains(&events)).await;
    let one = Digest::of(&std::fs::read(&paths[0]).expect("a module"));
    assert_eq!(digests(&world, "chain").await.last(), Some(&one.0));
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_swaps_leave_no_old_code_in_memory() {
    const SWAPS: u64 = 1000;
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let host = world.host(&[]);
    let variants = ["one", "two"].map(|name| variant("order-chain", name));
    put(&world, "chain", &variants[0]).await;
    put(&world, "chain", &variants[1]).await;
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let deployments = variants.map(|bytes| deployment(&bytes));
    let key = format!(
        "chain.{}",
        until("a host", async || Some(registry.live_hosts().await.ok()?.first()?.name.clone())).await
    );
    let status = world.jetstream.get_key_value("MILLSTREAM_STATUS").await.expect("the states");
    let mut verdicts = status.watch_with_history(&key).await.expect("a watch");
    let mut early = 0;
    for swap in 0..SWAPS {
        let revision = registry.deploy("chain", &deployments[(swap % 2) as usize]).await.expect("deployed");
        loop {
            let entry = verdicts.next().await.expect("the watch goes on").expect("an entry");
            let verdict: Verdict = serde_json::from_slice(&entry.value).expect("a verdict");
            if verdict.revision >= revision {
                assert_eq!(verdict.outcome, Outcome::Running, "{verdict:?}");
                break;
            }
        }
        if swap == 200 {
            early = host.resident_bytes();
        }
    }
    let late = host.resident_bytes();
    let events = orders(0, 100);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;
    eprintln!("resident after 200 swaps {} MiB, after {SWAPS} {} MiB", early >> 20, late >> 20);
    assert!(late < early + (24 << 20), "{early} -> {late}");
    pause().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_asks_for_signatures_and_sets_ceilings_runs_nothing_else() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["one", "two"].map(|name| file(&folder, name, &variant("order-chain", name)));
    let seed_file = |name: &str, pair: &nkeys::KeyPair| {
        let path = folder.path().join(name);
        std::fs::write(&path, pair.seed().expect("a seed")).expect("a file");
        path.to_str().expect("path").to_owned()
    };
    let (ours, theirs) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let (our_seed, their_seed) = (seed_file("ours", &ours), seed_file("theirs", &theirs));
    let asks = [
        ("MILLSTREAM_REQUIRE_SIGNED", ours.public_key()),
        ("MILLSTREAM_CEILING", "limits.memory_bytes=268435456,batch_events=4000".to_owned()),
    ];
    let asks: Vec<(&str, &str)> = asks.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _host = world.host(&asks);
    deploy(&world, &paths[0], &["--name", "chain", "--sign-with", &our_seed]);
    let mut events = orders(0, 100);
    world.publish(&events).await;
    world.settled("chain", &chains(&events)).await;

    let two = paths[1].to_str().expect("path");
    let ours = ["--sign-with", our_seed.as_str()];
    for (more, said) in [
        (vec![], "it is not signed, and this host runs signed modules only"),
        (vec!["--sign-with", &their_seed], "whom this host does not trust"),
        ([&ours[..], &["--set", "limits.memory_bytes=268435457"]].concat(), "this host allows 268435456 at most"),
        (
            [&ours[..], &["--set", "limits.memory_bytes=268435456", "--set", "batch_events=4001"]].concat(),
            "allows 4000",
        ),
    ] {
        let told = world.refused(1, &[&["deploy", two, "--name", "chain"][..], &more[..]].concat());
        assert!(told.contains(said) && told.contains("goes on"), "{told}");
    }
    let missing = world.refused(2, &["deploy", two, "--name", "chain", "--sign-with", "/nowhere/seed"]);
    assert!(missing.contains("/nowhere/seed cannot be read"), "{missing}");
    // A signature of another name's deployment is worth nothing.
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let bytes = std::fs::read(&paths[1]).expect("a module");
    let seed = std::fs::read_to_string(&our_seed).expect("a seed");
    let signature = millstream::policy::sign(&seed, "other", Digest::of(&bytes)).expect("signed");
    let forged = Deployment { signature: Some(signature), ..deployment(&bytes) };
    let revision = registry.deploy("chain", &forged).await.expect("deployed");
    let verdict = verdict(&world, "chain", revision).await;
    assert!(
        verdict.outcome == Outcome::Refused && verdict.reason.contains("its signature is not one of"),
        "{verdict:?}"
    );

    let more = orders(100, 100);
    world.publish(&more).await;
    events.extend(more);
    world.settled("chain", &chains(&events)).await;
    assert_eq!(world.claims("chain").await.len(), 1, "the one that ran was never disturbed");
    deploy(&world, &paths[1], &["--name", "chain", "--sign-with", &our_seed, "--set", "batch_events=900"]);
    assert_eq!(world.listed("chain")["digest"], Digest::of(&bytes).to_string());
}
