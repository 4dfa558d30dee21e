//! What we compare with: the bare client that only counts, and the consumer that everybody writes first.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::{Context, kv};
use futures::StreamExt as _;
use millstream::settings::Settings;
use serde_json::{Value, json};

use crate::world::{Run, STREAM, World};

/// Bytes fetched ahead, as the intake does it.
const PREFETCH_BYTES: usize = 8 << 20;

/// A bare pull drain: the same consumer, the same prefetch, an ack per batch, no work.
pub(crate) async fn bare(world: &World, events: u64) -> anyhow::Result<Run> {
    let (before, begun) = (world.cpu()?, Instant::now());
    count(world, "bare", "", events).await?;
    world.cost(events, begun, before)
}

/// The same for several consumers at once: so many events under each of these subjects.
pub(crate) async fn bare_each(world: &World, subjects: &[String], events: u64) -> anyhow::Result<Run> {
    let (before, begun) = (world.cpu()?, Instant::now());
    let counts = subjects.iter().enumerate().map(|(number, subject)| {
        let name = format!("bare_{number}");
        async move { count(world, &name, subject, events).await }
    });
    futures::future::try_join_all(counts).await?;
    world.cost(events * subjects.len() as u64, begun, before)
}

/// Counts so many messages under a subject; all where it is empty.
async fn count(world: &World, name: &str, subject: &str, events: u64) -> anyhow::Result<()> {
    let jetstream = world.connect().await?;
    let settings = Settings::default();
    let mut messages = messages(&jetstream, name, subject, AckPolicy::All, &settings).await?;
    let mut count = 0;
    while count < events {
        let message = messages.next().await.context("the consumer ended")??;
        count += 1;
        if count.is_multiple_of(settings.batch_events as u64) || count == events {
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
    jetstream.delete_consumer_from_stream(name, STREAM).await?;
    Ok(())
}

/// Get, put, ack, one event at a time.
pub(crate) async fn plain(world: &World, events: u64) -> anyhow::Result<Run> {
    let jetstream = world.connect().await?;
    let config = kv::Config { bucket: "plain".to_owned(), ..Default::default() };
    let (before, begun) = (world.cpu()?, Instant::now());
    let bucket = jetstream.create_key_value(config).await?;
    let mut messages = messages(&jetstream, "plain", "", AckPolicy::Explicit, &Settings::default()).await?;
    let mut customers = HashSet::new();
    for _ in 0..events {
        let message = messages.next().await.context("the consumer ended")??;
        let order: Value = serde_json::from_slice(&message.payload)?;
        let customer = order.get("customer").and_then(Value::as_str).context("an order without a customer")?;
        let document = match bucket.get(customer).await? {
            Some(bytes) => serde_json::from_slice(&bytes)?,
            None => json!({}),
        };
        let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or_default();
        let document = json!({
            "orders": number(&document, "orders") + 1,
            "cents": number(&document, "cents") + number(&order, "cents"),
        });
        bucket.put(customer, document.to_string().into()).await?;
        customers.insert(customer.to_owned());
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
    }
    let run = world.cost(events, begun, before)?;
    let stored = jetstream.get_stream("KV_plain").await?.cached_info().state.messages;
    ensure!(stored == customers.len() as u64, "{stored} documents instead of {}", customers.len());
    jetstream.delete_consumer_from_stream("plain", STREAM).await?;
    jetstream.delete_key_value("plain").await?;
    Ok(run)
}

async fn messages(
    jetstream: &Context,
    name: &str,
    subject: &str,
    ack_policy: AckPolicy,
    settings: &Settings,
) -> anyhow::Result<pull::Stream> {
    let config = pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: subject.to_owned(),
        ack_policy,
        ack_wait: Duration::from_secs(3600),
        max_ack_pending: i64::try_from(settings.prefetch_events * 8)?,
        ..Default::default()
    };
    let consumer: Consumer<pull::Config> = jetstream.create_consumer_on_stream(config, STREAM).await?;
    let messages = consumer
        .stream()
        .max_bytes_per_batch(PREFETCH_BYTES)
        .max_messages_per_batch(settings.prefetch_events)
        .expires(Duration::from_secs(25))
        .heartbeat(Duration::from_secs(5));
    Ok(messages.messages().await?)
}
