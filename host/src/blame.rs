//! Which part of a failing batch to try next. In: how many events were tried and how it went. Out: how many to try, or the
//! verdict that the first one is to blame. Pure. Never: skips an event; what is good before the culprit gets committed.

/// The search for one culprit.
#[derive(Debug, Default)]
pub struct Blame {
    /// Events among which the culprit stands, counted from the next one.
    suspects: usize,
    /// How many to try at once while the search lasts.
    step: usize,
}

/// What a failure means.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again with fewer events.
    Narrow,
    /// The first event tried did it.
    First,
}

impl Blame {
    /// How many of the `available` next events to try.
    #[must_use]
    pub fn take(&self, available: usize) -> usize {
        if self.suspects == 0 { available } else { available.min(self.step) }
    }

    /// `tried` events failed; `culprit` is the index of the guilty one where the guest named it.
    #[must_use]
    pub fn failed(&mut self, tried: usize, culprit: Option<usize>) -> Verdict {
        if tried <= 1 || culprit == Some(0) {
            *self = Self::default();
            return Verdict::First;
        }
        self.suspects = culprit.map_or(tried, |index| index + 1);
        self.step = culprit.unwrap_or(tried / 2);
        Verdict::Narrow
    }

    /// `tried` events went through.
    pub fn passed(&mut self, tried: usize) {
        self.suspects = self.suspects.saturating_sub(tried);
        self.step = (self.suspects / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search over a batch and answers (the event blamed, events committed before it, calls made).
    fn search(batch: usize, culprit: Option<usize>, named: bool) -> (Option<usize>, usize, usize) {
        let (mut blame, mut done, mut calls) = (Blame::default(), 0, 0);
        while done < batch {
            let tried = blame.take(batch - done);
            assert!(tried > 0, "the search must make progress");
            calls += 1;
            match culprit.filter(|index| (done..done + tried).contains(index)) {
                Some(index) => {
                    if blame.failed(tried, named.then_some(index - done)) == Verdict::First {
                        return (Some(done), done, calls);
                    }
                }
                None => {
                    blame.passed(tried);
                    done += tried;
                }
            }
        }
        (None, done, calls)
    }

    #[test]
    fn every_culprit_is_found_with_all_before_it_committed() {
        for batch in [1, 2, 3, 7, 500] {
            for culprit in 0..batch {
                for named in [true, false] {
                    let (found, committed, calls) = search(batch, Some(culprit), named);
                    assert_eq!((found, committed), (Some(culprit), culprit), "batch {batch}, culprit {culprit}");
                    assert!(calls <= if named { 3 } else { 20 }, "{calls} calls for {culprit} of {batch}");
                }
            }
        }
    }

    #[test]
    fn a_good_batch_goes_in_one_call() {
        assert_eq!(search(500, None, false), (None, 500, 1));
    }

    #[test]
    fn a_batch_that_only_fails_in_company_is_decided_in_parts() {
        let mut blame = Blame::default();
        assert_eq!(blame.failed(8, None), Verdict::Narrow);
        assert_eq!(blame.take(8), 4);
        blame.passed(4);
        assert_eq!(blame.take(4), 2);
        blame.passed(2);
        blame.passed(1);
        blame.passed(1);
        assert_eq!(blame.take(100), 100, "the search is over");
    }
}
