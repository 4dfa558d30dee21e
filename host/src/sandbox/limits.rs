//! What one handler may use. In: a deployment's settings. Out: limits by name, each default with its reason. Pure.
//! Never: no limit.

use serde::{Deserialize, Serialize};

/// Bounds of one instance and of one call into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Fuel of one call whatever its batch holds. An event that needs more than this alone can never pass in company,
    /// so the verdict does not depend on how events were batched. 500 M units are about half a second; a JSON event needs 14 k.
    pub fuel_per_call: u64,
    /// Linear memory, bytes. Holds a 32 MiB document cache, a batch and its answer several times over.
    pub memory_bytes: usize,
    /// Above this an instance is replaced between two batches, because linear memory never shrinks.
    pub recycle_memory_bytes: usize,
    /// Bytes that the host lifts from one answer, and of all log lines of one call. A record may not exceed `max_payload` (1 MiB by default) anyway.
    pub output_bytes: usize,
    /// Log lines kept of one call; more are counted and dropped.
    pub log_lines_per_call: usize,
    /// Log lines written in a second; more are counted and dropped. A log that a handler fills hides what others say.
    pub log_lines_per_second: u64,
    /// Bytes kept of one log line.
    pub log_line_bytes: usize,
    /// Largest module accepted, bytes. The largest known kind of guest (an embedded Python) is 18 MB.
    pub module_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel_per_call: 500_000_000,
            memory_bytes: 256 << 20,
            recycle_memory_bytes: 192 << 20,
            output_bytes: 32 << 20,
            log_lines_per_call: 100,
            log_lines_per_second: 100,
            log_line_bytes: 4096,
            module_bytes: 64 << 20,
        }
    }
}
