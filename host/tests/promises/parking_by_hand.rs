//! What people and replicas do to the stream of dead letters and to the bucket of wishes: a message among the letters, a letter removed, a
//! server that lags. Nothing is told as lost that is not, nothing that is lost goes unsaid, and nobody else's keys wait.

use async_nats::jetstream::stream::{Config, Source};
use serde_json::{Value, json};

use crate::harness::{World, json_lines, until};
use crate::parking::{Told, decided, fold, harmful, mend, publish, told, world};

const DEAD: &str = "MILLSTREAM_DEAD";

/// Batches are small, so that a key with many letters is taken up in several records.
const SMALL: [&str; 4] = ["--set", "batch_events=5", "--set", "probation_events=0"];

/// Puts a message among the dead letters; answers its sequence there.
async fn alien(world: &World, subject: &str) -> u64 {
    let sent = world.jetstream.publish(format!("millstream.dead.fragile.1.{subject}"), "alien".into()).await;
    sent.expect("sent").await.expect("stored").sequence
}

async fn remove(world: &World, letter: u64) {
    let stream = world.jetstream.get_stream(DEAD).await.expect("the stream");
    assert!(stream.delete_message(letter).await.expect("removed"));
}

/// Removes the first letter of a key by hand.
async fn remove_first(world: &World, generation: u32, key: &str) {
    let stream = world.jetstream.get_stream(DEAD).await.expect("the stream");
    let subject = format!("millstream.dead.fragile.{generation}.{key}");
    let first = stream.get_first_raw_message_by_subject(&subject, 1).await.expect("a letter");
    remove(world, first.sequence).await;
}

/// Keys and units that are parked.
fn units(world: &World, generation: &str) -> Vec<(Option<String>, u64)> {
    let rows = json_lines(&world.ok(&["dead", "fragile", "--generation", generation, "--json"]));
    let row = |row: &Value| (row["key"].as_str().map(str::to_owned), row["units"].as_u64().expect("a number"));
    let mut units: Vec<_> = rows.iter().map(row).collect();
    units.sort();
    units
}

fn of(key: &str, units: u64) -> (Option<String>, u64) {
    (Some(key.to_owned()), units)
}

/// Waits until so much is parked.
async fn parked(world: &World, expected: &[(Option<String>, u64)]) {
    until("all letters are stored", async || (units(world, "1") == expected).then_some(())).await;
}

/// All that was told of letters that are gone: how many, and of which generation.
async fn told_gone(world: &World) -> Vec<(u64, u64)> {
    let Ok(stream) = world.jetstream.get_stream("MILLSTREAM_EVENTS").await else { return Vec::new() };
    let mut found = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        if message.subject.as_str() == "millstream.events.fragile.dead-letters-gone" {
            let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
            found.push((body["units"].as_u64().expect("units"), body["generation"].as_u64().expect("a generation")));
        }
    }
    found
}

/// What the doctor finds of the handler.
fn checks(world: &World) -> Vec<String> {
    let found = json_lines(&String::from_utf8(world.cli(&["doctor", "--json"]).stdout).expect("UTF-8"));
    let of_it = found.iter().filter(|finding| finding["thing"].as_str().is_some_and(|thing| thing.contains("fragile")));
    of_it.filter_map(|finding| finding["check"].as_str().map(str::to_owned)).collect()
}

async fn finds(world: &World, expected: &[&str]) {
    until("the doctor finds it", async || (checks(world) == expected).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_letter_is_not_missed_when_it_is_removed_and_hides_no_loss_after_that() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    let mut number = 3;
    publish(&world, &[harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)]).await;
    let host = world.host(&[]);
    decided(&world, "fragile", 3).await;
    parked(&world, &[of("k1", 2)]).await;
    // The host that runs does not know of it, so it can do nothing, and says so.
    let unknown = alien(&world, "k9").await.to_string();
    let said = world.refused(1, &["redrive", "fragile", "--letter", &unknown]);
    assert!(said.contains("nothing was redriven, and what was meant is still there"), "{said}");
    drop(host);

    // A claim that counts them, and a record after it.
    let hidden = alien(&world, "k1").await;
    let mut again = async |host| {
        drop(host);
        let host = world.host(&[]);
        number += 1;
        publish(&world, &[told("k2", number)]).await;
        decided(&world, "fragile", usize::try_from(number).expect("small")).await;
        host
    };
    let host = again(None).await;
    for which in [["--letter", unknown.as_str()], ["--class", "unreadable"]] {
        let said = world.refused(1, &["redrive", "fragile", which[0], which[1]]);
        assert!(said.contains(&format!("nats stream rmm {DEAD} {unknown} -f")), "{said}");
    }
    // One of them is given up, the other is removed as the hint says.
    world.ok(&["discard", "fragile", "--letter", &unknown, "--reason", "an alien", "--yes"]);
    let host = again(Some(host)).await;
    remove(&world, hidden).await;
    let host = again(Some(host)).await;
    assert_eq!(units(&world, "1"), [of("k1", 2)]);
    finds(&world, &[]).await;
    assert_eq!(told_gone(&world).await, []);

    remove_first(&world, 1, "k1").await;
    let _host = again(Some(host)).await;
    assert_eq!(told_gone(&world).await, [(1, 1)]);
    finds(&world, &["letters-gone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_among_letters_without_a_key_is_named_and_the_keys_do_not_wait_for_it() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    let events = [harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)];
    publish(&world, &events).await;
    world.jetstream.publish("told.Told", "garbage".into()).await.expect("sent").await.expect("stored");
    let host = world.host(&[]);
    decided(&world, "fragile", 4).await;
    parked(&world, &[(None, 1), of("k1", 2)]).await;
    drop(host);
    let alien = alien(&world, "~").await;
    let _host = world.host(&[]);
    mend(&world).await;
    let remove_it = format!("nats stream rmm {DEAD} {alien} -f");
    let said = world.refused(1, &["redrive", "fragile", "--class", "unreadable"]);
    assert!(said.contains(&remove_it), "{said}");
    let said = world.refused(1, &["redrive", "fragile", "--all"]);
    assert!(said.contains("1 stay parked; first an event without a key") && said.contains(&remove_it), "{said}");
    world.settled("fragile", &fold(&events)).await;
    assert_eq!(units(&world, "1"), [(None, 2)]);
    remove(&world, alien).await;
    world.ok(&["discard", "fragile", "--all", "--reason", "garbage", "--yes"]);
    assert_eq!(units(&world, "1"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_lost_nothing_is_taken_up_in_many_records_while_another_lost_its_first_letter() {
    let world = world().await;
    world.deploy("fragile", "fragile", &SMALL);
    let mut events = vec![harmful("k1", 1, "refuse"), harmful("k2", 2, "refuse")];
    events.extend((3..=62).map(|number| told("k1", number)));
    events.push(told("k2", 63));
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    parked(&world, &[of("k1", 61), of("k2", 2)]).await;
    drop(host);
    remove_first(&world, 1, "k2").await;
    world.deploy("fragile-mended", "fragile", &SMALL);
    let _host = world.host(&[]);
    let said = world.ok(&["redrive", "fragile", "--key", "k1", "--json"]);
    let outcome: Value = serde_json::from_str(said.trim()).expect("JSON");
    assert_eq!((&outcome["units"], &outcome["keys"]), (&json!(61), &json!(1)), "{outcome}");
    let of_k1: Vec<Told> = events.into_iter().filter(|event| event.keys == ["k1"]).collect();
    world.settled("fragile", &fold(&of_k1)).await;
    let said = world.refused(1, &["redrive", "fragile", "--key", "k2"]);
    assert!(said.contains("its first dead letter followed another one, and 1 of the handler's are gone"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_are_gone_are_told_once_and_only_of_the_generation_that_is_live() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    publish(&world, &[harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)]).await;
    let mut host = world.host(&[]);
    decided(&world, "fragile", 3).await;
    world.ok(&["rebuild", "fragile"]);
    until("both generations have parked it", async || {
        ["1", "2"].iter().all(|generation| units(&world, generation) == [of("k1", 2)]).then_some(())
    })
    .await;
    host.kill();
    for generation in [1, 2] {
        remove_first(&world, generation, "k1").await;
    }
    for round in 0..3 {
        let _host = world.host(&[]);
        publish(&world, &[told("k1", 4 + round)]).await;
        until("both generations go on", async || {
            ["1", "2"].iter().all(|generation| units(&world, generation) == [of("k1", 2 + round)]).then_some(())
        })
        .await;
        assert_eq!(told_gone(&world).await, [(1, 1)], "round {round}");
    }
    // One more is news.
    remove_first(&world, 1, "k1").await;
    let _host = world.host(&[]);
    until("it is told", async || (told_gone(&world).await == [(1, 1), (2, 1)]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_takes_letters_that_are_not_stored_yet_or_of_another_generation_for_none_that_are_gone() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    publish(&world, &[harmful("k1", 1, "refuse"), told("k2", 2)]).await;
    let mut host = world.host(&[("MILLSTREAM_CRASH_AT", "burying:1")]);
    assert!(!host.end().await.success(), "the host ends by the abort; its log:\n{}", host.log());
    finds(&world, &["not-running"]).await;
    let host = world.host(&[]);
    parked(&world, &[of("k1", 1)]).await;
    finds(&world, &[]).await;

    world.ok(&["rebuild", "fragile"]);
    world.ok(&["promote", "fragile"]);
    assert_eq!(units(&world, "2"), [of("k1", 1)]);
    remove_first(&world, 1, "k1").await;
    finds(&world, &[]).await;
    let ledgers = world.jetstream.get_key_value("MILLSTREAM_GENERATIONS").await.expect("the bucket");
    let ledger = ledgers.get("fragile").await.expect("an answer").expect("a value");
    ledgers.delete("fragile").await.expect("deleted");
    until("the host says so", async || host.log().contains("generation 2 goes on").then_some(())).await;
    finds(&world, &["lost-ledger"]).await;
    ledgers.put("fragile", ledger).await.expect("put");
    remove_first(&world, 2, "k1").await;
    finds(&world, &["letters-gone"]).await;
}

/// From now on a replica of a stream that lags for good answers direct reads, as well as the stream itself.
async fn lagging(world: &World, of: &str, name: &str) {
    let messages = world.jetstream.get_stream(of).await.expect("the stream").cached_info().state.messages;
    let mirror = Some(Source { name: of.to_owned(), ..Source::default() });
    let config = Config { name: name.to_owned(), mirror, allow_direct: true, mirror_direct: true, ..Config::default() };
    world.jetstream.create_stream(&config).await.expect("made");
    let copied = async || Some(world.jetstream.get_stream(name).await.expect("it").cached_info().clone());
    let info = until("it is copied", async || copied().await.filter(|info| info.state.messages == messages)).await;
    world.jetstream.update_stream(Config { sealed: true, ..info.config }).await.expect("sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_letters_no_replica_has_in_time_is_named_as_left() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    let events = [harmful("k1", 1, "refuse"), harmful("k2", 2, "refuse")];
    publish(&world, &events[..1]).await;
    let host = world.host(&[]);
    parked(&world, &[of("k1", 1)]).await;
    lagging(&world, DEAD, "LAGS").await;
    publish(&world, &events[1..]).await;
    decided(&world, "fragile", 2).await;
    parked(&world, &[of("k1", 1), of("k2", 1)]).await;
    drop(host);
    world.deploy("fragile-mended", "fragile", &[]);
    world.refused(1, &["redrive", "fragile", "--all", "--timeout", "0"]);
    // The stream itself answers no direct read any more.
    let of_dead = world.jetstream.get_stream(DEAD).await.expect("the stream").cached_info().config.clone();
    world.jetstream.update_stream(Config { allow_direct: false, ..of_dead.clone() }).await.expect("updated");
    let _host = world.host(&[]);
    let bucket = world.jetstream.get_key_value("MILLSTREAM_REDRIVES").await.expect("the bucket");
    let done = until("it is done", async || {
        let entry: Value = serde_json::from_slice(&bucket.get("fragile.1").await.ok()??).ok()?;
        Some(entry["done"].clone()).filter(|done| !done.is_null())
    })
    .await;
    assert_eq!((&done["units"], &done["keys"]), (&json!(1), &json!(1)), "{done}");
    let left: Vec<_> =
        done["left"].as_array().expect("a list").iter().map(|left| (&left["key"], &left["class"])).collect();
    assert_eq!(left, [(&json!("k2"), &json!("unreadable"))], "{done}");
    world.settled("fragile", &fold(&events[..1])).await;

    world.jetstream.delete_stream("LAGS").await.expect("deleted");
    world.jetstream.update_stream(of_dead).await.expect("updated");
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_does_not_make_a_wish_be_done_twice_or_seem_taken_back() {
    let world = world().await;
    world.deploy("fragile", "fragile", &[]);
    let mut events = vec![harmful("k1", 1, "trap"), harmful("k2", 2, "refuse")];
    publish(&world, &events).await;
    let host = world.host(&[]);
    decided(&world, "fragile", 2).await;
    parked(&world, &[of("k1", 1), of("k2", 1)]).await;
    drop(host);
    let bucket = "KV_MILLSTREAM_REDRIVES";
    let discard = ["discard", "fragile", "--class", "refused", "--reason", "a test", "--yes", "--timeout", "0"];
    world.refused(1, &discard);
    // One replica has the wish for ever, another that nothing is wished.
    lagging(&world, bucket, "WISHED").await;
    let host = world.host(&[]);
    parked(&world, &[of("k1", 1)]).await;
    events.push(harmful("k3", 3, "refuse"));
    publish(&world, &events[2..]).await;
    parked(&world, &[of("k1", 1), of("k3", 1)]).await;
    // Each of them is heard by a host that looks at the wishes.
    for attempt in 2..10 {
        let said = world.refused(1, &["redrive", "fragile", "--key", "k1"]);
        assert!(said.contains(&format!("attempt {attempt}: trap")), "{said}");
    }
    assert_eq!(units(&world, "1"), [of("k1", 1), of("k3", 1)], "what was parked after the wish was done stays");
    drop(host);
    lagging(&world, bucket, "DONE").await;
    for _ in 0..8 {
        world.refused(1, &discard);
        let taken: Value =
            serde_json::from_str(world.ok(&["redrive", "fragile", "--cancel", "--json"]).trim()).expect("JSON");
        assert_eq!(taken["discard"], "a test");
        let said = world.refused(2, &["redrive", "fragile", "--cancel"]);
        assert!(said.contains("nothing that was asked for waits for fragile"), "{said}");
    }
    assert_eq!(units(&world, "1"), [of("k1", 1), of("k3", 1)]);
}
