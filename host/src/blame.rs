//! Which part of a failing batch to try next. In: how many events were tried and how it went. Out: how many to try, or the
//! verdict that the first one is to blame. Pure. Never: skips an event; what is good before the culprit gets committed.
//! It also learns how many events fit into one call and one record, so that large documents do not fail batch after batch; and after a
//! culprit it tries few events at first, for the next one may be as bad, and a search among many costs a call for each halving.

/// After a batch that went through, the next may be larger by one part in so many.
const GROWTH: usize = 32;

/// Near what did not fit, by one part in so many of that, it only grows by an event: each try that fails costs a call, and the guest's
/// documents.
const NEAR: usize = 8;

/// The search for one culprit.
#[derive(Debug, Default)]
pub struct Blame {
    /// How many events fitted last, after more did not; none while everything fits.
    fitting: Option<usize>,
    /// How many did not fit last.
    unfitting: usize,
    /// How many to try after a culprit; none when that was long ago.
    wary: Option<usize>,
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
        let most =
            if self.suspects == 0 { [self.fitting, self.wary].into_iter().flatten().min() } else { Some(self.step) };
        available.min(most.unwrap_or(available))
    }

    /// `tried` events failed; `culprit` is the index of the guilty one where the guest named it.
    #[must_use]
    pub fn failed(&mut self, tried: usize, culprit: Option<usize>) -> Verdict {
        if tried <= 1 || culprit == Some(0) {
            // One that the guest named costs no search.
            *self = Self { wary: culprit.is_none().then_some(1), ..Self::default() };
            return Verdict::First;
        }
        if culprit.is_none() {
            (self.fitting, self.unfitting) = (Some(tried / 2), tried);
        }
        self.suspects = culprit.map_or(tried, |index| index + 1);
        self.step = culprit.unwrap_or(tried / 2);
        Verdict::Narrow
    }

    /// `tried` events went through. What fits grows again, slowly: a try that fails costs a call. Trust comes back fast: a culprit is
    /// mostly the only one.
    pub fn passed(&mut self, tried: usize) {
        if self.suspects == 0 {
            let near = self.unfitting - self.unfitting / NEAR;
            let is_near = |fitting: usize| (near..=self.unfitting).contains(&fitting);
            let larger =
                |fitting: usize| fitting.saturating_add(if is_near(fitting) { 1 } else { fitting.div_ceil(GROWTH) });
            self.fitting = self.fitting.map(larger);
            self.wary = self.wary.and_then(|wary| wary.checked_mul(4));
        }
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
    fn one_culprit_after_the_other_costs_a_call_each_and_trust_comes_back_fast() {
        let mut blame = Blame::default();
        let (mut left, mut calls) = (1024, 0);
        while left > 0 {
            calls += 1;
            let tried = blame.take(left);
            if blame.failed(tried, None) == Verdict::First {
                left -= 1;
            }
        }
        assert_eq!(calls, 1024 + 10, "ten to find the first one");
        let taken: Vec<usize> = (0..7)
            .map(|_| {
                let tried = blame.take(1000);
                blame.passed(tried);
                tried
            })
            .collect();
        assert_eq!(taken, [1, 4, 16, 64, 256, 1000, 1000]);
        assert_eq!(blame.failed(1000, Some(0)), Verdict::First);
        assert_eq!(blame.take(1000), 1000, "the guest named it");
    }

    #[test]
    fn what_fits_grows_for_as_long_as_a_handler_runs() {
        let mut blame = Blame::default();
        assert_eq!(blame.failed(1000, None), Verdict::Narrow);
        for _ in 0..100_000 {
            blame.passed(500);
        }
        assert_eq!(blame.take(1_000_000), 1_000_000);
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
        assert_eq!(blame.take(100), 4, "the search is over, and what fits is known");
        for _ in 0..32 {
            blame.passed(4);
        }
        assert!(blame.take(100) > 30, "what fits grows again");
    }

    #[test]
    fn documents_too_large_for_a_full_batch_cost_few_calls_in_the_long_run() {
        let (mut blame, mut done, mut calls, mut failed) = (Blame::default(), 0, 0, 0);
        while done < 100_000 {
            let tried = blame.take(2000);
            calls += 1;
            if tried > 300 {
                failed += 1;
                assert_eq!(blame.failed(tried, None), Verdict::Narrow);
            } else {
                blame.passed(tried);
                done += tried;
            }
        }
        assert!(calls < 500 && failed < 15, "{calls} calls, {failed} of them in vain");
    }
}
