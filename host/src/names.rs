//! Every name that Millstream uses in NATS, in one place. Pure. Never: the name of a user's stream.

use std::collections::HashMap;

use async_nats::jetstream::stream::Stream;

/// Object store of modules, one object per digest.
pub const MODULES: &str = "MILLSTREAM_MODULES";
/// KV bucket of deployments, a key per handler.
pub const HANDLERS: &str = "MILLSTREAM_HANDLERS";
/// KV bucket of what hosts say of the handlers they run.
pub const STATUS: &str = "MILLSTREAM_STATUS";
/// KV bucket of live hosts; a host that falls silent drops out by itself.
pub const HOSTS: &str = "MILLSTREAM_HOSTS";

/// KV bucket of handlers' generations, a key per handler that ever had a second one.
pub const GENERATIONS: &str = "MILLSTREAM_GENERATIONS";

/// KV bucket of alerts that are raised, a key per handler and alert.
pub const ALERTS: &str = "MILLSTREAM_ALERTS";

/// Stands in the place of a handler for what concerns all of them; no handler can have this name.
const EVERYBODY: &str = "MILLSTREAM_ACCOUNT";

/// Stream of all handlers' timers.
pub const TIMERS: &str = millstream_saga::TIMER_STREAM;

/// Stream of what happens to handlers.
pub const EVENTS: &str = "MILLSTREAM_EVENTS";

/// Stream of dead letters: events of keys that are parked.
pub const DEAD: &str = "MILLSTREAM_DEAD";
/// KV bucket of what is wanted of parked keys, a key per generation of a handler.
pub const REDRIVES: &str = "MILLSTREAM_REDRIVES";
/// In place of a key in a dead letter's subject: the event never got as far as one. No key is escaped like this.
pub const KEYLESS: &str = "~";

/// Metadata key on streams and buckets that belong to a handler.
const OWNER: &str = "millstream.handler";

/// Journal sequence of the record that made a document; a header of every document.
pub const JOURNAL_HEADER: &str = "Millstream-Journal";
/// Stream and sequence of the last event in a document; a header of every document.
pub const POSITION_HEADER: &str = "Millstream-Position";
/// Digest of the module that made a document; a header of every document.
pub const DIGEST_HEADER: &str = "Millstream-Digest";

/// How many messages of handlers led to one; a header of all that handlers send.
pub const DEPTH_HEADER: &str = "Millstream-Depth";
/// Which attempt of its step a command is, from 1.
pub const ATTEMPT_HEADER: &str = "Millstream-Attempt";
/// The step that a command belongs to, percent-encoded.
pub const STEP_HEADER: &str = "Millstream-Step";
/// When nobody waits for a command's answer any more, RFC 3339.
pub const DEADLINE_HEADER: &str = "Millstream-Deadline";

/// Longest handler name; it becomes part of stream, bucket and consumer names.
const NAME_BYTES: usize = 64;

/// Says why a handler cannot have this name, or nothing.
#[must_use]
pub fn handler_name_defect(name: &str) -> Option<String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(legal) {
        return Some(format!("a handler's name is 1 to {NAME_BYTES} letters, digits, `-` or `_`; `{name}` is not"));
    }
    if name.starts_with("MILLSTREAM_") {
        return Some(format!("names beginning with MILLSTREAM_ are reserved; `{name}` does"));
    }
    if name.starts_with('-') {
        return Some(format!(
            "a handler's name does not begin with `-`, which the command line takes for an option; `{name}` does"
        ));
    }
    let is_generation =
        |(_, number): (&str, &str)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if name.rsplit_once("_g").is_some_and(is_generation) {
        return Some(format!("names ending in _g and a number are those of generations; `{name}` does"));
    }
    None
}

/// The journal's stream.
#[must_use]
pub fn journal_stream(handler: &str) -> String {
    format!("MILLSTREAM_JOURNAL_{handler}")
}

/// All journal subjects of a handler.
#[must_use]
pub fn journal_subjects(handler: &str) -> String {
    format!("millstream.journal.{handler}.>")
}

/// The journal subject of one generation. Its last token is the same in all: records of other kinds would have another.
#[must_use]
pub fn journal_subject(handler: &str, generation: u32) -> String {
    format!("millstream.journal.{handler}.{generation}.0")
}

/// The last subjects of all generations of a handler's journal.
#[must_use]
pub fn journal_generations(handler: &str) -> String {
    format!("millstream.journal.{handler}.*.0")
}

/// Bucket and consumer of a generation that is not live; the live one has the handler's own name.
#[must_use]
pub fn shadow(handler: &str, generation: u32) -> String {
    format!("{handler}_g{generation}")
}

/// All subjects of timers.
#[must_use]
pub fn timer_subjects() -> String {
    "millstream.timers.>".to_owned()
}

/// All subjects of one handler's timers.
#[must_use]
pub fn timer_handler_subjects(handler: &str) -> String {
    format!("millstream.timers.{handler}.>")
}

/// Where a timer is set; an id may hold dots.
#[must_use]
pub fn timer_set_subject(handler: &str, id: &str) -> String {
    format!("millstream.timers.{handler}.set.{id}")
}

/// Where a handler's timers come when they are due.
#[must_use]
pub fn timer_due_subject(handler: &str) -> String {
    format!("millstream.timers.{handler}.due")
}

/// Where a handler's timers are taken back.
#[must_use]
pub fn timer_cancel_subject(handler: &str) -> String {
    format!("millstream.timers.{handler}.cancel")
}

/// All subjects of what happens to handlers.
#[must_use]
pub fn event_subjects() -> String {
    "millstream.events.>".to_owned()
}

/// All subjects of dead letters.
#[must_use]
pub fn dead_subjects() -> String {
    "millstream.dead.>".to_owned()
}

/// All dead letters of one handler.
#[must_use]
pub fn dead_handler_subjects(handler: &str) -> String {
    format!("millstream.dead.{handler}.>")
}

/// All dead letters of one generation.
#[must_use]
pub fn dead_generation_subjects(handler: &str, generation: u32) -> String {
    format!("millstream.dead.{handler}.{generation}.>")
}

/// The dead letters of a key, already escaped.
#[must_use]
pub fn dead_subject(handler: &str, generation: u32, escaped: &str) -> String {
    format!("millstream.dead.{handler}.{generation}.{escaped}")
}

/// Where a host answers whoever asks whether it is there.
#[must_use]
pub fn host_subject(host: &str) -> String {
    format!("millstream.host.{}", crate::keys::escape_token(host))
}

/// Where something that happened to a handler is told.
#[must_use]
pub fn event_subject(handler: &str, what: &str) -> String {
    format!("millstream.events.{handler}.{what}")
}

/// Whom an alert is about, in keys and subjects.
#[must_use]
pub fn alert_owner(handler: &str) -> &str {
    if handler.is_empty() { EVERYBODY } else { handler }
}

/// An alert's key in the bucket of alerts.
#[must_use]
pub fn alert_key(handler: &str, alert: &str) -> String {
    format!("{}.{alert}", alert_owner(handler))
}

/// The stream under a KV bucket.
#[must_use]
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subject of a key, already escaped, in a bucket.
#[must_use]
pub fn bucket_subject(bucket: &str, escaped: &str) -> String {
    format!("$KV.{bucket}.{escaped}")
}

/// Metadata that marks a stream as ours; one that all handlers share is its own owner.
#[must_use]
pub fn ours(handler: &str) -> HashMap<String, String> {
    HashMap::from([(OWNER.to_owned(), handler.to_owned())])
}

/// Whether this metadata marks a stream as this handler's.
#[must_use]
pub fn is_ours(metadata: &HashMap<String, String>, handler: &str) -> bool {
    metadata.get(OWNER).is_some_and(|owner| owner == handler)
}

/// The handler whose mark this metadata bears, if any.
#[must_use]
pub fn owner(metadata: &HashMap<String, String>) -> Option<&str> {
    metadata.get(OWNER).map(String::as_str)
}

/// The name of an opened stream.
#[must_use]
pub fn stream_of(stream: &Stream) -> String {
    stream.cached_info().config.name.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handler_names_must_be_legal_everywhere() {
        for good in ["customer-spend", "a", "Fine_Status2"] {
            assert_eq!(handler_name_defect(good), None);
        }
        for bad in ["", "a.b", "a b", "a>", "ü", "MILLSTREAM_X", &"x".repeat(65)] {
            assert!(handler_name_defect(bad).is_some(), "{bad}");
        }
    }
}
