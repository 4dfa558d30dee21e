//! The banks: every command is carried out at once and answered with `Done`, by an event whose causation id is the command's.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::StreamExt as _;
use serde::Deserialize;

/// The part of a command that its answer repeats.
#[derive(Deserialize)]
struct Transfer<'a> {
    transfer: &'a str,
}

/// Answers commands until it is dropped.
pub(crate) async fn answer(jetstream: Context, stream: &str) -> anyhow::Result<()> {
    let config = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
    let consumer = jetstream.get_stream(stream).await?.create_consumer(config).await?;
    let mut commands = consumer.stream().max_messages_per_batch(2000).messages().await?;
    let client = jetstream.client();
    while let Some(command) = commands.next().await {
        let command = command?;
        let header = |name: &str| {
            let value = command.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned()).unwrap_or_default()
        };
        let (id, correlation) = (header("ce-id"), header("ce-correlationid"));
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-source", "bank");
        headers.insert("ce-type", "Done");
        headers.insert("ce-id", format!("{id}.answer"));
        headers.insert("ce-correlationid", correlation.as_str());
        headers.insert("ce-causationid", id.as_str());
        let Transfer { transfer } = serde_json::from_slice(&command.payload)?;
        let payload = serde_json::json!({ "transfer": transfer }).to_string();
        client.publish_with_headers("transfers.done", headers, payload.into()).await?;
    }
    anyhow::bail!("the commands ended")
}
