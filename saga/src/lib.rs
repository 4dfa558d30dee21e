//! Sagas, the pure part: effects that a handler asks for, folded into its instance. No clock, no network, no randomness:
//! the same code decides in the host and in the test kit of the SDK, so that a test there means something.

pub mod effect;

pub use effect::{Effect, Retry, Undo};
