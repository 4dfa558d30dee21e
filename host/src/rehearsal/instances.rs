//! The live instances of a saga, from its bucket. In: the bucket's stream, page by page. Out: those that have not ended; of more
//! than were asked for a sample, the same each time. Never: more of them in memory than were asked for.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;
use millstream_saga::Instance;
use sha2::{Digest as _, Sha256};

use crate::direct_get::From;
use crate::inputs;
use crate::keys;
use crate::names;
use crate::recorded::{Reader, Source};

/// Live instances.
#[derive(Debug, Default)]
pub struct Live {
    /// How many there are.
    pub all: u64,
    /// Those to look at, by key.
    pub looked_at: BTreeMap<String, Instance>,
    /// Keys of live documents that are no instances.
    pub unreadable: Vec<String>,
}

/// Reads them, `most` at most.
///
/// # Errors
/// When the server does not answer, or a key is not one of ours.
pub async fn live(jetstream: &Context, handler: &str, most: usize) -> anyhow::Result<Live> {
    let stream = names::bucket_stream(handler);
    match jetstream.get_stream(&stream).await {
        Ok(_) => {}
        // A saga that never ran has no bucket.
        Err(error) if inputs::is_missing(&error) => return Ok(Live::default()),
        Err(error) => return Err(error.into()),
    }
    let prefix = names::bucket_subject(handler, "");
    let filter = format!("{prefix}>");
    let source = Source { stream: &stream, filter: &filter, direct: true, first: 1 };
    let mut reader = Reader::open(jetstream, source, From::Sequence(1)).await?;
    let mut sample = Sample::new(most);
    loop {
        let page = reader.next().await?;
        if page.is_empty() {
            return Ok(sample.live);
        }
        for message in page {
            let key = keys::unescape(message.subject.strip_prefix(&prefix).unwrap_or_default())?;
            let deleted = message.is_deletion();
            sample.see(key, if deleted { None } else { Some(Instance::read(&message.payload)) });
        }
    }
}

/// Keeps the instances whose keys have the smallest hashes: no order of keys or of time has a say in it.
struct Sample {
    most: usize,
    live: Live,
    by_hash: BTreeMap<([u8; 32], String), ()>,
}

impl Sample {
    fn new(most: usize) -> Self {
        Self { most, live: Live::default(), by_hash: BTreeMap::new() }
    }

    /// A document as the bucket has it; one that changes meanwhile comes again, later.
    fn see(&mut self, key: String, document: Option<Result<Instance, millstream_saga::instance::Error>>) {
        let place = (Sha256::digest(&key).into(), key);
        if self.by_hash.remove(&place).is_some() {
            self.live.all -= 1;
            self.live.looked_at.remove(&place.1);
        }
        let instance = match document {
            Some(Ok(instance)) if !instance.status.has_ended() => instance,
            Some(Err(_)) => return self.live.unreadable.push(place.1),
            Some(Ok(_)) | None => return,
        };
        self.live.all += 1;
        self.live.looked_at.insert(place.1.clone(), instance);
        self.by_hash.insert(place, ());
        if self.by_hash.len() > self.most
            && let Some(((_, key), ())) = self.by_hash.pop_last()
        {
            self.live.looked_at.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(status: &str) -> Option<Result<Instance, millstream_saga::instance::Error>> {
        let text = format!(r#"{{"status":"{status}","state":null,"correlation":"c","life":"e"}}"#);
        Some(Instance::read(text.as_bytes()))
    }

    fn seen(most: usize, order: impl Iterator<Item = u32>) -> Live {
        let mut sample = Sample::new(most);
        for number in order {
            sample.see(format!("k{number}"), document(if number % 10 == 0 { "completed" } else { "running" }));
        }
        sample.live
    }

    #[test]
    fn a_sample_is_the_same_in_any_order_and_all_are_counted() {
        let (up, down) = (seen(20, 0..100), seen(20, (0..100).rev()));
        assert_eq!((up.all, up.looked_at.len()), (90, 20));
        assert_eq!((down.all, down.looked_at.keys().collect::<Vec<_>>()), (90, up.looked_at.keys().collect()));
        assert_eq!(seen(100, 0..100).looked_at.len(), 90);
    }

    #[test]
    fn the_last_word_on_a_key_counts() {
        let mut sample = Sample::new(10);
        for (key, document) in [("a", document("running")), ("b", document("running")), ("a", document("compensating"))]
        {
            sample.see(key.to_owned(), document);
        }
        assert_eq!(sample.live.all, 2);
        sample.see("a".to_owned(), document("completed"));
        sample.see("b".to_owned(), None);
        assert_eq!((sample.live.all, sample.live.looked_at.len()), (0, 0));
    }
}
