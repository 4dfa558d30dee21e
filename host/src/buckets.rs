//! The buckets that all handlers share. In: a name. Out: the bucket as it is, or made anew. Never: takes a server that does not
//! answer for one that has no such bucket; the client's own account of the two is the same.

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{CreateKeyValueError, CreateKeyValueErrorKind};
use async_nats::jetstream::kv::{Config, Store};

use crate::inputs;
use crate::names;

/// Opens it for reading.
///
/// # Errors
/// The client's words, when the server refuses or does not answer.
pub(crate) async fn peek(jetstream: &Context, bucket: &str) -> Result<Option<Store>, String> {
    match jetstream.get_stream(names::bucket_stream(bucket)).await {
        Ok(_) => jetstream.get_key_value(bucket).await.map(Some).map_err(|error| error.to_string()),
        Err(error) if inputs::is_missing(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Copies of what all handlers share: as many as outlive a server, and one where the server stands alone.
pub(crate) const REPLICAS: [usize; 2] = [3, 1];

/// Makes it, with as many copies as the servers can hold.
///
/// # Errors
/// When the server refuses or does not answer.
pub(crate) async fn make(jetstream: &Context, config: Config) -> Result<Store, CreateKeyValueError> {
    let mut refused = CreateKeyValueError::new(CreateKeyValueErrorKind::BucketCreate);
    for num_replicas in REPLICAS {
        match jetstream.create_key_value(Config { num_replicas, ..config.clone() }).await {
            Ok(store) => return Ok(store),
            Err(error) if error.kind() == CreateKeyValueErrorKind::TimedOut => return Err(error),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
