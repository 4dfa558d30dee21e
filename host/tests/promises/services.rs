//! The services that sagas command, as a user would write them: a durable consumer of commands, an answer per command with the
//! command's id as its causation id. What they answer is told by the test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{Context, consumer};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::task::JoinHandle;

/// A command as it came.
#[derive(Clone, Debug)]
pub struct Command {
    pub id: String,
    pub kind: String,
    pub causation: String,
    pub correlation: String,
    pub attempt: u32,
    pub payload: Value,
}

impl Command {
    fn of(message: &async_nats::Message) -> Self {
        let header = |name: &str| {
            let headers = message.headers.as_ref().expect("an envelope in headers");
            headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default()
        };
        Self {
            id: header("ce-id"),
            kind: header("ce-type"),
            causation: header("ce-causationid"),
            correlation: header("ce-correlationid"),
            attempt: header("Millstream-Attempt").parse().unwrap_or_default(),
            payload: serde_json::from_slice(&message.payload).expect("JSON"),
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
            ack_wait: Duration::from_secs(600),
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
                seen.lock().unwrap().push(command.clone());
                if let Some((kind, payload)) = answer(&command) {
                    reply(&jetstream, &prefix, &command, &kind, &payload).await;
                }
                message.ack().await.unwrap();
            }
        });
        Self { commands, task }
    }
}

/// Publishes the answer to a command.
pub async fn reply(jetstream: &Context, prefix: &str, command: &Command, kind: &str, payload: &Value) {
    let mut headers = HeaderMap::new();
    let id = format!("{}.answer", command.id);
    for (name, value) in [
        ("Nats-Msg-Id", id.as_str()),
        ("ce-specversion", "1.0"),
        ("ce-source", "services"),
        ("ce-id", &id),
        ("ce-type", kind),
        ("ce-correlationid", &command.correlation),
        ("ce-causationid", &command.id),
    ] {
        headers.insert(name, value);
    }
    let body = payload.to_string().into();
    jetstream.publish_with_headers(format!("{prefix}.{kind}"), headers, body).await.unwrap().await.unwrap();
}

/// All commands in a stream, in its order.
pub async fn stored(jetstream: &Context, stream: &str) -> Vec<Command> {
    let stream = jetstream.get_stream(stream).await.unwrap();
    let count = stream.cached_info().state.messages;
    let config = consumer::pull::OrderedConfig::default();
    let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let commands = messages.take(usize::try_from(count).unwrap());
    commands.map(|message| Command::of(&message.unwrap())).collect().await
}
