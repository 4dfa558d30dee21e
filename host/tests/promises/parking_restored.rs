//! Dead letters that came back: a stream, or journal and bucket, restored from backups of different moments. Documents hash their events, so
//! one that is lost, doubled or swapped is seen.

use millstream::server::Server;
use serde_json::Value;

use crate::harness::{Host, World, module, until};
use crate::loss::failing;
use crate::parking::{Told, dead, decided, fold, fold_parked, harmful, mend, publish, told};
use crate::restored::{backup, restore};

const DEAD: &str = "MILLSTREAM_DEAD";
const JOURNAL: &str = "MILLSTREAM_JOURNAL_fragile";
const BUCKET: &str = "KV_fragile";

async fn world() -> World {
    let world = World::with(Server::builder()).await;
    world.stream("TOLD", &["told.>"]).await;
    world.deploy("fragile", "fragile", &["--set", "probation_events=0"]);
    world
}

/// One after the other, so that each is in a record of its own.
async fn one_by_one(world: &World, events: &[Told], decided_before: usize) {
    for (index, event) in events.iter().enumerate() {
        publish(world, std::slice::from_ref(event)).await;
        decided(world, "fragile", decided_before + index + 1).await;
    }
}

fn units(world: &World) -> u64 {
    dead(world, "fragile").iter().map(|row| row["units"].as_u64().expect("a number")).sum()
}

async fn parked(world: &World, expected: u64) {
    until("the letters are stored", async || (units(world) == expected).then_some(())).await;
}

async fn ends(mut host: Host) {
    host.signal("TERM");
    assert!(host.end().await.success(), "it ends well:\n{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_an_older_backup_that_were_taken_up_since_are_never_taken_up_again() {
    let world = world().await;
    let host = world.host(&[]);
    let mut events = vec![harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)];
    one_by_one(&world, &events, 0).await;
    parked(&world, 2).await;
    let letters = backup(&world, DEAD).await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    let more: Vec<Told> = (4..10).map(|number| told("k1", number)).collect();
    one_by_one(&world, &more, 3).await;
    events.extend(more);
    world.settled("fragile", &fold(&events)).await;
    ends(host).await;

    restore(&world, &letters).await;
    assert_eq!(units(&world), 2, "they are there again");
    let host = world.host(&[]);
    let more = [told("k1", 10), harmful("k3", 11, "refuse"), told("k2", 12)];
    one_by_one(&world, &more, 9).await;
    events.extend(more);
    world.settled("fragile", &fold(&events)).await;
    assert_eq!(dead(&world, "fragile"), [] as [Value; 0]);
    assert!(host.log().contains("they are removed"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_no_record_knows_stops_the_handler_until_it_is_gone() {
    let world = world().await;
    let host = world.host(&[]);
    let events = [harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)];
    one_by_one(&world, &events, 0).await;
    parked(&world, 2).await;
    ends(host).await;
    let stream = world.jetstream.get_stream(DEAD).await.expect("the stream");
    let letter = stream.get_raw_message(1).await.expect("a letter");
    let mut headers = letter.headers.clone();
    headers.insert("Nats-Msg-Id", "a copy");
    let subject = letter.subject.to_string();
    let copied = world.jetstream.publish_with_headers(subject, headers, letter.payload.clone()).await;
    let copy = copied.expect("sent").await.expect("stored").sequence;

    let (host, reason) = failing(&world, "fragile").await;
    assert!(reason.contains("1 more dead letters of fragile are there than were set aside"), "{reason}");
    // Nobody hears a wish now, and whoever has one is told so at once.
    let said = world.refused(1, &["redrive", "fragile", "--all"]);
    assert!(said.contains("fragile has stopped, so nothing was asked for: 1 more dead letters"), "{said}");
    drop(host);
    assert!(stream.delete_message(copy).await.expect("removed"));
    let _host = world.host(&[]);
    world.settled("fragile", &fold_parked(&events)).await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn journal_and_documents_of_a_backup_go_on_with_letters_that_fit_and_with_no_others() {
    let world = world().await;
    let host = world.host(&[]);
    let mut events = vec![harmful("k1", 1, "refuse"), told("k1", 2), told("k2", 3)];
    one_by_one(&world, &events, 0).await;
    parked(&world, 2).await;
    ends(host).await;
    let (journal, bucket) = (backup(&world, JOURNAL).await, backup(&world, BUCKET).await);
    let letters = backup(&world, DEAD).await;

    // Since then its letters were taken up, and as many others stored.
    let host = world.host(&[]);
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
    world.ok(&["deploy", module("fragile").to_str().expect("path"), "--name", "fragile"]);
    let more = [harmful("k2", 4, "refuse"), told("k2", 5), told("k1", 6)];
    one_by_one(&world, &more, 3).await;
    events.extend(more);
    parked(&world, 2).await;
    ends(host).await;
    restore(&world, &journal).await;
    restore(&world, &bucket).await;
    let (host, _) = failing(&world, "fragile").await;
    let said = world.refused(2, &["adopt", "fragile", "--yes"]);
    assert!(said.contains("has set 2 events aside, and stream MILLSTREAM_DEAD has 0 of their letters"), "{said}");
    drop(host);

    // With those of the same moment all is as it was then, and what came since is decided again.
    restore(&world, &letters).await;
    let (_host, _) = failing(&world, "fragile").await;
    world.ok(&["adopt", "fragile", "--yes"]);
    decided(&world, "fragile", 6).await;
    parked(&world, 5).await;
    world.settled("fragile", &fold_parked(&events)).await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_records_that_a_backup_lacks_go_and_their_events_are_decided_again() {
    let world = world().await;
    let host = world.host(&[]);
    let mut events = vec![told("k1", 1), told("k2", 2), told("k2", 3)];
    one_by_one(&world, &events, 0).await;
    ends(host).await;
    let (journal, bucket) = (backup(&world, JOURNAL).await, backup(&world, BUCKET).await);
    let host = world.host(&[]);
    let more = [harmful("k2", 4, "refuse"), told("k2", 5), told("k1", 6)];
    one_by_one(&world, &more, 3).await;
    events.extend(more);
    parked(&world, 2).await;
    ends(host).await;

    restore(&world, &journal).await;
    restore(&world, &bucket).await;
    let (_host, _) = failing(&world, "fragile").await;
    let output = world.cli(&["adopt", "fragile", "--yes"]);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(
        output.status.success() && said.contains("2 dead letters are of records that the journal does not have"),
        "{said}"
    );
    decided(&world, "fragile", 6).await;
    parked(&world, 2).await;
    world.settled("fragile", &fold_parked(&events)).await;
    mend(&world).await;
    world.ok(&["redrive", "fragile", "--all"]);
    world.settled("fragile", &fold(&events)).await;
}
