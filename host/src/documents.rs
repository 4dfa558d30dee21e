//! Documents: what a handler decided, in memory until it is in the bucket, and in the bucket for everyone.
//! In: keys to load; changes as they are decided. Out: document bytes that are proved fresh; what is left to show.
//! Never: writes a document itself (that is `show.rs`), or believes a replica that may be behind.

mod revisions;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::direct_get;
use crate::generation::Generation;
use crate::inputs;
use crate::journal::Standing;
use crate::keys;
use crate::names;
use crate::sandbox::Digest;
use revisions::Revisions;

/// How long to ask again while replicas are behind.
const FRESH_WITHIN: Duration = Duration::from_secs(5);

/// From so many documents in the bucket for each one that is wanted on, looking each up costs the server less than one walk over all.
const WORTH_LOOKING_UP: u64 = 50;

/// Documents asked of the bucket's leader at once: a cluster has one queue for all such requests, and empties it when it is full.
const ASKED_AT_ONCE: usize = 64;

/// Bytes of an escaped key at most: a subject must fit the server's control line of 4 KiB with headers to spare.
pub const KEY_BYTES: usize = 1024;

/// What can go wrong with the bucket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bucket of this name is somebody else's.
    #[error("bucket {0} is already there and was not made by Millstream for this handler")]
    NotOurs(String),
    /// A document that no handler wrote, where the fold would have to go on from it.
    #[error(
        "document {key} in bucket {bucket} was written or deleted by somebody else, so there is nothing to go on from; \
        hint: to build the documents anew, `nats kv del -f {bucket}`, `nats stream rm -f {journal}` and start again"
    )]
    Foreign {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
        /// The journal's stream.
        journal: String,
    },
    /// The server refused: full, or no permission. It is asked again, until somebody has mended that.
    #[error("bucket {bucket} refused: {reason}{}", what_to_do(bucket, reason))]
    Refused {
        /// Its name.
        bucket: String,
        /// The server's words.
        reason: String,
    },
    /// The server is away or undecided.
    #[error("bucket {bucket} not reachable: {reason}")]
    Unreachable {
        /// Its name.
        bucket: String,
        /// The client's words.
        reason: String,
    },
}

/// What is full, by the server's words, and the limit that says so.
const LIMITS: [(&str, &str); 3] = [
    ("maximum bytes exceeded", "max-bytes"),
    ("maximum messages exceeded", "max-msgs"),
    ("message size exceeds maximum allowed", "max-msg-size"),
];

/// What helps where a bucket refuses, as the end of a sentence; nothing where that is not known. Nobody can make room in a bucket: a
/// document that is removed by hand stops its handler.
fn what_to_do(bucket: &str, reason: &str) -> String {
    let stream = names::bucket_stream(bucket);
    if let Some((_, limit)) = LIMITS.iter().find(|(words, _)| reason.contains(words)) {
        return format!("; hint: raise its limit, as with `nats stream edit {stream} --{limit}=-1 -f`");
    }
    if reason.contains("limits exceeded for account") {
        return "; hint: make room in the account, or raise its limits in the server's configuration".to_owned();
    }
    // A server does not answer whoever may not publish.
    if reason.starts_with("no answer within") {
        let subject = names::bucket_subject(bucket, ">");
        return format!(
            "; hint: if the server is well, see with `millstream doctor` whether the hosts' user may publish to `{subject}`"
        );
    }
    String::new()
}

/// A document that is decided but not in the bucket yet.
#[derive(Clone, Debug)]
pub(crate) struct Unshown {
    /// Its bytes, or none for a deletion.
    pub(crate) value: Option<Bytes>,
    /// The batch that changed it last, in the order of this claim.
    pub(crate) order: u64,
    /// The oldest batch whose change is not in the bucket.
    since: u64,
    /// Stream sequence of the last event in it.
    pub(crate) sequence: u64,
    /// Seconds that it stays in the bucket; none: until it changes.
    pub(crate) keep_seconds: Option<u64>,
}

/// Where the changes of a batch come from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The batch, in the order of this claim.
    pub(crate) order: u64,
    /// Its record's journal sequence.
    pub(crate) journal: u64,
    /// Name of the input stream.
    pub(crate) stream: std::sync::Arc<str>,
    /// The module that decided.
    pub(crate) digest: Digest,
}

/// One change on its way from the sandbox to the bucket.
pub(crate) struct Decided {
    pub(crate) key: String,
    pub(crate) value: Option<Bytes>,
    pub(crate) sequence: u64,
    pub(crate) keep_seconds: Option<u64>,
}

#[derive(Default)]
struct State {
    unshown: HashMap<String, Unshown>,
    unshown_bytes: usize,
    /// Committed batches that may have unshown documents, oldest first.
    origins: VecDeque<Origin>,
    committed: u64,
    shown_through: u64,
    revisions: Revisions,
    /// The highest journal sequence that surely exists. A document that names a higher one was not written by a host.
    journal_end: u64,
    /// Reads must know the bucket up to here.
    fresh_from: u64,
    /// Documents in the bucket, when it was last looked at.
    documents: u64,
    /// Only one server had it then, so no replica was behind another.
    has_one_copy: bool,
    /// A mirror may answer in its place; none: nobody has looked yet.
    is_mirrored: Option<bool>,
    /// A subject that is in the bucket. Each read asks for it too: an answer without any message does not say how far the
    /// replica knew the bucket.
    witness: Option<String>,
}

/// The documents of one handler under one claim.
pub struct Documents {
    pub(crate) jetstream: Context,
    pub(crate) handler: String,
    pub(crate) bucket: String,
    stream: String,
    created: i64,
    state: Mutex<State>,
    /// A batch was committed: there may be something to show.
    pub(crate) committed: Notify,
    /// A round was shown: there may be room.
    pub(crate) shown: Notify,
}

/// A document read from the bucket.
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) revision: u64,
    /// Journal sequence in its header; 0 where somebody else wrote it.
    pub(crate) journal: u64,
    pub(crate) value: Option<Bytes>,
}

impl Documents {
    /// Opens the bucket of a handler's only generation, making it when it is missing.
    ///
    /// # Errors
    /// A bucket of that name that is not ours, or a server that refuses.
    pub async fn open(
        jetstream: &Context,
        handler: &str,
        replicas: usize,
        known_revisions: usize,
    ) -> Result<Self, Error> {
        Self::of(jetstream, &Generation::first(handler), replicas, known_revisions).await
    }

    /// Opens a generation's bucket, making it when it is missing.
    ///
    /// # Errors
    /// A bucket of that name that is not ours, or a server that refuses.
    pub(crate) async fn of(
        jetstream: &Context,
        generation: &Generation,
        replicas: usize,
        known_revisions: usize,
    ) -> Result<Self, Error> {
        let bucket = generation.name();
        let stream = make_bucket(jetstream, generation, replicas).await?;
        let (fresh_from, witness) = newest(&stream).await.map_err(|reason| unreachable(&bucket, reason))?;
        let info = stream.cached_info();
        let state = State {
            fresh_from,
            documents: info.state.messages,
            has_one_copy: info.config.num_replicas == 1,
            witness,
            revisions: Revisions::new(known_revisions, fresh_from == 0),
            ..State::default()
        };
        Ok(Self {
            jetstream: jetstream.clone(),
            handler: generation.handler.clone(),
            stream: names::bucket_stream(&bucket),
            bucket,
            created: i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default(),
            state: Mutex::new(state),
            committed: Notify::new(),
            shown: Notify::new(),
        })
    }

    /// True when nothing was ever written to the bucket, as far as its leader knew when it was opened.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.lock().fresh_from == 0
    }

    /// When the bucket was created, nanoseconds since 1970.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.created
    }

    /// The documents of these keys, in their order: first what is decided but not shown, then the bucket.
    ///
    /// # Errors
    /// When no replica can prove in time that it is up to date.
    pub async fn load(&self, wanted: &[&str]) -> Result<Vec<Option<Bytes>>, Error> {
        let mut found: Vec<Option<Option<Bytes>>> = {
            let state = self.lock();
            let known = |key: &&str| match state.unshown.get(*key) {
                Some(document) => Some(document.value.clone()),
                None => state.revisions.is_absent(key).then_some(None),
            };
            wanted.iter().map(known).collect()
        };
        let missing: Vec<&str> =
            wanted.iter().zip(&found).filter(|(_, document)| document.is_none()).map(|(key, _)| *key).collect();
        if !missing.is_empty() {
            let stored = self.read(&missing).await?;
            if let Some(foreign) = stored.iter().find(|document| document.journal == 0) {
                let (bucket, key) = (self.bucket.clone(), foreign.key.clone());
                return Err(Error::Foreign { journal: names::journal_stream(&self.handler), bucket, key });
            }
            let mut stored: HashMap<String, Option<Bytes>> =
                stored.into_iter().map(|document| (document.key, document.value)).collect();
            for (key, document) in wanted.iter().zip(&mut found) {
                if document.is_none() {
                    *document = Some(stored.remove(*key).flatten());
                }
            }
        }
        Ok(found.into_iter().map(Option::flatten).collect())
    }

    /// Reads these keys from the bucket, proved fresh, and remembers their revisions. Absent keys are not in the answer.
    pub(crate) async fn read(&self, wanted: &[&str]) -> Result<Vec<Stored>, Error> {
        let mut all = Vec::with_capacity(wanted.len());
        let subjects: Vec<String> =
            wanted.iter().map(|key| names::bucket_subject(&self.bucket, &keys::escape(key))).collect();
        let max_payload = self.jetstream.client().server_info().max_payload;
        let mut rest = wanted;
        for subjects in direct_get::parts(&subjects, max_payload) {
            let (part, later) = rest.split_at(subjects.len());
            rest = later;
            let by_subject: HashMap<&str, &str> =
                subjects.iter().map(String::as_str).zip(part.iter().copied()).collect();
            let messages = self.fresh(subjects).await?;
            let found: Vec<Stored> = messages
                .iter()
                .filter_map(|message| Some(stored(by_subject.get(message.subject.as_str())?, message)))
                .collect();
            let newest = found.iter().map(|document| document.journal).max().unwrap_or_default();
            let journal_end = self.journal_end(newest).await?;
            let mut state = self.lock();
            for key in part {
                state.revisions.set(key, 0);
            }
            for mut document in found {
                state.revisions.set(&document.key, document.revision);
                if document.journal > journal_end {
                    document.journal = 0;
                }
                all.push(document);
            }
        }
        Ok(all)
    }

    /// The journal's end, asked for anew where it is not known to reach `needed`. A host shows a document only after its record is
    /// stored, so what was read before the question cannot truly name a higher sequence.
    async fn journal_end(&self, needed: u64) -> Result<u64, Error> {
        let known = self.lock().journal_end;
        if needed <= known {
            return Ok(known);
        }
        let name = names::journal_stream(&self.handler);
        let stream =
            self.jetstream.get_stream(name).await.map_err(|error| unreachable(&self.bucket, error.to_string()))?;
        let end = stream.cached_info().state.last_sequence;
        let mut state = self.lock();
        state.journal_end = state.journal_end.max(end);
        Ok(state.journal_end)
    }

    async fn fresh(&self, subjects: &[String]) -> Result<Vec<direct_get::Last>, Error> {
        let deadline = Instant::now() + FRESH_WITHIN;
        loop {
            let (required, witness, is_worth_looking_up) = {
                let state = self.lock();
                let is_worth_it = state.documents / WORTH_LOOKING_UP >= subjects.len() as u64;
                (state.fresh_from, state.witness.clone(), state.has_one_copy && is_worth_it)
            };
            let found = if is_worth_looking_up {
                self.look_up(subjects).await
            } else {
                let asked: Vec<&str> = subjects.iter().map(String::as_str).chain(witness.as_deref()).collect();
                let answer = direct_get::last_of(&self.jetstream, &self.stream, &asked).await;
                answer.map_err(|error| error.to_string())
            };
            let reason = match found {
                Ok((messages, known)) if known >= required => return Ok(messages),
                Ok((_, known)) => format!("the answering replica knows revisions up to {known}, not {required}"),
                Err(reason) => reason,
            };
            if Instant::now() > deadline {
                return Err(unreachable(&self.bucket, reason));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Each by itself, and how far the only copy knew the bucket meanwhile: it forgets only what it loses in a crash, and then it knows
    /// less than it must. Where a mirror may answer in the bucket's place, which does not say how far behind it is, the leader is asked
    /// for what did not come from the bucket itself.
    async fn look_up(&self, subjects: &[String]) -> Result<(Vec<direct_get::Last>, u64), String> {
        let is_mirrored = self.is_mirrored().await?;
        let each = async {
            direct_get::each_last_of(&self.jetstream, &self.stream, subjects).await.map_err(|error| error.to_string())
        };
        let known = async { self.jetstream.get_stream(&self.stream).await.map_err(|error| error.to_string()) };
        let (mut messages, stream) = tokio::try_join!(each, known)?;
        let Info { config, state, .. } = stream.cached_info();
        let is_mirrored = is_mirrored || messages.iter().any(|message| !message.is_of(&self.stream));
        {
            let mut known = self.lock();
            known.documents = state.messages;
            known.has_one_copy = config.num_replicas == 1;
            known.is_mirrored = Some(is_mirrored);
        }
        if config.num_replicas > 1 {
            return Err("it has several copies by now".to_owned());
        }
        if is_mirrored {
            messages.retain(|message| message.is_of(&self.stream));
            let found: HashSet<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
            let is_lacking = |subject: &&String| !found.contains(subject.as_str());
            let rest: Vec<String> = subjects.iter().filter(is_lacking).cloned().collect();
            let asked = futures::stream::iter(rest).map(|subject| last_of_leader(&stream, subject));
            let asked: Vec<Option<direct_get::Last>> = asked.buffer_unordered(ASKED_AT_ONCE).try_collect().await?;
            messages.extend(asked.into_iter().flatten());
        }
        Ok((messages, state.last_sequence))
    }

    /// Whether a mirror may answer in the bucket's place: one that was there at the first look, or has answered since.
    async fn is_mirrored(&self) -> Result<bool, String> {
        if let Some(known) = self.lock().is_mirrored {
            return Ok(known);
        }
        let streams = inputs::list(&self.jetstream).await.map_err(|error| error.to_string())?;
        let answers = |config: &Config| {
            config.mirror_direct && config.mirror.as_ref().is_some_and(|mirror| mirror.name == self.stream)
        };
        Ok(*self.lock().is_mirrored.insert(streams.iter().any(|info| answers(&info.config))))
    }

    /// Takes the changes of a batch before its record is committed, so that the next batch already sees them.
    pub(crate) fn decide(&self, order: u64, changes: Vec<Decided>) {
        let mut state = self.lock();
        let state = &mut *state;
        for Decided { key, value, sequence, keep_seconds } in changes {
            state.unshown_bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            let since = match state.unshown.get(&key) {
                Some(before) => {
                    state.unshown_bytes -= key.len() + before.value.as_ref().map_or(0, Bytes::len);
                    before.since
                }
                None => order,
            };
            state.unshown.insert(key, Unshown { value, order, since, sequence, keep_seconds });
        }
    }

    /// The record of this batch is committed: its documents may be shown.
    pub(crate) fn commit(&self, origin: Origin) {
        let mut state = self.lock();
        state.committed = origin.order;
        state.journal_end = state.journal_end.max(origin.journal);
        state.origins.push_back(origin);
        // With documents waiting, only a round of showing can move it, and looking at all of them for each batch is dear.
        if state.unshown.is_empty() {
            state.settle();
        }
        drop(state);
        self.committed.notify_one();
    }

    /// Documents that wait to be shown, and their bytes.
    #[must_use]
    pub fn backlog(&self) -> (usize, usize) {
        let state = self.lock();
        (state.unshown.len(), state.unshown_bytes)
    }

    /// Journal sequence through which every document is in the bucket.
    #[must_use]
    pub fn shown_through(&self) -> u64 {
        self.lock().shown_through
    }

    /// Begins a claim whose earlier records are shown up to here.
    pub(crate) fn begin(&self, shown_through: u64) {
        self.lock().shown_through = shown_through;
    }

    /// All documents whose last change is committed.
    pub(crate) fn presentable(&self) -> Vec<(String, Unshown)> {
        let state = self.lock();
        let committed = |(_, document): &(&String, &Unshown)| document.order <= state.committed;
        state.unshown.iter().filter(committed).map(|(key, document)| (key.clone(), document.clone())).collect()
    }

    /// Whether there is such a document.
    pub(crate) fn has_presentable(&self) -> bool {
        let state = self.lock();
        state.unshown.values().any(|document| document.order <= state.committed)
    }

    /// Where a batch of this claim came from.
    pub(crate) fn origin(&self, order: u64) -> Option<Origin> {
        let state = self.lock();
        let index = state.origins.binary_search_by_key(&order, |origin| origin.order).ok()?;
        state.origins.get(index).cloned()
    }

    /// The revision last seen of a key; 0 when it was absent; none when unknown.
    pub(crate) fn revision(&self, key: &str) -> Option<u64> {
        self.lock().revisions.get(key)
    }

    /// The document of this batch is in the bucket at this revision.
    pub(crate) fn shown(&self, key: &str, order: u64, revision: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        state.documents += u64::from(state.revisions.set(key, revision));
        if revision > state.fresh_from {
            state.fresh_from = revision;
            state.witness.get_or_insert_with(|| names::bucket_subject(&self.bucket, &keys::escape(key)));
        }
        match state.unshown.get_mut(key) {
            Some(document) if document.order > order => document.since = document.since.max(order + 1),
            Some(document) => {
                state.unshown_bytes -= key.len() + document.value.as_ref().map_or(0, Bytes::len);
                state.unshown.remove(key);
            }
            None => {}
        }
    }

    /// A round of showing is over.
    pub(crate) fn settle(&self) {
        self.lock().settle();
        self.shown.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves `shown_through` up to just before the oldest batch that still has something to show.
    fn settle(&mut self) {
        let pending = self.unshown.values().map(|document| document.since).min().unwrap_or(u64::MAX);
        while let Some(origin) = self.origins.front() {
            if origin.order >= pending {
                break;
            }
            self.shown_through = origin.journal;
            self.origins.pop_front();
        }
    }
}

fn stored(key: &str, message: &direct_get::Last) -> Stored {
    let deleted = message.is_deletion();
    let journal = message.headers.get(names::JOURNAL_HEADER).and_then(|value| value.as_str().parse().ok());
    Stored {
        key: key.to_owned(),
        revision: message.sequence,
        journal: journal.unwrap_or_default(),
        value: (!deleted).then(|| message.payload.clone()),
    }
}

/// The last message of a subject, as the stream's leader knows it.
async fn last_of_leader(stream: &Stream, subject: String) -> Result<Option<direct_get::Last>, String> {
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some(direct_get::Last::of(message))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn unreachable(bucket: &str, reason: String) -> Error {
    Error::Unreachable { bucket: bucket.to_owned(), reason }
}

/// The bucket's last revision as its leader knows it, and a subject that is in it. A bucket whose newest message was removed
/// by hand has no witness until the next put; its reads then ask for nothing newer than what is left.
pub(crate) async fn newest(stream: &Stream) -> Result<(u64, Option<String>), String> {
    let state = stream.get_info().await.map(|info| info.state).map_err(|error| error.to_string())?;
    if state.messages == 0 {
        return Ok((0, None));
    }
    match stream.get_last_raw_message_by_subject(">").await {
        Ok(message) => Ok((message.sequence, Some(message.subject.to_string()))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, None)),
        Err(error) => Err(error.to_string()),
    }
}

/// A generation's bucket, made when it is missing.
///
/// # Errors
/// A bucket of that name that is not ours, or a server that refuses.
pub(crate) async fn make_bucket(
    jetstream: &Context,
    generation: &Generation,
    replicas: usize,
) -> Result<Stream, Error> {
    let bucket = generation.name();
    let config = bucket_config(generation, replicas);
    let stream = jetstream
        .get_or_create_stream(config)
        .await
        .map_err(|error| Error::Refused { bucket: bucket.clone(), reason: error.to_string() })?;
    if !names::is_ours(&stream.cached_info().config.metadata, &generation.handler) {
        return Err(Error::NotOurs(bucket));
    }
    Ok(stream)
}

/// Removes the bucket of a generation that is gone; one that is not there, or not ours, is left alone.
///
/// # Errors
/// When the server refuses or is away.
pub(crate) async fn remove_bucket(jetstream: &Context, generation: &Generation) -> Result<(), Error> {
    if !has_bucket(jetstream, generation).await? {
        return Ok(());
    }
    let bucket = generation.name();
    let deleted = jetstream.delete_stream(names::bucket_stream(&bucket)).await;
    deleted.map(drop).map_err(|error| Error::Refused { bucket, reason: error.to_string() })
}

/// Whether a generation's bucket is there, and its own.
pub(crate) async fn has_bucket(jetstream: &Context, generation: &Generation) -> Result<bool, Error> {
    let bucket = generation.name();
    match jetstream.get_stream(names::bucket_stream(&bucket)).await {
        Ok(stream) => Ok(names::is_ours(&stream.cached_info().config.metadata, &generation.handler)),
        Err(error) if inputs::is_missing(&error) => Ok(false),
        Err(error) => Err(Error::Refused { bucket, reason: error.to_string() }),
    }
}

/// A stream that every NATS client takes for a KV bucket with a history of one, marked as this handler's.
fn bucket_config(generation: &Generation, replicas: usize) -> Config {
    let (handler, bucket) = (&generation.handler, generation.name());
    let description = match generation.standing {
        Standing::Shadow => {
            format!("Documents of generation {} of the Millstream handler {handler}", generation.number)
        }
        Standing::Live | Standing::Closed => format!("Documents of the Millstream handler {handler}"),
    };
    Config {
        name: names::bucket_stream(&bucket),
        subjects: vec![names::bucket_subject(&bucket, ">")],
        description: Some(description),
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        // Instances of sagas that are over go by themselves.
        allow_message_ttl: true,
        num_replicas: replicas,
        // Puts are fenced by revision; a table of message ids would only cost memory.
        duplicate_window: Duration::from_secs(1),
        metadata: names::ours(handler),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream;
    use async_nats::jetstream::stream::Source;

    use super::*;
    use crate::hint;
    use crate::server::Server;

    #[test]
    fn a_bucket_that_refuses_says_what_helps() {
        for (reason, hint) in [
            (
                "maximum bytes exceeded (10077)",
                Some("raise its limit, as with `nats stream edit KV_p13 --max-bytes=-1 -f`"),
            ),
            (
                "message size exceeds maximum allowed (10054)",
                Some("raise its limit, as with `nats stream edit KV_p13 --max-msg-size=-1 -f`"),
            ),
            (
                "resource limits exceeded for account (10002)",
                Some("make room in the account, or raise its limits in the server's configuration"),
            ),
            (
                "no answer within 2s",
                Some(
                    "if the server is well, see with `millstream doctor` whether the hosts' user may publish to `$KV.p13.>`",
                ),
            ),
            ("key C42 is being written by somebody else", None),
        ] {
            let text = Error::Refused { bucket: "p13".to_owned(), reason: reason.to_owned() }.to_string();
            assert_eq!(hint::split(&text), (format!("bucket p13 refused: {reason}").as_str(), hint));
        }
    }

    /// Documents in the bucket: enough that a few are looked up one by one.
    const STORED: usize = 300;

    async fn read(documents: &Documents, wanted: &[&str]) -> Vec<(u64, String, Option<Bytes>)> {
        let found = documents.read(wanted).await.unwrap().into_iter();
        let mut found: Vec<_> = found.map(|one| (one.revision, one.key, one.value)).collect();
        found.sort();
        found
    }

    #[tokio::test]
    async fn documents_are_the_same_whether_looked_up_or_found_in_one_walk() {
        let server = Server::builder().start().await.unwrap();
        let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        Documents::open(&jetstream, "h", 1, 10).await.unwrap();
        let bucket = jetstream.get_key_value("h").await.unwrap();
        for number in 0..STORED {
            bucket.put(format!("k{number}"), number.to_string().into()).await.unwrap();
        }
        bucket.delete("k7").await.unwrap();
        let documents = Documents::open(&jetstream, "h", 1, 10).await.unwrap();
        let few = ["k0", "k7", "absent", "k299"];
        let number = |number: &str| Some(Bytes::from(number.to_owned()));
        let expected =
            [(1, "k0".to_owned(), number("0")), (300, "k299".to_owned(), number("299")), (301, "k7".to_owned(), None)];
        assert!(STORED as u64 / WORTH_LOOKING_UP >= few.len() as u64, "each is looked up");
        assert_eq!(read(&documents, &few).await, expected);

        let many: Vec<String> = (0..STORED).map(|number| format!("k{number}")).chain(["absent".to_owned()]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(STORED as u64 / WORTH_LOOKING_UP < many.len() as u64, "one walk");
        let walked = read(&documents, &many).await;
        assert_eq!(walked.len(), STORED);
        let of_few: Vec<_> = walked.into_iter().filter(|(_, key, _)| few.contains(&key.as_str())).collect();
        assert_eq!(of_few, expected);

        let (found, known) = documents.look_up(&[names::bucket_subject("h", "k1")]).await.unwrap();
        assert_eq!((found.len(), known), (1, 301), "and how far the bucket was known");
    }

    #[tokio::test]
    async fn a_mirror_that_is_behind_is_not_believed_when_it_answers_in_the_bucket_s_place() {
        let server = Server::builder().start().await.unwrap();
        let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        Documents::open(&jetstream, "h", 1, 10).await.unwrap();
        let bucket = jetstream.get_key_value("h").await.unwrap();
        for number in 0..STORED {
            bucket.put(format!("k{number}"), number.to_string().into()).await.unwrap();
        }
        // As `nats kv add m --mirror h` makes it, but for what it remembers.
        let mirror = Config {
            name: names::bucket_stream("m"),
            mirror: Some(Source { name: names::bucket_stream("h"), ..Source::default() }),
            mirror_direct: true,
            allow_direct: true,
            max_messages_per_subject: 2,
            ..Config::default()
        };
        let mirror = jetstream.create_stream(mirror).await.unwrap();
        let knows = async |revision: u64| {
            let knows = async || mirror.get_info().await.unwrap().state.last_sequence == revision;
            until(knows).await;
        };
        knows(300).await;
        bucket.put("k1", "new".into()).await.unwrap();
        knows(301).await;
        // It lacks the newest of one document, and all of another.
        for revision in [301, 3] {
            assert!(mirror.delete_message(revision).await.unwrap());
        }
        let subject = [names::bucket_subject("h", "k1")];
        until(async || {
            let answer = direct_get::each_last_of(&jetstream, "KV_h", &subject).await.unwrap();
            (answer[0].is_of("KV_m"), answer[0].sequence) == (true, 2)
        })
        .await;

        let documents = Documents::open(&jetstream, "h", 1, 10).await.unwrap();
        let expected = [(3, "k2".to_owned(), Some(Bytes::from("2"))), (301, "k1".to_owned(), Some(Bytes::from("new")))];
        for _ in 0..40 {
            assert_eq!(read(&documents, &["k1", "k2", "absent"]).await, expected);
        }
    }

    /// Asks until it is so.
    async fn until(mut is_so: impl AsyncFnMut() -> bool) {
        let asks = async {
            while !is_so().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asks).await.expect("it comes");
    }
}
