//! The services that sagas command, as a user would write them: a durable consumer of commands, an answer per command with the
//! command's id as its causation id. What they answer is told by the test.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{Context, consumer};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::harness::{PATIENCE, pause};

/// A command as it came.
#[derive(Clone, Debug)]
pub struct Command {
    pub id: String,
    pub kind: String,
    /// The instance that it is about.
    pub key: String,
    pub causation: String,
    pub correlation: String,
    pub attempt: u32,
    pub payload: Value,
    pub traceparent: String,
}

impl Command {
    fn of(message: &async_nats::Message) -> Self {
        let header = |name: &str| {
            let value = message.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned()).unwrap_or_default()
        };
        Self {
            id: header("ce-id"),
            kind: header("ce-type"),
            key: header("ce-subject"),
            causation: header("ce-causationid"),
            correlation: header("ce-correlationid"),
            attempt: header("Millstream-Attempt").parse().unwrap_or_default(),
            traceparent: header("traceparent"),
            // What tests send besides commands has none.
            payload: serde_json::from_slice(&message.payload).unwrap_or_default(),
        }
    }
}

/// An answer: event type and payload.
pub type Answer = (String, Value);

/// Services that run until they are dropped.
pub struct Services {
    /// Every command that came, in order.
    pub commands: Arc<Mutex<Vec<Command>>>,
    task: JoinHandle<()>,
}

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Services {
    /// Answers the commands of `stream` to `<prefix>.<event type>`, or is silent where `answer` gives none.
    pub async fn start(
        jetstream: &Context,
        stream: &str,
        prefix: &str,
        answer: impl Fn(&Command) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let commands = Arc::<Mutex<Vec<Command>>>::default();
        let config = consumer::pull::Config {
            durable_name: Some("services".to_owned()),
            // What a server had sent when it was killed comes again after this.
            ack_wait: Duration::from_secs(5),
            ..consumer::pull::Config::default()
        };
        let consumer =
            jetstream.get_stream(stream).await.unwrap().get_or_create_consumer("services", config).await.unwrap();
        let (jetstream, prefix, seen) = (jetstream.clone(), prefix.to_owned(), Arc::clone(&commands));
        let task = tokio::spawn(async move {
            let mut messages = consumer.messages().await.unwrap();
            while let Some(message) = messages.next().await {
                let Ok(message) = message else { continue };
                let command = Command::of(&message);
                if command.id.is_empty() {
                    let _ = message.ack().await;
                    continue;
                }
                seen.lock().unwrap().push(command.clone());
                if let Some((kind, payload)) = answer(&command) {
                    reply(&jetstream, &prefix, &command, &kind, &payload).await;
                }
                // Without the server it is not stored, and the command comes again.
                let _ = message.ack().await;
            }
        });
        Self { commands, task }
    }
}

/// Publishes the answer to a command, which its message id makes harmless to try again while the server is away.
pub async fn reply(jetstream: &Context, prefix: &str, command: &Command, kind: &str, payload: &Value) {
    reply_as(&format!("{}.answer", command.id), jetstream, prefix, command, kind, payload).await;
}

/// The same under an id of its own.
pub async fn reply_as(id: &str, jetstream: &Context, prefix: &str, command: &Command, kind: &str, payload: &Value) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("Nats-Msg-Id", id),
        ("ce-specversion", "1.0"),
        ("ce-source", "services"),
        ("ce-id", id),
        ("ce-type", kind),
        ("ce-subject", &command.key),
        // The same in every run, so that instances are.
        ("ce-time", "2100-01-01T00:00:00Z"),
        ("ce-correlationid", &command.correlation),
        ("ce-causationid", &command.id),
        ("traceparent", &command.traceparent),
    ] {
        // A CloudEvent has no empty attribute.
        if !value.is_empty() {
            headers.insert(name, value);
        }
    }
    let (subject, body) = (format!("{prefix}.{kind}"), Bytes::from(payload.to_string()));
    let deadline = Instant::now() + PATIENCE;
    let publish = async || -> Result<(), async_nats::Error> {
        jetstream.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await?.await?;
        Ok(())
    };
    while let Err(error) = publish().await {
        assert!(Instant::now() < deadline, "{subject} cannot be answered: {error}");
        pause().await;
    }
}

/// All messages with an id in a stream, in its order.
pub async fn stored(jetstream: &Context, stream: &str) -> Vec<Command> {
    let stream = jetstream.get_stream(stream).await.unwrap();
    let count = stream.cached_info().state.messages;
    let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..consumer::pull::Config::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let messages = consumer.messages().await.unwrap().take(usize::try_from(count).unwrap());
    let commands: Vec<Command> = messages.map(|message| Command::of(&message.unwrap())).collect().await;
    // A stream has room for so many consumers, and this is asked in a loop.
    stream.delete_consumer(&consumer.cached_info().name).await.unwrap();
    commands.into_iter().filter(|command| !command.id.is_empty()).collect()
}
