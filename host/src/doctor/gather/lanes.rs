//! How many keys the handlers have in common whose documents one bucket gathers. In: the streams that are there. Out: a number for each such
//! bucket. A bucket that has not yet got all is looked at again, for what is under way is no shared key.

use std::time::Duration;

use async_nats::jetstream::Context;

use super::super::facts::{Facts, Stream};

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

/// The buckets that this one gathers; none where it does not keep one document for each key of several handlers.
fn lanes(facts: &Facts, stream: &Stream) -> Option<Vec<String>> {
    let names: Vec<String> = stream.gathered_from().map(str::to_owned).collect();
    let are_lanes = names.len() > 1
        && stream.config.max_messages_per_subject == 1
        && names.iter().all(|name| facts.stream(name).is_some_and(|stream| stream.documents_of().is_some()));
    are_lanes.then_some(names)
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
