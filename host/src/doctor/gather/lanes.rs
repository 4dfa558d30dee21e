//! How many keys the handlers have in common whose documents one bucket gathers. In: the streams that are there. Out: a number for each such
//! bucket. A bucket that has not yet got all is looked at again, for what is under way is no shared key.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Source;

use super::super::facts::{Facts, Stream};
use crate::names;

/// So often a bucket is looked at that lacks documents.
const LOOKS: usize = 10;

/// Between two looks.
const BETWEEN: Duration = Duration::from_millis(200);

pub(super) async fn look(jetstream: &Context, facts: &mut Facts) {
    let found: Vec<(usize, String, Vec<String>)> =
        (0..).zip(&facts.streams).filter_map(|(at, stream)| suspected(facts, at, stream)).collect();
    for (at, name, lanes) in found {
        match (shared_keys(jetstream, &name, &lanes).await, facts.streams.get_mut(at)) {
            (Ok(keys), Some(stream)) => stream.shared_keys = keys,
            (Ok(_), None) => {}
            (Err(reason), _) => facts.unseen.push((format!("stream {name}"), reason)),
        }
    }
}

/// A bucket that lacks documents of its lanes, as far as is known by now.
fn suspected(facts: &Facts, at: usize, stream: &Stream) -> Option<(usize, String, Vec<String>)> {
    let lanes = lanes(facts, stream)?;
    let documents: u64 = lanes.iter().filter_map(|lane| facts.stream(lane)).map(|lane| lane.messages).sum();
    (documents > stream.messages).then(|| (at, stream.name().to_owned(), lanes))
}

/// The buckets that this one gathers, each whole; none where it does not keep one document for each key of several handlers.
fn lanes(facts: &Facts, stream: &Stream) -> Option<Vec<String>> {
    let names: Vec<String> = stream.gathered_from().map(str::to_owned).collect();
    let are_lanes = names.len() > 1
        && stream.config.max_messages_per_subject == 1
        && names.iter().all(|name| facts.stream(name).is_some_and(|stream| stream.documents_of().is_some()))
        && stream.config.sources.iter().flatten().all(is_whole);
    are_lanes.then_some(names)
}

/// Whether no document of that bucket is left out.
fn is_whole(source: &Source) -> bool {
    let all = names::bucket_subject(source.name.trim_start_matches("KV_"), ">");
    let takes_all = |subject: &str| subject.is_empty() || subject == ">" || subject == all;
    let transforms = &source.subject_transforms;
    source.start_sequence.is_none_or(|first| first <= 1)
        && source.start_time.is_none()
        && source.filter_subject.as_deref().is_none_or(takes_all)
        && (transforms.is_empty() || transforms.iter().any(|transform| takes_all(&transform.source)))
}

/// Documents that the lanes have and the bucket has not: the least of some looks, for documents come while one looks.
async fn shared_keys(jetstream: &Context, bucket: &str, lanes: &[String]) -> Result<u64, String> {
    let mut least = u64::MAX;
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        let mut documents: u64 = 0;
        for lane in lanes {
            documents += messages(jetstream, lane).await?;
        }
        // Last: what came in between makes it more, never less.
        least = least.min(documents.saturating_sub(messages(jetstream, bucket).await?));
        if least == 0 {
            break;
        }
    }
    Ok(least)
}

async fn messages(jetstream: &Context, stream: &str) -> Result<u64, String> {
    let stream = jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
    Ok(stream.cached_info().state.messages)
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::{Config, SubjectTransform};

    use super::*;

    fn bucket(name: &str, messages: u64, sources: Option<Vec<Source>>) -> Stream {
        let (metadata, max_messages_per_subject) = (names::ours(name), 1);
        let name = names::bucket_stream(name);
        let config = Config { name, metadata, max_messages_per_subject, sources, ..Config::default() };
        Stream { config, messages, ..Stream::default() }
    }

    #[test]
    fn a_bucket_that_gathers_only_a_part_is_not_suspected_of_shared_keys() {
        let source = |name: &str| Source { name: names::bucket_stream(name), ..Source::default() };
        let filtered = |subject: &str| Source { filter_subject: Some(subject.to_owned()), ..source("b") };
        let transformed = |subject: &str| {
            let destination = names::bucket_subject("all", ">");
            let transform = SubjectTransform { source: subject.to_owned(), destination };
            Source { subject_transforms: vec![transform], ..source("b") }
        };
        for (second, is_suspected) in [
            (source("b"), true),
            (filtered("$KV.b.>"), true),
            (transformed("$KV.b.>"), true),
            (filtered("$KV.b.eu.>"), false),
            (transformed("$KV.b.eu.>"), false),
            (Source { start_sequence: Some(5), ..source("b") }, false),
        ] {
            let all = bucket("all", 15, Some(vec![source("a"), second.clone()]));
            let facts = Facts { streams: vec![bucket("a", 10, None), bucket("b", 10, None), all], ..Facts::default() };
            let expected = is_suspected.then(|| (2, "KV_all".to_owned(), vec!["KV_a".to_owned(), "KV_b".to_owned()]));
            assert_eq!(suspected(&facts, 2, &facts.streams[2]), expected, "{second:?}");
        }
    }
}
