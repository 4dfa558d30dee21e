//! What a handler needs, in one line: `use millstream_sdk::prelude::*;`. In: nothing. Out: names. Never: one that only
//! tests need.
//!
//! The derives of serde are in it; what they generate names the crate `serde`, so a handler lists `serde` among its
//! dependencies, or says `#[serde(crate = "millstream_sdk::serde")]` on each type.

pub use crate::export;
pub use crate::{
    DecodeError, Effects, Event, Keys, Late, Projection, Raw, Reaction, Recorded, Refusal, Saga, Then, Timer, Verdict,
    days, delete, hours, keep, log, minutes, refuse, seconds,
};
pub use serde::{Deserialize, Serialize};
