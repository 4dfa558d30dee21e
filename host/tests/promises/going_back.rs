//! Going back leads to what ran: a deployment that was refused leaves nothing behind, neither its settings nor its label, and what was
//! live before a promotion is live again by the same command.

use std::collections::BTreeSet;
use std::time::Instant;

use millstream::registry::{Deployment, Outcome, Registry};
use millstream::sandbox::Digest;
use serde_json::{Value, json};

use crate::generations::{is, listed};
use crate::harness::{Host, World, chains, module, orders, spend, spend_v2, until};
use crate::hostile::{Mischief, NEVER_PARK, SOUND, file, wasm};
use crate::promotion::{promote, rebuild_v2, shop};
use crate::reload::{deploy, variant, verdict};
use crate::taken_back::{asked, somebody_s_bucket};

/// A host that allows batches of four thousand events at most.
fn narrow(world: &World) -> Host {
    world.host(&[("MILLSTREAM_CEILING", "batch_events=4000")])
}

/// What was deployed under this name, newest first.
fn versions(world: &World, handler: &str) -> Vec<Value> {
    let text = world.ok(&["list", "--versions", handler, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Labels of the versions that this is said of, newest first.
fn labels(world: &World, handler: &str, of: &str) -> Vec<String> {
    let rows = versions(world, handler);
    let rows = rows.iter().filter(|row| row[of] == true);
    rows.map(|row| row["label"].as_str().expect("a label").to_owned()).collect()
}

async fn settings(world: &World, handler: &str) -> millstream::settings::Settings {
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    registry.deployment(handler).await.expect("an answer").expect("a deployment").settings
}

fn roll_back(world: &World, handler: &str) -> Value {
    serde_json::from_str(&world.ok(&["rollback", handler, "--json"])).expect("JSON")
}

/// Somebody's public key, and the file with his seed.
fn signer(folder: &tempfile::TempDir) -> (String, String) {
    let pair = nkeys::KeyPair::new_user();
    let seed = file(folder, "seed", pair.seed().expect("a seed").as_bytes());
    (pair.public_key(), seed.to_str().expect("path").to_owned())
}

/// The digest of a module, in hexadecimal.
fn digest(path: &std::path::Path) -> String {
    Digest::of(&std::fs::read(path).expect("a module")).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_were_refused_are_left_behind() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let host = narrow(&world);
    let path = module("order-chain");
    deploy(&world, &path, &["--name", "chain", "--label", "one", "--set", "batch_events=700"]);
    let path = path.to_str().expect("path");
    let greedy = ["deploy", path, "--name", "chain", "--label", "greedy", "--set", "batch_events=4001"];
    let told = world.refused(1, &greedy);
    assert!(told.contains("allows 4000"), "{told}");
    // The module is the same, and yet another deployment runs than is wanted.
    let row = world.listed("chain");
    assert_eq!((&row["label"], &row["wanted"]["label"]), (&json!("one"), &json!("greedy")), "{row}");
    assert_eq!(labels(&world, "chain", "runs"), ["one"]);
    // A host that begins with it runs what ran.
    drop(host);
    let _host = narrow(&world);
    world.publish(&orders(0, 200)).await;
    world.settled("chain", &chains(&orders(0, 200))).await;
    until("it is told what runs", async || (labels(&world, "chain", "runs") == ["one"]).then_some(())).await;

    let said = deploy(&world, &module("order-chain"), &["--name", "chain", "--label", "two"]);
    assert!(said["state"].as_str().expect("a state").starts_with("running on "), "{said}");
    assert_eq!(said["changes"], json!(["the module is the same"]));
    assert_eq!(settings(&world, "chain").await.batch_events, 700, "of what ran");
    let row = world.listed("chain");
    assert_eq!((&row["label"], &row["wanted"], &row["refused"]), (&json!("two"), &Value::Null, &Value::Null), "{row}");
    assert_eq!(labels(&world, "chain", "runs"), ["two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_leads_past_what_was_refused_or_given_up() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let _host = narrow(&world);
    for (label, stage) in [("one", ""), ("two", "(nop)")] {
        let path = file(&folder, label, &wasm(Mischief { stage, ..SOUND }));
        deploy(&world, &path, &["--name", "careful", "--label", label]);
    }
    let greedy = file(&folder, "greedy", &wasm(Mischief { stage: "(nop) (nop)", ..SOUND }));
    let refuse = || {
        let path = greedy.to_str().expect("path");
        world.refused(1, &["deploy", path, "--name", "careful", "--label", "greedy", "--set", "batch_events=4001"]);
    };
    refuse();
    assert_eq!(roll_back(&world, "careful")["label"], "two", "what runs is wanted again");
    refuse();
    // One that the host gives up at its first events: two runs again, though it has shown little yet.
    roll_back(&world, "careful");
    let bad = file(&folder, "bad", &wasm(Mischief { stage: "unreachable", ..SOUND }));
    deploy(&world, &bad, &["--name", "careful", "--label", "bad"]);
    world.publish(&orders(0, 20)).await;
    until("it went back", async || {
        let row = world.listed("careful");
        (row["label"] == "two" && row["state"] == "running" && row["counts"]["delivered"] == 20).then_some(())
    })
    .await;
    for expected in ["one", "two", "one"] {
        let done = roll_back(&world, "careful");
        assert_eq!(done["label"], expected, "{done}");
        assert_eq!(labels(&world, "careful", "runs"), [expected]);
    }
    let ran: Vec<String> = labels(&world, "careful", "ran");
    assert!(!ran.contains(&"greedy".to_owned()) && !ran.contains(&"bad".to_owned()), "{ran:?}");
    assert_eq!(settings(&world, "careful").await.batch_events, millstream::settings::Settings::default().batch_events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_was_refused_is_not_shown_for_what_runs() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (key, seed) = signer(&folder);
    let _host = world.host(&[("MILLSTREAM_REQUIRE_SIGNED", &key)]);
    deploy(&world, &module("order-chain"), &["--name", "chain", "--label", "signed", "--sign-with", &seed]);
    // Module and settings are the same, and nobody vouches for it.
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let runs = registry.deployment("chain").await.expect("an answer").expect("a deployment");
    let unsigned = Deployment { label: "unsigned".to_owned(), signature: None, ..runs };
    let revision = registry.deploy("chain", &unsigned).await.expect("deployed");
    assert_eq!(verdict(&world, "chain", revision).await.outcome, Outcome::Refused);
    let row = until("the refusal is told", async || {
        Some(world.listed("chain")).filter(|row| row["refused"]["revision"] == revision)
    })
    .await;
    assert_eq!((&row["label"], &row["wanted"]["label"]), (&json!("signed"), &json!("unsigned")), "{row}");
    assert_eq!(labels(&world, "chain", "runs"), ["signed"]);
    assert_eq!(roll_back(&world, "chain")["label"], "signed");
    assert_eq!(world.listed("chain")["wanted"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_takes_a_promotion_back() {
    let world = shop().await;
    let events = orders(0, 2_000);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    promote(&world, "spend", &[]);
    world.settled("spend", &spend_v2(&events)).await;
    for (live, documents) in [(1, spend(&events)), (2, spend_v2(&events)), (1, spend(&events))] {
        let begun = Instant::now();
        let done = roll_back(&world, "spend");
        let took = begun.elapsed();
        assert_eq!((&done["generation"], world.documents("spend").await == documents), (&json!(live), true), "{done}");
        eprintln!("back to generation {live} within {} ms", took.as_millis());
        is(&world, "spend", live, "live").await;
    }
    // A change since the promotion is undone within the generation.
    let path = module("customer-spend");
    deploy(&world, &path, &["--name", "spend", "--set", "batch_events=400"]);
    let done = roll_back(&world, "spend");
    assert_eq!((&done["generation"], settings(&world, "spend").await.batch_events), (&Value::Null, 500), "{done}");
    // A version that is named is gone back to the same way.
    let second = digest(&module("customer-spend-v2"));
    let done: Value = serde_json::from_str(&world.ok(&["rollback", "spend", &second[..12], "--json"])).expect("JSON");
    assert_eq!((&done["generation"], &done["to"]), (&json!(2), &json!(second)), "{done}");
    world.settled("spend", &spend_v2(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_not_promised() {
    let world = shop().await;
    world.deploy("customer-spend", "spend", &["--set", "keep_generations=0"]);
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    let told = String::from_utf8(world.cli(&["promote", "spend"]).stderr).expect("text");
    assert!(told.contains("generation 1 is not kept") && !told.contains("take it back"), "{told}");
    let first = digest(&module("customer-spend"));
    let told = world.refused(2, &["rollback", "spend"]);
    assert!(told.contains("generation 1 of spend, which was live before generation 2, is not kept"), "{told}");
    let hint = format!("`nats object get MILLSTREAM_MODULES {first} --output before.wasm`");
    assert!(told.contains(&hint) && told.contains("`millstream rebuild spend --module before.wasm`"), "{told}");
    is(&world, "spend", 2, "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_another_state_version_has_one_generation() {
    let world = shop().await;
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    let numbers = || {
        listed(&world, "spend").iter().map(|row| row["generation"].as_u64().expect("a number")).collect::<BTreeSet<_>>()
    };
    let two = BTreeSet::from([1, 2]);
    let said = |arguments: &[&str]| {
        let output = world.cli(arguments);
        let told = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{told}");
        told
    };
    let [first, second] = ["customer-spend", "customer-spend-v2"].map(|name| module(name).to_str().unwrap().to_owned());
    let told = said(&["deploy", &second, "--name", "spend"]);
    assert!(told.contains("its documents are built anew"), "{told}");
    let told = said(&["deploy", &second, "--name", "spend"]);
    assert!(told.contains("generation 2 is being built with this module already") && numbers() == two, "{told}");
    said(&["deploy", &second, "--name", "spend", "--promote", "auto"]);
    world.settled("spend", &spend_v2(&events)).await;
    // Its documents are there: nothing is built for it.
    let told = said(&["deploy", &first, "--name", "spend"]);
    assert!(told.contains("generation 1, which was live with this module, is kept"), "{told}");
    assert!(told.contains("`millstream promote spend`") && numbers() == two, "{told}");
    said(&["deploy", &first, "--name", "spend", "--promote", "auto"]);
    world.settled("spend", &spend(&events)).await;
    assert_eq!(numbers(), two);
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_names_what_goes_of_each_generation() {
    let world = shop().await;
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    world.ok(&["rebuild", "spend"]);
    is(&world, "spend", 2, "ready").await;
    let asked = world.refused(2, &["remove", "spend", "--with-documents"]);
    let consumer = "removes consumer spend_g2 of generation 2 on stream ORDERS\n";
    assert!(asked.contains(consumer) && asked.contains("removes stream KV_spend_g2 of generation 2 with"), "{asked}");
    let asked = world.refused(2, &["remove", "spend"]);
    assert!(asked.contains(consumer) && !asked.contains("KV_spend_g2"), "{asked}");
    let removed: Value = serde_json::from_str(&world.ok(&["remove", "spend", "--yes", "--json"])).expect("JSON");
    let gone = json!([{ "generation": 2, "name": "spend_g2", "consumers": ["ORDERS"] }]);
    assert_eq!((&removed["generations"], &removed["consumers"]), (&gone, &json!(["ORDERS"])), "{removed}");
    let orders = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    assert_eq!(orders.cached_info().state.consumer_count, 0);
    assert!(world.traces().await.contains(&"KV_spend_g2".to_owned()), "its documents stay");
    deploy(&world, &module("customer-spend"), &["--name", "spend"]);
    is(&world, "spend", 2, "ready").await;
    let removed = world.ok(&["remove", "spend", "--yes", "--with-documents", "--json"]);
    let removed: Value = serde_json::from_str(&removed).expect("JSON");
    assert_eq!(removed["generations"][0]["bucket"], "KV_spend_g2", "{removed}");
    let left: Vec<String> = world.traces().await.into_iter().filter(|name| name.contains("spend")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_told_to_stop_says_so_at_once() {
    let world = shop().await;
    world.publish(&orders(0, 100)).await;
    let mut host = world.host(&[]);
    world.settled("spend", &spend(&orders(0, 100))).await;
    world.in_state("spend", "running").await;
    host.signal("INT");
    assert!(host.end().await.success());
    assert_eq!(world.listed("spend")["state"], "stopped");
    let said = deploy(&world, &module("customer-spend"), &["--name", "spend", "--label", "second"]);
    assert_eq!(said["state"], "deployed; no host is running (start one with `millstream run`)");
    let row = world.listed("spend");
    assert_eq!((&row["label"], &row["wanted"]), (&json!("second"), &Value::Null), "{row}");
    // A host for other handlers is no help, and is told what it lacks.
    let _other = world.host(&[("MILLSTREAM_HANDLER", "nobody"), ("MILLSTREAM_HOST", "other")]);
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    until("it lives", async || (!registry.live_hosts().await.expect("the hosts").is_empty()).then_some(())).await;
    let said = deploy(&world, &module("customer-spend"), &["--name", "spend", "--label", "third"]);
    let said = said["state"].as_str().expect("a state");
    assert!(said.contains("no host that is running looks after spend") && said.contains("`--handler spend`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_taken_over_from_says_that_it_stands_by() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let first = file(&folder, "first", &variant("order-chain", "first"));
    // Of these two names the second is the one for `chain`.
    let _first = world.host(&[("MILLSTREAM_HOST", "early")]);
    deploy(&world, &module("customer-spend"), &["--name", "spend"]);
    deploy(&world, &first, &["--name", "chain"]);
    let _second = world.host(&[("MILLSTREAM_HOST", "second"), ("MILLSTREAM_HANDLER", "chain")]);
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    until("the second has it", async || {
        let said = registry.verdict("chain", "second").await.expect("an answer")?;
        (said.outcome == Outcome::Running).then_some(())
    })
    .await;
    world.publish(&orders(0, 10)).await;
    until("the early stands by", async || {
        let said = registry.verdict("chain", "early").await.expect("an answer")?;
        (said.outcome == Outcome::StandingBy).then_some(())
    })
    .await;
    let said = deploy(&world, &first, &["--name", "chain"]);
    let state = said["state"].as_str().expect("a state");
    assert!(state.contains("early stands by") && state.contains("running on second"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_generation_needs_is_said_wherever_it_is_met() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let sound = file(&folder, "sound", &wasm(SOUND));
    let bad = file(&folder, "bad", &wasm(Mischief { stage: "unreachable", ..SOUND }));
    let _host = world.host(&[]);
    deploy(&world, &sound, &["--name", "careful", "--set", NEVER_PARK]);
    world.publish(&orders(0, 20)).await;
    world.caught_up("careful").await;
    let bad = bad.to_str().expect("path");
    let told = world.refused(1, &["rebuild", "careful", "--module", bad]);
    is(&world, "careful", 2, "failing").await;
    let asked = world.refused(2, &["promote", "careful"]);
    let output = world.cli(&["diff", "careful"]);
    let compared = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success() && compared.contains("warning: generation 2 is failing"), "{compared}");
    for told in [told, asked, compared] {
        for part in ["`nats stream get ORDERS 7`", "`millstream abandon careful --generation 2`", "--module FILE"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
    // The command that deploys it and the list tell the same.
    let told = world.refused(1, &["deploy", bad, "--name", "other", "--set", NEVER_PARK]);
    world.in_state("other", "failing").await;
    let listed = String::from_utf8(world.cli(&["list"]).stderr).expect("text");
    let hint = told.split("\nhint: ").nth(1).expect("a hint").trim();
    assert!(listed.contains(&format!("; hint: {hint}")), "{hint}\n{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_nobody_can_read_stops_nothing_and_is_gone_back_from() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let mut host = world.host(&[]);
    deploy(&world, &module("order-chain"), &["--name", "chain", "--label", "one"]);
    deploy(&world, &module("order-chain"), &["--name", "chain", "--label", "two", "--set", "batch_events=70"]);
    let handlers = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the deployments");
    handlers.put("chain", "rubbish".into()).await.expect("put");
    for part in 0..2 {
        let events = orders(part * 100, 100);
        world.publish(&events).await;
        world.settled("chain", &chains(&orders(0, (part + 1) * 100))).await;
        // The next one begins with it.
        host.kill();
        host = world.host(&[]);
    }
    for command in ["pause", "resume"] {
        let told = world.refused(2, &[command, "chain"]);
        assert!(told.contains("cannot be read") && told.contains("millstream rollback chain"), "{told}");
    }
    let done = roll_back(&world, "chain");
    assert_eq!((&done["label"], &done["from"]), (&json!("two"), &json!("unreadable")), "{done}");
    assert_eq!(labels(&world, "chain", "runs"), ["two"]);
    assert_eq!(settings(&world, "chain").await.batch_events, 70);
    handlers.put("chain", "rubbish".into()).await.expect("put");
    world.ok(&["rollback", "chain", "one"]);
    assert_eq!(labels(&world, "chain", "runs"), ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_deployments_at_once_none_is_lost_without_a_word() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let path = module("order-chain");
    let mut overtaken = 0;
    for round in 1..=12_u64 {
        let sets = [format!("batch_events={}", 100 + round), format!("keep_generations={round}")];
        let deploy = |set: String| {
            let (url, path) = (world.server.url(), path.to_str().expect("path").to_owned());
            let arguments =
                ["deploy".to_owned(), path, "--name=chain".to_owned(), "--no-wait".to_owned(), format!("--set={set}")];
            tokio::task::spawn_blocking(move || {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                crate::harness::cli(&url, &arguments)
            })
        };
        let before = settings(&world, "chain").await;
        let (one, other) = tokio::join!(deploy(sets[0].clone()), deploy(sets[1].clone()));
        let done = [one.expect("one"), other.expect("the other")];
        let after = settings(&world, "chain").await;
        let expected = [
            if done[0].status.success() { 100 + round as usize } else { before.batch_events },
            if done[1].status.success() { round as usize } else { before.keep_generations },
        ];
        assert_eq!([after.batch_events, after.keep_generations], expected, "round {round}");
        for failed in done.iter().filter(|done| !done.status.success()) {
            let told = String::from_utf8_lossy(&failed.stderr);
            assert!(told.contains("was deployed anew meanwhile; nothing was changed"), "{told}");
            assert!(told.contains("\nhint: "), "{told}");
            overtaken += 1;
        }
        assert!(done.iter().any(|done| done.status.success()), "one of them is first");
    }
    println!("{overtaken} of 24 were overtaken");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_were_left_are_gone_on_with_by_what_made_them_only() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let _host = world.host(&[]);
    deploy(&world, &module("customer-spend"), &["--name", "spend"]);
    world.publish(&orders(0, 300)).await;
    world.settled("spend", &spend(&orders(0, 300))).await;
    world.ok(&["remove", "spend", "--yes"]);
    world.publish(&orders(300, 300)).await;
    for (other, said) in [
        ("customer-spend-v2", "its state version is 2, and the documents here are of state version 1"),
        ("order-fulfilment", "it is a saga, and the documents here are a projection's"),
    ] {
        let path = module(other);
        let told = world.refused(2, &["deploy", path.to_str().expect("path"), "--name", "spend"]);
        assert!(told.contains("was removed, and its documents are still there"), "{told}");
        assert!(told.contains(said) && told.contains("remove spend --with-documents"), "{told}");
    }
    // By hand it comes as far as the host, which touches nothing.
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let bytes = std::fs::read(module("customer-spend-v2")).expect("a module");
    let digest = registry.put_module(&bytes).await.expect("stored");
    let value = json!({ "digest": digest, "subjects": ["orders.>"] });
    let by_hand = serde_json::from_value::<Deployment>(value).expect("a deployment");
    registry.deploy("spend", &by_hand).await.expect("deployed");
    let row = world.in_state("spend", "failing").await;
    assert!(row["reason"].as_str().expect("a reason").contains("the documents here are of state version 1"), "{row}");
    world.settled("spend", &spend(&orders(0, 300))).await;

    deploy(&world, &module("customer-spend"), &["--name", "spend"]);
    world.settled("spend", &spend(&orders(0, 600))).await;
    world.ok(&["remove", "spend", "--yes"]);
    let told = world.refused(2, &["remove", "spend", "--yes"]);
    assert!(told.contains("was removed already, and its documents were kept"), "{told}");
    world.ok(&["remove", "spend", "--with-documents", "--yes"]);
    let told = world.refused(2, &["remove", "spend", "--with-documents", "--yes"]);
    assert!(told.contains("is not deployed"), "{told}");
    deploy(&world, &module("customer-spend-v2"), &["--name", "spend"]);
    world.settled("spend", &spend_v2(&orders(0, 600))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_versions_that_have_yet_to_show_themselves_each_gives_way_to_the_one_before_it() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let _host = world.host(&[]);
    // All but the first fail at the first event, and none has had one when the next is deployed.
    for (label, stage) in
        [("one", ""), ("two", "unreachable"), ("three", "(nop) unreachable"), ("four", "(nop) (nop) unreachable")]
    {
        let path = file(&folder, label, &wasm(Mischief { stage, ..SOUND }));
        deploy(&world, &path, &["--name", "careful", "--label", label]);
    }
    world.publish(&orders(0, 20)).await;
    until("it went back to the first", async || {
        let row = world.listed("careful");
        (row["label"] == "one" && row["state"] == "running" && row["counts"]["delivered"] == 20).then_some(())
    })
    .await;
    let back: Vec<String> = labels(&world, "careful", "ran").into_iter().filter(|label| label != "one").collect();
    assert_eq!(back, [""; 0], "those that failed are nothing to go back to");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_back_to_subjects_that_were_passed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let mut host = world.host(&[]);
    let path = module("order-chain");
    deploy(&world, &path, &["--name", "chain", "--label", "wide"]);
    deploy(&world, &path, &["--name", "chain", "--label", "narrow", "--set", "subjects=orders.placed"]);
    let mut others = orders(0, 5);
    others.iter_mut().for_each(|order| order.subject = "orders.moved".to_owned());
    world.publish(&others).await;
    world.publish(&orders(10, 20)).await;
    world.settled("chain", &chains(&orders(10, 20))).await;
    for arguments in [&["rollback", "chain"][..], &["rollback", "chain", "wide"]] {
        let told = world.refused(2, arguments);
        assert!(told.contains("events of orders.> that it has already passed would never be applied"), "{told}");
    }
    assert_eq!(world.listed("chain")["label"], "narrow");
    // What is put into the bucket by other means is the host's to refuse.
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let narrow = registry.deployment("chain").await.expect("an answer").expect("a deployment");
    let wide = Deployment { settings: millstream::settings::Settings::default(), ..narrow };
    let revision = registry.deploy("chain", &wide).await.expect("deployed");
    until("it is refused", async || {
        let said = verdict(&world, "chain", revision).await;
        (said.outcome == Outcome::Refused && said.reason.contains("already passed")).then_some(())
    })
    .await;
    // Nor does a host that begins with it forget what was passed.
    host.kill();
    others = orders(5, 5);
    others.iter_mut().for_each(|order| order.subject = "orders.moved".to_owned());
    world.publish(&others).await;
    world.publish(&orders(30, 10)).await;
    let _other = world.host(&[("MILLSTREAM_HOST", "other")]);
    world.settled("chain", &chains(&orders(10, 30))).await;
    let row = world.in_state("chain", "running").await;
    assert_eq!((&row["host"], &row["refused"]["revision"]), (&json!("other"), &json!(revision)), "{row}");
    assert_eq!(row["counts"]["delivered"], 30, "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_count_anew_where_their_bucket_is_made_anew() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let _host = world.host(&[]);
    let path = module("order-chain");
    for label in ["one", "two", "three", "four"] {
        deploy(
            &world,
            &path,
            &["--name", "chain", "--label", label, "--set", &format!("batch_events=1{}", label.len())],
        );
    }
    world.publish(&orders(0, 20)).await;
    world.settled("chain", &chains(&orders(0, 20))).await;
    world.jetstream.delete_stream("KV_MILLSTREAM_HANDLERS").await.expect("deleted");

    let said = deploy(&world, &path, &["--name", "chain", "--label", "anew"]);
    assert!(said["state"].as_str().expect("a state").starts_with("running on "), "{said}");
    assert_eq!(world.listed("chain")["label"], "anew");
    world.ok(&["pause", "chain"]);
    world.in_state("chain", "paused").await;
    world.publish(&orders(20, 20)).await;
    world.ok(&["resume", "chain"]);
    world.settled("chain", &chains(&orders(0, 40))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_beside_a_deployment_that_nobody_can_read_is_listed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let _host = world.host(&[("MILLSTREAM_HOST", "left")]);
    let path = module("order-chain");
    deploy(&world, &path, &["--name", "chain", "--label", "one"]);
    deploy(&world, &path, &["--name", "other"]);
    world.publish(&orders(0, 100)).await;
    world.settled("chain", &chains(&orders(0, 100))).await;
    let handlers = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the deployments");
    let revision = handlers.put("chain", r#"{"digest":"zz""#.into()).await.expect("put");
    world.publish(&orders(100, 100)).await;
    world.settled("chain", &chains(&orders(0, 200))).await;
    let row = world.in_state("chain", "running").await;
    assert_eq!((&row["digest"], &row["label"], &row["host"]), (&json!(digest(&path)), &json!("one"), &json!("left")));
    assert_eq!((&row["counts"]["delivered"], &row["refused"]["revision"]), (&json!(200), &json!(revision)), "{row}");
    assert_eq!((&row["refused"]["digest"], &row["subjects"]), (&json!(""), &json!(["orders.>"])), "{row}");
    let lag = world.lag("chain");
    assert_eq!((lag.len(), &lag[0]["events"], &lag[0]["position"]), (1, &json!(0), &json!(200)));
    let output = world.cli(&["list"]);
    let told = String::from_utf8(output.stderr).expect("text");
    let begins = format!("chain: revision {revision} was refused: deployment of chain cannot be read: ");
    let line = told.lines().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("{told}"));
    assert!(output.status.success() && line.contains("; hint: go back with `millstream rollback chain`"), "{told}");
    assert_eq!(world.listed("other")["state"], "running");
    assert_eq!(roll_back(&world, "chain")["label"], "one");
    assert_eq!(world.listed("chain")["refused"], Value::Null);
}

/// While a promotion is asked for, another module is deployed, with a name and a signature of its own; and the host may die where both
/// the deployment and the ledger tell of the new generation, but for the last word.
async fn what_ran_is_kept(dies: bool) {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (key, seed) = signer(&folder);
    let trusts = ("MILLSTREAM_REQUIRE_SIGNED", key.as_str());
    let stops = [trusts, ("MILLSTREAM_STOP_AT", "deployed:1")];
    let mut host = world.host(if dies { &stops[..] } else { &stops[..1] });
    deploy(&world, &module("customer-spend"), &["--name", "spend", "--label", "one", "--sign-with", &seed]);
    let events = orders(0, 400);
    world.publish(&events[..200]).await;
    world.settled("spend", &spend(&events[..200])).await;
    let v2 = module("customer-spend-v2");
    world.ok(&["rebuild", "spend", "--module", v2.to_str().expect("path"), "--sign-with", &seed]);
    is(&world, "spend", 2, "ready").await;
    somebody_s_bucket(&world, "spend_g1").await;
    let waits = asked(&world, "spend", 2);
    until("it is held up", async || {
        listed(&world, "spend")[1]["reason"].as_str().is_some_and(|reason| reason.contains("spend_g1")).then_some(())
    })
    .await;
    let other = file(&folder, "other", &variant("customer-spend", "other"));
    deploy(&world, &other, &["--name", "spend", "--label", "other", "--sign-with", &seed]);
    world.publish(&events[200..]).await;
    world.settled("spend", &spend(&events)).await;
    world.jetstream.delete_key_value("spend_g1").await.expect("it is moved away");
    if dies {
        until("the heir is deployed", async || host.is_stopped().then_some(())).await;
        host.kill();
        host = world.host(&[trusts]);
    }
    let output = waits.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.settled("spend", &spend_v2(&events)).await;

    let done = roll_back(&world, "spend");
    assert_eq!((&done["generation"], &done["label"]), (&json!(1), &json!("other")), "{done}");
    assert_eq!(done["to"], digest(&other), "{done}");
    world.settled("spend", &spend(&events)).await;
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_live_is_kept_with_the_name_and_the_signature_of_the_deployment_that_ran() {
    what_ran_is_kept(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_live_is_kept_as_it_ran_though_the_host_dies_before_the_ledger_says_so() {
    what_ran_is_kept(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_to_another_generation_over_what_was_deployed_since() {
    let world = shop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    promote(&world, "spend", &[]);
    assert_eq!(roll_back(&world, "spend")["generation"], 1);
    is(&world, "spend", 1, "live").await;
    let other = file(&folder, "other", &variant("customer-spend", "other"));
    deploy(&world, &other, &["--name", "spend", "--label", "other"]);
    // With what hosts said it is lost what ran.
    world.jetstream.delete_key_value("MILLSTREAM_STATUS").await.expect("deleted");
    let told = world.refused(2, &["rollback", "spend"]);
    assert!(told.contains("handler spend has no earlier version that ran"), "{told}");
    let first = digest(&module("customer-spend"));
    let done: Value = serde_json::from_str(&world.ok(&["rollback", "spend", &first[..12], "--json"])).expect("JSON");
    assert_eq!((&done["generation"], &done["to"]), (&Value::Null, &json!(first)), "{done}");
    is(&world, "spend", 1, "live").await;
    assert_eq!(world.documents("spend").await, spend(&events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_since_a_promotion_bars_no_way_back() {
    let world = shop().await;
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = narrow(&world);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    promote(&world, "spend", &[]);
    until("it is known that it ran", async || {
        versions(&world, "spend").iter().any(|row| row["ran"] == true && row["note"].is_string()).then_some(())
    })
    .await;
    let v2 = module("customer-spend-v2");
    let greedy = ["--name", "spend", "--label", "greedy", "--set", "batch_events=4001"];
    world.refused(1, &[&["deploy", v2.to_str().expect("path")][..], &greedy].concat());
    let done = roll_back(&world, "spend");
    assert_eq!((&done["generation"], &done["to"]), (&Value::Null, &json!(digest(&v2))), "{done}");
    assert_eq!(roll_back(&world, "spend")["generation"], 1);
    world.settled("spend", &spend(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_of_a_bucket_that_is_gone_are_nothing_to_go_back_by() {
    let world = shop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events)).await;
    rebuild_v2(&world);
    is(&world, "spend", 2, "ready").await;
    promote(&world, "spend", &[]);
    world.settled("spend", &spend_v2(&events)).await;
    world.jetstream.delete_stream("KV_MILLSTREAM_HANDLERS").await.expect("deleted");

    let same = ["--name", "spend", "--set", "batch_events=500", "--label"];
    deploy(&world, &module("customer-spend-v2"), &[&same[..], &["anew"]].concat());
    until("it runs", async || (labels(&world, "spend", "ran") == ["anew"]).then_some(())).await;
    let told = world.refused(2, &["rollback", "spend"]);
    assert!(told.contains("handler spend has no earlier version that ran"), "{told}");
    // The promotion was revision 2 as well.
    let other = file(&folder, "other", &variant("customer-spend-v2", "other"));
    deploy(&world, &other, &[&same[..], &["other"]].concat());
    let rows = versions(&world, "spend");
    let known: Vec<(&Value, &Value)> = rows.iter().map(|row| (&row["revision"], &row["label"])).collect();
    assert_eq!(known, [(&json!(2), &json!("other")), (&json!(1), &json!("anew"))]);
    let done = roll_back(&world, "spend");
    assert_eq!((&done["generation"], &done["label"]), (&Value::Null, &json!("anew")), "{done}");
    is(&world, "spend", 2, "live").await;
    assert_eq!(world.documents("spend").await, spend_v2(&events));
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_that_are_gone_are_told_while_hosts_go_on() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let _host = world.host(&[]);
    let path = module("order-chain");
    for name in ["chain", "other", "removed"] {
        deploy(&world, &path, &["--name", name]);
    }
    world.ok(&["remove", "removed", "--yes", "--with-documents"]);
    world.jetstream.delete_stream("KV_MILLSTREAM_HANDLERS").await.expect("deleted");
    let gone =
        "error: bucket MILLSTREAM_HANDLERS is gone, though hosts have reported on chain, other\nhint: deploy each ";
    for command in [&["list"][..], &["list", "--json"], &["lag"], &["lag", "chain"], &["list", "--versions", "chain"]] {
        let told = world.refused(1, command);
        assert!(told.starts_with(gone), "{command:?}: {told}");
    }
    world.publish(&orders(0, 100)).await;
    // Both have revision 1 again: one is as it was, the other is not.
    for (name, settings) in [("chain", &[][..]), ("other", &["--set", "batch_events=77"])] {
        world.settled(name, &chains(&orders(0, 100))).await;
        let said = deploy(&world, &path, &[&["--name", name, "--label", "anew"][..], settings].concat());
        assert!(said["state"].as_str().expect("a state").starts_with("running on "), "{said}");
        assert_eq!(world.in_state(name, "running").await["counts"]["delivered"], 100);
    }
    let verdict = verdict(&world, "other", 1).await;
    assert_eq!(verdict.outcome, Outcome::Running, "{}", verdict.reason);
    // Where all are removed in the ordinary way, nothing is deployed, and nothing is amiss.
    for name in ["chain", "other"] {
        world.ok(&["remove", name, "--yes", "--with-documents"]);
    }
    for command in ["list", "lag"] {
        let output = world.cli(&[command]);
        let told = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success() && told.starts_with("nothing is deployed here"), "{command}: {told}");
    }
}
