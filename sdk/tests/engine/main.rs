//! The promises of the engine to the host, checked at the level of the contract.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod breaches;
mod folding;
mod refusing;
mod saga;
mod staging;
mod tally;
mod waves;
