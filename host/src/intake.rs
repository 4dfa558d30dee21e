//! Intake: a durable pull consumer per input stream feeds batches. In: messages. Out: batches of one stream, in its order.
//! Own positions rule: the consumer is made anew at position + 1 whenever a claim begins, and a message out of the consumer's
//! own order ends the intake, so that the next claim puts it right. Acks are hints for people who watch with stock tools.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config, MessagesError, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{Context, Message, stream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::inputs::Input;
use crate::names;
use crate::settings::Settings;

/// Ack wait: longer than any pause of a healthy host. Redelivery never helps us, it only disturbs.
const ACK_WAIT: Duration = Duration::from_secs(3600);

/// A pull request lives this long, with a heartbeat every fifth of it.
const PULL_EXPIRES: Duration = Duration::from_secs(25);

/// A feed that hears nothing for so long asks whether messages went to somebody else.
const IDLE_CHECK: Duration = Duration::from_secs(4);

/// Bytes fetched ahead per stream, at least; a server's largest message always fits.
const PREFETCH_BYTES: usize = 8 << 20;

/// A message with what its reply subject says.
pub struct Arrival {
    /// The message.
    pub message: Message,
    /// Its stream sequence.
    pub sequence: u64,
    /// When the server stored it, nanoseconds since 1970.
    pub stored: i64,
    /// Messages behind it that are not delivered yet.
    pub pending: u64,
}

/// Events of one input stream.
pub struct Arrivals {
    /// Index of the input.
    pub input: usize,
    /// The messages, in stream order.
    pub messages: Vec<Arrival>,
}

/// Why an intake ended. The claim is then renewed, which puts the consumer right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The consumer could not be made.
    #[error("consumer on stream {stream} could not be made: {reason}")]
    Consumer {
        /// Stream name.
        stream: String,
        /// The server's words.
        reason: String,
    },
    /// A consumer of that name is somebody else's.
    #[error("consumer {consumer} on stream {stream} was not made by Millstream")]
    NotOurs {
        /// Consumer name, which is the handler's.
        consumer: String,
        /// Stream name.
        stream: String,
    },
    /// Messages stopped coming.
    #[error("stream {stream} stopped delivering: {reason}")]
    Interrupted {
        /// Stream name.
        stream: String,
        /// The client's words.
        reason: String,
    },
}

impl Error {
    /// What to do about it, where a person must.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotOurs { consumer, stream } => Some(format!(
                "delete it with `nats consumer rm {stream} {consumer}` if nobody needs it, or deploy under another name"
            )),
            Self::Consumer { .. } | Self::Interrupted { .. } => None,
        }
    }
}

/// Batches from all inputs of a handler.
pub struct Intake {
    batches: mpsc::Receiver<Result<Arrivals, Error>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Intake {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Intake {
    /// Makes the consumers at their positions and begins to fetch.
    ///
    /// # Errors
    /// When a consumer cannot be made.
    pub async fn open(
        jetstream: &Context,
        handler: &str,
        inputs: &[(Input, u64)],
        settings: &Settings,
    ) -> Result<Self, Error> {
        // One batch may wait here while another is being decided; further ones gather in their own intake.
        let (sender, batches) = mpsc::channel(1);
        let mut tasks = Vec::new();
        for (index, (input, position)) in inputs.iter().enumerate() {
            let consumer = consumer(jetstream, handler, input, *position, settings).await?;
            let messages = messages(jetstream, &consumer, input, settings).await?;
            let feed = Feed {
                input: index,
                stream: input.stream.clone(),
                consumer,
                messages,
                expected: 1,
                last: *position,
                settings: settings.clone(),
            };
            tasks.push(tokio::spawn(feed.run(sender.clone())));
        }
        Ok(Self { batches, tasks })
    }

    /// The next batch, whenever it comes.
    ///
    /// # Errors
    /// When an input was interrupted.
    pub async fn next(&mut self) -> Result<Arrivals, Error> {
        match self.batches.recv().await {
            Some(batch) => batch,
            None => Err(Error::Interrupted { stream: "(all)".to_owned(), reason: "intake closed".to_owned() }),
        }
    }
}

/// Deletes the consumer of an earlier claim and makes one that begins after `position`.
async fn consumer(
    jetstream: &Context,
    handler: &str,
    input: &Input,
    position: u64,
    settings: &Settings,
) -> Result<Consumer<Config>, Error> {
    let failed = |reason: String| Error::Consumer { stream: input.stream.clone(), reason };
    let config = Config {
        durable_name: Some(handler.to_owned()),
        description: Some(format!("Millstream handler {handler}")),
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: i64::try_from(settings.prefetch_events.saturating_mul(8)).unwrap_or(i64::MAX),
        filter_subjects: input.filters.clone(),
        deliver_policy: match position {
            0 => DeliverPolicy::All,
            decided => DeliverPolicy::ByStartSequence { start_sequence: decided + 1 },
        },
        metadata: names::ours(handler),
        ..Config::default()
    };
    let stream = jetstream.get_stream_no_info(&input.stream).await.map_err(|error| failed(error.to_string()))?;
    if is_there(&stream, handler, &input.stream).await? {
        stream.delete_consumer(handler).await.map_err(|error| failed(error.to_string()))?;
    }
    stream.create_consumer_strict(config).await.map_err(|error| failed(error.to_string()))
}

/// Checks that the name of the handler's consumer is free on this stream, or its own.
///
/// # Errors
/// `NotOurs`, or when the server does not answer.
pub async fn check_consumer(jetstream: &Context, handler: &str, stream: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Consumer { stream: stream.to_owned(), reason };
    let opened = jetstream.get_stream_no_info(stream).await.map_err(|error| failed(error.to_string()))?;
    is_there(&opened, handler, stream).await.map(drop)
}

async fn is_there(opened: &stream::Stream<()>, handler: &str, stream: &str) -> Result<bool, Error> {
    match opened.consumer_info(handler).await {
        Ok(info) if names::is_ours(&info.config.metadata, handler) => Ok(true),
        Ok(_) => Err(Error::NotOurs { consumer: handler.to_owned(), stream: stream.to_owned() }),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::Consumer { stream: stream.to_owned(), reason: error.to_string() }),
    }
}

async fn messages(
    jetstream: &Context,
    consumer: &Consumer<Config>,
    input: &Input,
    settings: &Settings,
) -> Result<Messages, Error> {
    let largest = jetstream.client().server_info().max_payload;
    consumer
        .stream()
        .max_bytes_per_batch(PREFETCH_BYTES.max(largest.saturating_mul(2)))
        .max_messages_per_batch(settings.prefetch_events)
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_EXPIRES / 5)
        .messages()
        .await
        .map_err(|error| Error::Consumer { stream: input.stream.clone(), reason: error.to_string() })
}

/// Groups the messages of one input.
struct Feed {
    input: usize,
    stream: String,
    consumer: Consumer<Config>,
    messages: Messages,
    /// The consumer sequence that must come next: a gap means that somebody else took messages or moved the consumer.
    expected: u64,
    /// The last stream sequence that came: one that is not above it is a redelivery.
    last: u64,
    settings: Settings,
}

impl Feed {
    async fn run(mut self, sender: mpsc::Sender<Result<Arrivals, Error>>) {
        loop {
            match self.gather(&sender).await {
                Ok((permit, messages)) => permit.send(Ok(Arrivals { input: self.input, messages })),
                Err(Some(error)) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
                Err(None) => return,
            }
        }
    }

    /// Waits for a first message, then takes company until the batch is full, or the pipeline is free and the wait is over.
    async fn gather<'a>(
        &mut self,
        sender: &'a mpsc::Sender<Result<Arrivals, Error>>,
    ) -> Result<(mpsc::Permit<'a, Result<Arrivals, Error>>, Vec<Arrival>), Option<Error>> {
        let mut batch = Vec::with_capacity(self.settings.batch_events.min(1024));
        let mut bytes = 0;
        bytes += self.take(&mut batch, None).await.map_err(Some)?;
        let ready_at = Instant::now() + Duration::from_millis(self.settings.batch_wait_milliseconds);
        loop {
            while self.has_room(&batch, bytes)
                && let Some(message) = self.messages.next().now_or_never()
            {
                bytes += self.take(&mut batch, Some(message)).await.map_err(Some)?;
            }
            if !self.has_room(&batch, bytes) {
                return Ok((sender.reserve().await.map_err(|_| None)?, batch));
            }
            let free = async {
                tokio::time::sleep_until(ready_at).await;
                sender.reserve().await
            };
            tokio::select! {
                biased;
                permit = free => return Ok((permit.map_err(|_| None)?, batch)),
                message = self.messages.next() => bytes += self.take(&mut batch, Some(message)).await.map_err(Some)?,
            }
        }
    }

    /// The next message, whenever it comes. Without further events, nothing else would tell that the last ones were taken by
    /// a foreign client.
    async fn first(&mut self) -> Result<Option<Result<Message, MessagesError>>, Error> {
        let mut suspicious = false;
        loop {
            if let Ok(message) = tokio::time::timeout(IDLE_CHECK, self.messages.next()).await {
                return Ok(message);
            }
            let Ok(info) = self.consumer.get_info().await else { continue };
            // Once, it may still be on its way to us.
            if info.delivered.consumer_sequence < self.expected {
                suspicious = false;
            } else if std::mem::replace(&mut suspicious, true) {
                let reason = format!("message {} went to somebody else", self.expected);
                return Err(Error::Interrupted { stream: self.stream.clone(), reason });
            }
        }
    }

    fn has_room(&self, batch: &[Arrival], bytes: usize) -> bool {
        batch.len() < self.settings.batch_events && bytes < self.settings.batch_bytes
    }

    /// Adds a message (the given one, or the next) to the batch and answers its size.
    async fn take(
        &mut self,
        batch: &mut Vec<Arrival>,
        message: Option<Option<Result<Message, MessagesError>>>,
    ) -> Result<usize, Error> {
        let message = match message {
            Some(message) => message,
            None => self.first().await?,
        };
        let interrupted = |reason: String| Error::Interrupted { stream: self.stream.clone(), reason };
        let message = message
            .ok_or_else(|| interrupted("the consumer ended".to_owned()))?
            .map_err(|error| interrupted(error.to_string()))?;
        let (consumer_sequence, sequence, stored, pending) = {
            let info = message.info().map_err(|error| interrupted(error.to_string()))?;
            let stored = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(i64::MAX);
            (info.consumer_sequence, info.stream_sequence, stored, info.pending)
        };
        if consumer_sequence != self.expected {
            let expected = self.expected;
            return Err(interrupted(format!("message {consumer_sequence} came where {expected} was due")));
        }
        // A redelivery stands in the consumer's order but not in the stream's.
        if sequence <= self.last {
            return Err(interrupted(format!("message {sequence} was delivered again after {}", self.last)));
        }
        self.expected += 1;
        self.last = sequence;
        let size = message.payload.len();
        batch.push(Arrival { message, sequence, stored, pending });
        Ok(size)
    }
}
