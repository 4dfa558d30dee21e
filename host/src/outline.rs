//! What is in a bucket, in outline: per key a digest of the document, its revision and where it comes from. In: a bucket. Out: the
//! outline, brought up to what the bucket's leader knows; only what was written since the last time is read. Never: keeps
//! documents, so that millions of them can be compared in memory.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Stream;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::direct_get::{self, From, Last};
use crate::documents;
use crate::inputs;
use crate::names;

/// Messages of one request, and their bytes.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 8 << 20;

/// How long to ask again while replicas are behind.
const FRESH_WITHIN: Duration = Duration::from_secs(5);

/// A document as far as a comparison needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Sequence in the bucket's stream: what a put must expect.
    pub(crate) revision: u64,
    /// Half of the sha256 of its bytes; none where it was deleted.
    pub(crate) digest: Option<[u8; 16]>,
    /// The last event in it: index of the stream's name, and sequence.
    origin: Option<(u16, u64)>,
}

/// A bucket in outline.
pub(crate) struct Outline {
    jetstream: Context,
    pub(crate) bucket: String,
    /// By escaped key; deletions included.
    pub(crate) entries: HashMap<String, Entry>,
    /// Names of the streams in documents' headers.
    streams: Vec<String>,
    /// The sequence from which on nothing is read yet.
    next: u64,
}

/// Why a bucket cannot be outlined.
#[derive(Debug, thiserror::Error)]
#[error("bucket {bucket} cannot be read: {reason}")]
pub(crate) struct Error {
    bucket: String,
    reason: String,
}

impl Outline {
    /// A bucket of which nothing is read yet.
    pub(crate) fn new(jetstream: &Context, bucket: &str) -> Self {
        Self {
            jetstream: jetstream.clone(),
            bucket: bucket.to_owned(),
            entries: HashMap::new(),
            streams: Vec::new(),
            next: 1,
        }
    }

    /// Reads what was written since the last time. A bucket that is not there is empty.
    ///
    /// # Errors
    /// When the server does not answer, or no replica is up to date in time.
    pub(crate) async fn update(&mut self) -> Result<(), Error> {
        let name = names::bucket_stream(&self.bucket);
        let stream = match self.jetstream.get_stream(&name).await {
            Ok(stream) => stream,
            Err(error) if inputs::is_missing(&error) => return Ok(()),
            Err(error) => return Err(self.failed(error.to_string())),
        };
        let mut goal = self.newest(&stream).await?;
        let deadline = Instant::now() + FRESH_WITHIN;
        let filter = names::bucket_subject(&self.bucket, ">");
        while self.next <= goal {
            let from = From::Sequence(self.next);
            let page = direct_get::page(&self.jetstream, &name, &filter, from, PAGE, PAGE_BYTES).await;
            let page = page.map_err(|error| self.failed(error.to_string()))?;
            if page.is_empty() {
                // What was the newest may have been overwritten or removed since.
                goal = self.newest(&stream).await?;
                if self.next <= goal && Instant::now() > deadline {
                    return Err(self.failed(format!("no replica knows revision {goal}")));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for message in page {
                self.next = message.sequence + 1;
                self.take(&message);
            }
        }
        Ok(())
    }

    /// Forgets all of it: the next update reads the whole bucket.
    pub(crate) fn begin_anew(&mut self) {
        self.entries.clear();
        self.next = 1;
    }

    async fn newest(&self, stream: &Stream) -> Result<u64, Error> {
        documents::newest(stream).await.map(|(newest, _)| newest).map_err(|reason| self.failed(reason))
    }

    fn take(&mut self, message: &Last) {
        let Some(key) = self.key_of(&message.subject) else { return };
        let deleted = message.is_deletion();
        let origin = message.headers.get(names::POSITION_HEADER).and_then(|position| {
            let (stream, sequence) = position.as_str().rsplit_once(':')?;
            Some((self.number_of(stream)?, sequence.parse().ok()?))
        });
        let digest = (!deleted).then(|| digest(&message.payload));
        self.entries.insert(key, Entry { revision: message.sequence, digest, origin });
    }

    fn key_of(&self, subject: &str) -> Option<String> {
        subject.strip_prefix(&names::bucket_subject(&self.bucket, "")).map(str::to_owned)
    }

    fn number_of(&mut self, stream: &str) -> Option<u16> {
        let known = self.streams.iter().position(|known| known == stream);
        let number = known.unwrap_or_else(|| {
            self.streams.push(stream.to_owned());
            self.streams.len() - 1
        });
        u16::try_from(number).ok()
    }

    /// The document's digest; none where there is no document.
    pub(crate) fn digest(&self, key: &str) -> Option<[u8; 16]> {
        self.entries.get(key).and_then(|entry| entry.digest)
    }

    /// Stream and sequence of the last event in a document, or in its deletion.
    pub(crate) fn origin(&self, key: &str) -> Option<(&str, u64)> {
        let (stream, sequence) = self.entries.get(key)?.origin?;
        Some((self.streams.get(usize::from(stream))?, sequence))
    }

    /// The messages of these keys, deletions included, each as the bucket's leader knew it at the last update or newer.
    ///
    /// # Errors
    /// As `update`.
    pub(crate) async fn fetch(&self, keys: &[&str]) -> Result<HashMap<String, Last>, Error> {
        let subjects: Vec<String> = keys.iter().map(|key| names::bucket_subject(&self.bucket, key)).collect();
        let stream = names::bucket_stream(&self.bucket);
        let mut found = HashMap::with_capacity(keys.len());
        let deadline = Instant::now() + FRESH_WITHIN;
        for part in direct_get::parts(&subjects, self.jetstream.client().server_info().max_payload) {
            loop {
                let read = direct_get::last_of(&self.jetstream, &stream, part).await;
                let (messages, known) = read.map_err(|error| self.failed(error.to_string()))?;
                // An answer without a message does not say how far the replica knew the bucket.
                if known + 1 >= self.next || messages.is_empty() || Instant::now() > deadline {
                    let keyed = |message: Last| Some((self.key_of(&message.subject)?, message));
                    found.extend(messages.into_iter().filter_map(keyed));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(found)
    }

    fn failed(&self, reason: String) -> Error {
        Error { bucket: self.bucket.clone(), reason }
    }
}

/// Half of a sha256: two documents of one key with the same are the same.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.iter_mut().zip(Sha256::digest(bytes)).for_each(|(to, from)| *to = from);
    half
}
