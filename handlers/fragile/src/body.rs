// What `fragile` and `fragile-mended` do. Documents see every lost, doubled or swapped event.
use millstream_sdk::prelude::*;

/// The module that no event can harm.
const IS_MENDED: bool = matches!(env!("CARGO_PKG_NAME").as_bytes(), b"fragile-mended");

/// One document per key.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fragile {
    /// `h(0) = 0`, `h(n) = h(n-1) * 31 + number`, in 64 bits.
    pub hash: u64,
    /// How many events it covers.
    pub events: u64,
    /// What makes it too large.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ballast: String,
}

/// What it is told.
#[derive(Debug, Event)]
pub enum Told {
    /// Something happened.
    Told {
        /// The keys that it is about.
        keys: Vec<String>,
        /// Different for each event.
        number: u64,
        /// How to fail.
        harm: Option<Harm>,
        /// At this key alone.
        at: Option<String>,
    },
}

/// A way to fail.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// An orderly refusal.
    Refuse,
    /// A panic.
    Trap,
    /// A panic before any key is known.
    TrapInStage,
    /// No end.
    Spin,
    /// More memory than there is.
    Hoard,
    /// A document that no record can hold.
    Grow,
    /// An answer longer than it may be.
    Babble,
    /// A key that no bucket can hold.
    LongKey,
}

fn harm(event: &Recorded<Told>) -> Option<Harm> {
    let Told::Told { harm, .. } = &event.payload;
    harm.filter(|_| !IS_MENDED)
}

impl Projection for Fragile {
    const NAME: &'static str = "fragile";
    const SUBJECTS: &'static [&'static str] = &["told.>"];
    type Event = Told;

    fn key(event: &Recorded<Told>) -> Keys<'_> {
        let Told::Told { keys, .. } = &event.payload;
        match harm(event) {
            Some(Harm::TrapInStage) => unreachable!("told to fail while it stages"),
            Some(Harm::LongKey) => Keys::one("k".repeat(2000)),
            _ => Keys::many(keys.iter().map(String::as_str)),
        }
    }

    fn apply(&mut self, event: &Recorded<Told>) -> Verdict {
        let Told::Told { number, .. } = &event.payload;
        match harm(event) {
            Some(harm) if is_here(self, event) => fail(self, harm)?,
            _ => {}
        }
        self.hash = self.hash.wrapping_mul(31).wrapping_add(*number);
        self.events += 1;
        keep()
    }
}

/// Whether the event fails at this document: at any, or at the one whose hash is named.
fn is_here(document: &Fragile, event: &Recorded<Told>) -> bool {
    let Told::Told { at, .. } = &event.payload;
    at.as_ref().is_none_or(|at| *at == document.hash.to_string())
}

fn fail(document: &mut Fragile, harm: Harm) -> Result<(), Refusal> {
    match harm {
        Harm::Refuse => return Err(Refusal::new("told to refuse")),
        Harm::Trap => unreachable!("told to trap"),
        Harm::Spin => loop {
            std::hint::black_box(&document);
        },
        Harm::Hoard => loop {
            document.ballast.reserve(1 << 28);
            std::hint::black_box(&document);
        },
        Harm::Grow => document.ballast = "x".repeat(1 << 21),
        Harm::Babble => document.ballast = "x".repeat(6 << 20),
        Harm::TrapInStage | Harm::LongKey => {}
    }
    Ok(())
}

export!(Fragile);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn told(number: u64, harm: &str) -> TestEvent {
        let harm = if harm.is_empty() { json!(null) } else { json!(harm) };
        event("Told", json!({ "keys": ["k"], "number": number, "harm": harm, "at": null }))
    }

    #[test]
    fn it_hashes_what_it_is_told_and_refuses_where_it_is_told_to() {
        let two = Fragile { hash: 7 * 31 + 9, events: 2, ballast: String::new() };
        given::<Fragile>([told(7, "")]).when(told(9, "")).then_document("k", &two);
        if !IS_MENDED {
            given::<Fragile>([told(7, "")]).when(told(9, "refuse")).then_refused("told to refuse").then_untouched();
        }
    }
}
