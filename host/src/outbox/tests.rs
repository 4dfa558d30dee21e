//! A real server, and an outbox that is driven on it.

mod again;
mod flow;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use futures::StreamExt as _;
use millstream_saga::{Message, Outgoing};
use tokio::time::Instant;

use super::*;
use crate::acks::Acks;
use crate::clock::now;
use crate::envelope::{Arrival, decode};
use crate::names;
use crate::publication::{Publication, pairs};
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
        let config = Config { name: name.to_owned(), subjects: vec![format!("{}.>", name.to_lowercase())], ..config };
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

    /// How many different subjects of the handler's timers hold something.
    async fn subjects_of_timers(&self) -> usize {
        let stream = self.jetstream.get_stream(names::TIMERS).await.unwrap();
        stream.info_with_subjects("millstream.timers.h.>").await.unwrap().count().await
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
