//! The step after a commit: the effects of a record are published. In: effects of committed records, in their order. Out:
//! messages with whole envelopes, schedules for timers, and the journal sequence up to which all of it is stored
//! (`acted_through`). Never: decides; gives up an effect; lets one subject that nobody holds stop the others.
//!
//! Once each: an effect's id is its message id, so a stream takes it once within its duplicate window. What may be older than half
//! that window is looked for in the stream before it is sent, after a recovery, a pause or a long failure alike.
//!
//! Fenced: an owner may publish what it committed, whoever owns the handler by then: the heir publishes the same under the same
//! ids. Only where the window has passed would that be twice. So when more time has passed since ownership was proved than a
//! quarter of the window, or a second, the journal is asked (`still_ours`) before anything leaves.
//!
//! What remains: a process that stops, or a connection that stalls, between that question and the server's reading of the bytes,
//! for longer than half the window, while an heir publishes the same effect and the window passes for his copy as well; a stream
//! whose window is made shorter while this runs; a work queue, whose consumed messages leave no trace, if the host dies within a
//! second of them and comes back after the window; a command whose time to live has passed before a recovery looks; clocks of host
//! and servers further apart than `SKEW_NANOSECONDS`.

mod deferred;
mod queue;
mod rendering;
mod stamp;
mod targets;
mod turns;

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::Context;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use millstream_saga::Outgoing;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::acks::{self, Ack, Acks, Answer};
use crate::crash;
use crate::publication::Publication;
use queue::{Effect, Queue, Step};
use targets::{Target, Targets};

pub use stamp::Stamp;

/// What is looked for may have been stored so long before the record, by the server's clock or ours.
const SKEW_NANOSECONDS: i64 = 10_000_000_000;

/// Ownership is proved again after this at the latest.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looking for ids takes no longer.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// While the connection is down, or the journal does not answer.
const WAIT: Duration = Duration::from_millis(50);

/// Effects listed that cannot be delivered.
const LISTED: usize = 100;

/// Bounds of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Effects committed and not published; the pipeline waits above this.
    pub queued_effects: usize,
    /// Bytes of these effects; the pipeline waits above this.
    pub queued_bytes: usize,
    /// Effects on the way at once. Enough to hide a round trip, few enough not to fill the server's queue.
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queued_effects: 10_000, queued_bytes: 64 << 20, in_flight: 512 }
    }
}

/// Why nothing more is published under this claim. Nothing is lost; the journal has it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another host owns the handler.
    #[error("fenced: another host claimed the handler before its effects were published")]
    Fenced,
    /// The connection was closed for good.
    #[error("effects cannot be published: {0}")]
    Unreachable(String),
}

/// An effect that nobody takes at present.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Undelivered {
    /// The instance that sends it, or the timer's id.
    pub key: String,
    /// Where it should go.
    pub subject: String,
    /// Its id.
    pub id: String,
    /// Why it does not.
    pub reason: String,
}

/// What became of effects under this claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored by this outbox.
    pub published: u64,
    /// Already in their stream, by its account or by looking.
    pub known: u64,
    /// Tries that failed; each is tried again.
    pub failed: u64,
}

/// The effects of one handler under one claim.
pub struct Outbox {
    jetstream: Context,
    handler: String,
    limits: Limits,
    targets: Targets,
    queue: Mutex<Queue>,
    counts: Mutex<Counts>,
    acted_through: AtomicU64,
    /// When the handler was known to be ours.
    owned: Mutex<Option<Stamp>>,
    arrived: Notify,
    /// `acted_through` has moved: there may be room.
    pub acted: Notify,
}

impl Outbox {
    /// An outbox for what comes after this journal sequence.
    #[must_use]
    pub fn new(jetstream: &Context, handler: &str, acted_through: u64, limits: Limits) -> Self {
        Self {
            jetstream: jetstream.clone(),
            handler: handler.to_owned(),
            limits,
            targets: Targets::new(jetstream.clone()),
            queue: Mutex::new(Queue::new(handler, acted_through)),
            counts: Mutex::default(),
            acted_through: AtomicU64::new(acted_through),
            owned: Mutex::default(),
            arrived: Notify::new(),
            acted: Notify::new(),
        }
    }

    /// Takes the effects of a record that was just committed, or none. `sent` is the moment before the record was sent: a process
    /// that stood still before it read the acknowledgement must not take itself for the owner.
    pub fn publish(&self, journal: u64, sent: Stamp, outgoing: Vec<Outgoing>) {
        *lock(&self.owned) = Some(sent);
        self.push(journal, sent, outgoing);
    }

    /// Takes the effects of a record that an earlier owner committed, stored at this time (nanoseconds since 1970).
    pub fn republish(&self, journal: u64, stored: i64, outgoing: Vec<Outgoing>) {
        self.push(journal, Stamp::stored(stored), outgoing);
    }

    /// The effects of records up to this journal sequence are stored.
    #[must_use]
    pub fn acted_through(&self) -> u64 {
        self.acted_through.load(Ordering::Acquire)
    }

    /// Waits until the effects of records up to this journal sequence are stored.
    pub async fn has_acted(&self, through: u64) {
        loop {
            let acted = self.acted.notified();
            if self.acted_through() >= through {
                return;
            }
            acted.await;
        }
    }

    /// Effects that nobody takes at present: how many, and the first hundred.
    #[must_use]
    pub fn undelivered(&self) -> (usize, Vec<Undelivered>) {
        lock(&self.queue).undelivered(LISTED)
    }

    /// What became of effects so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Sets every deadline at once from now on: the host is about to stop, and leaves no more behind than it must.
    pub fn hurry(&self) {
        lock(&self.queue).hurry();
        self.arrived.notify_one();
    }

    /// True while the queue is full: whoever decides must wait, so that what is decided and not published stays bounded.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let queue = lock(&self.queue);
        queue.effects >= self.limits.queued_effects || queue.bytes >= self.limits.queued_bytes
    }

    fn push(&self, journal: u64, absent: Stamp, outgoing: Vec<Outgoing>) {
        lock(&self.queue).push(journal, absent, outgoing);
        self.arrived.notify_one();
        self.tell();
    }

    /// Publishes until the claim ends. `still_ours` reads the last record of the journal from its leader and says whether it is
    /// this claim's.
    ///
    /// # Errors
    /// When the handler is not ours any more, or the connection is closed.
    pub async fn run<F, O>(&self, still_ours: F) -> Result<Infallible, Error>
    where
        F: Fn() -> O,
        O: Future<Output = Result<bool, String>>,
    {
        let client = self.jetstream.client();
        let acks = Acks::open(&client).await.map_err(|error| Error::Unreachable(error.to_string()))?;
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < self.limits.in_flight {
                let now = Stamp::now();
                let step = lock(&self.queue).next(now, Instant::now());
                let begun = match step {
                    None => break,
                    Some(Step::Find(lane)) => Begun::Find(lane),
                    Some(Step::Look(lane, target, ids, since)) => Begun::Look(lane, target, ids, since),
                    Some(Step::Send(lane, target, effect)) => {
                        if client.connection_state() != State::Connected || !self.is_owned(&target, now) {
                            // Whether it is in its stream is judged again, for this can take long.
                            lock(&self.queue).unsent(&lane, effect);
                            self.wait_to_be_owner(&client, &still_ours).await?;
                            continue;
                        }
                        crash::point("publishing");
                        let answer = acks.publish(self.rendered(&target, &effect, now)).await;
                        Begun::Send(lane, target, effect, answer)
                    }
                };
                under_way.push(self.end(begun));
            }
            let pause = lock(&self.queue).next_pause();
            tokio::select! {
                Some(done) = under_way.next(), if !under_way.is_empty() => {
                    self.settle(done);
                    while let Some(Some(done)) = under_way.next().now_or_never() {
                        self.settle(done);
                    }
                    self.tell();
                }
                () = self.arrived.notified() => {}
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {}
            }
        }
    }

    /// Whether the handler was ours a moment ago.
    fn is_owned(&self, target: &Target, now: Stamp) -> bool {
        let owned = *lock(&self.owned);
        owned.is_some_and(|owned| owned.age(now) <= PATIENCE.min(target.window / 4))
    }

    async fn wait_to_be_owner<F, O>(&self, client: &Client, still_ours: &F) -> Result<(), Error>
    where
        F: Fn() -> O,
        O: Future<Output = Result<bool, String>>,
    {
        loop {
            let asked = Stamp::now();
            let answer = match client.connection_state() {
                State::Connected => still_ours().await,
                _ => Err("the connection is down".to_owned()),
            };
            match answer {
                Ok(true) => {
                    *lock(&self.owned) = Some(asked);
                    return Ok(());
                }
                Ok(false) => return Err(Error::Fenced),
                Err(reason) => {
                    tracing::debug!(handler = self.handler, reason, "effects wait for the journal's word");
                    tokio::time::sleep(WAIT).await;
                }
            }
        }
    }

    fn rendered(&self, target: &Target, effect: &Effect, now: Stamp) -> Publication {
        let Effect { outgoing, body, decided, .. } = effect;
        rendering::publication(outgoing, body, &self.handler, *decided, now.wall, target.allows_ttl)
    }

    async fn end(&self, begun: Begun) -> Done {
        match begun {
            Begun::Find(lane) => {
                let target = Box::pin(self.targets.find(&lane)).await;
                Done::Found(lane, target)
            }
            Begun::Look(lane, target, ids, since) => {
                let at = Stamp::now();
                let since = since.saturating_sub(SKEW_NANOSECONDS);
                let look = Box::pin(self.targets.present(&target, &lane, ids.clone(), since));
                let present = tokio::time::timeout(LOOK_WITHIN, look).await;
                let present = present.unwrap_or_else(|_| Err(format!("no answer within {LOOK_WITHIN:?}")));
                Done::Looked { lane, target, ids, at, present }
            }
            Begun::Send(lane, target, effect, answer) => {
                let answer = match answer {
                    Ok(answer) => answer.await,
                    Err(error) => Err(error),
                };
                Done::Sent { lane, target, effect, answer }
            }
        }
    }

    fn settle(&self, done: Done) {
        let now = Instant::now();
        let (mut queue, mut counts) = (lock(&self.queue), lock(&self.counts));
        match done {
            Done::Found(lane, target) => queue.found(&lane, target, now),
            Done::Looked { lane, target, ids, at, present } => {
                if present.is_err() {
                    self.targets.forget(&target);
                }
                counts.known += queue.looked(&lane, &ids, at, present, now);
            }
            Done::Sent { lane, target, effect, answer: Ok(ack) } => {
                if *ack.stream != *target.stream {
                    self.targets.forget(&target);
                    queue.forget_target(&lane);
                }
                if ack.duplicate {
                    counts.known += 1;
                } else {
                    counts.published += 1;
                }
                crash::point("published");
                queue.sent(&lane, effect, now);
            }
            Done::Sent { lane, target, effect, answer: Err(error) } => {
                counts.failed += 1;
                self.targets.forget(&target);
                queue.failed(&lane, effect, error.to_string(), now);
            }
        }
    }

    /// Says how far it is, if that has changed or there may be room.
    fn tell(&self) {
        let acted_through = lock(&self.queue).acted_through();
        if self.acted_through.swap(acted_through, Ordering::AcqRel) < acted_through {
            crash::point("acted");
        }
        self.acted.notify_waiters();
    }
}

/// Something on the way.
enum Begun {
    Find(Arc<str>),
    Look(Arc<str>, Arc<Target>, HashSet<String>, i64),
    Send(Arc<str>, Arc<Target>, Box<Effect>, Result<Answer, acks::Error>),
}

/// What became of it.
enum Done {
    Found(Arc<str>, Result<Option<Arc<Target>>, String>),
    Looked {
        lane: Arc<str>,
        target: Arc<Target>,
        ids: HashSet<String>,
        at: Stamp,
        present: Result<HashSet<String>, String>,
    },
    Sent {
        lane: Arc<str>,
        target: Arc<Target>,
        effect: Box<Effect>,
        answer: Result<Ack, acks::Error>,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use async_nats::jetstream;
    use async_nats::jetstream::consumer::pull;
    use async_nats::jetstream::stream::{Config, RetentionPolicy};
    use millstream_saga::Message;

    use super::*;
    use crate::envelope::{Arrival, decode};
    use crate::names;
    use crate::publication::pairs;
    use crate::server::Server;
    use crate::timers;

    const WITHIN: Duration = Duration::from_secs(20);
    const HOUR: i64 = 3_600_000_000_000;
    const SHORT: Duration = Duration::from_millis(500);

    pub(super) fn message(id: &str, subject: &str, key: &str) -> Outgoing {
        Outgoing::Message(Message {
            id: id.to_owned(),
            subject: subject.to_owned(),
            event_type: "Reserve".to_owned(),
            command: true,
            payload: format!(r#"{{"id":"{id}"}}"#).into_bytes(),
            key: key.to_owned(),
            correlation: "root".to_owned(),
            causation: "e1".to_owned(),
            step: None,
            attempt: 1,
            depth: 1,
            within_ms: None,
        })
    }

    pub(super) fn wait(id: &str) -> Outgoing {
        let (correlation, causation) = ("root".to_owned(), "e1".to_owned());
        Outgoing::Wait { id: id.to_owned(), after_ms: 3_600_000, body: b"{}".to_vec(), correlation, causation }
    }

    pub(super) fn cancel(id: &str) -> Outgoing {
        Outgoing::Cancel { id: id.to_owned() }
    }

    fn timer(id: &str, due: i64) -> Outgoing {
        let (correlation, causation) = ("root".to_owned(), "e1".to_owned());
        Outgoing::Timer { id: id.to_owned(), due, body: b"{}".to_vec(), correlation, causation }
    }

    fn now() -> i64 {
        Stamp::now().wall
    }

    struct World {
        server: Server,
        jetstream: Context,
    }

    /// An outbox that is driven until this is dropped.
    struct Driven {
        outbox: Arc<Outbox>,
        task: tokio::task::JoinHandle<Error>,
    }

    impl Drop for Driven {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Driven {
        async fn until(&self, what: &str, condition: impl Fn(&Outbox) -> bool) {
            let wait = async {
                while !condition(&self.outbox) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let waited = tokio::time::timeout(WITHIN, wait).await;
            assert!(waited.is_ok(), "{what}: {:?}, {:?}", self.outbox.counts(), self.outbox.undelivered());
        }

        async fn until_acted(&self, journal: u64) {
            self.until("not all is published", |outbox| outbox.acted_through() == journal).await;
        }
    }

    impl World {
        async fn new() -> Self {
            let server = Server::builder().start().await.unwrap();
            let client = async_nats::connect(server.url()).await.unwrap();
            Self { server, jetstream: jetstream::new(client) }
        }

        async fn stream(&self, name: &str, config: Config) {
            let config =
                Config { name: name.to_owned(), subjects: vec![format!("{}.>", name.to_lowercase())], ..config };
            self.jetstream.create_stream(config).await.unwrap();
        }

        async fn short_timers(&self) {
            let stream = timers::open(&self.jetstream, 1).await.unwrap();
            let config = Config { duplicate_window: SHORT, ..stream.cached_info().config.clone() };
            self.jetstream.update_stream(config).await.unwrap();
        }

        fn outbox(&self) -> Arc<Outbox> {
            Arc::new(Outbox::new(&self.jetstream, "h", 0, Limits::default()))
        }

        fn drive(&self) -> Driven {
            self.drive_while(|| Ok(true))
        }

        fn drive_while(&self, still_ours: impl Fn() -> Result<bool, String> + Send + Sync + 'static) -> Driven {
            let outbox = self.outbox();
            let driven = Arc::clone(&outbox);
            let task = tokio::spawn(async move {
                match driven.run(|| std::future::ready(still_ours())).await {
                    Err(error) => error,
                    Ok(never) => match never {},
                }
            });
            Driven { outbox, task }
        }

        /// Subject and headers of each message, in order.
        async fn stored(&self, stream: &str) -> Vec<(String, HeaderMap)> {
            let stream = self.jetstream.get_stream(stream).await.unwrap();
            let count = stream.cached_info().state.messages;
            let config = pull::Config { max_ack_pending: 100_000, ..pull::Config::default() };
            let consumer = stream.create_consumer(config).await.unwrap();
            let messages = consumer.stream().messages().await.unwrap();
            let mut messages = messages.take(usize::try_from(count).unwrap());
            let mut stored = Vec::new();
            while let Some(message) = tokio::time::timeout(WITHIN, messages.next()).await.unwrap() {
                let message = message.unwrap();
                stored.push((message.subject.to_string(), message.headers.clone().unwrap_or_default()));
            }
            stored
        }

        async fn ids(&self, stream: &str) -> Vec<String> {
            let stored = self.stored(stream).await;
            let id = |headers: &HeaderMap| headers.get("ce-id").map(|id| id.as_str().to_owned());
            stored.iter().filter_map(|(_, headers)| id(headers)).collect()
        }

        /// Returns when a stream has forgotten all message ids of before.
        async fn window_over(&self, subject: &str) {
            let acks = Acks::open(&self.jetstream.client()).await.unwrap();
            let deadline = Instant::now() + WITHIN;
            let mut first = true;
            loop {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", "probe");
                let probe = Publication { subject: subject.to_owned(), headers, payload: "".into() };
                let ack = acks.publish(probe).await.unwrap().await.unwrap();
                if !std::mem::take(&mut first) && !ack.duplicate {
                    return;
                }
                assert!(Instant::now() < deadline);
            }
        }
    }

    fn numbered(count: usize, subjects: &[&str]) -> Vec<Outgoing> {
        let each = (0..count).map(|number| {
            let subject = subjects[number % subjects.len()];
            message(&format!("h.{number}"), subject, &format!("key {}", number % 7))
        });
        each.collect()
    }

    #[tokio::test]
    async fn what_is_published_is_read_back_in_full() {
        let world = World::new().await;
        world.stream("COMMANDS", Config { allow_message_ttl: true, ..Config::default() }).await;
        world.stream("EVENTS", Config::default()).await;
        let driven = world.drive();
        let command = |subject: &str| {
            let Outgoing::Message(message) = message("h.1", subject, "C 42 ü") else { unreachable!() };
            let payload = br#"{"eventType":"not me"}"#.to_vec();
            Outgoing::Message(Message { within_ms: Some(1_500_000), step: Some("pay".to_owned()), payload, ..message })
        };
        let sent = Stamp::now();
        driven.outbox.publish(3, sent, vec![command("commands.reserve"), command("events.x")]);
        driven.until_acted(3).await;
        for (stream, ttl) in [("COMMANDS", Some("1500")), ("EVENTS", None)] {
            let message = world.jetstream.get_stream(stream).await.unwrap().get_raw_message(1).await.unwrap();
            let (subject, payload) = (message.subject.as_str(), message.payload.as_ref());
            let arrival = Arrival { stream, sequence: 1, stored: 1, subject, payload };
            let event = decode(&arrival, pairs(&message.headers)).unwrap();
            assert_eq!((event.id.as_ref(), event.event_type.as_ref()), ("h.1", "Reserve"));
            assert_eq!((event.aggregate_id.as_ref(), event.time), ("C 42 ü", sent.wall));
            assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("root", "e1"));
            assert_eq!(event.payload.as_ref(), br#"{"eventType":"not me"}"#);
            let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
            assert_eq!(header("Nats-TTL"), ttl, "{stream}");
            assert_eq!(header("Millstream-Step"), Some("pay"));
            let deadline: jiff::Timestamp = header("Millstream-Deadline").unwrap().parse().unwrap();
            let waited = deadline.as_nanosecond() - i128::from(sent.wall) - 1_500_000_000_000;
            assert!((0..WITHIN.as_nanos() as i128).contains(&waited));
        }
    }

    #[tokio::test]
    async fn a_thousand_effects_are_stored_once_each_in_their_order() {
        let world = World::new().await;
        world.stream("A", Config::default()).await;
        world.stream("B", Config::default()).await;
        timers::open(&world.jetstream, 1).await.unwrap();
        let driven = world.drive();
        let mut effects = numbered(800, &["a.one", "a.two", "b.one"]);
        effects.extend((800..1000).map(|number| timer(&format!("h.{number}"), now() + HOUR)));
        for (record, effects) in effects.chunks(9).enumerate() {
            driven.outbox.publish(10 + 2 * record as u64, Stamp::now(), effects.to_vec());
        }
        driven.outbox.publish(999, Stamp::now(), Vec::new());
        driven.until_acted(999).await;
        assert_eq!(driven.outbox.counts(), Counts { published: 1000, known: 0, failed: 0 });
        let mut all = Vec::new();
        for (stream, subject) in [("A", "a.one"), ("A", "a.two"), ("B", "b.one")] {
            let stored = world.stored(stream).await;
            let of_subject = stored.iter().filter(|(name, _)| name == subject);
            let ids: Vec<usize> =
                of_subject.map(|(_, headers)| headers.get("ce-id").unwrap().as_str()[2..].parse().unwrap()).collect();
            assert!(ids.is_sorted(), "{subject}: {ids:?}");
            all.extend(ids);
        }
        let timers = world.ids(names::TIMERS).await;
        all.extend(timers.iter().map(|id| id[2..].parse::<usize>().unwrap()));
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(0..1000));
    }

    #[tokio::test]
    async fn what_is_published_twice_is_stored_once() {
        let world = World::new().await;
        world.stream("A", Config::default()).await;
        timers::open(&world.jetstream, 1).await.unwrap();
        let mut effects = numbered(50, &["a.one", "a.two"]);
        effects.push(timer("h.t", now() + HOUR));
        for round in 0..2 {
            let driven = world.drive();
            driven.outbox.republish(4, now(), effects.clone());
            driven.until_acted(4).await;
            assert_eq!(driven.outbox.counts().known, 51 * round);
        }
        assert_eq!((world.ids("A").await.len(), world.ids(names::TIMERS).await.len()), (50, 1));
    }

    #[tokio::test]
    async fn a_recovery_after_the_duplicate_window_publishes_only_what_is_missing() {
        let world = World::new().await;
        let short = || Config { duplicate_window: SHORT, ..Config::default() };
        world.stream("KEEPS", short()).await;
        world.stream("QUEUE", Config { retention: RetentionPolicy::WorkQueue, ..short() }).await;
        world.short_timers().await;
        let mut effects = numbered(100, &["keeps.one", "keeps.two", "queue.one"]);
        effects.extend([timer("h.later", now() + HOUR), timer("h.past", now() - HOUR), timer("h.soon", now() + 1)]);
        let (before, stored) = (effects[..50].to_vec(), now());
        {
            let first = world.drive();
            first.outbox.publish(4, Stamp::now(), [before, effects[100..].to_vec()].concat());
            first.until_acted(4).await;
        }
        let fired = async || world.ids(names::TIMERS).await.len() == 3 && world.subjects_of_timers().await == 2;
        while !fired().await {}
        tokio::join!(
            world.window_over("keeps.p"),
            world.window_over("queue.p"),
            world.window_over("millstream.timers.p")
        );
        let second = world.drive();
        second.outbox.republish(4, stored, effects.clone());
        second.until_acted(4).await;
        assert_eq!(second.outbox.counts(), Counts { published: 50, known: 53, failed: 0 });
        let mut ids = [world.ids("KEEPS").await, world.ids("QUEUE").await].concat();
        ids.sort_by_key(|id| id[2..].parse::<usize>().unwrap());
        assert_eq!(ids, Vec::from_iter((0..100).map(|number| format!("h.{number}"))));
        let mut timers = world.ids(names::TIMERS).await;
        timers.sort();
        assert_eq!(timers, ["h.later", "h.past", "h.soon"]);
    }

    impl World {
        /// How many different subjects of the handler's timers hold something.
        async fn subjects_of_timers(&self) -> usize {
            let stream = self.jetstream.get_stream(names::TIMERS).await.unwrap();
            stream.info_with_subjects("millstream.timers.h.>").await.unwrap().count().await
        }
    }

    #[tokio::test]
    async fn a_subject_without_a_stream_is_listed_and_stops_nobody_else() {
        let world = World::new().await;
        world.stream("A", Config::default()).await;
        timers::open(&world.jetstream, 1).await.unwrap();
        let driven = world.drive();
        driven.outbox.publish(1, Stamp::now(), vec![message("h.0", "a.x", "k")]);
        let lost = vec![message("h.1", "lost.x", "k"), wait("h.1.deadline"), message("h.2", "a.x", "k")];
        driven.outbox.publish(2, Stamp::now(), lost);
        let more = numbered(303, &["lost.x", "lost.y", "a.x"]).split_off(3);
        driven.outbox.publish(3, Stamp::now(), more);
        let flowed = |outbox: &Outbox| outbox.counts().published == 2 + 100 && outbox.undelivered().0 == 1 + 200;
        driven.until("others do not flow", flowed).await;
        assert_eq!(driven.outbox.acted_through(), 1);
        assert_eq!(world.ids(names::TIMERS).await, Vec::<String>::new(), "nobody has seen the command yet");
        let (_, listed) = driven.outbox.undelivered();
        assert_eq!(listed.len(), LISTED);
        let first = listed.iter().find(|undelivered| undelivered.subject == "lost.x").unwrap();
        let reason = "no stream holds this subject".to_owned();
        let expected = Undelivered { key: "k".into(), subject: "lost.x".into(), id: "h.1".into(), reason };
        assert_eq!(*first, expected);
        world.stream("LOST", Config::default()).await;
        driven.until_acted(3).await;
        assert_eq!(driven.outbox.undelivered(), (0, Vec::new()));
        assert_eq!(world.ids(names::TIMERS).await, ["h.1.deadline"]);
        let stored = world.stored("LOST").await;
        for subject in ["lost.x", "lost.y"] {
            let of_subject = stored.iter().filter(|(name, _)| name == subject);
            let ids =
                of_subject.map(|(_, headers)| headers.get("ce-id").unwrap().as_str()[2..].parse::<u32>().unwrap());
            assert!(ids.clone().is_sorted() && ids.count() >= 100, "{subject}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_fails_in_between_loses_nothing_and_keeps_the_order_of_each_key() {
        let world = World::new().await;
        let config =
            || Config { max_messages: 40, discard: jetstream::stream::DiscardPolicy::New, ..Config::default() };
        world.stream("A", config()).await;
        let driven = world.drive();
        for (record, effects) in numbered(300, &["a.x"]).chunks(10).enumerate() {
            driven.outbox.publish(1 + record as u64, Stamp::now(), effects.to_vec());
        }
        driven.until("the stream is not full", |outbox| outbox.undelivered().0 > 0).await;
        let (_, listed) = driven.outbox.undelivered();
        assert!(listed[0].reason.contains("maximum messages exceeded"), "{}", listed[0].reason);
        assert!(driven.outbox.acted_through() < 30);
        let stream = world.jetstream.get_stream("A").await.unwrap();
        let widened = Config { max_messages: 100_000, ..stream.cached_info().config.clone() };
        world.jetstream.update_stream(widened).await.unwrap();
        driven.until_acted(30).await;
        let ids = world.ids("A").await;
        assert_eq!(ids.len(), 300);
        for key in 0..7 {
            let numbers = ids.iter().map(|id| id[2..].parse::<usize>().unwrap()).filter(|number| number % 7 == key);
            assert!(numbers.is_sorted());
        }
    }

    #[tokio::test]
    async fn a_server_that_dies_in_between_loses_nothing_and_stores_nothing_twice() {
        let mut world = World::new().await;
        world.stream("A", Config::default()).await;
        let driven = world.drive();
        let effects = numbered(6000, &["a.x", "a.y"]);
        for (record, effects) in effects.chunks(100).enumerate() {
            driven.outbox.publish(1 + record as u64, Stamp::now(), effects.to_vec());
        }
        driven.until("nothing is published", |outbox| outbox.counts().published >= 500).await;
        world.server.kill();
        let at_death = driven.outbox.counts();
        assert!(at_death.published < 6000, "it died too late to prove anything");
        world.server.restart().await.unwrap();
        driven.until_acted(60).await;
        let counts = driven.outbox.counts();
        assert_eq!(counts.published + counts.known, 6000);
        let ids = world.ids("A").await;
        let numbers: Vec<usize> = ids.iter().map(|id| id[2..].parse().unwrap()).collect();
        for lane in 0..14 {
            assert!(numbers.iter().filter(|number| **number % 14 == lane).is_sorted());
        }
        let mut all = numbers;
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(0..6000));
    }

    #[tokio::test]
    async fn an_owner_that_stood_still_asks_before_it_publishes() {
        let world = World::new().await;
        world.stream("A", Config { duplicate_window: SHORT, ..Config::default() }).await;
        let (asked, answer) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Ok(true))));
        let (count, says) = (Arc::clone(&asked), Arc::clone(&answer));
        let mut driven = world.drive_while(move || {
            count.fetch_add(1, Ordering::SeqCst);
            lock(&says).clone()
        });
        let sent = Stamp::now();
        driven.outbox.publish(1, sent, vec![message("h.0", "a.x", "k")]);
        driven.until_acted(1).await;
        if sent.age(Stamp::now()) < SHORT / 4 {
            assert_eq!(asked.load(Ordering::SeqCst), 0, "a commit is a proof for a while");
        }
        let stood_still = Stamp::stored(now() - 60_000_000_000);
        *lock(&answer) = Err("the journal's leader is away".to_owned());
        let before = asked.load(Ordering::SeqCst);
        driven.outbox.publish(2, stood_still, vec![message("h.1", "a.x", "k")]);
        driven.until("nobody asks", |_| asked.load(Ordering::SeqCst) > before + 1).await;
        assert_eq!(driven.outbox.counts().published, 1, "without an answer nothing leaves");
        *lock(&answer) = Ok(true);
        driven.until_acted(2).await;
        *lock(&answer) = Ok(false);
        driven.outbox.publish(3, stood_still, vec![message("h.2", "a.x", "k")]);
        let error = tokio::time::timeout(WITHIN, &mut driven.task).await.unwrap().unwrap();
        assert!(matches!(error, Error::Fenced));
        assert_eq!(world.ids("A").await, ["h.0", "h.1"]);
        assert_eq!(driven.outbox.acted_through(), 2);
    }

    #[tokio::test]
    async fn an_owner_that_stood_still_looks_for_what_its_heir_published() {
        let world = World::new().await;
        world.stream("A", Config { duplicate_window: SHORT, ..Config::default() }).await;
        let stood_still = Stamp::now();
        {
            let heir = world.drive();
            heir.outbox.republish(1, stood_still.wall, vec![message("h.0", "a.x", "k")]);
            heir.until_acted(1).await;
        }
        world.window_over("a.p").await;
        let driven = world.drive();
        driven.outbox.publish(1, stood_still, vec![message("h.0", "a.x", "k"), message("h.1", "a.x", "k")]);
        driven.until_acted(1).await;
        assert_eq!(world.ids("A").await, ["h.0", "h.1"]);
    }

    #[tokio::test]
    async fn timers_fire_once_unless_they_are_cancelled() {
        let world = World::new().await;
        timers::open(&world.jetstream, 1).await.unwrap();
        let driven = world.drive();
        let soon = now() + 300_000_000;
        let mut effects: Vec<Outgoing> = (0..50).map(|number| timer(&format!("h.{number}"), soon)).collect();
        effects.extend((0..50).filter(|number| number % 2 == 0).map(|number| cancel(&format!("h.{number}"))));
        effects.push(timer("h.past", now() - HOUR));
        // After all the others.
        effects.push(timer("h.last", soon + 500_000_000));
        driven.outbox.publish(1, Stamp::now(), effects);
        driven.until_acted(1).await;
        let stream = world.jetstream.get_stream(names::TIMERS).await.unwrap();
        let config = pull::Config { filter_subject: names::timer_due_subject("h"), ..pull::Config::default() };
        let mut due = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let mut ids = Vec::new();
        while ids.last().is_none_or(|id| id != "h.last") {
            let message = tokio::time::timeout(WITHIN, due.next()).await.unwrap().unwrap().unwrap();
            ids.push(message.headers.as_ref().unwrap().get("ce-id").unwrap().to_string());
        }
        assert_eq!(ids.first().map(String::as_str), Some("h.past"));
        let mut fired = ids[1..ids.len() - 1].to_vec();
        fired.sort_by_key(|id| id[2..].parse::<usize>().unwrap());
        assert_eq!(fired, Vec::from_iter((1..50).step_by(2).map(|number| format!("h.{number}"))));
    }

    #[tokio::test]
    async fn a_full_outbox_says_so_until_there_is_room() {
        let world = World::new().await;
        let limits = Limits { queued_effects: 10, ..Limits::default() };
        let outbox = Arc::new(Outbox::new(&world.jetstream, "h", 0, limits));
        outbox.publish(1, Stamp::now(), numbered(9, &["a.x"]));
        assert!(!outbox.is_full());
        outbox.publish(2, Stamp::now(), vec![message("h.9", "a.x", "k")]);
        assert!(outbox.is_full());
        world.stream("A", Config::default()).await;
        let driven = Arc::clone(&outbox);
        let task = tokio::spawn(async move { driven.run(|| std::future::ready(Ok(true))).await.unwrap_err() });
        let driven = Driven { outbox, task };
        driven.until_acted(2).await;
        assert!(!driven.outbox.is_full());
        assert_eq!(world.ids("A").await.len(), 10);
    }
}
