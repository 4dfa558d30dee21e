//! Do input streams keep events until they are decided, and until somebody builds documents anew. Pure.

use super::facts::{Facts, Handler, Input, Stream};
use super::finding::Finding;
use crate::legible::{duration, thousands};
use crate::names;
use crate::settings::OnLostEvents;

/// A stream this full drops old messages soon.
const FULL: f64 = 0.9;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for handler in &facts.handlers {
        for input in handler.inputs.iter().filter(|input| input.stream != names::TIMERS) {
            let Some(stream) = facts.stream(&input.stream) else { continue };
            findings.extend(lost(handler, input, stream).or_else(|| at_risk(facts.now, handler, input, stream)));
        }
    }
    findings.extend(facts.streams.iter().filter_map(|stream| bounded(facts, stream)));
    findings
}

/// What a host finds at its next claim, by the same sum.
fn lost(handler: &Handler, input: &Input, stream: &Stream) -> Option<Finding> {
    let lost = stream.first.saturating_sub(input.position + 1);
    if lost == 0 || handler.on_lost == OnLostEvents::Continue {
        return None;
    }
    let (name, digest) = (&handler.name, &handler.digest);
    let problem =
        format!("stream {} dropped {} messages after the last that it decided", input.stream, thousands(lost));
    Some(
        Finding::error("events-lost", format!("handler {name}"), problem)
            .why("events may be among them that it never saw; it stops at its next start until somebody says to go on")
            .mend(format!(
                "nats object get MILLSTREAM_MODULES {digest} -O {name}.wasm -f --no-progress && \
                 millstream deploy {name}.wasm --name {name} --set on_lost_events=continue --no-wait"
            )),
    )
}

/// Events that are not decided yet may be gone before they are.
fn at_risk(now: i64, handler: &Handler, input: &Input, stream: &Stream) -> Option<Finding> {
    if input.undecided == 0 {
        return None;
    }
    let most = stream.config.max_age.as_secs_f64();
    let age = input.oldest.map_or(0.0, |oldest| now.saturating_sub(oldest).max(0) as f64 / 1e9);
    let behind = input.position < stream.first.saturating_add(stream.messages / 10);
    let how = if most > 0.0 && age >= most / 2.0 {
        format!("it keeps messages for {}, and the oldest undecided is {} old", duration(most), duration(age))
    } else if stream.drops_when_full() && stream.fullness() >= FULL && behind {
        format!("it is {:.0} % full and drops the oldest, and the handler stands there", stream.fullness() * 100.0)
    } else if stream.config.max_messages_per_subject > 0 {
        "it replaces messages by later ones of their subjects".to_owned()
    } else {
        return None;
    };
    let problem = format!("{how} ({} has {} undecided)", handler.name, thousands(input.undecided));
    Some(
        Finding::warning("events-at-risk", format!("stream {}", stream.name()), problem)
            .why("what a stream drops before it is decided is lost to the handler")
            .mend(unlimited(stream)),
    )
}

/// Nothing is at risk now, but not everything can be had again.
fn bounded(facts: &Facts, stream: &Stream) -> Option<Finding> {
    let reads = |handler: &&Handler| handler.inputs.iter().any(|input| input.stream == stream.name());
    let readers: Vec<&str> = facts.handlers.iter().filter(reads).map(|handler| handler.name.as_str()).collect();
    let config = &stream.config;
    let drops = !config.max_age.is_zero() || stream.drops_when_full() || config.max_messages_per_subject > 0;
    if readers.is_empty() || !drops || stream.name() == names::TIMERS {
        return None;
    }
    Some(
        Finding::note(
            "bounded-input",
            format!("stream {}", stream.name()),
            format!("it drops old events ({})", limits(stream)),
        )
        .why(format!("a rebuild of {} begins with what is left by then", readers.join(", ")))
        .mend(unlimited(stream)),
    )
}

fn limits(stream: &Stream) -> String {
    let config = &stream.config;
    let mut limits = Vec::new();
    if !config.max_age.is_zero() {
        limits.push(format!("older than {}", duration(config.max_age.as_secs_f64())));
    }
    if stream.drops_when_full() && config.max_bytes > 0 {
        limits.push(format!("beyond {} bytes", thousands(config.max_bytes.unsigned_abs())));
    }
    if stream.drops_when_full() && config.max_messages > 0 {
        limits.push(format!("beyond {} messages", thousands(config.max_messages.unsigned_abs())));
    }
    if config.max_messages_per_subject > 0 {
        limits.push(format!("beyond {} of a subject", thousands(config.max_messages_per_subject.unsigned_abs())));
    }
    limits.join(", ")
}

/// The command that lifts those limits of a stream that make it drop messages.
pub(super) fn unlimited(stream: &Stream) -> String {
    let config = &stream.config;
    let mut command = format!("nats stream edit {}", stream.name());
    let flags = [
        (!config.max_age.is_zero(), " --max-age=0"),
        (config.max_bytes > 0, " --max-bytes=-1"),
        (config.max_messages > 0, " --max-msgs=-1"),
        (config.max_messages_per_subject > 0, " --max-msgs-per-subject=-1"),
    ];
    command.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag));
    command + " -f"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::Severity;
    use super::*;
    use crate::doctor::facts;

    const SECOND: i64 = 1_000_000_000;

    fn facts(change: impl FnOnce(&mut Stream, &mut Input)) -> Facts {
        let mut stream = Stream { messages: 100, bytes: 1000, first: 1, ..Stream::default() };
        stream.config.name = "ORDERS".to_owned();
        let mut input = Input { stream: "ORDERS".to_owned(), position: 50, undecided: 50, oldest: Some(90 * SECOND) };
        change(&mut stream, &mut input);
        let handler = Handler { inputs: vec![input], ..facts::handler("spend") };
        Facts { now: 100 * SECOND, streams: vec![stream], handlers: vec![handler], ..Facts::default() }
    }

    fn checks(facts: &Facts) -> Vec<(&'static str, Severity)> {
        judge(facts).into_iter().map(|finding| (finding.check, finding.severity)).collect()
    }

    const RISK: (&str, Severity) = ("events-at-risk", Severity::Warning);
    const BOUND: (&str, Severity) = ("bounded-input", Severity::Note);

    #[test]
    fn a_stream_that_keeps_everything_is_not_blamed() {
        assert_eq!(checks(&facts(|_, _| ())), []);
        let full_but_refusing = facts(|stream, _| {
            (stream.config.max_bytes, stream.config.discard) =
                (1000, async_nats::jetstream::stream::DiscardPolicy::New);
        });
        assert_eq!(checks(&full_but_refusing), []);
    }

    #[test]
    fn an_age_that_undecided_events_come_near_to_is_a_risk() {
        for (seconds, expected) in [(21, vec![BOUND]), (20, vec![RISK, BOUND])] {
            let facts = facts(|stream, _| stream.config.max_age = Duration::from_secs(seconds));
            assert_eq!(checks(&facts), expected, "{seconds}");
        }
        let decided = facts(|stream, input| {
            stream.config.max_age = Duration::from_secs(1);
            (input.undecided, input.oldest) = (0, None);
        });
        assert_eq!(checks(&decided), [BOUND]);
    }

    #[test]
    fn a_full_stream_is_a_risk_to_who_stands_at_its_beginning() {
        for (bytes, position, expected) in
            [(1000, 5, vec![RISK, BOUND]), (1000, 50, vec![BOUND]), (2000, 5, vec![BOUND])]
        {
            let facts = facts(|stream, input| (stream.config.max_bytes, input.position) = (bytes, position));
            assert_eq!(checks(&facts), expected, "{bytes} {position}");
        }
        let per_subject = facts(|stream, _| stream.config.max_messages_per_subject = 1);
        assert_eq!(checks(&per_subject), [RISK, BOUND]);
        assert_eq!(judge(&per_subject)[0].mend, "nats stream edit ORDERS --max-msgs-per-subject=-1 -f");
    }

    #[test]
    fn what_a_host_would_stop_at_is_an_error() {
        for (first, position, expected) in [(51, 50, false), (52, 50, true), (52, 0, true)] {
            let facts = facts(|stream, input| (stream.first, input.position) = (first, position));
            assert_eq!(checks(&facts) == [("events-lost", Severity::Error)], expected, "{first} {position}");
        }
    }
}
