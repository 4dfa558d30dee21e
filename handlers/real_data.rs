//! Real events and the answers that were computed from them elsewhere; a test of each handler includes this file.
//! Takes a pack through the handler, a projection in batches of 500. Says so where the data is missing.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by panicking; not each needs all"
)]

#[path = "../host/tests/promises/harness/data.rs"]
mod data;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};

use flate2::read::GzDecoder;
use millstream_sdk::testing::{Replayed, TestEvent, event_line, replay, replay_saga};
use millstream_sdk::{Projection, Saga};
use sha2::{Digest, Sha256};

/// The answer to a question about a pack, and all documents of the handler.
pub(crate) fn answer_and_documents<P: Projection>(
    pack: &str,
    question: &str,
) -> Option<(serde_json::Value, BTreeMap<String, P>)> {
    let (answers, events) = open(pack)?;
    Some((answers["answers"][question].clone(), replay(events, 500)))
}

/// The answer to a question about a pack, and what the saga did until the end that the pack names.
pub(crate) fn answer_and_replayed<S: Saga>(pack: &str, question: &str) -> Option<(serde_json::Value, Replayed<S>)> {
    let (answers, events) = open(pack)?;
    let end = answers["answers"]["clockEnd"].as_str().unwrap();
    Some((answers["answers"][question].clone(), replay_saga(events, end)))
}

/// The answers and the events of a pack.
fn open(pack: &str) -> Option<(serde_json::Value, impl Iterator<Item = TestEvent>)> {
    let events = std::fs::File::open(data::file(&format!("{pack}/events.ndjson.gz"))?).unwrap();
    let answers = std::fs::read(data::file(&format!("{pack}/answers.json"))?).unwrap();
    let lines = BufReader::new(GzDecoder::new(events)).lines();
    Some((serde_json::from_slice(&answers).unwrap(), lines.map(|line| event_line(&line.unwrap()))))
}

/// SHA-256 over the rows, each ended by a line feed, sorted by their bytes.
pub(crate) fn sha256_of_rows(rows: impl Iterator<Item = String>) -> String {
    let mut rows: Vec<String> = rows.collect();
    rows.sort_unstable();
    let mut hash = Sha256::new();
    for row in rows {
        hash.update(row);
        hash.update("\n");
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
