//! `millstream get`: documents of a handler. In: a key, several, a prefix, or nothing for all, as the handler wrote
//! them; escaping for NATS is done here. Out: the documents. Never: writes anything.

use std::collections::HashMap;

use async_nats::jetstream;
use clap::Args;
use futures::TryStreamExt as _;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Fault, connect, output};
use crate::direct_get;
use crate::inputs;
use crate::keys;
use crate::names;

/// Read documents.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The handler.
    handler: String,
    /// Keys; none: all, or all under the prefix.
    #[arg(conflicts_with = "prefix")]
    keys: Vec<String>,
    /// All keys that begin so.
    #[arg(long)]
    prefix: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    key: &'a str,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    value: &'a RawValue,
}

impl Get {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        if let Err(error) = jetstream.get_stream(names::bucket_stream(&self.handler)).await {
            if !inputs::is_missing(&error) {
                return Err(Fault::failed(error));
            }
            let missing = anyhow::anyhow!("there is no handler {} with documents on this server", self.handler);
            return Err(Fault::usage(missing).hint("see what is deployed with `millstream list`"));
        }
        let bucket = jetstream.get_key_value(&self.handler).await?;
        let asked = !self.keys.is_empty();
        let wanted = if asked {
            self.keys.clone()
        } else {
            let prefix = self.prefix.clone().unwrap_or_default();
            let escaped: Vec<String> = bucket.keys().await?.try_collect().await?;
            let mut found = escaped.iter().map(|key| keys::unescape(key)).collect::<Result<Vec<_>, _>>()?;
            found.retain(|key| key.starts_with(&prefix));
            found.sort();
            found
        };
        let bare = asked && wanted.len() == 1 && !json;
        let mut missing = Vec::new();
        let subjects: Vec<String> =
            wanted.iter().map(|key| names::bucket_subject(&self.handler, &keys::escape(key))).collect();
        let max_payload = jetstream.client().server_info().max_payload;
        let mut rest = wanted.as_slice();
        for subjects in direct_get::parts(&subjects, max_payload) {
            let (part, later) = rest.split_at(subjects.len());
            rest = later;
            missing.extend(self.print(&jetstream, part, subjects, bare, json).await?);
        }
        if asked && !missing.is_empty() {
            return Err(Fault::failed(anyhow::anyhow!("no document under {missing:?}"))
                .hint(format!("list the keys with `millstream get {}`", self.handler)));
        }
        Ok(())
    }

    /// Prints these documents, of these subjects, in the order asked for; answers the keys without one.
    async fn print(
        &self,
        jetstream: &jetstream::Context,
        part: &[String],
        subjects: &[String],
        bare: bool,
        json: bool,
    ) -> Result<Vec<String>, Fault> {
        let (found, _) = direct_get::last_of(jetstream, &names::bucket_stream(&self.handler), subjects).await?;
        let found: HashMap<String, direct_get::Last> =
            found.into_iter().map(|message| (message.subject.clone(), message)).collect();
        let mut missing = Vec::new();
        for (key, subject) in part.iter().zip(subjects) {
            let Some(message) = found.get(subject).filter(|message| !message.is_deletion()) else {
                missing.push(key.clone());
                continue;
            };
            if json {
                let position = message.headers.get(names::POSITION_HEADER).map(ToString::to_string);
                match serde_json::from_slice::<Box<RawValue>>(&message.payload) {
                    Ok(value) => output::json(&Document { key, revision: message.sequence, position, value: &value })?,
                    Err(_) => eprintln!("warning: document {key:?} is not JSON and is left out"),
                }
            } else if bare {
                output::bytes(&message.payload)?;
            } else {
                output::line(&format!("{}\t{}", output::legible(key), String::from_utf8_lossy(&message.payload)))?;
            }
        }
        Ok(missing)
    }
}
