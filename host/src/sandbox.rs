//! The sandbox boundary: a module's bytes become a component, a component becomes an instance, an instance answers batches.
//! In: flat batches and documents. Out: checked answers, or a `Failure` that names its class.
//! Never: I/O of any kind on behalf of a guest. The only import a guest may have is `log`, and that is bounded.

mod answer;
mod cache;
mod engine;
mod instance;
mod limits;
mod memory;
mod module;
mod priority;
mod share;
mod voice;

pub use answer::{check_outcome, check_staged, slice, str_slice};
pub use cache::Cache;
pub use engine::Sandbox;
pub use instance::{Instance, LogLine};
pub use limits::Limits;
pub use memory::Memory;
pub use module::{Digest, Error, Module, Source};
pub use voice::Voice;

use std::sync::Arc;
use std::time::Duration;

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
    wasmtime::component::bindgen!({
        path: "../wit/handler.wit",
        world: "handler",
        imports: { "log": trappable },
    });
}

/// The records of `wit/handler.wit`, one Rust struct each.
pub mod wire {
    pub use super::bindings::millstream::handler::types::{
        Batch, Change, Description, Document, Documents, Effect, Event, Key, Kind, Level, Outcome, Refusal, Rejection,
        Route, Span, Staged,
    };
}

/// Something that answers batches: a WASM instance, or the same projection compiled natively (benchmarks compare the two).
pub trait Guest: Send + Sync {
    /// Phase one of the contract.
    ///
    /// # Errors
    /// A trap, an exhausted limit, or an answer that breaks the contract.
    fn stage(&mut self, batch: &wire::Batch) -> Result<wire::Staged, Failure>;

    /// Phase two of the contract.
    ///
    /// # Errors
    /// As for `stage`.
    fn apply(&mut self, documents: &wire::Documents, skip: &[u32]) -> Result<wire::Outcome, Failure>;

    /// True when the guest holds so much memory that it should be replaced between two batches.
    fn is_bloated(&self) -> bool;

    /// Bytes of linear memory held.
    fn memory_bytes(&self) -> u64;

    /// Fuel that all calls have used; nothing where nobody counts it.
    fn fuel_used(&self) -> u64 {
        0
    }

    /// How long to leave the module alone before its next batch, for its neighbours' sake; asked once after each event that used up all
    /// that a call has.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
}

/// Makes a fresh guest; called at the start and after each failure.
pub type Instantiate = Arc<dyn Fn() -> Result<Box<dyn Guest>, Failure> + Send + Sync>;

/// Why a guest failed. A guest is pure, so every class but `Host` is permanent for the same events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A WASM trap: a panic, unreachable code, a stack overflow.
    Trap,
    /// The call used up its fuel.
    Fuel,
    /// The guest asked for more memory than it may have.
    Memory,
    /// The answer was larger than the output limit.
    Output,
    /// The answer broke the contract: spans outside the blob, wrong indexes, unknown routes.
    Answer,
    /// The host could not make an instance.
    Host,
}

/// A failed call into a guest.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub class: Class,
    /// One sentence for people; a panic message where the guest left one.
    pub message: String,
    /// Guest frames, innermost first, or empty.
    pub backtrace: String,
}

impl Failure {
    pub(crate) fn answer(message: impl Into<String>) -> Self {
        Self { class: Class::Answer, message: message.into(), backtrace: String::new() }
    }
}
