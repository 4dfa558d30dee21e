//! What came of a shadow run, for people and programs. Pure data. Never: leaves out a key that differs.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use super::{At, FAILURES, Spent};

/// A shadow run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The handler.
    pub handler: String,
    /// Projection or saga.
    pub kind: &'static str,
    /// Digest of the module that is deployed.
    pub running: String,
    /// Digest of the new one.
    pub new: String,
    /// Events that were read.
    pub events: u64,
    /// Documents at the end.
    pub documents: Documents,
    /// Effects.
    pub effects: Effects,
    /// Events that the deployed module failed at, and left out.
    pub failures_running: u64,
    /// The same of the new one.
    pub failures_new: u64,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// What each has cost.
    pub cost: Costs,
}

/// How documents compare.
#[derive(Debug, Default, Serialize)]
pub struct Documents {
    /// Byte for byte the same.
    pub equal: u64,
    /// Under both, and not the same.
    pub changed: u64,
    /// Under the new module only.
    pub added: u64,
    /// Under the deployed one only.
    pub removed: u64,
    /// All that are not equal, by key.
    pub differing: Vec<Difference>,
}

/// A key whose documents differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// Under the deployed module.
    pub running: Option<Value>,
    /// Under the new one.
    pub new: Option<Value>,
    /// The event since which they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<At>,
}

/// How effects compare.
#[derive(Debug, Default, Serialize)]
pub struct Effects {
    /// Asked for by both, alike.
    pub same: u64,
    /// Asked for by both under one id, and not alike.
    pub other: u64,
    /// Asked for by the deployed module only.
    pub missing: u64,
    /// Asked for by the new one only.
    pub more: u64,
    /// The first of those that are not the same.
    pub differing: Vec<OtherEffect>,
}

/// An effect that is not the same.
#[derive(Debug, Serialize)]
pub struct OtherEffect {
    /// How.
    pub difference: What,
    /// What it is.
    pub what: String,
    /// Its id.
    pub id: String,
    /// The event that it was asked for at.
    pub at: At,
}

/// How an effect differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It says something else.
    Other,
    /// Only the deployed module asks for it.
    Missing,
    /// Only the new one does.
    More,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// The deployed module.
    Running,
    /// The new one.
    New,
}

/// An event that a module cannot take.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Which module.
    pub which: Which,
    /// The event.
    pub at: At,
    /// Why.
    pub reason: String,
}

/// What both have cost.
#[derive(Debug, Default, Serialize)]
pub struct Costs {
    /// The deployed module.
    pub running: Cost,
    /// The new one.
    pub new: Cost,
}

/// What one module has cost, an event on average.
#[derive(Debug, Default, Serialize)]
pub struct Cost {
    /// Fuel.
    pub fuel_per_event: u64,
    /// Time to decide, sandbox and fold, without any reading or writing.
    pub microseconds_per_event: f64,
}

impl From<(Cost, Cost)> for Costs {
    fn from((running, new): (Cost, Cost)) -> Self {
        Self { running, new }
    }
}

impl Cost {
    pub(super) fn of(spent: &Spent) -> Self {
        let events = spent.events.max(1);
        let microseconds = spent.time.as_secs_f64() * 1e6 / events as f64;
        Self { fuel_per_event: spent.fuel / events, microseconds_per_event: (microseconds * 100.0).round() / 100.0 }
    }
}

impl Report {
    pub(super) fn failed(&mut self, which: Which, failure: Failure) {
        match which {
            Which::Running => self.failures_running += 1,
            Which::New => self.failures_new += 1,
        }
        if self.failures.len() < FAILURES {
            self.failures.push(failure);
        }
    }
}

impl Documents {
    pub(super) fn of(
        old: &BTreeMap<String, Vec<u8>>,
        new: &BTreeMap<String, Vec<u8>>,
        mut since: HashMap<String, At>,
    ) -> Self {
        let mut documents = Self::default();
        let added = new.iter().filter(|(key, _)| !old.contains_key(*key)).map(|(key, new)| (key, None, Some(new)));
        let all = old.iter().map(|(key, old)| (key, Some(old), new.get(key))).chain(added);
        for (key, running, new) in all {
            match (running, new) {
                (Some(running), Some(new)) if running == new => {
                    documents.equal += 1;
                    continue;
                }
                (Some(_), Some(_)) => documents.changed += 1,
                (Some(_), None) => documents.removed += 1,
                (None, _) => documents.added += 1,
            }
            let value = |bytes: &Vec<u8>| -> Value {
                serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
            };
            let (running, new) = (running.map(value), new.map(value));
            documents.differing.push(Difference { key: key.clone(), running, new, since: since.remove(key) });
        }
        documents.differing.sort_by(|one, other| one.key.cmp(&other.key));
        documents
    }
}
