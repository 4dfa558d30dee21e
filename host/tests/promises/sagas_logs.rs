//! Sagas over the whole log of fines: the commands in the stream, listed, have the hash that Python and DuckDB computed. Every
//! timer of the log was due years ago, so all of them come at once. Skipped, with a line that says so, where the data is missing.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Dice, PATIENCE, World, pause};
use crate::real_logs::{Pack, listing, text};
use crate::sagas_time::timers;
use crate::services::{Command, stored};

const EVENTS: u64 = 561_470;
const PENALTIES: u64 = 79_860;
const COLLECTIONS: u64 = 4713 + 992 + 146;
const KILLS: u64 = 10;

/// The log of the police, and a stream for the commands.
async fn police() -> Option<(Pack, World)> {
    let pack = Pack::open("traffic-fines")?;
    let world = World::new().await;
    world.stream("FINES", &["fines.>"]).await;
    world.stream("COMMANDS", &["fine-commands.*"]).await;
    assert_eq!(pack.publish(&world, "fines.{aggregateId}", None), EVENTS);
    Some((pack, world))
}

/// Events and timers decided so far.
async fn decided(world: &World, handlers: &[&str]) -> u64 {
    let mut sum = 0;
    for handler in handlers {
        sum += world.last_record(handler).await.map_or(0, |(_, counts, _)| counts.delivered);
    }
    sum
}

async fn commands(world: &World) -> u64 {
    world.jetstream.get_stream("COMMANDS").await.expect("the stream").cached_info().state.messages
}

/// Waits until these handlers have decided and published so much, for as long as they go on: how long that takes is the
/// machine's.
async fn progressed(world: &World, handlers: &[&str], least: u64, least_commands: u64) {
    let (mut most, mut deadline) = ((0, 0), Instant::now() + PATIENCE);
    loop {
        let now = (decided(world, handlers).await, commands(world).await);
        if now.0 >= least && now.1 >= least_commands {
            return;
        }
        if now > most {
            (most, deadline) = (now, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "{handlers:?} stand still at {now:?} of {least}, {least_commands}");
        pause().await;
    }
}

/// Runs a host until all is decided and published, and ends it.
async fn finish(world: &World, handlers: &[&str], least: u64, commands: u64) {
    let begun = Instant::now();
    let mut host = world.host(&[]);
    progressed(world, handlers, least, commands).await;
    let rate = least as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{handlers:?}: {:.1} s for the rest, {rate:.0} a second if that was all", begun.elapsed().as_secs_f64());
    for handler in handlers {
        world.caught_up(handler).await;
    }
    host.signal("TERM");
    assert_eq!(host.end().await.code(), Some(0), "{}", host.log());
    assert!(!host.log().contains("ERROR"), "{}", host.log());
}

fn rows<'a>(commands: impl Iterator<Item = &'a Command>) -> Vec<String> {
    let row = |command: &Command| {
        let payload = &command.payload;
        let [fine, event, at] = ["aggregateId", "eventId", "at"].map(|name| text(&payload[name]));
        format!("{fine}\t{}\t{event}\t{at}", command.kind)
    };
    let mut rows: Vec<String> = commands.map(row).collect();
    rows.sort_unstable();
    rows
}

/// Compares row by row first: a hash does not say what is wrong.
fn check(pack: &Pack, answer: &str, rows: Vec<String>) {
    let expected = pack.expected(answer);
    let wrong = rows.iter().zip(&expected).find(|(row, expected)| row != expected);
    assert_eq!((wrong, rows.len()), (None, expected.len()), "{answer}");
    assert_eq!(json!(listing(rows.into_iter())), pack.answers[answer]["sha256"], "{answer}");
}

async fn instances(world: &World, handler: &str) -> Vec<Value> {
    world
        .documents(handler)
        .await
        .into_values()
        .map(|document| serde_json::from_str(&document).expect("JSON"))
        .collect()
}

async fn check_penalties(pack: &Pack, world: &World, handler: &str) {
    let commands = stored(&world.jetstream, "COMMANDS").await;
    check(pack, "S1_penaltyAfter60Days", rows(commands.iter().filter(|command| command.kind == "AddPenalty")));
    let (_, counts, _) = world.last_record(handler).await.expect("a record");
    assert_eq!((counts.applied, counts.lost, counts.parked), (2 * PENALTIES, 0, 0), "an event and a timer each");
    assert_eq!(counts.irrelevant + counts.applied + counts.ignored, counts.delivered, "{counts:?}");
    let instances = instances(world, handler).await;
    let completed = instances.iter().filter(|instance| instance["status"] == "completed").count();
    assert_eq!((instances.len() as u64, completed as u64), (PENALTIES, PENALTIES));
    assert_eq!(timers(world, handler, "set.>").await, 0);
}

async fn check_collections(pack: &Pack, world: &World, handler: &str) {
    let commands = stored(&world.jetstream, "COMMANDS").await;
    let commands: Vec<&Command> = commands.iter().filter(|command| command.kind != "AddPenalty").collect();
    let mut kinds = BTreeMap::<&str, u64>::new();
    for command in &commands {
        *kinds.entry(&command.kind).or_default() += 1;
    }
    let answer = &pack.answers["S2_collectionVersusAppeal"];
    assert_eq!(json!(kinds.into_iter().collect::<Vec<_>>()), answer["commands"]);
    check(pack, "S2_collectionVersusAppeal", rows(commands.into_iter()));
    let instances = instances(world, handler).await;
    let flagged = |flag: &str| instances.iter().filter(|instance| instance["state"][flag] == true).count();
    assert_eq!(json!(flagged("inCollection")), answer["inCollectionAtEnd"]);
    assert_eq!(json!(flagged("suspended")), answer["suspendedAtEnd"]);
    let (_, counts, _) = world.last_record(handler).await.expect("a record");
    assert_eq!((counts.delivered, counts.lost, counts.parked), (EVENTS, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn penalties_of_half_a_million_fines_equal_the_answers_computed_elsewhere() {
    let Some((pack, world)) = police().await else { return };
    world.deploy("fine-penalty", "penalty", &[]);
    finish(&world, &["penalty"], EVENTS + PENALTIES, PENALTIES).await;
    check_penalties(&pack, &world, "penalty").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_half_a_million_fines_equal_the_answers_computed_elsewhere() {
    let Some((pack, world)) = police().await else { return };
    world.deploy("fine-collection", "collection", &[]);
    finish(&world, &["collection"], EVENTS, COLLECTIONS).await;
    check_collections(&pack, &world, "collection").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_are_the_same_with_the_host_killed_ten_times_on_the_way() {
    let Some((pack, world)) = police().await else { return };
    let handlers = ["penalty", "collection"];
    world.deploy("fine-penalty", handlers[0], &[]);
    world.deploy("fine-collection", handlers[1], &[]);
    let all = 2 * EVENTS + PENALTIES;
    let mut dice =
        Dice::new(std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260_102));
    let mut last = 0;
    for kill in 0..KILLS {
        let mut host = world.host(&[]);
        let at = (kill * all + dice.roll(all)) / (KILLS + 1);
        progressed(&world, &handlers, at.max(last + 1), 0).await;
        host.kill();
        last = decided(&world, &handlers).await;
        assert!(last < all, "kill {kill} came after the work was done");
    }
    finish(&world, &handlers, all, PENALTIES + COLLECTIONS).await;
    check_penalties(&pack, &world, "penalty").await;
    check_collections(&pack, &world, "collection").await;
}
