//! Parked instances of sagas: the instance is the key, its timers and answers stand in line with its events; and parked keys of a
//! generation that is built anew.

use serde_json::{Value, json};

use crate::harness::{World, cli, outcomes, until};
use crate::parking::{self, dead, decided, fold, fold_parked, mend, told};
use crate::services::stored;

async fn tell(world: &World, script: &Value) {
    let publish = world.jetstream.publish("scripts.Told", script.to_string().into()).await;
    publish.expect("the server is there").await.expect("it is stored");
}

fn send(name: &str) -> Value {
    json!({ "send": { "subject": format!("script-commands.{name}"), "letters": 1 } })
}

fn script(key: &str, asks: &Value) -> Value {
    json!({ "key": key, "starts": true, "asks": asks })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_parked_with_its_timers_and_goes_on_where_it_stood() {
    let world = World::new().await;
    world.stream("SCRIPTS", &["scripts.>"]).await;
    world.stream("COMMANDS", &["script-commands.*"]).await;
    world.deploy("scripted", "saga", &["--set", "effects_per_unit=2"]);
    let _host = world.host(&[]);
    // Nobody answers, so its deadline comes, and its retry after that.
    let step = json!({ "step": { "name": "slow", "within": 1500, "retries": 1, "undo": "irreversible" } });
    tell(&world, &script("bad", &json!([step]))).await;
    tell(&world, &script("bad", &json!([send("a"), send("b"), send("c")]))).await;
    for number in 0..20 {
        tell(&world, &script(&format!("good{number}"), &json!([send("fine")]))).await;
    }
    tell(&world, &script("bad", &json!([send("d")]))).await;
    let rows = until("the deadline stands in line", async || {
        Some(dead(&world, "saga")).filter(|rows| rows.iter().any(|row| row["units"] == 3))
    })
    .await;
    assert_eq!((rows.len(), rows[0]["key"].as_str(), rows[0]["class"].as_str()), (1, Some("bad"), Some("refused")));
    let commands = until("the others go on", async || {
        Some(stored(&world.jetstream, "COMMANDS").await).filter(|commands| commands.len() >= 21)
    })
    .await;
    assert_eq!(commands.iter().filter(|command| command.key == "bad").count(), 1, "only what came before");
    let counts = world.last_record("saga").await.expect("a record").1;
    assert_eq!((counts.parked, outcomes(&counts)), (3, counts.delivered));

    let refused = world.refused(1, &["redrive", "saga", "--key", "bad"]);
    assert!(refused.contains("3 effects at once are more than the 2 allowed"), "{refused}");
    world.deploy("scripted", "saga", &["--set", "effects_per_unit=10"]);
    until("more is allowed", async || {
        Some(cli(&world.server.url(), &["redrive", "saga", "--all", "--timeout", "5"]))
            .filter(|output| output.status.success())
    })
    .await;
    // The commands of the event that was refused, of the one behind it, and the second attempt after the deadline.
    let commands = until("all of it is done", async || {
        let commands = stored(&world.jetstream, "COMMANDS").await;
        Some(commands).filter(|commands| commands.iter().filter(|command| command.key == "bad").count() >= 6)
    })
    .await;
    let kinds: Vec<&str> = commands.iter().filter(|one| one.key == "bad").map(|one| one.kind.as_str()).collect();
    assert_eq!(kinds, ["slow", "a", "b", "c", "d", "slow"]);
    assert!(dead(&world, "saga").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_built_anew_parks_the_same_and_is_cleared_away_with_it() {
    let world = parking::world().await;
    world.deploy("fragile", "fragile", &[]);
    let mut events: Vec<_> = (1..=300).map(|number| told(&format!("k{}", number % 20), number)).collect();
    for number in [20, 45, 77] {
        events[number].harm = Some("trap");
    }
    parking::publish(&world, &events).await;
    let _host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    world.settled("fragile", &fold_parked(&events)).await;
    world.ok(&["rebuild", "fragile"]);
    let keys = |rows: Vec<Value>| {
        let mut keys: Vec<(String, u64)> = rows
            .iter()
            .map(|row| (row["key"].as_str().expect("a key").to_owned(), row["units"].as_u64().expect("units")))
            .collect();
        keys.sort();
        keys
    };
    let live = keys(dead(&world, "fragile"));
    let of = |number: &str| {
        let text = world.ok(&["dead", "fragile", "--generation", number, "--json"]);
        keys(text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
    };
    until("the shadow has parked the same", async || (of("2") == live).then_some(())).await;
    world.ok(&["promote", "fragile"]);
    assert_eq!(keys(dead(&world, "fragile")), live, "those of the generation that is live now");
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    assert_eq!(of("1"), live, "the one before keeps its own");
    world.ok(&["abandon", "fragile", "--generation", "1"]);
    let stream = world.jetstream.get_stream("MILLSTREAM_DEAD").await.expect("the stream");
    assert_eq!(stream.cached_info().state.messages, 0);
}
