//! Engine settings, in one place, so that the engine that compiles and the engine that runs always agree.
//! In: nothing. Out: `Sandbox`, shared by all handlers of a host. Never: gives a guest WASI, threads, a clock, a source of randomness.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::Memory;
use super::module::Error;
use super::priority::Priority;

/// Instances that may live at once, counted in core instances: a Rust guest needs up to 3, an embedded Python 38.
/// Exhaustion is an error at instantiation, not a queue; slots cost address space only.
const CORE_INSTANCES: u32 = 1000;

/// Threads that compile; none where none can be made, and then whoever asks does it. One module at a time, else a thread that waits for
/// parts of one would take up another meanwhile.
static COMPILERS: LazyLock<Mutex<Option<ThreadPool>>> = LazyLock::new(|| {
    let pool = ThreadPoolBuilder::new().thread_name(|number| format!("compiler-{number}"));
    let pool = pool.start_handler(|_| Priority::Low.take()).build();
    Mutex::new(pool.inspect_err(|error| tracing::warn!(%error, "modules are compiled at normal priority")).ok())
});

/// The running engine.
#[derive(Clone)]
pub struct Sandbox {
    engine: Engine,
    memory: Arc<Memory>,
}

impl Sandbox {
    /// Makes the engine.
    ///
    /// # Errors
    /// When the machine cannot reserve the address space.
    pub fn new() -> Result<Self, Error> {
        let engine = Engine::new(&config()).map_err(Error::engine)?;
        Ok(Self { engine, memory: Arc::new(Memory::of_machine()) })
    }

    /// Guests may hold so many bytes together.
    #[must_use]
    pub fn holding_at_most(self, bytes: usize) -> Self {
        Self { memory: Arc::new(Memory::new(bytes)), ..self }
    }

    /// What guests hold together.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Names what compiled code must match: Wasmtime's version, its settings and the machine's instruction set.
    #[must_use]
    pub fn compatibility(&self) -> String {
        let mut hasher = std::hash::DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Compiles in an engine of its own that is thrown away: an engine keeps compiler memory for as long as it lives. Events that come
    /// meanwhile go first.
    pub(super) fn compile(component: &[u8]) -> Result<Vec<u8>, wasmtime::Error> {
        let compile = || Engine::new(&config())?.precompile_component(component);
        match &*COMPILERS.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(compilers) => compilers.install(compile),
            None => compile(),
        }
    }
}

fn config() -> Config {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_core_instances(CORE_INSTANCES)
        .total_component_instances(CORE_INSTANCES)
        .total_memories(CORE_INSTANCES)
        .total_tables(CORE_INSTANCES * 3)
        .linear_memory_keep_resident(2 << 20)
        .pagemap_scan(Enabled::Auto);

    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        // Fuel, not epochs, decides what is too much: the same event stops at the same instruction on every host.
        .consume_fuel(true)
        // Otherwise a NaN's bits, and so a document's bytes, could differ between machines.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        // Seven times dearer calls for something no handler may use.
        .concurrency_support(false);
    config
}
