//! The last step: decided documents go into the bucket. In: what `documents.rs` holds as committed and not shown.
//! Out: puts, each a compare-and-set on its key's own revision. A round covers everything that is pending when it begins,
//! so a document that changed in a hundred batches is written once. Never: more than one write in flight for a key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use futures::StreamExt as _;
use tokio::time::Instant;

use crate::acks::{self, Acks};
use crate::crash;
use crate::documents::{Documents, Error, Unshown};
use crate::keys;
use crate::names;
use crate::publication::Publication;

/// Puts in flight. Enough to hide a round trip, few enough not to fill the server's queue.
const IN_FLIGHT: usize = 256;

/// What the server says where the key's revision is not the expected one: alone, and inside a batch.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];

/// Tries to place one document against other writers before giving the claim up.
const TRIES: usize = 10;

/// While behind, the pause after a round lasts so many times the round: catching up gets nine tenths of the time, however
/// many documents there are. Without it, 10,000 of them took a fifth of the CPU of host and server.
const PAUSE_PER_ROUND: u32 = 9;

/// The longest such pause, in intervals, for people who watch and for recovery, which reads what is not shown.
const LONGEST_PAUSE: u32 = 10;

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
pub async fn run(documents: Arc<Documents>, acks: Arc<Acks>, pace: Arc<Pace>, interval: Duration) -> Result<(), Error> {
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
        let begun = Instant::now();
        // What was decided while this round waited is shown with it.
        self::round(&documents, &acks, documents.presentable()).await?;
        let pause = (begun.elapsed() * PAUSE_PER_ROUND).clamp(interval, interval.saturating_mul(LONGEST_PAUSE));
        next_round = Instant::now() + pause;
    }
}

/// Writes these documents.
///
/// # Errors
/// As `run`.
pub(crate) async fn round(documents: &Documents, acks: &Acks, round: Vec<(String, Unshown)>) -> Result<(), Error> {
    crash::point("showing");
    let round = settled_before(documents, round).await?;
    let half = round.len() / 2;
    let mut puts = futures::stream::iter(round)
        .map(|(key, document)| put(documents, acks, key, document))
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

async fn put(documents: &Documents, acks: &Acks, key: String, document: Unshown) -> Result<(), Error> {
    let Some(origin) = documents.origin(document.order) else { return Ok(()) };
    let refused = |reason: String| Error::Refused { bucket: documents.bucket.clone(), reason };
    let mut headers = HeaderMap::new();
    headers.insert(names::JOURNAL_HEADER, origin.journal.to_string());
    headers.insert(names::POSITION_HEADER, format!("{}:{}", origin.stream, document.sequence));
    headers.insert(names::DIGEST_HEADER, origin.digest.short());
    if document.value.is_none() {
        headers.insert("KV-Operation", "DEL");
    }
    if let Some(seconds) = document.keep_seconds {
        // The least that the server takes.
        headers.insert(NATS_MESSAGE_TTL, seconds.max(1).to_string());
    }
    let subject = names::bucket_subject(&documents.bucket, &keys::escape(&key));
    for _ in 0..TRIES {
        let revision = documents.revision(&key).unwrap_or_default();
        if revision == 0 && document.value.is_none() {
            documents.shown(&key, document.order, 0);
            return Ok(());
        }
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        let payload = document.value.clone().unwrap_or_default();
        let put = Publication { subject: subject.clone(), headers: headers.clone(), payload };
        let ack = match acks.publish(put).await {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        match ack {
            Ok(ack) => {
                documents.shown(&key, document.order, ack.sequence);
                return Ok(());
            }
            Err(acks::Error::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => {
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

#[cfg(test)]
mod tests {
    use async_nats::jetstream::{self, Context};
    use bytes::Bytes;

    use super::*;
    use crate::documents::{Decided, Origin};
    use crate::sandbox::Digest;
    use crate::server::Server;

    const KEY: &str = "C 42";

    async fn world() -> (Server, Context) {
        let server = Server::builder().start().await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let jetstream = jetstream::new(client);
        // As many records as the tests name.
        let config = jetstream::stream::Config {
            name: names::journal_stream("h"),
            subjects: vec!["journal".to_owned()],
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        for _ in 0..10 {
            jetstream.publish("journal", "".into()).await.unwrap().await.unwrap();
        }
        (server, jetstream)
    }

    async fn owner(jetstream: &Context) -> Documents {
        Documents::open(jetstream, "h", 1, 100).await.unwrap()
    }

    /// Decides and commits one document, as record `journal`, in this owner's order.
    fn decide(documents: &Documents, order: u64, journal: u64, value: Option<&'static str>) {
        let value = value.map(|text| Bytes::from_static(text.as_bytes()));
        documents.decide(order, vec![Decided { key: KEY.to_owned(), value, sequence: journal, keep_seconds: None }]);
        documents.commit(Origin { order, journal, stream: "S".into(), digest: Digest([0; 32]) });
    }

    async fn show(documents: &Documents) {
        let acks = Acks::open(&documents.jetstream.client()).await.unwrap();
        round(documents, &acks, documents.presentable()).await.unwrap();
    }

    async fn stored(documents: &Documents) -> Option<(u64, String)> {
        let stored = documents.read(&[KEY]).await.unwrap().pop()?;
        Some((stored.journal, String::from_utf8(stored.value?.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn an_owner_that_comes_late_cannot_overwrite_a_newer_document() {
        let (_server, jetstream) = world().await;
        let (late, heir) = (owner(&jetstream).await, owner(&jetstream).await);
        decide(&late, 1, 3, Some("three"));
        show(&late).await;
        decide(&late, 2, 5, Some("five"));
        decide(&heir, 1, 5, Some("five"));
        decide(&heir, 2, 9, Some("nine"));
        show(&heir).await;
        show(&late).await;
        assert_eq!(stored(&heir).await, Some((9, "nine".to_owned())));
        assert_eq!((late.shown_through(), heir.shown_through()), (5, 9), "both know that they are done");
    }

    #[tokio::test]
    async fn an_heir_overwrites_what_the_late_owner_put_meanwhile() {
        let (_server, jetstream) = world().await;
        let (late, heir) = (owner(&jetstream).await, owner(&jetstream).await);
        assert_eq!(stored(&heir).await, None, "the heir knows the key as absent");
        decide(&late, 1, 5, Some("five"));
        show(&late).await;
        decide(&heir, 1, 9, Some("nine"));
        show(&heir).await;
        assert_eq!(stored(&heir).await, Some((9, "nine".to_owned())));
    }

    #[tokio::test]
    async fn a_document_written_by_hand_does_not_stay() {
        let (_server, jetstream) = world().await;
        let documents = owner(&jetstream).await;
        decide(&documents, 1, 3, Some("three"));
        show(&documents).await;
        jetstream.get_key_value("h").await.unwrap().put("C=2042", "forged".into()).await.unwrap();
        decide(&documents, 2, 5, Some("five"));
        show(&documents).await;
        assert_eq!(stored(&documents).await, Some((5, "five".to_owned())));
    }

    #[tokio::test]
    async fn a_document_with_a_forged_journal_sequence_does_not_stay_and_is_never_folded_on() {
        let (_server, jetstream) = world().await;
        let documents = owner(&jetstream).await;
        decide(&documents, 1, 3, Some("three"));
        show(&documents).await;
        let mut headers = HeaderMap::new();
        headers.insert(names::JOURNAL_HEADER, u64::MAX.to_string());
        let subject = names::bucket_subject("h", &keys::escape(KEY));
        let forge = async || {
            let put = jetstream.publish_with_headers(subject.clone(), headers.clone(), "forged".into());
            put.await.unwrap().await.unwrap()
        };
        forge().await;
        decide(&documents, 2, 5, Some("five"));
        show(&documents).await;
        assert_eq!(stored(&documents).await, Some((5, "five".to_owned())), "a known revision, put against it");
        forge().await;
        let heir = owner(&jetstream).await;
        assert!(heir.load(&[KEY]).await.is_err(), "it is foreign");
        decide(&heir, 1, 6, Some("six"));
        show(&heir).await;
        assert_eq!(stored(&heir).await, Some((6, "six".to_owned())), "an unknown revision, read first");
    }

    #[tokio::test]
    async fn a_bucket_that_was_empty_is_read_only_after_a_revision_was_forgotten() {
        let (_server, jetstream) = world().await;
        let documents = Documents::open(&jetstream, "h", 1, 4).await.unwrap();
        let bucket = jetstream.get_key_value("h").await.unwrap();
        bucket.put("C=2042", "forged".into()).await.unwrap();
        assert_eq!(documents.load(&[KEY]).await.unwrap(), [None], "nobody asked the server");
        decide(&documents, 1, 1, Some("ours"));
        show(&documents).await;
        assert_eq!(
            stored(&documents).await,
            Some((1, "ours".to_owned())),
            "and what was forged meanwhile did not stay"
        );
        bucket.put("other", "forged".into()).await.unwrap();
        for (order, key) in (2..).zip(["a", "b", "c", "d", "e"]) {
            let value = Some(Bytes::from_static(b"1"));
            documents.decide(order, vec![Decided { key: key.to_owned(), value, sequence: order, keep_seconds: None }]);
            documents.commit(Origin { order, journal: order, stream: "S".into(), digest: Digest([0; 32]) });
            show(&documents).await;
        }
        assert!(documents.load(&["other"]).await.is_err(), "a foreign document is seen");
    }

    #[tokio::test]
    async fn a_document_that_changed_often_is_written_once_and_a_deleted_one_is_gone() {
        let (_server, jetstream) = world().await;
        let documents = owner(&jetstream).await;
        for batch in 1..=100 {
            decide(&documents, batch, batch, Some("again"));
        }
        show(&documents).await;
        let revision = documents.read(&[KEY]).await.unwrap()[0].revision;
        assert_eq!((revision, documents.shown_through()), (1, 100), "one put for a hundred batches");
        decide(&documents, 101, 101, None);
        show(&documents).await;
        assert_eq!(stored(&documents).await, None);
        assert_eq!(documents.load(&[KEY]).await.unwrap(), [None]);
        assert_eq!(documents.shown_through(), 101);
    }
}
