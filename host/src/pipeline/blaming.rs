//! What follows when one event is to blame: its units are tried key by key, those that fail are set aside with the same record that
//! commits the others. In: the event, and what it is guilty of. Out: a record, or the word that the handler stops here because no
//! more may be parked. Never: parks a key whose unit would go through.

use millstream_saga::Due;

use super::{Error, Leave, Pipeline, let_go};
use crate::batch;
use crate::decision::{self, Bounds, Decision, Fault, Undecided};
use crate::intake::Arrival;
use crate::journal::Counts;
use crate::names;
use crate::parking::Room;
use crate::parking::aside::{Aside, Blamed, Culprits};
use crate::sandbox::{str_slice, wire};

impl Pipeline {
    /// How many keys may be parked now.
    pub(super) fn room(&self) -> Room {
        let on_probation = self.owner.progress.is_on_probation(self.counts.delivered);
        self.parked.room(&self.version.settings, self.counts.delivered, on_probation)
    }

    /// The guest and the instances may hold half a batch.
    pub(super) fn forget_undecided(&mut self) {
        let_go(self.guest.take());
        if let Some(sagas) = &mut self.sagas {
            sagas.forget();
        }
    }

    /// Decides an event that fails by itself: commits it, with what fails of it set aside.
    pub(super) async fn set_aside(&mut self, input: usize, arrival: Arrival, blamed: Blamed) -> Result<(), Error> {
        let room = self.room();
        if room.keys == 0 {
            return Err(self.failing(input, &arrival, blamed, room).await);
        }
        let stream = self.stream_name(input);
        let one = std::slice::from_ref(&arrival);
        let keys = self.keys_of(&stream, &arrival)?;
        let mut decision = if keys.is_empty() {
            self.keyless(&stream, &arrival, &blamed)
        } else {
            let culprits = self.culprits(&stream, one, &keys, &blamed).await?;
            self.decide_but(&stream, one, Leave::culprits(&culprits)).await
        };
        if matches!(decision, Err(Undecided::Guilty { .. })) && !keys.is_empty() {
            // Each of the others goes through, all together do not.
            self.forget_undecided();
            let all = keys.iter().map(|key| (key.clone(), blamed.clone())).collect();
            decision = self.decide_but(&stream, one, Leave::culprits(&all)).await;
        }
        match decision {
            Ok(decision) => self.commit(input, vec![arrival], decision).await,
            Err(Undecided::Trouble(error)) => Err(error),
            Err(Undecided::Guilty { class, reason, backtrace, .. }) => {
                self.forget_undecided();
                let room = self.room();
                Err(self.failing(input, &arrival, Blamed { class, reason, backtrace }, room).await)
            }
        }
    }

    /// The end of this claim: the event stays the first undecided one.
    async fn failing(&mut self, input: usize, arrival: &Arrival, blamed: Blamed, room: Room) -> Error {
        if let Err(error) = self.finish().await {
            return error;
        }
        let event = self.describe(input, arrival);
        let Blamed { class, reason, backtrace } = blamed;
        // There may be room for one key, and the event has two.
        let is_for_want_of_room = room.keys == 0 || class != Fault::TooLarge;
        let reason = if is_for_want_of_room { reason + &room.bound.explain(&self.documents.handler) } else { reason };
        if let Some(span) = self.traced(input, std::slice::from_ref(arrival)) {
            span.failed(format!("{class}: {reason}"));
        }
        let (stream, sequence) = (self.stream_name(input), arrival.sequence);
        let class_of_it = class.to_string();
        tracing::error!(target: "millstream::pipeline", stream, sequence, class = class_of_it, "this event cannot be applied");
        Error::Failing { event, class, reason, backtrace }
    }

    /// An event that never got as far as a key is set aside by itself.
    fn keyless(&self, stream: &str, arrival: &Arrival, blamed: &Blamed) -> Result<Decision, Undecided> {
        let bounds = Bounds { stream, room: self.room(), record_bytes: self.record_bytes };
        let mut aside = Aside::default();
        aside.add(0, blamed.unit(None));
        let parks = aside.parks(stream, std::slice::from_ref(arrival), bounds.room, bounds.letter_bytes())?;
        let counts = Counts { delivered: 1, parked: 1, ..Counts::default() };
        Ok(Decision { parks, counts, ..Decision::default() })
    }

    /// The keys that an event touches and that are not parked; none where the guest does not get so far.
    fn keys_of(&mut self, stream: &str, arrival: &Arrival) -> Result<Vec<String>, Error> {
        let Ok(batch) = batch::encode(stream, std::slice::from_ref(arrival)) else { return Ok(Vec::new()) };
        if self.sagas.is_some() && stream == names::TIMERS {
            let due: Option<Due> = serde_json::from_slice(&arrival.message.payload).ok();
            return Ok(due.map(|due| due.key).into_iter().collect());
        }
        let mut guest = self.guest().map_err(Error::Instance)?;
        let staged = tokio::task::block_in_place(|| guest.stage(&batch)).map_err(Undecided::failure);
        let staged = match self.keep(guest, staged) {
            Ok(staged) => staged,
            Err(Undecided::Guilty { .. }) => return Ok(Vec::new()),
            Err(Undecided::Trouble(error)) => return Err(error),
        };
        if decision::check_staged(&staged).is_err() {
            return Ok(Vec::new());
        }
        let name =
            |route: &wire::Route| staged.keys.get(route.key as usize).map(|key| str_slice(&staged.blob, key.name));
        let mut keys: Vec<String> = staged.routes.iter().filter_map(name).map(str::to_owned).collect();
        keys.retain(|key| !self.parked.has(key));
        Ok(keys)
    }

    /// Those of the event's keys whose unit fails by itself; all of them where each goes through.
    async fn culprits(
        &mut self,
        stream: &str,
        one: &[Arrival],
        keys: &[String],
        blamed: &Blamed,
    ) -> Result<Culprits, Error> {
        let mut culprits = Culprits::new();
        let mut groups = if keys.len() > 1 { vec![keys] } else { Vec::new() };
        while let Some(group) = groups.pop() {
            let only = |key: &str| group.iter().any(|one| one == key);
            let tried = self.decide_but(stream, one, Leave::all_but(&only)).await;
            self.forget_undecided();
            match (tried, group) {
                (Ok(_), _) => {}
                (Err(Undecided::Trouble(error)), _) => return Err(error),
                (Err(Undecided::Guilty { class, reason, backtrace, .. }), [key]) => {
                    culprits.insert(key.clone(), Blamed { class, reason, backtrace });
                }
                (Err(Undecided::Guilty { .. }), group) => {
                    let (some, others) = group.split_at(group.len() / 2);
                    groups.extend([some, others]);
                }
            }
        }
        if culprits.is_empty() {
            culprits.extend(keys.iter().map(|key| (key.clone(), blamed.clone())));
        }
        Ok(culprits)
    }
}
