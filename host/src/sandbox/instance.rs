//! One live instance: a store with limits, the guest in it, and its two calls. In: flat batches. Out: checked answers.
//! Synchronous and blocking; the pipeline calls it off the async threads. Never: survives a failure (the caller drops it).

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, Store, Trap};

use super::bindings::{self, HandlerImports};
use super::share::Share;
use super::voice::{self, Place, Voice};
use super::wire::{Batch, Description, Documents, Level, Outcome, Staged};
use super::{Class, Failure, Guest, Limits, Memory, Module, answer};

/// Table elements an instance may have; the largest known kind of guest needs 7,688.
const TABLE_ELEMENTS: usize = 20_000;

/// What a log line counts for beside its text.
const LOG_CALL_BYTES: usize = 64;

/// What a guest said through `log`.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Its level.
    pub level: Level,
    /// Its text, cut to the limit.
    pub message: String,
}

/// Host state beside the guest: its limits and its log.
pub(super) struct Guarded {
    memory_limit: usize,
    memory_held: usize,
    memory_refused: bool,
    /// What all guests of the host hold.
    shared: Arc<Memory>,
    shared_refused: bool,
    lines: Vec<LogLine>,
    dropped_lines: u64,
    line_limit: usize,
    line_bytes: usize,
    /// What this call may still log, kept or dropped, before it is stopped.
    log_bytes_left: usize,
    log_exhausted: bool,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.shared.give_back(self.memory_held);
    }
}

impl HandlerImports for Guarded {
    fn log(&mut self, level: Level, mut message: String) -> wasmtime::Result<()> {
        // Fuel does not see what it costs the host to copy a line: without this bound a call could log for days.
        match self.log_bytes_left.checked_sub(message.len() + LOG_CALL_BYTES) {
            Some(left) => self.log_bytes_left = left,
            None => {
                self.log_exhausted = true;
                wasmtime::bail!("more was logged in one call than the output limit allows");
            }
        }
        if self.lines.len() >= self.line_limit {
            self.dropped_lines += u64::from(voice::is_heard(level));
            return Ok(());
        }
        if message.len() > self.line_bytes {
            message.truncate(message.floor_char_boundary(self.line_bytes));
            message.push('…');
        }
        self.lines.push(LogLine { level, message });
        Ok(())
    }
}

impl bindings::millstream::handler::types::Host for Guarded {}

/// A handler in its sandbox.
pub struct Instance {
    voice: Arc<Voice>,
    place: Place,
    store: Store<Guarded>,
    handler: bindings::Handler,
    limits: Limits,
    expected: Expected,
    fuel_used: u64,
    /// Of the batch.
    events: usize,
    share: Arc<Share>,
}

/// What `stage` announced, so that each `apply` can be checked against it.
#[derive(Default)]
struct Expected {
    keys: usize,
    /// The key of each route that was not folded yet.
    routes: Vec<Option<u32>>,
}

impl Expected {
    /// The routes of one call, by their key; only the skipped ones are left for later calls.
    fn take(&mut self, skip: &[u32]) -> Vec<Option<u32>> {
        let mut later = vec![None; self.routes.len()];
        for &number in skip {
            let number = number as usize;
            if let (Some(route), Some(left)) = (self.routes.get_mut(number), later.get_mut(number)) {
                *left = left.or(route.take());
            }
        }
        std::mem::replace(&mut self.routes, later)
    }
}

impl Module {
    /// What its instances say is this handler's, within its limits.
    #[must_use]
    pub fn voice(&self, handler: &str) -> Arc<Voice> {
        Arc::new(Voice::new(handler, self.digest().short(), self.limits.log_lines_per_second))
    }

    /// A fresh instance; its log lines are of `voice`.
    ///
    /// # Errors
    /// `Class::Host` when no slot is free, else what the guest's start did wrong.
    pub fn instantiate(&self, voice: &Arc<Voice>) -> Result<Instance, Failure> {
        self.instantiate_in(voice, Arc::clone(self.sandbox.memory()))
    }

    /// The same to look at and drop, outside of what the guests of a host may hold together: a module is no worse for want of room.
    ///
    /// # Errors
    /// As `instantiate`.
    pub fn instantiate_aside(&self, voice: &Arc<Voice>) -> Result<Instance, Failure> {
        self.instantiate_in(voice, Arc::new(Memory::new(usize::MAX)))
    }

    fn instantiate_in(&self, voice: &Arc<Voice>, shared: Arc<Memory>) -> Result<Instance, Failure> {
        let limits = &self.limits;
        let state = Guarded {
            memory_limit: limits.memory_bytes,
            memory_held: 0,
            memory_refused: false,
            shared,
            shared_refused: false,
            lines: Vec::new(),
            dropped_lines: 0,
            line_limit: limits.log_lines_per_call,
            line_bytes: limits.log_line_bytes,
            log_bytes_left: limits.output_bytes,
            log_exhausted: false,
        };
        let mut store = Store::new(self.sandbox.engine(), state);
        store.limiter(|state| state);
        store.set_hostcall_fuel(limits.output_bytes);
        store.set_fuel(limits.fuel_per_call).map_err(host)?;
        let handler = self.linked.instantiate(&mut store).map_err(|error| {
            if error.is::<Trap>() || store.data().memory_refused { failure(&mut store, &error) } else { host(error) }
        })?;
        Ok(Instance {
            voice: Arc::clone(voice),
            place: Place::default(),
            store,
            handler,
            limits: limits.clone(),
            expected: Expected::default(),
            fuel_used: 0,
            events: 0,
            share: Arc::clone(&self.share),
        })
    }
}

impl Instance {
    /// The module's own account of itself.
    ///
    /// # Errors
    /// As any call.
    pub fn describe(&mut self) -> Result<Description, Failure> {
        self.call(|handler, store| handler.call_describe(store))
    }

    fn call<T>(
        &mut self,
        call: impl FnOnce(&bindings::Handler, &mut Store<Guarded>) -> Result<T, wasmtime::Error> + Send,
    ) -> Result<T, Failure>
    where
        T: Send,
    {
        self.store.set_fuel(self.limits.fuel_per_call).map_err(host)?;
        self.store.data_mut().log_bytes_left = self.limits.output_bytes;
        let (answer, took) = self.share.call(|| call(&self.handler, &mut self.store));
        let answer = answer.map_err(|error| failure(&mut self.store, &error));
        if answer.as_ref().is_err_and(|failure| matches!(failure.class, Class::Fuel | Class::Memory)) {
            self.share.exhausted(Instant::now(), took, self.events <= 1);
        }
        let left = self.store.get_fuel().unwrap_or_default();
        self.fuel_used = self.fuel_used.saturating_add(self.limits.fuel_per_call.saturating_sub(left));
        self.forward_log();
        answer
    }

    /// Hands the guest's lines to the host's log, attributed.
    fn forward_log(&mut self) {
        let state = self.store.data_mut();
        let dropped = std::mem::take(&mut state.dropped_lines);
        if !state.lines.is_empty() || dropped > 0 {
            self.voice.say(&self.place, state.lines.drain(..), dropped);
        }
    }
}

impl Guest for Instance {
    fn stage(&mut self, batch: &Batch) -> Result<Staged, Failure> {
        self.place.set(batch);
        self.events = batch.events.len();
        let staged = self.call(|handler, store| handler.call_stage(store, batch))?;
        answer::check_staged(&staged, batch.events.len())?;
        self.expected =
            Expected { keys: staged.keys.len(), routes: staged.routes.iter().map(|route| Some(route.key)).collect() };
        Ok(staged)
    }

    fn apply(&mut self, documents: &Documents, skip: &[u32]) -> Result<Outcome, Failure> {
        let outcome = self.call(|handler, store| handler.call_apply(store, documents, skip))?;
        answer::check_outcome(&outcome, self.expected.keys, &self.expected.take(skip))?;
        Ok(outcome)
    }

    fn is_bloated(&self) -> bool {
        self.memory_bytes() > self.limits.recycle_memory_bytes as u64
    }

    fn memory_bytes(&self) -> u64 {
        self.store.data().memory_held as u64
    }

    fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    fn rest(&self) -> Duration {
        self.share.rest(Instant::now())
    }
}

/// Refuses by trapping: a guest that saw `memory.grow` fail would abort anyway, and less clearly.
impl ResourceLimiter for Guarded {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let held = self.memory_held.saturating_sub(current).saturating_add(desired);
        if held > self.memory_limit {
            self.memory_refused = true;
            wasmtime::bail!("{held} bytes wanted, {} allowed", self.memory_limit);
        }
        if let Some(more) = held.checked_sub(self.memory_held).filter(|more| !self.shared.take(*more)) {
            self.shared_refused = true;
            wasmtime::bail!(
                "{more} bytes more wanted, but this host's guests hold {} of {} together; \
                 hint: give the host more with --guest-memory, or start another one",
                self.shared.held(),
                self.shared.ceiling()
            );
        }
        self.memory_held = held;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

fn host(error: impl std::fmt::Display) -> Failure {
    Failure { class: Class::Host, message: format!("{error:#}"), backtrace: String::new() }
}

/// Turns Wasmtime's error into ours: class from the trap code, message from the guest's panic where it left one.
fn failure(store: &mut Store<Guarded>, error: &wasmtime::Error) -> Failure {
    let root = error.root_cause().to_string();
    let class = match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Class::Fuel,
        Some(_) => Class::Trap,
        None if store.data().shared_refused => Class::Host,
        None if store.data().memory_refused => Class::Memory,
        None if store.data().log_exhausted => Class::Output,
        None if root.contains("fuel") => Class::Output,
        None => Class::Answer,
    };
    let panic = store.data().lines.iter().rev().find_map(|line| line.message.strip_prefix("panic: "));
    let message = match (class, panic) {
        (Class::Trap, Some(panic)) => format!("the handler panicked: {panic}"),
        (Class::Fuel, _) => {
            "the handler used up its fuel (an endless loop, or far too much work for one call)".to_owned()
        }
        (Class::Memory, _) => format!("the handler asked for more memory than it may have ({root})"),
        (Class::Output, _) if store.data().log_exhausted => "the handler logged more than the output limit".to_owned(),
        (Class::Output, _) => "the handler's answer is larger than the output limit".to_owned(),
        (Class::Trap, None) => format!("the handler trapped: {root}"),
        (Class::Host, _) => root,
        (Class::Answer, _) => format!("the handler's answer could not be read: {root}"),
    };
    let backtrace = error.downcast_ref::<wasmtime::WasmBacktrace>().map(ToString::to_string).unwrap_or_default();
    Failure { class, message, backtrace }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_may_be_answered_once_in_the_call_that_does_not_skip_it() {
        let mut expected = Expected { keys: 2, routes: vec![Some(0), Some(1), Some(0)] };
        assert_eq!(expected.take(&[0, 2]), [None, Some(1), None]);
        assert_eq!(expected.take(&[2, 2]), [Some(0), None, None]);
        assert_eq!(expected.take(&[]), [None, None, Some(0)]);
        assert_eq!(expected.take(&[0]), [None, None, None]);
    }
}
