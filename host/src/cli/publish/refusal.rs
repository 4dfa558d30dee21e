//! Refusals: what a server or a stream says instead of storing a line. In: the client's error. Out: whether the same line may be
//! taken later, and what to do about it. Never waits or sends.

use std::error::Error as _;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

/// Whether the same line may be taken when it is sent again: nobody answered, or JetStream was not ready. A server or a stream that
/// is full says that it is unavailable, too; waiting does not help there.
pub(super) fn may_pass(error: &PublishError) -> bool {
    const UNAVAILABLE: usize = 503;
    const FULL: [ErrorCode; 2] = [ErrorCode::STREAM_STORE_FAILED, ErrorCode::INSUFFICIENT_RESOURCES];
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::StreamNotFound => true,
        PublishErrorKind::Other => {
            said(error).is_some_and(|said| said.code() == UNAVAILABLE && !FULL.contains(&said.error_code()))
        }
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded => false,
    }
}

/// What makes room for the line that this stream refused; nothing if room is not what is missing.
pub(super) fn how_to_make_room(error: &PublishError, stream: &str) -> Option<String> {
    Some(match said(error)?.error_code() {
        ErrorCode::STREAM_STORE_FAILED => {
            format!("raise the limits of stream {stream:?} with `nats stream edit {stream}`, or make room in it")
        }
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED => {
            "the server keeps no more: make room, or raise max_file_store (max_memory_store) in its configuration"
                .to_owned()
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
            "the account keeps no more: make room, or raise its JetStream limits; see `nats account info`".to_owned()
        }
        _ => return None,
    })
}

/// JetStream's own words.
fn said(error: &PublishError) -> Option<&jetstream::Error> {
    error.source()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u32, error_code: u32) -> PublishError {
        let said = serde_json::json!({ "code": code, "err_code": error_code, "description": "no" });
        let said: jetstream::Error = serde_json::from_value(said).unwrap();
        PublishError::with_source(PublishErrorKind::Other, said)
    }

    #[test]
    fn what_is_full_is_not_waited_for_and_has_a_way_out() {
        let table = [
            ((503, 10_077), false, Some("raise the limits of stream \"S\" with `nats stream edit S`")),
            ((503, 10_023), false, Some("the server keeps no more: make room, or raise max_file_store")),
            ((500, 10_047), false, Some("the server keeps no more")),
            ((500, 10_028), false, Some("the server keeps no more")),
            ((400, 10_002), false, Some("the account keeps no more")),
            ((503, 10_008), true, None),
            ((400, 10_054), false, None),
        ];
        for ((code, error_code), passes, way_out) in table {
            let error = refusal(code, error_code);
            assert_eq!(may_pass(&error), passes, "{error_code}");
            let told = how_to_make_room(&error, "S");
            assert_eq!(told.is_some(), way_out.is_some(), "{error_code}");
            assert!(told.unwrap_or_default().starts_with(way_out.unwrap_or_default()), "{error_code}");
        }
    }
}
