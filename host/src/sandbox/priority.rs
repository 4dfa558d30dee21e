//! What runs only when nothing else would. In: a thread that says so of itself. Out: the system knows. Never: raised again, for that
//! takes rights that a host should not have; so these threads are never those that events run on.

/// Below that of all else.
#[derive(Clone, Copy, Debug)]
pub(super) enum Priority {
    /// Next to nothing while others run: for guests that would take all.
    Idle,
    /// About a tenth of what another thread gets, so that it ends on a busy machine too: for compiling.
    Low,
}

impl Priority {
    /// The thread that calls this has it from now on. Linux only: elsewhere it runs like any other.
    pub(super) fn take(self) {
        #[cfg(target_os = "linux")]
        {
            use thread_priority::{
                NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
                set_thread_priority_and_policy, thread_native_id,
            };
            let (priority, policy) = match self {
                Self::Idle => (ThreadPriority::Min, NormalThreadSchedulePolicy::Idle),
                // A niceness of 9.
                Self::Low => {
                    let quarter =
                        ThreadPriorityValue::try_from(25_u8).map_or(ThreadPriority::Min, ThreadPriority::Crossplatform);
                    (quarter, NormalThreadSchedulePolicy::Batch)
                }
            };
            let policy = ThreadSchedulePolicy::Normal(policy);
            if let Err(error) = set_thread_priority_and_policy(thread_native_id(), priority, policy) {
                tracing::debug!(?error, ?self, "a thread runs at normal priority");
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The scheduling policy of this thread and its niceness, as the kernel tells them.
    fn told() -> (u32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // Behind the name, which may hold anything: fields 3 and on.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[41 - 3].parse().unwrap(), fields[19 - 3].parse().unwrap())
    }

    #[test]
    fn a_thread_has_the_priority_that_it_takes_and_others_keep_theirs() {
        let before = told();
        let taken = |priority: Priority| {
            std::thread::spawn(move || {
                priority.take();
                told()
            })
            .join()
            .unwrap()
        };
        let (idle, low) = (taken(Priority::Idle), taken(Priority::Low));
        assert_eq!(idle.0, 5, "SCHED_IDLE");
        assert_eq!(low, (3, 9), "SCHED_BATCH, and its niceness");
        assert_eq!(told(), before);
    }
}
