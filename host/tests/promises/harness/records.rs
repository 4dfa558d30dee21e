//! What a handler's journal says happened. In: a connection and a handler. Out: its records, as far as the journal keeps them, and who
//! wrote them.

use std::collections::BTreeSet;

use async_nats::jetstream::Context;
use millstream::journal::{Error, Journal, Record};

/// What a record says that tests ask for.
pub struct Said {
    pub sequence: u64,
    pub claim: u64,
    /// Nanoseconds since 1970, by the host's clock.
    pub time: i64,
    pub acted_through: u64,
    pub has_effects: bool,
}

/// All records that the journal of a handler's first generation still has.
pub async fn records(jetstream: &Context, handler: &str, replicas: usize) -> Vec<Said> {
    let journal = Journal::open(jetstream, handler, replicas).await.expect("the journal");
    let (last, _) = journal.last().await.expect("an answer").expect("a record");
    let mut from = 0;
    let records = loop {
        match journal.read(from, last).await {
            // What is older was removed in time.
            Err(Error::Gone { sequence }) => from = sequence,
            records => break records.expect("all records"),
        }
    };
    let said = |(sequence, bytes): (u64, bytes::Bytes)| {
        let Record { claim, time, acted_through, effects, .. } = Record::decode(&bytes, sequence).expect("a record");
        Said { sequence, claim, time, acted_through, has_effects: !effects.is_empty() }
    };
    records.into_iter().map(said).collect()
}

/// The claims under which these were written, a run of equal ones once. No host wrote one after another had claimed: a claim that ended
/// never comes again.
#[track_caller]
pub fn claims_in_turn(handler: &str, records: &[Said]) -> Vec<u64> {
    let mut claims: Vec<u64> = records.iter().map(|record| record.claim).collect();
    claims.dedup();
    let once: BTreeSet<u64> = claims.iter().copied().collect();
    assert_eq!(once.len(), claims.len(), "{handler}: a host wrote after another's claim: {claims:?}");
    claims
}
