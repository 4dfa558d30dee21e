//! The check that every scenario gets. In: all that went in. Out: nothing, or what differs when it is cut, restarted
//! and doubled in every way. Never: passes over a difference of one byte.

use std::fmt;

use millstream_saga::Outgoing;

use super::super::{difference, fail};
use super::Scenario;
use super::engine::{Host, Input};
use crate::guest::Handler;
use crate::log;

/// How inputs are handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    OneByOne,
    InBatches,
    Restarting,
    Twice,
}

impl<H: Handler> Scenario<H> {
    /// Hands over again all that went in so far, in every way.
    #[track_caller]
    pub(super) fn check_variations(&self) {
        let expected = self.run(Way::OneByOne);
        for way in [Way::InBatches, Way::Restarting, Way::Twice] {
            let actual = self.run(way);
            if actual != expected {
                fail(format_args!(
                    "the result depends on how events are handed over; {way} it differs (-, +):\n{}\
                     hint: a HashMap, a field that serde skips, or something remembered outside the state",
                    difference(&expected, &actual)
                ));
            }
        }
    }

    /// All instances and all that was sent, a line each.
    fn run(&self, way: Way) -> String {
        let mut host = Host::<H>::new();
        let (mut lines, _) = log::capture(|| hand_over(&mut host, &self.inputs, way));
        let instance = |(key, document): (&String, &Vec<u8>)| format!("{key}: {}\n", String::from_utf8_lossy(document));
        lines.extend(host.instances.iter().map(instance));
        lines.concat()
    }
}

fn hand_over<H: Handler>(host: &mut Host<H>, inputs: &[Input], way: Way) -> Vec<String> {
    let mut sent = Vec::new();
    let mut rest = inputs;
    while let Some(first) = rest.first() {
        let length = match (way, first) {
            (Way::InBatches, Input::Event(_)) => rest.iter().take_while(|next| same_stream(first, next)).count(),
            _ => 1,
        };
        let (batch, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        for _ in 0..if way == Way::Twice { 2 } else { 1 } {
            if way == Way::Restarting {
                host.restart();
            }
            take_in(host, batch);
            for line in host.out.drain(..).map(|outgoing| line(&outgoing)) {
                // The server drops what has an id that it knows.
                if way != Way::Twice || !sent.contains(&line) {
                    sent.push(line);
                }
            }
        }
        rest = later;
    }
    sent
}

fn take_in<H: Handler>(host: &mut Host<H>, batch: &[Input]) {
    if let [Input::Due(timer, body)] = batch {
        host.due(timer, body);
        return;
    }
    let event = |input: &Input| match input {
        Input::Event(event) => Some(event.clone()),
        Input::Due(..) => None,
    };
    let events: Vec<_> = batch.iter().filter_map(event).collect();
    host.batch(&events);
}

fn same_stream(one: &Input, other: &Input) -> bool {
    match (one, other) {
        (Input::Event(one), Input::Event(other)) => one.source() == other.source(),
        _ => false,
    }
}

fn line(outgoing: &Outgoing) -> String {
    match outgoing {
        Outgoing::Message(message) => format!(
            "sends `{}` to {} with id {}, step {:?}, attempt {}: {}\n",
            message.event_type,
            message.subject,
            message.id,
            message.step,
            message.attempt,
            String::from_utf8_lossy(&message.payload)
        ),
        Outgoing::Timer { id, due, .. } => format!("sets timer {id} for {due}\n"),
        Outgoing::Wait { id, after_ms, .. } => format!("waits {after_ms} ms for {id}\n"),
        Outgoing::Cancel { id } => format!("takes back {id}\n"),
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneByOne => "one by one",
            Self::InBatches => "in batches",
            Self::Restarting => "with a fresh handler for each event, its state read back,",
            Self::Twice => "with each event twice",
        })
    }
}
