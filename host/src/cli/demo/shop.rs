//! The demo's shop. In: the number of an order. Out: the order, made up by a fixed rule, its events, and what the
//! documents must be. Pure. Never: shares code with the handlers.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::keys;

/// Customers of the shop.
const CUSTOMERS: u64 = 500;

/// Publishes in flight before their acknowledgements are awaited.
const IN_FLIGHT: usize = 1000;

/// One event of the shop.
pub(super) struct Order {
    number: u64,
    customer: String,
    cents: u64,
    cancelled: bool,
}

impl Order {
    fn event_id(&self) -> String {
        format!("{}-{}", if self.cancelled { "cancelled" } else { "placed" }, self.number)
    }

    fn aggregate(&self) -> String {
        format!("order-{}", self.number % 2000)
    }

    fn body(&self) -> String {
        let (event_type, id, aggregate) =
            (if self.cancelled { "OrderCancelled" } else { "OrderPlaced" }, self.event_id(), self.aggregate());
        let payload = serde_json::json!({ "customer": self.customer, "cents": self.cents });
        serde_json::json!({ "eventId": id, "eventType": event_type, "aggregateId": aggregate, "payload": payload })
            .to_string()
    }
}

/// `count` events: every seventh cancels the order before it.
pub(super) fn orders(count: u64) -> Vec<Order> {
    let order = |index: u64| {
        let cancelled = index % 7 == 6;
        let number = if cancelled { index - 1 } else { index };
        let dice = number.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17);
        Order { number, customer: format!("C{}", dice % CUSTOMERS + 1), cents: 100 + dice % 9900, cancelled }
    };
    (0..count).map(order).collect()
}

/// Makes the stream and publishes the events, pipelined, each with its id as message id.
pub(super) async fn publish(jetstream: &jetstream::Context, orders: &[Order]) -> anyhow::Result<()> {
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    jetstream.get_or_create_stream(config).await?;
    for part in orders.chunks(IN_FLIGHT) {
        let mut acks = Vec::with_capacity(part.len());
        for order in part {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", order.event_id());
            let subject = if order.cancelled { "orders.cancelled" } else { "orders.placed" };
            acks.push(jetstream.publish_with_headers(subject, headers, order.body().into()).await?);
        }
        for ack in acks {
            ack.await?;
        }
    }
    Ok(())
}

/// What customer-spend must hold.
pub(super) fn spend(orders: &[Order]) -> BTreeMap<String, Vec<u8>> {
    let mut totals: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for order in orders {
        let (placed, cents) = totals.entry(&order.customer).or_default();
        let sign = if order.cancelled { -1 } else { 1 };
        *placed += sign;
        *cents += sign * i64::try_from(order.cents).unwrap_or_default();
    }
    let document = |(placed, cents): (i64, i64)| format!(r#"{{"orders":{placed},"cents":{cents}}}"#).into_bytes();
    totals.into_iter().map(|(customer, totals)| (customer.to_owned(), document(totals))).collect()
}

/// What order-chain must hold: a hash over the ids of each order's events, in order.
pub(super) fn chains(orders: &[Order]) -> BTreeMap<String, Vec<u8>> {
    let mut chains: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for order in orders {
        let (hash, events) = chains.entry(order.aggregate()).or_default();
        *hash = hex::encode(Sha256::digest(format!("{hash}{}", order.event_id())));
        *events += 1;
    }
    let document = |(hash, events): (String, u64)| format!(r#"{{"hash":"{hash}","events":{events}}}"#).into_bytes();
    chains.into_iter().map(|(order, chain)| (order, document(chain))).collect()
}

/// All documents of a handler, read as any NATS client would.
pub(super) async fn documents(
    jetstream: &jetstream::Context,
    handler: &str,
) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let bucket = jetstream.get_key_value(handler).await?;
    let mut documents = BTreeMap::new();
    let escaped: Vec<String> = bucket.keys().await?.try_collect().await?;
    for key in escaped {
        if let Some(value) = bucket.get(&key).await? {
            documents.insert(keys::unescape(&key)?, value.to_vec());
        }
    }
    Ok(documents)
}
