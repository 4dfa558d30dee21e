//! Which host runs which handler. In: the hosts as this one sees them, and what it runs itself. Out: what to do about a handler: take
//! it, let go of it, or leave it as it is. Pure. Never: trusts its own view for safety: the claim in the journal fences, whatever two
//! hosts believe; placement only keeps them from wanting the same.
//!
//! Each handler has an order of hosts that depends on names alone (rendezvous hashing): the first one that lives runs it. A host that
//! comes or goes moves only the handlers that it is the first for.

pub(crate) mod holdings;
pub(crate) mod lease;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::Host;

/// How often a host says that it lives.
pub(crate) const ANNOUNCE_EVERY: Duration = Duration::from_millis(400);

/// A host that is silent for so long is taken for gone.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// How long this host's own announcement may be on its way before it believes that it sees nothing any more.
const FRESH_FOR: Duration = Duration::from_millis(1200);

/// Nothing is handed to a host that is not known for so long: one that ends again and again would carry handlers to and fro.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// A handler that nobody takes for so long is the next host's to take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A host as this one sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What it says of itself.
    pub(crate) host: Host,
    /// When it was heard of last.
    pub(crate) heard: Instant,
    /// Since when it has been heard of without a gap.
    pub(crate) known: Instant,
    /// It does not listen any more: its connection is gone.
    pub(crate) hung_up: bool,
}

/// All hosts as this one sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The others, by name.
    pub(crate) others: BTreeMap<String, Seen>,
    /// When this host last saw its own announcement come back.
    pub(crate) echoed: Option<Instant>,
}

/// What to do about a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nothing.
    Stay,
    /// Run it here.
    Take,
    /// Another host should have it: end it here, so that it can begin there.
    HandOver,
}

/// What this host does about a handler by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It looks after it.
    Here,
    /// It does not, and as far as it knows nobody does since then.
    Free {
        /// Since when.
        since: Instant,
    },
}

impl Seen {
    fn lives(&self, now: Instant) -> bool {
        !self.hung_up && now.saturating_duration_since(self.heard) < LEASE
    }
}

impl View {
    /// Whether what is seen can be relied upon for taking something.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.echoed.is_some_and(|echoed| now.saturating_duration_since(echoed) < FRESH_FOR)
    }

    /// The host that looks after this handler, among the others.
    pub(crate) fn holder(&self, handler: &str, now: Instant) -> Option<&str> {
        let mut living = self.others.values().filter(|seen| seen.lives(now));
        let holder = living.find(|seen| seen.host.holds.iter().any(|held| held == handler));
        holder.map(|seen| seen.host.name.as_str())
    }

    /// What `me` should do about a handler, which it perhaps cannot run.
    pub(crate) fn decide(&self, (me, declines): (&Host, bool), handler: &str, held: Held, now: Instant) -> Word {
        if !self.is_fresh(now) {
            return Word::Stay;
        }
        let order = self.order((me, declines), handler, now);
        match held {
            Held::Here => match order.first() {
                Some((_, Some(heir))) if now.saturating_duration_since(heir.known) >= SETTLED_AFTER => Word::HandOver,
                _ => Word::Stay,
            },
            Held::Free { .. } if self.holder(handler, now).is_some() => Word::Stay,
            Held::Free { since } => {
                let place =
                    order.iter().position(|(_, seen)| seen.is_none()).and_then(|place| u32::try_from(place).ok());
                let waited = now.saturating_duration_since(since);
                match place {
                    Some(place) if waited >= PATIENCE * place => Word::Take,
                    _ => Word::Stay,
                }
            }
        }
    }

    /// The hosts that may run a handler, best first; this one has nothing beside its number. Those that refused it come last.
    fn order<'a>(
        &'a self,
        (me, declines): (&Host, bool),
        handler: &str,
        now: Instant,
    ) -> Vec<((bool, u64), Option<&'a Seen>)> {
        let rank = |host: &Host| (host.declines.iter().any(|it| it == handler), !weight(&host.name, handler));
        let others = self.others.values().filter(|seen| seen.lives(now) && !seen.host.leaving);
        let others = others.filter(|seen| seen.host.looks_after(handler)).map(|seen| (rank(&seen.host), Some(seen)));
        let mut order: Vec<_> = others.chain([((declines, !weight(&me.name, handler)), None)]).collect();
        order.sort_by_key(|(rank, _)| *rank);
        order
    }
}

/// How much a host wants a handler: the same number on every host, in every release. FNV-1a, then the finisher of MurmurHash3, because
/// names that differ in their last letters must not have similar weights.
fn weight(host: &str, handler: &str) -> u64 {
    let bytes = host.bytes().chain([0]).chain(handler.bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host { name: name.to_owned(), ..Host::default() }
    }

    /// A view that was seen by `now`, in which these hosts live and are known for long.
    fn view(now: Instant, hosts: &[Host]) -> View {
        let seen = |host: &Host| Seen { host: host.clone(), heard: now, known: now - SETTLED_AFTER, hung_up: false };
        let others = hosts.iter().map(|host| (host.name.clone(), seen(host))).collect();
        View { others, echoed: Some(now) }
    }

    fn now() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn handlers() -> Vec<String> {
        (0..1000).map(|number| format!("handler-{number}")).collect()
    }

    /// The host that would take a handler that is free, among hosts that all see each other.
    fn taker<'a>(hosts: &'a [Host], handler: &str, now: Instant) -> Vec<&'a str> {
        let takes = |me: &&Host| {
            let others: Vec<Host> = hosts.iter().filter(|host| host.name != me.name).cloned().collect();
            view(now, &others).decide((me, false), handler, Held::Free { since: now }, now) == Word::Take
        };
        hosts.iter().filter(takes).map(|host| host.name.as_str()).collect()
    }

    #[test]
    fn each_handler_is_exactly_one_host_s_and_the_shares_are_even() {
        let now = now();
        let hosts: Vec<Host> = ["a-1", "a-2", "a-3", "a-4"].map(host).into();
        let mut shares = BTreeMap::<&str, u32>::new();
        for handler in handlers() {
            let takers = taker(&hosts, &handler, now);
            assert_eq!(takers.len(), 1, "{handler}: {takers:?}");
            *shares.entry(takers[0]).or_default() += 1;
        }
        assert!(shares.len() == 4 && shares.values().all(|share| (200..=300).contains(share)), "{shares:?}");
    }

    #[test]
    fn a_host_that_goes_moves_its_own_handlers_only() {
        let now = now();
        let hosts: Vec<Host> = ["a", "b", "c"].map(host).into();
        for handler in handlers() {
            let before = taker(&hosts, &handler, now);
            let after = taker(&hosts[..2], &handler, now);
            assert!(before == after || before == ["c"], "{handler}: {before:?} {after:?}");
        }
    }

    #[test]
    fn nothing_is_taken_from_a_host_that_lives_and_all_from_one_that_does_not() {
        let now = now();
        let other = Host { holds: vec!["chain".to_owned()], ..host("other") };
        let free = Held::Free { since: now - Duration::from_secs(60) };
        let mut view = view(now, &[other]);
        assert_eq!(view.decide((&host("me"), false), "chain", free, now), Word::Stay);
        assert_eq!(view.holder("chain", now), Some("other"));
        let silent = |seconds| view.decide((&host("me"), false), "chain", free, now + Duration::from_secs(seconds));
        assert_eq!(silent(1), Word::Stay, "within the lease");
        assert_eq!(silent(2), Word::Stay, "we do not see anything either");
        view.echoed = Some(now + Duration::from_secs(2));
        assert_eq!(view.decide((&host("me"), false), "chain", free, now + Duration::from_secs(2)), Word::Take);
        view.echoed = Some(now);
        view.others.values_mut().for_each(|seen| seen.hung_up = true);
        assert_eq!(view.decide((&host("me"), false), "chain", free, now), Word::Take, "it hung up");
    }

    #[test]
    fn a_handler_moves_to_a_better_host_once_that_has_settled_unless_it_declines() {
        let now = now();
        let handler = handlers().into_iter().find(|handler| weight("other", handler) > weight("me", handler)).unwrap();
        let mut view = view(now, &[host("other")]);
        assert_eq!(view.decide((&host("me"), false), &handler, Held::Here, now), Word::HandOver);
        let see = |change: fn(&mut Seen)| {
            let mut view = view.clone();
            view.others.values_mut().for_each(change);
            view.decide((&host("me"), false), &handler, Held::Here, now)
        };
        assert_eq!(see(|seen| seen.known += Duration::from_millis(1)), Word::Stay, "a millisecond too young");
        assert_eq!(see(|seen| seen.host.leaving = true), Word::Stay);
        assert_eq!(see(|seen| seen.host.handlers = vec!["another".to_owned()]), Word::Stay);
        assert_eq!(see(|seen| seen.hung_up = true), Word::Stay);
        view.others.values_mut().for_each(|seen| seen.host.declines = vec![handler.clone()]);
        assert_eq!(view.decide((&host("me"), false), &handler, Held::Here, now), Word::Stay, "it refused it");
        assert_eq!(
            view.decide((&host("me"), true), &handler, Held::Here, now),
            Word::HandOver,
            "all refuse it: the first is as good as any"
        );
    }

    #[test]
    fn what_nobody_takes_is_the_next_host_s_after_a_while() {
        let now = now();
        let handler = handlers().into_iter().find(|handler| weight("other", handler) > weight("me", handler)).unwrap();
        let view = view(now, &[host("other")]);
        let free = |since| view.decide((&host("me"), false), &handler, Held::Free { since }, now);
        assert_eq!(free(now - PATIENCE + Duration::from_millis(1)), Word::Stay);
        assert_eq!(free(now - PATIENCE), Word::Take);
    }

    #[test]
    fn the_weights_are_the_same_in_every_release() {
        assert_eq!(weight("host-1", "chain"), weight("host-1", "chain"));
        assert_eq!(
            [weight("", ""), weight("host-1", "chain"), weight("host-2", "chain")],
            [13_331_581_593_930_102_267, 1_630_141_625_952_574_665, 502_907_558_943_166_488]
        );
    }
}
