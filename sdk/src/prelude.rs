//! What a handler needs, in one line: `use millstream_sdk::prelude::*;`.
//!
//! The derives of serde are in it; what they generate names the crate `serde`, so a handler lists `serde` among its
//! dependencies, or says `#[serde(crate = "millstream_sdk::serde")]` on each type.

pub use crate::export;
pub use crate::{
    DecodeError, Event, Keys, Projection, Raw, Recorded, Refusal, Then, Verdict, delete, keep, log, refuse,
};
pub use serde::{Deserialize, Serialize};
