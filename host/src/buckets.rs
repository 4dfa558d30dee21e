//! A bucket of ours, if it is there. In: its name. Out: the bucket, or none where nobody has made it. Never: takes a server that does
//! not answer for one that has no such bucket; the client's own account of the two is the same.

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;

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
