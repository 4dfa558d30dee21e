//! Intake: a durable pull consumer per input stream feeds batches. In: messages. Out: batches of one stream, in its order.
//! Own positions rule: the consumer is made anew at position + 1 whenever a claim begins, and a message out of the consumer's
//! own order ends the intake, so that the next claim puts it right. Acks are hints for people who watch with stock tools.

mod ordered;

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{Context, stream};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::generation::Generation;
use crate::inputs::Input;
use crate::journal::Standing;
use crate::names;
use crate::pull::{Delivery, Pull};
use crate::settings::Settings;

use ordered::{Line, Ordered};

pub(crate) use ordered::next_after;

/// Ack wait: longer than any pause of a healthy host. Redelivery never helps us, it only disturbs.
const ACK_WAIT: Duration = Duration::from_secs(3600);

/// How long a batch waits for messages that the server has and is sending. Bounds the wait when it stops in between.
const FILL_WITHIN: Duration = Duration::from_millis(5);

/// A feed that hears nothing for so long asks whether messages went to somebody else.
const IDLE_CHECK: Duration = Duration::from_secs(4);

/// Bytes fetched ahead per stream, at least; a server's largest message always fits.
const PREFETCH_BYTES: usize = 8 << 20;

/// A message with what its reply subject says.
#[derive(Clone)]
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

impl Arrival {
    /// A message that no consumer delivered.
    pub(crate) fn made_of(subject: String, headers: HeaderMap, payload: Bytes, sequence: u64, stored: i64) -> Self {
        let length = payload.len();
        let subject = subject.into();
        let message =
            Message { subject, reply: None, payload, headers: Some(headers), status: None, description: None, length };
        Self { message, sequence, stored, pending: 0 }
    }
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
        /// Consumer name, which is the generation's.
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
    batches: Batches,
    tasks: Vec<JoinHandle<()>>,
}

enum Batches {
    /// As they come.
    Live(mpsc::Receiver<Result<Arrivals, Error>>),
    /// In the order in which their events were stored.
    Ordered(Box<Ordered>),
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
        generation: &Generation,
        inputs: &[(Input, u64)],
        settings: &Settings,
    ) -> Result<Self, Error> {
        // One batch may wait here while another is being decided; further ones gather in their own intake.
        let (sender, batches) = mpsc::channel(1);
        let ordered = generation.standing == Standing::Shadow && inputs.len() > 1;
        let (mut tasks, mut lines) = (Vec::new(), Vec::new());
        for (index, (input, position)) in inputs.iter().enumerate() {
            let consumer = make_consumer(jetstream, generation, input, *position, settings).await?;
            let messages = messages(jetstream, &generation.name(), input, settings).await?;
            let feed = Feed {
                input: index,
                stream: input.stream.clone(),
                consumer,
                messages,
                expected: 1,
                last: *position,
                settings: settings.clone(),
            };
            if ordered {
                let (sender, batches) = mpsc::channel(1);
                lines.push(Line { input: input.clone(), batches, waiting: None, last: *position });
                tasks.push(tokio::spawn(feed.run(sender)));
            } else {
                tasks.push(tokio::spawn(feed.run(sender.clone())));
            }
        }
        let batches =
            if ordered { Batches::Ordered(Box::new(Ordered::new(jetstream, lines))) } else { Batches::Live(batches) };
        Ok(Self { batches, tasks })
    }

    /// The next batch, whenever it comes.
    ///
    /// # Errors
    /// When an input was interrupted.
    pub async fn next(&mut self) -> Result<Arrivals, Error> {
        let batches = match &mut self.batches {
            Batches::Live(batches) => batches,
            Batches::Ordered(ordered) => return ordered.next().await,
        };
        match batches.recv().await {
            Some(batch) => batch,
            None => Err(Error::Interrupted { stream: "(all)".to_owned(), reason: "intake closed".to_owned() }),
        }
    }
}

/// Deletes the consumer of an earlier claim and makes one that begins after `position`.
async fn make_consumer(
    jetstream: &Context,
    generation: &Generation,
    input: &Input,
    position: u64,
    settings: &Settings,
) -> Result<Consumer<Config>, Error> {
    let failed = |reason: String| Error::Consumer { stream: input.stream.clone(), reason };
    let (handler, name) = (&generation.handler, generation.name());
    let config = Config {
        durable_name: Some(name.clone()),
        description: Some(format!("Millstream handler {handler}")),
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: i64::try_from(settings.prefetch_events.saturating_mul(4)).unwrap_or(i64::MAX),
        filter_subjects: input.filters.clone(),
        // Its state matters to nobody after this claim, and on disk each change of it is a file written anew: with 200 handlers that was
        // half of the server's CPU. A server that restarts has forgotten it, and the claim is renewed.
        memory_storage: true,
        deliver_policy: match position {
            0 => DeliverPolicy::All,
            decided => DeliverPolicy::ByStartSequence { start_sequence: decided + 1 },
        },
        metadata: names::ours(handler),
        ..Config::default()
    };
    let stream = jetstream.get_stream_no_info(&input.stream).await.map_err(|error| failed(error.to_string()))?;
    if is_there(&stream, &name, handler, &input.stream).await? {
        stream.delete_consumer(&name).await.map_err(|error| failed(error.to_string()))?;
    }
    stream.create_consumer_strict(config).await.map_err(|error| failed(error.to_string()))
}

/// Checks that the name of the generation's consumer is free on this stream, or its own. True: it is there.
///
/// # Errors
/// `NotOurs`, or when the server does not answer.
pub async fn check_consumer(jetstream: &Context, generation: &Generation, stream: &str) -> Result<bool, Error> {
    let failed = |reason: String| Error::Consumer { stream: stream.to_owned(), reason };
    let opened = jetstream.get_stream_no_info(stream).await.map_err(|error| failed(error.to_string()))?;
    is_there(&opened, &generation.name(), &generation.handler, stream).await
}

async fn is_there(opened: &stream::Stream<()>, consumer: &str, handler: &str, stream: &str) -> Result<bool, Error> {
    match opened.consumer_info(consumer).await {
        Ok(info) if names::is_ours(&info.config.metadata, handler) => Ok(true),
        Ok(_) => Err(Error::NotOurs { consumer: consumer.to_owned(), stream: stream.to_owned() }),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::Consumer { stream: stream.to_owned(), reason: error.to_string() }),
    }
}

/// Deletes the consumer of a generation that is gone; one that is not there, or not ours, is left alone.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn remove_consumer(jetstream: &Context, generation: &Generation, stream: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Consumer { stream: stream.to_owned(), reason };
    let opened = jetstream.get_stream_no_info(stream).await.map_err(|error| failed(error.to_string()))?;
    let name = generation.name();
    match is_there(&opened, &name, &generation.handler, stream).await {
        Ok(true) => opened.delete_consumer(&name).await.map(drop).map_err(|error| failed(error.to_string())),
        Ok(false) | Err(Error::NotOurs { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn messages(jetstream: &Context, consumer: &str, input: &Input, settings: &Settings) -> Result<Pull, Error> {
    let largest = jetstream.client().server_info().max_payload;
    let bytes = PREFETCH_BYTES.max(largest.saturating_mul(2));
    Pull::open(jetstream, &input.stream, consumer, settings.prefetch_events, bytes)
        .await
        .map_err(|reason| Error::Consumer { stream: input.stream.clone(), reason })
}

/// Groups the messages of one input.
struct Feed {
    input: usize,
    stream: String,
    consumer: Consumer<Config>,
    messages: Pull,
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
        let first = self.first().await.map_err(Some)?;
        let mut bytes = self.take(&mut batch, first).map_err(Some)?;
        let begun = Instant::now();
        let wait = tokio::time::sleep_until(begun);
        tokio::pin!(wait);
        loop {
            while self.has_room(&batch, bytes)
                && let Some(message) = self.messages.next().now_or_never()
            {
                bytes += self.take(&mut batch, message).map_err(Some)?;
            }
            if !self.has_room(&batch, bytes) {
                return Ok((sender.reserve().await.map_err(|_| None)?, batch));
            }
            let until = begun + self.patience(&batch);
            let free = async {
                // A timer wakes a whole millisecond late: none is set where there is nothing to wait for.
                if until > Instant::now() {
                    if wait.deadline() != until {
                        wait.as_mut().reset(until);
                    }
                    wait.as_mut().await;
                }
                sender.reserve().await
            };
            tokio::select! {
                biased;
                permit = free => return Ok((permit.map_err(|_| None)?, batch)),
                message = self.messages.next() => bytes += self.take(&mut batch, message).map_err(Some)?,
            }
        }
    }

    /// The next message, whenever it comes. Without further events, nothing else would tell that the last ones were taken by
    /// a foreign client.
    async fn first(&mut self) -> Result<Result<(Message, Delivery), String>, Error> {
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

    /// How long the batch may wait for company: as the settings say, and a little where company is known to be on its way.
    fn patience(&self, batch: &[Arrival]) -> Duration {
        let wait = Duration::from_millis(self.settings.batch_wait_milliseconds);
        let more_to_come = batch.last().is_some_and(|arrival| arrival.pending > 0);
        if more_to_come { wait.max(FILL_WITHIN) } else { wait }
    }

    fn has_room(&self, batch: &[Arrival], bytes: usize) -> bool {
        batch.len() < self.settings.batch_events && bytes < self.settings.batch_bytes
    }

    /// Adds a message to the batch and answers its size.
    fn take(&mut self, batch: &mut Vec<Arrival>, message: Result<(Message, Delivery), String>) -> Result<usize, Error> {
        let interrupted = |reason: String| Error::Interrupted { stream: self.stream.clone(), reason };
        let (message, delivery) = message.map_err(interrupted)?;
        let (came, expected) = (delivery.consumer_sequence, self.expected);
        let Delivery { sequence, stored, pending, .. } = delivery;
        if came != expected {
            return Err(interrupted(format!("message {came} came where {expected} was due")));
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
