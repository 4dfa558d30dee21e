//! What people want done with parked keys: a JSON value per generation of a handler in the KV bucket `MILLSTREAM_REDRIVES`. In: a
//! wish, written by compare-and-set. Out: the same for the owner of the handler, and for people what came of it. Never: does it; puts a
//! wish in the place of another that waits.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};
use serde::{Deserialize, Serialize};

use crate::buckets;
use crate::generation::Generation;
use crate::names;

/// Tries against others who write the same value.
const TRIES: usize = 10;

/// Keys of which is told that they are still parked.
const LEFT: usize = 100;

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
    /// The event that fails.
    pub sequence: u64,
    /// What it is guilty of now.
    pub class: String,
    /// What happened.
    pub reason: String,
    /// Which attempt that was; being parked was the first.
    pub attempt: u32,
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
pub struct Waiting {
    /// The wish.
    pub wish: Wish,
    /// The value's revision where it was seen. What a replica answers from before that says nothing about it.
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

    async fn read(&self, store: &Store) -> Result<(Entry, u64), Error> {
        match store.entry(&self.key).await.map_err(unreachable)? {
            Some(entry) if entry.operation == kv::Operation::Put => {
                let read = serde_json::from_slice(&entry.value);
                let unreadable =
                    |error: serde_json::Error| Error::Unreadable { key: self.key.clone(), reason: error.to_string() };
                Ok((read.map_err(unreadable)?, entry.revision))
            }
            Some(entry) => Ok((Entry::default(), entry.revision)),
            None => Ok((Entry::default(), 0)),
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
    pub async fn pending(&self) -> Result<Option<Waiting>, Error> {
        let Some(store) = self.store().await? else { return Ok(None) };
        let (entry, revision) = self.read(&store).await?;
        Ok(entry.wanted.map(|wish| Waiting { wish, revision }))
    }

    /// What is there after a wish was seen to wait; none where only an older value is at hand.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn entry_since(&self, waiting: &Waiting) -> Result<Option<Entry>, Error> {
        let Some(store) = self.store().await? else { return Ok(Some(Entry::default())) };
        let (entry, revision) = self.read(&store).await?;
        Ok((revision >= waiting.revision).then_some(entry))
    }

    /// Asks for something, making the bucket when it is missing. Nothing is asked for while another wish waits: whoever asked for
    /// that was told that it stays. Answers what waits now: this wish, or the other.
    ///
    /// # Errors
    /// When the server does not answer, or what is there is no wish.
    pub async fn ask(&self, wish: &Wish) -> Result<Waiting, Error> {
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
            // The other wish is written once more as it is: a replica may have told of one that is done.
            if let Some(revision) =
                self.write(&store, &Entry { wanted: Some(wanted.clone()), ..entry }, revision).await?
            {
                return Ok(Waiting { wish: wanted, revision });
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
            let mut outcome = outcome.clone();
            entry.attempts.retain(|key, _| is_parked(key));
            for left in &mut outcome.left {
                left.attempt = 2;
                if let Some(key) = &left.key {
                    let failed = entry.attempts.entry(key.clone()).or_default();
                    *failed += 1;
                    left.attempt = *failed + 1;
                }
            }
            outcome.left.truncate(LEFT);
            entry.wanted = None;
            entry.done = Some(outcome.clone());
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
