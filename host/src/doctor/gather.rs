//! What there is to judge. In: a connection. Out: facts. Reads only: no stream, bucket or durable consumer is made, no message is
//! published but requests. What this user may not look at is a fact as well. Never: an opinion.

mod deployed;
mod lanes;
mod server;

use std::collections::BTreeSet;

use async_nats::Client;
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::Info;
use async_nats::jetstream::{self, Context};
use futures::TryStreamExt as _;

use super::facts::{Account, Consumer, Facts, Stream};
use crate::clock;
use crate::inputs;
use crate::names;
use crate::survey;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Addresses of servers' monitoring.
    pub monitors: Vec<String>,
    /// Whether this user is to be judged as a host.
    pub as_host: bool,
}

/// Why facts cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A monitoring address that does not answer as one.
    #[error("monitoring at {address}: {reason}")]
    Monitor {
        /// The address.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The server does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// Gathers them.
///
/// # Errors
/// When the server does not answer what everything else builds upon.
pub async fn gather(client: &Client, ask: &Ask) -> Result<Facts, Error> {
    let jetstream = jetstream::new(client.clone());
    let mut facts = Facts { now: clock::now(), as_host: ask.as_host, ..Facts::default() };
    facts.server = server::look(client, &jetstream, &ask.monitors).await?;
    if facts.server.no_jetstream.is_some() {
        return Ok(facts);
    }
    let asked = server::user(client).await;
    match asked {
        Ok((user, clock)) => (facts.user, facts.server.clock) = (Some(user), Some(clock)),
        Err(reason) if ask.as_host => facts.unseen.push(("permissions of this user".to_owned(), reason)),
        Err(_) => {}
    }
    let account = jetstream.query_account().await.map_err(|error| Error::Unreachable(error.to_string()))?;
    facts.account =
        Account { bytes: account.storage, most: account.limits.max_storage.and_then(|most| u64::try_from(most).ok()) };
    let known = inputs::list(&jetstream).await.map_err(|error| Error::Unreachable(error.to_string()))?;
    for info in &known {
        let stream = stream(&jetstream, info, &mut facts).await;
        facts.streams.push(stream);
    }
    lanes::look(&jetstream, &mut facts).await;
    deployed::look(&jetstream, &known, &mut facts).await;
    facts.modules = modules(&jetstream, &mut facts).await;
    Ok(facts)
}

async fn stream(jetstream: &Context, info: &Info, facts: &mut Facts) -> Stream {
    let mut stream = Stream {
        config: info.config.clone(),
        messages: info.state.messages,
        bytes: info.state.bytes,
        first: info.state.first_sequence,
        ..Stream::default()
    };
    let name = &info.config.name;
    let has_handlers = !name.starts_with("KV_") && !name.starts_with("OBJ_") && stream.journal_of().is_none();
    let consumers = "consumers of streams";
    if has_handlers && info.state.consumer_count > 0 && !facts.unseen.iter().any(|(what, _)| what == consumers) {
        match consumers_of(jetstream, name).await {
            Ok(found) => stream.consumers = found,
            // Who may not list those of one stream may not list others, and each try takes seconds.
            Err(reason) => facts.unseen.push((consumers.to_owned(), reason)),
        }
    }
    if let Some(handler) = stream.journal_of() {
        match survey::generations(jetstream, handler).await {
            Ok(found) => stream.generations = found,
            Err(error) => facts.unseen.push((format!("stream {name}"), format!("{error:#}"))),
        }
    }
    stream
}

async fn consumers_of(jetstream: &Context, stream: &str) -> Result<Vec<Consumer>, String> {
    let stream = jetstream.get_stream_no_info(stream).await.map_err(|error| error.to_string())?;
    let all: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(|error| error.to_string())?;
    let marked = |info: consumer::Info| {
        let handler = names::owner(&info.config.metadata)?.to_owned();
        let (max_deliver, ack_wait) = (info.config.max_deliver, info.config.ack_wait);
        Some(Consumer { name: info.name, handler, max_deliver, ack_wait })
    };
    Ok(all.into_iter().filter_map(marked).collect())
}

/// Digests of all modules that are stored.
async fn modules(jetstream: &Context, facts: &mut Facts) -> Vec<String> {
    if facts.stream(&format!("OBJ_{}", names::MODULES)).is_none() {
        return Vec::new();
    }
    let listed = async {
        let store = jetstream.get_object_store(names::MODULES).await.map_err(|error| error.to_string())?;
        let objects = store.list().await.map_err(|error| error.to_string())?;
        let objects: Vec<_> = objects.try_collect().await.map_err(|error| error.to_string())?;
        let digests: BTreeSet<String> =
            objects.into_iter().filter(|object| !object.deleted).map(|object| object.name).collect();
        Ok::<_, String>(digests.into_iter().collect())
    };
    match listed.await {
        Ok(digests) => digests,
        Err(reason) => {
            facts.unseen.push(("modules".to_owned(), reason));
            Vec::new()
        }
    }
}
