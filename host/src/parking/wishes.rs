//! What people want done with parked keys: a JSON value per generation of a handler in the KV bucket `MILLSTREAM_REDRIVES`. In: a
//! wish, written by compare-and-set. Out: the same for the owner of the handler, and for people what came of it. Never: does it; puts a
//! wish in the place of another that waits; believes a replica, which may tell of a wish that is done.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use serde::{Deserialize, Serialize};

use crate::buckets;
use crate::direct_get;
use crate::generation::Generation;
use crate::names;

/// Tries against others who write the same value.
const TRIES: usize = 10;

/// Keys of which is told that they are still parked.
const LEFT: usize = 100;

/// Events without a key whose attempts are counted: as many as are parked at most by default.
const EVENTS: usize = 1000;

/// Something that is wanted of parked keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Which wish: never used twice.
    pub id: u64,
    /// Which keys.
    pub what: What,
    /// Why they are given up; none: they are decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<String>,
    /// When it was asked for, nanoseconds since 1970.
    pub since: i64,
}

/// Which parked keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum What {
    /// All of them.
    All,
    /// This one.
    Key {
        /// As the handler wrote it.
        key: String,
    },
    /// A key, or an event that never got as far as one, by the sequence of its first dead letter.
    Letter {
        /// In the stream of dead letters.
        sequence: u64,
    },
    /// Those whose first unit is guilty of that.
    Class {
        /// In a word.
        class: String,
    },
}

/// What came of a wish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of which.
    pub id: u64,
    /// Units that are parked no more.
    pub units: u64,
    /// Keys that are parked no more; an event without one counts as one.
    pub keys: u64,
    /// Those that failed again, the first hundred.
    pub left: Vec<Left>,
    /// When, nanoseconds since 1970.
    pub time: i64,
}

/// A key that stays parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The key; none for an event that never got as far as one.
    pub key: Option<String>,
    /// Name of the event's stream.
    pub stream: String,
    /// The event that fails; none where what is wrong is not an event but its letters.
    #[serde(with = "or_zero")]
    pub sequence: Option<u64>,
    /// What it is guilty of now.
    pub class: String,
    /// What happened.
    pub reason: String,
    /// Which attempt that was; being parked was the first.
    pub attempt: u32,
}

/// A number, written as 0 where there is none.
mod or_zero {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(number.unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(deserializer)?).filter(|number| *number > 0))
    }
}

impl Left {
    /// What has letters that are gone or cannot be read.
    pub(crate) fn of_letters(key: Option<&str>, class: impl fmt::Display, reason: String) -> Self {
        let (key, stream) = (key.map(str::to_owned), names::DEAD.to_owned());
        Self { key, stream, sequence: None, class: class.to_string(), reason, attempt: 0 }
    }

    /// As it is counted by where it has no key.
    fn event(&self) -> String {
        event(&self.stream, self.sequence.unwrap_or_default())
    }
}

/// The value in the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Not done yet.
    pub wanted: Option<Wish>,
    /// How the last one ended.
    pub done: Option<Outcome>,
    /// How often keys that are still parked failed again.
    pub attempts: BTreeMap<String, u32>,
    /// The same of events that never got as far as a key, by stream and sequence.
    pub events: BTreeMap<String, u32>,
}

/// An event as it is counted by.
fn event(stream: &str, sequence: u64) -> String {
    format!("{stream}:{sequence}")
}

impl Entry {
    /// How often a parked key has failed, or this event, where it never got as far as one; being parked was the first time.
    #[must_use]
    pub fn failed(&self, key: Option<&str>, stream: &str, sequence: u64) -> u32 {
        let again = match key {
            Some(key) => self.attempts.get(key),
            None => self.events.get(&event(stream, sequence)),
        };
        again.copied().unwrap_or_default().saturating_add(1)
    }

    /// What was wanted is done: counts the attempts, and takes down what came of it.
    fn ends(&mut self, mut outcome: Outcome, is_parked: &dyn Fn(&str) -> bool) -> Outcome {
        let wish = self.wanted.take();
        self.attempts.retain(|key, _| is_parked(key));
        let keyless = outcome.left.iter().filter(|left| left.key.is_none());
        let named: HashSet<String> = keyless.map(Left::event).collect();
        // Only where all were meant are those that it does not name known to be parked no more.
        let names_all = wish.is_some_and(|wish| wish.what == What::All);
        let new = named.iter().filter(|event| !self.events.contains_key(*event)).count();
        if names_all || self.events.len() + new > EVENTS {
            self.events.retain(|event, _| named.contains(event));
        }
        for left in &mut outcome.left {
            let failed = match &left.key {
                Some(key) => self.attempts.entry(key.clone()),
                None => self.events.entry(left.event()),
            };
            let failed = failed.or_default();
            *failed = failed.saturating_add(1);
            left.attempt = failed.saturating_add(1);
        }
        while self.events.len() > EVENTS {
            self.events.pop_last();
        }
        outcome.left.truncate(LEFT);
        self.done = Some(outcome.clone());
        outcome
    }
}

impl Wish {
    /// Whether it asks for the same, whoever did it and when.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.what == other.what && self.discard == other.discard
    }
}

/// What it asks for, in words.
impl fmt::Display for Wish {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.discard.is_some() { "discard" } else { "redrive" };
        match &self.what {
            What::All => write!(formatter, "{done} of all"),
            What::Key { key } => write!(formatter, "{done} of key {key:?}"),
            What::Letter { sequence } => write!(formatter, "{done} of letter {sequence}"),
            What::Class { class } => write!(formatter, "{done} of class {class}"),
        }
    }
}

/// A wish that waits.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The wish.
    pub wish: Wish,
    /// The value's revision where it was seen. What a leader that is none any more answers from before that says nothing about it.
    pub revision: u64,
}

/// What can go wrong with the bucket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused, or is away.
    #[error("wishes for parked keys are not reachable: {0}")]
    Unreachable(String),
    /// Somebody else wrote it.
    #[error("the wish in bucket {} under key {key} cannot be read: {reason}", names::REDRIVES)]
    Unreadable {
        /// In the bucket.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable(_) => None,
            Self::Unreadable { key, .. } => {
                Some(format!("remove it with `nats kv del {} {key} -f`, and ask again", names::REDRIVES))
            }
        }
    }
}

fn unreachable(error: impl std::fmt::Display) -> Error {
    Error::Unreachable(error.to_string())
}

/// The wishes for one generation.
pub struct Wishes {
    jetstream: Context,
    key: String,
}

impl Wishes {
    /// Those for this generation; touches nothing.
    #[must_use]
    pub fn of(jetstream: &Context, generation: &Generation) -> Self {
        Self { jetstream: jetstream.clone(), key: format!("{}.{}", generation.handler, generation.number) }
    }

    async fn store(&self) -> Result<Option<Store>, Error> {
        use async_nats::jetstream::context::KeyValueErrorKind;
        match self.jetstream.get_key_value(names::REDRIVES).await {
            Ok(store) => Ok(Some(store)),
            Err(error) if error.kind() == KeyValueErrorKind::GetBucket => {
                // Not there, or not reachable: the stream tells.
                match self.jetstream.get_stream(names::bucket_stream(names::REDRIVES)).await {
                    Err(error) if crate::inputs::is_missing(&error) => Ok(None),
                    _ => Err(unreachable(error)),
                }
            }
            Err(error) => Err(unreachable(error)),
        }
    }

    /// What the bucket's leader has, and its revision.
    async fn read(&self, store: &Store) -> Result<(Entry, u64), Error> {
        match store.stream.get_last_raw_message_by_subject(&format!("{}{}", store.prefix, self.key)).await {
            Ok(message) if direct_get::is_deletion(&message.headers) => Ok((Entry::default(), message.sequence)),
            Ok(message) => {
                let unreadable =
                    |error: serde_json::Error| Error::Unreadable { key: self.key.clone(), reason: error.to_string() };
                Ok((serde_json::from_slice(&message.payload).map_err(unreadable)?, message.sequence))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((Entry::default(), 0)),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// Its revision; none: somebody else was faster.
    async fn write(&self, store: &Store, entry: &Entry, revision: u64) -> Result<Option<u64>, Error> {
        let value = serde_json::to_vec(entry).map_err(unreachable)?;
        if revision == 0 {
            return match store.create(&self.key, value.into()).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(unreachable(error)),
            };
        }
        match store.update(&self.key, value.into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// What is there now.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn entry(&self) -> Result<Entry, Error> {
        match self.store().await? {
            Some(store) => Ok(self.read(&store).await?.0),
            None => Ok(Entry::default()),
        }
    }

    /// What is wanted and not done.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn pending(&self) -> Result<Option<Pending>, Error> {
        let Some(store) = self.store().await? else { return Ok(None) };
        let (entry, revision) = self.read(&store).await?;
        Ok(entry.wanted.map(|wish| Pending { wish, revision }))
    }

    /// What is there after a wish was seen to wait; none where only an older value is at hand.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn entry_since(&self, waiting: &Pending) -> Result<Option<Entry>, Error> {
        let Some(store) = self.store().await? else { return Ok(Some(Entry::default())) };
        let (entry, revision) = self.read(&store).await?;
        Ok((revision >= waiting.revision).then_some(entry))
    }

    /// Asks for something, making the bucket when it is missing. Nothing is asked for while another wish waits: whoever asked for
    /// that was told that it stays. Answers what waits now: this wish, or the other.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn ask(&self, wish: &Wish) -> Result<Pending, Error> {
        let store = match self.store().await? {
            Some(store) => store,
            None => {
                let config = kv::Config {
                    bucket: names::REDRIVES.to_owned(),
                    description: "What is wanted of parked keys of Millstream handlers".to_owned(),
                    history: 8,
                    max_age: Duration::ZERO,
                    ..kv::Config::default()
                };
                buckets::make(&self.jetstream, config).await.map_err(unreachable)?
            }
        };
        for _ in 0..TRIES {
            let (entry, revision) = self.read(&store).await?;
            let wanted = entry.wanted.clone().unwrap_or_else(|| wish.clone());
            // The other wish is written once more as it is: then it is sure that it waits.
            if let Some(revision) =
                self.write(&store, &Entry { wanted: Some(wanted.clone()), ..entry }, revision).await?
            {
                return Ok(Pending { wish: wanted, revision });
            }
        }
        Err(unreachable("others write to it all the time"))
    }

    /// Takes back what is wanted and not done; answers it.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn take_back(&self) -> Result<Option<Wish>, Error> {
        let Some(store) = self.store().await? else { return Ok(None) };
        for _ in 0..TRIES {
            let (mut entry, revision) = self.read(&store).await?;
            let Some(wish) = entry.wanted.take() else { return Ok(None) };
            if self.write(&store, &entry, revision).await?.is_some() {
                return Ok(Some(wish));
            }
        }
        Err(unreachable("others write to it all the time"))
    }

    /// Says what came of a wish; answers it with the attempts counted.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish any more: it is still wanted then.
    pub async fn done(&self, outcome: Outcome, is_parked: &(dyn Fn(&str) -> bool + Sync)) -> Result<Outcome, Error> {
        let Some(store) = self.store().await? else { return Ok(outcome) };
        for _ in 0..TRIES {
            let (mut entry, revision) = self.read(&store).await?;
            if entry.wanted.as_ref().is_none_or(|wish| wish.id != outcome.id) {
                return Ok(outcome);
            }
            let outcome = entry.ends(outcome.clone(), is_parked);
            if self.write(&store, &entry, revision).await?.is_some() {
                return Ok(outcome);
            }
        }
        Err(unreachable("others write to it all the time"))
    }

    /// Forgets all of it: the generation is gone.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn forget(&self) -> Result<(), Error> {
        match self.store().await? {
            Some(store) => store.purge(&self.key).await.map_err(unreachable),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(key: Option<&str>, sequence: u64) -> Left {
        Left {
            key: key.map(str::to_owned),
            stream: "S".to_owned(),
            sequence: Some(sequence),
            class: "undecodable".to_owned(),
            reason: String::new(),
            attempt: 0,
        }
    }

    /// What such a wish leaves, key by key or event by event; answers which attempt each of them was.
    fn leaves(entry: &mut Entry, what: What, left: Vec<Left>) -> Vec<u32> {
        entry.wanted = Some(Wish { id: 1, what, discard: None, since: 0 });
        let outcome = entry.ends(Outcome { id: 1, left, ..Outcome::default() }, &|key| key == "k");
        assert_eq!((&entry.wanted, &entry.done), (&None, &Some(outcome.clone())));
        outcome.left.iter().map(|left| left.attempt).collect()
    }

    #[test]
    fn attempts_are_counted_by_key_or_else_by_event_as_long_as_it_is_parked() {
        let mut entry = Entry::default();
        let all = || vec![left(Some("k"), 5), left(None, 7), left(None, 8)];
        assert_eq!(leaves(&mut entry, What::All, all()), [2, 2, 2]);
        assert_eq!(leaves(&mut entry, What::Letter { sequence: 1 }, vec![left(None, 8)]), [3]);
        assert_eq!(leaves(&mut entry, What::All, all()), [3, 3, 4]);
        assert_eq!(leaves(&mut entry, What::Class { class: "trap".to_owned() }, Vec::new()), [0; 0]);
        let failed = |entry: &Entry| {
            [(Some("k"), 5), (None, 7), (None, 8), (None, 9)].map(|(key, sequence)| entry.failed(key, "S", sequence))
        };
        assert_eq!(failed(&entry), [3, 3, 4, 1], "those that were not meant are as they were");
        assert_eq!(entry.failed(None, "OTHER", 7), 1);
        assert_eq!(leaves(&mut entry, What::All, vec![left(None, 8)]), [5]);
        assert_eq!(failed(&entry), [3, 1, 5, 1]);
        assert_eq!(leaves(&mut entry, What::All, Vec::new()), [0; 0]);
        assert_eq!(entry.events, BTreeMap::new());
    }

    #[test]
    fn events_are_counted_up_to_a_bound_and_those_that_failed_last_stay() {
        let mut entry = Entry::default();
        let many = |from: u64, count: usize| (from..).take(count).map(|sequence| left(None, sequence)).collect();
        let one_class = || What::Class { class: "undecodable".to_owned() };
        leaves(&mut entry, one_class(), many(1, EVENTS));
        assert_eq!(entry.events.len(), EVENTS);
        leaves(&mut entry, one_class(), many(5, EVENTS / 2));
        assert_eq!((entry.events.len(), entry.failed(None, "S", 5)), (EVENTS, 3));
        leaves(&mut entry, one_class(), many(EVENTS as u64, 2));
        assert_eq!((entry.events.len(), entry.failed(None, "S", EVENTS as u64)), (2, 3));
        leaves(&mut entry, one_class(), many(1, EVENTS + 50));
        assert_eq!(entry.events.len(), EVENTS);
    }

    #[test]
    fn what_is_no_event_is_written_as_0_as_it_always_was() {
        let is_left = Left::of_letters(Some("k"), "gone", "why".to_owned());
        let text = r#"{"key":"k","stream":"MILLSTREAM_DEAD","sequence":0,"class":"gone","reason":"why","attempt":0}"#;
        assert_eq!(serde_json::to_string(&is_left).unwrap(), text);
        for one in [is_left, left(None, 7)] {
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Left>(&text).unwrap(), one);
        }
    }

    #[test]
    fn what_was_written_before_events_were_counted_is_read() {
        let entry: Entry = serde_json::from_str(r#"{"wanted":null,"done":null,"attempts":{"k":2}}"#).unwrap();
        assert_eq!((entry.failed(Some("k"), "S", 1), entry.failed(None, "S", 1)), (3, 1));
    }
}
