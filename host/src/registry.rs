//! What is deployed. Modules lie in an object store by digest; deployments in a KV bucket, one key per handler, value as
//! `Deployment` in JSON; what hosts say of them in another. All three are plain NATS: the stock CLI can read and write them.
//! In: names and bytes. Out: the same, verified. Never: a handler's documents.

mod ran;

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, Entry, Operation, Store};
use async_nats::jetstream::object_store::{self, ObjectStore};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::buckets;
use crate::keys;
use crate::latest::{self, Latest};
use crate::names;
use crate::policy::Signature;
use crate::progress::{Report, State};
use crate::rebuild;
use crate::sandbox::Digest;
use crate::settings::Settings;

/// Deployments of one handler kept as history.
pub(crate) const HISTORY: i64 = 64;

/// A host that has not announced itself for so long is gone.
pub(crate) const HOST_TTL: Duration = Duration::from_secs(5);

/// Bytes of one message of a module at most, and what its headers may need of `max_payload`.
const CHUNK_BYTES: usize = 128 << 10;
const CHUNK_ROOM: usize = 1024;

/// Whether a handler should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It should.
    #[default]
    Running,
    /// It should not.
    Paused,
}

impl Desired {
    /// As the JSON says it.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// What is wanted of a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// sha256 of the module, which is also its object's name.
    pub digest: Digest,
    /// A name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The module's own subject filters, for readers that have no module at hand.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// Settings that differ from the defaults, or all of them.
    #[serde(default)]
    pub settings: Settings,
    /// Whether it should run.
    #[serde(default)]
    pub desired: Desired,
    /// Why this was deployed, where it was not simply wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Who vouches for the module, for hosts that ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// A deployment in its handler's history.
#[derive(Debug)]
pub struct Past {
    /// Revision in the bucket of deployments.
    pub revision: u64,
    /// When it was put, nanoseconds since 1970.
    pub time: i64,
    /// The deployment; none where the handler was removed.
    pub deployment: Option<Result<Deployment, Error>>,
}

/// A deployment that is in force.
pub(crate) struct Deployed {
    pub(crate) handler: String,
    pub(crate) revision: u64,
    pub(crate) deployment: Result<Deployment, Error>,
}

/// What a host does about a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs it.
    Running,
    /// It will run it once it can: the reason says what it waits for.
    Waiting,
    /// It does not run the handler, as wanted.
    Paused,
    /// It is ready for it; another host runs the handler.
    StandingBy,
    /// It goes on with what it ran before, or with nothing.
    Refused,
}

/// What a host says of a deployment, under `<handler>.<host>` in the bucket of states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The host's name.
    pub host: String,
    /// Revision of the deployment.
    pub revision: u64,
    /// Digest of its module.
    pub digest: Digest,
    /// What the host does.
    pub outcome: Outcome,
    /// Why, where it refuses or waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How long the change of module kept events waiting, microseconds, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_microseconds: Option<u64>,
}

/// A live host, as it announces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The handlers that it may look after; all where empty.
    #[serde(default)]
    pub handlers: Vec<String>,
    /// Number of this life: a host that begins again under its name is another.
    #[serde(default)]
    pub life: u64,
    /// When it began, nanoseconds since 1970, by its own clock.
    #[serde(default)]
    pub since: i64,
    /// The release that it runs.
    #[serde(default)]
    pub version: String,
    /// The handlers that it looks after.
    #[serde(default)]
    pub holds: Vec<String>,
    /// The handlers whose deployment it cannot run.
    #[serde(default)]
    pub declines: Vec<String>,
    /// It ends, and gives away what it holds.
    #[serde(default)]
    pub leaving: bool,
    /// It answers at its own subject.
    #[serde(default)]
    pub answers: bool,
}

impl Host {
    /// Whether it looks after this handler.
    #[must_use]
    pub fn looks_after(&self, handler: &str) -> bool {
        self.handlers.is_empty() || self.handlers.iter().any(|name| name == handler)
    }
}

/// A host, and when it said so.
pub(crate) struct Heard {
    pub(crate) host: Host,
    /// Nanoseconds since 1970, by the server's clock.
    pub(crate) stored: i64,
}

/// What can go wrong with the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused or is away.
    #[error("the registry is not reachable ({what}): {reason}")]
    Unreachable {
        /// What was tried.
        what: &'static str,
        /// The client's words.
        reason: String,
    },
    /// No such module.
    #[error(
        "module {0} is not in the object store MILLSTREAM_MODULES; hint: store its file again: `millstream deploy FILE`"
    )]
    NoModule(Digest),
    /// The object's bytes are not the ones its name says.
    #[error(
        "module {wanted} is damaged: its bytes have digest {found}; hint: store its file again: `millstream deploy FILE`"
    )]
    Damaged {
        /// As deployed.
        wanted: Digest,
        /// As found.
        found: Digest,
    },
    /// The bucket of deployments was removed by hand.
    #[error(
        "bucket {} is gone, though hosts have reported on {}; hint: deploy each handler again with `millstream deploy`; hosts go on with \
         what they run until they are started again",
        names::HANDLERS,
        .0.join(", ")
    )]
    Gone(Vec<String>),
    /// A deployment that is not one.
    #[error("deployment of {handler} cannot be read: {reason}")]
    Malformed {
        /// The key.
        handler: String,
        /// Serde's account.
        reason: String,
    },
}

fn unreachable<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Unreachable { what, reason: error.to_string() }
}

/// How often it is looked whether the bucket of deployments is still the same.
const BUCKET_EVERY: Duration = Duration::from_secs(3);

/// How often it is looked for a module that is missing.
const MODULE_EVERY: Duration = Duration::from_secs(1);

/// The three stores.
#[derive(Clone)]
pub struct Registry {
    jetstream: Context,
    modules: ObjectStore,
    /// Deployments; watch it to follow them.
    pub(crate) handlers: Store,
    status: Store,
    hosts: Store,
    /// Bytes of one message of a module: the server's `max_payload` may be smaller than the client's usual chunk.
    chunk_bytes: usize,
}

impl Deployment {
    /// Whether another module, or other settings are wanted here. Labels, notes and signatures aside.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        self.digest != other.digest || self.settings != other.settings
    }

    /// The subject filters in force.
    #[must_use]
    pub fn filters(&self) -> &[String] {
        if self.settings.subjects.is_empty() { &self.subjects } else { &self.settings.subjects }
    }
}

impl Registry {
    /// Opens the stores, making those that are missing.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn open(jetstream: &Context) -> Result<Self, Error> {
        let modules = match jetstream.get_object_store(names::MODULES).await {
            Ok(store) => store,
            Err(_) => modules(jetstream).await?,
        };
        let handlers =
            bucket(jetstream, names::HANDLERS, "Millstream deployments by handler", HISTORY, Duration::ZERO).await?;
        let status =
            bucket(jetstream, names::STATUS, "What Millstream hosts say of their handlers", 1, Duration::ZERO).await?;
        let hosts = hosts(jetstream).await?;
        let largest = jetstream.client().server_info().max_payload;
        let chunk_bytes = largest.saturating_sub(CHUNK_ROOM).clamp(1, CHUNK_BYTES);
        Ok(Self { jetstream: jetstream.clone(), modules, handlers, status, hosts, chunk_bytes })
    }

    /// Opens the stores for reading only: none where Millstream has never been used on this server.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn peek(jetstream: &Context) -> Result<Option<Self>, Error> {
        match buckets::peek(jetstream, names::HANDLERS).await.map_err(unreachable("open the deployments"))? {
            Some(_) => Self::open(jetstream).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same for whoever shows what is deployed: where the deployments are gone, hosts may still run what they said.
    ///
    /// # Errors
    /// When the deployments are gone though hosts have reported on handlers, or the server is away.
    pub async fn look(jetstream: &Context) -> Result<Option<Self>, Error> {
        const WHAT: &str = "read all states";
        if let Some(registry) = Self::peek(jetstream).await? {
            return Ok(Some(registry));
        }
        let Some(status) = buckets::peek(jetstream, names::STATUS).await.map_err(unreachable(WHAT))? else {
            return Ok(None);
        };
        let said = latest::of(jetstream, &status, "*").await.map_err(unreachable(WHAT))?;
        let handlers: Vec<String> = said.into_iter().map(|latest| latest.key).collect();
        if handlers.is_empty() { Ok(None) } else { Err(Error::Gone(handlers)) }
    }

    /// Stores a module unless it is there already, whole.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn put_module(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        // One that was removed leaves a note that it was there, and one that was damaged a name that is taken.
        if self.module(digest).await.is_err() {
            let mut reader = bytes;
            let object = object_store::ObjectMetadata {
                name: digest.to_string(),
                chunk_size: Some(self.chunk_bytes),
                ..object_store::ObjectMetadata::default()
            };
            self.modules.put(object, &mut reader).await.map_err(unreachable("store a module"))?;
        }
        Ok(digest)
    }

    /// Fetches a module and checks its digest.
    ///
    /// # Errors
    /// When it is missing or damaged, or the server is away.
    pub async fn module(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let mut object = self.modules.get(digest.to_string()).await.map_err(|error| match error.kind() {
            object_store::GetErrorKind::NotFound => Error::NoModule(digest),
            _ => unreachable("fetch a module")(error),
        })?;
        let mut bytes = Vec::new();
        object.read_to_end(&mut bytes).await.map_err(unreachable("fetch a module"))?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(Error::Damaged { wanted: digest, found });
        }
        Ok(bytes)
    }

    /// Resolves when there is such a module.
    pub(crate) async fn module_comes(&self, digest: Digest) {
        while self.modules.info(digest.to_string()).await.map_or(true, |info| info.deleted) {
            tokio::time::sleep(MODULE_EVERY).await;
        }
    }

    /// Deploys, whatever was deployed before.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn deploy(&self, handler: &str, deployment: &Deployment) -> Result<u64, Error> {
        let value = serde_json::to_vec(deployment).map_err(unreachable("write a deployment"))?;
        self.handlers.put(handler, value.into()).await.map_err(unreachable("write a deployment"))
    }

    /// Revision of what is deployed under this name, readable or not, or of its removal; 0 where nothing ever was.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn revision(&self, handler: &str) -> Result<u64, Error> {
        let entry = self.handlers.entry(handler).await.map_err(unreachable("read a deployment"))?;
        Ok(entry.map_or(0, |entry| entry.revision))
    }

    /// Deployments before this revision that a host could fall back to, those since the handler was removed last: the one that ran
    /// last, then the newest.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn earlier(
        &self,
        handler: &str,
        revision: u64,
        ran: u64,
    ) -> Result<Vec<(u64, Deployment)>, Error> {
        let history = self.history(handler).await?;
        let earlier = history.into_iter().skip_while(|past| past.revision >= revision);
        let mut earlier: Vec<(u64, Deployment)> = earlier
            .map_while(|Past { revision, deployment, .. }| Some((revision, deployment?)))
            .filter_map(|(revision, deployment)| Some((revision, deployment.ok()?)))
            .collect();
        earlier.sort_by_key(|(revision, _)| *revision != ran);
        Ok(earlier)
    }

    /// Puts a deployment in the place of the one of that revision, and gives its own. None: another was put since.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn replace(&self, handler: &str, revision: u64, deployment: &Deployment) -> Result<Option<u64>, Error> {
        let value = serde_json::to_vec(deployment).map_err(unreachable("write a deployment"))?;
        match self.handlers.update(handler, value.into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(unreachable("write a deployment")(error)),
        }
    }

    /// Finds out whether this user may deploy, by a deployment that cannot come through.
    ///
    /// # Errors
    /// When he may not, or the server is away.
    pub(crate) async fn may_deploy(&self, handler: &str) -> Result<(), Error> {
        match self.handlers.update(handler, bytes::Bytes::new(), i64::MAX as u64).await {
            Err(error) if error.kind() != kv::UpdateErrorKind::WrongLastRevision => {
                Err(unreachable("write a deployment")(error))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What was deployed under this name, newest first.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn history(&self, handler: &str) -> Result<Vec<Past>, Error> {
        let entries = self.handlers.history(handler).await.map_err(unreachable("read the history"))?;
        let entries: Vec<Entry> = entries.try_collect().await.map_err(unreachable("read the history"))?;
        let past = |entry: Entry| Past {
            revision: entry.revision,
            time: i64::try_from(entry.created.unix_timestamp_nanos()).unwrap_or(i64::MAX),
            deployment: (entry.operation == Operation::Put).then(|| parse(handler, &entry.value)),
        };
        Ok(entries.into_iter().rev().map(past).collect())
    }

    /// The deployment of one handler and its revision.
    ///
    /// # Errors
    /// When it cannot be read, or the server is away.
    pub async fn current(&self, handler: &str) -> Result<Option<(u64, Deployment)>, Error> {
        match self.handlers.entry(handler).await.map_err(unreachable("read a deployment"))? {
            Some(entry) if entry.operation == Operation::Put => {
                parse(handler, &entry.value).map(|deployment| Some((entry.revision, deployment)))
            }
            _ => Ok(None),
        }
    }

    /// The deployment of one handler.
    ///
    /// # Errors
    /// When it cannot be read, or the server is away.
    pub async fn deployment(&self, handler: &str) -> Result<Option<Deployment>, Error> {
        match self.handlers.get(handler).await.map_err(unreachable("read a deployment"))? {
            Some(value) => parse(handler, &value).map(Some),
            None => Ok(None),
        }
    }

    /// All deployments by handler, those that cannot be read included.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn deployments(&self) -> Result<Vec<(String, Result<Deployment, Error>)>, Error> {
        let keys = self.handlers.keys().await.map_err(unreachable("list deployments"))?;
        let mut names: Vec<String> = keys.try_collect().await.map_err(unreachable("list deployments"))?;
        names.sort();
        let mut deployments = Vec::with_capacity(names.len());
        for name in names {
            let deployment = self.deployment(&name).await;
            if let Some(deployment) = deployment.transpose() {
                deployments.push((name, deployment));
            }
        }
        Ok(deployments)
    }

    /// All deployments by handler with their revisions, those that cannot be read included, in one request.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn deployed(&self, jetstream: &Context) -> Result<Vec<Deployed>, Error> {
        let all = latest::of(jetstream, &self.handlers, ">").await.map_err(unreachable("list deployments"))?;
        let deployed = |latest: Latest| Deployed {
            deployment: parse(&latest.key, &latest.value),
            handler: latest.key,
            revision: latest.revision,
        };
        Ok(all.into_iter().map(deployed).collect())
    }

    /// Names of the hosts that announced themselves lately, in order, in one request and without a consumer.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn host_names(&self, jetstream: &Context) -> Result<Vec<String>, Error> {
        Ok(self.hosts_heard(jetstream).await?.into_iter().map(|heard| heard.host.name).collect())
    }

    /// The hosts that announced themselves lately, by name, in one request and without a consumer.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn hosts_heard(&self, jetstream: &Context) -> Result<Vec<Heard>, Error> {
        let all = latest::of(jetstream, &self.hosts, "*").await.map_err(unreachable("list hosts"))?;
        let heard =
            |latest: Latest| Some(Heard { host: serde_json::from_slice(&latest.value).ok()?, stored: latest.stored });
        let mut hosts: Vec<Heard> = all.into_iter().filter_map(heard).collect();
        hosts.sort_by(|one, other| one.host.name.cmp(&other.host.name));
        Ok(hosts)
    }

    /// What the hosts of all handlers said last, in one request.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn reports(&self, jetstream: &Context) -> Result<HashMap<String, Report>, Error> {
        // Verdicts and shadows have longer keys.
        self.reports_under(jetstream, "*").await
    }

    /// What hosts said last of generations that are not live, by key.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn shadow_reports(&self, jetstream: &Context) -> Result<HashMap<String, Report>, Error> {
        self.reports_under(jetstream, "*.generation.*").await
    }

    async fn reports_under(&self, jetstream: &Context, pattern: &str) -> Result<HashMap<String, Report>, Error> {
        let all = latest::of(jetstream, &self.status, pattern).await.map_err(unreachable("read all states"))?;
        let report = |latest: Latest| Some((latest.key, serde_json::from_slice(&latest.value).ok()?));
        Ok(all.into_iter().filter_map(report).collect())
    }

    /// Says that this host lives.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn announce(&self, host: &Host) -> Result<(), Error> {
        let value = serde_json::to_vec(host).map_err(unreachable("announce this host"))?;
        let key = keys::escape_token(&host.name);
        self.hosts.put(key.as_ref(), value.into()).await.map(drop).map_err(unreachable("announce this host"))
    }

    /// Says that this host is gone.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn retire(&self, host: &str) -> Result<(), Error> {
        self.hosts.delete(keys::escape_token(host).as_ref()).await.map_err(unreachable("take a host from the list"))
    }

    /// Makes the list of hosts anew where somebody deleted it.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn mend_hosts(&self, jetstream: &Context) -> Result<(), Error> {
        hosts(jetstream).await.map(drop)
    }

    /// What hosts say of themselves, from what they said last on.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn watch_hosts(&self) -> Result<kv::Watch, Error> {
        self.hosts.watch_with_history("*").await.map_err(unreachable("watch the hosts"))
    }

    /// The hosts that announced themselves lately.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn live_hosts(&self) -> Result<Vec<Host>, Error> {
        Ok(self.hosts_heard(&self.jetstream).await?.into_iter().map(|heard| heard.host).collect())
    }

    /// Revision of a host's last announcement; none where it is gone.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn announced(&self, host: &str) -> Result<Option<u64>, Error> {
        let entry =
            self.hosts.entry(keys::escape_token(host).as_ref()).await.map_err(unreachable("look for a host"))?;
        Ok(entry.filter(|entry| entry.operation == Operation::Put).map(|entry| entry.revision))
    }

    /// Tells what a host does about a deployment.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn judge(&self, handler: &str, verdict: &Verdict) -> Result<(), Error> {
        let value = serde_json::to_vec(verdict).map_err(unreachable("write a verdict"))?;
        let key = verdict_key(handler, &verdict.host);
        self.status.put(key, value.into()).await.map(drop).map_err(unreachable("write a verdict"))
    }

    /// What a host said last of a handler's deployments.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn verdict(&self, handler: &str, host: &str) -> Result<Option<Verdict>, Error> {
        let entry = self.status.entry(verdict_key(handler, host)).await.map_err(unreachable("read a verdict"))?;
        // What was said before deployments were lost names revisions of another count.
        let begun = self.handlers.stream.cached_info().created;
        let said = entry.filter(|entry| entry.operation == Operation::Put && entry.created >= begun);
        Ok(said.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
    }

    /// When the bucket of deployments was made, nanoseconds since 1970.
    ///
    /// # Errors
    /// When the server is away.
    pub(crate) async fn made_at(&self) -> Result<i64, Error> {
        let info = self.handlers.stream.get_info().await.map_err(unreachable("look at the deployments"))?;
        Ok(i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default())
    }

    /// Resolves when the bucket of deployments is another than at the first look: its revisions count anew.
    pub(crate) async fn is_made_anew(&self) {
        let mut known = None;
        loop {
            if let Ok(info) = self.handlers.stream.get_info().await
                && *known.get_or_insert(info.created) != info.created
            {
                return;
            }
            tokio::time::sleep(BUCKET_EVERY).await;
        }
    }

    /// Takes a deployment back. Its history stays, and its hosts end it.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn remove(&self, handler: &str) -> Result<(), Error> {
        self.handlers.delete(handler).await.map_err(unreachable("remove a deployment"))
    }

    /// Forgets what a host said of a handler; and what the handler was doing, if it was this host that ran it.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn forget(&self, handler: &str, host: &str, ran: bool) -> Result<(), Error> {
        if ran {
            self.status.purge(handler).await.map_err(unreachable("remove a state"))?;
        }
        self.status.purge(verdict_key(handler, host)).await.map_err(unreachable("remove a verdict"))
    }

    /// Forgets what was said of a generation that is a shadow no more.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn forget_generation(&self, handler: &str, generation: u32) -> Result<(), Error> {
        let key = rebuild::status_key(handler, generation);
        self.status.purge(key).await.map_err(unreachable("remove a state"))
    }

    /// Forgets all that anybody ever said of a handler that is removed, hosts that are gone included.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn forget_all(&self, handler: &str) -> Result<(), Error> {
        for key in [handler.to_owned(), format!("{handler}.>")] {
            let purge = self.status.stream.purge().filter(names::bucket_subject(names::STATUS, &key));
            purge.await.map_err(unreachable("remove what was said"))?;
        }
        Ok(())
    }

    /// Tells what a handler is doing.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn report(&self, handler: &str, report: &Report) -> Result<(), Error> {
        let value = serde_json::to_vec(report).map_err(unreachable("write a status"))?;
        self.status.put(handler, value.into()).await.map(drop).map_err(unreachable("write a status"))
    }

    /// Whether a handler's host said last that it cannot go on.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn is_failing(&self, handler: &str) -> Result<bool, Error> {
        Ok(self.status(handler).await?.is_some_and(|report| report.state == State::Failing || report.refused.is_some()))
    }

    /// What a handler's host said last.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn status(&self, handler: &str) -> Result<Option<Report>, Error> {
        let value = self.status.get(handler).await.map_err(unreachable("read a status"))?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }
}

fn verdict_key(handler: &str, host: &str) -> String {
    format!("{handler}.{}", keys::escape_token(host))
}

/// Reads a deployment's JSON.
///
/// # Errors
/// Names the handler and what is wrong.
pub fn parse(handler: &str, value: &[u8]) -> Result<Deployment, Error> {
    let malformed = |reason: String| Error::Malformed { handler: handler.to_owned(), reason };
    if let Some(defect) = names::handler_name_defect(handler) {
        return Err(malformed(defect));
    }
    let deployment: Deployment = serde_json::from_slice(value).map_err(|error| malformed(error.to_string()))?;
    deployment.settings.check().map_err(|error| malformed(error.to_string()))?;
    Ok(deployment)
}

async fn modules(jetstream: &Context) -> Result<ObjectStore, Error> {
    let mut refused = Err(Error::Unreachable { what: "open the module store", reason: String::new() });
    for num_replicas in buckets::REPLICAS {
        let config = object_store::Config {
            bucket: names::MODULES.to_owned(),
            description: Some("Millstream modules by sha256".to_owned()),
            num_replicas,
            ..object_store::Config::default()
        };
        refused = jetstream.create_object_store(config).await.map_err(unreachable("open the module store"));
        if refused.is_ok() {
            break;
        }
    }
    refused
}

async fn hosts(jetstream: &Context) -> Result<Store, Error> {
    bucket(jetstream, names::HOSTS, "Live Millstream hosts", 1, HOST_TTL).await
}

async fn bucket(
    jetstream: &Context,
    name: &str,
    description: &str,
    history: i64,
    max_age: Duration,
) -> Result<Store, Error> {
    if let Ok(store) = jetstream.get_key_value(name).await {
        return Ok(store);
    }
    let config = kv::Config {
        bucket: name.to_owned(),
        description: description.to_owned(),
        history,
        max_age,
        ..kv::Config::default()
    };
    buckets::make(jetstream, config).await.map_err(unreachable("make a bucket"))
}
