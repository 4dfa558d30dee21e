//! A generation: one life of a handler's documents. In: a handler's name, a number, what it is to the world. Out: its names in
//! NATS, and the bounds that a promotion sets it. Pure. Never: decides which generation is live; `ledger.rs` says what is
//! wanted, and each generation's last record what is.

pub(crate) mod family;
pub mod ledger;
pub(crate) mod maker;

use std::collections::BTreeMap;

use crate::journal::{Position, Standing};
use crate::names;

/// One life of a handler's documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The handler's name.
    pub handler: String,
    /// From 1, never used twice.
    pub number: u32,
    /// What it is to the world.
    pub standing: Standing,
}

impl Generation {
    /// The generation that a handler begins with.
    #[must_use]
    pub fn first(handler: &str) -> Self {
        Self::live(handler, 1)
    }

    /// The generation that readers see.
    #[must_use]
    pub fn live(handler: &str, number: u32) -> Self {
        Self { handler: handler.to_owned(), number, standing: Standing::Live }
    }

    /// A generation that nobody sees unless he asks for it.
    #[must_use]
    pub fn shadow(handler: &str, number: u32) -> Self {
        Self { handler: handler.to_owned(), number, standing: Standing::Shadow }
    }

    /// Name of its bucket and of its consumers: the handler's own name while it is live.
    #[must_use]
    pub fn name(&self) -> String {
        match self.standing {
            Standing::Shadow => names::shadow(&self.handler, self.number),
            Standing::Live | Standing::Closed => self.handler.clone(),
        }
    }

    /// Whether its effects are published.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.standing == Standing::Live
    }
}

/// Where a generation has to stop: a sequence per input stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound(BTreeMap<String, u64>);

impl Bound {
    /// Before any further event.
    #[must_use]
    pub fn here() -> Self {
        Self::default()
    }

    /// The cut at which one generation takes over from another: where the live one stands, and for streams that only the other
    /// reads, where that stands.
    #[must_use]
    pub fn cut(live: &[Position], other: &[Position]) -> Self {
        let mut bound: BTreeMap<String, u64> =
            other.iter().map(|position| (position.stream.clone(), position.sequence)).collect();
        bound.extend(live.iter().map(|position| (position.stream.clone(), position.sequence)));
        Self(bound)
    }

    /// The last sequence of this stream that may be decided.
    #[must_use]
    pub fn of(&self, stream: &str) -> u64 {
        self.0.get(stream).copied().unwrap_or_default()
    }

    /// Where one generation stands, in the streams that the other reads as well.
    #[must_use]
    pub fn shared(of: &[Position], with: &[Position]) -> Self {
        let shared = |position: &&Position| with.iter().any(|other| other.stream == position.stream);
        Self(of.iter().filter(shared).map(|position| (position.stream.clone(), position.sequence)).collect())
    }

    /// Whether these positions are at the bound or after it, in each of its streams.
    #[must_use]
    pub fn is_passed_by(&self, positions: &[Position]) -> bool {
        self.0.iter().all(|(stream, last)| {
            positions.iter().any(|position| position.stream == *stream && position.sequence >= *last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(stream: &str, sequence: u64) -> Position {
        Position { stream: stream.to_owned(), created: 1, sequence }
    }

    #[test]
    fn the_live_generation_alone_has_the_handlers_name() {
        assert_eq!(Generation::live("spend", 3).name(), "spend");
        assert_eq!(Generation::shadow("spend", 3).name(), "spend_g3");
    }

    #[test]
    fn the_cut_is_where_the_live_one_stands_and_else_where_the_other_does() {
        let cut = Bound::cut(&[position("A", 7), position("B", 9)], &[position("A", 5), position("C", 4)]);
        assert_eq!(["A", "B", "C", "D"].map(|stream| cut.of(stream)), [7, 9, 4, 0]);
        let passed = [position("A", 7), position("B", 10), position("C", 4), position("D", 0)];
        assert!(cut.is_passed_by(&passed));
        assert!(!cut.is_passed_by(&passed[1..]), "a stream of which nothing is known is not passed");
        assert!(!Bound::shared(&passed, &[position("B", 1)]).is_passed_by(&[position("B", 9)]));
        assert!(Bound::shared(&passed, &[position("B", 1)]).is_passed_by(&[position("B", 10)]));
    }
}
