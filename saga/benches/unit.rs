//! What a unit costs natively: sagas of three steps, each from begin to end, documents read and written around every unit.
//! Prints microseconds per unit, the median of many rounds. `cargo bench -p millstream-saga --bench unit`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a measuring program, not shipped")]

use std::hint::black_box;
use std::time::Instant as Clock;

use millstream_saga::{Cause, Effect, Instance, Outgoing, Rules, Unit, Verdict};
use serde_json::value::RawValue;

const SAGAS: usize = 5000;
const ROUNDS: usize = 15;

struct Bench<'a> {
    rules: Rules<'a>,
    /// Effects as they cross the contract, for each unit of a saga.
    effects: Vec<Vec<String>>,
    keys: Vec<String>,
    began: Vec<String>,
}

fn main() {
    let payload = format!(r#"{{"order":"order-4711","customer":"C42","note":"{}"}}"#, "x".repeat(200));
    let step = |name: &str| {
        format!(
            r#"{{"send":{{"subject":"shop.{name}","type":"{name}","payload":{payload},"step":"{name}","within":30000,"retry":{{"times":3,"wait":1000}},"undo":{{"subject":"shop.un{name}","type":"Un{name}","payload":{payload}}}}}}}"#
        )
    };
    let sends = [String::from("shop.>")];
    let names = || (0..SAGAS).map(|number| format!("order-{number}"));
    let bench = Bench {
        rules: Rules { handler: "order-fulfilment", digest: "0123456789abcdef", sends: &sends, ..Rules::default() },
        effects: vec![
            vec![step("reserve")],
            vec![step("pay")],
            vec![step("ship")],
            vec![r#"{"publish":{"subject":"shop.done","type":"Done","payload":1}}"#.into(), r#""complete""#.into()],
        ],
        keys: names().collect(),
        began: names().map(|name| format!("EVENTS:{name}")).collect(),
    };

    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| bench.round()).collect();
    rounds.sort_by(f64::total_cmp);
    println!("three-step saga, 4 units: {:.2} us per unit with JSON in and out", rounds[ROUNDS / 2]);

    for (history, name) in [(4, "4"), (32, "32")] {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| bench.long(history)).collect();
        rounds.sort_by(f64::total_cmp);
        println!("an event without effects, {name} transitions in the document: {:.2} us", rounds[ROUNDS / 2]);
    }
}

impl Bench<'_> {
    fn round(&self) -> f64 {
        let mut documents: Vec<Vec<u8>> = vec![Vec::new(); SAGAS];
        let mut causations: Vec<String> = vec![String::new(); SAGAS];
        let clock = Clock::now();
        for unit in 0..4 {
            for saga in 0..SAGAS {
                let id = if unit == 0 { self.began[saga].clone() } else { format!("REPLIES:{}", saga * 4 + unit) };
                let (document, out) = self.unit(saga, unit, &id, &causations[saga], &documents[saga]);
                documents[saga] = document;
                if let Some(Outgoing::Message(message)) =
                    out.into_iter().find(|outgoing| matches!(outgoing, Outgoing::Message(_)))
                {
                    causations[saga] = message.id;
                }
            }
        }
        let micros = clock.elapsed().as_secs_f64() * 1e6 / (4 * SAGAS) as f64;
        assert!(documents.iter().all(|document| document.starts_with(br#"{"status":"completed""#)));
        micros
    }

    fn unit(&self, saga: usize, unit: usize, id: &str, causation: &str, document: &[u8]) -> (Vec<u8>, Vec<Outgoing>) {
        let mut instance = (!document.is_empty()).then(|| Instance::read(document).unwrap());
        let effects: Vec<Effect> =
            self.effects[unit].iter().map(|effect| serde_json::from_str(effect).unwrap()).collect();
        let state = RawValue::from_string(format!(r#"{{"customer":"C42","cents":1200,"step":{unit}}}"#)).unwrap();
        let mut out = Vec::new();
        let cause = Cause {
            id,
            event_type: "OrderEvent",
            time: 1_767_225_600_000_000_000,
            correlation: &self.began[saga],
            causation,
            depth: 0,
        };
        let judged = Unit { rules: &self.rules, key: &self.keys[saga], cause: &cause };
        let Verdict::React(reaction) = judged.judge(true, &mut instance, &mut out).unwrap() else {
            return (Vec::new(), out);
        };
        judged.fold(reaction, &mut instance, Some(state), effects, &mut out).unwrap();
        (instance.unwrap().write(), out)
    }

    fn long(&self, history: usize) -> f64 {
        let mut document = self.unit(0, 0, "begin", "", &[]).0;
        let quiet = |document: &[u8], number: usize| {
            let mut instance = Some(Instance::read(document).unwrap());
            let id = format!("EVENTS:{number}");
            let cause = Cause { id: &id, event_type: "OrderEvent", time: 0, correlation: "", causation: "", depth: 0 };
            let unit = Unit { rules: &self.rules, key: &self.keys[0], cause: &cause };
            let mut out = Vec::new();
            let Ok(Verdict::React(reaction)) = unit.judge(true, &mut instance, &mut out) else { return Vec::new() };
            unit.fold(reaction, &mut instance, None, Vec::new(), &mut out).unwrap();
            instance.unwrap().write()
        };
        for number in 1..history {
            document = quiet(&document, number);
        }
        let clock = Clock::now();
        for _ in 0..SAGAS {
            black_box(quiet(&document, history));
        }
        clock.elapsed().as_secs_f64() * 1e6 / SAGAS as f64
    }
}
