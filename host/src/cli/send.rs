//! `millstream send`. In: one command. Out: the command in its stream, with a whole envelope, and the event that
//! answers it. For people who try a service, and for scripts. Never: sends it twice.

mod answer;

use std::io::Read as _;
use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use clap::Args;
use millstream_saga::is_subject;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Fault, connect, output};
use crate::acks::{self, Ack, Acks};
use crate::claim;
use crate::clock;
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
    reply: Option<answer::Reply>,
}

impl Send {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        self.check()?;
        let payload = self.payload()?;
        let jetstream = jetstream::new(super::open(connection).await?);
        holder(&jetstream, &self.subject, None, "COMMANDS").await?;
        let replies = match &self.reply_subject {
            Some(subject) => {
                Some((subject, holder(&jetstream, subject, self.reply_stream.as_deref(), "EVENTS").await?))
            }
            None => None,
        };
        let id = self.id.clone().unwrap_or_else(|| format!("send.{:016x}", claim::fresh_id()));
        let ack = self.publish(&jetstream, &id, payload).await?;
        if ack.duplicate {
            eprintln!("stream {} has a command of this id already: nothing new was stored", ack.stream);
        }
        let reply = match replies {
            Some((subject, holder)) => Some(self.wait(&jetstream, &holder, subject, &id, &ack).await?),
            None => None,
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

    /// What can be seen without a server.
    fn check(&self) -> Result<(), Fault> {
        if !is_subject(&self.subject) {
            return Err(Fault::usage(anyhow::anyhow!("`{}` is not a subject that one can send to", self.subject))
                .hint("name the command in it, without wildcards: order-commands.ReserveInventory"));
        }
        let texts = [("--id", &self.id), ("--type", &self.command_type), ("--correlation", &self.correlation)];
        for (name, text) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() {
                return Err(Fault::usage(anyhow::anyhow!("{name} is empty"))
                    .hint(format!("leave {name} out, or give it a value; a variable of the shell may be unset")));
            }
            if text.contains(char::is_control) {
                return Err(Fault::usage(anyhow::anyhow!(
                    "{name} is {text:?}: it holds a line end or another control"
                ))
                .hint("give it in one line of letters, digits and signs"));
            }
        }
        Ok(())
    }

    fn payload(&self) -> Result<Vec<u8>, Fault> {
        let mut bytes = self.payload.clone().into_bytes();
        if bytes == b"-" {
            bytes.clear();
            std::io::stdin().read_to_end(&mut bytes)?;
        }
        checked(bytes)
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

    async fn publish(&self, jetstream: &Context, id: &str, payload: Vec<u8>) -> Result<Ack, Fault> {
        let publication = self.publication(id, payload);
        let (bytes, most) = (publication.bytes(), jetstream.client().server_info().max_payload);
        if bytes > most {
            return Err(Fault::usage(anyhow::anyhow!(
                "the command has {bytes} bytes with its headers; the server takes {most} (its max_payload)"
            ))
            .hint("put what is large into an object store, and send its name; or raise max_payload of the server"));
        }
        let acks = Acks::open(&jetstream.client()).await?;
        let answer = match acks.publish(publication).await {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| {
            let hint = match error {
                acks::Error::TimedOut | acks::Error::Connection(_) => format!(
                    "send it again with --id {id}, which stores it once; if it stays so, this user may not be permitted to publish there"
                ),
                acks::Error::TooLarge => "put what is large into an object store, and send its name".to_owned(),
                acks::Error::NoStream | acks::Error::Refused { .. } => {
                    "see the limits of the stream with `nats stream info`".to_owned()
                }
            };
            let told = anyhow::Error::new(error).context(format!("the server did not take the command to {}", self.subject));
            Fault::failed(told).hint(hint)
        })
    }

    /// The answer: to a command that was there before, also one that came before.
    async fn wait(
        &self,
        jetstream: &Context,
        holder: &Holder,
        subject: &str,
        id: &str,
        ack: &Ack,
    ) -> Result<answer::Reply, Fault> {
        let wanted = answer::Wanted { stream: &holder.stream, subject, command: id };
        let within = Duration::from_secs(self.timeout);
        let from = if ack.duplicate { answer::since_command(jetstream, ack).await } else { answer::after(holder.last) };
        if let Some(reply) = answer::first(jetstream, &wanted, from, within).await? {
            return Ok(reply);
        }
        // A service that knows the id for longer than the stream of commands does answers no second time.
        if self.id.is_some() && !ack.duplicate {
            let old = answer::first(jetstream, &wanted, answer::after(0), within).await?;
            if let Some(reply) = old {
                eprintln!(
                    "a command of this id was answered before; nobody answered this one within {} s",
                    self.timeout
                );
                return Ok(reply);
            }
        }
        Err(Fault::failed(anyhow::anyhow!("no answer to {id} on {subject} within {} s", self.timeout)).hint(format!(
            "an answer carries the command's id as ce-causationid; see who consumes the command with `nats consumer report {}`",
            ack.stream
        )))
    }
}

/// The payload, if it is JSON.
fn checked(bytes: Vec<u8>) -> Result<Vec<u8>, Fault> {
    if let Err(error) = std::str::from_utf8(&bytes) {
        return Err(Fault::usage(anyhow::anyhow!("the payload is not UTF-8, so it is not JSON: {error}"))
            .hint("turn it into UTF-8 first, as with `iconv -t UTF-8`"));
    }
    match serde_json::from_slice::<&RawValue>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Fault::usage(anyhow::anyhow!("the payload is not JSON: {error}"))
            .hint(r#"quote it for the shell: '{"order":"o-1"}'"#)),
    }
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
        (None, _) => match name {
            Some(name) => Err(not_in(jetstream, name, subject).await),
            None => Err(Fault::usage(anyhow::anyhow!("no stream holds `{subject}`"))
                .hint(format!("make one with `nats stream add {example} --subjects '{subject}' --defaults`"))),
        },
    }
}

/// Why the stream of this name does not do.
async fn not_in(jetstream: &Context, name: &str, subject: &str) -> Fault {
    match jetstream.get_stream(name).await {
        Ok(_) => Fault::usage(anyhow::anyhow!("stream {name} does not hold `{subject}`"))
            .hint(format!("see its subjects with `nats stream info {name}`")),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refusal) if refusal.error_code() != ErrorCode::STREAM_NOT_FOUND => {
                Fault::failed(error)
            }
            _ => Fault::usage(anyhow::anyhow!("there is no stream {name}"))
                .hint("list the streams with `nats stream ls`"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_json_or_the_user_s_to_mend() {
        assert_eq!(checked(b"{}".to_vec()).unwrap(), b"{}");
        for (bytes, told) in [(b"{".as_slice(), "not JSON"), (b"\"\xff\"", "not UTF-8"), (b"", "not JSON")] {
            let fault = checked(bytes.to_vec()).unwrap_err();
            assert!(fault.code() == 2 && fault.to_string().contains(told) && fault.to_string().contains("hint: "));
        }
    }
}
