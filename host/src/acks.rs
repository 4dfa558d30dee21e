//! Pipelined publishing with acknowledgements. In: messages. Out, for each: where the stream put it, or why it did not.
//! One inbox for all, its answers told apart by a counter, and one look around for those that never come. Never: retries, or
//! bounds what is in flight; who publishes does both.
//! Own code because the client makes a random inbox, a permit and two timers per message.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{Client, Message, StatusCode, Subscriber};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::publication::Publication;

/// An answer that takes longer is not coming: the server is away, or it dropped the message.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How often to look for answers that did not come.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The stream's name.
    pub stream: Arc<str>,
    /// Its sequence there.
    pub sequence: u64,
    /// It was there before: the stream knows its message id.
    pub duplicate: bool,
}

/// Why a message may not be in a stream. After `TimedOut` and `Connection` it may be there all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the subject.
    #[error("no stream holds this subject")]
    NoStream,
    /// The stream said no.
    #[error("{description} ({code})")]
    Refused {
        /// JetStream's own code where there is one.
        code: u64,
        /// Its words.
        description: String,
    },
    /// Nobody said anything.
    #[error("no answer within {ANSWER_WITHIN:?}")]
    TimedOut,
    /// The server takes no message of this size, so the client did not send it.
    #[error("the message is larger than the server's max_payload")]
    TooLarge,
    /// The client could not send it.
    #[error("connection: {0}")]
    Connection(String),
}

/// What will be known of one message.
pub struct Answer(oneshot::Receiver<Result<Ack, Error>>);

impl Future for Answer {
    type Output = Result<Ack, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = |_| Err(Error::Connection("the inbox was closed".to_owned()));
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(ended))
    }
}

/// A connection's inbox for acknowledgements.
pub struct Acks {
    client: Client,
    inbox: String,
    unanswered: Arc<Mutex<Unanswered>>,
    reader: AbortHandle,
}

impl Acks {
    /// Opens the inbox.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn open(client: &Client) -> Result<Self, Error> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| connection(&error))?;
        let unanswered = Arc::<Mutex<Unanswered>>::default();
        let reader = tokio::spawn(read(answers, Arc::clone(&unanswered))).abort_handle();
        Ok(Self { client: client.clone(), inbox, unanswered, reader })
    }

    /// Hands a message to the connection; messages leave in the order of these calls.
    ///
    /// # Errors
    /// When the connection is closed, or the message is larger than the server takes.
    pub async fn publish(&self, publication: Publication) -> Result<Answer, Error> {
        let Publication { subject, headers, payload } = publication;
        let (sender, receiver) = oneshot::channel();
        let number = lock(&self.unanswered).push(Instant::now(), sender);
        let reply = format!("{}.{number}", self.inbox);
        let sent = self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await;
        if let Err(error) = sent {
            lock(&self.unanswered).take(number);
            return Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Error::TooLarge,
                _ => connection(&error),
            });
        }
        Ok(Answer(receiver))
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

type Sender = oneshot::Sender<Result<Ack, Error>>;

/// Who waits, by number; numbers rise with time.
#[derive(Default)]
struct Unanswered {
    first: u64,
    waiting: VecDeque<(Instant, Option<Sender>)>,
}

impl Unanswered {
    fn push(&mut self, now: Instant, sender: Sender) -> u64 {
        self.waiting.push_back((now, Some(sender)));
        self.first + self.waiting.len() as u64 - 1
    }

    fn take(&mut self, number: u64) -> Option<Sender> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let sender = self.waiting.get_mut(place)?.1.take();
        while self.waiting.front().is_some_and(|(_, sender)| sender.is_none()) {
            self.waiting.pop_front();
            self.first += 1;
        }
        sender
    }

    /// Those that were sent before this.
    fn give_up(&mut self, before: Instant) -> Vec<Sender> {
        let mut given_up = Vec::new();
        while let Some((_, sender)) = self.waiting.pop_front_if(|(sent, sender)| *sent < before || sender.is_none()) {
            self.first += 1;
            given_up.extend(sender);
        }
        given_up
    }
}

fn lock(unanswered: &Mutex<Unanswered>) -> MutexGuard<'_, Unanswered> {
    unanswered.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(mut answers: Subscriber, unanswered: Arc<Mutex<Unanswered>>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_stream: Arc<str> = Arc::from("");
    loop {
        tokio::select! {
            // Time first: answers can come without a pause.
            biased;
            now = look.tick() => {
                // Answers that came while this process stood still are read before anybody is given up.
                if now.elapsed() < LOOK_EVERY && let Some(before) = now.checked_sub(ANSWER_WITHIN) {
                    let given_up = lock(&unanswered).give_up(before);
                    given_up.into_iter().for_each(|sender| drop(sender.send(Err(Error::TimedOut))));
                }
            }
            message = answers.next() => {
                let Some(message) = message else { return };
                let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                let sender = number.and_then(|number| lock(&unanswered).take(number));
                if let Some(sender) = sender {
                    drop(sender.send(outcome(&message, &mut last_stream)));
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    error: Option<SaidError>,
}

#[derive(Deserialize)]
struct SaidError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn outcome(message: &Message, last_stream: &mut Arc<str>) -> Result<Ack, Error> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Error::NoStream);
    }
    let unclear = |reason: String| Error::Refused { code: 0, description: reason };
    let said: Said<'_> = serde_json::from_slice(&message.payload)
        .map_err(|error| unclear(format!("the answer is no acknowledgement: {error}")))?;
    if let Some(error) = said.error {
        let code = if error.err_code == 0 { error.code } else { error.err_code };
        return Err(Error::Refused { code, description: error.description });
    }
    match (said.stream, said.seq) {
        (Some(stream), Some(sequence)) => {
            if **last_stream != *stream {
                *last_stream = Arc::from(stream);
            }
            Ok(Ack { stream: Arc::clone(last_stream), sequence, duplicate: said.duplicate })
        }
        _ => Err(unclear("the answer is no acknowledgement: it names no stream or sequence".to_owned())),
    }
}

fn connection(error: &impl ToString) -> Error {
    Error::Connection(error.to_string())
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use async_nats::jetstream::{self, stream::Config};

    use super::*;
    use crate::server::Server;

    fn publication(subject: &str, id: &str) -> Publication {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        Publication { subject: subject.to_owned(), headers, payload: "x".into() }
    }

    #[tokio::test]
    async fn each_message_gets_its_own_answer() {
        let server = Server::builder().start().await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let config =
            Config { name: "S".into(), subjects: vec!["s".into()], max_message_size: 100, ..Config::default() };
        jetstream::new(client.clone()).create_stream(config).await.unwrap();
        let acks = Acks::open(&client).await.unwrap();
        let mut answers = Vec::new();
        for number in 0..3000 {
            answers.push(acks.publish(publication("s", &number.to_string())).await.unwrap());
        }
        for (number, answer) in answers.into_iter().enumerate() {
            let expected = Ack { stream: "S".into(), sequence: number as u64 + 1, duplicate: false };
            assert_eq!(answer.await, Ok(expected));
        }
        let again = acks.publish(publication("s", "7")).await.unwrap();
        assert_eq!(again.await, Ok(Ack { stream: "S".into(), sequence: 8, duplicate: true }));
        assert_eq!(acks.publish(publication("nowhere", "")).await.unwrap().await, Err(Error::NoStream));
        let mut large = publication("s", "large");
        large.payload = vec![0; 200].into();
        let refused = acks.publish(large).await.unwrap().await.unwrap_err();
        assert_eq!(refused, Error::Refused { code: 10054, description: "message size exceeds maximum allowed".into() });
        let mut listener = client.subscribe("silent").await.unwrap();
        let silent = acks.publish(publication("silent", "")).await.unwrap();
        assert!(listener.next().await.is_some());
        assert_eq!(silent.await, Err(Error::TimedOut));
        assert_eq!(lock(&acks.unanswered).waiting.len(), 0);
    }

    #[test]
    fn numbers_stay_right_whatever_the_order_of_answers() {
        let now = Instant::now();
        let mut unanswered = Unanswered::default();
        let mut receivers = Vec::new();
        for _ in 0..4 {
            let (sender, receiver) = oneshot::channel();
            assert_eq!(unanswered.push(now, sender), receivers.len() as u64);
            receivers.push(receiver);
        }
        for number in [2, 0] {
            unanswered.take(number).unwrap().send(Err(Error::NoStream)).unwrap();
        }
        assert!(unanswered.take(2).is_none() && unanswered.take(0).is_none() && unanswered.take(9).is_none());
        assert_eq!(unanswered.waiting.len(), 3);
        let later = now + Duration::from_secs(1);
        let (sender, _receiver) = oneshot::channel();
        assert_eq!(unanswered.push(later, sender), 4);
        for sender in unanswered.give_up(later) {
            sender.send(Err(Error::TimedOut)).unwrap();
        }
        let got: Vec<_> = receivers.iter_mut().map(|receiver| receiver.try_recv().unwrap()).collect();
        let (gone, late) = (Err(Error::NoStream), Err(Error::TimedOut));
        assert_eq!(got, [gone.clone(), late.clone(), gone, late]);
        assert!(unanswered.take(4).is_some());
    }
}
