//! Reading: a file of events in, checked lines out, in chunks. Runs on a thread of its own, ahead of the network.
//! Never: holds more than a few chunks in memory.

use millstream_saga::subject_matches;
use std::collections::HashSet;
use std::io::{self, BufRead as _, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::Subject;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use tokio::sync::mpsc::Sender;

use crate::cli::progress::grouped;
use crate::subject::{self, Field, Template, beginning_of};

const CHUNK: usize = 256;
const BUFFER_BYTES: usize = 256 * 1024;
/// The largest `max_payload` that a server can have.
const LARGEST_LINE_BYTES: u64 = 64 * 1024 * 1024;
/// Some editors and shells put it before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One event, ready to be published.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) subject: Subject,
    pub(super) id: Option<String>,
    pub(super) body: Bytes,
    /// It was on the way once when the connection was lost: nobody knows whether it is stored.
    pub(super) was_sent: bool,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is no JSON.
    #[error("it is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// Its subject or id cannot be made from it.
    #[error(transparent)]
    Field(#[from] subject::Error),
    /// Its id cannot stand in a header.
    #[error("its id {id:?} is empty or has control characters")]
    Id {
        /// The id.
        id: String,
    },
    /// Resuming goes by ids.
    #[error("it has no field {field:?}, and --resume goes by that id")]
    NoId {
        /// Where the id should be.
        field: String,
    },
    /// No stream takes its subject.
    #[error("no stream holds its subject {subject:?}")]
    NotHeld {
        /// The subject.
        subject: String,
    },
    /// The server would end the connection over it.
    #[error(
        "its subject {:?} has {} bytes, and a control line has room for {}: maximum control line exceeded",
        beginning_of(subject), grouped(subject.len() as u64), grouped(*room as u64)
    )]
    LongSubject {
        /// The subject.
        subject: String,
        /// How long a subject may be.
        room: usize,
    },
    /// It is larger than any server takes.
    #[error("it is longer than {LARGEST_LINE_BYTES} bytes")]
    TooLong,
    /// None of the stored messages is a line of the file.
    #[error("the file ends here, and none of its lines is among the last stored messages")]
    NothingToResume,
    /// The file cannot be read on.
    #[error("cannot read it")]
    Read(#[source] io::Error),
}

/// A line with its problem. Nothing after it is published.
#[derive(Debug)]
pub(super) struct BadLine {
    pub(super) number: u64,
    pub(super) problem: Problem,
}

/// What to make of the lines.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) template: Template,
    pub(super) id_field: Field,
    pub(super) limit: Option<u64>,
    /// The longest subject that the server takes.
    pub(super) subject_bytes: usize,
    /// The filters of the streams, where they do not hold all that the template can give.
    pub(super) held: Option<Vec<String>>,
    /// Ids of the last stored messages, when a run is resumed.
    pub(super) resume_after: Option<HashSet<String>>,
}

/// How far the reading is.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: AtomicU64,
    pub(super) skipped: AtomicU64,
}

type Chunk = Result<Vec<Line>, BadLine>;

/// Reads to the end, or to the first bad line, or until nobody listens any more.
pub(super) fn read(source: impl Read + Send + 'static, plan: &Plan, counters: &Arc<Counters>, chunks: &Sender<Chunk>) {
    let counted = Counted { source, counters: Arc::clone(counters) };
    let reading = match plain_text(counted) {
        Ok(text) => Reading { plan, counters, text, number: 0, has_resumed: plan.resume_after.is_none() }.run(chunks),
        Err(error) => Err(BadLine { number: 1, problem: Problem::Read(error) }),
    };
    if let Err(bad_line) = reading {
        // Nobody listens: then nobody wants to know.
        let _ = chunks.blocking_send(Err(bad_line));
    }
}

struct Counted<R> {
    source: R,
    counters: Arc<Counters>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.counters.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

type Text = BufReader<Box<dyn Read + Send>>;

/// The text itself, unpacked if its first bytes are those of gzip.
fn plain_text(mut source: impl Read + Send + 'static) -> io::Result<Text> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    let mut start = Vec::new();
    source.by_ref().take(2).read_to_end(&mut start)?;
    let is_gzip = start == GZIP;
    let whole = Cursor::new(start).chain(source);
    let text: Box<dyn Read + Send> = if is_gzip {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, whole)))
    } else {
        Box::new(whole)
    };
    Ok(BufReader::with_capacity(BUFFER_BYTES, text))
}

struct Reading<'a> {
    plan: &'a Plan,
    counters: &'a Counters,
    text: Text,
    number: u64,
    has_resumed: bool,
}

impl Reading<'_> {
    fn run(mut self, chunks: &Sender<Chunk>) -> Result<(), BadLine> {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut events = 0;
        while self.plan.limit.is_none_or(|limit| events < limit) {
            let (line, is_end) = match self.next() {
                Ok(Some(line)) => (line, false),
                Ok(None) => (None, true),
                Err(problem) => {
                    // What stands before a bad line is published.
                    let _ = chunks.blocking_send(Ok(chunk));
                    return Err(BadLine { number: self.number, problem });
                }
            };
            if is_end {
                break;
            }
            events += 1;
            chunk.extend(line);
            // Behind a slow writer a line does not wait for more to come.
            let would_wait = !self.text.buffer().contains(&b'\n');
            if chunk.len() >= CHUNK || (would_wait && !chunk.is_empty()) {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                if chunks.blocking_send(Ok(full)).is_err() {
                    return Ok(());
                }
            }
        }
        let _ = chunks.blocking_send(Ok(chunk));
        if self.has_resumed || events == 0 {
            Ok(())
        } else {
            Err(BadLine { number: self.number, problem: Problem::NothingToResume })
        }
    }

    /// The next event; `Some(None)` for one that is stored already; nothing at the end.
    fn next(&mut self) -> Result<Option<Option<Line>>, Problem> {
        let mut bytes = Vec::with_capacity(512);
        loop {
            self.number += 1;
            bytes.clear();
            let length =
                self.text.by_ref().take(LARGEST_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(Problem::Read)?;
            if length == 0 {
                return Ok(None);
            }
            let has_end = bytes.pop_if(|last| *last == b'\n').is_some();
            if !has_end && length as u64 == LARGEST_LINE_BYTES {
                return Err(Problem::TooLong);
            }
            bytes.pop_if(|last| has_end && *last == b'\r');
            if self.number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            if !bytes.trim_ascii().is_empty() {
                return self.line(bytes).map(Some);
            }
        }
    }

    fn line(&mut self, body: Vec<u8>) -> Result<Option<Line>, Problem> {
        let event: Value = serde_json::from_slice(&body).map_err(Problem::NotJson)?;
        let id = self.plan.id_field.text(&event)?;
        if let Some(id) = id.as_ref().filter(|id| id.is_empty() || id.contains(char::is_control)) {
            return Err(Problem::Id { id: id.clone() });
        }
        if self.is_stored(id.as_deref())? {
            self.counters.skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let subject = self.plan.template.render(&event)?;
        if let Some(held) = &self.plan.held
            && !held.iter().any(|filter| subject_matches(filter, &subject))
        {
            return Err(Problem::NotHeld { subject });
        }
        if subject.len() > self.plan.subject_bytes {
            return Err(Problem::LongSubject { subject, room: self.plan.subject_bytes });
        }
        Ok(Some(Line { number: self.number, subject: subject.into(), id, body: body.into(), was_sent: false }))
    }

    /// Everything before the first line that is among the last stored messages is stored too, for lines are stored in order.
    fn is_stored(&mut self, id: Option<&str>) -> Result<bool, Problem> {
        let Some(stored) = &self.plan.resume_after else { return Ok(false) };
        let Some(id) = id else { return Err(Problem::NoId { field: self.plan.id_field.to_string() }) };
        let is_among = stored.contains(id);
        self.has_resumed |= is_among;
        Ok(is_among || !self.has_resumed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn plan(resume_after: Option<&[&str]>, limit: Option<u64>) -> Plan {
        Plan {
            template: Template::parse("s.{a}").unwrap(),
            id_field: Field::parse("id").unwrap(),
            limit,
            subject_bytes: 100,
            held: None,
            resume_after: resume_after.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect()),
        }
    }

    /// Subjects that came, and the bad line that ended it.
    fn read_all(text: &[u8], plan: Plan) -> (Vec<String>, Option<(u64, String)>) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1000);
        read(Cursor::new(text.to_vec()), &plan, &Arc::default(), &sender);
        drop(sender);
        let (mut subjects, mut bad) = (Vec::new(), None);
        while let Some(chunk) = receiver.blocking_recv() {
            match chunk {
                Ok(lines) => subjects.extend(lines.iter().map(|line| line.subject.to_string())),
                Err(line) => bad = Some((line.number, line.problem.to_string())),
            }
        }
        (subjects, bad)
    }

    const THREE: &[u8] = b"{\"a\":1,\"id\":\"x\"}\n\n{\"a\":2,\"id\":\"y\"}\r\n{\"a\":3,\"id\":\"z\"}";

    #[test]
    fn plain_and_packed_files_are_read_alike() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(THREE).unwrap();
        for text in [THREE, &packed.finish().unwrap()] {
            assert_eq!(read_all(text, plan(None, None)), (vec!["s.1".into(), "s.2".into(), "s.3".into()], None));
        }
        assert_eq!(read_all(b"", plan(None, None)), (vec![], None));
        assert_eq!(read_all(THREE, plan(None, Some(2))).0.len(), 2);
        assert_eq!(read_all(THREE, plan(None, Some(0))).0.len(), 0);
    }

    #[test]
    fn a_body_is_the_lines_own_bytes() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(10);
        read(Cursor::new(b" {\"a\": 1 }\r\n".to_vec()), &plan(None, None), &Arc::default(), &sender);
        let line = receiver.blocking_recv().unwrap().unwrap().remove(0);
        assert_eq!((line.body.as_ref(), line.id), (b" {\"a\": 1 }".as_slice(), None));
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_no_part_of_it() {
        let marked = [b"\xef\xbb\xbf".as_slice(), THREE].concat();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&marked).unwrap();
        for text in [marked, packed.finish().unwrap()] {
            assert_eq!(read_all(&text, plan(None, None)), (vec!["s.1".into(), "s.2".into(), "s.3".into()], None));
        }
        assert_eq!(read_all(b"\xef\xbb\xbf", plan(None, None)), (vec![], None));
        assert_eq!(read_all(b"\xef\xbb\xbf\n{\"a\":1}", plan(None, None)), (vec!["s.1".into()], None));
        let inside = b"{\"a\":1}\n\xef\xbb\xbf{\"a\":2}";
        assert_eq!(read_all(inside, plan(None, None)).1, Some((2, "it is not JSON".into())));
    }

    #[test]
    fn a_bad_line_ends_it_with_its_number() {
        let table: [(&[u8], &str); 4] = [
            (b"{\"a\":1}\n\n{oops\n{\"a\":2}", "it is not JSON"),
            (b"{\"a\":1}\n\n{\"b\":1}\n{\"a\":2}", "no field \"a\" in {\"b\":1}"),
            (b"{\"a\":1}\n\n{\"a\":1,\"id\":\"\"}\n", "its id \"\" is empty or has control characters"),
            (b"{\"a\":1}\n\n{\"a\":1,\"id\":\"x\\r\\ny\"}\n", "its id \"x\\r\\ny\" is empty or has control characters"),
        ];
        for (text, problem) in table {
            assert_eq!(read_all(text, plan(None, None)), (vec!["s.1".into()], Some((3, problem.into()))));
        }
        let short = Plan { subject_bytes: 3, ..plan(None, None) };
        let (subjects, bad) = read_all(b"{\"a\":\"x\"}\n{\"a\":\"xy\"}\n", short);
        let problem =
            "its subject \"s.xy\" has 4 bytes, and a control line has room for 3: maximum control line exceeded";
        assert_eq!((subjects, bad), (vec!["s.x".into()], Some((2, problem.into()))));
        let held = Plan { held: Some(vec!["s.1".into()]), ..plan(None, None) };
        assert_eq!(read_all(THREE, held).1, Some((3, "no stream holds its subject \"s.2\"".into())));
    }

    #[test]
    fn a_resumed_file_goes_on_after_what_is_stored() {
        assert_eq!(read_all(THREE, plan(Some(&["y"]), None)).0, ["s.3"]);
        assert_eq!(read_all(THREE, plan(Some(&["x", "z"]), None)).0, ["s.2"]);
        let (subjects, bad) = read_all(THREE, plan(Some(&["other"]), None));
        assert!(subjects.is_empty() && bad.unwrap().1.starts_with("the file ends here"));
        let (subjects, bad) = read_all(b"{\"a\":1}", plan(Some(&["x"]), None));
        assert!(subjects.is_empty() && bad.unwrap().1.contains("--resume"));
    }
}
