//! What a generation's last record says, and the record with which it goes on as something else. In: its journal. Out: the same,
//! fenced by the sequence of that last record. Never: claims.

use crate::claim;
use crate::clock;
use crate::journal::{Counts, Error, Journal, Kind, Makes, Parking, Position, Record, Standing};
use crate::sandbox::Digest;

/// A generation's last record, as far as a promotion needs it.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    /// Its journal sequence.
    pub(super) sequence: u64,
    /// Journal sequence of the one before.
    pub(super) previous: u64,
    pub(super) standing: Standing,
    pub(super) positions: Vec<Position>,
    counts: Counts,
    pub(super) digest: Digest,
    pub(super) bucket: i64,
    makes: Option<Makes>,
    in_line: u64,
}

impl Stand {
    /// The last record, from the leader; none where the generation has not begun.
    pub(super) async fn read(journal: &Journal) -> Result<Option<Self>, Error> {
        let Some((sequence, bytes)) = journal.last().await? else { return Ok(None) };
        let record = Record::decode(&bytes, sequence)?;
        Ok(Some(Self {
            sequence,
            previous: record.previous,
            standing: record.standing,
            positions: record.positions,
            counts: record.counts,
            digest: Digest(record.digest),
            bucket: record.bucket,
            makes: record.makes,
            in_line: record.in_line,
        }))
    }

    /// Goes on in another standing, with the documents in the bucket that was created then. Nothing of what is in records so far
    /// is shown or published again.
    pub(super) async fn go_on(
        &self,
        journal: &Journal,
        host: &str,
        standing: Standing,
        bucket: i64,
    ) -> Result<u64, Error> {
        let record = Record {
            standing,
            previous: self.sequence,
            time: clock::now(),
            positions: self.positions.clone(),
            counts: self.counts,
            shown_through: self.sequence,
            acted_through: self.sequence,
            bucket,
            makes: self.makes,
            parking: Parking { through: self.sequence, ..Parking::default() },
            in_line: self.in_line,
            ..Record::new(Kind::Begin, claim::fresh_id(), host, self.digest)
        };
        journal.append(self.sequence, record.encode()?).await
    }
}
