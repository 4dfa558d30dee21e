//! Asks for what its events tell it to. No example to follow: it is how tests make a saga do what a sound one would not.
//!
//! Reads `scripts.>`; sends to `script-commands.*` and `scripts.Told`. Every event is of type `Told`.

use millstream_sdk::prelude::*;
use serde_json::Value;

mod script;

pub use script::{Ask, Next, Script, Step, Told, Way};

/// One instance per key.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scripted {
    /// How many events it has seen.
    pub seen: u64,
    /// What it was told to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Value>,
}

impl Saga for Scripted {
    const NAME: &'static str = "scripted";
    const SUBJECTS: &'static [&'static str] = &["scripts.>"];
    const SENDS: &'static [&'static str] = &["script-commands.*", "scripts.Told"];
    const LATE: Late = Late::Ignore;
    type Event = Told;

    fn correlate(event: &Recorded<Told>) -> Keys<'_> {
        let Told::Told(script) = &event.payload;
        Keys::one(&script.key)
    }

    fn starts(event: &Recorded<Told>) -> bool {
        let Told::Told(script) = &event.payload;
        script.starts
    }

    fn react(&mut self, event: &Recorded<Told>, effects: &mut Effects) -> Result<(), Refusal> {
        let Told::Told(script) = &event.payload;
        self.seen += 1;
        if script.note.is_some() {
            self.note.clone_from(&script.note);
        }
        script.ask(&script.key, effects);
        Ok(())
    }
}

export!(saga Scripted);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, json, saga};

    fn told(asks: &impl Serialize) -> TestEvent {
        event("Told", json!({ "key": "k", "starts": true, "asks": asks }))
    }

    #[test]
    fn it_does_what_it_is_told() {
        let step = json!({ "step": { "name": "one", "within": 5, "retries": 1, "undo": "command" } });
        saga::<Scripted>()
            .when(told(&json!([step, { "send": { "subject": "script-commands.x", "letters": 3 } }, "echo"])))
            .then_commands(["one", "x"])
            .then_published(["Told"])
            .when(event("Told", json!({ "key": "k", "asks": [{ "compensate": "enough" }] })))
            .then_commands(["unone"])
            .then_state("k", &Scripted { seen: 2, note: None });
    }

    #[test]
    fn it_makes_mistakes() {
        let step = json!({ "step": { "name": "one", "undo": "silent" } });
        saga::<Scripted>().when(told(&json!([step]))).then_refused("step `one` does not say how it is taken back");
    }
}
