//! What an event tells the saga to do, and how it does that. Shared with `scripted-next`, which is this saga's next version.

use core::time::Duration;

use millstream_sdk::prelude::*;
use serde_json::Value;

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
    /// Something to keep in the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Value>,
    /// What the saga's next version does otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// A change in the saga's next version.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// It traps.
    Trap,
    /// It refuses.
    Refuse,
    /// It asks for nothing.
    Nothing,
    /// It asks for one thing more.
    More,
    /// It says more in its commands.
    Payload,
    /// It has no use for such an event.
    PassBy,
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

impl Script {
    /// Does it; the commands of its steps say this.
    pub fn ask(&self, payload: &(impl Serialize + ?Sized), effects: &mut Effects) {
        for ask in &self.asks {
            match ask {
                Ask::Step(step) => step.ask(payload, effects),
                Ask::Send { subject, letters } => {
                    effects.send(subject, &"x".repeat(*letters));
                }
                Ask::Echo => {
                    let key = format!("{}'", self.key);
                    let asks = vec![Ask::Echo];
                    effects.publish("scripts.Told", &Self { key, starts: true, asks, note: None, next: None });
                }
                Ask::Reject(step) => effects.reject(step, "the service said no"),
                Ask::Compensate(reason) => effects.compensate(reason),
                Ask::Complete => effects.complete(),
            }
        }
    }
}

impl Step {
    fn ask(&self, payload: &(impl Serialize + ?Sized), effects: &mut Effects) {
        let Self { name, within, retries, undo_within, undo } = self;
        let mut step = effects.send(format!("script-commands.{name}"), payload).step(name);
        if *within > 0 {
            step = step.within(Duration::from_millis(*within));
        }
        if *retries > 0 {
            step = step.retry(*retries, Duration::from_millis(1));
        }
        match undo {
            Way::Command => {
                let undo = step.undo(format!("script-commands.un{name}"), payload);
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
