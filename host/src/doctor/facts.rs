//! What a server, its streams and its handlers are like at one moment. In: nothing. Out: plain data, so that every judgement can be
//! tested without a server. Pure. Never: an opinion.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};

use crate::names;
use crate::registry::{Desired, Host};
use crate::settings::OnLostEvents;

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// When they were gathered, nanoseconds since 1970.
    pub now: i64,
    /// The server.
    pub server: Server,
    /// Who asks; none where the server does not tell.
    pub user: Option<User>,
    /// Whether it is to be judged what a host needs of this user.
    pub as_host: bool,
    /// What the account may store.
    pub account: Account,
    /// All streams of the account, buckets included, by name.
    pub streams: Vec<Stream>,
    /// Whether `handlers` are all that are deployed: nothing is an orphan where nobody knows who its parents are.
    pub knows_handlers: bool,
    /// Deployed handlers by name.
    pub handlers: Vec<Handler>,
    /// Live hosts.
    pub hosts: Vec<Host>,
    /// Digests of modules in the object store.
    pub modules: Vec<String>,
    /// Digests that a deployment, its history or a generation names.
    pub named: BTreeSet<String>,
    /// What could not be looked at, and the server's words.
    pub unseen: Vec<(String, String)>,
}

/// The server that answers.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Its version, as it says.
    pub version: String,
    /// Major and minor version; none where the text is none.
    pub numbers: Option<(u32, u32)>,
    /// Why JetStream cannot be used; none where it can.
    pub no_jetstream: Option<String>,
    /// Name of the cluster that it is part of.
    pub cluster: Option<String>,
    /// What monitoring says of flushing, by address.
    pub flushing: Vec<(String, Flushing)>,
    /// How its clock compares to this machine's.
    pub clock: Option<Clock>,
}

/// When a server tells the disk to keep what it has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushing {
    /// Before it acknowledges.
    Always,
    /// Every so often.
    Every(Duration),
}

/// A comparison of two clocks, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How far the server is ahead; negative: behind.
    pub ahead: f64,
    /// How wrong that may be: half of the way there and back.
    pub uncertain: f64,
}

/// Who asks, and what he may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// His name.
    pub name: String,
    /// Where answers to him come.
    pub inbox: String,
    /// What he may publish; none: everything.
    pub publish: Option<Rules>,
    /// What he may subscribe to; none: everything.
    pub subscribe: Option<Rules>,
    /// Whether he may answer requests.
    pub answers: bool,
}

/// Subjects that are allowed and denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Empty: all that is not denied.
    pub allow: Vec<String>,
    /// Also where it is allowed.
    pub deny: Vec<String>,
}

/// What an account may store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Bytes on disk that it uses.
    pub bytes: u64,
    /// Bytes on disk that it may use; none: as many as the disk has.
    pub most: Option<u64>,
}

/// A stream.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// As it is set.
    pub config: Config,
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// The first sequence that it still has, or will have.
    pub first: u64,
    /// Durable consumers on it that bear a handler's mark.
    pub consumers: Vec<Consumer>,
    /// Generations that have records in it, where it is a journal.
    pub generations: Vec<u32>,
    /// Documents that it lacks of the buckets that it is gathered from, once it has all: each is under a key that several of them have.
    pub shared_keys: u64,
}

/// A consumer of a handler.
#[derive(Clone, Debug, Default)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// The handler.
    pub handler: String,
    /// Deliveries of one message at most; -1: no end.
    pub max_deliver: i64,
    /// When a message is delivered again.
    pub ack_wait: Duration,
}

/// A deployed handler.
#[derive(Clone, Debug)]
pub struct Handler {
    /// Its name.
    pub name: String,
    /// Whether it should run.
    pub desired: Desired,
    /// Digest of its module.
    pub digest: String,
    /// What it does where events are lost.
    pub on_lost: OnLostEvents,
    /// Its live generation.
    pub live: u32,
    /// All others that somebody wants.
    pub shadows: Vec<u32>,
    /// Its module.
    pub module: Module,
    /// Where it stands.
    pub inputs: Vec<Input>,
    /// Why that cannot be told, and what to do about it.
    pub fault: Option<(String, String)>,
    /// Why it has stopped, as its host says, with what to do about it; none where it has not.
    pub stopped: Option<String>,
    /// Why nobody can tell which of its generations is live; none where that is known. All of them count as wanted then.
    pub lost_ledger: Option<String>,
    /// Dead letters of its live generation that somebody removed by hand.
    pub letters_gone: u64,
}

/// What is known of a handler's module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// What it says of itself.
    Known {
        /// Subjects that it sends to.
        sends: Vec<String>,
        /// It sets timers.
        timers: bool,
    },
    /// Why it cannot be run.
    Unusable(String),
    /// It could not be looked at.
    Unseen,
}

/// Where a handler stands in one of its streams.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The stream.
    pub stream: String,
    /// The last sequence that is decided; 0: none.
    pub position: u64,
    /// Events that are not.
    pub undecided: u64,
    /// When the oldest of them was stored, nanoseconds since 1970.
    pub oldest: Option<i64>,
}

impl Facts {
    /// A stream by name.
    pub(super) fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.config.name == name)
    }

    /// A deployed handler by name.
    pub(super) fn handler(&self, name: &str) -> Option<&Handler> {
        self.handlers.iter().find(|handler| handler.name == name)
    }
}

impl Stream {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// The handler whose mark it bears; for what all share, its own name.
    pub(super) fn owner(&self) -> Option<&str> {
        names::owner(&self.config.metadata)
    }

    /// The handler whose journal it is.
    pub(super) fn journal_of(&self) -> Option<&str> {
        self.owner().filter(|owner| names::journal_stream(owner) == self.name())
    }

    /// The handler whose documents it holds, of whatever generation.
    pub(super) fn documents_of(&self) -> Option<&str> {
        self.owner().filter(|_| self.name().starts_with("KV_"))
    }

    /// The streams that it is gathered from.
    pub(super) fn gathered_from(&self) -> impl Iterator<Item = &str> {
        self.config.sources.iter().flatten().map(|source| source.name.as_str())
    }

    /// Whether it is one that Millstream makes, by mark or by name.
    pub(super) fn is_ours(&self) -> bool {
        let named = |prefix: &str| self.name().strip_prefix(prefix).is_some_and(|rest| rest.starts_with("MILLSTREAM_"));
        self.owner().is_some() || ["", "KV_", "OBJ_"].into_iter().any(named)
    }

    /// Whether its size makes it drop old messages.
    pub(super) fn drops_when_full(&self) -> bool {
        self.config.discard == DiscardPolicy::Old && (self.config.max_bytes > 0 || self.config.max_messages > 0)
    }

    /// How full it is, from 0 to 1; 0 where it has no limit.
    pub(super) fn fullness(&self) -> f64 {
        let part = |has: u64, most: i64| if most > 0 { has as f64 / most as f64 } else { 0.0 };
        part(self.bytes, self.config.max_bytes).max(part(self.messages, self.config.max_messages))
    }
}

/// A handler that runs, for tests to alter.
#[cfg(test)]
pub(super) fn handler(name: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        desired: Desired::Running,
        digest: String::new(),
        on_lost: OnLostEvents::Stop,
        live: 1,
        shadows: Vec::new(),
        module: Module::Unseen,
        inputs: Vec::new(),
        fault: None,
        stopped: None,
        lost_ledger: None,
        letters_gone: 0,
    }
}
