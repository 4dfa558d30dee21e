//! Sagas that lose their host: at every named place of a batch's journey, between a commit and its effects for longer than the
//! target's duplicate window, and to an heir while the first owner stands still. Each command stands in its stream exactly once,
//! each order ends as due, and instances are the same bytes as without any trouble.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::stream::{self, RetentionPolicy};
use millstream::crash::{ACTING, POINTS};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::harness::{Documents, World, at_each_point, until};
use crate::services::{Command, Services, stored};
use crate::shop::{HANDLER, Sent, as_due, by_rule, due, instance, place, sent, shop, window_over};

const ORDERS: u64 = 40;
const WINDOW: Duration = Duration::from_secs(120);

/// Many small batches, each shown at once.
const SETTINGS: [&str; 2] = ["batch_events=5", "show_interval_milliseconds=1"];

async fn services(world: &World) -> Services {
    Services::start(&world.jetstream, "COMMANDS", "orders", by_rule).await
}

/// The instances of a run that nothing happened to.
async fn undisturbed() -> &'static Documents {
    static INSTANCES: OnceCell<Documents> = OnceCell::const_new();
    let run = async || {
        let world = shop(WINDOW, &[]).await;
        let _services = services(&world).await;
        place(&world, 0..ORDERS).await;
        let _host = world.host(&[]);
        as_due(&world, ORDERS).await
    };
    INSTANCES.get_or_init(run).await
}

async fn survives(point: &'static str) {
    let world = shop(WINDOW, &SETTINGS).await;
    let _services = services(&world).await;
    place(&world, 0..ORDERS).await;
    // Documents of many batches are shown together, so there are fewer passages there.
    for passage in if point.contains("sho") { [1, 3] } else { [1, 12] } {
        let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:{passage}"))]);
        let status = host.end().await;
        assert!(!status.success(), "the host ends by the abort; its log:\n{}", host.log());
        assert!(!host.log().contains("stopped;"), "not by a request");
    }
    let _host = world.host(&[]);
    as_due(&world, ORDERS).await;
    world.settled(HANDLER, undisturbed().await).await;
}

at_each_point! {
    [&POINTS[..], &ACTING[..]].concat();
    same_commands_after_a_crash_when_a_batch_has_arrived: "arrived",
    same_commands_after_a_crash_when_a_batch_is_staged: "staged",
    same_commands_after_a_crash_when_instances_are_loaded: "loaded",
    same_commands_after_a_crash_when_a_batch_is_applied: "applied",
    same_commands_after_a_crash_before_the_commit: "encoded",
    same_commands_after_a_crash_between_commit_and_ack: "committed",
    same_commands_after_a_crash_after_the_ack: "acked",
    same_commands_after_a_crash_before_instances_are_shown: "showing",
    same_commands_after_a_crash_when_half_of_the_instances_are_shown: "half-shown",
    same_commands_after_a_crash_when_all_instances_are_shown: "shown",
    same_commands_after_a_crash_before_a_command_is_published: "publishing",
    same_commands_after_a_crash_when_a_command_is_published: "published",
    same_commands_after_a_crash_when_all_commands_are_published: "acted",
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_published_once_after_the_duplicate_window() {
    let world = shop(Duration::from_millis(200), &SETTINGS).await;
    let _services = services(&world).await;
    place(&world, 0..ORDERS).await;
    let places = [("committed", 1), ("committed", 3), ("published", 10), ("acked", 2), ("published", 1), ("acted", 4)];
    for (number, (point, passage)) in places.into_iter().enumerate() {
        let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:{passage}"))]);
        assert!(!host.end().await.success(), "its log:\n{}", host.log());
        if number == 0 {
            let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
            let commands = stored(&world.jetstream, "COMMANDS").await;
            assert!(counts.applied > 0 && commands.is_empty(), "it ended between: {counts:?}, {commands:?}");
        }
        window_over(&world).await;
    }
    let _host = world.host(&[]);
    as_due(&world, ORDERS).await;
    world.settled(HANDLER, undisturbed().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stood_still_before_it_published_leaves_that_to_its_heir() {
    let world = shop(Duration::from_millis(200), &SETTINGS).await;
    place(&world, 0..ORDERS).await;
    // At its first record: of what it publishes later some bytes may be on their way when it stops, and those nobody can call back.
    let zombie = world.host(&[("MILLSTREAM_STOP_AT", "committed:1")]);
    until("the first host stands still", async || zombie.is_stopped().then_some(())).await;
    let before = stored(&world.jetstream, "COMMANDS").await.len();
    let (_, counts, _) = world.last_record(HANDLER).await.expect("a record");
    assert!(counts.delivered > 0 && before == 0, "it stands between: {counts:?}, {before} commands");

    // Nothing is answered yet: a command for each order is all there is to publish.
    let _heir = world.host(&[]);
    let all_there = async || stored(&world.jetstream, "COMMANDS").await.len() as u64 == ORDERS;
    until("the heir publishes", async || all_there().await.then_some(())).await;
    window_over(&world).await;
    zombie.signal("CONT");
    until("it learns of it", async || zombie.log().contains("fenced").then_some(())).await;

    let _services = services(&world).await;
    as_due(&world, ORDERS).await;
    world.settled(HANDLER, undisturbed().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_out_of_a_work_queue_is_not_sent_again_after_a_rest_or_a_stop() {
    let world = shop(Duration::from_millis(200), &SETTINGS).await;
    let mut queue = world.jetstream.get_stream("COMMANDS").await.expect("the stream").cached_info().config.clone();
    world.jetstream.delete_stream("COMMANDS").await.expect("the stream goes");
    queue.retention = RetentionPolicy::WorkQueue;
    world.jetstream.create_stream(queue).await.expect("stream is made");
    // Nobody confirms, so that commands are the last thing there is.
    let answer = |command: &Command| (command.kind != "SendConfirmation").then(|| by_rule(command)).flatten();
    let services = Services::start(&world.jetstream, "COMMANDS", "orders", answer).await;

    let mut expected: BTreeMap<String, Vec<Sent>> = BTreeMap::new();
    for round in 0..3 {
        let mut host = world.host(&[]);
        // Those that nobody refuses.
        for number in (round * 20..(round + 1) * 20).filter(|number| due(*number).1.is_some()) {
            expected.insert(format!("O{number}"), due(number).0);
            place(&world, number..number + 1).await;
        }
        let count: usize = expected.values().map(Vec::len).sum();
        let all = async || (services.commands.lock().unwrap().len() >= count).then_some(());
        until("every command is taken out", all).await;
        if round == 0 {
            until("a rest", async || world.has_told_its_effects(HANDLER).await.then_some(())).await;
            host.kill();
        } else {
            host.signal("TERM");
            host.end().await;
        }
        window_over(&world).await;
    }
    let _host = world.host(&[]);
    until("effects are looked after", async || world.has_told_its_effects(HANDLER).await.then_some(())).await;
    let mut commands: BTreeMap<String, Vec<Sent>> = BTreeMap::new();
    for command in services.commands.lock().unwrap().drain(..) {
        commands.entry(command.key.clone()).or_default().push(sent(command));
    }
    assert_eq!(commands, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_does_not_overtake_its_command() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    let config = stream::Config {
        name: "COMMANDS".to_owned(),
        subjects: vec!["script-commands.*".to_owned(), "probe".to_owned()],
        duplicate_window: Duration::from_millis(200),
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    world.deploy("scripted", "scripted", &[]);
    // Asked for and taken back in one breath, so both wait to be published.
    let step = |name: &str| json!({ "step": { "name": name, "undo": "command" } });
    let asks = json!([step("one"), step("two"), { "compensate": "enough" }]);
    for number in 0..ORDERS {
        let script = json!({ "key": format!("k{number}"), "starts": true, "asks": asks });
        let publish = world.jetstream.publish("scripts.Told", script.to_string().into()).await;
        publish.expect("the server is there").await.expect("it is stored");
    }
    let answer = |command: &Command| {
        let told = ("Told".to_owned(), json!({ "key": command.key }));
        command.kind.starts_with("un").then_some(told)
    };
    let _services = Services::start(&world.jetstream, "COMMANDS", "scripts", answer).await;
    for passage in [("committed", 1), ("published", 20), ("published", 30), ("published", 40)] {
        let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{}:{}", passage.0, passage.1))]);
        assert!(!host.end().await.success(), "its log:\n{}", host.log());
        window_over(&world).await;
    }
    let _host = world.host(&[]);
    for number in 0..ORDERS {
        instance(&world, "scripted", &format!("k{number}"), "compensated").await;
    }
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for command in stored(&world.jetstream, "COMMANDS").await {
        kinds.entry(command.key).or_default().push(command.kind);
    }
    let in_order = ["one", "two", "untwo", "unone"].map(str::to_owned).to_vec();
    assert_eq!(kinds, (0..ORDERS).map(|number| (format!("k{number}"), in_order.clone())).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_though_the_host_died_before_it_was_set() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world.deploy("scripted", "scripted", &[]);
    let begin = async |key: &str| {
        // A host waits with such a deadline for a second.
        let step = json!({ "step": { "name": "one", "within": 4000, "retries": 1, "undo": "command" } });
        let script = json!({ "key": key, "starts": true, "asks": [step] });
        let publish = world.jetstream.publish("scripts.Told", script.to_string().into());
        publish.await.expect("the server is there").await.expect("it is stored");
    };
    let commands = async |count: usize| {
        let all = async || Some(stored(&world.jetstream, "COMMANDS").await).filter(|all| all.len() >= count);
        until(&format!("{count} commands"), all).await
    };
    // The second one's record says how far the effects of the first one's are done: not, as long as its deadline is not set.
    let mut host = world.host(&[("MILLSTREAM_CRASH_AT", "published:2")]);
    begin("first").await;
    commands(1).await;
    begin("second").await;
    assert!(!host.end().await.success(), "its log:\n{}", host.log());

    // Nobody answers, so both are sent again.
    let _host = world.host(&[]);
    let mut sent: Vec<(String, String)> =
        commands(4).await.into_iter().map(|command| (command.key, command.id)).collect();
    sent.sort();
    let attempts: Vec<(&str, bool)> = sent.iter().map(|(key, id)| (key.as_str(), id.ends_with(".2"))).collect();
    assert_eq!(attempts, [("first", false), ("first", true), ("second", false), ("second", true)], "{sent:?}");
}
