//! The stream of dead letters. In: the parked units of a committed record. Out: a message for each, once, those of a key in order; and
//! later what is parked, letter by letter. Never: a letter before its record; an overtaking among those of a key.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    Config, DeleteMessageError, DeleteMessageErrorKind, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::Error;
use super::letter::{self, Letter, Origin};
use crate::alerts;
use crate::clock;
use crate::crash;
use crate::direct_get::{self, From, Last};
use crate::generation::Generation;
use crate::inputs;
use crate::journal::{Park, Parking, Unparked};
use crate::keys;
use crate::names;
use crate::publication::Publication;

/// Keys whose letters are stored at the same time; those of one key go one after the other.
const LINES: usize = 64;

/// What is told of each key that is newly parked. That keys are parked at all is an alert of another name.
const KEY_PARKED: &str = "key-parked";

/// What is told of letters that somebody removed by hand.
const LETTERS_GONE: &str = "dead-letters-gone";

/// Letters of one request, and their bytes.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// How long to ask again while replicas are behind.
const FRESH_WITHIN: Duration = Duration::from_secs(5);

/// How long one letter may stay unanswered.
const ACK_WITHIN: Duration = Duration::from_secs(2);

/// The dead letters of one generation.
#[derive(Clone)]
pub struct DeadLetters {
    pub(super) jetstream: Context,
    pub(crate) generation: Generation,
    replicas: usize,
    /// The stream was seen.
    opened: Arc<AtomicBool>,
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(error.to_string())
}

/// A message that the stream's leader had; nothing where it is no letter of ours.
fn read(message: StreamMessage) -> Option<Letter> {
    let StreamMessage { subject, sequence, headers, payload, .. } = message;
    Letter::read(Last { subject: subject.to_string(), sequence, stored: 0, headers, payload })
}

/// The letters of one key on their way: ordinal, message.
type Line = Vec<(u64, Publication)>;

impl DeadLetters {
    /// Those of this generation; touches nothing.
    #[must_use]
    pub fn of(jetstream: &Context, generation: &Generation, replicas: usize) -> Self {
        Self { jetstream: jetstream.clone(), generation: generation.clone(), replicas, opened: Arc::default() }
    }

    /// The stream, made when it is missing.
    async fn open(&self) -> Result<(), Error> {
        if self.opened.load(Ordering::Relaxed) {
            return Ok(());
        }
        let config = Config {
            name: names::DEAD.to_owned(),
            subjects: vec![names::dead_subjects()],
            description: Some("Events of Millstream's handlers that are parked".to_owned()),
            discard: DiscardPolicy::New,
            allow_direct: true,
            storage: StorageType::File,
            num_replicas: self.replicas,
            metadata: names::ours(names::DEAD),
            ..Config::default()
        };
        let stream = self.jetstream.get_or_create_stream(config).await.map_err(refused)?;
        if !names::is_ours(&stream.cached_info().config.metadata, names::DEAD) {
            return Err(Error::NotOurs(names::DEAD.to_owned()));
        }
        self.opened.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The stream, if it is there.
    pub(super) async fn stream(&self) -> Result<Option<Stream>, Error> {
        match self.jetstream.get_stream(names::DEAD).await {
            Ok(stream) if names::is_ours(&stream.cached_info().config.metadata, names::DEAD) => Ok(Some(stream)),
            Ok(_) => Err(Error::NotOurs(names::DEAD.to_owned())),
            Err(error) if inputs::is_missing(&error) => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    pub(super) fn all(&self) -> String {
        names::dead_generation_subjects(&self.generation.handler, self.generation.number)
    }

    fn subject(&self, key: Option<&str>) -> String {
        letter::subject(&self.generation.handler, self.generation.number, key)
    }

    /// Does what a record says: stores its letters, removes those that it takes up again. `again`: that may be done already.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn settle(
        &self,
        journal: u64,
        time: i64,
        digest: &str,
        parking: &Parking,
        again: bool,
    ) -> Result<(), Error> {
        if !parking.parks.is_empty() {
            self.open().await?;
            let origin =
                Origin { handler: &self.generation.handler, generation: self.generation.number, digest, journal, time };
            self.store(origin, &parking.parks, again).await?;
        }
        if let Some(Unparked { key, through, .. }) = &parking.unparked {
            self.remove(key.as_deref(), *through).await?;
            crash::point("unparked");
        }
        Ok(())
    }

    async fn store(&self, origin: Origin<'_>, parks: &[Park], again: bool) -> Result<(), Error> {
        crash::point("burying");
        let mut lines: BTreeMap<Option<&str>, Line> = BTreeMap::new();
        let mut news = Vec::new();
        let mut ordinal = 0;
        for park in parks {
            for (number, unit) in park.units.iter().enumerate() {
                let letter = letter::publication(origin, ordinal, park, unit, number == 0);
                lines.entry(unit.key.as_deref()).or_default().push((ordinal, letter));
                if unit.first {
                    news.push((ordinal, park, unit));
                }
                ordinal += 1;
            }
        }
        let lines = lines.into_values().map(|line| self.store_line(origin.journal, line, again));
        futures::stream::iter(lines).buffer_unordered(LINES).try_collect::<()>().await?;
        crash::point("buried");
        if !self.generation.acts() {
            return Ok(());
        }
        for (ordinal, park, unit) in news {
            let told = json!({
                "key": unit.key, "class": unit.class, "reason": unit.reason, "digest": origin.digest,
                "stream": park.stream, "sequence": park.sequence, "subject": park.subject,
            });
            let Origin { handler, generation, journal, time, .. } = origin;
            let id = format!("{handler}.parked.{generation}.{journal}.{ordinal}.{time}");
            let news = alerts::News { id: &id, time: origin.time, body: &told };
            let told = alerts::tell_once(&self.jetstream, origin.handler, KEY_PARKED, self.replicas, &news).await;
            if let Err(error) = told {
                tracing::warn!(handler = origin.handler, %error, "nobody is told that a key is parked");
            }
        }
        Ok(())
    }

    async fn store_line(&self, journal: u64, line: Line, again: bool) -> Result<(), Error> {
        let stored = match line.first() {
            Some((_, letter)) if again => self.last_place(&letter.subject).await?,
            _ => None,
        };
        for (ordinal, letter) in line {
            if stored.is_some_and(|stored| stored >= (journal, ordinal)) {
                continue;
            }
            let Publication { subject, headers, payload } = letter;
            let sent = async { self.jetstream.publish_with_headers(subject, headers, payload).await?.await };
            let answer = tokio::time::timeout(ACK_WITHIN, sent).await;
            answer.map_err(|_| Error::Refused(format!("no answer within {ACK_WITHIN:?}")))?.map_err(refused)?;
        }
        Ok(())
    }

    /// The place of the last letter under this subject, by the stream's leader.
    async fn last_place(&self, subject: &str) -> Result<Option<(u64, u64)>, Error> {
        let Some(stream) = self.stream().await? else { return Ok(None) };
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(read(message).map(|letter| letter.place)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// Removes the letters of a key up to this sequence of their stream; of those without a key this one alone.
    async fn remove(&self, key: Option<&str>, through: u64) -> Result<(), Error> {
        let Some(stream) = self.stream().await? else { return Ok(()) };
        // To the server, a purge below sequence 0 is a purge of everything.
        if through == 0 {
            return Ok(());
        }
        if key.is_none() {
            return Self::delete(&stream, through).await;
        }
        let purge = stream.purge().filter(self.subject(key)).sequence(through + 1);
        purge.await.map(drop).map_err(refused)
    }

    /// Removes one message, which may be gone already.
    pub(super) async fn delete(stream: &Stream, sequence: u64) -> Result<(), Error> {
        let is_gone = |error: &DeleteMessageError| match error.kind() {
            DeleteMessageErrorKind::JetStream(error) => error.error_code() == ErrorCode::SEQUENCE_NOT_FOUND,
            _ => false,
        };
        match stream.delete_message(sequence).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(refused(error)),
        }
    }

    /// Says that letters are gone which nobody took up or gave up: their documents, in a bucket made at `created`, lack events. Once,
    /// however often it is found, and not of documents that nobody sees.
    pub(crate) async fn tell_gone(&self, units: u64, created: i64) {
        let Generation { handler, number, .. } = &self.generation;
        let id = format!("{handler}.gone.{number}.{created}.{units}");
        let is_told = async || {
            let last = alerts::last_told(&self.jetstream, handler, LETTERS_GONE).await;
            last.is_ok_and(|last| last.as_ref() == Some(&id))
        };
        if !self.generation.acts() || is_told().await {
            return;
        }
        tracing::error!(
            handler,
            units,
            "dead letters were removed by hand, so documents lack their events; hint: build them anew with `millstream rebuild \
             {handler}`"
        );
        let body = json!({ "units": units, "generation": number });
        let news = alerts::News { id: &id, time: clock::now(), body: &body };
        if let Err(error) = alerts::tell_once(&self.jetstream, handler, LETTERS_GONE, self.replicas, &news).await {
            tracing::warn!(handler, %error, "nobody is told that dead letters are gone");
        }
    }

    /// Removes all of the generation's letters.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn clear(&self) -> Result<(), Error> {
        let Some(stream) = self.stream().await? else { return Ok(()) };
        stream.purge().filter(self.all()).await.map(drop).map_err(refused)
    }

    /// How many letters each key has, as the stream's leader knows, and when the oldest of all was parked.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn census(&self) -> Result<(HashMap<Option<String>, u64>, Option<i64>), Error> {
        let Some(stream) = self.stream().await? else { return Ok((HashMap::new(), None)) };
        let mut subjects = stream.info_with_subjects(self.all()).await.map_err(refused)?;
        let mut units = HashMap::new();
        while let Some((subject, count)) = subjects.try_next().await.map_err(refused)? {
            let Some(escaped) = subject.splitn(5, '.').nth(4) else { continue };
            let key = match escaped {
                names::KEYLESS => None,
                escaped => Some(keys::unescape(escaped).map_err(refused)?),
            };
            units.insert(key, count as u64);
        }
        let oldest = if units.is_empty() { None } else { self.oldest().await? };
        Ok((units, oldest))
    }

    /// How many letters a key has, as the stream's leader knows.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn units(&self, key: Option<&str>) -> Result<u64, Error> {
        let Some(stream) = self.stream().await? else { return Ok(0) };
        let mut subjects = stream.info_with_subjects(self.subject(key)).await.map_err(refused)?;
        let found = subjects.try_next().await.map_err(refused)?;
        Ok(found.map_or(0, |(_, count)| count as u64))
    }

    /// Sequence of the last letter of a key; 0 where there is none.
    pub(crate) async fn last_of(&self, key: &str) -> Result<u64, Error> {
        let Some(stream) = self.stream().await? else { return Ok(0) };
        match stream.get_last_raw_message_by_subject(&self.subject(Some(key))).await {
            Ok(message) => Ok(message.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
            Err(error) => Err(refused(error)),
        }
    }

    /// How many of a key's first messages are no letters of ours.
    pub(crate) async fn foreign(&self, key: &str, units: u64) -> Result<u64, Error> {
        let (subject, mut next, mut left) = (self.subject(Some(key)), 1, usize::try_from(units).unwrap_or(usize::MAX));
        let mut foreign = 0;
        while left > 0 {
            let (from, most) = (From::Sequence(next), left.min(PAGE));
            let page = direct_get::page(&self.jetstream, names::DEAD, &subject, from, most, PAGE_BYTES).await;
            let page = page.map_err(refused)?;
            let Some(last) = page.last() else { break };
            next = last.sequence + 1;
            left = left.saturating_sub(page.len());
            foreign += page.into_iter().filter_map(|message| Letter::read(message).is_none().then_some(1)).sum::<u64>();
        }
        Ok(foreign)
    }

    /// When the oldest of all was parked, nanoseconds since 1970.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn oldest(&self) -> Result<Option<i64>, Error> {
        let Some(stream) = self.stream().await? else { return Ok(None) };
        match stream.get_first_raw_message_by_subject(self.all(), 1).await {
            Ok(message) => {
                let parked = message.headers.get("Millstream-Parked").and_then(|value| clock::read(value.as_str()));
                Ok(parked)
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// One letter without a key, by its sequence, as the stream's leader has it; none where it is gone.
    ///
    /// # Errors
    /// When the server does not answer, or the message is no letter.
    pub async fn keyless(&self, sequence: u64) -> Result<Option<Letter>, Error> {
        let Some(stream) = self.stream().await? else { return Ok(None) };
        match stream.get_raw_message(sequence).await {
            Ok(message) if message.subject.as_str() != self.subject(None) => Ok(None),
            Ok(message) => read(message).map(Some).ok_or(Error::Foreign { sequence }),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// The first letters of a key, in order: all of them, or as many as were asked for. `units` is how many it has.
    ///
    /// # Errors
    /// When the server does not answer, or no replica has them all in time.
    pub async fn letters(
        &self,
        key: Option<&str>,
        units: u64,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Letter>, Error> {
        let Some(stream) = self.stream().await? else { return Ok(Vec::new()) };
        let subject = self.subject(key);
        // The leader knows where they begin; a replica may still have some that are gone.
        let first = match stream.get_first_raw_message_by_subject(&subject, 1).await {
            Ok(message) => message.sequence,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(Vec::new()),
            Err(error) => return Err(refused(error)),
        };
        let wanted = most.min(usize::try_from(units).unwrap_or(usize::MAX));
        let deadline = tokio::time::Instant::now() + FRESH_WITHIN;
        loop {
            let (mut letters, mut next, mut size) = (Vec::new(), first, 0);
            while letters.len() < wanted && size < bytes {
                let from = From::Sequence(next);
                let left = wanted - letters.len();
                let (jetstream, most) = (&self.jetstream, left.min(PAGE));
                let page = direct_get::page(jetstream, names::DEAD, &subject, from, most, bytes.min(PAGE_BYTES)).await;
                let page = page.map_err(refused)?;
                let Some(last) = page.last() else { break };
                next = last.sequence + 1;
                for message in page {
                    size += message.payload.len();
                    let sequence = message.sequence;
                    let letter = Letter::read(message);
                    letters.push(letter.ok_or(Error::Foreign { sequence })?);
                }
            }
            if letters.len() >= wanted || size >= bytes {
                return Ok(letters);
            }
            if self.units(key).await? <= letters.len() as u64 {
                // Somebody removed some by hand; what is left is all there is.
                return Ok(letters);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(refused(format!("the replica that answers lacks some after {FRESH_WITHIN:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
