//! Taking a handler. In: its journal. Out: where the last record left off, under a claim record of our own that fences
//! every earlier owner. Also: a host that comes back after trouble learns here whether it still owns the handler.
//! Never: takes it back from a host that claimed later.

use bytes::Bytes;

use crate::clock;
use crate::journal::{Counts, Error, Journal, Kind, Makes, Parking, Position, Record, Standing};
use crate::names;
use crate::sandbox::Digest;

/// Tries when hosts claim at the same moment; each loss means that another host got through.
const TRIES: usize = 5;

/// Who claims.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The handler's name.
    pub handler: String,
    /// The host's name.
    pub host: String,
    /// The module it will run.
    pub digest: Digest,
    /// What that module makes; none: what is there already.
    pub makes: Option<Makes>,
    /// What the generation must be.
    pub standing: Standing,
    /// The number under which this life of the handler claims, and claims again after trouble.
    pub id: u64,
    /// True once a claim went through: if the journal then names another, that one fenced us.
    pub held: bool,
    /// Where its input streams begin now, for those that no record knows yet.
    pub begins: Vec<Position>,
}

/// A claim, and what the last record says.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// This claim's number.
    pub id: u64,
    /// What the generation is.
    pub standing: Standing,
    /// What its documents are.
    pub makes: Option<Makes>,
    /// Journal sequence of the claim record: the next record's fence.
    pub last: u64,
    /// Positions as decided.
    pub positions: Vec<Position>,
    /// Outcomes so far.
    pub counts: Counts,
    /// Documents of records up to here are in the bucket.
    pub shown_through: u64,
    /// Effects of records up to here are published.
    pub acted_through: u64,
    /// When the documents' bucket was created, nanoseconds since 1970.
    pub bucket: i64,
    /// What was parked lately, and up to where dead letters are stored.
    pub parking: Parking,
    /// Units that are set aside.
    pub in_line: u64,
    /// Streams that no record knew before: what they dropped until now was nobody's.
    pub begun: Vec<String>,
}

/// Claims the handler, whose bucket was created at `bucket` (nanoseconds since 1970).
///
/// # Errors
/// `Fenced` when this life held the handler and no longer does, or when others claim faster.
pub async fn take(journal: &Journal, claimant: &Claimant, bucket: i64) -> Result<Claim, Error> {
    let mut lost = 0;
    for _ in 0..TRIES {
        let last = journal.last().await?;
        let mut claim = resume(last.as_ref(), claimant, bucket)?;
        let record = Record {
            time: clock::now(),
            positions: claim.positions.clone(),
            counts: claim.counts,
            shown_through: claim.shown_through,
            acted_through: claim.acted_through,
            bucket: claim.bucket,
            standing: claim.standing,
            makes: claim.makes,
            previous: claim.last,
            parking: claim.parking.clone(),
            in_line: claim.in_line,
            ..Record::new(Kind::Claim, claim.id, &claimant.host, claimant.digest)
        };
        match journal.append(claim.last, record.encode()?).await {
            Ok(sequence) => {
                claim.last = sequence;
                return Ok(claim);
            }
            Err(Error::Fenced(sequence)) => lost = sequence,
            Err(other) => return Err(other),
        }
    }
    Err(Error::Fenced(lost))
}

/// Takes a handler whose streams or bucket were restored from a backup: `positions` and `bucket` say what they are now. All else is as
/// the last record says; the next claim goes on from there.
///
/// # Errors
/// `Fenced` when somebody wrote since `last`; a record that cannot be read.
pub(crate) async fn adopt(
    journal: &Journal,
    bytes: &[u8],
    last: u64,
    positions: Vec<Position>,
    bucket: i64,
) -> Result<u64, Error> {
    let before = Record::decode(bytes, last)?;
    let parking = Parking { parks: Vec::new(), unparked: None, ..before.parking };
    let record = Record {
        time: clock::now(),
        positions,
        counts: before.counts,
        shown_through: before.shown_through,
        acted_through: before.acted_through,
        bucket,
        standing: before.standing,
        makes: before.makes,
        previous: last,
        parking,
        in_line: before.in_line,
        ..Record::new(Kind::Claim, fresh_id(), before.host, Digest(before.digest))
    };
    journal.append(last, record.encode()?).await
}

/// What a claim carries over from the last record.
fn resume(last: Option<&(u64, Bytes)>, claimant: &Claimant, bucket: i64) -> Result<Claim, Error> {
    let Some((sequence, bytes)) = last else {
        return Ok(Claim {
            id: claimant.id,
            standing: claimant.standing,
            makes: claimant.makes,
            bucket,
            positions: claimant.begins.clone(),
            begun: claimant.begins.iter().map(|position| position.stream.clone()).collect(),
            ..Claim::default()
        });
    };
    let record = Record::decode(bytes, *sequence)?;
    if claimant.held && record.claim != claimant.id {
        return Err(Error::Fenced(*sequence));
    }
    if record.standing != claimant.standing {
        let (found, wanted) = (record.standing, claimant.standing);
        return Err(Error::Standing { sequence: *sequence, found, wanted });
    }
    if let Some((found, module)) = record.makes.zip(claimant.makes).filter(|(found, module)| found != module)
        && record.counts.delivered > 0
    {
        return Err(Error::Makes { found, module });
    }
    // Documents that are in no record's reach were in the other bucket.
    if record.counts.delivered > 0 && record.bucket != bucket {
        return Err(Error::OtherBucket(names::journal_stream(&claimant.handler)));
    }
    let mut positions = record.positions;
    let is_new = |begin: &&Position| positions.iter().all(|position| position.stream != begin.stream);
    let begins: Vec<Position> = claimant.begins.iter().filter(is_new).cloned().collect();
    let begun = begins.iter().map(|position| position.stream.clone()).collect();
    positions.extend(begins);
    Ok(Claim {
        id: claimant.id,
        standing: claimant.standing,
        makes: claimant.makes.or(record.makes),
        bucket,
        last: *sequence,
        positions,
        begun,
        counts: record.counts,
        shown_through: record.shown_through,
        acted_through: record.acted_through,
        in_line: record.in_line,
        parking: Parking {
            through: record.parking.through,
            // Another module has yet to fail.
            recent: if record.digest == claimant.digest.0 { record.parking.recent } else { Vec::new() },
            ..Parking::default()
        },
    })
}

/// A number that no other life has.
#[must_use]
pub fn fresh_id() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_i64(clock::now());
    hasher.finish()
}
