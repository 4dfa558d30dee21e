//! Timers: JetStream's scheduled messages (ADR-51) in one stream of ours. In: a timer. Out: the message that sets it, and later,
//! on the handler's subject for what is due, an event with the timer's id and due time. Never: decides whether a timer still
//! matters; the instance does.
//!
//! What the server does (2.15; each sentence has a test, or is read in its source):
//! - `Nats-Schedule: @at <RFC 3339>` takes fractions of a second. It looks every 250 ms, so that is how late a timer can be on a
//!   quiet server. A time in the past is taken and fires with the next look; the host publishes such a timer as due instead.
//! - `Nats-Schedule-Target` must be another literal subject of the same stream. A schedule replaces the one on its own subject
//!   (the server adds a roll-up), so setting a timer again is harmless until it has fired.
//! - The fired message keeps body and headers but `Nats-Schedule*`, `Nats-Expected-*`, `Nats-Msg-Id`, `Nats-TTL` and
//!   `Nats-Rollup`; it gains `Nats-Scheduler` (the schedule's subject) and `Nats-Schedule-Next: purge`; the schedule is gone.
//!   So the timer's id is looked for in `ce-id`.
//! - A message on another subject with these two headers cancels, at the rate of a publish. It is stored like any message, so it
//!   carries a roll-up: one stays per handler. 2.12 does not know this: what was cancelled fires, and the instance passes it by.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_MESSAGE_ID, NATS_ROLLUP, NATS_SCHEDULE, NATS_SCHEDULE_NEXT, NATS_SCHEDULE_TARGET, NATS_SCHEDULER,
};
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, StorageType, Stream};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;
use crate::direct_get;
use crate::journal::Record;
use crate::names;
use crate::outbox::Outbox;
use crate::publication::{Outline, Publication};

/// Event type of a timer that is due.
pub use millstream_saga::TIMER_TYPE as TYPE;

/// Fired timers are removed no more often: a purge looks through the stream.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What can go wrong with the stream of timers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream of this name is somebody else's.
    #[error(
        "stream {0} is already there and was not made by Millstream for timers; \
        hint: rename or remove it (`nats stream rm {0}`), Millstream makes its own"
    )]
    NotOurs(String),
    /// Ours by its mark, but somebody changed what timers need.
    #[error(
        "stream {0} does not hold {1} with message schedules allowed; hint: set both again with `nats stream edit {0}`"
    )]
    Altered(String, String),
    /// The server refused, or is away.
    #[error("stream of timers: {0}")]
    Refused(String),
}

/// Opens the stream of timers, making it when it is missing.
///
/// # Errors
/// A stream of that name that is not ours, or a server that refuses.
pub async fn open(jetstream: &Context, replicas: usize) -> Result<Stream, Error> {
    let config = Config {
        name: names::TIMERS.to_owned(),
        subjects: vec![names::timer_subjects()],
        description: Some("Timers of Millstream's handlers".to_owned()),
        allow_message_schedules: true,
        allow_rollup: true,
        allow_direct: true,
        storage: StorageType::File,
        num_replicas: replicas,
        metadata: names::ours(names::TIMERS),
        ..Config::default()
    };
    let stream = jetstream.get_or_create_stream(config).await.map_err(|error| Error::Refused(error.to_string()))?;
    let config = &stream.cached_info().config;
    if !names::is_ours(&config.metadata, names::TIMERS) {
        return Err(Error::NotOurs(names::TIMERS.to_owned()));
    }
    if !config.allow_message_schedules || !config.subjects.contains(&names::timer_subjects()) {
        return Err(Error::Altered(names::TIMERS.to_owned(), names::timer_subjects()));
    }
    Ok(stream)
}

/// Removes a handler's fired timers up to this stream sequence: the handler has decided them.
///
/// # Errors
/// When the server does not answer; the next purge does the work.
pub async fn purge_due(stream: &Stream, handler: &str, through: u64) -> Result<(), Error> {
    // To the server, a purge below sequence 0 is a purge of everything.
    if through == 0 {
        return Ok(());
    }
    let purge = stream.purge().filter(names::timer_due_subject(handler)).sequence(through + 1);
    purge.await.map(drop).map_err(|error| Error::Refused(error.to_string()))
}

/// Removes a handler's fired timers while its claim lasts: those whose record is in the journal, once all effects up to that
/// record are published. One that was removed and is set again, by a recovery that cannot know, finds nobody who waits for it.
pub struct Sweeper {
    decided: watch::Sender<Decided>,
    task: JoinHandle<()>,
}

/// How far a handler's timers are decided.
#[derive(Clone, Copy, Debug, Default)]
struct Decided {
    /// Journal sequence of the record that says so.
    record: u64,
    /// Sequence in the stream of timers.
    position: u64,
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sweeper {
    /// Sweeps for this handler, whose effects this outbox publishes.
    #[must_use]
    pub fn start(jetstream: &Context, handler: &str, outbox: Arc<Outbox>) -> Self {
        let (decided, seen) = watch::channel(Decided::default());
        let task = tokio::spawn(sweep(jetstream.clone(), handler.to_owned(), outbox, seen));
        Self { decided, task }
    }

    /// A record that is in the journal decides timers up to this position.
    pub fn decided(&self, record: u64, position: u64) {
        self.decided.send_if_modified(|decided| {
            let moved = decided.position != position;
            if moved {
                *decided = Decided { record, position };
            }
            moved
        });
    }
}

async fn sweep(jetstream: Context, handler: String, outbox: Arc<Outbox>, mut seen: watch::Receiver<Decided>) {
    while seen.changed().await.is_ok() {
        let Decided { record, position } = *seen.borrow_and_update();
        outbox.has_acted(record).await;
        let purged = async {
            let decided = decided_by_all(&jetstream, &handler).await?.min(position);
            let stream =
                jetstream.get_stream(names::TIMERS).await.map_err(|error| Error::Refused(error.to_string()))?;
            purge_due(&stream, &handler, decided).await
        };
        let purged = purged.await;
        if let Err(error) = purged {
            tracing::warn!(handler, %error, "fired timers could not be removed; they go later");
            seen.mark_changed();
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

/// How far every generation of the handler has decided fired timers: a shadow gets them from the same stream.
async fn decided_by_all(jetstream: &Context, handler: &str) -> Result<u64, Error> {
    let refused = |reason: String| Error::Refused(reason);
    let (stream, subjects) = (names::journal_stream(handler), [names::journal_generations(handler)]);
    let (records, _) =
        direct_get::last_of(jetstream, &stream, &subjects).await.map_err(|error| refused(error.to_string()))?;
    let mut lowest = u64::MAX;
    for record in &records {
        let record = Record::decode(&record.payload, record.sequence).map_err(|error| refused(error.to_string()))?;
        let timers = record.positions.iter().find(|position| position.stream == names::TIMERS);
        lowest = lowest.min(timers.map_or(0, |timers| timers.sequence));
    }
    Ok(lowest)
}

/// A timer to set.
pub struct Timer<'a> {
    /// Unique per timer.
    pub id: &'a str,
    /// Nanoseconds since 1970.
    pub due: i64,
    /// JSON for whoever judges it when it is due.
    pub body: Bytes,
    /// The root of the chain of events.
    pub correlation: &'a str,
    /// The event that set it.
    pub causation: &'a str,
}

impl Timer<'_> {
    /// The message that sets it; one that is due by `now` comes at once, stamped with its due time like any other.
    #[must_use]
    pub fn publication(&self, handler: &str, now: i64) -> Publication {
        let outline = Outline {
            id: self.id,
            event_type: TYPE,
            handler,
            aggregate: "",
            time: self.due,
            correlation: self.correlation,
            causation: self.causation,
        };
        let mut headers = outline.headers();
        headers.insert(NATS_MESSAGE_ID, self.id);
        let due_subject = names::timer_due_subject(handler);
        let subject = if self.due <= now {
            due_subject
        } else {
            headers.insert(NATS_SCHEDULE, format!("@at {}", clock::text(self.due)));
            headers.insert(NATS_SCHEDULE_TARGET, due_subject);
            names::timer_set_subject(handler, self.id)
        };
        Publication { subject, headers, payload: self.body.clone() }
    }
}

/// The message that takes a timer back; one that has fired or never was does no harm. Without a message id: it may come again.
#[must_use]
pub fn cancel(handler: &str, id: &str) -> Publication {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_SCHEDULER, names::timer_set_subject(handler, id));
    headers.insert(NATS_SCHEDULE_NEXT, "purge");
    headers.insert(NATS_ROLLUP, "sub");
    Publication { subject: names::timer_cancel_subject(handler), headers, payload: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::jetstream::{self, stream::LastRawMessageErrorKind};
    use futures::StreamExt as _;

    use super::*;
    use crate::acks::{Acks, Answer, Error as AckError};
    use crate::clock::now;
    use crate::envelope::{Arrival, Envelope, decode};
    use crate::publication::pairs;
    use crate::server::Server;

    const HANDLER: &str = "h";
    const WITHIN: Duration = Duration::from_secs(20);

    struct World {
        _server: Server,
        jetstream: Context,
        stream: Stream,
        acks: Acks,
    }

    async fn world() -> World {
        let server = Server::builder().start().await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let jetstream = jetstream::new(client.clone());
        let stream = open(&jetstream, 1).await.unwrap();
        World { _server: server, jetstream, stream, acks: Acks::open(&client).await.unwrap() }
    }

    fn timer(id: &str, due: i64) -> Timer<'_> {
        let body = format!(r#"{{"key":"C 42","id":"{id}"}}"#).into();
        Timer { id, due, body, correlation: "root", causation: "e1" }
    }

    impl World {
        async fn publish(&self, publication: Publication) -> Answer {
            self.acks.publish(publication).await.unwrap()
        }

        async fn set(&self, id: &str, due: i64) {
            self.publish(timer(id, due).publication(HANDLER, now())).await.await.unwrap();
        }

        /// Messages on what is due, with the time at which each was stored, as soon as there are so many.
        async fn due(&self, count: usize) -> Vec<(async_nats::Message, i64)> {
            let config = jetstream::consumer::pull::Config {
                filter_subject: names::timer_due_subject(HANDLER),
                ..Default::default()
            };
            let consumer = self.stream.create_consumer(config).await.unwrap();
            let mut messages = consumer.messages().await.unwrap();
            let mut due = Vec::new();
            while due.len() < count {
                let next = tokio::time::timeout(WITHIN, messages.next()).await;
                let message = next.expect("a timer did not fire").unwrap().unwrap();
                let stored = message.info().unwrap().published.unix_timestamp_nanos();
                due.push((message.message, i64::try_from(stored).unwrap()));
            }
            due
        }

        async fn subjects(&self) -> Vec<String> {
            let subjects = self.stream.info_with_subjects(">").await.unwrap();
            let mut names: Vec<String> = subjects.map(|subject| subject.unwrap().0).collect().await;
            names.sort();
            names
        }
    }

    fn envelope<'a>(message: &'a async_nats::Message, arrival: &'a mut Option<Arrival<'a>>) -> Envelope<'a> {
        let (subject, payload) = (message.subject.as_str(), message.payload.as_ref());
        let arrival = arrival.insert(Arrival { stream: names::TIMERS, sequence: 1, stored: 1, subject, payload });
        decode(arrival, pairs(message.headers.as_ref().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn a_timer_fires_once_not_early_and_with_its_whole_envelope() {
        let world = world().await;
        let due = now() + 300_000_001;
        world.set("h.0a.deadline", due).await;
        // Set again, as a recovery does: known by its id, and were it not, it would replace itself.
        world.set("h.0a.deadline", due).await;
        let mut forgotten = timer("h.0a.deadline", due).publication(HANDLER, now());
        forgotten.headers.insert(NATS_MESSAGE_ID, "other");
        world.publish(forgotten).await.await.unwrap();
        world.set("h.0b", due + 1).await;
        let fired = world.due(2).await;
        let (message, stored) = &fired[0];
        assert!(*stored >= due, "fired {} ns early", due - stored);
        let mut place = None;
        let event = envelope(message, &mut place);
        assert_eq!((event.id.as_ref(), event.event_type.as_ref(), event.time), ("h.0a.deadline", TYPE, due));
        assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("root", "e1"));
        assert_eq!(event.payload.as_ref(), br#"{"key":"C 42","id":"h.0a.deadline"}"#);
        let headers = message.headers.as_ref().unwrap();
        assert!(headers.get(NATS_MESSAGE_ID).is_none() && headers.get(NATS_SCHEDULE).is_none());
        assert_eq!(headers.get(NATS_SCHEDULER).unwrap().as_str(), "millstream.timers.h.set.h.0a.deadline");
        assert_eq!(fired[1].0.headers.as_ref().unwrap().get("ce-id").unwrap().as_str(), "h.0b");
        assert_eq!(world.subjects().await, ["millstream.timers.h.due"], "schedules that fired are gone");
    }

    #[tokio::test]
    async fn a_cancelled_timer_never_fires_and_a_cancellation_may_come_again() {
        let world = world().await;
        let due = now() + 400_000_000;
        let ids: Vec<String> = (0..100).map(|number| format!("h.{number}")).collect();
        for id in &ids {
            world.set(id, due).await;
        }
        for id in ids.iter().filter(|id| *id != "h.50") {
            world.publish(cancel(HANDLER, id)).await.await.unwrap();
            world.publish(cancel(HANDLER, id)).await.await.unwrap();
        }
        // Fires after all that were cancelled would have.
        world.set("h.last", due + 400_000_000).await;
        world.publish(cancel(HANDLER, "h.never.was")).await.await.unwrap();
        let fired = world.due(2).await;
        let id = |at: usize| fired[at].0.headers.as_ref().unwrap().get("ce-id").unwrap().as_str();
        assert_eq!((id(0), id(1)), ("h.50", "h.last"));
        assert_eq!(world.subjects().await, ["millstream.timers.h.cancel", "millstream.timers.h.due"]);
        assert_eq!(world.stream.get_info().await.unwrap().state.messages, 3, "one cancellation stays");
    }

    #[tokio::test]
    async fn a_timer_of_the_past_comes_at_once_with_its_due_time() {
        let world = world().await;
        let due = now() - 3_600_000_000_000;
        world.set("h.1", due).await;
        let last = world.stream.get_last_raw_message_by_subject(&names::timer_due_subject(HANDLER)).await.unwrap();
        assert_eq!(last.headers.get("ce-time").unwrap().as_str(), clock::text(due));
        world.set("h.1", due).await;
        assert_eq!(world.stream.get_info().await.unwrap().state.messages, 1, "known by its id");
        // Set while it was ahead, and again by a recovery when it is past: still once.
        let ahead = timer("h.2", now() + 200_000_000).publication(HANDLER, now());
        world.publish(ahead).await.await.unwrap();
        let again = timer("h.2", due).publication(HANDLER, now());
        assert!(world.publish(again).await.await.unwrap().duplicate);
        let fired = world.due(2).await;
        assert_eq!(fired[1].0.headers.as_ref().unwrap().get("ce-id").unwrap().as_str(), "h.2");
        // What the server does with a schedule in the past, were one to come through.
        let late = timer("h.3", due).publication(HANDLER, due - 1);
        assert!(late.subject.contains(".set."));
        world.publish(late).await.await.unwrap();
        let fired = world.due(3).await;
        let mut place = None;
        assert_eq!(envelope(&fired[2].0, &mut place).time, due);
    }

    #[tokio::test]
    async fn decided_timers_are_purged_and_no_others() {
        let world = world().await;
        let ids: Vec<String> = (0..5).map(|number| format!("h.{number}")).collect();
        for id in &ids {
            world.set(id, 1).await;
        }
        world.set("h.later", now() + 3_600_000_000_000).await;
        purge_due(&world.stream, HANDLER, 0).await.unwrap();
        assert_eq!(world.stream.get_info().await.unwrap().state.messages, 6);
        purge_due(&world.stream, "other", 6).await.unwrap();
        purge_due(&world.stream, HANDLER, 3).await.unwrap();
        let left = world.stream.get_info().await.unwrap().state;
        assert_eq!((left.messages, left.first_sequence), (3, 4));
    }

    #[tokio::test]
    async fn the_server_refuses_targets_elsewhere_and_times_it_cannot_read() {
        let world = world().await;
        let refused = async |name: async_nats::header::HeaderName, value: &str| {
            let mut wrong = timer("h.1", now() + 1_000_000_000).publication(HANDLER, now());
            wrong.headers.insert(name, value);
            match world.publish(wrong).await.await {
                Err(AckError::Refused { code, .. }) => code,
                other => panic!("{value}: {other:?}"),
            }
        };
        assert_eq!(refused(NATS_SCHEDULE_TARGET, "orders.placed").await, 10190);
        assert_eq!(refused(NATS_SCHEDULE_TARGET, "millstream.timers.h.set.h.1").await, 10190);
        assert_eq!(refused(NATS_SCHEDULE_TARGET, "millstream.timers.*.due").await, 10190);
        assert_eq!(refused(NATS_SCHEDULE, "@at tomorrow").await, 10189);
    }

    #[tokio::test]
    async fn a_stream_of_that_name_that_is_not_ours_is_refused() {
        let world = world().await;
        open(&world.jetstream, 1).await.unwrap();
        let mut config = world.stream.cached_info().config.clone();
        config.subjects.push("more".to_owned());
        config.metadata.clear();
        world.jetstream.update_stream(&config).await.unwrap();
        let error = open(&world.jetstream, 1).await.unwrap_err();
        assert!(matches!(error, Error::NotOurs(_)) && error.to_string().contains("hint:"));
        config.metadata = names::ours(names::TIMERS);
        config.subjects = vec!["elsewhere".to_owned()];
        world.jetstream.update_stream(&config).await.unwrap();
        assert!(matches!(open(&world.jetstream, 1).await, Err(Error::Altered(..))));
        let missing = world.stream.get_last_raw_message_by_subject("elsewhere").await.unwrap_err();
        assert_eq!(missing.kind(), LastRawMessageErrorKind::NoMessageFound);
    }
}
