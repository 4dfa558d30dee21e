//! Traces: what this host does becomes spans of the traces that publishers began. In: `traceparent` headers of events, what became of
//! batches and effects. Out: spans for a collector (OTLP), where one is named; headers for effects, so that the trace goes on.
//! One exporter a process, like the log. Never: holds anything up; costs an event without that header anything.
//!
//! | file | what it does | what always holds |
//! |---|---|---|
//! | `context.rs` | headers become a context, a context a header | pure; what is no `traceparent` is none |
//! | `carried.rs` | which effects of a record belong to which trace | a recovery sends the header that was decided |
//! | `spans.rs` | a batch, an effect become a span | only what is sampled is built |
//! | `exporter.rs` | spans go to the collector | bounded; what is dropped is counted and told |

mod carried;
mod context;
mod exporter;
mod spans;

pub use carried::{Carried, Effects};
pub use context::Context;
pub use exporter::{Error, Exporting, Options};
pub use spans::Batch;

pub(crate) use carried::of_effects;
pub(crate) use spans::{Stored, effect_is_stored};

use std::time::SystemTime;

/// When a batch begins, where anybody wants to know.
pub(crate) fn begin() -> Option<SystemTime> {
    exporter::exporter().map(|_| SystemTime::now())
}
