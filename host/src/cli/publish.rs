//! `millstream publish`. In: a file of events. Out: a stream that has them in order, each with its message id, many on
//! the way at once. Never: takes a line for stored without its acknowledgement.
//!
//! Order is kept through the loss of a server: a lost connection is never used again, and what was not acknowledged is
//! sent again from the first such line on.

mod lines;
mod refusal;
mod sending;
mod target;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use serde::Serialize;
use tokio::sync::mpsc;

use super::connect::{self, Connection};
use super::progress::{Progress, grouped, rate};
use crate::subject::{self, Field, Template, beginning_of};
use lines::{Counters, Plan};
use sending::Run;
use target::Target;

pub use lines::Problem;

/// Chunks of lines read ahead of the network.
const CHUNKS_AHEAD: usize = 16;

/// Publish a file of events.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// File of events, one JSON text per line, plain or gzip; "-" or nothing reads stdin
    pub file: Option<PathBuf>,
    /// What to do with it.
    #[command(flatten)]
    pub options: Options,
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
    /// How long to wait for a server that is away, or for a stream that acknowledges nothing
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub give_up_seconds: u64,
    /// Go on with a file that was published in part; --in-flight not below that of the first run
    #[arg(long)]
    pub resume: bool,
}

impl Options {
    /// The usual options for this subject template.
    pub fn new(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            id_field: "eventId".to_owned(),
            limit: None,
            in_flight: 4096,
            give_up_seconds: 60,
            resume: false,
        }
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
        let mut text =
            format!("{} published, {} already there, ", grouped(self.published), grouped(self.already_there));
        if self.skipped > 0 {
            text.push_str(&format!("{} skipped, ", grouped(self.skipped)));
        }
        if self.maybe_twice > 0 {
            text.push_str(&format!(
                "{} without an id sent again after a loss and maybe stored twice, ",
                grouped(self.maybe_twice)
            ));
        }
        text.push_str(&format!("{:.1} s, {}", time.as_secs_f64(), rate(self.published + self.already_there, time)));
        text
    }
}

/// A line, and where it was to go.
#[derive(Debug)]
pub struct Place {
    /// Its number, from 1.
    pub line: u64,
    /// Its subject.
    pub subject: String,
    /// The stream that takes the subject; none if the streams changed since we looked.
    pub stream: Option<String>,
}

impl Place {
    fn stream(&self) -> &str {
        self.stream.as_deref().unwrap_or_default()
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
    /// The stream, or the server, refuses a line.
    #[error(
        "line {} (subject {:?}, stream {:?}) was refused; {} lines are stored",
        place.line, beginning_of(&place.subject), place.stream(), grouped(*.stored)
    )]
    Rejected {
        /// Which line.
        place: Place,
        /// How many lines are stored.
        stored: u64,
        /// What the server said.
        source: PublishError,
    },
    /// The server is there, but says neither that it stored nor that it refuses: a full disk can be the cause.
    #[error(
        "stream {:?} has acknowledged nothing for {seconds} s; {} lines are stored, the next is line {} (subject {:?})",
        place.stream(), grouped(*.stored), place.line, beginning_of(&place.subject)
    )]
    Unacknowledged {
        /// The first line of which nobody knows.
        place: Place,
        /// How long we waited.
        seconds: u64,
        /// How many lines are stored.
        stored: u64,
        /// What came in place of an acknowledgement.
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
    /// The server was away, or silent, for so long that it may have forgotten the ids.
    #[error("nothing was acknowledged for longer than the stream's duplicate window; {} lines are stored, the next is line {line}", grouped(*.stored))]
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
            Self::Rejected { .. } | Self::Unacknowledged { .. } | Self::Lost { .. } | Self::Forgotten { .. } => 1,
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
            Self::Line { problem: Problem::LongSubject { .. }, .. } => {
                "shorten what --subject makes of that line, and publish the file again with --resume"
            }
            Self::Line { .. } => "correct that line and publish the file again with --resume",
            Self::Rejected { place, source, .. }
                if let Some(way) = refusal::how_to_make_room(source, place.stream()) =>
            {
                return Some(format!("{way}; then go on with --resume"));
            }
            Self::Unacknowledged { place, .. } => {
                return Some(format!(
                    "look for stream {:?} in the server's log: a full disk says `no space left on device` there; then go on with --resume",
                    place.stream()
                ));
            }
            Self::Rejected { .. } | Self::Lost { .. } | Self::Forgotten { .. } => {
                "when the cause is gone, go on with --resume"
            }
            Self::Options(_) | Self::File { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// The command: opens the file, publishes it, tells how far it is and what came of it.
pub async fn run(connection: &Connection, arguments: &Arguments, json: bool) -> Result<(), Error> {
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
            progress.say("no acknowledgements any more; lines without one are sent again");
        }
        progress.set(summary.bytes_read, || summary.in_words());
    })
    .await;
    progress.finish();
    let summary = result?;
    eprintln!("{}", summary.in_words());
    if json {
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
    let jetstream = sending::open(connection, options).await?;
    let target = Target::find(&jetstream, template.filter()).await?;
    // Twice: the unknown may be what was on the way, and as much again is proof.
    let resume_after = if options.resume { target.last_ids(options.in_flight * 2).await? } else { None };
    let plan = Plan {
        template,
        id_field,
        limit: options.limit,
        subject_bytes: sending::longest_subject(&jetstream),
        held: target.filters_to_check(),
        resume_after,
    };

    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let counters = Arc::new(Counters::default());
    let counters_of_reader = Arc::clone(&counters);
    // A thread, not a task: when we end early, it may stay blocked in a read from stdin, and must not hold up the exit.
    std::thread::spawn(move || lines::read(source, &plan, &counters_of_reader, &sender));
    Run::new(connection, options, jetstream, target, counters, on_progress).drive(chunks).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::{CommandFactory as _, Parser as _};
        CommandLine::command().debug_assert();
        let words = ["x", "--subject", "a.{b}", "--server", "nats://h", "f.gz", "--limit", "3", "--resume"];
        let line = CommandLine::parse_from(words);
        assert_eq!(line.connection.server.as_deref(), Some("nats://h"));
        let options = line.arguments.options;
        assert_eq!((options.limit, options.resume, options.in_flight), (Some(3), true, 4096));
        assert_eq!(options.id_field, Options::new("a.{b}").id_field);
        assert!(CommandLine::try_parse_from(["x", "--subject", "a", "--in-flight", "0"]).is_err());
        assert!(CommandLine::try_parse_from(["x", "--subject", "a", "--tlscert", "c"]).is_err());
    }

    #[test]
    fn a_summary_is_one_line() {
        let summary = Summary { published: 561_470, milliseconds: 5200, ..Summary::default() };
        assert_eq!(summary.in_words(), "561,470 published, 0 already there, 5.2 s, 108k/s");
        let summary = Summary { published: 1, skipped: 2, maybe_twice: 3, milliseconds: 1000, ..Summary::default() };
        let words = "1 published, 0 already there, 2 skipped, 3 without an id sent again after a loss and maybe stored twice, 1.0 s, 1/s";
        assert_eq!(summary.in_words(), words);
    }
}
