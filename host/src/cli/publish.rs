//! `millstream publish`: a file of events into a stream, in order, each with its message id, many on the way at once.
//!
//! A line is published when its acknowledgement came, and order is kept through the loss of a server: a lost connection is never
//! used again, and what was not acknowledged is sent again from the first such line on.

mod lines;
mod target;

use std::collections::VecDeque;
use std::error::Error as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, Context};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::mpsc;

use super::connect::{self, Connection};
use super::progress::{Progress, grouped, rate};
use crate::subject::{self, Field, Template};
use lines::{BadLine, Counters, Line, Plan};
use target::Target;

pub use lines::Problem;

/// How long a server may be away before we give up.
const LOSS_DEADLINE: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How soon a lost connection is noticed, and how often progress is told.
const TICK: Duration = Duration::from_millis(50);
/// The client waits this long for an acknowledgement: a line may have been sent that long before its loss is noticed.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// Chunks of lines read ahead of the network.
const CHUNKS_AHEAD: usize = 16;
/// Acknowledgements resolve a moment after the client counts them.
const SPARE_ACKS: usize = 1024;

/// `millstream publish`
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// File of events, one JSON text per line, plain or gzip; "-" or nothing reads stdin
    pub file: Option<PathBuf>,
    /// What to do with it.
    #[command(flatten)]
    pub options: Options,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// How to publish.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Subject of each event, fields of it in braces: 'fines.{aggregateId}'
    #[arg(long, value_name = "TEMPLATE")]
    pub subject: String,
    /// Field whose value is the message id; an event without it has none
    #[arg(long, value_name = "FIELD", default_value = "eventId")]
    pub id_field: String,
    /// Publish at most this many events
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u64>,
    /// How many events may be on the way without an acknowledgement
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    pub in_flight: usize,
    /// Go on with a file that was published in part; --in-flight not below that of the first run
    #[arg(long)]
    pub resume: bool,
}

impl Options {
    /// The usual options for this subject template.
    pub fn new(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), id_field: "eventId".to_owned(), limit: None, in_flight: 4096, resume: false }
    }
}

/// What came of it, so far or in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Events stored by this run.
    pub published: u64,
    /// Events that the stream knew by their ids.
    pub already_there: u64,
    /// Events that a resumed run found stored and did not send.
    pub skipped: u64,
    /// Events without an id that were sent again after a loss: these may be stored twice.
    pub maybe_twice: u64,
    /// How often the connection was lost.
    pub losses: u64,
    /// Bytes read from the file, as they lie there.
    pub bytes_read: u64,
    /// How long it took.
    pub milliseconds: u64,
}

impl Summary {
    fn in_words(&self) -> String {
        let time = Duration::from_millis(self.milliseconds);
        let mut text = format!("{} published, {} already there, ", grouped(self.published), grouped(self.already_there));
        if self.skipped > 0 {
            text.push_str(&format!("{} skipped, ", grouped(self.skipped)));
        }
        if self.maybe_twice > 0 {
            text.push_str(&format!("{} without an id sent again after a loss and maybe stored twice, ", grouped(self.maybe_twice)));
        }
        text.push_str(&format!("{:.1} s, {}", time.as_secs_f64(), rate(self.published + self.already_there, time)));
        text
    }
}

/// Why not all of the file is published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Template or id field are not well-formed.
    #[error(transparent)]
    Options(#[from] subject::Error),
    /// The file cannot be opened.
    #[error("cannot open {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no connection to begin with.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// JetStream refused to answer a question.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// What JetStream said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing would keep the events.
    #[error("no stream holds {filter:?}")]
    NoStream {
        /// What the template gives.
        filter: String,
    },
    /// The stream never says what it stored.
    #[error("stream {stream:?} acknowledges nothing (no_ack), so nobody would know what is stored")]
    NoAck {
        /// The stream.
        stream: String,
    },
    /// A line of the file cannot be published.
    #[error("line {line} cannot be published; {} before it are stored, nothing after it", grouped(*.stored))]
    Line {
        /// Its number, from 1.
        line: u64,
        /// How many lines this run or an earlier one stored.
        stored: u64,
        /// What is wrong with it.
        #[source]
        problem: Problem,
    },
    /// The server refuses a line.
    #[error("line {line} was refused; {} lines are stored", grouped(*.stored))]
    Rejected {
        /// Its number, from 1.
        line: u64,
        /// How many lines are stored.
        stored: u64,
        /// What the server said.
        source: PublishError,
    },
    /// The server went away and did not come back.
    #[error("the NATS server is away for {seconds} s; {} lines are stored, the next is line {line}", grouped(*.stored))]
    Lost {
        /// How long we waited.
        seconds: u64,
        /// How many lines are stored.
        stored: u64,
        /// The first line of which nobody knows.
        line: u64,
    },
    /// The server was away for so long that it may have forgotten the ids.
    #[error("the NATS server was away longer than the stream's duplicate window; {} lines are stored, the next is line {line}", grouped(*.stored))]
    Forgotten {
        /// How many lines are stored.
        stored: u64,
        /// The first line of which nobody knows.
        line: u64,
    },
}

impl Error {
    fn api<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Api { what, source: error.into() }
    }

    /// What `main` exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Options(_) | Self::File { .. } | Self::Line { .. } => 2,
            Self::Connect(error) if error.is_usage() => 2,
            Self::Connect(_) | Self::Api { .. } | Self::NoStream { .. } | Self::NoAck { .. } => 1,
            Self::Rejected { .. } | Self::Lost { .. } | Self::Forgotten { .. } => 1,
        }
    }

    /// The next thing to do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Connect(error) => return error.hint().map(str::to_owned),
            Self::NoStream { filter } => return Some(format!("nats stream add NAME --subjects '{filter}' --defaults")),
            Self::Api { .. } => "check that this user may use $JS.API.>, and that JetStream is enabled",
            Self::NoAck { .. } => "publish into a stream that acknowledges",
            Self::Line { problem: Problem::NothingToResume, .. } => "publish the whole file: leave out --resume",
            Self::Line { .. } => "correct that line and publish the file again with --resume",
            Self::Rejected { .. } | Self::Lost { .. } | Self::Forgotten { .. } => "when the cause is gone, go on with --resume",
            Self::Options(_) | Self::File { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// The command: opens the file, publishes it, tells how far it is and what came of it.
pub async fn run(connection: &Connection, arguments: &Arguments) -> Result<(), Error> {
    let file = arguments.file.as_ref().filter(|path| path.as_os_str() != "-");
    let (source, size): (Box<dyn Read + Send>, Option<u64>) = match file {
        None => (Box::new(io::stdin()), None),
        Some(path) => {
            let failed = |source| Error::File { path: path.clone(), source };
            let file = File::open(path).map_err(failed)?;
            let details = file.metadata().map_err(failed)?;
            (Box::new(file), details.is_file().then_some(details.len()))
        }
    };
    let mut progress = Progress::new("publish", size);
    let mut losses = 0;
    let result = publish(connection, &arguments.options, source, |summary| {
        if summary.losses > losses {
            losses = summary.losses;
            progress.say("connection lost; lines without an acknowledgement are sent again");
        }
        progress.set(summary.bytes_read, || summary.in_words());
    })
    .await;
    progress.finish();
    let summary = result?;
    eprintln!("{}", summary.in_words());
    if arguments.json {
        println!("{}", serde_json::to_string(&summary).map_err(Error::api("write the summary"))?);
    }
    Ok(())
}

/// Publishes each line of `source`, in order. It makes its own connection: order cannot be kept on one that reconnects by itself.
/// `on_progress` hears of it twenty times a second.
pub async fn publish(
    connection: &Connection,
    options: &Options,
    source: impl Read + Send + 'static,
    on_progress: impl FnMut(&Summary),
) -> Result<Summary, Error> {
    let template = Template::parse(&options.subject)?;
    let id_field = Field::parse(&options.id_field)?;
    let jetstream = open(connection, options).await?;
    let target = Target::find(&jetstream, template.filter()).await?;
    // Twice: the unknown may be what was on the way, and as much again is proof.
    let resume_after = if options.resume { target.last_ids(options.in_flight * 2).await? } else { None };
    let plan = Plan { template, id_field, limit: options.limit, held: target.filters_to_check(), resume_after };

    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let counters = Arc::new(Counters::default());
    let counters_of_reader = Arc::clone(&counters);
    // A thread, not a task: when we end early, it may stay blocked in a read from stdin, and must not hold up the exit.
    std::thread::spawn(move || lines::read(source, &plan, &counters_of_reader, &sender));
    let run = Run {
        connection,
        options,
        jetstream,
        duplicate_window: target.duplicate_window(),
        waiting: VecDeque::new(),
        on_the_way: VecDeque::new(),
        bad_line: None,
        lost_since: None,
        summary: Summary::default(),
        counters,
        started: Instant::now(),
        on_progress,
    };
    run.to_the_end(chunks).await
}

async fn open(connection: &Connection, options: &Options) -> Result<Context, connect::Error> {
    let client = connection.connect_once().await?;
    let builder = jetstream::ContextBuilder::new().max_ack_inflight(options.in_flight + SPARE_ACKS);
    Ok(builder.timeout(ACK_WAIT).backpressure_on_inflight(true).build(client))
}

type Ack = BoxFuture<'static, Result<PublishAck, PublishError>>;

/// A file on its way into the stream.
struct Run<'a, F> {
    connection: &'a Connection,
    options: &'a Options,
    jetstream: Context,
    duplicate_window: Duration,
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

impl<F: FnMut(&Summary)> Run<'_, F> {
    async fn to_the_end(mut self, mut chunks: mpsc::Receiver<Result<Vec<Line>, BadLine>>) -> Result<Summary, Error> {
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
                        self.recover(None).await?;
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
            Some(Err(error)) if !may_pass(&error) => Err(self.rejected(line.number, error).await),
            Some(Err(_)) | None => {
                self.waiting.push_front(line);
                self.recover(None).await
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
            Err(error) if may_pass(&error) => self.recover(Some(line)).await,
            Err(error) => Err(self.rejected(line.number, error).await),
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
    async fn rejected(&mut self, line: u64, source: PublishError) -> Error {
        let (lines, acks): (Vec<Line>, Vec<Ack>) = self.on_the_way.drain(..).unzip();
        let acks = futures::future::join_all(acks).await;
        for (line, ack) in lines.iter().zip(acks) {
            if let Ok(ack) = ack {
                self.count(line, &ack);
            }
        }
        self.tell();
        Error::Rejected { line, stored: self.stored(), source }
    }

    /// Gives up the connection, puts what was on the way before what waits, and connects anew. `first` is the oldest of it all.
    async fn recover(&mut self, first: Option<Line>) -> Result<(), Error> {
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
        self.reconnect(since).await
    }

    async fn reconnect(&mut self, since: Instant) -> Result<(), Error> {
        let line = self.waiting.front().map_or(0, |line| line.number);
        let mut backoff = FIRST_BACKOFF;
        while since.elapsed() < LOSS_DEADLINE {
            self.tell();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
            let Ok(jetstream) = open(self.connection, self.options).await else { continue };
            if jetstream.query_account().await.is_err() {
                continue;
            }
            let relies_on_ids = self.waiting.iter().any(|line| line.was_sent && line.id.is_some());
            if relies_on_ids && since.elapsed() + ACK_WAIT >= self.duplicate_window {
                return Err(Error::Forgotten { stored: self.stored(), line });
            }
            self.jetstream = jetstream;
            return Ok(());
        }
        Err(Error::Lost { seconds: since.elapsed().as_secs(), stored: self.stored(), line })
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

/// Whether the same line may be taken when it is sent again: nobody answered, or JetStream was not ready. A stream that refuses a
/// message for being full says that it is unavailable, too; waiting does not help there.
fn may_pass(error: &PublishError) -> bool {
    const UNAVAILABLE: usize = 503;
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::StreamNotFound => true,
        PublishErrorKind::Other => {
            let said = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
            said.is_some_and(|said| said.code() == UNAVAILABLE && said.error_code() != jetstream::ErrorCode::STREAM_STORE_FAILED)
        }
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line() {
        let summary = Summary { published: 561_470, milliseconds: 5200, ..Summary::default() };
        assert_eq!(summary.in_words(), "561,470 published, 0 already there, 5.2 s, 108k/s");
        let summary = Summary { published: 1, skipped: 2, maybe_twice: 3, milliseconds: 1000, ..Summary::default() };
        let words = "1 published, 0 already there, 2 skipped, 3 without an id sent again after a loss and maybe stored twice, 1.0 s, 1/s";
        assert_eq!(summary.in_words(), words);
    }
}
