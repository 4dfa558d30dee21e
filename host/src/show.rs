//! The last step: decided documents go into the bucket. In: what `documents.rs` holds as committed and not shown.
//! Out: puts, each a compare-and-set on its key's own revision. A round covers everything that is pending when it begins,
//! so a document that changed in a hundred batches is written once. Never: more than one write in flight for a key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use futures::StreamExt as _;
use tokio::time::Instant;

use crate::crash;
use crate::documents::{Documents, Error, Unshown};
use crate::keys;
use crate::names;

/// Puts in flight. Enough to hide a round trip, few enough not to fill the server's queue.
const IN_FLIGHT: usize = 256;

/// Tries to place one document against other writers before giving the claim up.
const TRIES: usize = 10;

/// The pace that the pipeline asks for.
#[derive(Default)]
pub struct Pace {
    /// The handler is behind its streams: write seldom.
    behind: AtomicBool,
    /// The pipeline waits for room: write now.
    urgent: AtomicBool,
}

impl Pace {
    /// Says whether the handler is behind.
    pub fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Relaxed);
    }

    /// Says whether the pipeline waits.
    pub fn set_urgent(&self, urgent: bool) {
        self.urgent.store(urgent, Ordering::Relaxed);
    }

    fn may_wait(&self) -> bool {
        self.behind.load(Ordering::Relaxed) && !self.urgent.load(Ordering::Relaxed)
    }
}

/// Shows documents until the claim ends.
///
/// # Errors
/// When the bucket cannot be written; nothing is lost, the journal still has it.
pub async fn run(documents: Arc<Documents>, pace: Arc<Pace>, interval: Duration) -> Result<(), Error> {
    let mut next_round = Instant::now();
    loop {
        let round = documents.presentable();
        if round.is_empty() {
            documents.committed.notified().await;
            continue;
        }
        while pace.may_wait() && Instant::now() < next_round {
            tokio::select! {
                () = tokio::time::sleep_until(next_round) => {}
                () = documents.committed.notified() => {}
            }
        }
        next_round = Instant::now() + interval;
        // What was decided while this round waited is shown with it.
        self::round(&documents, documents.presentable()).await?;
    }
}

/// Writes these documents.
///
/// # Errors
/// As `run`.
pub(crate) async fn round(documents: &Documents, round: Vec<(String, Unshown)>) -> Result<(), Error> {
    crash::point("showing");
    let round = settled_before(documents, round).await?;
    let half = round.len() / 2;
    let mut puts = futures::stream::iter(round)
        .map(|(key, document)| put(documents, key, document))
        .buffer_unordered(IN_FLIGHT)
        .enumerate();
    while let Some((done, result)) = puts.next().await {
        result?;
        if done == half {
            crash::point("half-shown");
        }
    }
    drop(puts);
    documents.settle();
    crash::point("shown");
    Ok(())
}

/// Learns revisions that are not known, and leaves out documents that an earlier owner already put there.
async fn settled_before(documents: &Documents, round: Vec<(String, Unshown)>) -> Result<Vec<(String, Unshown)>, Error> {
    let unknown: Vec<&str> =
        round.iter().filter(|(key, _)| documents.revision(key).is_none()).map(|(key, _)| key.as_str()).collect();
    if unknown.is_empty() {
        return Ok(round);
    }
    let stored = documents.read(&unknown).await?;
    let revisions: std::collections::HashMap<String, (u64, u64)> =
        stored.into_iter().map(|document| (document.key, (document.journal, document.revision))).collect();
    let waiting = |(key, document): &(String, Unshown)| {
        let journal = documents.origin(document.order).map_or(u64::MAX, |origin| origin.journal);
        match revisions.get(key) {
            Some((there, revision)) if *there >= journal => {
                documents.shown(key, document.order, *revision);
                false
            }
            _ => true,
        }
    };
    Ok(round.into_iter().filter(waiting).collect())
}

async fn put(documents: &Documents, key: String, document: Unshown) -> Result<(), Error> {
    let Some(origin) = documents.origin(document.order) else { return Ok(()) };
    let refused = |reason: String| Error::Refused { bucket: documents.bucket.clone(), reason };
    let mut headers = HeaderMap::new();
    headers.insert(names::JOURNAL_HEADER, origin.journal.to_string());
    headers.insert(names::POSITION_HEADER, format!("{}:{}", origin.stream, document.sequence));
    headers.insert(names::DIGEST_HEADER, origin.digest.short());
    if document.value.is_none() {
        headers.insert("KV-Operation", "DEL");
    }
    let subject = names::bucket_subject(&documents.bucket, &keys::escape(&key));
    for _ in 0..TRIES {
        let revision = documents.revision(&key).unwrap_or_default();
        if revision == 0 && document.value.is_none() {
            documents.shown(&key, document.order, 0);
            return Ok(());
        }
        let publish = PublishMessage::build()
            .payload(document.value.clone().unwrap_or_default())
            .headers(headers.clone())
            .expected_last_subject_sequence(revision);
        let ack = match documents.jetstream.send_publish(subject.clone(), publish).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match ack {
            Ok(ack) => {
                documents.shown(&key, document.order, ack.sequence);
                return Ok(());
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                // Somebody wrote this key since we looked: an earlier owner, a later one, or a person.
                if let Some(stored) = documents.read(&[&key]).await?.pop()
                    && stored.journal >= origin.journal
                {
                    documents.shown(&key, document.order, stored.revision);
                    return Ok(());
                }
            }
            Err(error) => return Err(refused(error.to_string())),
        }
    }
    Err(refused(format!("key {key} is being written by somebody else")))
}
