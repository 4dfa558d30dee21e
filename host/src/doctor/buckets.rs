//! Are streams and buckets with our names ours, and as we made them. Pure.

use std::time::Duration;

use super::facts::{Facts, Stream};
use super::finding::Finding;
use crate::generation::ledger;
use crate::names;
use crate::registry::{self, HOST_TTL};

/// A bucket that all handlers share.
struct Shared {
    bucket: &'static str,
    /// Values kept of each key.
    history: i64,
    max_age: Duration,
    /// What goes wrong where it is other.
    why: &'static str,
}

const SHARED: [Shared; 6] = [
    Shared {
        bucket: names::HANDLERS,
        history: registry::HISTORY,
        max_age: Duration::ZERO,
        why: "deployments disappear, or cannot be gone back to",
    },
    Shared { bucket: names::STATUS, history: 1, max_age: Duration::ZERO, why: "what hosts say is lost or grows" },
    Shared {
        bucket: names::HOSTS,
        history: 1,
        max_age: HOST_TTL,
        why: "a host that died is taken for alive, or one that lives for dead",
    },
    Shared {
        bucket: names::GENERATIONS,
        history: ledger::HISTORY,
        max_age: Duration::ZERO,
        why: "which generation is live is forgotten",
    },
    Shared { bucket: names::ALERTS, history: 1, max_age: Duration::ZERO, why: "alerts disappear before they are over" },
    Shared {
        bucket: names::REDRIVES,
        history: 8,
        max_age: Duration::ZERO,
        why: "what people asked of parked keys is forgotten",
    },
];

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = SHARED.iter().filter_map(|shared| altered(facts, shared)).collect();
    findings.extend(missing(facts));
    findings.extend([names::TIMERS, names::DEAD, names::EVENTS].into_iter().filter_map(|name| foreign(facts, name)));
    for handler in &facts.handlers {
        let streams = [names::journal_stream(&handler.name), names::bucket_stream(&handler.name)];
        findings.extend(streams.iter().filter_map(|stream| taken(facts, &handler.name, stream)));
    }
    findings.extend(facts.streams.iter().filter_map(unreadable));
    findings
}

/// A shared bucket that somebody set otherwise, or that is none.
fn altered(facts: &Facts, shared: &Shared) -> Option<Finding> {
    let stream = facts.stream(&names::bucket_stream(shared.bucket))?;
    let config = &stream.config;
    let thing = format!("bucket {}", shared.bucket);
    if config.subjects != [names::bucket_subject(shared.bucket, ">")] {
        return Some(not_ours(&thing, stream.name()));
    }
    let kept = config.max_messages_per_subject.max(1);
    let mut flags = String::new();
    let mut wrong = Vec::new();
    if kept != shared.history {
        wrong.push(format!("keeps {kept} values of a key instead of {}", shared.history));
        flags += &format!(" --max-msgs-per-subject={}", shared.history);
    }
    if config.max_age != shared.max_age {
        wrong.push(format!("keeps them for {:?} instead of {:?}", config.max_age, shared.max_age));
        flags += &format!(" --max-age={}s", shared.max_age.as_secs());
    }
    (!wrong.is_empty()).then(|| {
        Finding::error("bucket-settings", thing, format!("it {}", wrong.join(", and ")))
            .why(shared.why)
            .mend(format!("nats stream edit {}{flags} -f", stream.name()))
    })
}

/// The registry is several buckets, or none.
fn missing(facts: &Facts) -> Option<Finding> {
    facts.stream(&names::bucket_stream(names::HANDLERS))?;
    let others =
        [format!("OBJ_{}", names::MODULES), names::bucket_stream(names::STATUS), names::bucket_stream(names::HOSTS)];
    let missing: Vec<&str> =
        others.iter().map(String::as_str).filter(|stream| facts.stream(stream).is_none()).collect();
    (!missing.is_empty()).then(|| {
        Finding::error("bucket-missing", format!("stream {}", missing.join(", ")), "it is gone")
            .why("nothing else is said of handlers until it is there; any command makes it, and modules have to be deployed again")
            .mend("millstream list")
    })
}

/// A stream that all handlers share, made by somebody else. A user's own stream for news is left to him.
fn foreign(facts: &Facts, name: &str) -> Option<Finding> {
    let stream = facts.stream(name)?;
    (stream.owner() != Some(name)).then(|| not_ours(&format!("stream {name}"), name))
}

fn not_ours(thing: &str, stream: &str) -> Finding {
    Finding::error("not-ours", thing, "it was not made by Millstream")
        .why("what needs it does not start: nothing of somebody else's is ever written to")
        .mend(format!("nats stream backup {stream} {stream}.backup && nats stream rm {stream} -f"))
}

/// The stream of a handler's journal or documents, made by somebody else.
fn taken(facts: &Facts, handler: &str, name: &str) -> Option<Finding> {
    let stream = facts.stream(name)?;
    (stream.owner() != Some(handler)).then(|| {
        Finding::error("not-ours", format!("stream {name}"), format!("it was not made for handler {handler}"))
            .why("the handler does not start, for nothing of somebody else's is written to; deploy it under another --name")
            .mend(format!("millstream remove {handler} --yes"))
    })
}

/// Hosts and readers ask any replica; a stream of ours that answers the leader's requests only cannot be read so.
fn unreadable(stream: &Stream) -> Option<Finding> {
    (stream.is_ours() && !stream.config.allow_direct && !stream.name().starts_with("OBJ_")).then(|| {
        Finding::error("no-direct-gets", format!("stream {}", stream.name()), "it does not answer direct gets")
            .why("documents, records and deployments are read that way: handlers do not start")
            .mend(format!("nats stream edit {} --allow-direct -f", stream.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::Stream;
    use super::*;

    fn bucket(shared: &Shared) -> Stream {
        let mut stream = Stream::default();
        stream.config.name = names::bucket_stream(shared.bucket);
        stream.config.subjects = vec![names::bucket_subject(shared.bucket, ">")];
        (stream.config.max_messages_per_subject, stream.config.max_age) = (shared.history, shared.max_age);
        stream.config.allow_direct = true;
        stream
    }

    fn all() -> Vec<Stream> {
        let mut streams: Vec<Stream> = SHARED.iter().map(bucket).collect();
        let mut modules = Stream::default();
        modules.config.name = format!("OBJ_{}", names::MODULES);
        streams.push(modules);
        streams
    }

    fn found(streams: Vec<Stream>) -> Vec<(&'static str, String)> {
        let findings = judge(&Facts { streams, ..Facts::default() });
        findings.into_iter().map(|finding| (finding.check, finding.mend)).collect()
    }

    #[test]
    fn buckets_as_we_make_them_are_not_blamed_and_each_other_setting_is() {
        assert_eq!(found(all()), []);
        for (index, shared) in SHARED.iter().enumerate() {
            let mut streams = all();
            streams[index].config.max_age += Duration::from_secs(7);
            let name = names::bucket_stream(shared.bucket);
            let mend = format!("nats stream edit {name} --max-age={}s -f", shared.max_age.as_secs());
            assert_eq!(found(streams), [("bucket-settings", mend)], "{name}");
            let mut streams = all();
            streams[index].config.max_messages_per_subject += 1;
            let mend = format!("nats stream edit {name} --max-msgs-per-subject={} -f", shared.history);
            assert_eq!(found(streams), [("bucket-settings", mend)], "{name}");
            let mut streams = all();
            streams[index].config.allow_direct = false;
            assert_eq!(found(streams), [("no-direct-gets", format!("nats stream edit {name} --allow-direct -f"))]);
        }
    }

    #[test]
    fn what_is_missing_or_somebody_elses_is_named() {
        let mut streams = all();
        streams.retain(|stream| stream.config.name != "OBJ_MILLSTREAM_MODULES");
        assert_eq!(found(streams)[0].0, "bucket-missing");
        assert_eq!(found(Vec::new()), [], "nobody has begun");
        let mut theirs = Stream::default();
        (theirs.config.name, theirs.config.allow_direct) = (names::TIMERS.to_owned(), true);
        assert_eq!(found(vec![theirs.clone()])[0].0, "not-ours");
        theirs.config.metadata = names::ours(names::TIMERS);
        assert_eq!(found(vec![theirs]), []);
    }
}
