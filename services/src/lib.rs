//! Warehouse, bank and carrier of the saga `order-fulfilment`, as a user would write them. In: commands, through a
//! durable consumer. Out: an answer per command. Never: two different ones. What matters to a saga:
//!
//! - The answer carries the command's id as its causation id: that is how it finds the step.
//! - Its message id follows from the command's id, so a command that comes twice is answered once.
//! - The command is acknowledged after its answer is stored: a service that dies in between does it again.
//!
//! A service with a database does the work and notes the command's id in one transaction, and answers again what it has
//! done.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context, Message, consumer::pull};
use futures::StreamExt as _;
use serde_json::{Value, json};

/// Who is asked, and what they are like.
#[derive(Clone, Debug)]
pub struct Services {
    /// The stream of commands.
    pub commands: String,
    /// Answers go to `<replies>.<event type>`.
    pub replies: String,
    /// The bank declines more than this.
    pub limit_cents: u64,
    /// The carrier never answers for this customer.
    pub lost_customer: String,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            commands: "ORDER_COMMANDS".to_owned(),
            replies: "orders".to_owned(),
            limit_cents: 100_000,
            lost_customer: String::new(),
        }
    }
}

impl Services {
    /// Answers commands until the connection is closed.
    ///
    /// # Errors
    /// When the stream of commands is missing, or the server is away for too long.
    pub async fn run(self, client: async_nats::Client) -> anyhow::Result<()> {
        let jetstream = jetstream::new(client);
        let stream = jetstream.get_stream(&self.commands).await.context("the stream of commands")?;
        let config = pull::Config {
            durable_name: Some("order-services".to_owned()),
            // A command that is not acknowledged by then is delivered again.
            ack_wait: Duration::from_secs(30),
            ..pull::Config::default()
        };
        let consumer = stream.get_or_create_consumer("order-services", config).await?;
        let mut commands = consumer.messages().await?;
        while let Some(command) = commands.next().await {
            let command = command?;
            let answer = match header(&command, "ce-id") {
                // Nobody could tell whose answer it is.
                "" => Ok(None),
                _ => self.answer(&kind(&command), &command.payload),
            };
            match answer {
                Ok(Some((event_type, payload))) => {
                    reply(&jetstream, &self.replies, &command, event_type, &payload).await?;
                }
                Ok(None) => {}
                // It would be refused for ever, and all behind it would wait.
                Err(error) => eprintln!("{} on {} is skipped: {error:#}", header(&command, "ce-id"), command.subject),
            }
            command.ack().await.map_err(|error| anyhow::anyhow!(error))?;
        }
        Ok(())
    }

    /// What they say to a command: an event's type and payload. Nothing: it is none of theirs, or they are silent.
    ///
    /// # Errors
    /// When the payload of one of theirs is not JSON.
    pub fn answer(&self, command: &str, payload: &[u8]) -> anyhow::Result<Option<(&'static str, Value)>> {
        let done = match command {
            "ReserveInventory" => "InventoryReserved",
            "ReleaseInventory" => "InventoryReleased",
            "ChargePayment" => "PaymentCharged",
            "RefundPayment" => "PaymentRefunded",
            "BookShipping" => "ShippingBooked",
            "CancelShipping" => "ShippingCancelled",
            "SendConfirmation" => "ConfirmationSent",
            _ => return Ok(None),
        };
        let payload: Value = serde_json::from_slice(payload).context("its payload is not JSON")?;
        let cents = payload.get("cents").and_then(Value::as_u64).unwrap_or_default();
        let customer = payload.get("customer").and_then(Value::as_str).unwrap_or_default();
        let order = payload.get("order").cloned().unwrap_or_default();
        if command == "ChargePayment" && cents > self.limit_cents {
            let reason = format!("{cents} cents are over the limit of {}", self.limit_cents);
            return Ok(Some(("PaymentDeclined", json!({ "order": order, "reason": reason }))));
        }
        if command == "BookShipping" && !customer.is_empty() && customer == self.lost_customer {
            return Ok(None);
        }
        Ok(Some((done, json!({ "order": order }))))
    }
}

/// The command's type: the envelope is in the headers.
fn kind(command: &Message) -> String {
    header(command, "ce-type").to_owned()
}

fn header<'a>(command: &'a Message, name: &str) -> &'a str {
    command.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
}

async fn reply(
    jetstream: &Context,
    prefix: &str,
    command: &Message,
    event_type: &str,
    payload: &Value,
) -> anyhow::Result<()> {
    let command_id = header(command, "ce-id");
    let id = format!("{command_id}.answer");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.as_str());
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", id.as_str());
    headers.insert("ce-source", "order-services");
    headers.insert("ce-type", event_type);
    headers.insert("ce-causationid", command_id);
    let correlation = header(command, "ce-correlationid");
    headers.insert("ce-correlationid", if correlation.is_empty() { command_id } else { correlation });
    // So that the saga's next command stands in the same trace. A service that makes spans of its own names its own here.
    for name in ["traceparent", "tracestate"] {
        let value = header(command, name);
        if !value.is_empty() {
            headers.insert(name, value);
        }
    }
    let subject = format!("{prefix}.{event_type}");
    jetstream.publish_with_headers(subject, headers, payload.to_string().into()).await?.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_do_as_they_are_told_but_for_the_poor_and_the_lost() {
        let services = Services { lost_customer: "C13".to_owned(), ..Services::default() };
        let answer = |command: &str, customer: &str, cents: u64| {
            let payload = json!({ "order": "o-1", "customer": customer, "cents": cents }).to_string();
            services.answer(command, payload.as_bytes()).unwrap().map(|(event_type, _)| event_type)
        };
        for (command, customer, cents, expected) in [
            ("ReserveInventory", "C13", 1, Some("InventoryReserved")),
            ("ChargePayment", "C1", 100_000, Some("PaymentCharged")),
            ("ChargePayment", "C1", 100_001, Some("PaymentDeclined")),
            ("RefundPayment", "C1", 100_001, Some("PaymentRefunded")),
            ("BookShipping", "C1", 1, Some("ShippingBooked")),
            ("BookShipping", "C13", 1, None),
            ("CancelShipping", "C13", 1, Some("ShippingCancelled")),
            ("PaintTheHouse", "C1", 1, None),
        ] {
            assert_eq!(answer(command, customer, cents), expected, "{command}");
        }
        assert!(services.answer("ReserveInventory", b"{").is_err());
        assert!(
            services.answer("PaintTheHouse", b"{").is_ok_and(|answer| answer.is_none()),
            "it is not theirs to read"
        );
    }
}
