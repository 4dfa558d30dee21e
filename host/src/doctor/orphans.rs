//! What nobody needs any more: consumers, generations and journals of no deployed handler, and modules that no deployment names. Pure.
//! Never: calls documents an orphan's that a removed handler left on purpose; it says that they are there.

use super::facts::{Facts, Handler, Stream};
use super::finding::Finding;
use crate::legible::thousands;
use crate::names;

/// Modules named one by one; more are told in a sum.
const NAMED: usize = 5;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if !facts.knows_handlers {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for stream in &facts.streams {
        findings.extend(consumers(facts, stream));
        findings.extend(left(facts, stream));
    }
    findings.extend(modules(facts));
    findings
}

/// The number in the name of a generation that is not live.
fn generation_in(name: &str, handler: &str) -> Option<u32> {
    name.strip_prefix(handler)?.strip_prefix("_g")?.parse().ok()
}

fn is_wanted(handler: &Handler, generation: u32) -> bool {
    handler.live == generation || handler.shadows.contains(&generation)
}

/// Consumers that bear a handler's mark, on streams that it does not read, or of generations that are gone; and those of its own that
/// somebody has altered.
fn consumers(facts: &Facts, stream: &Stream) -> Vec<Finding> {
    let mut findings = Vec::new();
    for consumer in &stream.consumers {
        let thing = format!("consumer {} on stream {}", consumer.name, stream.name());
        let handler = facts.handler(&consumer.handler);
        let needed = handler.is_some_and(|handler| {
            // A saga reads its timers before the first is set.
            let reads = handler.inputs.iter().any(|input| input.stream == stream.name())
                || handler.fault.is_some()
                || stream.name() == names::TIMERS;
            let generation = generation_in(&consumer.name, &handler.name).unwrap_or(handler.live);
            reads && is_wanted(handler, generation)
        });
        if !needed {
            findings.push(
                Finding::warning("orphaned-consumer", thing, format!("handler {} does not need it", consumer.handler))
                    .why(
                        "a consumer that nobody serves counts against the stream's limit, and shows a lag that is none",
                    )
                    .mend(format!("nats consumer rm {} {} -f", stream.name(), consumer.name)),
            );
        } else if consumer.max_deliver > 0 || consumer.ack_wait.as_secs() < 60 {
            findings.push(
                Finding::warning("altered-consumer", thing, "somebody set another ack wait or number of deliveries")
                    .why(
                        "it delivers messages twice, or not at all, and the host begins anew each time that it notices",
                    )
                    .mend(format!(
                        "nats consumer edit {} {} --max-deliver=-1 --wait=1h -f",
                        stream.name(),
                        consumer.name
                    )),
            );
        }
    }
    findings
}

/// Journals and buckets that bear the mark of a handler that is not deployed, or of a generation that is gone.
fn left(facts: &Facts, stream: &Stream) -> Option<Finding> {
    let owner = stream.owner().filter(|owner| !owner.starts_with("MILLSTREAM_"))?;
    let name = stream.name();
    let (is_journal, is_bucket) = (stream.journal_of().is_some(), stream.documents_of().is_some());
    let Some(handler) = facts.handler(owner) else {
        let what = if is_journal { "journal" } else { "documents" };
        let problem =
            format!("it holds the {what} of {owner}, which is not deployed ({} bytes)", thousands(stream.bytes));
        return (is_journal || is_bucket).then(|| {
            Finding::note("left-behind", format!("stream {name}"), problem)
                .why("deployed again under this name, the handler goes on from here; else it only takes room")
                .mend(format!("nats stream rm {name} -f"))
        });
    };
    if is_bucket {
        let bucket = name.trim_start_matches("KV_");
        let number = generation_in(bucket, owner).filter(|number| !is_wanted(handler, *number))?;
        let problem = format!("it holds the documents of generation {number} of {owner}, which nobody wants");
        return Some(
            Finding::warning("orphaned-generation", format!("stream {name}"), problem)
                .why("it takes as much room as the live documents, and nothing writes or reads it")
                .mend(format!("nats stream rm {name} -f")),
        );
    }
    let gone = stream.generations.iter().find(|number| is_journal && !is_wanted(handler, **number))?;
    let problem = format!("it holds records of generation {gone} of {owner}, which nobody wants");
    Some(
        Finding::warning("orphaned-generation", format!("stream {name}"), problem)
            .why("timers that fired are kept for as long as a generation in the journal has not decided them")
            .mend(format!("nats stream purge {name} --subject={} -f", names::journal_subject(owner, *gone))),
    )
}

fn modules(facts: &Facts) -> Vec<Finding> {
    let unnamed: Vec<&String> = facts.modules.iter().filter(|digest| !facts.named.contains(*digest)).collect();
    let told = |digest: &&String| {
        Finding::note(
            "unused-module",
            format!("module {:.12}", digest.as_str()),
            "no deployment names it, nor did one that can be gone back to",
        )
        .why("it only takes room in the object store")
        .mend(format!("nats object rm {} {digest} -f", names::MODULES))
    };
    let mut findings: Vec<Finding> = unnamed.iter().take(NAMED).map(told).collect();
    if let Some(last) = findings.last_mut().filter(|_| unnamed.len() > NAMED) {
        last.problem = format!("{} (and {} more like it)", last.problem, unnamed.len() - NAMED);
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::facts::{Consumer, Input};
    use super::*;
    use crate::doctor::facts;

    fn facts(streams: Vec<Stream>) -> Facts {
        let input = Input { stream: "ORDERS".to_owned(), ..Input::default() };
        let handler = Handler { live: 2, shadows: vec![3], inputs: vec![input], ..facts::handler("spend") };
        Facts { streams, handlers: vec![handler], knows_handlers: true, ..Facts::default() }
    }

    fn with_consumer(stream: &str, name: &str, handler: &str, max_deliver: i64) -> Stream {
        let (name, handler) = (name.to_owned(), handler.to_owned());
        let consumer = Consumer { name, handler, max_deliver, ack_wait: Duration::from_secs(3600) };
        let mut stream = Stream { consumers: vec![consumer], ..named(stream) };
        stream.config.metadata.clear();
        stream
    }

    fn named(name: &str) -> Stream {
        let mut stream = Stream::default();
        stream.config.name = name.to_owned();
        stream
    }

    fn marked(name: &str, owner: &str, generations: &[u32]) -> Stream {
        let mut stream = Stream { generations: generations.to_vec(), ..named(name) };
        stream.config.metadata = names::ours(owner);
        stream
    }

    fn mends(streams: Vec<Stream>) -> Vec<String> {
        judge(&facts(streams)).into_iter().map(|finding| finding.mend).collect()
    }

    #[test]
    fn consumers_are_needed_where_their_handler_reads() {
        for (stream, name, handler, expected) in [
            ("ORDERS", "spend", "spend", ""),
            ("ORDERS", "spend_g3", "spend", ""),
            ("ORDERS", "spend_g1", "spend", "nats consumer rm ORDERS spend_g1 -f"),
            (names::TIMERS, "spend", "spend", ""),
            ("OLD", "spend", "spend", "nats consumer rm OLD spend -f"),
            ("ORDERS", "gone", "gone", "nats consumer rm ORDERS gone -f"),
        ] {
            assert_eq!(mends(vec![with_consumer(stream, name, handler, -1)]).concat(), expected, "{stream} {name}");
        }
        let altered = mends(vec![with_consumer("ORDERS", "spend", "spend", 5)]);
        assert_eq!(altered, ["nats consumer edit ORDERS spend --max-deliver=-1 --wait=1h -f"]);
    }

    #[test]
    fn what_a_removed_handler_or_generation_left_is_named() {
        let sound = vec![
            marked("KV_spend", "spend", &[]),
            marked("KV_spend_g3", "spend", &[]),
            marked("MILLSTREAM_JOURNAL_spend", "spend", &[2, 3]),
            marked(names::DEAD, names::DEAD, &[]),
        ];
        assert_eq!(mends(sound), [""; 0]);
        for (stream, expected) in [
            (marked("KV_spend_g1", "spend", &[]), "nats stream rm KV_spend_g1 -f"),
            (marked("KV_gone", "gone", &[]), "nats stream rm KV_gone -f"),
            (marked("MILLSTREAM_JOURNAL_gone", "gone", &[1]), "nats stream rm MILLSTREAM_JOURNAL_gone -f"),
            (
                marked("MILLSTREAM_JOURNAL_spend", "spend", &[1, 2]),
                "nats stream purge MILLSTREAM_JOURNAL_spend --subject=millstream.journal.spend.1.0 -f",
            ),
        ] {
            assert_eq!(mends(vec![stream]), [expected]);
        }
    }

    #[test]
    fn modules_that_nobody_names_are_told_and_many_of_them_in_a_sum() {
        let mut facts = facts(Vec::new());
        facts.modules = (0..8).map(|number| format!("{number}")).collect();
        facts.named = ["0".to_owned()].into();
        let found = judge(&facts);
        assert_eq!(found.len(), NAMED);
        assert_eq!(found[0].mend, "nats object rm MILLSTREAM_MODULES 1 -f");
        assert!(found[4].problem.ends_with("(and 2 more like it)"), "{}", found[4].problem);
        assert_eq!(judge(&Facts { knows_handlers: false, ..facts }), [], "who knows");
    }
}
