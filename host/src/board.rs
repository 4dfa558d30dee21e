//! The alerts that are raised, where everybody can see them: a KV bucket with a key per handler and alert. In: alerts to raise and to
//! clear. Out: whether it was us who did. Compare-and-set, so of several hosts one raises and one clears. Never: tells anybody.

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};

use crate::alarm::Raised;
use crate::buckets;
use crate::latest::{self, Latest};
use crate::names;
use crate::overview::Alert;

/// The bucket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the bucket of alerts is not reachable: {0}")]
pub struct Error(String);

fn unreachable(error: impl std::fmt::Display) -> Error {
    Error(error.to_string())
}

/// An alert in the bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Posted {
    /// Its key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// The alert.
    pub alert: Alert,
}

impl Posted {
    /// What the rules need to know of it.
    #[must_use]
    pub fn raised(&self) -> Raised {
        Raised { revision: self.revision, events: self.alert.events }
    }
}

/// What lies in the bucket and is no alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// Why it is none.
    pub reason: String,
}

/// All that are raised, the oldest first, and what cannot be read. No bucket means none.
///
/// # Errors
/// When the server is away.
pub async fn read(jetstream: &Context) -> Result<(Vec<Posted>, Vec<Unreadable>), Error> {
    let (mut posted, mut unreadable) = (Vec::new(), Vec::new());
    let Some(store) = peek(jetstream).await? else { return Ok((posted, unreadable)) };
    for Latest { key, value, revision, .. } in latest::of(jetstream, &store, ">").await.map_err(unreachable)? {
        match serde_json::from_slice(&value) {
            Ok(alert) if is_under_its_key(&alert, &key) => posted.push(Posted { key, revision, alert }),
            Ok(_) => unreadable.push(Unreadable { key, revision, reason: "it is of another key".to_owned() }),
            Err(error) => unreadable.push(Unreadable { key, revision, reason: error.to_string() }),
        }
    }
    posted.sort_by(|one: &Posted, other| (one.alert.since, &one.key).cmp(&(other.alert.since, &other.key)));
    Ok((posted, unreadable))
}

/// News of it go to a subject that is made of the same words.
fn is_under_its_key(alert: &Alert, key: &str) -> bool {
    names::alert_key(&alert.handler, &alert.alert) == key && !alert.alert.contains('.')
}

/// The same without their keys.
///
/// # Errors
/// As [`read`].
pub async fn alerts(jetstream: &Context) -> Result<Vec<Alert>, Error> {
    Ok(read(jetstream).await?.0.into_iter().map(|posted| posted.alert).collect())
}

/// Raises it. False: it is raised already.
///
/// # Errors
/// When the server refuses or is away.
pub async fn raise(jetstream: &Context, alert: &Alert) -> Result<bool, Error> {
    let store = open(jetstream).await?;
    let value = serde_json::to_vec(alert).map_err(unreachable)?;
    match store.create(names::alert_key(&alert.handler, &alert.alert), value.into()).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(unreachable(error)),
    }
}

/// Clears it. False: somebody else has.
///
/// # Errors
/// When the server refuses or is away.
pub async fn clear(jetstream: &Context, key: &str, revision: u64) -> Result<bool, Error> {
    let Some(store) = peek(jetstream).await? else { return Ok(false) };
    match store.purge_expect_revision(key, Some(revision)).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
        Err(error) => Err(unreachable(error)),
    }
}

/// Clears all of a handler that is removed.
///
/// # Errors
/// When the server refuses or is away.
pub async fn clear_all(jetstream: &Context, handler: &str) -> Result<(), Error> {
    let (posted, _) = read(jetstream).await?;
    for posted in posted.iter().filter(|posted| posted.alert.handler == handler) {
        clear(jetstream, &posted.key, posted.revision).await?;
    }
    Ok(())
}

async fn peek(jetstream: &Context) -> Result<Option<Store>, Error> {
    buckets::peek(jetstream, names::ALERTS).await.map_err(unreachable)
}

async fn open(jetstream: &Context) -> Result<Store, Error> {
    if let Some(store) = peek(jetstream).await? {
        return Ok(store);
    }
    let config = kv::Config {
        bucket: names::ALERTS.to_owned(),
        description: "Alerts of Millstream handlers that are raised".to_owned(),
        history: 1,
        ..kv::Config::default()
    };
    buckets::make(jetstream, config).await.map_err(unreachable)
}
