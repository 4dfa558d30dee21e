//! Steps that fail, by a refusal or by silence: exactly what was done is taken back, last first, each once. Compensation that
//! fails for good stands still, says so, and goes on when somebody resumes it. Many answers at once are all counted.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::harness::{Event, World, chains, until};
use crate::services::{Answer, Command, Services, reply, stored};
use crate::shop::instance;

const STEPS: [&str; 4] = ["one", "two", "three", "four"];

/// A deadline that a silent service misses at once, and one that a slow machine does not.
const SOON: u64 = 50;
const LATE: u64 = 600_000;

async fn scripted(settings: &[&str]) -> World {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world.deploy("scripted", "scripted", settings);
    world
}

async fn tell(world: &World, id: &str, script: &Value) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let publish = world.jetstream.publish_with_headers("scripts.Told", headers, script.to_string().into());
    publish.await.expect("the server is there").await.expect("it is stored");
}

fn step(name: &str, within: u64, undo_within: u64) -> Value {
    json!({ "step": { "name": name, "within": within, "retries": 1, "undo_within": undo_within, "undo": "command" } })
}

fn kinds(commands: &[Command]) -> Vec<&str> {
    commands.iter().map(|command| command.kind.as_str()).collect()
}

/// How a step of an instance fails. The instance's key says which: `two-silent`.
fn failing(command: &Command) -> Option<Answer> {
    let key = command.payload.as_str().expect("a key");
    let (failing, how) = key.split_once('-').expect("a step and how it fails");
    let asks = match STEPS.iter().position(|step| *step == command.kind) {
        // An undo.
        None => json!([]),
        Some(_) if command.kind == failing && how == "silent" => return None,
        Some(_) if command.kind == failing => json!([{ "reject": failing }, { "compensate": "no" }]),
        Some(place) => {
            let next = STEPS[place + 1];
            json!([step(next, if next == failing && how == "silent" { SOON } else { LATE }, LATE)])
        }
    };
    Some(("Told".to_owned(), json!({ "key": key, "asks": asks })))
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_step_fails_what_was_done_is_taken_back_once_last_first() {
    let world = scripted(&[]).await;
    let _host = world.host(&[]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "scripts", failing).await;
    let keys: Vec<(usize, &str, String)> = ["refused", "silent"]
        .iter()
        .flat_map(|how| STEPS.iter().enumerate().map(move |(place, step)| (place, *how, format!("{step}-{how}"))))
        .collect();
    for (place, how, key) in &keys {
        let within = if *place == 0 && *how == "silent" { SOON } else { LATE };
        tell(&world, key, &json!({ "key": key, "starts": true, "asks": [step("one", within, LATE)] })).await;
    }
    for (place, how, key) in keys {
        let instance = instance(&world, "scripted", &key, "compensated").await;
        let commands = stored(&world.jetstream, "COMMANDS").await;
        let commands: Vec<Command> = commands.into_iter().filter(|command| command.payload == *key).collect();
        let undone: Vec<String> = STEPS[..place].iter().rev().map(|step| format!("un{step}")).collect();
        let undone = undone.iter().map(String::as_str);
        let expected: Vec<&str> = match how {
            // A step that did not answer may have been carried out, so it is taken back too; and it was asked twice.
            "silent" => {
                let again = [STEPS[place], ["unone", "untwo", "unthree", "unfour"][place]];
                STEPS[..=place].iter().copied().chain(again).chain(undone).collect()
            }
            _ => STEPS[..=place].iter().copied().chain(undone).collect(),
        };
        assert_eq!(kinds(&commands), expected, "{key}");
        let ids: BTreeSet<&str> = commands.iter().map(|command| command.id.as_str()).collect();
        assert_eq!(ids.len(), commands.len(), "{key}: each once");
        assert!(commands.iter().all(|command| command.correlation == key), "{commands:?}");
        let reason = if how == "silent" {
            format!("step {}: no answer within {SOON} ms, 2 times", STEPS[place])
        } else {
            "no".to_owned()
        };
        assert_eq!(instance["reason"], reason, "{instance:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_that_fails_is_told_of_and_goes_on_when_it_is_resumed() {
    let world = scripted(&[]).await;
    let host = world.host(&[]);
    let silent = |command: &Command| {
        let told = ("Told".to_owned(), json!({ "key": "k" }));
        (command.kind != "untwo").then_some(told)
    };
    let services = Services::start(&world.jetstream, "COMMANDS", "scripts", silent).await;
    tell(&world, "begin", &json!({ "key": "k", "starts": true, "asks": [step("one", LATE, LATE)] })).await;
    tell(&world, "go on", &json!({ "key": "k", "asks": [step("two", LATE, 1500)] })).await;
    until("two is confirmed", async || {
        let document = world.documents("scripted").await.remove("k")?;
        let instance: Value = serde_json::from_str(&document).expect("JSON");
        (instance["steps"][1]["state"] == "confirmed").then_some(())
    })
    .await;
    tell(&world, "stop", &json!({ "key": "k", "asks": [{ "compensate": "enough" }] })).await;
    let failed = instance(&world, "scripted", "k", "compensation-failed").await;
    assert_eq!(failed["steps"][0]["state"], "confirmed", "nothing is skipped: {failed:#}");
    assert_eq!(failed["steps"][1]["state"], "undo-failed", "{failed:#}");

    let alert = until("the alert", async || stored(&world.jetstream, "MILLSTREAM_EVENTS").await.pop()).await;
    assert_eq!(alert.kind, "millstream.compensation-failed");
    assert_eq!((alert.payload["handler"].as_str(), alert.payload["key"].as_str()), (Some("scripted"), Some("k")));
    assert_eq!(alert.payload["step"], "two");
    assert_eq!(alert.correlation, "begin");
    let stream = world.jetstream.get_stream("MILLSTREAM_EVENTS").await.expect("the stream of alerts");
    let on_subject = stream.get_last_raw_message_by_subject("millstream.events.scripted.compensation-failed").await;
    assert_eq!(on_subject.expect("the alert's subject").sequence, 1);

    // Whoever mended the service lets it answer, and resumes.
    drop(services);
    let mended = |_: &Command| Some(("Told".to_owned(), json!({ "key": "k" })));
    let _services = Services::start(&world.jetstream, "COMMANDS", "scripts", mended).await;
    drop(host);
    let _host = world.host(&[]);
    let due = json!({ "key": "k", "life": failed["life"], "timer": "resume" });
    for _ in 0..2 {
        let resume = world.jetstream.publish("millstream.timers.scripted.due", due.to_string().into());
        resume.await.expect("the server is there").await.expect("it is stored");
    }
    instance(&world, "scripted", "k", "compensated").await;
    let commands = stored(&world.jetstream, "COMMANDS").await;
    assert_eq!(kinds(&commands), ["one", "two", "untwo", "untwo", "untwo", "unone"]);
    assert_eq!(stored(&world.jetstream, "MILLSTREAM_EVENTS").await.len(), 1, "one alert");
    world.caught_up("scripted").await;
    let (_, counts, _) = world.last_record("scripted").await.expect("a record");
    assert_eq!(counts.ignored, 1, "the second wish to resume found nothing to do: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_answers_at_once_are_all_counted_by_a_saga_and_a_projection_on_one_stream() {
    const ANSWERS: usize = 200;
    let world = scripted(&["--set", "batch_events=37"]).await;
    world.deploy("order-chain", "chain", &["--set", "subjects=scripts.>"]);
    let _host = world.host(&[]);
    let asks: Vec<Value> = (0..ANSWERS).map(|number| step(&format!("s{number}"), LATE, LATE)).collect();
    tell(&world, "begin", &json!({ "key": "k", "starts": true, "asks": asks })).await;
    let commands = until("all commands", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| commands.len() == ANSWERS)
    })
    .await;
    let told = json!({ "key": "k" });
    let answers = commands.iter().map(|command| reply(&world.jetstream, "scripts", command, "Told", &told));
    futures::future::join_all(answers).await;
    let instance = until("all counted", async || {
        let document = world.documents("scripted").await.remove("k")?;
        let instance: Value = serde_json::from_str(&document).expect("JSON");
        (instance["state"]["seen"] == ANSWERS + 1).then_some(instance)
    })
    .await;
    let steps = instance["steps"].as_array().expect("steps");
    let replies: BTreeSet<&str> = steps.iter().filter_map(|step| step["reply"].as_str()).collect();
    assert!(steps.iter().all(|step| step["state"] == "confirmed"), "{instance:#}");
    assert_eq!((steps.len(), replies.len()), (ANSWERS, ANSWERS), "{instance:#}");

    let answers = stored(&world.jetstream, "SCRIPTS").await;
    let event = |answer: &Command| Event {
        id: answer.id.clone(),
        subject: "scripts.Told".to_owned(),
        aggregate: "k".to_owned(),
        customer: String::new(),
        cents: 0,
    };
    let events: Vec<Event> = answers.iter().map(event).collect();
    world.settled("chain", &chains(&events)).await;
    world.caught_up("scripted").await;
    let (_, counts, positions) = world.last_record("scripted").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, positions[0]), (201, 201, 201), "{counts:?}");
    let (_, counts, _) = world.last_record("chain").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, counts.irrelevant), (201, 200, 1), "{counts:?}");
}
