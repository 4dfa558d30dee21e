//! The alerts: their names, and how long a condition must hold before it is one, or is over. Pure. Never: what the condition is;
//! `rules.rs` has that.

use super::SECOND;

/// What can be the matter with a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alarm {
    /// More waits than is set.
    Lag,
    /// More and more waits.
    LagGrowing,
    /// Something waits, and nothing is decided.
    Stuck,
    /// It should run, and nobody says that it does.
    NotReporting,
    /// It stopped, or does nothing but try again.
    Failing,
    /// Keys are parked.
    Parked,
    /// More events are parked than a moment ago.
    DeadLetters,
    /// A stream dropped events that were not decided.
    EventsLost,
    /// Instances wait for a person.
    CompensationsFailed,
    /// Nobody takes its effects.
    Undelivered,
    /// Its timers are late.
    TimersOverdue,
    /// A stream or bucket of it is nearly full.
    LimitNear,
    /// Outcomes do not add up.
    OutcomesDiffer,
}

impl Alarm {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Lag,
        Self::LagGrowing,
        Self::Stuck,
        Self::NotReporting,
        Self::Failing,
        Self::Parked,
        Self::DeadLetters,
        Self::EventsLost,
        Self::CompensationsFailed,
        Self::Undelivered,
        Self::TimersOverdue,
        Self::LimitNear,
        Self::OutcomesDiffer,
    ];

    /// Its name in keys and subjects.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::LagGrowing => "lag-growing",
            Self::Stuck => "stuck",
            Self::NotReporting => "not-reporting",
            Self::Failing => "failing",
            Self::Parked => "parked",
            Self::DeadLetters => "dead-letters-growing",
            Self::EventsLost => "events-lost",
            // Not what a saga tells of one instance, which is `compensation-failed`.
            Self::CompensationsFailed => "compensations-failed",
            Self::Undelivered => "undelivered",
            Self::TimersOverdue => "timers-overdue",
            Self::LimitNear => "limit-near",
            Self::OutcomesDiffer => "outcomes-differ",
        }
    }

    /// How long the condition holds before it is told, nanoseconds.
    #[must_use]
    pub(super) fn raise_after(self) -> i64 {
        match self {
            // Their conditions last a while by themselves.
            Self::LagGrowing | Self::Stuck | Self::EventsLost | Self::DeadLetters => 0,
            Self::Parked | Self::CompensationsFailed | Self::LimitNear => 0,
            // A host's clock may be wrong: silence is what two looks see.
            Self::NotReporting => SECOND,
            Self::Lag | Self::Failing | Self::OutcomesDiffer => 3 * SECOND,
            Self::Undelivered => 10 * SECOND,
            Self::TimersOverdue => 15 * SECOND,
        }
    }

    /// How long the opposite holds before it is over, nanoseconds.
    #[must_use]
    pub(super) fn clear_after(self) -> i64 {
        match self {
            Self::Parked | Self::CompensationsFailed | Self::EventsLost | Self::DeadLetters | Self::LimitNear => 0,
            // Its opposite is that it has run for a while.
            Self::Failing => 0,
            Self::Stuck | Self::NotReporting | Self::OutcomesDiffer => 3 * SECOND,
            Self::Lag | Self::LagGrowing | Self::Undelivered | Self::TimersOverdue => 10 * SECOND,
        }
    }
}
