//! Why a unit is refused. In: what was wrong. Out: a sentence for whoever looks at the event. Never: the host's fault.

use crate::instance::Status;

/// Why a unit is refused; nothing of it was folded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The late policy is `park`.
    #[error("there is no instance {key:?}, and this event begins none")]
    NoInstance {
        /// The instance's key.
        key: String,
    },
    /// The late policy is `park`.
    #[error("instance {key:?} is {status}, and this event comes after that")]
    Ended {
        /// The instance's key.
        key: String,
        /// How it ended.
        status: Status,
    },
    /// A defect of the caller: not the instance that was judged.
    #[error("instance {key:?} is not as it was when the event was judged")]
    Changed {
        /// The instance's key.
        key: String,
    },
    /// More effects than allowed.
    #[error("{effects} effects at once are more than the {limit} allowed")]
    TooMany {
        /// How many.
        effects: usize,
        /// Most of one unit.
        limit: usize,
    },
    /// An effect is too large.
    #[error("{effect} has {bytes} bytes, more than the {limit} allowed")]
    TooLarge {
        /// The effect.
        effect: String,
        /// Its bytes.
        bytes: usize,
        /// Most of one effect.
        limit: usize,
    },
    /// What would be copied into every message has no bound of its own.
    #[error("its {id} has {bytes} bytes, more than the {limit} that a message of the saga may carry along")]
    LongId {
        /// Which id.
        id: &'static str,
        /// Its bytes.
        bytes: usize,
        /// Most of an id.
        limit: usize,
    },
    /// No message could carry it.
    #[error("{effect} has a {name} of {bytes} bytes, more than the {limit} allowed")]
    LongName {
        /// The effect.
        effect: String,
        /// What is too long.
        name: &'static str,
        /// Its bytes.
        bytes: usize,
        /// Most of a name.
        limit: usize,
    },
    /// Only an instance has steps and timers and an end.
    #[error("{effect} needs an instance, and this handler keeps none")]
    Stateless {
        /// The effect.
        effect: String,
    },
    /// It is over after `complete`, `fail` and `compensate`.
    #[error("{effect} comes after `{end}`, which ends the saga's effects")]
    AfterEnd {
        /// The effect.
        effect: String,
        /// What was asked for before.
        end: &'static str,
    },
    /// A message has no such subject.
    #[error("{effect}: {subject:?} is not a subject to publish on")]
    NoSubject {
        /// The effect.
        effect: String,
        /// What it gave.
        subject: String,
    },
    /// The handler does not say that it sends there.
    #[error("{effect}: subject {subject:?} is not among those the handler declares to send to")]
    Undeclared {
        /// The effect.
        effect: String,
        /// Its subject.
        subject: String,
    },
    /// A message has a type.
    #[error("{effect} has no type")]
    NoType {
        /// The effect.
        effect: String,
    },
    /// Steps and timers have names.
    #[error("{effect} has no name")]
    NoName {
        /// The effect.
        effect: String,
    },
    /// The chain of messages is too long.
    #[error("{effect} would be number {depth} in a chain of messages that cause each other; {limit} are allowed")]
    TooDeep {
        /// The effect.
        effect: String,
        /// Its place.
        depth: u32,
        /// Longest chain.
        limit: u32,
    },
    /// Each step says how it is taken back.
    #[error("step `{step}` has no undo: say how it is taken back, or that it is irreversible")]
    NoUndo {
        /// The step.
        step: String,
    },
    /// One excludes the other.
    #[error("step `{step}` has an undo and is irreversible; say one of them")]
    UndoOfIrreversible {
        /// The step.
        step: String,
    },
    /// Nobody waits for such a command.
    #[error("{effect} is no step, so it has no deadline, retry or undo: name its step")]
    NoStep {
        /// The effect.
        effect: String,
    },
    /// Retries begin at a deadline.
    #[error("step `{step}` has a retry, but no deadline after which to retry")]
    RetryWithoutDeadline {
        /// The step.
        step: String,
    },
    /// Its name would mean two commands.
    #[error("step `{step}` is still waiting for an answer; it cannot begin again")]
    StillWaiting {
        /// The step.
        step: String,
    },
    /// There is no such step.
    #[error("{effect}: there is no such step")]
    UnknownStep {
        /// The effect.
        effect: String,
    },
    /// What was refused was not carried out.
    #[error("{effect}: the step was rejected")]
    WasRejected {
        /// The effect.
        effect: String,
    },
    /// A timer is due at one time.
    #[error("timer `{name}` needs either `after` or `at`")]
    TimerWithoutTime {
        /// The timer.
        name: String,
    },
}
