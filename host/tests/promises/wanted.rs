//! What is deployed is not always what runs: what runs is told, and a new version is compared with it.

use millstream::registry::{Outcome, Registry};
use millstream::sandbox::Digest;
use serde_json::json;

use crate::generations::listed;
use crate::harness::{World, module, orders, spend, until};
use crate::hostile::{Mischief, SOUND, file, wasm};
use crate::promotion::shop;
use crate::reload::{deploy, put, variant, verdict};

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Puts a version of another state version as stock tools can, and has it refused.
async fn refused(world: &World) -> String {
    let second = std::fs::read(module("customer-spend-v2")).expect("a module");
    let revision = put(world, "spend", &second).await;
    let said = verdict(world, "spend", revision).await;
    assert_eq!(said.outcome, Outcome::Refused, "{said:?}");
    let wanted = digest(&second);
    until("the host says so", async || {
        (world.report("spend").await?["refused"]["digest"] == wanted.as_str()).then_some(())
    })
    .await;
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_told_and_compared_with_where_another_is_refused() {
    let world = shop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let [first, third] = ["first", "third"].map(|name| variant("customer-spend", name));
    let [first_path, third_path] =
        [("first", &first), ("third", &third)].map(|(name, bytes)| file(&folder, name, bytes));
    let _host = world.host(&[]);
    deploy(&world, &first_path, &["--name", "spend", "--label", "first"]);
    world.publish(&orders(0, 300)).await;
    world.settled("spend", &spend(&orders(0, 300))).await;

    let wanted = refused(&world).await;
    let row = world.listed("spend");
    assert_eq!((&row["digest"], &row["label"]), (&json!(digest(&first)), &json!("first")), "{row}");
    assert_eq!((&row["state"], &row["wanted"]["digest"]), (&json!("running"), &json!(wanted)), "{row}");
    let sentence = format!("{wanted:.12} is wanted, and was refused: its state version is 2");
    assert!(String::from_utf8_lossy(&world.cli(&["list"]).stderr).contains(&sentence));
    let row = &listed(&world, "spend")[0];
    assert_eq!((&row["digest"], &row["state"]), (&json!(digest(&first)), &json!("live")), "{row}");
    assert!(row["reason"].as_str().expect("a reason").starts_with(&sentence), "{row}");

    // The next version follows what runs: it needs no generation of its own.
    let said = deploy(&world, &third_path, &["--name", "spend", "--label", "third"]);
    let change = format!("module {:.12} -> {:.12}, ", digest(&first), digest(&third));
    assert!(said["changes"][0].as_str().expect("a change").starts_with(&change), "{said}");
    assert_eq!((said["digest"].as_str(), listed(&world, "spend").len()), (Some(digest(&third).as_str()), 1));
    assert_eq!(world.listed("spend")["wanted"], json!(null));

    // So does the way back, and a rebuild is one of what runs.
    refused(&world).await;
    world.ok(&["rollback", "spend"]);
    let row = world.listed("spend");
    assert_eq!((&row["digest"], &row["wanted"]), (&json!(digest(&third)), &json!(null)), "{row}");
    refused(&world).await;
    world.ok(&["rebuild", "spend"]);
    assert_eq!(listed(&world, "spend")[1]["digest"], digest(&third));
    world.publish(&orders(300, 100)).await;
    world.settled("spend", &spend(&orders(0, 400))).await;
    world.settled("spend_g2", &spend(&orders(0, 400))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_deploys_hears_that_a_host_is_gone_and_of_no_version_before_the_first() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(0, 60)).await;
    let mut host = world.host(&[("MILLSTREAM_HOST", "left")]);
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    until("it lives", async || (!registry.live_hosts().await.expect("the hosts").is_empty()).then_some(())).await;
    // Nothing is before the first version.
    let folder = tempfile::tempdir().expect("a folder");
    let bad = file(&folder, "bad", &wasm(Mischief { stage: "unreachable", ..SOUND }));
    let told = world.refused(1, &["deploy", bad.to_str().expect("path"), "--name", "first"]);
    assert!(told.contains("mend it and deploy again") && !told.contains("rollback"), "{told}");
    world.in_state("first", "failing").await;
    let told = String::from_utf8_lossy(&world.cli(&["list"]).stderr).into_owned();
    assert!(told.contains("-f` and deploy with another --label") && !told.contains("rollback"), "{told}");
    host.kill();
    let said = deploy(&world, &module("customer-spend"), &["--name", "spend"]);
    let state = said["state"].as_str().expect("a state");
    assert!(state.starts_with("left has not been heard of for "), "{said}");
}
