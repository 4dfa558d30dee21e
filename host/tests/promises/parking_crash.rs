//! Parking and taking up again whatever dies when: the host is aborted at each place where parked units are on their way, killed at
//! random, fenced; and in the end each document is the fold of the whole stream in its order.

use millstream::crash::PARKING;
use serde_json::Value;

use crate::harness::{Dice, Host, World, at_each_point, cli, module, outcomes, pause, until};
use crate::parking::{Told, dead, decided, fold, fold_parked, harmful, mend, publish, told, world};

/// Batches are small, so that a key with many letters is taken up in several records.
const SETTINGS: [&str; 8] = [
    "--set",
    "batch_events=5",
    "--set",
    "show_interval_milliseconds=1",
    "--set",
    "max_failing_keys=1000",
    "--set",
    "probation_events=0",
];

/// Events of a few keys, one of which is harmful now and then.
fn part(dice: &mut Dice, from: u64, count: u64, keys: u64, harms_in_thousand: u64) -> Vec<Told> {
    let mut events = Vec::new();
    for number in from..from + count {
        let key = format!("k{}", dice.roll(keys));
        events.push(match dice.roll(1000) {
            roll if roll < harms_in_thousand => {
                harmful(&key, number, if roll.is_multiple_of(4) { "trap" } else { "refuse" })
            }
            _ => told(&key, number),
        });
    }
    events
}

/// Units that are parked, by key, when harm parks a key for good.
fn parked_units(events: &[Told]) -> Vec<(String, u64)> {
    let mut units: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for event in events {
        for key in &event.keys {
            match units.get_mut(key.as_str()) {
                Some(units) => *units += 1,
                None if event.harm.is_some() => drop(units.insert(key, 1)),
                None => {}
            }
        }
    }
    units.into_iter().map(|(key, units)| (key.to_owned(), units)).collect()
}

fn dead_units(world: &World) -> Vec<(String, u64)> {
    let row = |row: &Value| (row["key"].as_str().expect("a key").to_owned(), row["units"].as_u64().expect("a number"));
    let mut units: Vec<_> = dead(world, "fragile").iter().map(row).collect();
    units.sort();
    units
}

async fn abort(world: &World, point: &str, passage: u64) {
    let mut host = world.host(&[("MILLSTREAM_CRASH_AT", &format!("{point}:{passage}"))]);
    let status = host.end().await;
    assert!(!status.success(), "the host ends by the abort; its log:\n{}", host.log());
}

async fn survives(point: &'static str) {
    let world = world().await;
    world.deploy("fragile", "fragile", &SETTINGS);
    let mut dice = Dice::new(7);
    let mut events = Vec::new();
    if point != "unparked" {
        for (round, passage) in [1, 4].into_iter().enumerate() {
            let mut more = part(&mut dice, round as u64 * 400, 400, 8, 0);
            for (number, event) in more.iter_mut().enumerate() {
                let parks = number.is_multiple_of(150) && event.keys[0] != "k7";
                event.harm = parks.then_some(if round == 0 { "refuse" } else { "trap" });
            }
            publish(&world, &more).await;
            events.extend(more);
            abort(&world, point, passage).await;
            let mut host = world.host(&[]);
            let counts = decided(&world, "fragile", events.len()).await;
            assert_eq!(outcomes(&counts), counts.delivered);
            world.settled("fragile", &fold_parked(&events)).await;
            let expected = parked_units(&events);
            until("letters, each once", async || (dead_units(&world) == expected).then_some(())).await;
            assert_eq!(counts.parked, expected.iter().map(|(_, units)| units).sum::<u64>());
            host.kill();
        }
    } else {
        events = part(&mut dice, 0, 400, 8, 10);
        publish(&world, &events).await;
        let _host = world.host(&[]);
        decided(&world, "fragile", events.len()).await;
    }
    world.deploy("fragile-mended", "fragile", &SETTINGS);
    if !["burying", "buried"].contains(&point) {
        for passage in [1, 3] {
            let url = world.server.url();
            let asked = std::thread::spawn(move || cli(&url, &["redrive", "fragile", "--all", "--timeout", "60"]));
            abort(&world, point, passage).await;
            let host = world.host(&[]);
            let output = asked.join().expect("it ends");
            assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), host.log());
            if passage == 1 {
                world.settled("fragile", &fold(&events)).await;
                // Once more, for the later passage.
                drop(host);
                world.deploy("fragile", "fragile", &SETTINGS);
                let from = events.len() as u64 * 10;
                let more: Vec<Told> = (0..60).map(|one| told("k1", from + one)).collect();
                let mut more = more;
                more[0].harm = Some("trap");
                publish(&world, &more).await;
                events.extend(more);
                let _host = world.host(&[]);
                decided(&world, "fragile", events.len()).await;
                until("60 letters", async || (dead(&world, "fragile")[0]["units"] == 60).then_some(())).await;
                world.deploy("fragile-mended", "fragile", &SETTINGS);
            }
        }
    } else {
        let _host = world.host(&[]);
        world.ok(&["redrive", "fragile", "--all"]);
    }
    let _host = world.host(&[]);
    world.settled("fragile", &fold(&events)).await;
    let counts = decided(&world, "fragile", events.len()).await;
    assert_eq!((counts.applied, counts.parked, counts.delivered), (events.len() as u64, 0, events.len() as u64));
    assert!(dead(&world, "fragile").is_empty());
}

#[test]
fn every_place_of_parked_units_is_among_them() {
    assert!(PARKING.iter().all(|point| POINTS.contains(point)));
}

const POINTS: [&str; 5] = ["encoded", "committed", "burying", "buried", "unparked"];

at_each_point! {
    POINTS;
    no_unit_is_lost_doubled_or_overtaken_after_a_crash_before_the_record: "encoded",
    no_unit_is_lost_doubled_or_overtaken_after_a_crash_between_record_and_dead_letter: "committed",
    no_unit_is_lost_doubled_or_overtaken_after_a_crash_before_the_dead_letter: "burying",
    no_unit_is_lost_doubled_or_overtaken_after_a_crash_after_the_dead_letter: "buried",
    no_unit_is_lost_doubled_or_overtaken_after_a_crash_when_letters_are_removed: "unparked",
}

/// One run of choices; what it did is printed with its seed.
async fn anything_goes(seed: u64) {
    let world = world().await;
    world.deploy("fragile", "fragile", &SETTINGS);
    let mut dice = Dice::new(seed);
    let mut host: Option<Host> = Some(world.host(&[]));
    let mut events: Vec<Told> = Vec::new();
    let (mut crashes, mut redrives) = (0, 0);
    for _ in 0..40 {
        match dice.roll(8) {
            0..=3 => {
                let count = 20 + dice.roll(100);
                let more = part(&mut dice, events.len() as u64 + 1, count, 10, 15);
                publish(&world, &more).await;
                events.extend(more);
            }
            4 => {
                let points = ["encoded", "committed", "burying", "buried", "unparked", "half-shown", "applied"];
                let point = points[usize::try_from(dice.roll(7)).expect("small")];
                let crash = format!("{point}:{}", 1 + dice.roll(12));
                drop(host.take());
                crashes += 1;
                host = Some(world.host(&[("MILLSTREAM_CRASH_AT", &crash)]));
            }
            5 => {
                let module = if dice.roll(2) == 0 { "fragile" } else { "fragile-mended" };
                world.deploy(module, "fragile", &SETTINGS);
            }
            _ => {
                let key = format!("k{}", dice.roll(10));
                let what = if dice.roll(2) == 0 { vec!["--all"] } else { vec!["--key", &key] };
                // It may fail again, find nothing, or nobody who does it: what counts is the end.
                let asked = [&["redrive", "fragile", "--timeout", "2"], &what[..]].concat();
                redrives += u64::from(world.cli(&asked).status.success());
            }
        }
        if host.as_mut().is_some_and(|host| host.ended().is_some()) {
            host = Some(world.host(&[]));
        }
    }
    drop(host);
    let _host = world.host(&[]);
    mend(&world).await;
    let counts = decided(&world, "fragile", events.len()).await;
    assert_eq!(outcomes(&counts), counts.delivered);
    // What was asked for while no host ran waits, and is done first.
    until("all are taken up", async || {
        let is_done = dead(&world, "fragile").is_empty();
        (is_done || world.cli(&["redrive", "fragile", "--all"]).status.success()).then_some(())
    })
    .await;
    world.settled("fragile", &fold(&events)).await;
    let counts = decided(&world, "fragile", events.len()).await;
    let all = events.len() as u64;
    assert_eq!((counts.delivered, counts.applied, counts.parked), (all, all, 0), "seed {seed}");
    eprintln!("seed {seed}: {all} events, {crashes} hosts to be aborted, {redrives} redrives that took up all");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_and_dies_each_document_is_the_fold_of_the_stream_in_order() {
    let seeds = std::env::var("MILLSTREAM_SEEDS").unwrap_or_else(|_| "1,2".to_owned());
    for seed in seeds.split(',') {
        anything_goes(seed.parse().expect("a seed")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_lost_its_claim_parks_nothing() {
    let world = world().await;
    world.deploy("fragile", "fragile", &SETTINGS);
    let mut events = vec![harmful("k1", 1, "refuse")];
    events.extend((2..200).map(|number| told(&format!("k{}", number % 4), number)));
    publish(&world, &events[..100]).await;
    // The record that parks k1 is stored, its dead letter is not.
    let zombie = world.host(&[("MILLSTREAM_STOP_AT", "committed:1")]);
    until("it stands still", async || zombie.is_stopped().then_some(())).await;
    let stopped = std::time::Instant::now();
    let _heir = world.host(&[]);
    publish(&world, &events[100..]).await;
    decided(&world, "fragile", events.len()).await;
    until("the heir has parked it", async || (dead_units(&world) == parked_units(&events)).then_some(())).await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    // Longer than it may take itself for the owner without asking.
    while stopped.elapsed() < std::time::Duration::from_millis(1500) {
        pause().await;
    }
    zombie.signal("CONT");
    until("it learns of it", async || zombie.log().contains("fenced").then_some(())).await;
    assert!(dead(&world, "fragile").is_empty(), "its log:\n{}", zombie.log());
    world.settled("fragile", &fold(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_while_a_key_is_taken_up_stand_in_line_behind_it() {
    let world = world().await;
    world.deploy("fragile", "fragile", &SETTINGS);
    let mut events = vec![harmful("k1", 1, "trap")];
    events.extend((2..1500).map(|number| told(&format!("k{}", number % 3), number)));
    publish(&world, &events).await;
    let _host = world.host(&[]);
    decided(&world, "fragile", events.len()).await;
    mend(&world).await;
    let url = world.server.url();
    let asked = std::thread::spawn(move || cli(&url, &["redrive", "fragile", "--key", "k1"]));
    for round in 0..20 {
        let from = 1500 + round * 50;
        let more: Vec<Told> = (from..from + 50).map(|number| told("k1", number)).collect();
        publish(&world, &more).await;
        events.extend(more);
    }
    let output = asked.join().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.settled("fragile", &fold(&events)).await;
    let counts = decided(&world, "fragile", events.len()).await;
    assert_eq!((counts.applied, counts.parked), (events.len() as u64, 0));
    assert!(module("fragile").exists());
}
