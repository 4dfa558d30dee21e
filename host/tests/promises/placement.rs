//! Several hosts: each handler runs on exactly one of them; it moves when its host dies, ends, or a better one comes, and nothing is lost
//! or decided twice by that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::harness::{Event, Host, World, chains, json_lines, orders, records, until};

const HANDLERS: [&str; 8] = ["chain-1", "chain-2", "chain-3", "chain-4", "chain-5", "chain-6", "chain-7", "chain-8"];

/// What follows from the names of hosts and handlers: it is the same on every machine.
const OF_THREE: [(&str, &[&str]); 3] = [
    ("one", &["chain-2", "chain-7"]),
    ("two", &["chain-6", "chain-8"]),
    ("zoe", &["chain-1", "chain-3", "chain-4", "chain-5"]),
];
const OF_TWO: [(&str, &[&str]); 2] = [("one", &["chain-3", "chain-4"]), ("two", &["chain-5", "chain-6"])];
const SHARED: [&str; 4] = ["chain-3", "chain-4", "chain-5", "chain-6"];

/// A stream, and a handler on it under each of these names.
async fn world(handlers: &[&str]) -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    for handler in handlers {
        world.deploy("order-chain", handler, &[]);
    }
    world
}

fn host(world: &World, name: &str) -> Host {
    world.host(&[("MILLSTREAM_HOST", name)])
}

/// Which host says that it looks after which handlers, hosts that are silent left out.
fn held(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let rows = json_lines(&world.ok(&["list", "--hosts", "--json"]));
    let rows = rows.into_iter().filter(|row| row["state"] != "silent");
    let names = |row: &serde_json::Value| {
        let names = row["handlers"].as_array().expect("names").iter();
        names.map(|name| name.as_str().expect("a name").to_owned()).collect()
    };
    rows.map(|row| (row["host"].as_str().expect("a name").to_owned(), names(&row))).collect()
}

/// Waits until exactly these hosts live and hold exactly these handlers.
async fn shared_out(world: &World, shares: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let expected: BTreeMap<String, BTreeSet<String>> =
        shares.iter().map(|(host, handlers)| ((*host).to_owned(), names(handlers))).collect();
    until("the handlers are shared out", async || (held(world) == expected).then_some(())).await;
    expected
}

/// Publishes a hundred orders more, so that who holds a handler has claimed it too, and answers all orders.
async fn all_claimed(world: &World, mut events: Vec<Event>) -> Vec<Event> {
    let more = orders(events.len() as u64, 100);
    world.publish(&more).await;
    events.extend(more);
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
    }
    events
}

/// So many claimed in turn.
async fn claimed_in_turn(world: &World, handler: &str, times: std::ops::RangeInclusive<usize>) {
    let claims = world.claims(handler).await;
    assert!(times.contains(&claims.len()), "{handler}: {claims:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_handler_has_one_host_and_a_killed_host_s_handlers_go_to_the_others() {
    let world = world(&HANDLERS).await;
    let events = orders(0, 24_000);
    let names = ["one", "two", "zoe"];
    let mut hosts: BTreeMap<&str, Host> = names.into_iter().map(|name| (name, host(&world, name))).collect();
    world.publish(&events[..8_000]).await;
    for handler in HANDLERS {
        world.settled(handler, &chains(&events[..8_000])).await;
    }
    let before = shared_out(&world, &OF_THREE).await;
    let (victim, orphans) = ("zoe", before["zoe"].clone());
    let at = async |handler: &str| world.last_record(handler).await.map_or(0, |(_, counts, _)| counts.delivered);

    for few in events[8_000..16_000].chunks(500) {
        world.publish(few).await;
    }
    hosts.get_mut(victim).expect("the host").kill();
    let killed = Instant::now();
    let mut stood = BTreeMap::new();
    for handler in &orphans {
        stood.insert(handler, at(handler).await);
    }
    world.publish(&events[16_000..]).await;
    for handler in &orphans {
        until("it goes on elsewhere", async || (at(handler).await > stood[handler]).then_some(())).await;
    }
    println!("{} handlers of a killed host went on elsewhere after {:?}", orphans.len(), killed.elapsed());
    for handler in HANDLERS {
        world.settled(handler, &chains(&events)).await;
        let (_, counts, _) = world.last_record(handler).await.expect("a record");
        assert_eq!((counts.delivered, counts.applied), (24_000, 24_000), "{handler}: each event was decided once");
        claimed_in_turn(&world, handler, 1..=6).await;
    }
    let after = until("the others have them all", async || {
        let held = held(&world);
        (held.values().flatten().count() == HANDLERS.len()).then_some(held)
    })
    .await;
    for name in ["one", "two"] {
        assert!(after[name].is_superset(&before[name]), "{name} kept what it had: {before:?} {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ends_hands_over_and_one_that_comes_back_gets_its_handlers_again() {
    let world = world(&SHARED).await;
    let events = orders(0, 2_000);
    world.publish(&events).await;
    let mut one = host(&world, "one");
    let _two = host(&world, "two");
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
    }
    let both = shared_out(&world, &OF_TWO).await;
    let mut events = all_claimed(&world, events).await;
    let log_until_now = one.log().len();
    let mut claimed = BTreeMap::new();
    for handler in &both["one"] {
        claimed.insert(handler, world.claims(handler).await.len());
    }

    let more = orders(2_100, 10_000);
    world.publish(&more[..5_000]).await;
    one.signal("TERM");
    world.publish(&more[5_000..]).await;
    events.extend(more);
    assert!(one.end().await.success(), "{}", one.log());
    assert!(one.log().contains("everything decided is in the buckets"), "{}", one.log());
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
    }
    for handler in &both["one"] {
        let claims = world.claims(handler).await.len();
        assert_eq!(claims, claimed[handler] + 1, "{handler}: another took it, once");
        let records = records(&world.jetstream, handler, 1).await;
        let moved = records.windows(2).filter(|pair| pair[0].claim != pair[1].claim);
        let pause = moved.map(|pair| pair[1].time - pair[0].time).next_back();
        println!(
            "{handler}: {:?} between the last record here and the claim there",
            pause.map(|p| Duration::from_nanos(p as u64))
        );
    }
    assert!(!one.log()[log_until_now..].contains("fenced"), "nobody took anything from it:\n{}", one.log());

    let _one = host(&world, "one");
    shared_out(&world, &OF_TWO).await;
    let more = orders(12_100, 1_000);
    world.publish(&more).await;
    events.extend(more);
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
        claimed_in_turn(&world, handler, 1..=6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_cannot_run_another_runs() {
    let world = world(&HANDLERS).await;
    let seed = nkeys::KeyPair::new_user();
    let strict = world.host(&[("MILLSTREAM_HOST", "strict"), ("MILLSTREAM_REQUIRE_SIGNED", &seed.public_key())]);
    until("it refuses all", async || {
        let rows = json_lines(&world.ok(&["list", "--hosts", "--json"]));
        (rows.first()?["declines"].as_array()?.len() == HANDLERS.len()).then_some(())
    })
    .await;
    let _lenient = host(&world, "lenient");
    let events = orders(0, 300);
    world.publish(&events).await;
    for handler in HANDLERS {
        world.settled(handler, &chains(&events)).await;
    }
    let held = until("the other has all", async || {
        let held = held(&world);
        (held.get("lenient")?.len() == HANDLERS.len()).then_some(held)
    })
    .await;
    assert!(held["strict"].is_empty(), "{held:?}");
    let told = world.cli(&["list", "--hosts"]);
    let told = String::from_utf8_lossy(&told.stderr);
    assert!(told.contains("strict: cannot run what is deployed as chain-1"), "{told}");
    drop(strict);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hosts_of_one_name_the_later_stays() {
    let world = world(&["chain"]).await;
    let mut first = host(&world, "same");
    let events = orders(0, 100);
    world.publish(&events[..50]).await;
    world.settled("chain", &chains(&events[..50])).await;
    let mut second = host(&world, "same");
    assert_eq!(first.end().await.code(), Some(1), "{}", first.log());
    assert!(first.log().contains("another host that is called same began after this one"), "{}", first.log());
    assert!(first.log().contains("\nhint: give each host a name of its own"), "{}", first.log());
    world.publish(&events[50..]).await;
    world.settled("chain", &chains(&events)).await;
    assert_eq!(second.ended(), None, "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_when_the_server_restarts_or_the_list_of_hosts_is_deleted() {
    let mut world = world(&SHARED).await;
    let events = orders(0, 300);
    world.publish(&events).await;
    let hosts = [host(&world, "one"), host(&world, "two")];
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
    }
    shared_out(&world, &OF_TWO).await;
    let mut events = all_claimed(&world, events).await;
    let mut claims = Vec::new();
    for handler in &SHARED {
        claims.push(world.claims(handler).await);
    }
    world.jetstream.delete_stream("KV_MILLSTREAM_HOSTS").await.expect("deleted by hand");
    until("the list is there again", async || (held(&world).len() == 2).then_some(())).await;
    shared_out(&world, &OF_TWO).await;
    world.server.kill();
    world.server.restart().await.expect("the server restarts on its folder");
    let more = orders(400, 300);
    world.publish(&more).await;
    events.extend(more);
    for handler in &SHARED {
        world.settled(handler, &chains(&events)).await;
    }
    shared_out(&world, &OF_TWO).await;
    for (handler, claims) in SHARED.iter().zip(claims) {
        assert_eq!(world.claims(handler).await, claims, "{handler}: {} {}", hosts[0].log(), hosts[1].log());
    }
}
