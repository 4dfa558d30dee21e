//! From publish to visible: events at a fixed rate into a handler that has caught up, its documents watched on another
//! connection. A document that counts n orders makes the customer's first n orders visible.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::{Client, Subscriber};
use futures::StreamExt as _;
use serde::Serialize;

use crate::ours::Running;
use crate::shop::{BODY_BYTES, Order, Shop, Spend};
use crate::world::{SUBJECT, World};

/// How long the last documents may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Latencies of one rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) per_second: u64,
    /// Whether each event touched a key of its own, which no document has yet.
    pub(crate) new_keys: bool,
    /// How often the module was changed meanwhile.
    pub(crate) swaps: u64,
    /// The longest that such a change kept events waiting.
    pub(crate) longest_pause_milliseconds: f64,
    pub(crate) events: u64,
    pub(crate) p50_milliseconds: f64,
    pub(crate) p99_milliseconds: f64,
    pub(crate) max_milliseconds: f64,
}

/// Orders that were published and are not visible yet, per customer, and how many were visible before.
#[derive(Default)]
struct Waiting {
    seen: u64,
    published: VecDeque<Instant>,
}

/// A rate to try.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) per_second: u64,
    pub(crate) seconds: u64,
    pub(crate) new_keys: bool,
    pub(crate) swaps: u64,
}

/// Publishes at that rate and measures. `spend` is what the documents say, and is kept true.
pub(crate) async fn measure(
    world: &World,
    shop: &Shop,
    running: &Running,
    load: Load,
    spend: &mut Vec<Spend>,
) -> anyhow::Result<Latency> {
    let count = load.per_second * load.seconds;
    let known = spend.len();
    let order = |index: u64| {
        let order = shop.order(u64::MAX / 2 + index);
        let customer = if load.new_keys { known + usize::try_from(index).unwrap_or_default() } else { order.customer };
        Order { customer, ..order }
    };
    if load.new_keys {
        spend.resize(known + usize::try_from(count)?, Spend::default());
    }
    let waiting = spend.iter().map(|spend| Waiting { seen: spend.orders, ..Waiting::default() });
    let waiting = Mutex::new(waiting.collect());
    let watcher = world.connect().await?.client();
    let documents = watcher.subscribe(running.documents()).await?;
    watcher.flush().await?;
    let publisher = world.connect().await?.client();
    let publish = publish(&publisher, load.per_second, (0..count).map(order), spend, &waiting);
    let limit = Duration::from_secs(load.seconds) + PATIENCE;
    let swaps = running.swap(load.swaps, Duration::from_secs(load.seconds));
    let watched = watch(documents, count, &waiting);
    let all = tokio::time::timeout(limit, async { tokio::try_join!(publish, watched, swaps) }).await;
    let ((), latencies, pauses) = all.context("some documents never came")??;
    Ok(latency(load, latencies, &pauses))
}

/// Publishes these orders, one when its time has come.
async fn publish(
    publisher: &Client,
    per_second: u64,
    orders: impl Iterator<Item = Order>,
    spend: &mut [Spend],
    waiting: &Mutex<Vec<Waiting>>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    for (index, order) in (0..).zip(orders) {
        let due = begun + Duration::from_nanos(index * 1_000_000_000 / per_second);
        tokio::time::sleep_until(due.into()).await;
        let body = order.body(BODY_BYTES);
        if let Some(spend) = spend.get_mut(order.customer) {
            spend.orders += 1;
            spend.cents += order.cents;
        }
        if let Some(waiting) = lock(waiting).get_mut(order.customer) {
            waiting.published.push_back(Instant::now());
        }
        publisher.publish(SUBJECT, body).await?;
    }
    Ok(())
}

/// Milliseconds from publish to visible, of so many orders.
async fn watch(mut documents: Subscriber, count: u64, waiting: &Mutex<Vec<Waiting>>) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    while (latencies.len() as u64) < count {
        let message = documents.next().await.context("the watch ended")?;
        let arrived = Instant::now();
        let customer: usize = message.subject.rsplit('C').next().unwrap_or_default().parse()?;
        let document: serde_json::Value = serde_json::from_slice(&message.payload)?;
        let orders = document.get("orders").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if let Some(waiting) = lock(waiting).get_mut(customer) {
            for _ in waiting.seen..orders {
                let published =
                    waiting.published.pop_front().context("a document counts an order that nobody placed")?;
                latencies.push(arrived.duration_since(published).as_secs_f64() * 1e3);
            }
            waiting.seen = waiting.seen.max(orders);
        }
    }
    Ok(latencies)
}

fn latency(load: Load, mut latencies: Vec<f64>, pauses: &[f64]) -> Latency {
    latencies.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).copied().unwrap_or_default()
    };
    Latency {
        per_second: load.per_second,
        new_keys: load.new_keys,
        swaps: load.swaps,
        longest_pause_milliseconds: pauses.iter().copied().fold(0.0, f64::max),
        events: load.per_second * load.seconds,
        p50_milliseconds: at(0.5),
        p99_milliseconds: at(0.99),
        max_milliseconds: at(1.0),
    }
}

/// All loads against one running handler, `repeats` times in turn; then every document is checked.
pub(crate) async fn all(
    world: &World,
    shop: &Shop,
    running: &Running,
    loads: &[Load],
    repeats: usize,
    (mut head, mut spend): (u64, Vec<Spend>),
) -> anyhow::Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for _ in 0..repeats {
        for load in loads {
            let latency = measure(world, shop, running, *load, &mut spend).await?;
            head += latency.events;
            eprintln!(
                "  live {}/s{}{}: p50 {:.2} ms, p99 {:.2} ms",
                load.per_second,
                if load.new_keys { " new keys" } else { "" },
                if load.swaps > 0 { " while modules change" } else { "" },
                latency.p50_milliseconds,
                latency.p99_milliseconds
            );
            latencies.push(latency);
        }
    }
    running.caught_up(world, head, &spend).await?;
    Ok(latencies)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
