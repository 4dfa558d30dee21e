//! A moment on both clocks. In: two of them. Out: how far apart they are. Pure but for `now`. The steady clock stands
//! still while a machine sleeps, the other one can be set; what must not be late believes whichever says that more time
//! has passed. Never: less than that.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// A moment.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Unknown for what another process did.
    steady: Option<Instant>,
    /// Nanoseconds since 1970.
    pub(super) wall: i64,
}

impl Stamp {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { steady: Some(Instant::now()), wall: clock::now() }
    }

    /// When the server stored something, nanoseconds since 1970.
    #[must_use]
    pub const fn stored(wall: i64) -> Self {
        Self { steady: None, wall }
    }

    /// Whether this process saw it.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.steady.is_some()
    }

    /// How long ago it was, at `now`.
    #[must_use]
    pub fn age(&self, now: Self) -> Duration {
        let wall = Duration::from_nanos(u64::try_from(now.wall.saturating_sub(self.wall)).unwrap_or_default());
        match (self.steady, now.steady) {
            (Some(then), Some(now)) => wall.max(now.saturating_duration_since(then)),
            _ => wall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_that_saw_more_is_believed() {
        let then = Stamp::now();
        let second = Duration::from_secs(1);
        let at = |steady: u32, wall: i64| Stamp {
            steady: then.steady.map(|moment| moment + second * steady),
            wall: then.wall + wall * 1_000_000_000,
        };
        assert_eq!(then.age(at(2, 7)), second * 7, "the machine slept");
        assert_eq!(then.age(at(7, -50)), second * 7, "the clock was set back");
        assert_eq!(Stamp::stored(then.wall).age(at(2, 3)), second * 3);
        assert_eq!(Stamp::stored(then.wall + 1).age(then), Duration::ZERO);
    }
}
