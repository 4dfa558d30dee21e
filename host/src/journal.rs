//! The journal: one message decides one batch. In: a record. Out: its journal sequence, or the news that somebody else owns
//! the handler. The server's compare-and-set on the subject is the fence; nothing else in the system decides anything.
//! Never: rewrites a record; trims one whose documents are not in the bucket.

mod parks;

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Compression, Config, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, message::PublishMessage};
use bytes::Bytes;
use millstream_saga::Outgoing;
use serde::{Deserialize, Serialize};

use crate::direct_get;
use crate::names;
use crate::sandbox::Digest;
use crate::traces::Carried;
use crate::version;

pub use parks::{Park, ParkedUnit, Parking, Unparked};

/// Format of the records this version writes.
const FORMAT: u8 = 4;

/// The formats before it, which did not say what documents are made of, and the oldest not what is parked; they are still read.
const FORMAT_WITHOUT_MAKES: u8 = 3;
const FORMAT_WITHOUT_PARKING: u8 = 2;

/// Bytes of a message in the journal beside changes and effects, at most: headers, positions, counts, names.
pub(crate) const RECORD_ROOM: usize = 4096;

/// Bytes of a change in a record beside its key and value, at most.
pub(crate) const CHANGE_ROOM: usize = 32;

/// How long a commit may stay unanswered. Then the claim ends, and the last record tells what became of it.
const ACK_WITHIN: Duration = Duration::from_secs(2);

/// Records fetched in one request during recovery, and their bytes.
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 8 << 20;

/// Where a handler stands in one input stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The stream's name.
    pub stream: String,
    /// When the stream was created, nanoseconds since 1970: a stream made anew under the same name is another stream.
    pub created: i64,
    /// The last stream sequence that a record covers.
    pub sequence: u64,
}

/// What became of events since the generation began. `delivered` is the sum of the next five, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Events covered by records.
    pub delivered: u64,
    /// Events of which a unit changed something; for a projection that is every event with a unit.
    pub applied: u64,
    /// Events that touch no key.
    pub irrelevant: u64,
    /// Events that a saga passes by: they find no instance and its policy is to ignore them, were there before, or are timers that
    /// nobody waits for.
    pub ignored: u64,
    /// Events with a parked unit.
    pub parked: u64,
    /// Events that came after their deadline.
    pub expired: u64,
    /// Events that a stream dropped before they were decided; not part of `delivered`.
    pub lost: u64,
}

impl Counts {
    /// Adds a batch's outcomes.
    pub fn add(&mut self, more: &Self) {
        self.delivered += more.delivered;
        self.applied += more.applied;
        self.irrelevant += more.irrelevant;
        self.ignored += more.ignored;
        self.parked += more.parked;
        self.expired += more.expired;
        self.lost += more.lost;
    }

    /// Whether each event that was delivered has an outcome.
    #[must_use]
    pub fn add_up(&self) -> bool {
        self.delivered == self.applied + self.irrelevant + self.ignored + self.parked + self.expired
    }
}

/// A document after a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<'a> {
    /// The key, as the handler wrote it.
    pub key: &'a str,
    /// Stream sequence of the last event that touched it.
    pub sequence: u64,
    /// The document's bytes, or none for a deletion.
    #[serde(borrow, with = "serde_bytes")]
    pub value: Option<&'a [u8]>,
    /// Seconds that it stays in the bucket; none: until it changes.
    pub keep_seconds: Option<u64>,
}

/// What the record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A host took the handler; carries everything forward unchanged.
    Claim,
    /// A batch was decided.
    Batch,
    /// Nothing was decided; all effects are published, and nothing came after that.
    Rest,
    /// The generation stops here, all of it shown and published. Only a `Begin` can follow.
    Close,
    /// The generation goes on in another standing.
    Begin,
    /// Parked units of one key were decided after all.
    Redrive,
    /// Parked units of one key were given up by a person.
    Discard,
}

/// What a generation is to the rest of the world. The last record says it, so whoever wants to claim it as something else is
/// refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its documents are in the handler's bucket, its effects are published.
    #[default]
    Live,
    /// Its documents are in a bucket of its own, its effects are muted.
    Shadow,
    /// It waits at exact positions for what it will be next.
    Closed,
}

/// What the documents of a generation are. Only a module that makes the same can go on with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Makes {
    /// Instances of a saga; else a projection's documents.
    pub saga: bool,
    /// Their state version.
    pub state_version: u32,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Shadow => "a shadow",
            Self::Closed => "closed",
        })
    }
}

/// One journal message. The last one alone is enough to resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    pub(crate) format: u8,
    /// What the record is for.
    pub kind: Kind,
    /// What the generation is from here on.
    pub standing: Standing,
    /// Journal sequence of the record before it: other generations write to the same stream.
    pub previous: u64,
    /// The claim under which it was written.
    pub claim: u64,
    /// Name of the host that wrote it.
    pub host: &'a str,
    /// The module that decided.
    pub digest: [u8; 32],
    /// When, nanoseconds since 1970, by the host's clock. For people only.
    pub time: i64,
    /// All input streams.
    pub positions: Vec<Position>,
    /// Outcomes so far.
    pub counts: Counts,
    /// Documents of records up to this journal sequence are in the bucket.
    pub shown_through: u64,
    /// Effects of records up to this journal sequence are published.
    pub acted_through: u64,
    /// When the documents' bucket was created, nanoseconds since 1970: a bucket made anew lacks what was shown before.
    pub bucket: i64,
    /// Index into `positions` of the stream this batch came from.
    pub input: u16,
    /// Changed documents, each key once.
    #[serde(borrow)]
    pub changes: Vec<Change<'a>>,
    /// What is to be published, in order.
    pub effects: Vec<Outgoing>,
    /// Units that are set aside or taken up again. Stands behind all else, so that records without it can be read.
    #[serde(skip)]
    pub parking: Parking,
    /// What its documents are; none in records of formats that did not say it. Behind what is parked.
    #[serde(skip)]
    pub makes: Option<Makes>,
    /// The traces that effects belong to. Behind even that, and nothing where there are none: versions that do not know of it read
    /// the record without.
    #[serde(skip)]
    pub carried: Carried,
    /// Units that are set aside from here on, all in all: as many dead letters there must be. Behind the traces; where there are
    /// none, nothing.
    #[serde(skip)]
    pub in_line: u64,
}

impl<'a> Record<'a> {
    /// An empty record of this format.
    #[must_use]
    pub fn new(kind: Kind, claim: u64, host: &'a str, digest: Digest) -> Self {
        Self {
            format: FORMAT,
            kind,
            standing: Standing::Live,
            previous: 0,
            claim,
            host,
            digest: digest.0,
            time: 0,
            positions: Vec::new(),
            counts: Counts::default(),
            shown_through: 0,
            acted_through: 0,
            bucket: 0,
            input: 0,
            changes: Vec::new(),
            effects: Vec::new(),
            parking: Parking::default(),
            makes: None,
            carried: Carried::default(),
            in_line: 0,
        }
    }

    /// The bytes of the message.
    ///
    /// # Errors
    /// Only for want of memory.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let changes =
            self.changes.iter().map(|change| change.key.len() + change.value.map_or(0, <[u8]>::len) + CHANGE_ROOM);
        let effects = self.effects.iter().map(Outgoing::bytes);
        let parks = self.parking.parks.iter().map(Park::bytes);
        let bytes = changes.chain(effects).chain(parks).sum::<usize>() + self.carried.bytes() + RECORD_ROOM;
        let encoded = postcard::to_extend(self, Vec::with_capacity(bytes))
            .and_then(|buffer| postcard::to_extend(&self.parking, buffer))
            .and_then(|buffer| postcard::to_extend(&self.makes, buffer))
            .and_then(|buffer| match self.carried.is_empty() && self.in_line == 0 {
                true => Ok(buffer),
                false => postcard::to_extend(&self.carried, buffer),
            })
            .and_then(|buffer| match self.in_line {
                0 => Ok(buffer),
                units => postcard::to_extend(&units, buffer),
            });
        encoded.map(Bytes::from).map_err(|error| Error::Encode(error.to_string()))
    }

    /// Reads a message's bytes.
    ///
    /// # Errors
    /// A damaged record, or one of another format.
    pub fn decode(bytes: &'a [u8], sequence: u64) -> Result<Self, Error> {
        match bytes.first() {
            Some(&(FORMAT | FORMAT_WITHOUT_MAKES | FORMAT_WITHOUT_PARKING)) => {
                Self::read(bytes).map_err(|error| Error::Damaged { sequence, reason: error.to_string() })
            }
            other => Err(Error::Format { sequence, found: other.copied().unwrap_or_default() }),
        }
    }

    fn read(bytes: &'a [u8]) -> Result<Self, postcard::Error> {
        let (record, rest) = postcard::take_from_bytes::<Self>(bytes)?;
        if record.format == FORMAT_WITHOUT_PARKING {
            // Nothing was parked, and nothing is left to do for it.
            let parking = Parking { through: record.shown_through, ..Parking::default() };
            return Ok(Self { parking, ..record });
        }
        let (parking, rest) = postcard::take_from_bytes(rest)?;
        let (makes, rest) = match record.format {
            FORMAT_WITHOUT_MAKES => (None, rest),
            _ => postcard::take_from_bytes(rest)?,
        };
        let (carried, rest) = match rest.is_empty() {
            true => (Carried::default(), rest),
            false => postcard::take_from_bytes(rest)?,
        };
        let in_line = if rest.is_empty() { 0 } else { postcard::from_bytes(rest)? };
        Ok(Self { parking, makes, carried, in_line, ..record })
    }
}

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another host wrote to the journal after us.
    #[error("fenced: another host claimed the handler (journal subject moved past sequence {0})")]
    Fenced(u64),
    /// A promotion made something else of the generation.
    #[error("fenced: the generation is {found} since journal sequence {sequence}, not {wanted}")]
    Standing {
        /// Journal sequence of the last record.
        sequence: u64,
        /// What it is.
        found: Standing,
        /// What it should be.
        wanted: Standing,
    },
    /// The documents are of another kind or state version.
    #[error("{}", version::others_documents(*.found, *.module))]
    Makes {
        /// What they are.
        found: Makes,
        /// What the module would make.
        module: Makes,
    },
    /// The server did not say what became of a record, or is away. The last record tells, at the next claim.
    #[error("journal not reachable: {0}")]
    Unreachable(String),
    /// A record larger than the server takes.
    #[error("record of {0} bytes exceeds the server's max_payload")]
    TooLarge(usize),
    /// A stream of that name is somebody else's.
    #[error(
        "stream {0} is already there and was not made by Millstream for this handler; hint: deploy under another name"
    )]
    NotOurs(String),
    /// The server refused: full, or no permission. It is asked again, until somebody has mended that.
    #[error("journal refused: {0}")]
    Refused(String),
    /// Not readable.
    #[error("journal record {sequence} is damaged: {reason}")]
    Damaged {
        /// Journal sequence.
        sequence: u64,
        /// Decoder's account.
        reason: String,
    },
    /// Removed by somebody else before its documents were shown.
    #[error(
        "journal record {sequence} is gone, and its documents may not be in the bucket; \
        hint: to build the documents anew, delete journal and bucket and start again"
    )]
    Gone {
        /// Journal sequence.
        sequence: u64,
    },
    /// The bucket of this handler is not the one that the documents were shown in.
    #[error(
        "the handler's bucket was deleted and made anew, so documents that the journal takes for shown are missing; \
        hint: if it was restored from a backup, go on with `millstream adopt {0}`; else build them anew: `nats stream rm -f {journal}` \
        and start again; it is the journal of all generations, so abandon those beside the live one first",
        journal = names::journal_stream(.0)
    )]
    OtherBucket(String),
    /// Written by another version.
    #[error("journal record {sequence} has format {found}; this version reads format {FORMAT}")]
    Format {
        /// Journal sequence.
        sequence: u64,
        /// The format byte.
        found: u8,
    },
    /// Not writable.
    #[error("journal record could not be encoded: {0}")]
    Encode(String),
}

/// The journal of one handler's generation.
#[derive(Clone)]
pub struct Journal {
    jetstream: Context,
    stream: Stream,
    handler: String,
    subject: String,
}

impl Journal {
    /// Opens the journal of the first generation, making its stream when it is missing.
    ///
    /// # Errors
    /// A stream of that name that is not ours, or a server that refuses.
    pub async fn open(jetstream: &Context, handler: &str, replicas: usize) -> Result<Self, Error> {
        let config = Config {
            name: names::journal_stream(handler),
            subjects: vec![names::journal_subjects(handler)],
            description: Some(format!("Decisions of the Millstream handler {handler}")),
            num_replicas: replicas,
            allow_direct: true,
            compression: Some(Compression::S2),
            // Records are fenced by sequence; a table of message ids would only cost memory.
            duplicate_window: Duration::from_secs(1),
            metadata: names::ours(handler),
            ..Config::default()
        };
        let stream = jetstream.get_or_create_stream(config).await.map_err(|error| Error::Refused(error.to_string()))?;
        let info = stream.cached_info();
        if !names::is_ours(&info.config.metadata, handler) {
            return Err(Error::NotOurs(info.config.name.clone()));
        }
        let (handler, subject) = (handler.to_owned(), names::journal_subject(handler, 1));
        Ok(Self { jetstream: jetstream.clone(), stream, handler, subject })
    }

    /// The journal of this generation.
    #[must_use]
    pub fn of(self, generation: u32) -> Self {
        let subject = names::journal_subject(&self.handler, generation);
        Self { subject, ..self }
    }

    /// The last record, from the stream's leader, with its journal sequence.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn last(&self) -> Result<Option<(u64, Bytes)>, Error> {
        match self.stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => Ok(Some((message.sequence, message.payload))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(Error::Unreachable(error.to_string())),
        }
    }

    /// Writes a record if `last` is still the subject's last sequence.
    ///
    /// # Errors
    /// `Fenced` when it is not; `Unreachable` when the outcome is unknown.
    pub async fn append(&self, last: u64, record: Bytes) -> Result<u64, Error> {
        let size = record.len();
        let publish = PublishMessage::build().payload(record).expected_last_subject_sequence(last);
        let failed = |error: async_nats::jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::WrongLastSequence => Error::Fenced(last),
            PublishErrorKind::MaxPayloadExceeded => Error::TooLarge(size),
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::StreamNotFound => {
                Error::Unreachable(error.to_string())
            }
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::MaxAckPending | PublishErrorKind::Other => {
                Error::Refused(error.to_string())
            }
        };
        let sent = async {
            let ack = self.jetstream.send_publish(self.subject.clone(), publish).await?;
            ack.await
        };
        let answer = tokio::time::timeout(ACK_WITHIN, sent).await;
        let answer = answer.map_err(|_| Error::Unreachable(format!("no answer to a record within {ACK_WITHIN:?}")))?;
        Ok(answer.map_err(failed)?.sequence)
    }

    /// Records after `from` up to and including `through`, in order.
    ///
    /// # Errors
    /// When the server does not answer, or a record in the range is gone.
    pub async fn read(&self, from: u64, through: u64) -> Result<Vec<(u64, Bytes)>, Error> {
        let mut records = Vec::new();
        let (mut before, mut next) = (from, from + 1);
        while next <= through {
            let batch = direct_get::range(
                &self.jetstream,
                &names::stream_of(&self.stream),
                &self.subject,
                next,
                READ_RECORDS,
                READ_BYTES,
            )
            .await
            .map_err(|error| Error::Unreachable(error.to_string()))?;
            if batch.is_empty() {
                return Err(Error::Unreachable(format!("records from {next} to {through} are not there")));
            }
            for (sequence, record) in batch {
                // Each record names the one before it, so one that is skipped was removed.
                let previous = Record::decode(&record, sequence)?.previous;
                if previous > before {
                    return Err(Error::Gone { sequence: previous });
                }
                (before, next) = (sequence, sequence + 1);
                records.push((sequence, record));
            }
        }
        records.retain(|(sequence, _)| *sequence <= through);
        Ok(records)
    }

    /// What the records that are still there, up to this one, say was taken up or given up, each with its journal sequence.
    ///
    /// # Errors
    /// When the server does not answer, or a record cannot be read.
    pub(crate) async fn unparked(&self, through: u64) -> Result<Vec<(u64, Unparked)>, Error> {
        let mut unparked = Vec::new();
        self.look_back(1, through, |sequence, record| {
            unparked.extend(record.parking.unparked.map(|unparked| (sequence, unparked)));
        })
        .await?;
        Ok(unparked)
    }

    /// Shows the records that are still there from one up to another, in order.
    ///
    /// # Errors
    /// When the server does not answer, or a record cannot be read.
    pub(crate) async fn look_back(
        &self,
        from: u64,
        through: u64,
        mut see: impl FnMut(u64, Record<'_>),
    ) -> Result<(), Error> {
        let mut next = from;
        let stream = names::stream_of(&self.stream);
        while next <= through {
            let records =
                direct_get::range(&self.jetstream, &stream, &self.subject, next, READ_RECORDS, READ_BYTES).await;
            let records = records.map_err(|error| Error::Unreachable(error.to_string()))?;
            let Some((last, _)) = records.last() else {
                return Err(Error::Unreachable(format!("records from {next} to {through} are not there")));
            };
            next = last + 1;
            for (sequence, record) in records.into_iter().filter(|(sequence, _)| *sequence <= through) {
                see(sequence, Record::decode(&record, sequence)?);
            }
        }
        Ok(())
    }

    /// Whether the last record was written under this claim.
    ///
    /// # Errors
    /// When the server does not answer, or the record cannot be read.
    pub(crate) async fn belongs_to(&self, claim: u64) -> Result<bool, Error> {
        match self.last().await? {
            Some((sequence, bytes)) => Ok(Record::decode(&bytes, sequence)?.claim == claim),
            None => Ok(false),
        }
    }

    /// Removes the generation's records, all of them.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn purge(&self) -> Result<(), Error> {
        let purge = self.stream.purge().filter(&self.subject);
        purge.await.map(drop).map_err(|error| Error::Unreachable(error.to_string()))
    }

    /// Removes records below `keep_from`.
    ///
    /// # Errors
    /// When the server does not answer; trimming is then tried again later.
    pub async fn trim(&self, keep_from: u64) -> Result<(), Error> {
        // To the server, a purge below sequence 0 is a purge of everything.
        if keep_from <= 1 {
            return Ok(());
        }
        let purge = self.stream.purge().filter(&self.subject).sequence(keep_from);
        purge.await.map(drop).map_err(|error| Error::Unreachable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_saga::Message;

    #[test]
    fn record_round_trips_and_foreign_formats_are_refused() {
        let mut record = Record::new(Kind::Batch, 7, "host-a", Digest([3; 32]));
        record.positions = vec![Position { stream: "ORDERS".to_owned(), created: 5, sequence: 99 }];
        record.changes = vec![
            Change { key: "C42", sequence: 99, value: Some(b"{}"), keep_seconds: Some(60) },
            Change { key: "C43", sequence: 98, value: None, keep_seconds: None },
        ];
        let bytes = record.encode().unwrap();
        assert_eq!(Record::decode(&bytes, 1).unwrap(), record);
        assert!(matches!(Record::decode(&[9, 9], 4), Err(Error::Format { sequence: 4, found: 9 })));
        assert!(matches!(Record::decode(&bytes[..bytes.len() - 1], 4), Err(Error::Damaged { sequence: 4, .. })));
    }

    #[test]
    fn records_say_how_many_units_are_set_aside_and_those_before_are_read_without() {
        let mut record = Record::new(Kind::Batch, 7, "host-a", Digest([3; 32]));
        let silent = record.encode().unwrap();
        record.in_line = 300;
        let bytes = record.encode().unwrap();
        assert_eq!(Record::decode(&bytes, 1).unwrap(), record);
        assert_eq!(Record::decode(&silent, 1).unwrap().in_line, 0);
    }

    #[test]
    fn records_say_what_documents_are_and_those_before_are_read_without() {
        let mut record = Record::new(Kind::Batch, 7, "host-a", Digest([3; 32]));
        let silent = record.encode().unwrap();
        record.makes = Some(Makes { saga: true, state_version: 300 });
        let bytes = record.encode().unwrap();
        assert_eq!(Record::decode(&bytes, 1).unwrap(), record);
        // As the format before wrote it: nothing behind what is parked.
        let mut before = silent.to_vec();
        before[0] = FORMAT_WITHOUT_MAKES;
        assert_eq!(before.pop(), Some(0), "no makes");
        let read = Record::decode(&before, 1).unwrap();
        assert_eq!((read.makes, read.claim, read.host), (None, 7, "host-a"));
    }

    #[test]
    fn traces_stand_behind_all_else_so_that_records_without_them_are_as_before() {
        let mut record = Record::new(Kind::Batch, 7, "host-a", Digest([3; 32]));
        let before = record.encode().unwrap();
        assert!(Record::decode(&before, 1).unwrap().carried.is_empty());
        record.carried = Carried::of_one(2, crate::traces::Context::begin("root", |_| true));
        let bytes = record.encode().unwrap();
        assert_eq!(bytes[..before.len()], before, "whoever does not know of traces reads the same");
        assert_eq!(Record::decode(&bytes, 1).unwrap(), record);
        assert!(matches!(Record::decode(&bytes[..bytes.len() - 1], 4), Err(Error::Damaged { sequence: 4, .. })));
    }

    #[test]
    fn no_change_and_no_effect_takes_more_of_a_record_than_was_counted_for_it() {
        let text = |length: usize| "x".repeat(length);
        for length in [0, 1, 127, 128, 20_000, 1 << 21] {
            let change = Change {
                key: &text(length),
                sequence: u64::MAX,
                value: Some(&vec![7; length]),
                keep_seconds: Some(u64::MAX),
            };
            let bytes = postcard::to_stdvec(&change).unwrap().len();
            assert!(bytes <= 2 * length + CHANGE_ROOM, "{bytes} bytes for a change of {length}");
            let message = Message {
                id: text(length),
                subject: text(length),
                event_type: text(length),
                command: true,
                payload: vec![7; length],
                key: text(length),
                correlation: text(length),
                causation: text(length),
                step: Some(text(length)),
                attempt: u32::MAX,
                depth: u32::MAX,
                within_ms: Some(u64::MAX),
            };
            let (id, body, correlation, causation) = (text(length), vec![7; length], text(length), text(length));
            let effects = [
                Outgoing::Message(message),
                Outgoing::Timer {
                    id: id.clone(),
                    due: i64::MIN,
                    body: body.clone(),
                    correlation: correlation.clone(),
                    causation: causation.clone(),
                },
                Outgoing::Wait { id: id.clone(), after_ms: u64::MAX, body, correlation, causation },
                Outgoing::Cancel { id },
            ];
            for (effect, texts) in effects.iter().zip([8, 4, 4, 1]) {
                let (bytes, counted) = (postcard::to_stdvec(effect).unwrap().len(), effect.bytes());
                assert!(bytes <= counted, "{bytes} bytes, {counted} counted for texts of {length}");
                assert!(counted <= texts * length + 64, "{counted} counted for {texts} texts of {length}");
            }
        }
    }
}
