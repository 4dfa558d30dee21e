//! The last step: decided documents go into the bucket. In: what `documents.rs` holds as committed and not shown.
//! Out: puts, each a compare-and-set on its key's own revision. A round covers everything that is pending when it begins,
//! so a document that changed in a hundred batches is written once. Never: more than one write in flight for a key.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use tokio::time::Instant;

use crate::acks::{self, Acks, Answer};
use crate::crash;
use crate::documents::{Documents, Error, Unshown};
use crate::keys;
use crate::names;
use crate::publication::Publication;

/// Puts in flight. Enough to hide a round trip, few enough not to fill the server's queue.
const IN_FLIGHT: usize = 256;

/// What the server says where the key's revision is not the expected one: alone, and inside a batch.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];

const JOURNAL: HeaderName = HeaderName::from_static(names::JOURNAL_HEADER);
const POSITION: HeaderName = HeaderName::from_static(names::POSITION_HEADER);
const DIGEST: HeaderName = HeaderName::from_static(names::DIGEST_HEADER);
const OPERATION: HeaderName = HeaderName::from_static("KV-Operation");

/// Tries to place documents against other writers before giving the claim up.
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
        if !documents.has_presentable() {
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
    let mut contested = String::new();
    let mut round = settled_before(documents, round, |key| documents.revision(key)).await?;
    let mut half = Some(round.len() / 2);
    for _ in 0..TRIES {
        let refused = write(documents, acks, round, half.take()).await?;
        let Some((key, _)) = refused.first() else {
            documents.settle();
            crash::point("shown");
            return Ok(());
        };
        contested.clone_from(key);
        round = settled_before(documents, refused, |_| None).await?;
    }
    Err(refused_by(documents, format!("key {contested} is being written by somebody else")))
}

/// Writes documents against the revisions beside them. Answers those that were refused for that: somebody wrote their keys since we
/// looked, an earlier owner, a later one, or a person. Counting to `half`, a crash can be asked for.
async fn write(
    documents: &Documents,
    acks: &Acks,
    round: Vec<Due>,
    half: Option<usize>,
) -> Result<Vec<(String, Unshown)>, Error> {
    let (mut refused, mut sent) = (Vec::new(), VecDeque::with_capacity(IN_FLIGHT.min(round.len())));
    let (mut round, mut done) = (round.into_iter(), 0);
    loop {
        while sent.len() < IN_FLIGHT
            && let Some(due) = round.next()
        {
            sent.push_back(send(documents, acks, due).await?);
        }
        // The bucket answers in the order of the puts.
        let Some(put) = sent.pop_front() else { return Ok(refused) };
        if let Some((key, document, answer)) = put {
            match answer.await {
                Ok(ack) => documents.shown(&key, document.order, ack.sequence),
                Err(acks::Error::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => {
                    refused.push((key, document));
                }
                Err(error) => return Err(refused_by(documents, error.to_string())),
            }
        }
        if half == Some(done) {
            crash::point("half-shown");
        }
        done += 1;
    }
}

/// A document that is to be written, and the revision of its key that it follows; 0: the key is absent. A bucket with many keys may
/// have the revision forgotten before the end of the round.
type Due = (String, Unshown, u64);

/// Reads the revisions that are not known, all at once, and leaves out documents that are there already, or newer ones: another owner put
/// them there.
async fn settled_before(
    documents: &Documents,
    round: Vec<(String, Unshown)>,
    known: impl Fn(&str) -> Option<u64>,
) -> Result<Vec<Due>, Error> {
    let known: Vec<Option<u64>> = round.iter().map(|(key, _)| known(key)).collect();
    let unknown = round.iter().zip(&known).filter(|(_, revision)| revision.is_none());
    let unknown: Vec<&str> = unknown.map(|((key, _), _)| key.as_str()).collect();
    let stored = if unknown.is_empty() { Vec::new() } else { documents.read(&unknown).await? };
    let stored: HashMap<String, (u64, u64)> =
        stored.into_iter().map(|document| (document.key, (document.journal, document.revision))).collect();
    let due = |((key, document), known): ((String, Unshown), Option<u64>)| {
        let (journal, revision) = match known {
            Some(revision) => (0, revision),
            None => stored.get(&key).copied().unwrap_or_default(),
        };
        let is_there = journal > 0 && documents.origin(document.order).is_some_and(|origin| origin.journal <= journal);
        if is_there {
            documents.shown(&key, document.order, revision);
        }
        (!is_there).then_some((key, document, revision))
    };
    Ok(round.into_iter().zip(known).filter_map(due).collect())
}

/// Sends a document. None: there is nothing to write.
async fn send(
    documents: &Documents,
    acks: &Acks,
    (key, document, revision): Due,
) -> Result<Option<(String, Unshown, Answer)>, Error> {
    let Some(origin) = documents.origin(document.order) else { return Ok(None) };
    if revision == 0 && document.value.is_none() {
        documents.shown(&key, document.order, 0);
        return Ok(None);
    }
    let mut headers = HeaderMap::new();
    headers.insert(JOURNAL, origin.journal.to_string());
    headers.insert(POSITION, format!("{}:{}", origin.stream, document.sequence));
    headers.insert(DIGEST, origin.digest.short());
    if document.value.is_none() {
        headers.insert(OPERATION, "DEL");
    }
    if let Some(seconds) = document.keep_seconds {
        // The least that the server takes.
        headers.insert(NATS_MESSAGE_TTL, seconds.max(1).to_string());
    }
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    let subject = names::bucket_subject(&documents.bucket, &keys::escape(&key));
    let payload = document.value.clone().unwrap_or_default();
    let sent = acks.publish(Publication { subject, headers, payload }).await;
    let answer = sent.map_err(|error| refused_by(documents, error.to_string()))?;
    Ok(Some((key, document, answer)))
}

fn refused_by(documents: &Documents, reason: String) -> Error {
    Error::Refused { bucket: documents.bucket.clone(), reason }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::{self, Context};
    use bytes::Bytes;
    use futures::StreamExt as _;

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
    async fn a_round_reads_at_once_what_it_must_know_however_little_is_remembered() {
        let (_server, jetstream) = world().await;
        let documents = Documents::open(&jetstream, "h", 1, 4).await.unwrap();
        let round = async |order: u64, value: Option<&'static str>| {
            let value = value.map(Bytes::from);
            let key = |number: u64| Decided {
                key: format!("key {number}"),
                value: value.clone(),
                sequence: order,
                keep_seconds: None,
            };
            documents.decide(order, (0..50).map(key).collect());
            documents.commit(Origin { order, journal: order, stream: "S".into(), digest: Digest([0; 32]) });
            show(&documents).await;
            jetstream.get_stream("KV_h").await.unwrap().cached_info().state.last_sequence
        };
        round(1, Some("1")).await;
        let client = jetstream.client();
        let mut reads = client.subscribe("$JS.API.DIRECT.GET.KV_h").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(round(2, Some("2")).await, 100, "each document once");
        client.publish("$JS.API.DIRECT.GET.KV_h", "the end".into()).await.unwrap();
        let first = reads.next().await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&first.payload).matches("$KV.h.key=20").count(),
            46 + 1,
            "all but four, and a witness"
        );
        assert_eq!(reads.next().await.unwrap().payload, "the end");
        assert_eq!(round(3, None).await, 150);
        let keys: Vec<String> = (0..50).map(|number| format!("key {number}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let gone = documents.read(&keys).await.unwrap();
        assert_eq!((gone.len(), gone.iter().filter(|document| document.value.is_none()).count()), (50, 50));
    }

    #[tokio::test]
    async fn what_another_owner_wrote_meanwhile_is_looked_up_at_once() {
        let (_server, jetstream) = world().await;
        let owner = async || Documents::open(&jetstream, "h", 1, 10_000).await.unwrap();
        let (late, heir) = (owner().await, owner().await);
        let decide = |documents: &Documents, order: u64, journal: u64, value: &'static str| {
            let value = Some(Bytes::from(value));
            let keep_seconds = None;
            let key = |number: u64| Decided {
                key: format!("k{number}"),
                value: value.clone(),
                sequence: journal,
                keep_seconds,
            };
            documents.decide(order, (0..600).map(key).collect());
            documents.commit(Origin { order, journal, stream: "S".into(), digest: Digest([0; 32]) });
        };
        decide(&heir, 1, 5, "five");
        decide(&late, 1, 4, "four");
        show(&late).await;
        let client = jetstream.client();
        let mut reads = client.subscribe("$JS.API.DIRECT.GET.KV_h").await.unwrap();
        client.flush().await.unwrap();
        show(&heir).await;
        decide(&late, 2, 5, "five");
        show(&late).await;
        client.publish("$JS.API.DIRECT.GET.KV_h", "the end".into()).await.unwrap();
        for (whose, expected) in [("the heir's", 600), ("the late one's, with a witness", 601)] {
            let read = reads.next().await.unwrap();
            let keys = String::from_utf8_lossy(&read.payload).matches("$KV.h.k").count();
            assert_eq!(keys, expected, "{whose}");
        }
        assert_eq!(reads.next().await.unwrap().payload, "the end");
        let stored = heir.read(&["k0", "k599"]).await.unwrap();
        assert!(stored.iter().all(|document| (document.journal, document.value.as_deref()) == (5, Some(&b"five"[..]))));
        let revision = jetstream.get_stream("KV_h").await.unwrap().cached_info().state.last_sequence;
        assert_eq!((revision, late.shown_through(), heir.shown_through()), (1200, 5, 5), "each wrote what it had to");
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
