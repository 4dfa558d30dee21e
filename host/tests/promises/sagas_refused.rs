//! What a saga may not ask for stops it at that event, and the reason names what was asked for; nothing of the event is done.
//! Where a command can go nowhere, that is said before the saga runs, or while it does, and nothing is lost.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{World, module, until};
use crate::hostile::NEVER_PARK;
use crate::services::{Command, stored};

async fn world() -> World {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world
}

async fn tell(world: &World, subject: &str, script: &Value) {
    let publish = world.jetstream.publish(subject.to_owned(), script.to_string().into()).await;
    publish.expect("the server is there").await.expect("it is stored");
}

fn send(subject: &str, letters: usize) -> Value {
    json!({ "send": { "subject": subject, "letters": letters } })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_saga_may_not_ask_for_stops_it_at_that_event_and_is_named() {
    let world = world().await;
    let silent = json!({ "step": { "name": "one", "undo": "silent" } });
    let fine = send("script-commands.fine", 10);
    let cases = [
        ("open", "batch_events=500", json!([fine, silent]), "step `one` does not say how it is taken back"),
        (
            "elsewhere",
            "batch_events=1",
            json!([fine, send("bank.pay", 1)]),
            "command `pay`: subject \"bank.pay\" is not among those the handler declares to send to",
        ),
        (
            "large",
            "effect_bytes=1000",
            json!([fine, send("script-commands.large", 2000)]),
            // The payload in quotes, subject and type.
            "command `large` has 2028 bytes, more than the 1000 allowed",
        ),
        ("many", "effects_per_unit=2", json!([fine, fine, fine]), "3 effects at once are more than the 2 allowed"),
        (
            "over",
            "batch_events=500",
            json!([fine, "complete", fine]),
            "command `fine` comes after `complete`, which ends the saga's effects",
        ),
    ];
    for (name, setting, asks, _) in &cases {
        let subject = format!("scripts.{name}.Told");
        world.deploy(
            "scripted",
            name,
            &["--set", &format!("subjects={subject}"), "--set", setting, "--set", NEVER_PARK],
        );
        for (key, asks) in [("before", json!([fine])), ("at", asks.clone()), ("after", json!([fine]))] {
            tell(&world, &subject, &json!({ "key": key, "starts": true, "asks": asks })).await;
        }
    }
    let mut host = world.host(&[]);
    for (number, (name, _, _, expected)) in cases.iter().enumerate() {
        let row = world.in_state(name, "failing").await;
        let said = row["reason"].as_str().expect("a reason");
        let event = format!("SCRIPTS:{} ", number * 3 + 2);
        assert!(said.contains(&event) && said.contains("(refused)") && said.contains(expected), "{name}: {said}");
        let documents = until("what came before is shown", async || {
            Some(world.documents(name).await).filter(|documents| !documents.is_empty())
        })
        .await;
        assert_eq!(documents.keys().collect::<Vec<_>>(), ["before"], "{name}");
        let (_, counts, _) = world.last_record(name).await.expect("a record");
        assert_eq!((counts.delivered, counts.applied), (1, 1), "{name}");
    }
    let commands = until("what came before is done", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| commands.len() >= cases.len())
    })
    .await;
    assert!(host.ended().is_none(), "the host lives");
    let keys: Vec<&str> = commands.iter().map(|command| command.key.as_str()).collect();
    assert_eq!(keys, ["before"; 5], "and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_id_no_message_could_carry_along_is_named() {
    let world = world().await;
    world.deploy("scripted", "long", &["--set", NEVER_PARK]);
    let _host = world.host(&[]);
    let script = json!({ "key": "k", "starts": true, "asks": [send("script-commands.fine", 10)] });
    tell(&world, "scripts.Told", &script).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-id", "i".repeat(33_000));
    let publish = world.jetstream.publish_with_headers("scripts.Told", headers, script.to_string().into()).await;
    publish.expect("the server is there").await.expect("it is stored");
    let row = world.in_state("long", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    let expected = "its id has 33000 bytes, more than the 1024 that a message of the saga may carry along";
    assert!(said.contains("SCRIPTS:2 ") && said.contains("(refused)") && said.contains(expected), "{said}");
    let commands = until("what came before is done", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| !commands.is_empty())
    })
    .await;
    assert_eq!(commands.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_its_stream_is_listed_alone_and_the_others_go() {
    const TOLD: usize = 100;
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    let config = async_nats::jetstream::stream::Config {
        name: "COMMANDS".to_owned(),
        subjects: vec!["script-commands.*".to_owned()],
        max_message_size: 2000,
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    world.deploy("scripted", "large", &[]);
    let _host = world.host(&[]);
    let script = |key: &str, letters: usize| json!({ "key": key, "starts": true, "asks": [send("script-commands.fine", letters)] });
    tell(&world, "scripts.Told", &script("large", 3000)).await;
    let warned = until("the warning", async || {
        let output = world.cli(&["sagas", "large"]);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        stderr.contains("warning: ").then_some(stderr)
    })
    .await;
    assert!(warned.contains("(10054); hint: let stream COMMANDS take larger messages"), "{warned}");
    // Only now, so that none of them was on the way when it was refused.
    for number in 0..TOLD {
        tell(&world, "scripts.Told", &script(&format!("k{number}"), 10)).await;
    }
    let commands = until("the others go", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| commands.len() >= TOLD)
    })
    .await;
    assert_eq!(commands.len(), TOLD);
    world.caught_up("large").await;
    let report = world.report("large").await.expect("a report");
    assert_eq!(report["undelivered_effects"], 1, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_answers_itself_is_stopped_at_the_depth_that_is_set() {
    let world = world().await;
    world.deploy("scripted", "echo", &["--set", "max_depth=5", "--set", NEVER_PARK]);
    let _host = world.host(&[]);
    tell(&world, "scripts.Told", &json!({ "key": "k", "starts": true, "asks": ["echo"] })).await;
    let row = world.in_state("echo", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    let expected = "event `Told` would be number 6 in a chain of messages that cause each other; 5 are allowed";
    assert!(said.contains("SCRIPTS:6 ") && said.contains(expected), "{said}");
    let echoes = stored(&world.jetstream, "SCRIPTS").await;
    let keys: Vec<&str> = echoes.iter().map(|echo| echo.payload["key"].as_str().expect("a key")).collect();
    assert_eq!(keys, ["k'", "k''", "k'''", "k''''", "k'''''"]);
    let causes: Vec<&str> = echoes.iter().map(|echo| echo.causation.as_str()).collect();
    let ids = echoes.iter().map(|echo| echo.id.as_str());
    assert_eq!(causes, ["SCRIPTS:1"].into_iter().chain(ids).take(5).collect::<Vec<_>>(), "each caused the next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_commands_no_stream_holds_is_not_deployed() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    let path = module("scripted");
    let said = world.refused(2, &["deploy", path.to_str().expect("path"), "--no-wait"]);
    assert!(said.contains("`script-commands.*`, which no stream holds"), "{said}");
    assert!(said.contains("hint: make one with `nats stream add COMMANDS --subjects 'script-commands.*'"), "{said}");
    assert_eq!(world.traces().await, Vec::<String>::new(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_commands_a_sealed_stream_holds_is_not_deployed() {
    let world = world().await;
    let stream = world.jetstream.get_stream("COMMANDS").await.expect("the stream");
    let sealed = async_nats::jetstream::stream::Config { sealed: true, ..stream.cached_info().config.clone() };
    world.jetstream.update_stream(sealed).await.expect("it is sealed");
    let path = module("scripted");
    let said = world.refused(2, &["deploy", path.to_str().expect("path"), "--no-wait"]);
    assert!(said.contains("stream COMMANDS is sealed: it takes no messages any more"), "{said}");
    assert!(said.contains("`script-commands.*`"), "{said}");
    assert_eq!(world.traces().await, Vec::<String>::new(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_commands_are_held_in_part_is_deployed_with_a_warning() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.one", "others.>"]).await;
    let path = module("scripted");
    let output = world.cli(&["deploy", path.to_str().expect("path"), "--no-wait"]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("streams take only script-commands.one of it"), "{said}");
    let warnings = said.lines().filter(|line| line.contains("take only")).count();
    assert_eq!(warnings, 1, "scripts.Told is held: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_loses_its_stream_is_listed_and_gets_everything_once_it_is_back() {
    const TOLD: usize = 60;
    let world = world().await;
    world.stream("OTHERS", &["others.>"]).await;
    // Room for a few effects, so that the pipeline must wait too.
    world.deploy("scripted", "lost", &["--set", "queued_effects=20", "--set", "batch_events=5"]);
    let mut host = world.host(&[]);
    world.in_state("lost", "running").await;
    world.jetstream.delete_stream("COMMANDS").await.expect("the stream goes");
    let script = |number: usize| {
        let asks = json!([send(&format!("script-commands.s{}", number % 3), 10)]);
        json!({ "key": format!("k{number}"), "starts": true, "asks": asks })
    };
    let told: Vec<Value> = (0..TOLD).map(script).collect();
    join_all(told.iter().map(|script| tell(&world, "scripts.Told", script))).await;

    let report = until("listed", async || {
        world.report("lost").await.filter(|report| report["undelivered_effects"].as_u64() >= Some(20))
    })
    .await;
    assert_eq!(report["undelivered"][0]["reason"], "no stream holds this subject", "{report:#}");
    assert_eq!(report["undelivered"][0]["subject"], "script-commands.s0", "{report:#}");
    let (_, counts, _) = world.last_record("lost").await.expect("a record");
    assert!(counts.delivered >= 20 && counts.delivered < TOLD as u64, "it waits with the rest: {counts:?}");

    // It follows a new deployment, and stops when it is told to, though nothing moves.
    let registry = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("deployments");
    let deployment = registry.get("lost").await.expect("an answer").expect("a deployment");
    let deployment = String::from_utf8(deployment.to_vec()).expect("JSON").replace("5,", "4,");
    let revision = registry.put("lost", deployment.into()).await.expect("a new deployment");
    until("the new deployment", async || Some(world.claims("lost").await).filter(|claims| claims.len() == 2)).await;
    until("it runs", async || {
        world.report("lost").await.filter(|report| report["revision"] == revision && report["state"] == "running")
    })
    .await;
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "its log:\n{}", host.log());
    assert!(host.log().contains("everything decided is in the buckets"), "its log:\n{}", host.log());

    let _host = world.host(&[]);
    until("listed again", async || {
        world.report("lost").await.filter(|report| report["undelivered_effects"].as_u64() >= Some(20))
    })
    .await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    let commands = until("all are there", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| commands.len() >= TOLD)
    })
    .await;
    world.caught_up("lost").await;
    let mut keys: Vec<String> = commands.iter().map(|command: &Command| command.key.clone()).collect();
    keys.sort();
    let mut expected: Vec<String> = (0..TOLD).map(|number| format!("k{number}")).collect();
    expected.sort();
    assert_eq!(keys, expected, "each once");
    until("nothing is listed", async || {
        world.report("lost").await.filter(|report| report["undelivered_effects"].is_null())
    })
    .await;
}
