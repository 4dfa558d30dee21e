//! A handler in lanes: the same module under several names, each with its part of the subjects, placed on hosts like any other handlers; one
//! bucket gathers what they decide, as the stock `nats kv add --source` makes it. Nothing is lost or doubled when a host is killed, and
//! lanes that share keys are told.

use std::collections::BTreeSet;

use async_nats::jetstream::stream::{Config, Source, SubjectTransform};
use millstream::names;

use crate::doctor::{findings_at, told};
use crate::harness::{Event, Host, World, chains, documents_of, json_lines, orders, outcomes, until};

/// By their names two of them are the first host's, and one is the other's.
const LANES: [&str; 3] = ["chain-3", "chain-4", "chain-5"];

/// Orders whose subject says which aggregate they belong to.
fn events(from: u64, count: u64) -> Vec<Event> {
    let mut events = orders(from, count);
    for event in &mut events {
        event.subject = format!("orders.{}.placed", event.aggregate);
    }
    events
}

/// A stream that shares its messages out by aggregate, as the server's own partition function does.
async fn world() -> World {
    let world = World::new().await;
    let config = Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.*.placed".to_owned()],
        subject_transform: Some(SubjectTransform {
            source: "orders.*.placed".to_owned(),
            destination: "orders.{{partition(3,1)}}.{{wildcard(1)}}.placed".to_owned(),
        }),
        allow_direct: true,
        ..Config::default()
    };
    world.jetstream.create_stream(config).await.expect("the stream");
    for (number, lane) in LANES.iter().enumerate() {
        world.deploy("order-chain", lane, &["--set", &format!("subjects=orders.{number}.*.placed")]);
    }
    world
}

/// The bucket that readers look at, as `nats kv add chain --source …` makes it.
fn gathering(lanes: &[&str]) -> Config {
    let source = |lane: &&str| Source {
        name: names::bucket_stream(lane),
        subject_transforms: vec![SubjectTransform {
            source: names::bucket_subject(lane, ">"),
            destination: names::bucket_subject("chain", ">"),
        }],
        ..Source::default()
    };
    Config {
        name: names::bucket_stream("chain"),
        subjects: vec![names::bucket_subject("chain", ">")],
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        sources: Some(lanes.iter().map(source).collect()),
        ..Config::default()
    }
}

/// Hosts that run lanes.
fn at_work(world: &World) -> BTreeSet<String> {
    let rows = json_lines(&world.ok(&["list", "--hosts", "--json"]));
    let busy = rows
        .iter()
        .filter(|row| row["state"] == "live" && row["handlers"].as_array().is_some_and(|all| !all.is_empty()));
    busy.map(|row| row["host"].as_str().expect("a name").to_owned()).collect()
}

async fn gathered(world: &World, events: &[Event]) {
    let expected = chains(events);
    until("all lanes' documents are in one bucket", async || {
        (documents_of(&world.jetstream, "chain").await == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_a_handler_run_on_several_hosts_and_their_documents_are_one_bucket() {
    let world = world().await;
    let host = |name: &str| -> Host { world.host(&[("MILLSTREAM_HOST", name)]) };
    let (mut one, _two) = (host("one"), host("two"));
    let all = events(0, 9_000);
    world.publish(&all[..3_000]).await;
    for lane in LANES {
        world.in_state(lane, "running").await;
        world.caught_up(lane).await;
    }
    world.jetstream.create_stream(gathering(&LANES)).await.expect("the bucket");
    gathered(&world, &all[..3_000]).await;
    let both = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
    until("both hosts have lanes", async || (at_work(&world) == both).then_some(())).await;

    world.publish(&all[3_000..6_000]).await;
    one.kill();
    world.publish(&all[6_000..]).await;
    gathered(&world, &all).await;
    let mut delivered = 0;
    for lane in LANES {
        world.caught_up(lane).await;
        let (_, counts, _) = world.last_record(lane).await.expect("a record");
        assert_eq!((counts.applied, outcomes(&counts)), (counts.delivered, counts.delivered), "{lane}");
        assert!(counts.delivered > 1_000, "{lane} has its part: {counts:?}");
        delivered += counts.delivered;
    }
    assert_eq!(delivered, 9_000, "each event was decided once, in one lane");
    until("the other host has all", async || (at_work(&world) == BTreeSet::from(["two".to_owned()])).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_share_keys_are_told() {
    let world = world().await;
    let _host = world.host(&[]);
    let all = events(0, 300);
    world.publish(&all).await;
    for lane in LANES {
        world.in_state(lane, "running").await;
        world.caught_up(lane).await;
    }
    world.jetstream.create_stream(gathering(&LANES)).await.expect("the bucket");
    gathered(&world, &all).await;
    let lanes = || {
        let found = findings_at(&world.server.url(), &[]);
        found.into_iter().filter(|finding| finding["check"] == "shared-keys").collect::<Vec<_>>()
    };
    assert_eq!(told(&lanes()), [], "lanes with keys of their own");

    // Somebody adds a lane that reads what another reads as well.
    world.deploy("order-chain", "chain-6", &["--set", "subjects=orders.2.*.placed"]);
    world.in_state("chain-6", "running").await;
    world.caught_up("chain-6").await;
    let four = [LANES.as_slice(), &["chain-6"]].concat();
    world.jetstream.update_stream(gathering(&four)).await.expect("the bucket");
    let shared = documents_of(&world.jetstream, LANES[2]).await.len();
    let found =
        until("documents of both lanes have come", async || Some(lanes()).filter(|found| !found.is_empty())).await;
    assert_eq!(told(&found), [("shared-keys", "error", "bucket chain")]);
    assert!(
        shared > 20 && found[0]["problem"].as_str().expect("text").starts_with(&format!("{shared} keys")),
        "{found:?}"
    );
}
