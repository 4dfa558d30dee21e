//! The two guests that are compared: the projection as a module in the sandbox, and the same code compiled natively, with
//! its records copied field by field. Both are watched from outside: time in their calls, memory at the end.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use anyhow::Context as _;
use customer_spend::CustomerSpend;
use millstream::examples;
use millstream::sandbox::wire;
use millstream::sandbox::{Cache, Digest, Error, Failure, Guest, Instantiate, Limits, Module, Sandbox};
use millstream_sdk::contract;
use millstream_sdk::guest::{ProjectionOf, Runtime};

/// What is seen of a guest from outside.
#[derive(Default)]
pub(crate) struct Gauge {
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
}

impl Gauge {
    /// Seconds in calls, and bytes held after the last one.
    pub(crate) fn read(&self) -> (f64, u64) {
        (self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9, self.bytes.load(Ordering::Relaxed))
    }
}

/// Makes guests that report to a gauge.
pub(crate) type Make = Arc<dyn Fn(Arc<Gauge>) -> Instantiate + Send + Sync>;

/// The native guest.
pub(crate) fn native() -> Make {
    watched(Arc::new(|| Ok(Box::new(Native(Runtime::new())) as Box<dyn Guest>)))
}

/// The module, which cargo has built, in the sandbox; with its digest.
pub(crate) fn module() -> anyhow::Result<(Make, Digest)> {
    prepared(&bytes()?, &Cache::for_user())
}

/// The same code as another module, compiled now as a host compiles one that is deployed.
pub(crate) fn variant(number: u64) -> anyhow::Result<(Make, Digest)> {
    let mut bytes = bytes()?;
    // A custom section that holds nothing but its name.
    bytes.extend([0, 9, 8]);
    bytes.extend(number.to_le_bytes().map(|byte| byte & 0x7f));
    prepared(&bytes, &Cache::disabled())
}

fn bytes() -> anyhow::Result<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is gone")?;
    Ok(std::fs::read(examples::module(root, "customer-spend"))?)
}

fn prepared(bytes: &[u8], cache: &Cache) -> anyhow::Result<(Make, Digest)> {
    // One, as in a host: making one reserves address space for a thousand guests.
    static SANDBOX: LazyLock<Result<Sandbox, Error>> = LazyLock::new(Sandbox::new);
    let sandbox = SANDBOX.as_ref()?;
    let module = Module::prepare(sandbox, cache, &Limits::default(), bytes)?;
    let digest = module.digest();
    let voice = module.voice("drain");
    let instantiate = move || module.instantiate(&voice).map(|instance| Box::new(instance) as Box<dyn Guest>);
    Ok((watched(Arc::new(instantiate)), digest))
}

fn watched(instantiate: Instantiate) -> Make {
    Arc::new(move |gauge| {
        let instantiate = Arc::clone(&instantiate);
        Arc::new(move || Ok(Box::new(Watched { guest: instantiate()?, gauge: Arc::clone(&gauge) }) as Box<dyn Guest>))
    })
}

struct Watched {
    guest: Box<dyn Guest>,
    gauge: Arc<Gauge>,
}

impl Watched {
    fn call<T>(&mut self, call: impl FnOnce(&mut dyn Guest) -> T) -> T {
        let begun = Instant::now();
        let answer = call(self.guest.as_mut());
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.gauge.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.gauge.bytes.store(self.guest.memory_bytes(), Ordering::Relaxed);
        answer
    }
}

impl Guest for Watched {
    fn stage(&mut self, batch: &wire::Batch) -> Result<wire::Staged, Failure> {
        self.call(|guest| guest.stage(batch))
    }

    fn apply(&mut self, documents: &wire::Documents, skip: &[u32]) -> Result<wire::Outcome, Failure> {
        self.call(|guest| guest.apply(documents, skip))
    }

    fn is_bloated(&self) -> bool {
        self.guest.is_bloated()
    }

    fn memory_bytes(&self) -> u64 {
        self.guest.memory_bytes()
    }
}

/// The projection without a sandbox. Its answers are not checked either: that is part of the sandbox's price.
struct Native(Runtime<ProjectionOf<CustomerSpend>>);

impl Guest for Native {
    fn stage(&mut self, batch: &wire::Batch) -> Result<wire::Staged, Failure> {
        let staged = self.0.stage(contract::Batch {
            source: inward(batch.source),
            events: batch.events.iter().map(event).collect(),
            blob: batch.blob.clone(),
        });
        let key = |key: contract::Key| wire::Key { name: outward(key.name), cached: key.cached };
        let route = |route: contract::Route| wire::Route { event: route.event, key: route.key, starts: route.starts };
        let rejection = |one: contract::Rejection| wire::Rejection { event: one.event, reason: outward(one.reason) };
        Ok(wire::Staged {
            keys: staged.keys.into_iter().map(key).collect(),
            routes: staged.routes.into_iter().map(route).collect(),
            rejections: staged.rejections.into_iter().map(rejection).collect(),
            blob: staged.blob,
        })
    }

    fn apply(&mut self, documents: &wire::Documents, skip: &[u32]) -> Result<wire::Outcome, Failure> {
        let document =
            |one: &wire::Document| contract::Document { key: one.key, present: one.present, value: inward(one.value) };
        let documents = contract::Documents {
            documents: documents.documents.iter().map(document).collect(),
            blob: documents.blob.clone(),
        };
        let outcome = self.0.apply(&documents, skip);
        let change = |one: contract::Change| wire::Change {
            key: one.key,
            route: one.route,
            deleted: one.deleted,
            value: outward(one.value),
        };
        let effect = |one: contract::Effect| wire::Effect { route: one.route, body: outward(one.body) };
        let refusal = |one: contract::Refusal| wire::Refusal { route: one.route, reason: outward(one.reason) };
        Ok(wire::Outcome {
            changes: outcome.changes.into_iter().map(change).collect(),
            effects: outcome.effects.into_iter().map(effect).collect(),
            refusals: outcome.refusals.into_iter().map(refusal).collect(),
            blob: outcome.blob,
        })
    }

    fn is_bloated(&self) -> bool {
        false
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

fn event(event: &wire::Event) -> contract::Event {
    contract::Event {
        sequence: event.sequence,
        time: event.time,
        schema_version: event.schema_version,
        subject: inward(event.subject),
        id: inward(event.id),
        event_type: inward(event.event_type),
        aggregate_id: inward(event.aggregate_id),
        correlation_id: inward(event.correlation_id),
        causation_id: inward(event.causation_id),
        payload: inward(event.payload),
        extra: inward(event.extra),
    }
}

fn inward(span: wire::Span) -> contract::Span {
    contract::Span { start: span.start, length: span.length }
}

fn outward(span: contract::Span) -> wire::Span {
    wire::Span { start: span.start, length: span.length }
}
