//! Would one broken disk take a stream away. Pure. Never: judges a server that is alone; there is nobody to copy to.

use super::facts::{Facts, Stream};
use super::finding::Finding;
use crate::subject;

/// What a cluster should keep, so that one server may be gone.
const WANTED: usize = 3;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if facts.server.cluster.is_none() {
        return Vec::new();
    }
    let alone = facts.streams.iter().filter(|stream| stream.config.num_replicas <= 1 && matters(facts, stream));
    let told = |stream: &Stream| {
        Finding::warning("replicas", format!("stream {}", stream.name()), "it has one replica, on a cluster")
            .why("while its server is away, handlers that need it stand still; with its disk it is gone")
            .mend(format!("nats stream edit {} --replicas={WANTED} -f", stream.name()))
    };
    alone.map(told).collect()
}

/// It is ours, or a handler reads it or sends to it.
fn matters(facts: &Facts, stream: &Stream) -> bool {
    let takes = |sent: &String| stream.config.subjects.iter().any(|subjects| subject::overlaps(subjects, sent));
    let uses = |handler: &super::facts::Handler| {
        handler.inputs.iter().any(|input| input.stream == stream.name())
            || matches!(&handler.module, super::facts::Module::Known { sends, .. } if sends.iter().any(takes))
    };
    stream.is_ours() || facts.handlers.iter().any(uses)
}

#[cfg(test)]
mod tests {
    use super::super::facts::Server;
    use super::*;

    #[test]
    fn on_a_cluster_what_millstream_needs_is_kept_three_times() {
        let stream = |name: &str, replicas| {
            let mut stream = Stream::default();
            (stream.config.name, stream.config.num_replicas) = (name.to_owned(), replicas);
            stream
        };
        let streams = vec![stream("KV_MILLSTREAM_HANDLERS", 1), stream("KV_MILLSTREAM_STATUS", 3), stream("THEIRS", 1)];
        let server = Server { cluster: Some("c".to_owned()), ..Server::default() };
        let facts = Facts { server, streams, ..Facts::default() };
        let mends: Vec<String> = judge(&facts).into_iter().map(|finding| finding.mend).collect();
        assert_eq!(mends, ["nats stream edit KV_MILLSTREAM_HANDLERS --replicas=3 -f"]);
        assert_eq!(judge(&Facts { server: Server::default(), ..facts }), []);
    }
}
