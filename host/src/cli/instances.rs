//! What the commands for sagas share. In: a deployed saga by name. Out: the saga, or a refusal of what is none, and its
//! instances. Never: writes anything.

use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::{self, Context};
use futures::TryStreamExt as _;
use millstream_saga::Instance;

use super::{Fault, connect, deploy, running, versions};
use crate::buckets;
use crate::direct_get;
use crate::inputs;
use crate::keys;
use crate::names;
use crate::registry::{Deployment, Registry};
use crate::saga::Facts;
use crate::sandbox::Digest;
use crate::settings::Settings;

/// Modules whose facts are remembered: a page asks for the same ones again and again, and to ask a module, it must be compiled.
const REMEMBERED: usize = 32;

/// A deployed saga.
pub(crate) struct Saga {
    pub(super) jetstream: Context,
    pub(super) registry: Registry,
    pub(super) name: String,
    pub(super) deployment: Deployment,
    pub(super) facts: Arc<Facts>,
}

/// An instance, as the bucket has it.
pub(crate) struct Found {
    /// As the handler wrote it.
    pub(super) key: String,
    pub(super) instance: Instance,
    /// Journal sequence of the record that decided its last transition.
    pub(super) record: u64,
    /// When the bucket took it, nanoseconds since 1970.
    pub(super) stored: i64,
}

impl Saga {
    /// Finds it. What it says of itself is asked of its module, so a deployment by stock tools will do.
    pub(super) async fn open(connection: &connect::Connection, name: &str) -> Result<Self, Fault> {
        Self::of(jetstream::new(super::open(connection).await?), name).await
    }

    /// The same on a connection that is there.
    pub(crate) async fn of(jetstream: Context, name: &str) -> Result<Self, Fault> {
        let (registry, revision, deployment) = versions::found(&jetstream, name).await?;
        let deployment = running::of(&registry, name, revision, &deployment).await?.deployment;
        let Some(facts) = facts(&registry, &deployment).await? else {
            return Err(Fault::usage(anyhow::anyhow!(
                "handler {name} is a projection: it has documents, no instances"
            ))
            .hint(format!("read them with `millstream get {name}`")));
        };
        if facts.stateless {
            return Err(Fault::usage(anyhow::anyhow!("handler {name} is a plain reaction: it keeps no instances"))
                .hint(format!(
                    "see what it has decided with `millstream list`, and its lag with `millstream lag {name}`"
                )));
        }
        Ok(Self { jetstream, registry, name: name.to_owned(), deployment, facts })
    }

    /// The instance under this key, if the bucket has it.
    pub(super) async fn instance(&self, key: &str) -> Result<Option<Found>, Fault> {
        let escaped = keys::escape(key);
        Ok(self.read(&[&escaped]).await?.pop())
    }

    /// All instances, by key.
    pub(super) async fn instances(&self) -> Result<Vec<Found>, Fault> {
        // A saga that never ran has no bucket.
        let Some(bucket) = buckets::peek(&self.jetstream, &self.name).await.map_err(anyhow::Error::msg)? else {
            return Ok(Vec::new());
        };
        let escaped: Vec<String> = bucket.keys().await?.try_collect().await?;
        let escaped: Vec<&str> = escaped.iter().map(String::as_str).collect();
        let mut found = self.read(&escaped).await?;
        found.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(found)
    }

    /// Up to `size` instances behind a key that stand as wanted, by key, and where to go on; none at the end. Looks at `most` at most.
    pub(crate) async fn page(
        &self,
        after: Option<&str>,
        stands: impl Fn(&Instance) -> bool,
        size: usize,
        most: usize,
    ) -> Result<(Vec<Found>, Option<String>), Fault> {
        let (escaped, are_all) = self.keys_after(after, most).await?;
        let mut found = Vec::new();
        for part in escaped.chunks(size.max(1)) {
            let part: Vec<&str> = part.iter().map(String::as_str).collect();
            let mut here = self.read(&part).await?;
            here.retain(|found| stands(&found.instance));
            here.sort_by(|one, other| keys::escape(&one.key).cmp(&keys::escape(&other.key)));
            found.extend(here);
            if found.len() > size {
                found.truncate(size);
                let next = found.last().map(|found| found.key.clone());
                return Ok((found, next));
            }
        }
        // Further ones were not looked at.
        let last = escaped.last().filter(|_| !are_all);
        Ok((found, last.map(|key| keys::unescape(key)).transpose()?))
    }

    /// The first `most` keys behind this one, escaped and in the order of what is asked with, so that a page goes on where the last
    /// one ended; and whether there are no others. However many keys there are, so many are held.
    async fn keys_after(&self, after: Option<&str>, most: usize) -> Result<(Vec<String>, bool), Fault> {
        // A host's user may ask for the subjects, and make no consumer.
        let bucket = match self.jetstream.get_stream(names::bucket_stream(&self.name)).await {
            Ok(bucket) => bucket,
            // A saga that never ran has none.
            Err(error) if inputs::is_missing(&error) => return Ok((Vec::new(), true)),
            Err(error) => return Err(error.into()),
        };
        let prefix = names::bucket_subject(&self.name, "");
        let after = after.map(|key| keys::escape(key).into_owned());
        let (mut first, mut are_all) = (BinaryHeap::with_capacity(most + 1), true);
        let mut subjects = bucket.info_with_subjects(format!("{prefix}>")).await?;
        while let Some((subject, _)) = subjects.try_next().await? {
            let key = subject.strip_prefix(&prefix).unwrap_or_default();
            if after.as_deref().is_some_and(|after| key <= after) {
                continue;
            }
            first.push(key.to_owned());
            if first.len() > most {
                first.pop();
                are_all = false;
            }
        }
        Ok((first.into_sorted_vec(), are_all))
    }

    async fn read(&self, escaped: &[&str]) -> Result<Vec<Found>, Fault> {
        let stream = names::bucket_stream(&self.name);
        if escaped.is_empty() || !inputs::is_there(&self.jetstream, &stream).await? {
            return Ok(Vec::new());
        }
        let subjects: Vec<String> = escaped.iter().map(|key| names::bucket_subject(&self.name, key)).collect();
        let prefix = names::bucket_subject(&self.name, "");
        let mut found = Vec::with_capacity(subjects.len());
        for part in direct_get::parts(&subjects, self.jetstream.client().server_info().max_payload) {
            let (messages, _) = direct_get::last_of(&self.jetstream, &stream, part).await?;
            for message in messages.iter().filter(|message| !message.is_deletion()) {
                let key = keys::unescape(message.subject.strip_prefix(&prefix).unwrap_or_default())?;
                let journal = message.headers.get(names::JOURNAL_HEADER).and_then(|text| text.as_str().parse().ok());
                match Instance::read(&message.payload) {
                    Ok(instance) => {
                        found.push(Found { key, instance, record: journal.unwrap_or_default(), stored: message.stored })
                    }
                    Err(error) => tracing::warn!(handler = self.name, key, %error, "this document is left out"),
                }
            }
        }
        Ok(found)
    }
}

/// What a saga's module says of itself; none of a projection's.
async fn facts(registry: &Registry, deployment: &Deployment) -> Result<Option<Arc<Facts>>, Fault> {
    if let Some(known) = KNOWN.recall(deployment) {
        return Ok(known);
    }
    let bytes = registry.module(deployment.digest).await?;
    let settings = deployment.settings.clone();
    let version = deploy::examined(bytes, settings).await?;
    KNOWN.keep(deployment, version.saga.clone());
    Ok(version.saga)
}

/// The facts of modules that were asked lately, the newest last.
struct Known(Mutex<VecDeque<Asked>>);

struct Asked {
    digest: Digest,
    settings: Settings,
    /// None of a projection.
    facts: Option<Arc<Facts>>,
}

static KNOWN: Known = Known(Mutex::new(VecDeque::new()));

impl Known {
    fn recall(&self, deployment: &Deployment) -> Option<Option<Arc<Facts>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut asked = known.iter();
        let asked = asked.find(|it| it.digest == deployment.digest && it.settings == deployment.settings)?;
        Some(asked.facts.clone())
    }

    fn keep(&self, deployment: &Deployment, facts: Option<Arc<Facts>>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.pop_front();
        }
        known.push_back(Asked { digest: deployment.digest, settings: deployment.settings.clone(), facts });
    }
}

/// Nothing lies under this key.
pub(crate) fn no_instance(handler: &str, key: &str) -> Fault {
    Fault::failed(anyhow::anyhow!("saga {handler} has no instance {key:?}"))
        .hint(format!("list its instances with `millstream sagas {handler}`"))
}
