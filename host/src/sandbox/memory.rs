//! Linear memory of all guests of a host together. In: what each wants more of, and gives back. Out: yes or no. Never: takes a handler's
//! word for what it will need; only what is held counts.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What all guests hold, and may.
#[derive(Debug)]
pub struct Memory {
    held: AtomicUsize,
    ceiling: usize,
}

impl Memory {
    /// Guests may hold so many bytes together.
    #[must_use]
    pub fn new(ceiling: usize) -> Self {
        Self { held: AtomicUsize::new(0), ceiling }
    }

    /// Three quarters of what the machine, or the container, has.
    #[must_use]
    pub fn of_machine() -> Self {
        Self::new(machine_bytes().map_or(usize::MAX, |bytes| bytes / 4 * 3))
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most that may be held.
    #[must_use]
    pub fn ceiling(&self) -> usize {
        self.ceiling
    }

    /// So many bytes more, or none of them.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|wanted| *wanted <= self.ceiling);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What there is; none where nobody says so.
fn machine_bytes() -> Option<usize> {
    let of_container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_container = of_container.and_then(|text| text.trim().parse::<usize>().ok());
    let of_machine = std::fs::read_to_string("/proc/meminfo").ok();
    let of_machine = of_machine.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?;
        line.parse::<usize>().ok()?.checked_mul(1024)
    });
    of_container.into_iter().chain(of_machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_may_be_and_what_is_given_back_can_be_taken_again() {
        let memory = Memory::new(100);
        assert!(memory.take(60) && memory.take(40));
        assert!(!memory.take(1), "all is held");
        assert!(!memory.take(usize::MAX), "too much to add");
        memory.give_back(60);
        assert!(!memory.take(61));
        assert_eq!((memory.held(), memory.ceiling()), (40, 100));
        assert!(memory.take(60));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_has_some() {
        assert!(Memory::of_machine().ceiling() > 100 << 20);
        assert!(Memory::of_machine().ceiling() < usize::MAX);
    }
}
