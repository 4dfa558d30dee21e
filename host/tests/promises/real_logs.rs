//! Real events through the real thing: published by `millstream publish`, decided by a host, read back from the buckets, equal to
//! the answers that Python and DuckDB computed. Skipped, with a line that says so, where the data is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{self, Documents, PATIENCE, World, pause, until};

/// A pack of real events with their answers.
pub struct Pack {
    folder: PathBuf,
    pub answers: Value,
}

/// A JSON file of the data that tests compare with; says so where it is missing.
pub fn data(path: &str) -> Option<(PathBuf, Value)> {
    let path = harness::data::file(path)?;
    let text = std::fs::read(&path).expect("the file");
    Some((path, serde_json::from_slice(&text).expect("JSON")))
}

impl Pack {
    pub fn open(name: &str) -> Option<Self> {
        let (path, mut answers) = data(&format!("{name}/answers.json"))?;
        let folder = path.parent().expect("a folder").to_owned();
        Some(Self { folder, answers: answers["answers"].take() })
    }

    /// The listing behind the hash of an answer, line by line.
    pub fn expected(&self, answer: &str) -> Vec<String> {
        let file = std::fs::File::open(self.folder.join(format!("expected/{answer}.tsv.gz"))).expect("the listing");
        let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
        lines.map(|line| line.expect("a line")).collect()
    }

    fn events(&self) -> PathBuf {
        self.folder.join("events.ndjson.gz")
    }

    /// The first events, read without any code of the program under test.
    fn first(&self, count: usize) -> Vec<Value> {
        let file = std::fs::File::open(self.events()).expect("the events");
        let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
        lines.take(count).map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON")).collect()
    }

    pub fn publish(&self, world: &World, subject: &str, limit: Option<usize>) -> u64 {
        let events = self.events();
        let mut arguments = vec!["publish", events.to_str().expect("path"), "--subject", subject, "--json"];
        let limit = limit.map(|limit| limit.to_string());
        if let Some(limit) = &limit {
            arguments.extend(["--limit", limit]);
        }
        let summary: Value = serde_json::from_str(world.ok(&arguments).trim()).expect("a summary");
        assert_eq!((&summary["alreadyThere"], &summary["losses"]), (&json!(0), &json!(0)), "{summary}");
        summary["published"].as_u64().expect("a number")
    }
}

/// Runs a host until these handlers have decided everything, and ends it: then everything is in the buckets. A loaded machine
/// may not write 150,000 documents in the time that a host has to stop; it says so, and the next start does it.
async fn run(world: &World, handlers: &[&str]) {
    let deadline = Instant::now() + PATIENCE * 5;
    loop {
        let mut host = world.host(&[]);
        for handler in handlers {
            decided(world, handler).await;
        }
        host.signal("TERM");
        assert_eq!(host.end().await.code(), Some(0), "{}", host.log());
        assert!(!host.log().contains("ERROR"), "{}", host.log());
        if host.log().contains("everything decided is in the buckets") {
            return;
        }
        assert!(Instant::now() < deadline, "not all is shown after several starts: {}", host.log());
    }
}

/// Waits until a handler is caught up, for as long as it makes progress: how long that takes is the machine's.
async fn decided(world: &World, handler: &str) {
    let (mut least, mut deadline) = (u64::MAX, Instant::now() + PATIENCE);
    loop {
        let behind: u64 = world.lag(handler).iter().filter_map(|row| row["events"].as_u64()).sum();
        if behind == 0 {
            return;
        }
        if behind < least {
            (least, deadline) = (behind, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "{handler} stands still, {behind} events behind");
        pause().await;
    }
}

/// A handler's documents, read once.
async fn documents(world: &World, handler: &str, events: u64) -> BTreeMap<String, Value> {
    let (_, counts, _) = world.last_record(handler).await.expect("a record");
    assert_eq!((counts.delivered, counts.applied), (events, events), "{handler}");
    let documents = world.documents(handler).await;
    documents.into_iter().map(|(key, value)| (key, serde_json::from_str(&value).expect("JSON"))).collect()
}

/// SHA-256 over the rows, each ended by a line feed, sorted by their bytes: the packs' canonical listing.
pub fn listing(rows: impl Iterator<Item = String>) -> String {
    let mut rows: Vec<String> = rows.collect();
    rows.sort_unstable();
    let hash = rows.iter().fold(Sha256::new(), |hash, row| hash.chain_update(row).chain_update("\n"));
    hex::encode(hash.finalize())
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// P6 of both packs.
fn chain_answer(chains: &BTreeMap<String, Value>) -> Value {
    let rows = chains.iter().map(|(key, chain)| format!("{key}\t{}", text(&chain["hash"])));
    json!({ "rows": chains.len(), "sha256": listing(rows) })
}

/// P2 of the fines.
fn fines_answer(fines: &BTreeMap<String, Value>) -> Value {
    let mut by_status: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for fine in fines.values() {
        let paid = fine["paid"].as_u64().expect("cents");
        let sums = by_status.entry(text(&fine["status"])).or_default();
        *sums = (sums.0 + 1, sums.1 + u64::from(paid > 0), sums.2 + paid);
    }
    let by_status: Vec<_> = by_status.into_iter().map(|(status, sums)| (status, sums.0, sums.1, sums.2)).collect();
    let rows = fines
        .iter()
        .map(|(key, fine)| format!("{key}\t{}\t{}\t{}", text(&fine["status"]), fine["paid"], fine["events"]));
    json!({ "byStatus": by_status, "rows": fines.len(), "sha256": listing(rows) })
}

/// P3 of the edits.
fn channels_answer(channels: &BTreeMap<String, Value>) -> Value {
    let row = |(key, channel): (&String, &Value)| {
        let users = channel["users"].as_array().expect("a list").len();
        let numbers =
            ["events", "added", "deleted", "robots", "anonymous", "created"].map(|name| channel[name].clone());
        let mut row = vec![json!(key)];
        row.extend(numbers);
        row.push(json!(users));
        Value::Array(row)
    };
    channels.iter().map(row).collect()
}

/// P4 of the edits.
fn pages_answer(pages: &BTreeMap<String, Value>) -> Value {
    let rows = pages.iter().map(|(key, page)| {
        format!("{key}\t{}\t{}\t{}\t{}", page["events"], page["delta"], text(&page["user"]), text(&page["timestamp"]))
    });
    json!({ "rows": pages.len(), "sha256": listing(rows) })
}

/// P1 of the edits, from the pages of all channels.
fn top_pages_answer(pages: &BTreeMap<String, Value>) -> Value {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, page) in pages {
        let (_, name) = key.split_once('|').expect("channel|page");
        *counts.entry(name).or_default() += page["events"].as_u64().expect("a number");
    }
    let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
    // Stable: ties stay in the order of their bytes.
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    json!(counts[..10])
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_million_fines_give_the_answers_computed_elsewhere() {
    let Some(pack) = Pack::open("traffic-fines") else { return };
    let world = World::new().await;
    world.stream("FINES", &["fines.>"]).await;
    world.deploy("fine-status", "fine-status", &[]);
    world.deploy("order-chain", "chain", &["--set", "subjects=fines.>"]);
    assert_eq!(pack.publish(&world, "fines.{aggregateId}", None), 561_470);
    run(&world, &["fine-status", "chain"]).await;
    assert_eq!(fines_answer(&documents(&world, "fine-status", 561_470).await), pack.answers["P2_statusAtEnd"]);
    assert_eq!(chain_answer(&documents(&world, "chain", 561_470).await), pack.answers["P6_orderChain"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_of_half_a_million_fines_gives_the_same_answers_before_and_after_its_promotion() {
    let Some(pack) = Pack::open("traffic-fines") else { return };
    let world = World::new().await;
    world.stream("FINES", &["fines.>"]).await;
    world.deploy("fine-status", "fine-status", &[]);
    assert_eq!(pack.publish(&world, "fines.{aggregateId}", None), 561_470);
    run(&world, &["fine-status"]).await;
    let host = world.host(&[]);
    world.ok(&["rebuild", "fine-status"]);
    let answer = pack.answers["P2_statusAtEnd"].clone();
    until("both are alike", async || {
        let difference = crate::generations::diff(&world, "fine-status", &[]);
        (difference["equal"] == answer["rows"] && difference["samples"] == json!([])).then_some(())
    })
    .await;
    world.ok(&["promote", "fine-status"]);
    drop(host);
    for bucket in ["fine-status", "fine-status_g1"] {
        let documents = world.documents(bucket).await.into_iter();
        let documents = documents.map(|(key, value)| (key, serde_json::from_str(&value).expect("JSON"))).collect();
        assert_eq!(fines_answer(&documents), answer, "{bucket}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_edits_give_the_answers_computed_elsewhere_whatever_the_batch() {
    let Some(pack) = Pack::open("wikipedia-edits") else { return };
    let world = World::new().await;
    world.stream("EDITS", &["edits.>"]).await;
    let mut handlers = vec!["stats"];
    world.deploy("channel-stats", "stats", &[]);
    for (pages, batch) in [("pages-7", "7"), ("pages", "500")] {
        world.deploy("page-edits", pages, &["--set", &format!("batch_events={batch}")]);
        handlers.push(pages);
    }
    for (chain, batch) in [("chain-1", "1"), ("chain-7", "7"), ("chain", "500")] {
        world.deploy("order-chain", chain, &["--set", &format!("batch_events={batch}"), "--set", "subjects=edits.>"]);
        handlers.push(chain);
    }
    assert_eq!(pack.publish(&world, "edits.{aggregateId}", None), 39_244);
    run(&world, &handlers).await;
    assert_eq!(channels_answer(&documents(&world, "stats", 39_244).await), pack.answers["P3_channelStats"]);
    for pages in ["pages-7", "pages"] {
        let pages = documents(&world, pages, 39_244).await;
        assert_eq!(pages_answer(&pages), pack.answers["P4_pageState"]);
        assert_eq!(top_pages_answer(&pages), pack.answers["P1_topPages"]);
    }
    for chain in ["chain-1", "chain-7", "chain"] {
        assert_eq!(chain_answer(&documents(&world, chain, 39_244).await), pack.answers["P6_orderChain"], "{chain}");
    }
    keys_come_back_as_the_handler_wrote_them(&world).await;
}

/// Spaces, dots, bars, colons, letters beyond ASCII: by our command and by a plain NATS client.
async fn keys_come_back_as_the_handler_wrote_them(world: &World) {
    let bucket = world.jetstream.get_key_value("pages").await.expect("the bucket");
    for (key, escaped) in [
        ("#en.wikipedia|Talk:Oswald Tilghman", "=23en.wikipedia=7CTalk=3AOswald=20Tilghman"),
        ("#ca.wikipedia|Via Lliure", "=23ca.wikipedia=7CVia=20Lliure"),
        (
            "#fr.wikipedia|Wikipédia:Le Bistro/12 septembre 2015",
            "=23fr.wikipedia=7CWikip=C3=A9dia=3ALe=20Bistro/12=20septembre=202015",
        ),
    ] {
        let ours = world.ok(&["get", "pages", key]);
        let theirs = bucket.get(escaped).await.expect("an answer").expect("a document");
        assert_eq!(ours.trim_end().as_bytes(), theirs, "{key}");
        let row: Value = serde_json::from_str(&world.ok(&["get", "pages", key, "--json"])).expect("JSON");
        assert_eq!((&row["key"], row["value"]["events"].as_u64().map(|events| events > 0)), (&json!(key), Some(true)));
    }
    let talks = world.ok(&["get", "pages", "--prefix", "#ca.wikipedia|V"]);
    assert!(!talks.is_empty() && talks.lines().all(|line| line.starts_with("#ca.wikipedia|V")), "{talks}");
    let said = crate::harness::refused(&world.server.url(), 1, &["get", "pages", "#en.wikipedia|No such page"]);
    assert!(said.contains("no document under [\"#en.wikipedia|No such page\"]"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_handler_over_two_streams_counts_every_edit_once() {
    let Some(pack) = Pack::open("wikipedia-edits") else { return };
    let world = World::new().await;
    world.stream("CREATED", &["PageCreated.>"]).await;
    world.stream("EDITED", &["PageEdited.>"]).await;
    world.deploy("channel-stats", "stats", &["--set", "subjects=PageCreated.>,PageEdited.>"]);
    assert_eq!(pack.publish(&world, "{eventType}.{aggregateId}", None), 39_244);
    run(&world, &["stats"]).await;
    assert_eq!(channels_answer(&documents(&world, "stats", 39_244).await), pack.answers["P3_channelStats"]);
    let (_, _, positions) = world.last_record("stats").await.expect("a record");
    assert_eq!((positions.len(), positions.iter().sum()), (2, 39_244), "{positions:?}");
}

/// What channel-stats must hold after these events, by a fold that shares no code with it.
fn stats(events: &[Value]) -> Documents {
    let mut channels: BTreeMap<&str, ([u64; 6], BTreeSet<&str>)> = BTreeMap::new();
    for event in events {
        let payload = &event["payload"];
        let (sums, users) = channels.entry(text(&payload["channel"])).or_default();
        let flag = |name: &str| u64::from(payload[name] == true);
        let number = |name: &str| payload[name].as_u64().expect("a number");
        let more = [1, number("added"), number("deleted"), flag("isRobot"), flag("isAnonymous"), flag("isNew")];
        *sums = std::array::from_fn(|index| sums[index] + more[index]);
        users.insert(text(&payload["user"]));
    }
    let document = |([events, added, deleted, robots, anonymous, created], users): ([u64; 6], BTreeSet<&str>)| {
        let users = serde_json::to_string(&users).expect("JSON");
        format!(
            r#"{{"events":{events},"added":{added},"deleted":{deleted},"robots":{robots},"anonymous":{anonymous},"created":{created},"users":{users}}}"#
        )
    };
    channels.into_iter().map(|(channel, sums)| (channel.to_owned(), document(sums))).collect()
}

/// What fine-status must hold after these events.
fn fines(events: &[Value]) -> Documents {
    let mut fines: BTreeMap<&str, (Option<&str>, u64, u64)> = BTreeMap::new();
    for event in events {
        let (status, paid, count) = fines.entry(text(&event["aggregateId"])).or_default();
        let step = match text(&event["eventType"]) {
            "CreateFine" => Some("created"),
            "SendFine" => Some("sent"),
            "InsertFineNotification" => Some("notified"),
            "AddPenalty" => Some("penalised"),
            "SendForCreditCollection" => Some("collection"),
            "InsertDateAppealToPrefecture" | "AppealToJudge" => Some("appealed"),
            _ => None,
        };
        *status = step.or(*status);
        *paid = event["payload"]["totalPaymentCents"].as_u64().unwrap_or(*paid);
        *count += 1;
    }
    let document = |(status, paid, events)| {
        format!(r#"{{"status":{},"paid":{paid},"events":{events}}}"#, serde_json::to_string(&status).expect("JSON"))
    };
    fines.into_iter().map(|(fine, account)| (fine.to_owned(), document(account))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_real_events_give_the_same_bytes_as_an_independent_fold_whatever_the_batch() {
    const FIRST: usize = 3000;
    let (Some(wikipedia), Some(police)) = (Pack::open("wikipedia-edits"), Pack::open("traffic-fines")) else { return };
    let world = World::new().await;
    world.stream("EDITS", &["edits.>"]).await;
    world.stream("FINES", &["fines.>"]).await;
    let names = [("stats-1", "fines-1", "1"), ("stats-7", "fines-7", "7"), ("stats", "fines", "500")];
    for (stats, fines, batch) in names {
        let batch = format!("batch_events={batch}");
        world.deploy("channel-stats", stats, &["--set", &batch]);
        world.deploy("fine-status", fines, &["--set", &batch]);
    }
    wikipedia.publish(&world, "edits.{aggregateId}", Some(FIRST));
    police.publish(&world, "fines.{aggregateId}", Some(FIRST));
    run(&world, &["stats-1", "stats-7", "stats", "fines-1", "fines-7", "fines"]).await;
    let (stats, fines) = (stats(&wikipedia.first(FIRST)), fines(&police.first(FIRST)));
    for (of_channels, of_fines, _) in names {
        world.settled(of_channels, &stats).await;
        world.settled(of_fines, &fines).await;
    }
}
