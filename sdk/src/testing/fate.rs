//! What became of an event in a scenario. In: the outcome. Out: words for people. Never: a verdict on it; the
//! assertions have that.

use std::fmt;

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Irrelevant,
    Rejected(String),
    /// For each key, in order, what it did there.
    Routed(Vec<(String, Unit)>),
}

/// What became of an event for one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Applied,
    Refused(String),
    /// An earlier event of the key was refused.
    Parked,
    /// There is no such instance, and it begins none.
    Ignored,
    /// It came too late for its instance.
    Late,
    /// It was there before.
    Duplicate,
    /// It needed no handler: the answer to an undo, a deadline.
    Settled,
}

impl Fate {
    /// What it did at its keys.
    pub(super) fn units(&self) -> &[(String, Unit)] {
        match self {
            Self::Routed(units) => units,
            Self::Irrelevant | Self::Rejected(_) => &[],
        }
    }

    /// The reasons of refusals.
    pub(super) fn refusals(&self) -> impl Iterator<Item = &str> {
        self.units().iter().filter_map(|(_, unit)| match unit {
            Unit::Refused(reason) => Some(reason.as_str()),
            _ => None,
        })
    }

    /// Why the event was not accepted, if it was not.
    pub(super) fn problem(&self) -> Option<String> {
        let rejected = matches!(self, Self::Rejected(_));
        (rejected || self.refusals().next().is_some()).then(|| self.to_string())
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Irrelevant => f.write_str("was irrelevant"),
            Self::Rejected(reason) => write!(f, "was rejected: {reason}"),
            Self::Routed(units) => {
                for (number, (key, unit)) in units.iter().enumerate() {
                    let comma = if number == 0 { "" } else { ", " };
                    match unit {
                        Unit::Applied => write!(f, "{comma}was applied to `{key}`")?,
                        Unit::Refused(reason) => write!(f, "{comma}was refused for `{key}`: {reason}")?,
                        Unit::Parked => write!(f, "{comma}was parked behind others of `{key}`")?,
                        Unit::Ignored => write!(f, "{comma}was ignored: there is no instance `{key}`")?,
                        Unit::Late => write!(f, "{comma}was too late for `{key}`")?,
                        Unit::Duplicate => write!(f, "{comma}was a duplicate for `{key}`")?,
                        Unit::Settled => write!(f, "{comma}was settled for `{key}`")?,
                    }
                }
                Ok(())
            }
        }
    }
}
