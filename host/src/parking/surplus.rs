//! Letters that are there though nobody set them aside, or though they were taken up or given up since: a stream that was restored from an
//! older backup, a server that lost a removal in a crash. In: what the journal still says, and more messages than its last record counts.
//! Out: those that it says are done with are removed, those that are none of ours are counted. Never: touches a letter that may be in line.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};

use super::Error;
use super::dead::DeadLetters;
use super::letter::Letter;
use crate::direct_get::{self, From, Last};
use crate::journal::{Journal, Unparked};
use crate::names;

/// Letters of one request, and their bytes.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// Letters that are removed at the same time.
const AT_ONCE: usize = 64;

/// What a message among the letters is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    InLine,
    Done,
    Foreign,
}

/// What there is among the letters: sequences of those that are done with, and how many messages are none of ours.
#[derive(Debug, Default)]
struct Sifted {
    done: Vec<u64>,
    foreign: u64,
}

/// What the journal says was taken up or given up: by key, journal sequence and how far.
#[derive(Debug, Default)]
struct Done(HashMap<Option<String>, Vec<(u64, u64)>>);

impl Done {
    fn add(&mut self, journal: u64, unparked: Unparked) {
        self.0.entry(unparked.key).or_default().push((journal, unparked.through));
    }

    /// A letter that a record before took, by where it lies; one without a key is taken alone.
    fn has(&self, letter: &Letter) -> bool {
        let takes = |(journal, through): &(u64, u64)| {
            let reaches = if letter.key.is_some() { letter.sequence <= *through } else { letter.sequence == *through };
            letter.place.0 < *journal && reaches
        };
        self.0.get(&letter.key).is_some_and(|taken| taken.iter().any(takes))
    }

    fn judge(&self, message: Last) -> Found {
        match Letter::read(message) {
            None => Found::Foreign,
            Some(letter) if self.has(&letter) => Found::Done,
            Some(_) => Found::InLine,
        }
    }
}

impl DeadLetters {
    /// Removes the letters that the journal up to its last record says are done with. Answers how many, and how many messages are none of
    /// ours.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn sort_out(&self, journal: &Journal, last: u64) -> Result<(u64, u64), Error> {
        let mut done = Done::default();
        for (record, unparked) in journal.unparked(last).await.map_err(unread)? {
            done.add(record, unparked);
        }
        let Sifted { done, foreign } = self.sift(|message| done.judge(message)).await?;
        let units = done.len();
        if units > 0 {
            tracing::error!(
                handler = self.generation.handler,
                units,
                "dead letters were there again that are taken up or given up, as after a restored backup; they are removed"
            );
            self.delete_all(done).await?;
        }
        Ok((units as u64, foreign))
    }

    /// Sequences of the letters that records after `last` set aside: where the journal ends there, their events are decided again.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn after(&self, last: u64) -> Result<Vec<u64>, Error> {
        let judge = |message: Last| match Letter::read(message) {
            None => Found::Foreign,
            Some(letter) if letter.place.0 > last => Found::Done,
            Some(_) => Found::InLine,
        };
        Ok(self.sift(judge).await?.done)
    }

    async fn sift(&self, judge: impl Fn(Last) -> Found) -> Result<Sifted, Error> {
        let mut sifted = Sifted::default();
        let (subjects, mut next) = (self.all(), 1);
        let there: u64 = self.census().await?.0.values().sum();
        let mut seen = 0;
        while seen < there {
            let from = From::Sequence(next);
            let page = direct_get::page(&self.jetstream, names::DEAD, &subjects, from, PAGE, PAGE_BYTES).await;
            let page = page.map_err(unread)?;
            let Some(last) = page.last() else { break };
            next = last.sequence + 1;
            seen += page.len() as u64;
            for message in page {
                let sequence = message.sequence;
                match judge(message) {
                    Found::InLine => {}
                    Found::Done => sifted.done.push(sequence),
                    Found::Foreign => sifted.foreign += 1,
                }
            }
        }
        if seen < there {
            return Err(unread(format!("the replica that answers has {seen} of {there}")));
        }
        Ok(sifted)
    }

    /// Removes these letters.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn delete_all(&self, letters: Vec<u64>) -> Result<(), Error> {
        let Some(stream) = self.stream().await? else { return Ok(()) };
        let removals = futures::stream::iter(letters).map(|sequence| Self::delete(&stream, sequence));
        removals.buffer_unordered(AT_ONCE).try_collect().await
    }
}

fn unread(error: impl std::fmt::Display) -> Error {
    Error::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;
    use crate::journal::{Park, ParkedUnit};
    use crate::parking::letter::{self, Origin};

    /// The letter of a record, as it lies in its stream.
    fn letter(key: Option<&str>, journal: u64, sequence: u64) -> Last {
        let text = String::new;
        let unit =
            ParkedUnit { key: key.map(str::to_owned), class: text(), reason: text(), backtrace: text(), first: true };
        let units = vec![unit.clone()];
        let park =
            Park { stream: text(), sequence: 1, stored: 1, subject: text(), headers: vec![], payload: vec![], units };
        let origin = Origin { handler: "h", generation: 1, digest: "d", journal, time: 1 };
        let letter = letter::publication(origin, 0, &park, &unit, true);
        Last { subject: letter.subject, sequence, stored: 1, headers: letter.headers, payload: letter.payload }
    }

    fn unparked(key: Option<&str>, through: u64) -> Unparked {
        Unparked { key: key.map(str::to_owned), through, units: 1, discarded: None }
    }

    #[test]
    fn what_a_later_record_took_is_done_with_and_what_was_set_aside_after_it_is_not() {
        let mut done = Done::default();
        done.add(10, unparked(Some("a"), 5));
        done.add(20, unparked(Some("a"), 9));
        done.add(15, unparked(None, 7));
        for (key, journal, sequence, found) in [
            (Some("a"), 9, 5, Found::Done),
            (Some("a"), 19, 9, Found::Done),
            (Some("a"), 19, 10, Found::InLine),
            // Of a stream that was restored, and counts from less again.
            (Some("a"), 21, 6, Found::InLine),
            (Some("a"), 12, 4, Found::Done),
            (Some("b"), 9, 5, Found::InLine),
            (None, 9, 7, Found::Done),
            (None, 9, 6, Found::InLine),
            (None, 16, 7, Found::InLine),
        ] {
            assert_eq!(done.judge(letter(key, journal, sequence)), found, "{key:?} {journal} {sequence}");
        }
        let foreign = Last { headers: HeaderMap::new(), ..letter(Some("a"), 9, 5) };
        assert_eq!(done.judge(foreign), Found::Foreign);
    }
}
