//! `millstream send`. In: one command. Out: the command in its stream, with a whole envelope, and the event that
//! answers it: the first one whose causation id is the command's id. For people who try a service, and for scripts.
//! Never: sends it twice.

use std::io::Read as _;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, Context};
use clap::Args;
use futures::StreamExt as _;
use millstream_saga::is_subject;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Fault, connect, output};
use crate::acks::Acks;
use crate::claim;
use crate::clock;
use crate::envelope::{self, Arrival};
use crate::inputs::{self, Holder};
use crate::names;
use crate::publication::{Outline, Publication};

/// Send one command, and wait for its answer.
#[derive(Debug, Args)]
pub(super) struct Send {
    /// Where it goes.
    subject: String,
    /// Its payload, JSON; `-` reads it from stdin.
    payload: String,
    /// Its type; the last token of the subject by default.
    #[arg(long = "type", value_name = "TYPE")]
    command_type: Option<String>,
    /// Its id; a new one by default. The same id within the stream's duplicate window is stored once.
    #[arg(long)]
    id: Option<String>,
    /// What it is about.
    #[arg(long, value_name = "KEY", default_value = "")]
    key: String,
    /// The root of its chain of events; its own id by default.
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Where the answer comes, wildcards allowed; without it nothing is waited for.
    #[arg(long, value_name = "SUBJECT")]
    reply_subject: Option<String>,
    /// The stream that the answer comes into, where several hold its subject.
    #[arg(long, value_name = "NAME", requires = "reply_subject")]
    reply_stream: Option<String>,
    /// How long to wait for the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

/// What was sent, and the answer, for programs.
#[derive(Serialize)]
struct Sent<'a> {
    id: &'a str,
    stream: &'a str,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Reply>,
}

#[derive(Serialize)]
struct Reply {
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    subject: String,
    stream: String,
    sequence: u64,
    time: String,
    payload: Box<RawValue>,
}

impl Send {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let payload = self.payload()?;
        if !is_subject(&self.subject) {
            return Err(Fault::usage(anyhow::anyhow!("`{}` is not a subject that one can send to", self.subject))
                .hint("name the command in it, without wildcards: orders-commands.ReserveInventory"));
        }
        let jetstream = jetstream::new(super::open(connection).await?);
        holder(&jetstream, &self.subject, None, "COMMANDS").await?;
        let replies = match &self.reply_subject {
            Some(subject) => Some(holder(&jetstream, subject, self.reply_stream.as_deref(), "EVENTS").await?),
            None => None,
        };
        let id = self.id.clone().unwrap_or_else(|| format!("send.{:016x}", claim::fresh_id()));
        let acks = Acks::open(&jetstream.client()).await?;
        let ack = acks.publish(self.publication(&id, payload)).await?.await?;
        if ack.duplicate {
            eprintln!("stream {} has a command of this id already: nothing new was stored", ack.stream);
        }
        let reply = match (&replies, &self.reply_subject) {
            (Some(holder), Some(subject)) => Some(self.wait(&jetstream, holder, subject, &id).await?),
            _ => None,
        };
        if json {
            output::json(&Sent { id: &id, stream: &ack.stream, sequence: ack.sequence, reply })?;
        } else if let Some(reply) = reply {
            eprintln!("{} {} in {}:{}", reply.event_type, reply.id, reply.stream, reply.sequence);
            output::line(reply.payload.get())?;
        } else {
            eprintln!("{id} in {}:{}", ack.stream, ack.sequence);
        }
        Ok(())
    }

    fn payload(&self) -> Result<Vec<u8>, Fault> {
        let mut text = self.payload.clone();
        if text == "-" {
            text.clear();
            std::io::stdin().read_to_string(&mut text)?;
        }
        match serde_json::from_str::<&RawValue>(&text) {
            Ok(_) => Ok(text.into_bytes()),
            Err(error) => Err(Fault::usage(anyhow::anyhow!("the payload is not JSON: {error}"))
                .hint(r#"quote it for the shell: '{"order":"o-1"}'"#)),
        }
    }

    fn publication(&self, id: &str, payload: Vec<u8>) -> Publication {
        let outline = Outline {
            id,
            event_type: self.command_type.as_deref().unwrap_or_else(|| last_token(&self.subject)),
            handler: "send",
            aggregate: &self.key,
            time: clock::now(),
            correlation: self.correlation.as_deref().unwrap_or(id),
            causation: "",
        };
        let mut headers = outline.headers();
        headers.insert(NATS_MESSAGE_ID, id);
        headers.insert(names::ATTEMPT_HEADER, "1");
        Publication { subject: self.subject.clone(), headers, payload: payload.into() }
    }

    /// The first event after those there were that the command caused.
    async fn wait(&self, jetstream: &Context, holder: &Holder, subject: &str, id: &str) -> Result<Reply, Fault> {
        let stream = jetstream.get_stream(&holder.stream).await?;
        let config = OrderedConfig {
            filter_subject: subject.to_owned(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: holder.last + 1 },
            ..OrderedConfig::default()
        };
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        let answer = async {
            while let Some(message) = messages.next().await {
                let message = message?;
                let place = message.info().map_err(|error| anyhow::anyhow!(error))?;
                let stored = i64::try_from(place.published.unix_timestamp_nanos()).unwrap_or_default();
                if let Some(reply) = reply(&holder.stream, place.stream_sequence, stored, &message, id) {
                    return Ok(reply);
                }
            }
            Err(anyhow::anyhow!("stream {} was closed", holder.stream))
        };
        match tokio::time::timeout(Duration::from_secs(self.timeout), answer).await {
            Ok(reply) => Ok(reply?),
            Err(_) => Err(Fault::failed(anyhow::anyhow!("no answer to {id} on {subject} within {} s", self.timeout))
                .hint(format!(
                    "an answer carries the command's id as ce-causationid; see who consumes the command with `nats consumer report {}`",
                    self.stream_of(jetstream).await
                ))),
        }
    }

    async fn stream_of(&self, jetstream: &Context) -> String {
        jetstream.stream_by_subject(self.subject.as_str()).await.unwrap_or_else(|_| "STREAM".to_owned())
    }
}

/// The message as an answer to this command, if it is one.
fn reply(stream: &str, sequence: u64, stored: i64, message: &async_nats::Message, command: &str) -> Option<Reply> {
    let none = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&none);
    let pairs = headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())));
    let arrival = Arrival { stream, sequence, stored, subject: &message.subject, payload: &message.payload };
    let event = envelope::decode(&arrival, pairs).ok().filter(|event| event.causation_id == command)?;
    let payload = String::from_utf8_lossy(&event.payload).into_owned();
    Some(Reply {
        id: event.id.to_string(),
        event_type: event.event_type.to_string(),
        subject: message.subject.to_string(),
        stream: stream.to_owned(),
        sequence,
        time: clock::text(event.time),
        // A payload that is not JSON is shown as a text.
        payload: RawValue::from_string(payload)
            .or_else(|_| serde_json::value::to_raw_value(&String::from_utf8_lossy(&event.payload)))
            .ok()?,
    })
}

fn last_token(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}

/// The one stream that holds a subject, of this name if one is given.
async fn holder(jetstream: &Context, subject: &str, name: Option<&str>, example: &str) -> Result<Holder, Fault> {
    let subjects = [subject.to_owned()];
    let named: Vec<String> = name.into_iter().map(str::to_owned).collect();
    let mut holders = inputs::holders(jetstream, &subjects, &named).await?;
    holders.retain(|holder| name.is_none_or(|name| holder.stream == name));
    let names: Vec<String> = holders.iter().map(|holder| holder.stream.clone()).collect();
    match (holders.pop(), holders.is_empty()) {
        (Some(holder), true) => Ok(holder),
        (Some(_), false) => {
            Err(Fault::usage(anyhow::anyhow!("subject `{subject}` is held by several streams: {}", names.join(", ")))
                .hint("name the one you mean with --reply-stream"))
        }
        (None, _) => Err(Fault::usage(anyhow::anyhow!("no stream holds `{subject}`"))
            .hint(format!("make one with `nats stream add {example} --subjects '{subject}' --defaults`"))),
    }
}
