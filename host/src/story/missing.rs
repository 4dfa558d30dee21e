//! What a story lacks. In: the instance and the chapters that could be put together. Out: a sentence for each kind of thing that
//! is not there any more, with a few of their ids. Pure. Never: takes what is not there for something that never was.

use millstream_saga::Instance;

use super::{Chapter, Kind};
use crate::timers;

/// Ids named in a sentence.
const NAMED: usize = 3;

/// Sentences about what is not there any more.
pub(super) fn sentences(instance: &Instance, events: &[Chapter]) -> Vec<String> {
    let mut missing = Vec::new();
    if events.first().is_none_or(|chapter| chapter.event != instance.life) {
        missing.push(format!(
            "its beginning ({}): an instance keeps its last 32 transitions, and the journal has no more of them",
            instance.life
        ));
    }
    let gone = |chapter: &&Chapter| chapter.place.is_none() && chapter.event_type != timers::TYPE;
    let gone: Vec<&str> = events.iter().filter(gone).map(|chapter| &*chapter.event).collect();
    if !gone.is_empty() {
        missing.push(format!(
            "{} that no stream has any more, or not where it was looked for: {}",
            count(gone.len(), "event"),
            named(&gone)
        ));
    }
    let untold: Vec<&str> =
        events.iter().filter(|chapter| chapter.record.is_none()).map(|chapter| &*chapter.event).collect();
    if !untold.is_empty() {
        missing.push(format!(
            "the journal's records of {}: timers that they set, and what of theirs no stream has, cannot be told ({})",
            count(untold.len(), "decision"),
            named(&untold)
        ));
    }
    let deeds = events.iter().flat_map(|chapter| &chapter.effects);
    let unseen: Vec<&str> =
        deeds.filter(|deed| deed.kind != Kind::Timer && deed.place.is_none()).map(|deed| &*deed.id).collect();
    if !unseen.is_empty() {
        missing.push(format!(
            "{} that no stream has: consumed, expired, removed, or not delivered yet ({})",
            count(unseen.len(), "message"),
            named(&unseen)
        ));
    }
    missing
}

fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn named(ids: &[&str]) -> String {
    let more = ids.len().saturating_sub(NAMED);
    let named: Vec<&str> = ids.iter().take(NAMED).copied().collect();
    if more > 0 { format!("{}, and {more} more", named.join(", ")) } else { named.join(", ") }
}
