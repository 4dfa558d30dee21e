//! Streams, journal and bucket that were restored from a backup: the handler stops, and goes on where it stood once somebody says that they
//! are the same, and only if they fit together.

use async_nats::Subject;
use bytes::Bytes;
use futures::StreamExt as _;
use millstream::server::Server;
use serde_json::{Value, json};

use crate::harness::{World, chains, orders, refused as refused_at, until};
use crate::loss::{decided_in, failing, refused};

/// A copy of a stream, by the requests of `nats stream backup`.
pub struct Backup {
    stream: String,
    /// What it is like, as the server said.
    head: Value,
    /// Its messages, in the server's own form.
    parts: Vec<Bytes>,
}

pub async fn backup(world: &World, stream: &str) -> Backup {
    let client = world.jetstream.client();
    let inbox = client.new_inbox();
    let mut messages = client.subscribe(inbox.clone()).await.expect("subscribed");
    let wanted = json!({ "deliver_subject": inbox, "no_consumers": true });
    let head = request(world, &format!("STREAM.SNAPSHOT.{stream}"), &wanted).await;
    let mut parts = Vec::new();
    loop {
        let message = messages.next().await.expect("a message");
        // The server wants to know that a part has come, and says by an empty one that it was the last.
        if message.payload.is_empty() {
            return Backup { stream: stream.to_owned(), head, parts };
        }
        parts.push(message.payload);
        if let Some(reply) = message.reply {
            client.publish(reply, Bytes::new()).await.expect("sent");
        }
    }
}

/// Deletes a stream and restores its copy, by the requests of `nats stream restore`.
pub async fn restore(world: &World, backup: &Backup) {
    world.jetstream.delete_stream(&backup.stream).await.expect("deleted");
    let wanted = json!({ "config": backup.head["config"], "state": backup.head["state"] });
    let answer = request(world, &format!("STREAM.RESTORE.{}", backup.stream), &wanted).await;
    let to = Subject::from(answer["deliver_subject"].as_str().expect("where it is sent"));
    let client = world.jetstream.client();
    for part in &backup.parts {
        client.request(to.clone(), part.clone()).await.expect("taken");
    }
    let done = client.request(to, Bytes::new()).await.expect("answered");
    let done: Value = serde_json::from_slice(&done.payload).expect("JSON");
    assert_eq!((&done["error"], &done["config"]["name"]), (&Value::Null, &json!(backup.stream)));
}

async fn request(world: &World, subject: &str, wanted: &Value) -> Value {
    let answer: Value = world.jetstream.request(subject.to_owned(), wanted).await.expect("answered");
    assert_eq!(answer["error"], Value::Null, "{subject}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_restored_from_a_backup_is_gone_on_with_once_somebody_says_so() {
    let world = decided_in(World::new().await, 60).await;
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    assert!(said.contains("none of them was restored"), "{said}");
    let older_orders = backup(&world, "ORDERS").await;
    let older_bucket = backup(&world, "KV_chain").await;
    let older_journal = backup(&world, "MILLSTREAM_JOURNAL_chain").await;
    let mut events = orders(0, 60);
    let mut host = world.host(&[]);
    // The last record says that the documents of the one before are shown.
    for from in [60, 80] {
        let more = orders(from, 20);
        world.publish(&more).await;
        events.extend(more);
        world.settled("chain", &chains(&events)).await;
    }
    host.signal("TERM");
    assert!(host.end().await.success(), "it ends well:\n{}", host.log());
    let ended = millstream::clock::now();
    let newer_orders = backup(&world, "ORDERS").await;
    let newer_bucket = backup(&world, "KV_chain").await;
    let newer_journal = backup(&world, "MILLSTREAM_JOURNAL_chain").await;

    // What is older than what is decided is not gone on with, whoever says so.
    restore(&world, &older_orders).await;
    refused(&world, "chain", "millstream adopt chain").await;
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    assert!(said.contains("stream ORDERS ends at 60, before the decided event 100"), "{said}");
    // Nor where others were published meanwhile, under the numbers of those that it lacks: later than clocks may differ.
    until("clocks cannot differ so much", async || (millstream::clock::now() > ended + 1_100_000_000).then_some(()))
        .await;
    world.publish(&orders(1000, 60)).await;
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    assert!(said.contains("event 100 of stream ORDERS was stored at "), "{said}");
    restore(&world, &newer_orders).await;
    restore(&world, &older_bucket).await;
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    assert!(said.contains("bucket chain does not fit its journal") && said.contains("is not in it"), "{said}");

    // Nor are documents of records that the journal does not have.
    restore(&world, &newer_bucket).await;
    restore(&world, &older_journal).await;
    let (last, ..) = world.last_record("chain").await.expect("a record");
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    let ends = format!("and the journal ends at {last}");
    assert!(said.contains("bucket chain does not fit its journal: it has documents of record "), "{said}");
    assert!(said.contains(&ends), "{said}");

    // All of one moment: asked for, it goes on where it stood.
    restore(&world, &newer_journal).await;
    let (_host, _) = failing(&world, "chain").await;
    let said = world.refused(2, &["adopt", "chain"]);
    assert!(said.contains("nobody is there to be asked"), "{said}");
    world.ok(&["adopt", "chain", "--yes"]);
    goes_on(&world, 100).await;
}

/// More orders are decided, each order once.
async fn goes_on(world: &World, before: u64) {
    let events = orders(0, before + 50);
    world.publish(&events[usize::try_from(before).expect("few")..]).await;
    world.settled("chain", &chains(&events)).await;
    let (_, counts, _) = world.last_record("chain").await.expect("a record");
    let all = before + 50;
    assert_eq!((counts.delivered, counts.applied, counts.lost), (all, all, 0), "each once");
}

/// Somebody who may not read the documents, and somebody who may not deploy.
const USERS: &str = r#"
accounts {
  TEST {
    jetstream: enabled
    users: [
      { user: all, password: all }
      { user: blind, password: blind, permissions: { publish: { deny: ["$JS.API.STREAM.MSG.GET.KV_chain"] } } }
      { user: mute, password: mute, permissions: { publish: { deny: ["$KV.MILLSTREAM_HANDLERS.>"] } } }
    ]
  }
}
no_auth_user: all
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_not_adopted_and_hosts_that_were_not_told_are_told_the_second_time() {
    let world = decided_in(World::with(Server::builder().extra(USERS)).await, 60).await;
    let bucket = backup(&world, "KV_chain").await;
    restore(&world, &bucket).await;
    let (host, reason) = failing(&world, "chain").await;
    let hint = "hint: if it was restored from a backup, go on with `millstream adopt chain`; else build them anew: \
                `nats stream rm -f MILLSTREAM_JOURNAL_chain` and start again";
    assert!(reason.contains(hint), "{reason}");
    let refused_to = |user: &str| {
        let url = world.server.url().replace("nats://", &format!("nats://{user}:{user}@"));
        refused_at(&url, 1, &["adopt", "chain", "--yes"])
    };
    let last = async || world.last_record("chain").await.expect("a record").0;
    let before = last().await;
    let said = refused_to("blind");
    assert!(said.contains("documents of chain cannot be read"), "{said}");
    assert_eq!(last().await, before, "nothing was adopted");

    let said = refused_to("mute");
    assert!(said.contains("chain is adopted, but hosts that gave it up were not told to try again"), "{said}");
    assert_eq!(last().await, before + 1, "it is adopted");
    assert_eq!(world.listed("chain")["state"], "failing", "{}", host.log());
    world.ok(&["adopt", "chain", "--yes"]);
    goes_on(&world, 60).await;
    let said = world.refused(2, &["adopt", "chain", "--yes"]);
    assert!(said.contains("none of them was restored"), "{said}");
}
