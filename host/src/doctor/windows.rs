//! Are second sendings recognised for long enough, and can timers be set. A host that comes back sends again what it cannot know to be
//! stored; the stream's duplicate window tells the two apart. Pure.

use std::time::Duration;

use async_nats::jetstream::stream::RetentionPolicy;

use super::facts::{Facts, Module, Stream};
use super::finding::Finding;
use crate::legible::duration;
use crate::names;
use crate::subject;

/// A stream that keeps what it took can be searched; a window only saves the search, and covers what a replica lacks.
const SEARCHED: Duration = Duration::from_secs(10);

/// One that drops what was taken cannot: the window is all there is. The server's own default.
const ALONE: Duration = Duration::from_secs(120);

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.streams.iter().filter_map(|stream| window(facts, stream)).collect();
    findings.extend(schedules(facts));
    findings
}

fn window(facts: &Facts, stream: &Stream) -> Option<Finding> {
    let config = &stream.config;
    let holds = |sent: &String| config.subjects.iter().any(|subjects| subject::overlaps(subjects, sent));
    let sends = |handler: &&super::facts::Handler| match &handler.module {
        Module::Known { sends, .. } => sends.iter().any(holds),
        Module::Unusable(_) | Module::Unseen => false,
    };
    let senders: Vec<&str> = facts.handlers.iter().filter(sends).map(|handler| handler.name.as_str()).collect();
    let (least, why) = match config.retention {
        RetentionPolicy::Limits => {
            (SEARCHED, "each sending that is older than half of it is searched for in the stream")
        }
        _ => (ALONE, "what was taken from it leaves no trace: a host that was away for longer sends it twice"),
    };
    if senders.is_empty() || config.duplicate_window >= least {
        return None;
    }
    let window = duration(config.duplicate_window.as_secs_f64());
    let problem = format!("it recognises second sendings for {window} only, and {} sends to it", senders.join(", "));
    Some(
        Finding::warning("duplicate-window", format!("stream {}", stream.name()), problem)
            .why(why)
            .mend(format!("nats stream edit {} --dupe-window=2m -f", stream.name())),
    )
}

fn schedules(facts: &Facts) -> Option<Finding> {
    let sets = |handler: &&super::facts::Handler| matches!(handler.module, Module::Known { timers: true, .. });
    let stream = facts.stream(names::TIMERS)?;
    // One that is not ours at all is told of elsewhere.
    if stream.owner() != Some(names::TIMERS) {
        return None;
    }
    let sagas: Vec<&str> = facts.handlers.iter().filter(sets).map(|handler| handler.name.as_str()).collect();
    let has_subjects = stream.config.subjects.contains(&names::timer_subjects());
    if sagas.is_empty() || (stream.config.allow_message_schedules && has_subjects && stream.config.allow_rollup) {
        return None;
    }
    let flags = [
        (!has_subjects, format!(" --subjects='{}'", names::timer_subjects())),
        (!stream.config.allow_message_schedules, " --allow-schedules".to_owned()),
        (!stream.config.allow_rollup, " --allow-rollup".to_owned()),
    ];
    let flags: String = flags.into_iter().filter(|(wrong, _)| *wrong).map(|(_, flag)| flag).collect();
    Some(
        Finding::error("schedules", format!("stream {}", names::TIMERS), "it cannot hold the timers that sagas set")
            .why(format!("no deadline, retry or timer of {} comes; they do not start", sagas.join(", ")))
            .mend(format!("nats stream edit {}{flags} -f", names::TIMERS)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::facts::Handler;
    use super::*;
    use crate::doctor::facts;

    fn saga(stream: Stream) -> Facts {
        let module = Module::Known { sends: vec!["commands.*".to_owned()], timers: true };
        let handler = Handler { module, ..facts::handler("fulfilment") };
        Facts { streams: vec![stream], handlers: vec![handler], ..Facts::default() }
    }

    #[test]
    fn a_window_is_short_where_it_is_all_there_is() {
        let target = |subject: &str, retention, seconds| {
            let mut stream = Stream::default();
            stream.config.name = "COMMANDS".to_owned();
            (stream.config.subjects, stream.config.retention) = (vec![subject.to_owned()], retention);
            stream.config.duplicate_window = Duration::from_secs(seconds);
            judge(&saga(stream)).len()
        };
        assert_eq!(target("commands.>", RetentionPolicy::Limits, 10), 0);
        assert_eq!(target("commands.>", RetentionPolicy::Limits, 9), 1);
        assert_eq!(target("commands.>", RetentionPolicy::WorkQueue, 119), 1);
        assert_eq!(target("commands.>", RetentionPolicy::WorkQueue, 120), 0);
        assert_eq!(target("others.>", RetentionPolicy::WorkQueue, 1), 0, "nobody sends there");
    }

    #[test]
    fn timers_need_what_the_host_made_their_stream_with() {
        let mut stream = Stream::default();
        (stream.config.name, stream.config.metadata) = (names::TIMERS.to_owned(), names::ours(names::TIMERS));
        stream.config.subjects = vec![names::timer_subjects()];
        stream.config.allow_rollup = true;
        let found = judge(&saga(stream.clone()));
        assert_eq!(found[0].mend, "nats stream edit MILLSTREAM_TIMERS --allow-schedules -f");
        stream.config.allow_message_schedules = true;
        assert_eq!(judge(&saga(stream.clone())), []);
        stream.config.subjects = vec!["else".to_owned()];
        let found = judge(&saga(stream.clone()));
        assert_eq!(found[0].mend, "nats stream edit MILLSTREAM_TIMERS --subjects='millstream.timers.>' -f");
        assert_eq!(judge(&Facts { handlers: Vec::new(), ..saga(stream) }), [], "nobody sets any");
    }
}
