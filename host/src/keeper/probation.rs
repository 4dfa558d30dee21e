//! Versions that have yet to show that they can take events, and what to go back to when the last of them fails. In: what takes over
//! from what, and how much is decided. Out: the version to go back to. Pure. Never: holds more than a few.

use super::Wanted;

/// So many versions in a row that were not trusted when the next one came are remembered.
const UNTRUSTED: usize = 8;

/// A version that has yet to show that it can take events.
#[derive(Clone, Debug)]
pub(super) struct Probation {
    /// Revision of its deployment.
    pub(super) revision: u64,
    /// That of the deployment under which it ran first, where it was gone back to since.
    pub(super) first: Option<u64>,
    /// The one that ran before.
    pub(super) before: Wanted,
    /// Events decided when it ends.
    until: u64,
}

impl Probation {
    /// Whether so many decided events have yet to show anything.
    pub(super) fn lasts(&self, delivered: u64) -> bool {
        delivered < self.until
    }
}

/// Those of the version that runs and of the ones before it, its own last. None: what runs is trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct Probations(Vec<Probation>);

impl Probations {
    /// A version takes over from `before` once so many events are decided, and has to show itself for `events` more.
    pub(super) fn follow(&mut self, revision: u64, before: Wanted, delivered: u64, events: u64) {
        // Of a version that has shown itself, nothing before it matters.
        if self.0.last().is_none_or(|last| !last.lasts(delivered)) {
            self.0.clear();
        }
        if self.0.len() >= UNTRUSTED {
            // Never the first: it has the trusted version before it. Whoever goes back from the next one passes this one over.
            let passed = self.0.remove(1);
            if let Some(next) = self.0.get_mut(1) {
                next.before = passed.before;
            }
        }
        self.0.push(Probation { revision, first: None, before, until: delivered.saturating_add(events) });
    }

    /// Events decided when the version that runs is trusted; 0 where it is.
    pub(super) fn until(&self) -> u64 {
        self.0.last().map_or(0, |last| last.until)
    }

    /// The version that runs is given up: its probation. What is left is of the one before it.
    pub(super) fn give_up(&mut self) -> Option<Probation> {
        self.0.pop()
    }

    /// What runs is of this deployment from here on: it was gone back to, and goes on being watched from where it began.
    pub(super) fn runs_again_as(&mut self, revision: u64) {
        if let Some(own) = self.0.last_mut() {
            own.first.get_or_insert(own.revision);
            own.revision = revision;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Deployment, Desired};
    use crate::sandbox::Digest;
    use crate::settings::Settings;

    fn wanted(revision: u64) -> Wanted {
        let deployment = Deployment {
            digest: Digest([0; 32]),
            label: String::new(),
            subjects: Vec::new(),
            settings: Settings::default(),
            desired: Desired::Running,
            note: String::new(),
            signature: None,
        };
        Wanted { revision, deployment }
    }

    /// Each follows the one before it; none has decided anything.
    fn chain(last: u64) -> Probations {
        let mut probations = Probations::default();
        for revision in 2..=last {
            probations.follow(revision, wanted(revision - 1), 0, 100);
        }
        probations
    }

    fn ways_back(mut probations: Probations) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| probations.give_up())
            .map(|given_up| (given_up.revision, given_up.before.revision))
            .collect()
    }

    #[test]
    fn the_way_back_leads_over_each_to_the_trusted_one() {
        assert_eq!(ways_back(chain(4)), [(4, 3), (3, 2), (2, 1)]);
    }

    #[test]
    fn of_too_many_the_oldest_but_one_are_passed_over_and_the_way_stays_whole() {
        assert_eq!(
            ways_back(chain(11)),
            [(11, 10), (10, 9), (9, 8), (8, 7), (7, 6), (6, 5), (5, 2), (2, 1)],
            "each is gone back from under its own name, and to what stands before it"
        );
    }

    #[test]
    fn what_has_shown_itself_is_all_that_the_next_one_needs() {
        let mut probations = chain(4);
        assert_eq!(probations.until(), 100);
        probations.follow(5, wanted(4), 100, 50);
        assert_eq!((probations.until(), ways_back(probations)), (150, vec![(5, 4)]));
    }

    #[test]
    fn what_was_gone_back_to_is_known_by_both_its_deployments() {
        let mut probations = chain(3);
        probations.give_up();
        probations.runs_again_as(7);
        probations.runs_again_as(9);
        let own = probations.give_up().expect("it is watched");
        assert_eq!((own.revision, own.first, own.lasts(99), own.lasts(100)), (9, Some(2), true, false));
    }
}
