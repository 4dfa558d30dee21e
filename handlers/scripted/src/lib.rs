//! Asks for what its events tell it to. No example to follow: it is how tests make a saga do what a sound one would not.
//!
//! Reads `scripts.>`; sends to `script-commands.*` and `scripts.Told`. Every event is of type `Told`.

use core::time::Duration;

use millstream_sdk::prelude::*;

/// One instance per key.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scripted {
    /// How many events it has seen.
    pub seen: u64,
}

/// What it is told.
#[derive(Debug, Event)]
pub enum Told {
    /// Something to do.
    Told(Script),
}

/// One event's worth.
#[derive(Debug, Serialize, Deserialize)]
pub struct Script {
    /// The instance.
    pub key: String,
    /// It may begin an instance.
    #[serde(default)]
    pub starts: bool,
    /// What to ask for, in order.
    #[serde(default)]
    pub asks: Vec<Ask>,
}

/// One thing to ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// A step.
    Step(Step),
    /// A command that nobody waits for, with a payload of so many letters.
    Send {
        /// Where to.
        subject: String,
        /// How many letters.
        letters: usize,
    },
    /// Tells itself, that is another instance, to do the same.
    Echo,
    /// A step was refused.
    Reject(String),
    /// Take everything back.
    Compensate(String),
    /// It is over.
    Complete,
}

/// A step, whose command goes to `script-commands.<name>` and its undo to `script-commands.un<name>`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Milliseconds to the deadline; 0: none.
    #[serde(default)]
    pub within: u64,
    /// Further attempts, and those of its undo. Each comes after a millisecond or a few.
    #[serde(default)]
    pub retries: u32,
    /// Milliseconds that its undo has; 0: as many as it has itself.
    #[serde(default)]
    pub undo_within: u64,
    /// How it is taken back.
    pub undo: Way,
}

/// How a step is taken back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By its undo.
    Command,
    /// It cannot be.
    Irreversible,
    /// It does not say, which is a mistake.
    Silent,
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
        for ask in &script.asks {
            match ask {
                Ask::Step(step) => step.ask(&script.key, effects),
                Ask::Send { subject, letters } => {
                    effects.send(subject, &"x".repeat(*letters));
                }
                Ask::Echo => {
                    let key = format!("{}'", script.key);
                    effects.publish("scripts.Told", &Script { key, starts: true, asks: vec![Ask::Echo] });
                }
                Ask::Reject(step) => effects.reject(step, "the service said no"),
                Ask::Compensate(reason) => effects.compensate(reason),
                Ask::Complete => effects.complete(),
            }
        }
        Ok(())
    }
}

impl Step {
    fn ask(&self, key: &str, effects: &mut Effects) {
        let Self { name, within, retries, undo_within, undo } = self;
        let mut step = effects.send(format!("script-commands.{name}"), key).step(name);
        if *within > 0 {
            step = step.within(Duration::from_millis(*within));
        }
        if *retries > 0 {
            step = step.retry(*retries, Duration::from_millis(1));
        }
        match undo {
            Way::Command => {
                let undo = step.undo(format!("script-commands.un{name}"), key);
                if *undo_within > 0 {
                    undo.within(Duration::from_millis(*undo_within));
                }
            }
            Way::Irreversible => step.irreversible(),
            Way::Silent => {
                let _ = step;
            }
        }
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
            .then_state("k", &Scripted { seen: 2 });
    }

    #[test]
    fn it_makes_mistakes() {
        let step = json!({ "step": { "name": "one", "undo": "silent" } });
        saga::<Scripted>().when(told(&json!([step]))).then_refused("step `one` does not say how it is taken back");
    }
}
