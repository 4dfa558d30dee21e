//! What a deployment may set, with defaults and their reasons. In: names and values as written in the registry. Out:
//! the same as used. Pure. Never: passes over an unknown name, so that a typing error is no silent default.

use serde::{Deserialize, Serialize};

use crate::sandbox::Limits;

/// Settings of one handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Input streams by name. Empty: the streams are found by the subjects, which must then lead to one stream each.
    pub streams: Vec<String>,
    /// Subject filters instead of the module's own. Empty: the module's.
    pub subjects: Vec<String>,
    /// Events of one batch at most, which it only reaches while behind. Rates stop growing near 4,000; fewer go together where
    /// more do not fit into one call or one record, or where a call would take long.
    pub batch_events: usize,
    /// Payload bytes of one batch at most. Keeps the sandbox call and the record near `max_payload`.
    pub batch_bytes: usize,
    /// How long the first event of a batch may wait for company. 0: what has arrived goes at once; while a batch is
    /// being decided, the next one gathers by itself.
    pub batch_wait_milliseconds: u64,
    /// Events fetched ahead per input stream. Two batches keep the pipeline busy during a round trip.
    pub prefetch_events: usize,
    /// How often documents are written while the handler is behind, at most; less often where writing them takes more than a
    /// tenth of the time. A document that changes in every batch is then written once a second, not thousands of times. When
    /// it is not behind, documents are written at once.
    pub show_interval_milliseconds: u64,
    /// Documents decided but not yet in the bucket; the pipeline waits above this. Bounds memory (about 250 bytes each beside their own)
    /// and recovery time. The more may wait, the more often one that changes again is written once for all: with a million keys half as
    /// many cost a fifth of the rate.
    pub unshown_documents: usize,
    /// Bytes of these documents; the pipeline waits above this.
    pub unshown_bytes: usize,
    /// Bucket revisions remembered, so that a document can be written without reading it first. As many as fit into two tables of 2^20
    /// places, 52 MB, which only a handler with so many keys fills.
    pub known_revisions: usize,
    /// Journal records kept after their documents are in the bucket, for people who look back.
    pub journal_keep_records: u64,
    /// Replicas of the handler's bucket and journal.
    pub replicas: usize,
    /// What to do when a stream has dropped events that were not decided yet.
    pub on_lost_events: OnLostEvents,
    /// Upper bound of the rate. 0: none.
    pub throttle_events_per_second: u64,
    /// Bytes of instances that a saga's host keeps between batches, so that an event of a running saga reads nothing.
    pub instance_cache_bytes: usize,
    /// Bytes of one effect of a saga. A command is a message for a service; larger things belong into an object store.
    pub effect_bytes: usize,
    /// Effects that one event may cause in one instance. A list longer than this is a loop, most likely.
    pub effects_per_unit: usize,
    /// Messages of handlers that may cause each other in a row. A chain longer than this is a saga that answers itself.
    pub max_depth: u32,
    /// Effects decided but not published; the pipeline waits above this. Bounds memory while a subject has no stream.
    pub queued_effects: usize,
    /// Bytes of these effects; the pipeline waits above this.
    pub queued_effect_bytes: usize,
    /// Events that a new module must take before it is trusted: if it fails at one of them, the module before it runs again.
    pub probation_events: u64,
    /// Keys that are parked at most, each with the event that failed and all later ones. Beyond that, or with 0 at the first, the
    /// handler stops at the event that it cannot take: nobody looks through more.
    pub max_parked_keys: usize,
    /// So many keys newly parked within the last 1,000 events mean a bad module, not bad events: the handler stops instead.
    pub max_failing_keys: usize,
    /// Generations that were live once and follow in case somebody wants them back. Each costs as much as the handler.
    pub keep_generations: usize,
    /// Undecided events from which on an alert is raised. 0: none, for what is much is not known here.
    pub alert_lag_events: u64,
    /// Age of the oldest undecided event, seconds, from which on an alert is raised. 0: none.
    pub alert_lag_seconds: u64,
    /// Whether an alert is raised when lag grows and grows, however small it is.
    pub alert_lag_growing: bool,
    /// Seconds without any decision, while events wait, until an alert is raised. 0: none. 30: longer than a server's restart.
    pub alert_stuck_seconds: u64,
    /// Bounds of the sandbox.
    pub limits: Limits,
}

/// Parked keys of one handler that a host can remember, and their stream can list.
const MOST_PARKED_KEYS: usize = 50_000;

/// What waits for longer than this looks like what does not run at all.
const LONGEST_WAIT_MILLISECONDS: usize = 3_600_000;

/// Fuel below which nothing runs.
const LEAST_FUEL: u64 = 10_000;

/// What to do when a stream's own limits removed events before they were decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLostEvents {
    /// Stop, say how many are gone, and wait for a person.
    Stop,
    /// Count them and go on from the first event that is left.
    Continue,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            subjects: Vec::new(),
            batch_events: 4000,
            batch_bytes: 1 << 20,
            batch_wait_milliseconds: 0,
            prefetch_events: 8000,
            show_interval_milliseconds: 1000,
            unshown_documents: 500_000,
            unshown_bytes: 64 << 20,
            known_revisions: 1_800_000,
            journal_keep_records: 1000,
            replicas: 1,
            on_lost_events: OnLostEvents::Stop,
            throttle_events_per_second: 0,
            instance_cache_bytes: 64 << 20,
            effect_bytes: 256 << 10,
            effects_per_unit: 1000,
            max_depth: 100,
            queued_effects: 10_000,
            queued_effect_bytes: 64 << 20,
            probation_events: 1000,
            max_parked_keys: 1000,
            max_failing_keys: 10,
            keep_generations: 1,
            alert_lag_events: 0,
            alert_lag_seconds: 0,
            alert_lag_growing: true,
            alert_stuck_seconds: 30,
            limits: Limits::default(),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No `=`.
    #[error("`{0}` is not of the form name=value")]
    NoValue(String),
    /// Serde's account: unknown name or wrong type.
    #[error("setting `{name}`: {reason}")]
    Invalid {
        /// As given.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Zero where that means "never".
    #[error("setting `{0}` must be at least 1")]
    Zero(&'static str),
    /// Less than any module can do with.
    #[error("setting `{0}` must be at least {1}")]
    TooSmall(&'static str, u64),
    /// More than any machine or server takes.
    #[error("setting `{0}` must be at most {1}")]
    TooLarge(&'static str, usize),
    /// A list with nothing between two commas.
    #[error("setting `{0}` has an empty name in its list")]
    EmptyName(&'static str),
}

impl Settings {
    /// So few undecided events that a generation that has no more is as good as up to date: what is decided in milliseconds.
    #[must_use]
    pub fn near(&self) -> u64 {
        self.batch_events.min(1000) as u64
    }

    /// Applies `name=value` pairs; `limits.fuel_per_call=1` reaches inside. Values are JSON, or else plain text.
    ///
    /// # Errors
    /// Names the pair that cannot be used.
    pub fn with(&self, pairs: &[String]) -> Result<Self, Error> {
        let mut settings = self.clone();
        for pair in pairs {
            let (name, value) = pair.split_once('=').ok_or_else(|| Error::NoValue(pair.clone()))?;
            settings = settings.with_one(name, value)?;
        }
        settings.check()?;
        Ok(settings)
    }

    fn with_one(&self, name: &str, value: &str) -> Result<Self, Error> {
        let invalid = |reason: String| Error::Invalid { name: name.to_owned(), reason };
        let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
        let mut whole = serde_json::to_value(self).map_err(|error| invalid(error.to_string()))?;
        let mut place = &mut whole;
        for part in name.split('.') {
            place = place.get_mut(part).ok_or_else(|| invalid("there is no such setting".to_owned()))?;
        }
        *place = match (&place, value) {
            (serde_json::Value::Array(_), serde_json::Value::String(text)) if text.trim().is_empty() => {
                serde_json::Value::Array(Vec::new())
            }
            (serde_json::Value::Array(_), serde_json::Value::String(text)) => {
                text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>().into()
            }
            (_, value) => value,
        };
        serde_json::from_value(whole).map_err(|error| invalid(in_words(&error.to_string())))
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), Error> {
        let bounded = [
            ("batch_events", self.batch_events, 100_000),
            ("batch_bytes", self.batch_bytes, 64 << 20),
            ("prefetch_events", self.prefetch_events, 100_000),
            ("unshown_documents", self.unshown_documents, 100_000_000),
            ("unshown_bytes", self.unshown_bytes, 64 << 30),
            ("known_revisions", self.known_revisions, 100_000_000),
            ("instance_cache_bytes", self.instance_cache_bytes, 64 << 30),
            ("effect_bytes", self.effect_bytes, 64 << 20),
            ("effects_per_unit", self.effects_per_unit, 100_000),
            ("max_depth", self.max_depth as usize, 1_000_000),
            ("queued_effects", self.queued_effects, 100_000_000),
            ("queued_effect_bytes", self.queued_effect_bytes, 64 << 30),
            // What JetStream allows.
            ("replicas", self.replicas, 5),
        ];
        match bounded.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            Some((name, 0, _)) => return Err(Error::Zero(name)),
            Some((name, _, most)) => return Err(Error::TooLarge(name, *most)),
            None => {}
        }
        let capped = [
            ("max_parked_keys", self.max_parked_keys as u64, MOST_PARKED_KEYS),
            ("max_failing_keys", self.max_failing_keys as u64, MOST_PARKED_KEYS),
            ("batch_wait_milliseconds", self.batch_wait_milliseconds, LONGEST_WAIT_MILLISECONDS),
            ("show_interval_milliseconds", self.show_interval_milliseconds, LONGEST_WAIT_MILLISECONDS),
        ];
        if let Some((name, _, most)) = capped.iter().find(|(_, value, most)| *value > *most as u64) {
            return Err(Error::TooLarge(name, *most));
        }
        // What the smallest of handlers needs to begin, so that a module is not blamed for what its deployment took away.
        let needed = [
            ("limits.fuel_per_call", self.limits.fuel_per_call, LEAST_FUEL),
            ("limits.memory_bytes", self.limits.memory_bytes as u64, 64 << 10),
            ("limits.output_bytes", self.limits.output_bytes as u64, 1 << 10),
            ("limits.module_bytes", self.limits.module_bytes as u64, 1 << 10),
        ];
        if let Some((name, _, least)) = needed.iter().find(|(_, value, least)| value < least) {
            return Err(Error::TooSmall(name, *least));
        }
        let lists = [("streams", &self.streams), ("subjects", &self.subjects)];
        match lists.iter().find(|(_, list)| list.iter().any(String::is_empty)) {
            Some((name, _)) => Err(Error::EmptyName(name)),
            None => Ok(()),
        }
    }
}

/// Serde's account without the names of Rust's types.
fn in_words(reason: &str) -> String {
    ["usize", "u64", "u32"].iter().fold(reason.to_owned(), |reason, of| {
        reason.replace(&format!("expected {of}"), "expected a whole number that is not negative")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pair: &str) -> Result<Settings, Error> {
        Settings::default().with(&[pair.to_owned()])
    }

    #[test]
    fn pairs_reach_every_level() {
        assert_eq!(with("batch_events=7").unwrap().batch_events, 7);
        assert_eq!(with("limits.fuel_per_call=20000").unwrap().limits.fuel_per_call, 20_000);
        assert_eq!(with("streams=A, B").unwrap().streams, ["A", "B"]);
        let all = Settings::default().with(&["subjects=a".to_owned(), "subjects=".to_owned()]).unwrap();
        assert_eq!(all.subjects, Vec::<String>::new(), "back to the module's own");
        assert_eq!(with("on_lost_events=continue").unwrap().on_lost_events, OnLostEvents::Continue);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (pair, expected) in [
            ("batch_event=7", "setting `batch_event`: there is no such setting"),
            ("batch_events", "`batch_events` is not of the form name=value"),
            ("batch_events=0", "setting `batch_events` must be at least 1"),
            ("prefetch_events=18446744073709551615", "setting `prefetch_events` must be at most 100000"),
            ("max_failing_keys=50001", "setting `max_failing_keys` must be at most 50000"),
            ("batch_wait_milliseconds=3600001", "setting `batch_wait_milliseconds` must be at most 3600000"),
            (
                "show_interval_milliseconds=18446744073709551615",
                "setting `show_interval_milliseconds` must be at most 3600000",
            ),
            ("replicas=6", "setting `replicas` must be at most 5"),
            ("limits.memory_bytes=1", "setting `limits.memory_bytes` must be at least 65536"),
            ("limits.output_bytes=0", "setting `limits.output_bytes` must be at least 1024"),
            ("limits.fuel_per_call=0", "setting `limits.fuel_per_call` must be at least 10000"),
            ("limits.module_bytes=1", "setting `limits.module_bytes` must be at least 1024"),
            ("subjects=a,,b", "setting `subjects` has an empty name in its list"),
            ("streams=[\"\"]", "setting `streams` has an empty name in its list"),
        ] {
            assert_eq!(with(pair).unwrap_err().to_string(), expected);
        }
        assert!(with("batch_events=many").unwrap_err().to_string().starts_with("setting `batch_events`: invalid type"));
    }
}
