//! A rebuild beside the live generation: nobody notices, kills change nothing, and `diff` names exactly what an independent fold
//! says differs, with the event behind it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Documents, Event, World, module, orders, spend, spend_v2, until};

/// What `diff --json` says.
pub fn diff(world: &World, handler: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["diff", handler, "--json", "--samples", "100000"];
    arguments.extend(more);
    serde_json::from_str(&world.ok(&arguments)).expect("JSON")
}

/// Insists that a comparison says exactly what differs between these documents.
#[track_caller]
pub fn tells(comparison: &Value, live: &Documents, other: &Documents) {
    let keys: BTreeSet<&String> = live.keys().chain(other.keys()).collect();
    let kind = |key: &String| match (live.get(key), other.get(key)) {
        (Some(_), None) => "removed",
        (None, Some(_)) => "added",
        (one, two) if one == two => "equal",
        _ => "changed",
    };
    for what in ["equal", "changed", "added", "removed"] {
        let expected = keys.iter().filter(|key| kind(key) == what).count();
        assert_eq!(comparison[what], json!(expected), "{what}: {comparison:#.3000}");
    }
    assert_eq!(comparison["moving"], 0, "{comparison:#.3000}");
    let samples = comparison["samples"].as_array().expect("samples");
    assert_eq!(samples.len(), keys.iter().filter(|key| kind(key) != "equal").count());
    for sample in samples {
        let key = sample["key"].as_str().expect("a key").to_owned();
        assert_eq!(sample["kind"], kind(&key), "{sample}");
        let value =
            |documents: &Documents| documents.get(&key).map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!((&sample["live"], &sample["other"]), (&json!(value(live)), &json!(value(other))), "{key}");
    }
}

/// The stream sequence of each customer's last order, as the samples must name it.
fn last_orders(events: &[Event]) -> std::collections::BTreeMap<&str, String> {
    let numbered = (1..).zip(events).map(|(sequence, event)| (event.customer.as_str(), format!("ORDERS:{sequence}")));
    numbered.collect()
}

/// The generations of a handler, as `rebuild --list` tells them.
pub fn listed(world: &World, handler: &str) -> Vec<Value> {
    let text = world.ok(&["rebuild", handler, "--list", "--json"]);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Waits until this generation is in this state.
pub async fn is(world: &World, handler: &str, generation: u32, state: &str) -> Value {
    until(&format!("generation {generation} is {state}"), async || {
        listed(world, handler).into_iter().find(|row| row["generation"] == generation && row["state"] == state)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_changes_nothing_for_readers_and_diff_names_what_differs() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &[]);
    let events = orders(0, 12_000);
    world.publish(&events[..10_000]).await;
    let _host = world.host(&[]);
    world.settled("spend", &spend(&events[..10_000])).await;
    let v2 = module("customer-spend-v2");
    let begun: Value =
        serde_json::from_str(&world.ok(&["rebuild", "spend", "--module", v2.to_str().unwrap(), "--json"])).unwrap();
    assert_eq!((&begun["generation"], &begun["decided"]), (&json!(2), &json!(10_000)), "{begun}");
    // Both follow.
    world.publish(&events[10_000..]).await;
    world.settled("spend", &spend(&events)).await;
    world.settled("spend_g2", &spend_v2(&events)).await;
    let comparison = diff(&world, "spend", &[]);
    tells(&comparison, &spend(&events), &spend_v2(&events));
    let last = last_orders(&events);
    for sample in comparison["samples"].as_array().unwrap() {
        let event = &last[sample["key"].as_str().unwrap()];
        assert_eq!((&sample["live_event"], &sample["other_event"]), (&json!(event), &json!(event)));
    }
    assert_ne!((&comparison["changed"], &comparison["equal"]), (&json!(0), &json!(0)), "both kinds were there to tell");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_killed_on_the_way_goes_on_and_gives_the_same_bytes_under_live_load() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "batch_events=500"]);
    let events = orders(0, 60_000);
    world.publish(&events[..40_000]).await;
    let mut host = world.host(&[]);
    world.settled("spend", &spend(&events[..40_000])).await;
    world.ok(&["rebuild", "spend", "--throttle", "15000", "--no-wait"]);
    for (kill, part) in events[40_000..].chunks(10_000).enumerate() {
        until("progress", async || {
            let row = listed(&world, "spend").into_iter().find(|row| row["generation"] == 2)?;
            (row["decided"].as_u64()? > 10_000 * (kill as u64 + 1) - 5_000).then_some(())
        })
        .await;
        host.kill();
        host = world.host(&[]);
        world.publish(part).await;
    }
    let _host = host;
    world.settled("spend", &spend(&events)).await;
    world.settled("spend_g2", &spend(&events)).await;
    is(&world, "spend", 2, "ready").await;
    let comparison = diff(&world, "spend", &[]);
    tells(&comparison, &spend(&events), &spend(&events));
}
