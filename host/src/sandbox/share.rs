//! How much of a core a handler's module takes, and what follows from it. In: calls into the guest. Out: their answers. A module that
//! keeps a core busy is run at idle priority, and all of those together on half of the cores; those that use up fuel or memory again and
//! again are paced, all of them together. They get what the others leave, and these hardly notice it. Never: stops a call, or changes
//! what it decides; that is fuel's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::priority::Priority;

/// What is looked at together.
const WINDOW: Duration = Duration::from_millis(500);

/// The part of a core above which a module is greedy. A drain at full speed spends about a third of its time in the guest.
const GREEDY: f64 = 0.6;

/// A call that takes as long as this is greedy by itself. A full batch takes a few milliseconds.
const LONG: Duration = Duration::from_millis(50);

/// A module that has used up fuel or memory in a call stays greedy for so long: what it does between such calls, parking each event, would
/// hide that it is.
const AFTER_EXHAUSTION: Duration = Duration::from_secs(10);

/// After so many events, each of which alone used up the fuel or the memory of a call, and none long after the one before, a module is
/// paced. By default a handler is stopped long before: ten such keys within 1,000 events are too many.
const PATIENCE: u32 = 128;

/// No such event for so long: it begins anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Such modules take a call's time out of this many, all of them together: each such call ends in an event that is parked, and that costs
/// the neighbours more than the call.
const ONE_OF: u32 = 100;

/// A module rests for so long at most.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// A greedy call that has waited so long for its turn goes on without: its host may be stopping, or its neighbours' calls be long.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// A module's share.
#[derive(Default)]
pub(super) struct Share {
    is_greedy: AtomicBool,
    window: Mutex<Option<Window>>,
    exhausted: Mutex<Exhaustion>,
}

/// Calls that used up fuel or memory.
#[derive(Default)]
struct Exhaustion {
    last: Option<Instant>,
    /// Events that did so alone, none long after the one before.
    events: u32,
    /// How long the call of the last one took, until the module has rested for it.
    to_rest_for: Option<Duration>,
}

impl Exhaustion {
    fn is_older(&self, than: Duration, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= than)
    }
}

struct Window {
    began: Instant,
    spent: Duration,
}

impl Share {
    /// Calls the guest, at the priority that its share leaves it. Answers how long it took, too.
    pub(super) fn call<T: Send>(&self, call: impl FnOnce() -> T + Send) -> (T, Duration) {
        let is_greedy = self.is_greedy.load(Ordering::Relaxed);
        // Waiting for a turn is no greed: only the call itself is timed.
        let timed = || {
            let begun = Instant::now();
            (call(), begun, begun.elapsed())
        };
        let (answer, begun, took) = if is_greedy { at_idle_priority(timed) } else { timed() };
        self.note(begun, took);
        (answer, took)
    }

    /// A call that took so long used up its fuel or its memory just now; with one event alone, or in a search for the one among several.
    pub(super) fn exhausted(&self, now: Instant, took: Duration, is_alone: bool) {
        let mut exhausted = self.exhausted.lock().unwrap_or_else(PoisonError::into_inner);
        if exhausted.is_older(FORGOTTEN_AFTER, now) {
            exhausted.events = 0;
        }
        if is_alone {
            exhausted.events = exhausted.events.saturating_add(1);
            exhausted.to_rest_for = Some(took);
        }
        exhausted.last = Some(now);
        self.is_greedy.store(true, Ordering::Relaxed);
    }

    fn was_exhausted(&self, now: Instant) -> bool {
        !self.exhausted.lock().unwrap_or_else(PoisonError::into_inner).is_older(AFTER_EXHAUSTION, now)
    }

    /// How long to leave the module alone before its next event; asked once after each that used up all.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        self.room(now).map_or(Duration::ZERO, |room| PACE.put_off(now, room))
    }

    /// How much time its next event shall have for itself and for no module like it; none where it need not wait.
    fn room(&self, now: Instant) -> Option<Duration> {
        let mut exhausted = self.exhausted.lock().unwrap_or_else(PoisonError::into_inner);
        let took = exhausted.to_rest_for.take()?;
        let is_paced = exhausted.events > PATIENCE && !exhausted.is_older(FORGOTTEN_AFTER, now);
        is_paced.then_some(took * ONE_OF)
    }

    fn note(&self, begun: Instant, took: Duration) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let known = window.get_or_insert(Window { began: begun, spent: Duration::ZERO });
        known.spent += took;
        let passed = (begun + took).saturating_duration_since(known.began);
        if took >= LONG {
            self.is_greedy.store(true, Ordering::Relaxed);
            *window = None;
        } else if passed >= WINDOW {
            let share = known.spent.as_secs_f64() / passed.as_secs_f64();
            self.is_greedy.store(share > GREEDY || self.was_exhausted(begun + took), Ordering::Relaxed);
            *window = None;
        }
    }
}

/// When the next event of a module that uses up fuel or memory may begin.
static PACE: Pace = Pace(Mutex::new(None));

struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Takes so much room behind those that have taken theirs. Answers how long to wait for it.
    fn put_off(&self, now: Instant, room: Duration) -> Duration {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free.unwrap_or(now).clamp(now, now + LONGEST_REST);
        *free = Some(begins + room);
        begins - now
    }
}

/// The turns of greedy modules, on as many cores as they may keep busy. Idle priority alone is not enough: a core that must first put
/// something away answers milliseconds later than one that is free (p99 of calm neighbours: five times as long).
static TURNS: LazyLock<Turns> = LazyLock::new(|| Turns::new(cores() / 2));

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Somebody's turn; the next one's when it is dropped.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn new(cores: usize) -> Self {
        Self { free: Mutex::new(cores.max(1)), freed: Condvar::new() }
    }

    /// None: nobody's was over in time.
    fn wait(&self, limit: Duration) -> Option<Turn<'_>> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_timeout_while(free, limit, |free| *free == 0);
        let (mut free, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *free -= 1;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// On a thread of its own: a thread that once lowered its priority cannot raise it again.
fn at_idle_priority<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    let _turn = TURNS.wait(TURN_WITHIN);
    let ran = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("greedy-guest".to_owned());
        let lowered = move || {
            Priority::Idle.take();
            call()
        };
        thread.spawn_scoped(scope, lowered).map(std::thread::ScopedJoinHandle::join)
    });
    match ran {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => std::panic::resume_unwind(Box::new(format!("no thread can be made: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// For what comes at once.
    const AT_ONCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_module_is_greedy_after_a_long_call_or_a_busy_while_and_no_longer_after_a_quiet_one() {
        let share = Share::default();
        let is_greedy = || share.is_greedy.load(Ordering::Relaxed);
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        share.note(at(0), LONG);
        assert!(is_greedy(), "a long call");
        share.note(at(100), Duration::from_millis(1));
        assert!(is_greedy(), "the while is not over");
        share.note(at(700), Duration::from_millis(1));
        assert!(!is_greedy(), "a quiet while");
        for call in 0..60 {
            share.note(at(1000 + call * 10), Duration::from_millis(8));
        }
        assert!(is_greedy(), "four fifths of a core");
        for call in 0..120 {
            share.note(at(2000 + call * 10), Duration::from_millis(4));
        }
        assert!(!is_greedy(), "two fifths");
    }

    #[test]
    fn a_module_that_used_up_its_fuel_stays_greedy_for_a_while_however_little_it_runs() {
        let share = Share::default();
        let is_greedy = || share.is_greedy.load(Ordering::Relaxed);
        let begun = Instant::now();
        share.exhausted(begun, Duration::ZERO, false);
        for second in 0..9 {
            share.note(begun + Duration::from_secs(second), Duration::from_millis(1));
            assert!(is_greedy(), "after {second} s");
        }
        share.note(begun + AFTER_EXHAUSTION + WINDOW, Duration::from_millis(1));
        share.note(begun + AFTER_EXHAUSTION + WINDOW * 3, Duration::from_millis(1));
        assert!(!is_greedy());
    }

    #[test]
    fn a_module_that_uses_up_its_fuel_with_event_after_event_is_paced_and_one_that_does_so_now_and_then_is_not() {
        let (share, begun, took) = (Share::default(), Instant::now(), Duration::from_millis(6));
        let exhaust = |now: Instant, is_alone: bool| {
            share.note(now, took);
            share.exhausted(now, took, is_alone);
            // What is done about the event uses little.
            share.note(now, Duration::from_micros(10));
        };
        for event in 1..=PATIENCE {
            exhaust(begun, true);
            exhaust(begun, false);
            assert_eq!(share.room(begun), None, "after {event} events");
        }
        exhaust(begun, true);
        assert_eq!(share.room(begun), Some(took * ONE_OF));
        assert_eq!(share.room(begun), None, "once for each");
        exhaust(begun, false);
        assert_eq!(share.room(begun), None, "a search");
        let later = begun + FORGOTTEN_AFTER;
        exhaust(later, true);
        assert_eq!(share.room(later), None, "it begins anew");
    }

    #[test]
    fn paced_calls_come_one_after_the_other_and_none_is_put_off_for_long() {
        let (pace, now, room) = (Pace(Mutex::new(None)), Instant::now(), Duration::from_millis(60));
        let waits: Vec<u128> = (0..4).map(|_| pace.put_off(now, room).as_millis()).collect();
        assert_eq!(waits, [0, 60, 120, 180]);
        assert_eq!(pace.put_off(now + Duration::from_secs(1), room), Duration::ZERO, "all are through");
        let long = Duration::from_secs(60);
        assert_eq!(pace.put_off(now + Duration::from_secs(2), long), Duration::ZERO);
        assert_eq!(pace.put_off(now + Duration::from_secs(2), long), LONGEST_REST);
    }

    #[test]
    fn a_greedy_call_answers_like_any_other_and_its_panic_is_its_caller_s() {
        let share = Share::default();
        share.is_greedy.store(true, Ordering::Relaxed);
        let caller = std::thread::current().id();
        let ((answer, thread), _) = share.call(|| (6 * 7, std::thread::current().id()));
        assert_eq!(answer, 42);
        assert_ne!(thread, caller);
        let panicked = std::panic::catch_unwind(|| at_idle_priority(|| panic!("of the guest")));
        assert_eq!(*panicked.expect_err("a panic").downcast::<&str>().expect("its text"), "of the guest");
    }

    #[test]
    fn greedy_calls_keep_no_more_cores_busy_than_they_may() {
        let turns = Turns::new(2);
        let (running, most) = (Mutex::new(0), Mutex::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = turns.wait(AT_ONCE).expect("a turn");
                        let now = {
                            let mut running = running.lock().unwrap();
                            *running += 1;
                            *running
                        };
                        let mut most = most.lock().unwrap();
                        *most = now.max(*most);
                        drop(most);
                        std::thread::yield_now();
                        *running.lock().unwrap() -= 1;
                    }
                });
            }
        });
        let most = *most.lock().unwrap();
        assert!((1..=2).contains(&most), "{most} at once");

        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            let beside = || {
                let turn = turns.wait(AT_ONCE);
                both.wait();
                turn.is_some()
            };
            let others = scope.spawn(beside);
            assert_eq!((beside(), others.join().unwrap()), (true, true), "two at once");
        });
        assert_eq!(*turns.free.lock().unwrap(), 2);
    }

    #[test]
    fn a_greedy_call_does_without_a_turn_where_none_comes_in_time() {
        let turns = Turns::new(1);
        let first = turns.wait(AT_ONCE);
        assert!(first.is_some() && turns.wait(Duration::from_millis(10)).is_none());
        assert_eq!(*turns.free.lock().unwrap(), 0, "it is still the first one's");
        drop(first);
        assert!(turns.wait(AT_ONCE).is_some());
        assert_eq!(*turns.free.lock().unwrap(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_greedy_call_runs_in_the_idle_class() {
        let policy = at_idle_priority(|| thread_priority::thread_schedule_policy().expect("a policy"));
        let idle = thread_priority::NormalThreadSchedulePolicy::Idle;
        assert_eq!(policy, thread_priority::ThreadSchedulePolicy::Normal(idle));
    }
}
