//! What is to be published, in a lane for each target subject, and how far it is done. In: effects, and what became of
//! them. Out: the next thing to do. Pure: times come in as arguments. Never: lets an instance's effects overtake one
//! another.
//!
//! Order: an instance's effects take turns over all lanes, so that an undo never overtakes its command; only what no
//! stream holds gives way. Within a lane effects go in the order decided, many in flight, but one at a time for one
//! key, and one at a time for the whole lane from a failure until the next success. So whatever fails, the effects of
//! one instance are stored in their order; those of different instances on one subject are too, unless a server fails
//! with several in flight.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_saga::Outgoing;
use tokio::time::Instant;

use super::Undelivered;
use super::deferred::{Deferred, Fate};
use super::effect::Effect;
use super::lane::{Lane, Step, Trouble};
use super::refused::{Refused, Said};
use super::stamp::Stamp;
use super::targets::Target;
use super::turns::Turns;
use crate::names;
use crate::traces::Effects;

/// The pause after a first failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// All of it.
pub(super) struct Queue {
    /// The lane of all that concerns timers. Its name is a filter, so no message's subject is the same.
    timers: Arc<str>,
    lanes: HashMap<Arc<str>, Lane>,
    turns: Turns,
    line: VecDeque<Arc<str>>,
    pauses: BTreeSet<(Instant, Arc<str>)>,
    deferred: Deferred,
    refused: Refused,
    /// Journal sequences and how many of their effects are left.
    records: VecDeque<(u64, usize)>,
    acted_through: u64,
    next_order: u64,
    pub(super) effects: usize,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) fn new(handler: &str, acted_through: u64) -> Self {
        Self {
            timers: Arc::from(names::timer_handler_subjects(handler)),
            lanes: HashMap::new(),
            turns: Turns::default(),
            line: VecDeque::new(),
            pauses: BTreeSet::new(),
            deferred: Deferred::default(),
            refused: Refused::default(),
            records: VecDeque::new(),
            acted_through,
            next_order: 0,
            effects: 0,
            bytes: 0,
        }
    }

    pub(super) fn acted_through(&self) -> u64 {
        self.acted_through
    }

    /// Takes the effects of a record; records come in their order.
    pub(super) fn push(&mut self, record: u64, absent: Stamp, effects: impl Into<Effects>) {
        let Effects { outgoing, carried } = effects.into();
        let mut context = carried.contexts();
        self.records.push_back((record, outgoing.len()));
        let mut last: Option<Box<Effect>> = None;
        for (place, mut outgoing) in outgoing.into_iter().enumerate() {
            let body = match &mut outgoing {
                Outgoing::Message(message) => Bytes::from(std::mem::take(&mut message.payload)),
                Outgoing::Timer { body, .. } | Outgoing::Wait { body, .. } => Bytes::from(std::mem::take(body)),
                Outgoing::Cancel { .. } => Bytes::new(),
            };
            let effect = Box::new(Effect {
                order: self.next_order,
                record,
                outgoing,
                body,
                context: context(place),
                decided: absent.wall,
                absent,
                gives_way: false,
                deadline: None,
            });
            self.next_order += 1;
            self.effects += 1;
            self.bytes += effect.bytes();
            match &mut last {
                Some(command) if effect.is_deadline_of(command) => {
                    // What an earlier owner left may be set already, so that it must be taken back as well.
                    if absent.is_ours() {
                        self.deferred.attach(&effect);
                    }
                    command.deadline = Some(effect);
                }
                _ => {
                    if let Some(before) = last.replace(effect) {
                        self.take_in(before);
                    }
                }
            }
        }
        if let Some(effect) = last {
            self.take_in(effect);
        }
        self.settle_records();
    }

    fn take_in(&mut self, effect: Box<Effect>) {
        match &effect.outgoing {
            Outgoing::Cancel { .. } => {
                let fate = self.deferred.cancel(effect);
                self.meet(fate);
            }
            Outgoing::Message(_) | Outgoing::Timer { .. } | Outgoing::Wait { .. } => self.place(effect),
        }
    }

    fn meet(&mut self, fate: Fate) {
        match fate {
            Fate::Done(deadline, cancel) => {
                self.count_out(&deadline);
                self.count_out(&cancel);
                self.settle_records();
            }
            Fate::Deferred => {}
            Fate::Due(effect) => self.place(effect),
        }
    }

    /// Sets every deadline at once from now on: the host is about to stop.
    pub(super) fn hurry(&mut self) {
        self.deferred.hurry();
    }

    fn place(&mut self, effect: Box<Effect>) {
        let name = match &effect.outgoing {
            Outgoing::Message(message) => match self.lanes.get_key_value(message.subject.as_str()) {
                Some((name, _)) => Arc::clone(name),
                None => Arc::from(message.subject.as_str()),
            },
            Outgoing::Timer { .. } | Outgoing::Wait { .. } | Outgoing::Cancel { .. } => Arc::clone(&self.timers),
        };
        let lane = self.lanes.entry(Arc::clone(&name)).or_default();
        let key = effect.hash();
        let is_taken = self.turns.is_taken(key);
        if is_taken || !lane.is_homeless {
            self.turns.take(key, effect.order, &name);
        }
        if is_taken {
            lane.held.insert(effect.order, effect);
        } else {
            lane.insert(Box::new(Effect { gives_way: lane.is_homeless, ..*effect }));
        }
        self.line_up(&name);
    }

    /// An effect is done with its turn, or gives it up.
    fn pass_on(&mut self, key: u64, mut order: u64) {
        while let Some((next, name)) = self.turns.pass_on(key, order) {
            let Some(lane) = self.lanes.get_mut(&name) else { return };
            let Some(mut effect) = lane.held.remove(&next) else { return };
            effect.gives_way = lane.is_homeless;
            let goes = !effect.gives_way;
            lane.insert(effect);
            self.line_up(&name);
            if goes {
                return;
            }
            order = next;
        }
    }

    /// What to do now, if anything.
    pub(super) fn next(&mut self, now: Stamp, instant: Instant) -> Option<Step> {
        while let Some(deadline) = self.deferred.pop_due(instant) {
            self.place(deadline);
        }
        while let Some((name, effect)) = self.refused.pop_due(instant) {
            self.lanes.entry(Arc::clone(&name)).or_default().insert(effect);
            self.line_up(&name);
        }
        while self.pauses.first().is_some_and(|(until, _)| *until <= instant) {
            if let Some((_, name)) = self.pauses.pop_first() {
                self.line_up(&name);
            }
        }
        while let Some(name) = self.line.pop_front() {
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            lane.is_lined_up = false;
            if let Some(step) = lane.step(&name, now, instant) {
                self.line_up(&name);
                return Some(step);
            }
            if lane.is_idle() {
                self.lanes.remove(&name);
            }
        }
        None
    }

    /// When to look again though nothing has happened.
    pub(super) fn next_pause(&self) -> Option<Instant> {
        let pause = self.pauses.first().map(|(until, _)| *until);
        pause.into_iter().chain(self.deferred.next()).chain(self.refused.next()).min()
    }

    /// The lane's stream is known, or that there is none, or why nobody knows.
    pub(super) fn found(&mut self, name: &Arc<str>, target: Result<Option<Arc<Target>>, String>, now: Instant) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.is_looking = false;
        lane.is_homeless = matches!(target, Ok(None));
        match target {
            Ok(Some(target)) => {
                lane.target = Some(target);
                self.line_up(name);
            }
            Ok(None) => {
                let in_turn = lane.waiting.iter_mut().filter(|effect| !effect.gives_way);
                let passed = in_turn.map(|effect| {
                    effect.gives_way = true;
                    (effect.hash(), effect.order)
                });
                let passed: Vec<(u64, u64)> = passed.collect();
                self.pause(name, "no stream holds this subject".to_owned(), now);
                passed.into_iter().for_each(|(key, order)| self.pass_on(key, order));
            }
            Err(reason) => self.pause(name, reason, now),
        }
    }

    /// The lane's stream was asked, at that moment, whether it holds `asked`. Gives how many it did.
    pub(super) fn looked(
        &mut self,
        name: &Arc<str>,
        asked: &HashSet<String>,
        at: Stamp,
        present: Result<HashSet<String>, String>,
        now: Instant,
    ) -> u64 {
        let Some(lane) = self.lanes.get_mut(name) else { return 0 };
        lane.is_looking = false;
        let present = match present {
            Ok(present) => present,
            Err(reason) => {
                self.pause(name, reason, now);
                return 0;
            }
        };
        let is_there = |effect: &Effect| effect.is_unique() && present.contains(effect.id());
        let (mut there, waiting): (Vec<_>, Vec<_>) = lane.waiting.drain(..).partition(|effect| is_there(effect));
        lane.waiting = waiting.into();
        there.extend(lane.held.extract_if(.., |_, effect| is_there(effect)).map(|(_, effect)| effect));
        for effect in lane.waiting.iter_mut().chain(lane.held.values_mut()) {
            if asked.contains(effect.id()) {
                effect.absent = at;
            }
        }
        let count = there.len() as u64;
        there.into_iter().for_each(|effect| self.finish(effect, now));
        self.line_up(name);
        count
    }

    /// An effect was not sent after all.
    pub(super) fn unsent(&mut self, name: &Arc<str>, effect: Box<Effect>) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.in_flight.remove(&effect.hash());
        lane.insert(effect);
        self.line_up(name);
    }

    /// Another stream answered than was found for this lane.
    pub(super) fn forget_target(&mut self, name: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.target = None;
        }
    }

    /// An effect is in its stream.
    pub(super) fn sent(&mut self, name: &Arc<str>, effect: Box<Effect>, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.in_flight.remove(&effect.hash());
            lane.trouble = None;
        }
        self.finish(effect, now);
        self.line_up(name);
    }

    /// An effect may not be in its stream. It stands where it stood; its stream is found anew.
    pub(super) fn failed(&mut self, name: &Arc<str>, effect: Box<Effect>, reason: String, now: Instant) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.in_flight.remove(&effect.hash());
        lane.target = None;
        if let Some(trouble) = &mut lane.trouble {
            trouble.trying = None;
        }
        lane.insert(effect);
        self.pause(name, reason, now);
    }

    /// The stream takes others, but not this effect. It keeps its instance's turn, and the lane goes on.
    pub(super) fn refused(&mut self, name: &Arc<str>, effect: Box<Effect>, reason: String, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.in_flight.remove(&effect.hash());
            lane.trouble = None;
        }
        self.refused.set_aside(name, effect, reason, now);
        self.line_up(name);
    }

    /// What cannot be delivered at present: how many, and the first of each subject, those that are refused themselves before
    /// those that wait.
    pub(super) fn undelivered(&self, most: usize) -> (usize, Vec<Undelivered>) {
        let mut troubled: Vec<(&Arc<str>, &Lane, &Trouble)> =
            self.lanes.iter().filter_map(|(name, lane)| Some((name, lane, lane.trouble.as_ref()?))).collect();
        troubled.sort_by_key(|(name, _, _)| *name);
        let of_each = (most / troubled.len().max(1)).max(1);
        let mut listed: Vec<Undelivered> = self.refused.listed().cloned().collect();
        let behind = self.behind_refused();
        let mut count = listed.len() + behind.len();
        for (name, lane, trouble) in troubled {
            let others = lane.waiting.iter().chain(lane.held.values());
            let others = others.filter(|effect| self.refused.concerns(effect).is_none());
            let waiting: Vec<_> = others.map(|effect| (effect.key(), effect.id())).collect();
            let trying = trouble.trying.iter().map(|(key, id)| (key.as_str(), id.as_str()));
            count += waiting.len() + trying.len();
            listed.extend(trying.chain(waiting).take(of_each).map(|(key, id)| Undelivered {
                key: key.to_owned(),
                subject: name.to_string(),
                id: id.to_owned(),
                reason: trouble.reason.clone(),
            }));
        }
        listed.extend(behind);
        listed.truncate(most);
        (count, listed)
    }

    /// What waits for an effect of its instance that is refused.
    fn behind_refused(&self) -> Vec<Undelivered> {
        let waits = |name: &Arc<str>, effect: &Effect| match self.refused.concerns(effect)? {
            Said::Itself => None,
            Said::Behind(before) => Some(Undelivered {
                key: effect.key().to_owned(),
                subject: name.to_string(),
                id: effect.id().to_owned(),
                reason: format!("waits for {before}, which is refused"),
            }),
        };
        let mut behind: Vec<(u64, Undelivered)> = Vec::new();
        if self.refused.listed().next().is_some() {
            for (name, lane) in &self.lanes {
                let effects = lane.waiting.iter().chain(lane.held.values());
                behind.extend(effects.filter_map(|effect| Some((effect.order, waits(name, effect)?))));
            }
        }
        behind.sort_by_key(|(order, _)| *order);
        behind.into_iter().map(|(_, undelivered)| undelivered).collect()
    }

    fn pause(&mut self, name: &Arc<str>, reason: String, now: Instant) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        // Several in flight fail for one cause.
        if lane.trouble.as_ref().is_some_and(|trouble| trouble.until > now) {
            return;
        }
        let pause = lane.trouble.take().map_or(FIRST_PAUSE, |trouble| (trouble.pause * 2).min(LONGEST_PAUSE));
        let until = now + pause;
        lane.trouble = Some(Trouble { reason, pause, until, trying: None });
        self.pauses.insert((until, Arc::clone(name)));
    }

    fn line_up(&mut self, name: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(name)
            && !std::mem::replace(&mut lane.is_lined_up, true)
        {
            self.line.push_back(Arc::clone(name));
        }
    }

    fn finish(&mut self, mut effect: Box<Effect>, now: Instant) {
        if let Some(deadline) = effect.deadline.take() {
            let fate = self.deferred.acknowledged(deadline, now);
            self.meet(fate);
        }
        self.refused.forget(&effect);
        if !effect.gives_way {
            self.pass_on(effect.hash(), effect.order);
        }
        self.count_out(&effect);
        self.settle_records();
    }

    /// An effect is done.
    fn count_out(&mut self, effect: &Effect) {
        self.effects -= 1;
        self.bytes -= effect.bytes();
        let place = self.records.partition_point(|(record, _)| *record < effect.record);
        if let Some((_, left)) = self.records.get_mut(place) {
            *left = left.saturating_sub(1);
        }
    }

    fn settle_records(&mut self) {
        while let Some((record, _)) = self.records.pop_front_if(|(_, left)| *left == 0) {
            self.acted_through = record;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::{cancel, message, wait};

    struct Bench {
        queue: Queue,
        target: Arc<Target>,
        now: Stamp,
        instant: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let target = Arc::new(Target::of("S", Duration::from_secs(120)));
            Self { queue: Queue::new("h", 7), target, now: Stamp::now(), instant: Instant::now() }
        }

        /// Everything that may be sent now, as far as the queue lets it.
        fn sendable(&mut self) -> Vec<(Arc<str>, Box<Effect>)> {
            let mut sendable = Vec::new();
            while let Some(step) = self.queue.next(self.now, self.instant) {
                match step {
                    Step::Find(lane) => self.queue.found(&lane, Ok(Some(Arc::clone(&self.target))), self.instant),
                    Step::Send(lane, _, effect) => sendable.push((lane, effect)),
                    Step::Look(..) => panic!("nothing is old"),
                }
            }
            sendable
        }

        fn ids(sendable: &[(Arc<str>, Box<Effect>)]) -> Vec<&str> {
            sendable.iter().map(|(_, effect)| effect.id()).collect()
        }
    }

    #[test]
    fn one_key_has_one_in_flight_and_a_record_is_done_with_its_last_effect() {
        let mut bench = Bench::new();
        let one =
            vec![message("a1", "s", "a"), message("b1", "s", "b"), message("a2", "s", "a"), message("c1", "s", "c")];
        bench.queue.push(10, bench.now, one);
        bench.queue.push(11, bench.now, vec![message("a3", "other", "a"), message("d1", "other", "d")]);
        bench.queue.push(12, bench.now, Vec::new());
        let mut first = bench.sendable();
        first.sort_by_key(|(_, effect)| effect.order);
        assert_eq!(Bench::ids(&first), ["a1", "b1", "c1", "d1"], "an instance holds up no other");
        for (lane, effect) in first.drain(1..) {
            bench.queue.sent(&lane, effect, bench.instant);
        }
        for (id, acted_through) in [("a1", 7), ("a2", 10), ("a3", 12)] {
            let (lane, effect) = first.pop().unwrap();
            assert_eq!(effect.id(), id);
            bench.queue.sent(&lane, effect, bench.instant);
            assert_eq!(bench.queue.acted_through(), acted_through, "{id}");
            first = bench.sendable();
        }
        assert_eq!((first.len(), bench.queue.effects, bench.queue.bytes), (0, 0, 0));
        assert!(bench.queue.lanes.is_empty() && bench.queue.turns.is_empty(), "what is idle is forgotten");
    }

    #[test]
    fn what_fails_holds_its_instance_and_what_no_stream_holds_gives_way() {
        let mut bench = Bench::new();
        let one = vec![message("a1", "full", "a"), message("b1", "none", "b"), message("b2", "none", "b")];
        bench.queue.push(8, bench.now, one);
        bench.queue.push(9, bench.now, vec![message("a2", "s", "a"), message("b3", "s", "b")]);
        while let Some(step) = bench.queue.next(bench.now, bench.instant) {
            match step {
                Step::Find(lane) => {
                    let target = (&*lane != "none").then(|| Arc::clone(&bench.target));
                    bench.queue.found(&lane, Ok(target), bench.instant);
                }
                Step::Send(lane, _, effect) if &*lane == "full" => {
                    bench.queue.failed(&lane, effect, "full".to_owned(), bench.instant);
                }
                Step::Send(lane, _, effect) => {
                    assert_eq!(effect.id(), "b3");
                    bench.queue.sent(&lane, effect, bench.instant);
                }
                Step::Look(..) => panic!("nothing is old"),
            }
        }
        let (count, listed) = bench.queue.undelivered(9);
        assert_eq!((count, listed.iter().map(|it| it.id.as_str()).collect()), (3, vec!["a1", "b1", "b2"]));
        bench.instant += LONGEST_PAUSE;
        let mut order = Vec::new();
        loop {
            let sendable = bench.sendable();
            if sendable.is_empty() {
                break;
            }
            for (lane, effect) in sendable {
                order.push(effect.id().to_owned());
                bench.queue.sent(&lane, effect, bench.instant);
            }
        }
        let of = |key: &str| order.iter().filter(|id| id.starts_with(key)).cloned().collect::<Vec<_>>();
        assert_eq!((of("a"), of("b")), (vec!["a1".into(), "a2".into()], vec!["b1".into(), "b2".into()]));
        assert_eq!(bench.queue.acted_through(), 9);
        assert!(bench.queue.lanes.is_empty() && bench.queue.turns.is_empty(), "what is idle is forgotten");
    }

    #[test]
    fn what_is_refused_for_itself_holds_back_its_instance_and_nothing_else() {
        let mut bench = Bench::new();
        bench.queue.push(8, bench.now, vec![message("a1", "s", "a"), message("b1", "s", "b")]);
        bench.queue.push(9, bench.now, vec![message("a2", "other", "a"), message("c1", "s", "c")]);
        for (lane, effect) in bench.sendable() {
            match effect.id() {
                "a1" => bench.queue.refused(&lane, effect, "too large".to_owned(), bench.instant),
                _ => bench.queue.sent(&lane, effect, bench.instant),
            }
        }
        assert!(bench.sendable().is_empty(), "it is not tried at once");
        let said = |bench: &Bench| {
            let (count, listed) = bench.queue.undelivered(9);
            (count, listed.into_iter().map(|one| (one.id, one.subject, one.reason)).collect::<Vec<_>>())
        };
        let refused = ("a1".to_owned(), "s".to_owned(), "too large".to_owned());
        let behind = ("a2".to_owned(), "other".to_owned(), "waits for a1, which is refused".to_owned());
        assert_eq!(said(&bench), (2, vec![refused, behind]));
        bench.queue.push(10, bench.now, vec![message("d1", "s", "d")]);
        let (lane, effect) = bench.sendable().remove(0);
        assert_eq!(effect.id(), "d1", "the lane goes on, though idle lanes are forgotten");
        bench.queue.sent(&lane, effect, bench.instant);
        bench.instant = bench.queue.next_pause().unwrap();
        let (lane, effect) = bench.sendable().remove(0);
        assert_eq!((effect.id(), said(&bench).0, bench.queue.acted_through()), ("a1", 2, 7));
        bench.queue.sent(&lane, effect, bench.instant);
        let (lane, effect) = bench.sendable().remove(0);
        assert_eq!(effect.id(), "a2");
        bench.queue.sent(&lane, effect, bench.instant);
        assert!(bench.sendable().is_empty());
        assert_eq!((said(&bench), bench.queue.acted_through()), ((0, Vec::new()), 10));
        assert!(bench.queue.lanes.is_empty() && bench.queue.turns.is_empty() && bench.queue.effects == 0);
    }

    #[test]
    fn after_a_failure_a_lane_tries_one_at_a_time_in_order() {
        let mut bench = Bench::new();
        let effects = ["a", "b", "c", "d"].map(|key| message(key, "s", key));
        bench.queue.push(8, bench.now, effects.to_vec());
        let mut sendable = bench.sendable();
        assert_eq!(sendable.len(), 4);
        for at in [2, 0] {
            let (lane, effect) = sendable.remove(at);
            bench.queue.failed(&lane, effect, "away".to_owned(), bench.instant);
        }
        assert!(bench.sendable().is_empty(), "b and d are still in flight");
        let lane = Arc::clone(&sendable[0].0);
        let (count, listed) = bench.queue.undelivered(1);
        assert_eq!((count, listed[0].id.as_str(), listed[0].reason.as_str()), (2, "a", "away"));
        for (lane, effect) in sendable.drain(..) {
            bench.queue.failed(&lane, effect, "away".to_owned(), bench.instant);
        }
        assert!(bench.sendable().is_empty(), "the lane pauses");
        for expected in ["a", "a"] {
            bench.instant += LONGEST_PAUSE;
            let mut again = bench.sendable();
            assert_eq!(Bench::ids(&again), [expected]);
            assert_eq!(bench.queue.undelivered(9).0, 4, "the one that is tried counts");
            let (lane, effect) = again.remove(0);
            bench.queue.failed(&lane, effect, "away".to_owned(), bench.instant);
        }
        bench.instant += LONGEST_PAUSE;
        let (_, effect) = bench.sendable().remove(0);
        bench.queue.sent(&lane, effect, bench.instant);
        assert_eq!(Bench::ids(&bench.sendable()), ["b", "c", "d"]);
        assert_eq!(bench.queue.undelivered(9), (0, Vec::new()));
    }

    #[test]
    fn a_deadline_waits_for_its_command_and_timers_of_one_id_for_each_other() {
        let mut bench = Bench::new();
        let effects =
            vec![message("a", "s", "a"), wait("a.deadline"), wait("b.retry"), cancel("b.retry"), wait("c.deadline")];
        bench.queue.push(8, bench.now, effects);
        let mut first = bench.sendable();
        first.sort_by_key(|(_, effect)| effect.order);
        assert_eq!(Bench::ids(&first), ["a", "b.retry", "c.deadline"], "nobody has seen command a yet");
        let (lane, retry) = first.remove(1);
        bench.queue.sent(&lane, retry, bench.instant);
        let then = bench.sendable();
        assert_eq!(Bench::ids(&then), ["b.retry"]);
        assert!(matches!(then[0].1.outgoing, Outgoing::Cancel { .. }));
        let (lane, command) = first.remove(0);
        bench.queue.sent(&lane, command, bench.instant);
        assert!(bench.sendable().is_empty(), "it may be answered soon");
        assert_eq!(bench.queue.next_pause(), Some(bench.instant + Duration::from_secs(1)));
        bench.instant += Duration::from_secs(1);
        let due = bench.sendable();
        assert_eq!(Bench::ids(&due), ["a.deadline"]);
        let Outgoing::Wait { after_ms, .. } = due[0].1.outgoing else { panic!() };
        assert_eq!(after_ms, 3_599_000, "the second that it stood here is over");
    }

    #[test]
    fn a_deadline_that_is_taken_back_soon_is_never_written_and_neither_is_its_cancellation() {
        let mut bench = Bench::new();
        bench.queue.push(8, bench.now, vec![message("a", "s", "a"), wait("a.deadline")]);
        bench.queue.push(9, bench.now, vec![message("b", "s", "b"), wait("b.deadline")]);
        let mut sendable = bench.sendable();
        assert_eq!(Bench::ids(&sendable), ["a", "b"]);
        bench.queue.push(10, bench.now, vec![cancel("b.deadline")]);
        for (lane, command) in sendable.drain(..) {
            bench.queue.sent(&lane, command, bench.instant);
        }
        assert_eq!(bench.queue.acted_through(), 7, "deadline a is neither set nor taken back");
        bench.queue.push(11, bench.now, vec![cancel("a.deadline")]);
        assert_eq!((bench.queue.acted_through(), bench.queue.effects, bench.queue.bytes), (11, 0, 0));
        bench.instant += Duration::from_secs(2);
        assert!(bench.sendable().is_empty() && bench.queue.next_pause().is_none());
    }

    #[test]
    fn what_an_earlier_owner_may_have_set_is_set_and_taken_back() {
        let mut bench = Bench::new();
        let left = Stamp::stored(bench.now.wall);
        bench.queue.push(8, left, vec![message("a", "s", "a"), wait("a.deadline")]);
        bench.queue.push(9, left, vec![cancel("a.deadline")]);
        let mut sent = Vec::new();
        loop {
            let sendable = bench.sendable();
            if sendable.is_empty() {
                break;
            }
            for (lane, effect) in sendable {
                sent.push(effect.id().to_owned());
                bench.queue.sent(&lane, effect, bench.instant);
            }
        }
        assert_eq!(sent.iter().filter(|id| *id == "a.deadline").count(), 2, "{sent:?}");
        assert_eq!(bench.queue.acted_through(), 9);
    }

    #[test]
    fn a_host_that_stops_leaves_no_deadline_behind() {
        let mut bench = Bench::new();
        bench.queue.push(8, bench.now, vec![message("a", "s", "a"), wait("a.deadline")]);
        let (lane, command) = bench.sendable().remove(0);
        bench.queue.sent(&lane, command, bench.instant);
        bench.queue.hurry();
        assert_eq!(Bench::ids(&bench.sendable()), ["a.deadline"]);
    }

    #[test]
    fn what_may_be_there_is_looked_for_before_it_is_sent() {
        let mut bench = Bench::new();
        let old = Stamp::stored(bench.now.wall - 61_000_000_000);
        bench.queue.push(8, old, vec![message("a", "s", "a"), message("b", "s", "b")]);
        bench.queue.push(9, bench.now, vec![message("c", "s", "c")]);
        let Some(Step::Find(lane)) = bench.queue.next(bench.now, bench.instant) else { panic!() };
        bench.queue.found(&lane, Ok(Some(Arc::clone(&bench.target))), bench.instant);
        let Some(Step::Look(lane, _, ids, since)) = bench.queue.next(bench.now, bench.instant) else { panic!() };
        assert_eq!((ids.clone(), since), (HashSet::from(["a".to_owned(), "b".to_owned()]), old.wall));
        assert!(bench.sendable().is_empty(), "the lane waits for the answer");
        let there = HashSet::from(["a".to_owned()]);
        assert_eq!(bench.queue.looked(&lane, &ids, bench.now, Ok(there), bench.instant), 1);
        let sendable = bench.sendable();
        assert_eq!(Bench::ids(&sendable), ["b", "c"]);
        assert_eq!(sendable[0].1.decided, old.wall, "the time of its decision stays");
        assert_eq!(bench.queue.acted_through(), 7);
    }
}
