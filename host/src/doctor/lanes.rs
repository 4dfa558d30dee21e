//! Is a bucket that gathers the documents of several handlers, its lanes, what readers take it for: each document decided by one of them.
//! Pure. Never: says anything of buckets that gather something else.

use super::facts::{Facts, Stream};
use super::finding::Finding;
use crate::legible::thousands;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    facts.streams.iter().filter(|stream| stream.shared_keys > 0).map(|stream| shared(facts, stream)).collect()
}

fn shared(facts: &Facts, stream: &Stream) -> Finding {
    let lanes: Vec<&str> =
        stream.gathered_from().filter_map(|name| facts.stream(name)).filter_map(Stream::documents_of).collect();
    let bucket = stream.name().trim_start_matches("KV_");
    let problem = format!(
        "{} keys have documents of more than one of the handlers {}",
        thousands(stream.shared_keys),
        lanes.join(", ")
    );
    Finding::error("shared-keys", format!("bucket {bucket}"), problem)
        .why("each handler knows its own events alone; readers see whichever wrote last, which is a part of the truth")
        .mend(format!(
            "give each handler the events of its own keys: millstream deploy MODULE --name {} --set subjects=...",
            lanes.first().unwrap_or(&"LANE")
        ))
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::{Config, Source};

    use super::*;
    use crate::names;

    fn bucket(name: &str, owner: Option<&str>) -> Stream {
        let metadata = owner.map(names::ours).unwrap_or_default();
        let config = Config { name: names::bucket_stream(name), metadata, ..Config::default() };
        Stream { config, ..Stream::default() }
    }

    #[test]
    fn keys_of_several_lanes_are_told_with_the_names_of_all() {
        let source = |name: &str| Source { name: names::bucket_stream(name), ..Source::default() };
        let mut all = bucket("spend", None);
        all.config.sources = Some(vec![source("spend-0"), source("spend-1")]);
        let streams = vec![bucket("spend-0", Some("spend-0")), bucket("spend-1", Some("spend-1")), all];
        let mut facts = Facts { streams, ..Facts::default() };
        assert_eq!(judge(&facts), []);
        facts.streams[2].shared_keys = 1200;
        let found = judge(&facts);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].check, found[0].thing.as_str()), ("shared-keys", "bucket spend"));
        assert_eq!(found[0].problem, "1,200 keys have documents of more than one of the handlers spend-0, spend-1");
    }
}
