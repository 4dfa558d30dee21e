//! What streams hold, read without a consumer. In: a stream, a filter, where to begin; or several streams. Out: messages in stream
//! order, page by page; of several streams the one stored first comes first. Never: leaves anything behind on a user's stream.

use std::collections::VecDeque;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};

use crate::direct_get::{self, From, Last};
use crate::inputs::Input;
use crate::intake::Arrival;

/// Messages of one request, and their bytes.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// A stream, or some of it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub stream: &'a str,
    /// Which of its messages.
    pub filter: &'a str,
    /// Whether it answers direct gets.
    pub direct: bool,
    /// First sequence it still has.
    pub first: u64,
}

/// Pages of a stream.
pub struct Reader {
    jetstream: Context,
    stream: String,
    filter: String,
    from: From,
    /// For a stream that answers no direct gets: asked of its leader, one message at a time.
    leader: Option<Stream>,
}

impl Reader {
    /// Begins there. A stream that answers no direct gets cannot be entered by time: it is read from its first message.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn open(jetstream: &Context, source: Source<'_>, from: From) -> anyhow::Result<Self> {
        let Source { stream, filter, direct, first } = source;
        let leader = match direct {
            true => None,
            false => Some(jetstream.get_stream(stream).await.context("a stream is gone")?),
        };
        let from = match from {
            From::Time(_) if !direct => From::Sequence(first.max(1)),
            From::Sequence(from) => From::Sequence(from.max(first).max(1)),
            From::Time(time) => From::Time(time),
        };
        Ok(Self { jetstream: jetstream.clone(), stream: stream.to_owned(), filter: filter.to_owned(), from, leader })
    }

    /// The next page; an empty one at the end.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn next(&mut self) -> anyhow::Result<Vec<Last>> {
        let page = match (&self.leader, self.from) {
            (Some(leader), From::Sequence(sequence)) => {
                match leader.get_first_raw_message_by_subject(&self.filter, sequence).await {
                    Ok(message) => vec![Last {
                        subject: message.subject.to_string(),
                        sequence: message.sequence,
                        stored: i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or_default(),
                        headers: message.headers,
                        payload: message.payload,
                    }],
                    Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Vec::new(),
                    Err(error) => return Err(error).context(format!("stream {} does not answer", self.stream)),
                }
            }
            _ => direct_get::page(&self.jetstream, &self.stream, &self.filter, self.from, PAGE, PAGE_BYTES).await?,
        };
        if let Some(last) = page.last() {
            self.from = From::Sequence(last.sequence + 1);
        }
        Ok(page)
    }
}

/// The recorded events of a handler's inputs.
pub struct Past {
    streams: Vec<Recorded>,
}

/// One of its streams; a reader for each filter.
struct Recorded {
    stream: String,
    until: u64,
    readers: Vec<(Reader, VecDeque<Last>)>,
}

impl Past {
    /// All of these inputs from there on, up to their last message as they were looked at.
    ///
    /// # Errors
    /// When a stream is gone.
    pub async fn open(jetstream: &Context, inputs: &[Input], from: From) -> anyhow::Result<Self> {
        let mut streams = Vec::with_capacity(inputs.len());
        for Input { stream, filters, first, last, direct, .. } in inputs {
            let mut readers = Vec::with_capacity(filters.len());
            for filter in filters {
                let source = Source { stream, filter, direct: *direct, first: *first };
                readers.push((Reader::open(jetstream, source, from).await?, VecDeque::new()));
            }
            streams.push(Recorded { stream: stream.clone(), until: *last, readers });
        }
        Ok(Self { streams })
    }

    /// The next events, all of one stream, whose name comes with them; none at the end.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn next(&mut self, most: usize, most_bytes: usize) -> anyhow::Result<Option<(String, Vec<Arrival>)>> {
        let mut heads = Vec::with_capacity(self.streams.len());
        for (number, stream) in self.streams.iter_mut().enumerate() {
            if let Some(stored) = stream.head().await? {
                heads.push((stored, number));
            }
        }
        heads.sort_unstable();
        let Some((_, first)) = heads.first().copied() else { return Ok(None) };
        let before = heads.get(1).map(|(stored, _)| *stored);
        let Some(stream) = self.streams.get_mut(first) else { return Ok(None) };
        let (mut arrivals, mut bytes) = (Vec::new(), 0);
        while arrivals.len() < most
            && bytes < most_bytes
            && let Some(stored) = stream.head().await?
            && (arrivals.is_empty() || before.is_none_or(|before| stored <= before))
            && let Some(message) = stream.take()
        {
            bytes += message.payload.len();
            arrivals.push(arrival(message));
        }
        Ok(Some((stream.stream.clone(), arrivals)))
    }
}

impl Recorded {
    /// When the next message was stored.
    async fn head(&mut self) -> anyhow::Result<Option<i64>> {
        for (reader, page) in &mut self.readers {
            if page.is_empty() {
                let next = reader.next().await?.into_iter();
                page.extend(next.take_while(|message| message.sequence <= self.until));
            }
        }
        let next = self.readers.iter().filter_map(|(_, page)| page.front());
        Ok(next.min_by_key(|message| message.sequence).map(|message| message.stored))
    }

    fn take(&mut self) -> Option<Last> {
        let pages = self.readers.iter_mut().map(|(_, page)| page).filter(|page| !page.is_empty());
        pages.min_by_key(|page| page.front().map(|message| message.sequence))?.pop_front()
    }
}

/// As if a consumer had delivered it.
fn arrival(message: Last) -> Arrival {
    let Last { subject, sequence, stored, headers, payload } = message;
    Arrival::made_of(subject, headers, payload, sequence, stored)
}
