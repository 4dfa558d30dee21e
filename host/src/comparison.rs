//! Compares the documents of two generations. In: their buckets and positions. Out: how many are equal, changed, added, removed,
//! and samples with both values and the event behind them. Never: calls a difference what is only a delay; such keys are counted
//! apart, as moving.
//!
//! The live generation goes on meanwhile, and so does the other. A key whose documents differ is settled when each generation has
//! decided the event that the other's document stands at, and both documents are still the same a moment later. The rest moves.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use millstream_saga::Instance;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::direct_get::Last;
use crate::generation::Generation;
use crate::journal::Position;
use crate::keys;
use crate::outline::{Entry, Outline};
use crate::survey;

/// How long to wait for keys that move.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

/// Between two looks at them: longer than it takes to show what is decided while nothing is behind.
const SETTLE_EVERY: Duration = Duration::from_millis(250);

/// Documents read at once.
const READ: usize = 500;

/// What kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Both have it, and not the same.
    Changed,
    /// Only the new one has it.
    Added,
    /// Only the live one has it.
    Removed,
}

/// A difference, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// The key as the handler wrote it.
    pub key: String,
    /// What kind.
    pub kind: Kind,
    /// The live document: JSON as such, else text.
    pub live: Option<Value>,
    /// The other one.
    pub other: Option<Value>,
    /// The last event in the live document, as `STREAM:SEQUENCE`.
    pub live_event: Option<String>,
    /// The last event in the other one.
    pub other_event: Option<String>,
}

/// Two generations, compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The live generation.
    pub live: u32,
    /// The other.
    pub other: u32,
    /// Keys with the same document in both.
    pub equal: u64,
    /// Keys with different ones.
    pub changed: u64,
    /// Keys that only the other has.
    pub added: u64,
    /// Keys that only the live one has.
    pub removed: u64,
    /// Keys that cannot be told, because one generation has not decided what the other has.
    pub moving: u64,
    /// Some differences.
    pub samples: Vec<Sample>,
}

/// Two buckets that can be compared again and again.
pub(crate) struct Pair {
    jetstream: Context,
    handler: String,
    numbers: [u32; 2],
    pub(crate) live: Outline,
    pub(crate) other: Outline,
    /// Documents are instances of a saga, which name the module in their history.
    instances: bool,
}

impl Pair {
    /// The live generation of this number and another.
    pub(crate) fn new(jetstream: &Context, handler: &str, live: u32, other: u32, instances: bool) -> Self {
        Self {
            jetstream: jetstream.clone(),
            handler: handler.to_owned(),
            numbers: [live, other],
            live: Outline::new(jetstream, &Generation::live(handler, live).name()),
            other: Outline::new(jetstream, &Generation::shadow(handler, other).name()),
            instances,
        }
    }

    pub(crate) async fn update(&mut self) -> anyhow::Result<()> {
        self.live.update().await?;
        self.other.update().await?;
        Ok(())
    }

    /// Escaped keys whose bytes differ, in order.
    pub(crate) fn unequal(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.live.entries.keys().filter(|key| self.differs(key)).cloned().collect();
        let added = self
            .other
            .entries
            .iter()
            .filter(|(key, entry)| entry.digest.is_some() && !self.live.entries.contains_key(*key));
        keys.extend(added.map(|(key, _)| key.clone()));
        keys.sort_unstable();
        keys
    }

    fn differs(&self, key: &str) -> bool {
        self.live.digest(key) != self.other.digest(key)
    }

    /// Compares, and waits a little for keys that move. `samples` of the differences come in full.
    pub(crate) async fn compare(&mut self, samples: usize) -> anyhow::Result<Comparison> {
        self.update().await?;
        let deadline = Instant::now() + SETTLE_WITHIN;
        let mut settled: HashMap<String, [u64; 2]> = HashMap::new();
        let moving = loop {
            let decided = self.decided().await?;
            let candidates = self.unequal();
            let moving = candidates.iter().filter(|key| settled.get(*key) != Some(&self.revisions(key))).count();
            if moving == 0 || Instant::now() > deadline {
                break moving;
            }
            settled = candidates
                .into_iter()
                .filter(|key| self.is_decided_by_both(key, &decided))
                .map(|key| (self.revisions(&key), key))
                .map(|(revisions, key)| (key, revisions))
                .collect();
            tokio::time::sleep(SETTLE_EVERY).await;
            self.update().await?;
        };
        let mut differing = self.unequal();
        differing.retain(|key| settled.get(key) == Some(&self.revisions(key)));
        self.tell(differing, moving as u64, samples).await
    }

    /// The comparison, where nothing moves any more.
    pub(crate) async fn tell(&self, differing: Vec<String>, moving: u64, samples: usize) -> anyhow::Result<Comparison> {
        let [live, other] = self.numbers;
        let mut told = Comparison { live, other, moving, ..Comparison::default() };
        let mut differences = 0;
        for part in differing.chunks(READ) {
            for difference in self.read(part).await? {
                differences += 1;
                match difference.kind {
                    Kind::Changed => told.changed += 1,
                    Kind::Added => told.added += 1,
                    Kind::Removed => told.removed += 1,
                }
                if told.samples.len() < samples {
                    told.samples.push(difference);
                }
            }
        }
        told.equal = self.documents().saturating_sub(differences + moving);
        Ok(told)
    }

    /// Keys under which either has a document.
    fn documents(&self) -> u64 {
        let here = self.live.entries.values().filter(|entry| entry.digest.is_some()).count();
        let only_there = |(key, entry): &(&String, &Entry)| entry.digest.is_some() && self.live.digest(key).is_none();
        (here + self.other.entries.iter().filter(only_there).count()) as u64
    }

    /// These keys in full, without those that differ in nothing but the module's name.
    pub(crate) async fn read(&self, keys: &[String]) -> anyhow::Result<Vec<Sample>> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let live = self.live.fetch(&keys).await?;
        let other = self.other.fetch(&keys).await?;
        let mut differences = Vec::new();
        for key in keys {
            let (live, other) = (document(live.get(key)), document(other.get(key)));
            let kind = match (&live, &other) {
                (Some(live), Some(other))
                    if live == other || self.instances && same_but_for_the_module(live, other) =>
                {
                    continue;
                }
                (Some(_), Some(_)) => Kind::Changed,
                (None, Some(_)) => Kind::Added,
                (Some(_), None) => Kind::Removed,
                (None, None) => continue,
            };
            let event =
                |outline: &Outline| outline.origin(key).map(|(stream, sequence)| format!("{stream}:{sequence}"));
            differences.push(Sample {
                key: keys::unescape(key)?,
                kind,
                live: live.map(json),
                other: other.map(json),
                live_event: event(&self.live),
                other_event: event(&self.other),
            });
        }
        Ok(differences)
    }

    /// What each generation has decided.
    async fn decided(&self) -> anyhow::Result<[Vec<Position>; 2]> {
        let [live, other] = self.numbers;
        let live = self.decided_by(&Generation::live(&self.handler, live)).await?;
        let other = self.decided_by(&Generation::shadow(&self.handler, other)).await?;
        Ok([live, other])
    }

    /// A generation's positions; behind everything in a stream where nothing waits for it.
    async fn decided_by(&self, generation: &Generation) -> anyhow::Result<Vec<Position>> {
        let (mut positions, _) = survey::decided_by(&self.jetstream, &self.handler, generation.number).await?;
        for position in &mut positions {
            let stream = self.jetstream.get_stream_no_info(&position.stream).await?;
            let Ok(consumer) = stream.consumer_info(generation.name()).await else { continue };
            if consumer.num_pending == 0 && consumer.num_ack_pending == 0 {
                position.sequence = u64::MAX;
            }
        }
        Ok(positions)
    }

    fn is_decided_by_both(&self, key: &str, decided: &[Vec<Position>; 2]) -> bool {
        [&self.live, &self.other].iter().filter_map(|outline| outline.origin(key)).all(|(stream, sequence)| {
            decided.iter().all(|positions| {
                let position = positions.iter().find(|position| position.stream == stream);
                // A generation that does not read the stream has nothing to decide there.
                position.is_none_or(|position| position.sequence >= sequence)
            })
        })
    }

    fn revisions(&self, key: &str) -> [u64; 2] {
        [&self.live, &self.other].map(|outline| outline.entries.get(key).map_or(0, |entry| entry.revision))
    }
}

fn document(message: Option<&Last>) -> Option<&[u8]> {
    message.filter(|message| !message.is_deletion()).map(|message| message.payload.as_ref())
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// Each line of an instance's history names the module that wrote it, which says nothing of the instance.
fn same_but_for_the_module(one: &[u8], other: &[u8]) -> bool {
    let nameless = |document: &[u8]| -> Option<Vec<u8>> {
        let mut instance = Instance::read(document).ok()?;
        instance.history.iter_mut().for_each(|transition| transition.digest.clear());
        Some(instance.write())
    };
    match (nameless(one), nameless(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

impl Sample {
    /// Whether it is about an instance that has not ended in one of the two.
    pub(crate) fn is_alive(&self) -> bool {
        const OVER: [&str; 3] = ["completed", "compensated", "failed"];
        let status = |document: &Option<Value>| Some(document.as_ref()?.get("status")?.as_str()?.to_owned());
        [&self.live, &self.other].into_iter().filter_map(status).any(|status| !OVER.contains(&status.as_str()))
    }
}
