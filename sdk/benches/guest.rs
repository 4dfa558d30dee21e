//! What the engine costs natively: 500 events of 256 bytes of JSON in a batch, 10,000 keys, documents cached.
//! Prints nanoseconds and allocations per event, the median of many rounds. `cargo bench -p millstream-sdk --bench guest`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a measuring program, not shipped")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use millstream_sdk::contract::{Batch, Document, Documents, Event as Envelope, Span};
use millstream_sdk::guest::{ProjectionOf, Runtime};
use millstream_sdk::prelude::*;

const KEYS: u64 = 10_000;
const BATCH: u64 = 500;
const BATCHES: u64 = 200;
const ROUNDS: usize = 15;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[allow(unsafe_code, reason = "hands everything to the system's allocator; it only counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Default, Serialize, Deserialize)]
struct Spend {
    orders: u64,
    cents: u64,
}

#[derive(Event)]
enum Shop {
    OrderPlaced { customer: String, cents: u64 },
}

impl Projection for Spend {
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    type Event = Shop;

    fn key(event: &Recorded<Shop>) -> Keys<'_> {
        let Shop::OrderPlaced { customer, .. } = &event.payload;
        Keys::one(customer)
    }

    fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
        let Shop::OrderPlaced { cents, .. } = &event.payload;
        self.orders += 1;
        self.cents += cents;
        keep()
    }
}

/// The batches of one round; keys in a fixed pseudo-random order.
fn batches() -> Vec<Batch> {
    let mut random = 1_u64;
    (0..BATCHES)
        .map(|batch| {
            let mut blob = b"ORDERS".to_vec();
            let events = (0..BATCH)
                .map(|event| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    envelope(batch * BATCH + event + 1, (random >> 33) % KEYS, &mut blob)
                })
                .collect();
            Batch { source: Span { start: 0, length: 6 }, events, blob }
        })
        .collect()
}

fn envelope(sequence: u64, key: u64, blob: &mut Vec<u8>) -> Envelope {
    let mut append = |text: &str| {
        let start = blob.len() as u32;
        blob.extend_from_slice(text.as_bytes());
        Span { start, length: text.len() as u32 }
    };
    let payload = format!(
        r#"{{"orderId":"o-{sequence:010}","customer":"C{key:05}","currency":"EUR","cents":{},"lines":[{{"sku":"A-1001","quantity":2,"cents":450}},{{"sku":"B-2002","quantity":1,"cents":300}}],"note":"#,
        1000 + key % 100
    );
    let payload = format!(r#"{payload}"{}"}}"#, "x".repeat(256 - payload.len() - 3));
    Envelope {
        sequence,
        time: 0,
        schema_version: 1,
        subject: append("orders.eu.placed"),
        id: append(&format!("0198c0de-0000-7000-8000-{sequence:012}")),
        event_type: append("OrderPlaced"),
        aggregate_id: append(&format!("o-{sequence:010}")),
        correlation_id: append("0198c0de-0000-7000-8000-000000000001"),
        causation_id: append("0198c0de-0000-7000-8000-000000000002"),
        payload: append(&payload),
        extra: Span { start: 0, length: 0 },
    }
}

/// One round: nanoseconds of `stage`, of `apply`, and allocations, all per event.
fn round(runtime: &mut Runtime<ProjectionOf<Spend>>) -> [f64; 3] {
    let (mut stage, mut apply, mut allocations) = (0, 0, 0);
    for batch in batches() {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let start = Instant::now();
        let staged = runtime.stage(batch);
        stage += start.elapsed().as_nanos();
        let mut documents = Vec::new();
        for (number, key) in (0..).zip(&staged.keys) {
            if !key.cached {
                documents.push(Document { key: number, present: false, value: Span { start: 0, length: 0 } });
            }
        }
        let documents = Documents { documents, blob: Vec::new() };
        let start = Instant::now();
        black_box(runtime.apply(&documents, &[]));
        apply += start.elapsed().as_nanos();
        allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
    }
    [stage as f64, apply as f64, allocations as f64].map(|sum| sum / (BATCH * BATCHES) as f64)
}

fn median(rounds: &[[f64; 3]], column: usize) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(what: &str, rounds: &[[f64; 3]]) {
    let [stage, apply, allocations] = [0, 1, 2].map(|column| median(rounds, column));
    println!(
        "{what}: {:.0} ns/event (stage {stage:.0}, apply {apply:.0}), {allocations:.2} allocations/event",
        stage + apply
    );
}

fn main() {
    let batch = &batches()[0];
    let payloads: Vec<&[u8]> = batch
        .events
        .iter()
        .map(|event| &batch.blob[event.payload.start as usize..][..event.payload.length as usize])
        .collect();
    assert!(payloads.iter().all(|payload| payload.len() == 256));
    let decode: Vec<[f64; 3]> = (0..ROUNDS * 20)
        .map(|_| {
            let start = Instant::now();
            for payload in &payloads {
                black_box(Shop::decode("OrderPlaced", payload).unwrap());
            }
            [start.elapsed().as_nanos() as f64 / BATCH as f64, 0.0, 0.0]
        })
        .collect();
    println!("decoding alone: {:.0} ns/event", median(&decode, 0));

    let cold: Vec<_> = (0..ROUNDS).map(|_| round(&mut Runtime::new())).collect();
    print("from an empty cache", &cold);
    let mut runtime = Runtime::new();
    round(&mut runtime);
    let warm: Vec<_> = (0..ROUNDS).map(|_| round(&mut runtime)).collect();
    print("all cached", &warm);
}
