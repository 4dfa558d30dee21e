//! A capsule: all that is needed to see a parked key fail again, or not, away from its stream and its host. In: dead letters of one key,
//! the document before them, settings. Out: a JSON value; and what a module makes of it, in the same sandbox. Never: writes anything.

use std::collections::HashMap;

use async_nats::HeaderMap;
use async_nats::header::HeaderName;
use millstream_saga::{Instance, Outgoing, Rules};
use serde::{Deserialize, Serialize};
use std::str::FromStr as _;

use super::letter::Letter;
use crate::batch;
use crate::decision::{self, Fault, Undecided};
use crate::intake::Arrival;
use crate::journal::{CHANGE_ROOM, RECORD_ROOM};
use crate::saga::replay::{self, Lens};
use crate::sandbox::{Guest, slice, str_slice, wire};
use crate::settings::Settings;
use crate::version::Version;

/// Format of the capsules that this version writes and reads.
const FORMAT: u8 = 1;

/// What a record may have on a server with the default `max_payload` of 1 MiB.
const RECORD_BYTES: usize = (1 << 20) - RECORD_ROOM;

/// A parked key, taken out of the house.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    millstream_capsule: u8,
    /// The handler.
    pub handler: String,
    /// Its generation.
    pub generation: u32,
    /// The key; none for an event that never got as far as one.
    pub key: Option<String>,
    /// What its first event is guilty of.
    pub class: String,
    /// What happened.
    pub reason: String,
    /// Guest frames, or empty.
    #[serde(default)]
    pub backtrace: String,
    /// Digest of the module that failed, in hexadecimal.
    pub digest: String,
    /// The settings that it ran under.
    pub settings: Settings,
    /// The document before the first event; none where there was none.
    pub document: Option<Body>,
    /// The events, in order.
    pub events: Vec<Event>,
    /// Bytes of a record, and so of what one event may decide, on its server; none: as with the server's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_bytes: Option<usize>,
}

/// One of its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Name of its stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// When it was stored there, nanoseconds since 1970.
    pub stored: i64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Body,
}

/// Bytes, as text where they are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// UTF-8.
    Text(String),
    /// All else, in hexadecimal.
    Hex(String),
}

/// Why a capsule cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No capsule.
    #[error("it is no capsule: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of another version.
    #[error("it has format {0}; this version reads format {FORMAT}")]
    Format(u8),
}

/// What a module made of a capsule.
#[derive(Debug)]
pub enum Replayed {
    /// It took all events; the document of the key after them.
    Document(Option<Vec<u8>>),
    /// None of them matters to it; the document as it was.
    Irrelevant(Option<Vec<u8>>),
    /// It failed.
    Failed(Box<Failed>),
}

/// The event that it failed at.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// Index in the capsule.
    pub event: usize,
    /// Name of its stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// What it is guilty of.
    pub class: String,
    /// What happened.
    pub reason: String,
    /// Guest frames, or empty.
    pub backtrace: String,
}

impl Body {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(hex::encode(bytes)),
        }
    }

    /// The bytes; none where the hexadecimal is none.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Hex(text) => hex::decode(text).unwrap_or_default(),
        }
    }
}

impl Event {
    fn of(letter: &Letter) -> Self {
        let message = &letter.event.message;
        let headers = message.headers.iter().flat_map(HeaderMap::iter);
        let headers = headers.flat_map(|(name, values)| {
            values.iter().map(move |value| (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned()))
        });
        Self {
            stream: letter.stream.clone(),
            sequence: letter.event.sequence,
            stored: letter.event.stored,
            subject: message.subject.to_string(),
            headers: headers.collect(),
            body: Body::of(&message.payload),
        }
    }

    fn arrival(&self) -> Arrival {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            if let Ok(name) = HeaderName::from_str(name)
                && !value.contains(['\r', '\n'])
            {
                headers.append(name, value.as_str());
            }
        }
        let payload = self.body.bytes();
        let message = async_nats::Message {
            subject: self.subject.clone().into(),
            reply: None,
            length: payload.len(),
            payload: payload.into(),
            headers: Some(headers),
            status: None,
            description: None,
        };
        Arrival { message, sequence: self.sequence, stored: self.stored, pending: 0 }
    }
}

impl Capsule {
    /// Of these letters, all of one key or one alone; none where there are none.
    #[must_use]
    pub fn of(
        handler: &str,
        generation: u32,
        letters: &[Letter],
        document: Option<&[u8]>,
        settings: &Settings,
    ) -> Option<Self> {
        let first = letters.first()?;
        Some(Self {
            millstream_capsule: FORMAT,
            handler: handler.to_owned(),
            generation,
            key: first.key.clone(),
            class: first.class.clone(),
            reason: first.reason.clone(),
            backtrace: first.backtrace.clone(),
            digest: first.digest.clone(),
            settings: settings.clone(),
            document: document.map(Body::of),
            events: letters.iter().map(Event::of).collect(),
            record_bytes: None,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let capsule: Self = serde_json::from_slice(bytes)?;
        match capsule.millstream_capsule {
            FORMAT => Ok(capsule),
            other => Err(Error::Format(other)),
        }
    }

    /// What this module makes of it, event by event.
    ///
    /// # Errors
    /// When the sandbox cannot be had.
    pub fn replay(&self, version: &Version) -> anyhow::Result<Replayed> {
        let mut guest = (version.instantiate)()?;
        let mut document = self.document.as_ref().map(Body::bytes);
        let mut is_relevant = false;
        for (index, event) in self.events.iter().enumerate() {
            let arrival = event.arrival();
            let folded = match &version.saga {
                None => self.fold(guest.as_mut(), &event.stream, &arrival, &mut document),
                Some(_) => self.fold_saga(version, guest.as_mut(), &event.stream, &arrival, &mut document),
            };
            match folded {
                Ok(matters) => is_relevant |= matters,
                Err(Undecided::Trouble(error)) => return Err(error.into()),
                Err(Undecided::Guilty { class, reason, backtrace, .. }) => {
                    let (stream, sequence, class) = (event.stream.clone(), event.sequence, class.to_string());
                    let failed = Failed { event: index, stream, sequence, class, reason, backtrace };
                    return Ok(Replayed::Failed(Box::new(failed)));
                }
            }
        }
        Ok(if is_relevant { Replayed::Document(document) } else { Replayed::Irrelevant(document) })
    }

    fn is_meant(&self, key: &str) -> bool {
        self.key.as_deref().is_none_or(|own| own == key)
    }

    /// Refuses what the host could not write: a record holds at least what one event decides.
    fn check_size(&self, bytes: usize) -> Result<(), Undecided> {
        decision::check_size(bytes, self.record_bytes.unwrap_or(RECORD_BYTES))
    }

    /// Folds one event into the document of the key. False: it does not matter to the module.
    fn fold(
        &self,
        guest: &mut dyn Guest,
        stream: &str,
        arrival: &Arrival,
        document: &mut Option<Vec<u8>>,
    ) -> Result<bool, Undecided> {
        let batch = batch::encode(stream, std::slice::from_ref(arrival))
            .map_err(|error| Undecided::at(error.index, Fault::Undecodable, &error.reason))?;
        let staged = guest.stage(&batch).map_err(Undecided::failure)?;
        decision::check_staged(&staged)?;
        let name = |key: u32| staged.keys.get(key as usize).map_or("", |key| str_slice(&staged.blob, key.name));
        let routes = || (0..).zip(&staged.routes);
        let skip: Vec<u32> =
            routes().filter(|(_, route)| !self.is_meant(name(route.key))).map(|(number, _)| number).collect();
        let mut blob = Vec::new();
        let mut documents = Vec::new();
        for (number, key) in (0..).zip(&staged.keys).filter(|(number, key)| !key.cached && self.is_meant(name(*number)))
        {
            let own = document.as_ref().filter(|_| self.key.is_some());
            let bytes = own.map(Vec::as_slice).unwrap_or_default();
            let index = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let value = wire::Span { start: index(blob.len()), length: index(bytes.len()) };
            blob.extend_from_slice(bytes);
            documents.push(wire::Document { key: number, present: own.is_some(), value });
            let _ = key;
        }
        let outcome = guest.apply(&wire::Documents { documents, blob }, &skip).map_err(Undecided::failure)?;
        decision::check_refusals(&staged, &outcome)?;
        let bytes =
            outcome.changes.iter().map(|change| name(change.key).len() + change.value.length as usize + CHANGE_ROOM);
        self.check_size(bytes.sum())?;
        for change in &outcome.changes {
            *document = (!change.deleted).then(|| slice(&outcome.blob, change.value).to_vec());
        }
        Ok(routes().any(|(_, route)| self.is_meant(name(route.key))))
    }

    fn fold_saga(
        &self,
        version: &Version,
        guest: &mut dyn Guest,
        stream: &str,
        arrival: &Arrival,
        document: &mut Option<Vec<u8>>,
    ) -> Result<bool, Undecided> {
        let Some(facts) = &version.saga else { return Ok(false) };
        let settings = &version.settings;
        let rules = Rules {
            handler: &self.handler,
            digest: &self.digest,
            late: facts.late,
            sends: &facts.sends,
            stateless: facts.stateless,
            effect_bytes: settings.effect_bytes,
            effects_per_unit: settings.effects_per_unit,
            max_depth: settings.max_depth,
        };
        let mut instances = HashMap::new();
        if let (Some(key), Some(document)) = (&self.key, document.as_ref()) {
            let instance = Instance::read(document)
                .map_err(|error| Undecided::at(0, Fault::Unreadable, &format!("the document of {key}: {error}")))?;
            instances.insert(key.clone(), instance);
        }
        let lens = Lens { wanted: &|_, key| self.is_meant(key), view: &|instance| instance.map(Instance::write) };
        let one = std::slice::from_ref(arrival);
        let units = replay::fold(guest, &rules, stream, one, &mut instances, &lens).map_err(|broken| broken.why)?;
        let effects = units.iter().flat_map(|unit| &unit.effects).map(Outgoing::bytes).sum::<usize>();
        let changed = units.iter().filter(|unit| unit.changed);
        let changes = changed.map(|unit| unit.key.len() + unit.view.as_ref().map_or(0, Vec::len) + CHANGE_ROOM);
        self.check_size(effects + changes.sum::<usize>())?;
        let is_relevant = !units.is_empty();
        for unit in units.into_iter().filter(|unit| unit.changed) {
            *document = unit.view;
        }
        Ok(is_relevant)
    }
}
