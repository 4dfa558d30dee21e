//! Pull requests of one consumer. In: a consumer's name and how much to fetch ahead. Out: its messages as they come, each with
//! what its reply subject says. Never: acks, reorders, or hides a gap; the intake looks for those.
//! Own code because the client's message stream gives every message a copy of its whole context, made here and dropped in the
//! pipeline: with the client's own reading of the reply subject a sixteenth of the host's CPU in a drain, allocations aside.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior};

/// A request lives this long.
const EXPIRES: Duration = Duration::from_secs(25);

/// The server says that it is there when it has nothing else to say.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often a quiet consumer's connection is looked at: a request does not survive a new connection.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks without a word from the server before it counts as gone: two heartbeats.
const LOOKS: u32 = 40;

/// What the server says of a message in its reply subject (ADR-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Its stream sequence.
    pub(crate) sequence: u64,
    /// How many messages the consumer has delivered with it.
    pub(crate) consumer_sequence: u64,
    /// When it was stored, nanoseconds since 1970.
    pub(crate) stored: i64,
    /// Messages behind it that are not delivered yet.
    pub(crate) pending: u64,
}

impl Delivery {
    /// Reads `$JS.ACK.[DOMAIN.ACCOUNT.]STREAM.CONSUMER.DELIVERED.SEQUENCE.CONSUMER_SEQUENCE.TIME.PENDING[.MORE]`.
    fn parse(reply: &str) -> Option<Self> {
        if !reply.starts_with("$JS.ACK.") {
            return None;
        }
        let more = match memchr::memchr_iter(b'.', reply.as_bytes()).count() {
            8 => 0,
            dots => dots.checked_sub(10)?,
        };
        let mut tokens = reply.rsplit('.').skip(more);
        Some(Self {
            pending: tokens.next()?.parse().ok()?,
            stored: tokens.next()?.parse().ok()?,
            consumer_sequence: tokens.next()?.parse().ok()?,
            sequence: tokens.next()?.parse().ok()?,
        })
    }
}

/// The messages of one consumer.
pub(crate) struct Pull {
    client: Client,
    messages: Subscriber,
    subject: String,
    inbox: String,
    request: Bytes,
    /// What one request asks for.
    batch: usize,
    batch_bytes: usize,
    /// What was asked for and has not come.
    due: usize,
    due_bytes: usize,
    look: Interval,
    quiet_looks: u32,
    connects: u64,
}

impl Pull {
    /// Listens; the first request goes out with the first call of `next`.
    pub(crate) async fn open(
        jetstream: &Context,
        stream: &str,
        consumer: &str,
        batch: usize,
        batch_bytes: usize,
    ) -> Result<Self, String> {
        let client = jetstream.client();
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let request = json!({
            "batch": batch,
            "max_bytes": batch_bytes,
            "expires": EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connects = connects(&client);
        Ok(Self {
            client,
            messages,
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            request: request.to_string().into(),
            batch,
            batch_bytes,
            due: 0,
            due_bytes: 0,
            look,
            quiet_looks: 0,
            connects,
        })
    }

    /// The next message. May be dropped at any point without losing one.
    ///
    /// # Errors
    /// Why no more will come.
    pub(crate) async fn next(&mut self) -> Result<(Message, Delivery), String> {
        loop {
            if self.due <= self.batch / 2 || self.due_bytes <= self.batch_bytes / 2 {
                self.ask().await?;
            }
            let message = tokio::select! {
                biased;
                message = self.messages.next() => message.ok_or("the subscription ended")?,
                _ = self.look.tick() => {
                    self.look_around()?;
                    continue;
                }
            };
            self.quiet_looks = 0;
            if let Some(status) = message.status {
                self.account(status, &message)?;
                continue;
            }
            self.due = self.due.saturating_sub(1);
            self.due_bytes = self.due_bytes.saturating_sub(message.length);
            let delivery = message.reply.as_ref().and_then(|reply| Delivery::parse(reply));
            return match delivery {
                Some(delivery) => Ok((message, delivery)),
                None => Err(format!("a message came with the reply subject {:?}", message.reply)),
            };
        }
    }

    async fn ask(&mut self) -> Result<(), String> {
        let publish = self.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), self.request.clone());
        publish.await.map_err(|error| error.to_string())?;
        self.due += self.batch;
        self.due_bytes += self.batch_bytes;
        Ok(())
    }

    /// What the server says besides messages: it is there; a request is over, with this much of it left; no more will come.
    fn account(&mut self, status: StatusCode, message: &Message) -> Result<(), String> {
        let words = message.description.as_deref().unwrap_or_default();
        match status {
            StatusCode::IDLE_HEARTBEAT => Ok(()),
            StatusCode::TIMEOUT | StatusCode::REQUEST_TERMINATED
                if words != "Consumer Deleted" && !words.starts_with("Exceeded") && !words.contains("push based") =>
            {
                let left = |name: &str| {
                    let text = message.headers.as_ref().and_then(|headers| headers.get(name));
                    text.and_then(|text| text.as_str().parse::<usize>().ok())
                };
                // Without an account of what is left, the whole request is.
                self.due = self.due.saturating_sub(left("Nats-Pending-Messages").unwrap_or(self.batch));
                self.due_bytes = self.due_bytes.saturating_sub(left("Nats-Pending-Bytes").unwrap_or(self.batch_bytes));
                Ok(())
            }
            status => Err(format!("the server answered {} {words}", status.as_u16())),
        }
    }

    /// Asks anew on a new connection; gives up on a server that is silent for too long.
    fn look_around(&mut self) -> Result<(), String> {
        let connects = connects(&self.client);
        if connects != self.connects {
            (self.connects, self.due, self.due_bytes) = (connects, 0, 0);
            self.quiet_looks = 0;
        }
        self.quiet_looks += 1;
        if self.quiet_looks > LOOKS { Err("no heartbeat came".to_owned()) } else { Ok(()) }
    }
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_reply_subject_is_read() {
        let expected = Delivery { sequence: 20, consumer_sequence: 30, stored: 40, pending: 50 };
        for reply in [
            "$JS.ACK.ORDERS.spend.1.20.30.40.50",
            "$JS.ACK.hub.ACCHASH.ORDERS.spend.1.20.30.40.50",
            "$JS.ACK._.ACCHASH.ORDERS.spend.1.20.30.40.50.token",
            "$JS.ACK.hub.ACCHASH.ORDERS.spend.1.20.30.40.50.token.more",
        ] {
            assert_eq!(Delivery::parse(reply), Some(expected), "{reply}");
        }
    }

    #[test]
    fn what_is_no_reply_subject_is_refused() {
        for reply in
            ["", "$JS.ACK.", "_INBOX.a.b", "$JS.ACK.ORDERS.spend.20.30.40.50", "$JS.ACK.ORDERS.spend.1.20.x.40.50"]
        {
            assert_eq!(Delivery::parse(reply), None, "{reply}");
        }
    }
}
