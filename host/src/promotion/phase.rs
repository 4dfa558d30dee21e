//! How far a promotion is, told by what the last records of the two generations say they are. Pure. Never: remembers anything; a
//! host that knows nothing finds the same.
//!
//! | before | after | what is next |
//! |---|---|---|
//! | live | a shadow | stop the one that is live, and close it |
//! | closed | a shadow | bring the other to the same events, and close it |
//! | closed | closed | keep the documents that were live, in a bucket of their own |
//! | a shadow | closed | bring the new documents into the handler's bucket, and make them live |
//! | a shadow | live | put it into the registry |

use crate::journal::Standing;

/// What is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Stop the live one.
    Stop,
    /// Bring the other to the same events.
    CatchUp,
    /// Keep the documents that were live.
    Keep,
    /// Make the other live.
    TakeOver,
    /// Put it into the registry.
    Register,
}

/// What is next, where the one that was live is `before` and the one that shall be is `after`; nothing where no promotion can have
/// led to that.
pub(super) fn phase(before: Standing, after: Standing) -> Option<Phase> {
    match (before, after) {
        (Standing::Live, Standing::Shadow) => Some(Phase::Stop),
        (Standing::Closed, Standing::Shadow) => Some(Phase::CatchUp),
        (Standing::Closed, Standing::Closed) => Some(Phase::Keep),
        (Standing::Shadow, Standing::Closed) => Some(Phase::TakeOver),
        (Standing::Shadow, Standing::Live) => Some(Phase::Register),
        (Standing::Live, Standing::Live | Standing::Closed)
        | (Standing::Closed, Standing::Live)
        | (Standing::Shadow, Standing::Shadow) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Closed, Live, Shadow};

    #[test]
    fn each_phase_leads_to_the_next_and_nobody_is_live_twice() {
        let mut standings = (Live, Shadow);
        let mut phases = Vec::new();
        while let Some(phase) = phase(standings.0, standings.1) {
            phases.push(phase);
            standings = match phase {
                Phase::Stop => (Closed, Shadow),
                Phase::CatchUp => (Closed, Closed),
                Phase::Keep => (Shadow, Closed),
                Phase::TakeOver => (Shadow, Live),
                Phase::Register => break,
            };
            assert_ne!(standings, (Live, Live));
        }
        assert_eq!(phases, [Phase::Stop, Phase::CatchUp, Phase::Keep, Phase::TakeOver, Phase::Register]);
        for impossible in [(Live, Live), (Live, Closed), (Closed, Live), (Shadow, Shadow)] {
            assert_eq!(phase(impossible.0, impossible.1), None);
        }
    }
}
