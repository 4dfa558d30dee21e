//! Can our own streams take what comes, and do they keep what they took. A journal that drops a record has forgotten a decision. Pure.

use super::facts::{Facts, Stream};
use super::finding::Finding;
use super::retention::unlimited;
use crate::legible::thousands;
use crate::names;

/// So full, it is time to act.
const NEARLY: f64 = 0.8;

/// So full, the next large message may be refused.
const FULL: f64 = 0.98;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for stream in facts.streams.iter().filter(|stream| stream.is_ours()) {
        findings.extend(forgets(stream).or_else(|| is_filling(stream)));
    }
    findings.extend(account(facts));
    findings
}

/// A limit that removes what is needed.
fn forgets(stream: &Stream) -> Option<Finding> {
    let (what, keeps_one) = match stream.name() {
        names::TIMERS => ("timers that are not due yet", false),
        names::DEAD => ("parked events", false),
        _ if stream.journal_of().is_some() => ("decisions", false),
        // A later document takes the place of an earlier one.
        _ if stream.documents_of().is_some() => ("documents", true),
        _ => return None,
    };
    let config = &stream.config;
    let per_subject = config.max_messages_per_subject > 0 && !keeps_one;
    if config.max_age.is_zero() && !stream.drops_when_full() && !per_subject {
        return None;
    }
    let mut stream = stream.clone();
    if keeps_one {
        stream.config.max_messages_per_subject = -1;
    }
    let problem = format!("it is set to remove old messages, and they are {what}");
    Some(
        Finding::error("forgets", format!("stream {}", stream.name()), problem)
            .why("what it removes cannot be had again; the handler stops, or goes on without it")
            .mend(unlimited(&stream)),
    )
}

/// A limit at which it refuses, or, where it may forget, drops.
fn is_filling(stream: &Stream) -> Option<Finding> {
    let part = stream.fullness();
    if part < NEARLY {
        return None;
    }
    let (thing, problem) = (format!("stream {}", stream.name()), format!("it is {:.0} % full", part * 100.0));
    let finding = match part >= FULL {
        true => Finding::error("full", thing, problem),
        false => Finding::warning("full", thing, problem),
    };
    let mut sizes = stream.clone();
    (sizes.config.max_age, sizes.config.max_messages_per_subject) = (std::time::Duration::ZERO, -1);
    Some(finding.why("once it is full, handlers that write to it stand still").mend(unlimited(&sizes)))
}

fn account(facts: &Facts) -> Option<Finding> {
    let most = facts.account.most.filter(|most| *most > 0)?;
    let part = facts.account.bytes as f64 / most as f64;
    if part < NEARLY {
        return None;
    }
    let problem = format!("its streams hold {} of {} bytes", thousands(facts.account.bytes), thousands(most));
    let finding = match part >= FULL {
        true => Finding::error("account-full", "account", problem),
        false => Finding::warning("account-full", "account", problem),
    };
    Some(
        finding
            .why("once it is full, nothing is stored any more: no event, no decision")
            .mend("raise `jetstream { max_file }` of the account in the server's configuration, then: nats-server --signal reload"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::jetstream::stream::DiscardPolicy;

    use super::super::facts::Account;
    use super::super::finding::Severity;
    use super::*;

    fn ours(name: &str, owner: &str) -> Stream {
        let mut stream = Stream::default();
        (stream.config.name, stream.config.metadata) = (name.to_owned(), names::ours(owner));
        stream
    }

    fn told(stream: Stream) -> Option<(&'static str, Severity, String)> {
        let findings = judge(&Facts { streams: vec![stream], ..Facts::default() });
        findings.into_iter().next().map(|finding| (finding.check, finding.severity, finding.mend))
    }

    #[test]
    fn what_may_never_be_removed_has_no_limit_that_removes() {
        for (name, owner) in [
            ("MILLSTREAM_JOURNAL_spend", "spend"),
            (names::TIMERS, names::TIMERS),
            (names::DEAD, names::DEAD),
            ("KV_spend", "spend"),
            ("KV_spend_g2", "spend"),
        ] {
            assert_eq!(told(ours(name, owner)), None, "{name}");
            let mut stream = ours(name, owner);
            stream.config.max_age = Duration::from_secs(1);
            let mend = format!("nats stream edit {name} --max-age=0 -f");
            assert_eq!(told(stream), Some(("forgets", Severity::Error, mend)), "{name}");
            let mut stream = ours(name, owner);
            stream.config.max_bytes = 1 << 20;
            let mend = format!("nats stream edit {name} --max-bytes=-1 -f");
            assert_eq!(told(stream.clone()), Some(("forgets", Severity::Error, mend)), "{name}");
            stream.config.discard = DiscardPolicy::New;
            assert_eq!(told(stream), None, "{name} refuses, and has room");
        }
        let mut documents = ours("KV_spend", "spend");
        documents.config.max_messages_per_subject = 1;
        assert_eq!(told(documents), None, "that is how buckets are");
        let mut news = ours(names::EVENTS, names::EVENTS);
        news.config.max_age = Duration::from_secs(1);
        assert_eq!(told(news), None, "news may be forgotten");
    }

    #[test]
    fn what_fills_is_told_before_it_is_full() {
        for (bytes, expected) in [(79, None), (80, Some(Severity::Warning)), (98, Some(Severity::Error))] {
            let mut stream = ours(names::DEAD, names::DEAD);
            (stream.bytes, stream.config.max_bytes, stream.config.discard) = (bytes, 100, DiscardPolicy::New);
            assert_eq!(told(stream).map(|told| told.1), expected, "{bytes}");
            let account = Account { bytes, most: Some(100) };
            let found = judge(&Facts { account, ..Facts::default() });
            assert_eq!(found.first().map(|finding| finding.severity), expected, "{bytes}");
        }
        let boundless = Account { bytes: 5, most: None };
        assert_eq!(judge(&Facts { account: boundless, ..Facts::default() }), []);
    }
}
