//! Sending: checked lines in, acknowledged lines counted out. The only file that knows what becomes of a line when a
//! server is lost. Never: sends a line before one that must be sent again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, Context};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::lines::{BadLine, Counters, Line};
use super::refusal::may_pass;
use super::target::Target;
use super::{Error, Options, Place, Summary};
use crate::cli::connect::{self, Connection};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How soon a lost connection is noticed, and how often progress is told.
const TICK: Duration = Duration::from_millis(50);
/// The client waits this long for an acknowledgement: a line may have been sent that long before its loss is noticed.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// What a server takes for one line of the protocol, if it is not told otherwise (`max_control_line`). It does not say.
const CONTROL_LINE_BYTES: usize = 4096;
/// The sizes of headers and message at the end of that line, and the blanks before them.
const SIZES_BYTES: usize = 19;
/// Acknowledgements resolve a moment after the client counts them.
const SPARE_ACKS: usize = 1024;

/// A connection for one stretch of the run, until it is lost.
pub(super) async fn open(connection: &Connection, options: &Options) -> Result<Context, connect::Error> {
    let client = connection.connect_once().await?;
    let builder = jetstream::ContextBuilder::new().max_ack_inflight(options.in_flight + SPARE_ACKS);
    Ok(builder.timeout(ACK_WAIT).backpressure_on_inflight(true).build(client))
}

/// The longest subject that can be published: beside it stands the subject of the acknowledgement, two tokens below the prefix of
/// inboxes.
pub(super) fn longest_subject(jetstream: &Context) -> usize {
    let inbox = jetstream.client().new_inbox();
    let token = inbox.rsplit('.').next().map_or(0, str::len);
    CONTROL_LINE_BYTES - SIZES_BYTES - inbox.len().min(CONTROL_LINE_BYTES / 2) - 1 - token
}

type Ack = BoxFuture<'static, Result<PublishAck, PublishError>>;

/// A file on its way into the stream.
pub(super) struct Run<'a, F> {
    connection: &'a Connection,
    options: &'a Options,
    jetstream: Context,
    target: Target,
    /// Read, and not sent on this connection.
    waiting: VecDeque<Line>,
    /// Sent, and not acknowledged; oldest first.
    on_the_way: VecDeque<(Line, Ack)>,
    /// Where the file stops being good.
    bad_line: Option<BadLine>,
    lost_since: Option<Instant>,
    summary: Summary,
    counters: Arc<Counters>,
    started: Instant,
    on_progress: F,
}

impl<'a, F: FnMut(&Summary)> Run<'a, F> {
    pub(super) fn new(
        connection: &'a Connection,
        options: &'a Options,
        jetstream: Context,
        target: Target,
        counters: Arc<Counters>,
        on_progress: F,
    ) -> Self {
        Self {
            connection,
            options,
            jetstream,
            target,
            waiting: VecDeque::new(),
            on_the_way: VecDeque::new(),
            bad_line: None,
            lost_since: None,
            summary: Summary::default(),
            counters,
            started: Instant::now(),
            on_progress,
        }
    }

    /// Publishes all that comes. The end of the file, or its first bad line, ends the run when everything before it is stored.
    pub(super) async fn drive(
        mut self,
        mut chunks: mpsc::Receiver<Result<Vec<Line>, BadLine>>,
    ) -> Result<Summary, Error> {
        let mut is_read = false;
        let mut ticks = tokio::time::interval(TICK);
        while !(is_read && self.waiting.is_empty() && self.on_the_way.is_empty()) {
            let has_room = self.on_the_way.len() < self.options.in_flight;
            if has_room && let Some(line) = self.waiting.pop_front() {
                self.send(line).await?;
                continue;
            }
            tokio::select! {
                // Time first: acknowledgements can come without a pause.
                biased;
                _ = ticks.tick() => {
                    self.tell();
                    if is_lost(&self.jetstream) && !self.on_the_way.is_empty() {
                        self.recover(None, None).await?;
                    }
                }
                ack = oldest(&mut self.on_the_way), if !self.on_the_way.is_empty() => self.settle(ack).await?,
                chunk = chunks.recv(), if has_room && !is_read => match chunk {
                    Some(Ok(lines)) => self.waiting.extend(lines),
                    Some(Err(bad_line)) => self.bad_line = Some(bad_line),
                    None => is_read = true,
                },
            }
        }
        self.tell();
        match self.bad_line.take() {
            None => Ok(self.summary),
            Some(BadLine { number, problem }) => Err(Error::Line { line: number, stored: self.stored(), problem }),
        }
    }

    async fn send(&mut self, line: Line) -> Result<(), Error> {
        let mut message = PublishMessage::build().payload(line.body.clone());
        if let Some(id) = &line.id {
            message = message.message_id(id);
        }
        let sent = tokio::select! {
            biased;
            sent = self.jetstream.send_publish(line.subject.clone(), message) => Some(sent),
            () = until_lost(&self.jetstream) => None,
        };
        match sent {
            Some(Ok(ack)) => {
                self.summary.maybe_twice += u64::from(line.was_sent && line.id.is_none());
                self.on_the_way.push_back((line, ack.into_future()));
                Ok(())
            }
            Some(Err(error)) if !may_pass(&error) => Err(self.rejected(&line, error).await),
            Some(Err(_)) | None => {
                self.waiting.push_front(line);
                self.recover(None, None).await
            }
        }
    }

    /// Takes in what became of the oldest line on the way.
    async fn settle(&mut self, ack: Result<PublishAck, PublishError>) -> Result<(), Error> {
        let Some((line, _)) = self.on_the_way.pop_front() else { return Ok(()) };
        match ack {
            Ok(ack) => {
                self.count(&line, &ack);
                Ok(())
            }
            Err(error) if may_pass(&error) => self.recover(Some(line), Some(error)).await,
            Err(error) => Err(self.rejected(&line, error).await),
        }
    }

    fn count(&mut self, line: &Line, ack: &PublishAck) {
        self.lost_since = None;
        // A line that is known because it was sent before a loss is one of ours.
        if ack.duplicate && !line.was_sent {
            self.summary.already_there += 1;
        } else {
            self.summary.published += 1;
        }
    }

    /// Waits for those that are still on the way, so that the count of what is stored is right.
    async fn rejected(&mut self, refused: &Line, source: PublishError) -> Error {
        let (lines, acks): (Vec<Line>, Vec<Ack>) = self.on_the_way.drain(..).unzip();
        let acks = futures::future::join_all(acks).await;
        for (line, ack) in lines.iter().zip(acks) {
            if let Ok(ack) = ack {
                self.count(line, &ack);
            }
        }
        self.tell();
        Error::Rejected { place: self.place(refused), stored: self.stored(), source }
    }

    /// Gives up the connection, puts what was on the way before what waits, and connects anew. `first` is the oldest of it all,
    /// `failure` what came in place of its acknowledgement.
    async fn recover(&mut self, first: Option<Line>, failure: Option<PublishError>) -> Result<(), Error> {
        // A stream that is silent on a good connection is another matter than a server that is away.
        let failure = failure.filter(|_| !is_lost(&self.jetstream));
        let mut again: VecDeque<Line> = first.into_iter().collect();
        let mut settled = Vec::new();
        for (line, ack) in self.on_the_way.drain(..) {
            match ack.now_or_never() {
                Some(Ok(ack)) => settled.push((line, ack)),
                Some(Err(_)) | None => again.push_back(line),
            }
        }
        for (line, ack) in &settled {
            self.count(line, ack);
        }
        again.iter_mut().for_each(|line| line.was_sent = true);
        again.append(&mut self.waiting);
        self.waiting = again;
        if self.lost_since.is_none() {
            self.summary.losses += 1;
        }
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        self.reconnect(since, failure).await
    }

    async fn reconnect(&mut self, since: Instant, mut failure: Option<PublishError>) -> Result<(), Error> {
        let line = self.waiting.front().map_or(0, |line| line.number);
        let mut backoff = FIRST_BACKOFF;
        while since.elapsed() < Duration::from_secs(self.options.give_up_seconds) {
            self.tell();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
            let answers = match open(self.connection, self.options).await {
                Ok(jetstream) => jetstream.query_account().await.is_ok().then_some(jetstream),
                Err(_) => None,
            };
            let Some(jetstream) = answers else {
                failure = None;
                continue;
            };
            let relies_on_ids = self.waiting.iter().any(|line| line.was_sent && line.id.is_some());
            if relies_on_ids && since.elapsed() + ACK_WAIT >= self.target.duplicate_window() {
                return Err(Error::Forgotten { stored: self.stored(), line });
            }
            self.jetstream = jetstream;
            return Ok(());
        }
        let (seconds, stored) = (since.elapsed().as_secs(), self.stored());
        Err(match (failure, self.waiting.front()) {
            (Some(source), Some(line)) => Error::Unacknowledged { place: self.place(line), seconds, stored, source },
            _ => Error::Lost { seconds, stored, line },
        })
    }

    fn place(&self, line: &Line) -> Place {
        let stream = self.target.stream_of(&line.subject).map(str::to_owned);
        Place { line: line.number, subject: line.subject.to_string(), stream }
    }

    fn tell(&mut self) {
        self.summary.bytes_read = self.counters.bytes.load(Ordering::Relaxed);
        self.summary.skipped = self.counters.skipped.load(Ordering::Relaxed);
        self.summary.milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.on_progress)(&self.summary);
    }

    fn stored(&self) -> u64 {
        self.summary.published + self.summary.already_there + self.counters.skipped.load(Ordering::Relaxed)
    }
}

async fn oldest(on_the_way: &mut VecDeque<(Line, Ack)>) -> Result<PublishAck, PublishError> {
    match on_the_way.front_mut() {
        Some((_, ack)) => ack.await,
        None => std::future::pending().await,
    }
}

fn is_lost(jetstream: &Context) -> bool {
    jetstream.client().connection_state() != State::Connected
}

async fn until_lost(jetstream: &Context) {
    while !is_lost(jetstream) {
        tokio::time::sleep(TICK).await;
    }
}
