//! The batch that is under way as a span, where anybody follows traces.

use super::Pipeline;
use crate::intake::Arrival;
use crate::traces;

impl Pipeline {
    /// The span of these events, which began with the batch.
    pub(super) fn traced(&self, input: usize, arrivals: &[Arrival]) -> Option<Box<traces::Batch>> {
        self.begun?;
        traces::Batch::of(self.begun, &self.documents.handler, &self.stream_name(input), arrivals)
    }
}
