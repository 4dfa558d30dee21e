//! The next version of `scripted`, for tests of what becomes of live instances: it does the same, but where its events say what
//! it is to do otherwise. Its state has a field more, and keeps a note only if it is a number.

use millstream_sdk::prelude::*;
use serde_json::json;

#[path = "../../scripted/src/script.rs"]
mod script;

pub use script::{Ask, Next, Script, Step, Told, Way};

/// One instance per key.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scripted {
    /// How many events it has seen.
    pub seen: u64,
    /// How many things it has asked for.
    #[serde(default)]
    pub asked: u64,
    /// What it was told to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<u64>,
}

impl Saga for Scripted {
    const NAME: &'static str = "scripted";
    const SUBJECTS: &'static [&'static str] = &["scripts.>"];
    const SENDS: &'static [&'static str] = &["script-commands.*", "scripts.Told"];
    const LATE: Late = Late::Ignore;
    type Event = Told;

    fn correlate(event: &Recorded<Told>) -> Keys<'_> {
        let Told::Told(script) = &event.payload;
        match script.next {
            Some(Next::PassBy) => Keys::none(),
            _ => Keys::one(&script.key),
        }
    }

    fn starts(event: &Recorded<Told>) -> bool {
        let Told::Told(script) = &event.payload;
        script.starts
    }

    fn react(&mut self, event: &Recorded<Told>, effects: &mut Effects) -> Result<(), Refusal> {
        let Told::Told(script) = &event.payload;
        self.seen += 1;
        if let Some(note) = &script.note {
            self.note = note.as_u64();
        }
        match script.next {
            None => script.ask(&script.key, effects),
            Some(Next::Trap) => trap(),
            Some(Next::Refuse) => return Err(Refusal::new("the next version does not take this")),
            Some(Next::Nothing | Next::PassBy) => {}
            Some(Next::More) => {
                script.ask(&script.key, effects);
                effects.send("script-commands.more", &script.key);
            }
            Some(Next::Payload) => script.ask(&json!({ "key": script.key, "more": true }), effects),
        }
        self.asked += effects.as_slice().len() as u64;
        Ok(())
    }
}

/// Stops the handler.
#[allow(clippy::panic, reason = "it is what this is for")]
fn trap() {
    panic!("the next version cannot take this");
}

export!(saga Scripted);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{event, saga};

    #[test]
    fn it_does_the_same_but_where_it_is_told_otherwise() {
        let step = json!({ "step": { "name": "one", "undo": "command" } });
        let told = |next: &serde_json::Value| {
            event("Told", json!({ "key": "k", "starts": true, "asks": [step], "next": next, "note": "x" }))
        };
        saga::<Scripted>()
            .when(told(&json!(null)))
            .then_commands(["one"])
            .then_state("k", &Scripted { seen: 1, asked: 1, note: None });
        saga::<Scripted>().when(told(&json!("more"))).then_commands(["one", "more"]);
        saga::<Scripted>().when(told(&json!("nothing"))).then_commands([]);
        saga::<Scripted>().when(told(&json!("pass-by"))).then_no_instance("k");
        saga::<Scripted>().when(told(&json!("refuse"))).then_refused("the next version does not take this");
    }
}
