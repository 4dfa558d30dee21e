//! What instances wait for is set again when their timers are lost: the stream of timers is another than the one that the journal
//! knows, for somebody deleted it or restored an older one. In: the instances in the bucket. Out: schedules under the ids that they
//! had, stored before the claim goes on, and positions at the beginning of the new stream. Never: touches an instance; it decides
//! what of this still matters.

use futures::TryStreamExt as _;
use millstream_saga::{Instance, Outgoing};

use crate::acks::{self, Acks};
use crate::claim::Claim;
use crate::clock;
use crate::documents::{self, Documents};
use crate::inputs::Input;
use crate::journal::Position;
use crate::keys;
use crate::names;
use crate::positions;
use crate::publication::Publication;
use crate::timers::Timer;

/// Instances read at once; what they wait for is on the way at once.
const AT_ONCE: usize = 256;

/// Why not all is set. Nothing is lost: the next claim does it all again, under the same ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The instances cannot be read.
    #[error(transparent)]
    Documents(#[from] documents::Error),
    /// They cannot be listed.
    #[error("instances cannot be listed: {0}")]
    Unlisted(String),
    /// The stream does not take them.
    #[error("timers cannot be set again: {0}")]
    Refused(#[from] acks::Error),
}

/// Whether the stream of timers is not the one that this handler's timers were set in.
pub(crate) fn are_lost(claim: &Claim, inputs: &[Input]) -> bool {
    let Some(timers) = inputs.iter().find(|input| input.stream == names::TIMERS) else { return false };
    let known = claim.positions.iter().find(|position| position.stream == names::TIMERS);
    let is_same = |known: &Position| known.created == timers.created && known.sequence <= timers.last;
    claim.counts.delivered > 0 && !known.is_some_and(is_same)
}

/// Sets all that instances wait for, and answers how much that was. The bucket must show all that is decided.
pub(crate) async fn set_again(documents: &Documents, acks: &Acks) -> Result<usize, Error> {
    let mut set = 0;
    for part in keys_of(documents).await?.chunks(AT_ONCE) {
        let wanted: Vec<&str> = part.iter().map(String::as_str).collect();
        let mut answers = Vec::new();
        for (key, document) in wanted.iter().zip(documents.load(&wanted).await?) {
            // One that cannot be read stops the handler at its next event, by name.
            let Some(instance) = document.and_then(|document| Instance::read(&document).ok()) else { continue };
            for waiting in instance.waits(&documents.bucket, key, clock::read) {
                if let Some(publication) = publication(&documents.bucket, waiting) {
                    answers.push(acks.publish(publication).await?);
                }
            }
        }
        set += answers.len();
        for answer in answers {
            answer.await?;
        }
    }
    Ok(set)
}

/// The claim reads the new stream from its beginning.
pub(crate) fn begin_anew(claim: &mut Claim, inputs: &[Input]) {
    claim.positions.retain(|position| position.stream != names::TIMERS);
    let timers = inputs.iter().filter(|input| input.stream == names::TIMERS);
    claim.positions.extend(timers.map(positions::begin));
}

async fn keys_of(documents: &Documents) -> Result<Vec<String>, Error> {
    let unlisted = |reason: String| Error::Unlisted(reason);
    let bucket = documents.jetstream.get_key_value(&documents.bucket).await;
    let keys = bucket.map_err(|error| unlisted(error.to_string()))?.keys().await;
    let escaped: Vec<String> = keys
        .map_err(|error| unlisted(error.to_string()))?
        .try_collect()
        .await
        .map_err(|error| unlisted(error.to_string()))?;
    // A key that we did not write is nobody's instance.
    Ok(escaped.iter().filter_map(|key| keys::unescape(key).ok()).collect())
}

fn publication(handler: &str, waiting: Outgoing) -> Option<Publication> {
    let now = clock::now();
    let (id, due, body, correlation, causation) = match waiting {
        Outgoing::Timer { id, due, body, correlation, causation } => (id, due, body, correlation, causation),
        Outgoing::Wait { id, after_ms, body, correlation, causation } => {
            let after = i64::try_from(after_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            (id, now.saturating_add(after), body, correlation, causation)
        }
        Outgoing::Message(_) | Outgoing::Cancel { .. } => return None,
    };
    let timer = Timer { id: &id, due, body: body.into(), correlation: &correlation, causation: &causation };
    Some(timer.publication(handler, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Counts;

    #[test]
    fn timers_are_lost_where_the_stream_is_another_or_an_older_one() {
        let input = |stream: &str| Input {
            stream: stream.to_owned(),
            filters: Vec::new(),
            created: 7,
            first: 0,
            last: 20,
            direct: true,
        };
        let claim = |delivered, position: Option<(i64, u64)>| Claim {
            counts: Counts { delivered, ..Counts::default() },
            positions: position
                .map(|(created, sequence)| Position { stream: names::TIMERS.to_owned(), created, sequence })
                .into_iter()
                .collect(),
            ..Claim::default()
        };
        let cases = [
            (claim(9, Some((7, 20))), false),
            (claim(9, Some((7, 0))), false),
            (claim(9, Some((6, 0))), true),
            (claim(9, Some((7, 21))), true),
            (claim(9, None), true),
            (claim(0, None), false),
        ];
        for (claim, lost) in cases {
            assert_eq!(are_lost(&claim, &[input("S"), input(names::TIMERS)]), lost, "{:?}", claim.positions);
            assert!(!are_lost(&claim, &[input("S")]), "a projection has none");
        }
        let mut anew = claim(9, Some((6, 30)));
        begin_anew(&mut anew, &[input("S"), input(names::TIMERS)]);
        let first = Position { stream: names::TIMERS.to_owned(), created: 7, sequence: 0 };
        assert_eq!(anew.positions, [first]);
    }
}
