//! Taking a handler. In: its journal. Out: where the last record left off, under a claim record of our own that fences
//! every earlier owner. Also: a host that comes back after trouble learns here whether it still owns the handler, and a person who has
//! restored a backup takes it from whoever has it (`adopt`). Never: lets a host take it back from one that claimed later.

use bytes::Bytes;

use crate::clock;
use crate::journal::{Counts, Error, Journal, Kind, Makes, Parking, Position, Record, Standing};
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
        match journal.append(claim.last, claim.record(&claimant.host, claimant.digest).encode()?).await {
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
    before: Record<'_>,
    last: u64,
    positions: Vec<Position>,
    bucket: i64,
) -> Result<u64, Error> {
    let (host, digest) = (before.host, Digest(before.digest));
    let claim = Claim { id: fresh_id(), positions, bucket, ..Claim::after(before, last) };
    journal.append(last, claim.record(host, digest).encode()?).await
}

impl Claim {
    /// What is carried over from the last record.
    fn after(record: Record<'_>, last: u64) -> Self {
        Self {
            id: record.claim,
            standing: record.standing,
            makes: record.makes,
            last,
            positions: record.positions,
            counts: record.counts,
            shown_through: record.shown_through,
            acted_through: record.acted_through,
            bucket: record.bucket,
            parking: Parking { parks: Vec::new(), unparked: None, ..record.parking },
            in_line: record.in_line,
            begun: Vec::new(),
        }
    }

    /// The record that claims.
    fn record<'a>(&self, host: &'a str, digest: Digest) -> Record<'a> {
        Record {
            time: clock::now(),
            positions: self.positions.clone(),
            counts: self.counts,
            shown_through: self.shown_through,
            acted_through: self.acted_through,
            bucket: self.bucket,
            standing: self.standing,
            makes: self.makes,
            previous: self.last,
            parking: self.parking.clone(),
            in_line: self.in_line,
            ..Record::new(Kind::Claim, self.id, host, digest)
        }
    }
}

/// Where this host goes on, if it may.
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
        return Err(Error::OtherBucket(claimant.handler.clone()));
    }
    let is_same_module = record.digest == claimant.digest.0;
    let before = Claim::after(record, *sequence);
    let mut claim = Claim { id: claimant.id, makes: claimant.makes.or(before.makes), bucket, ..before };
    if !is_same_module {
        // Another module has yet to fail.
        claim.parking.recent.clear();
    }
    let is_new = |begin: &&Position| claim.positions.iter().all(|position| position.stream != begin.stream);
    let begins: Vec<Position> = claimant.begins.iter().filter(is_new).cloned().collect();
    claim.begun = begins.iter().map(|position| position.stream.clone()).collect();
    claim.positions.extend(begins);
    Ok(claim)
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
