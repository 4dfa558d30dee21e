//! A shadow run: the deployed module and a new one on the same recorded events, compared with what a fold of our own says must
//! differ. What any stream holds, and who reads it, is the same before and after.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::harness::{Event, World, module, orders, spend};
use crate::rehearsal::{begin, go_on, scripted, seen, tell};

/// Messages and last sequence of every stream, and the consumers of all but our own stores: what a client reads a module with goes
/// by itself after a while. Hosts drop out of their bucket by themselves, so it is left out.
async fn streams(world: &World) -> BTreeMap<String, (u64, u64, usize)> {
    let infos: Vec<_> = world.jetstream.streams().try_collect().await.expect("the streams");
    let all = infos.into_iter().map(|info| {
        let (state, name) = (info.state, info.config.name);
        let consumers = if name.starts_with("OBJ_") || name.starts_with("KV_") { 0 } else { state.consumer_count };
        (name, (state.messages, state.last_sequence, consumers))
    });
    all.filter(|(name, _)| name != "KV_MILLSTREAM_HOSTS").collect()
}

/// What the command says, once it is certain that it changed nothing.
async fn shadow(world: &World, example: &str, more: &[&str]) -> Value {
    let before = streams(world).await;
    let path = module(example);
    let arguments = [&["shadow", path.to_str().expect("path"), "--json"], more].concat();
    let said = serde_json::from_str(&world.ok(&arguments)).expect("JSON");
    assert_eq!(streams(world).await, before, "it wrote something, or left a consumer behind");
    said
}

/// A key's documents and the event that made them differ.
type Differing = BTreeMap<String, (Value, Value, u64)>;

fn differing(said: &Value) -> Differing {
    let list = said["documents"]["differing"].as_array().expect("a list").iter();
    let each = |each: &Value| {
        let since = each["since"]["sequence"].as_u64().expect("a sequence");
        (each["key"].as_str().expect("a key").to_owned(), (each["running"].clone(), each["new"].clone(), since))
    };
    list.map(each).collect()
}

/// What must differ, by what the next version says of itself.
fn oracle(events: &[Event], from: u64) -> Differing {
    let (mut running, mut new) = (BTreeMap::<String, (u64, u64)>::new(), BTreeMap::<String, (u64, u64)>::new());
    let mut since: BTreeMap<String, u64> = BTreeMap::new();
    for (event, sequence) in events.iter().zip(1..).filter(|(_, sequence)| *sequence >= from) {
        let old = running.entry(event.customer.clone()).or_default();
        *old = (old.0 + 1, old.1 + event.cents);
        let keys: &[&str] = match event.customer.as_str() {
            "C7" => &[],
            "C9" => &["C9", "vip"],
            customer => &[customer],
        };
        for key in keys.iter().filter(|_| event.cents < 1_000_000) {
            let new = new.entry((*key).to_owned()).or_default();
            *new = (new.0 + 1, new.1 + if event.cents < 9_900 { event.cents } else { 0 });
        }
        for key in keys.iter().copied().chain([event.customer.as_str()]) {
            if running.get(key) != new.get(key) {
                since.entry(key.to_owned()).or_insert(sequence);
            }
        }
    }
    let document = |document: Option<&(u64, u64)>| {
        document.map_or(Value::Null, |(orders, cents)| json!({ "orders": orders, "cents": cents }))
    };
    let differing = since.into_iter().filter(|(key, _)| running.get(key) != new.get(key));
    differing.map(|(key, since)| (key.clone(), (document(running.get(&key)), document(new.get(&key)), since))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_s_shadow_lists_exactly_the_keys_that_differ_and_since_when() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "customer-spend", &[]);
    let mut events = orders(0, 5000);
    events[4242].cents = 1_000_000;
    world.publish(&events).await;
    let host = world.host(&[]);
    world.settled("customer-spend", &spend(&events)).await;
    drop(host);

    let said = shadow(&world, "customer-spend-next", &[]).await;
    let expected = oracle(&events, 1);
    assert_eq!(differing(&said), expected);
    let customers: BTreeSet<&str> = events.iter().map(|event| event.customer.as_str()).collect();
    let changed = expected.len() as u64 - 2;
    let counts = json!({ "equal": customers.len() as u64 - 1 - changed, "changed": changed, "added": 1, "removed": 1 });
    for (name, count) in counts.as_object().expect("an object") {
        assert_eq!(&said["documents"][name], count, "{name}");
    }
    assert!(changed > 10 && expected.contains_key("C7") && expected.contains_key("vip"));
    assert_eq!(
        (&said["failures_running"], &said["failures_new"], &said["events"]),
        (&json!(0), &json!(1), &json!(5000))
    );
    let failure = &said["failures"][0];
    assert_eq!((&failure["which"], &failure["at"]["sequence"]), (&json!("new"), &json!(4243)), "{failure}");
    assert!(failure["reason"].as_str().expect("a reason").contains("nobody can pay that"), "{failure}");
    for which in ["running", "new"] {
        let cost = &said["cost"][which];
        assert!(cost["fuel_per_event"].as_u64() > Some(100) && cost["microseconds_per_event"].as_f64() > Some(0.0));
    }

    let said = shadow(&world, "customer-spend-next", &["--from", "4001"]).await;
    assert_eq!((differing(&said), &said["events"]), (oracle(&events, 4001), &json!(1000)));
    let said = shadow(&world, "customer-spend-next", &["--last", "1h"]).await;
    assert_eq!(differing(&said), expected, "all of them are younger than that");
    let same = shadow(&world, "customer-spend", &[]).await;
    assert_eq!((&same["documents"]["equal"], differing(&same).len()), (&json!(customers.len()), 0));

    let text = world.ok(&["shadow", module("customer-spend-next").to_str().expect("path")]);
    for words in ["1 added, 1 removed", "failures  0 -> 1", "new at ORDERS:4243", "(--json)"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_s_shadow_compares_effects_and_sends_none() {
    let (world, host) = scripted().await;
    let nexts = ["trap", "refuse", "nothing", "more", "payload", "pass-by"];
    tell(&world, nexts.iter().map(|key| begin(key))).await;
    tell(&world, nexts.iter().map(|next| go_on(next, &json!(next)))).await;
    seen(&world, 6, 2).await;
    drop(host);

    let said = shadow(&world, "scripted-next", &["--name", "saga"]).await;
    let effects = &said["effects"];
    let counts = ["same", "other", "missing", "more"].map(|name| effects[name].as_u64().expect("a count"));
    // Six first steps and the second one of `more`; that of `payload`; those of the others; what `more` sends beside it.
    assert_eq!(counts, [7, 1, 4, 1], "{effects:#}");
    let of = |difference: &str| -> Vec<u64> {
        let list = effects["differing"].as_array().expect("a list").iter();
        let list = list.filter(|effect| effect["difference"] == difference);
        list.map(|effect| effect["at"]["sequence"].as_u64().expect("a sequence")).collect()
    };
    assert_eq!((of("other"), of("missing"), of("more")), (vec![11], vec![7, 8, 9, 12], vec![10]));
    let failures = said["failures"].as_array().expect("a list").iter();
    let failed: Vec<u64> = failures.map(|failure| failure["at"]["sequence"].as_u64().expect("a sequence")).collect();
    assert_eq!((failed, &said["failures_running"]), (vec![7, 8], &json!(0)));
    let documents = differing(&said);
    assert_eq!(documents.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(nexts));
    // They differ from their first event on: the next version's state has a field more.
    assert_eq!(documents.values().map(|(_, _, since)| *since).collect::<BTreeSet<_>>(), (1..=6).collect());

    let same = shadow(&world, "scripted", &["--name", "saga"]).await;
    assert_eq!((&same["documents"]["equal"], &same["effects"]["same"]), (&json!(6), &json!(12)), "{same:#}");
    let said = world.refused(2, &["shadow", module("order-chain").to_str().expect("path"), "--name", "saga"]);
    assert!(said.contains("it is a projection, and a saga runs"), "{said}");
}
