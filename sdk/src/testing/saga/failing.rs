//! Services that the test plays. In: what is sent. Out: answers until nobody waits, with one service after the other
//! that fails. Never: leaves a step out.

use millstream_saga::instance::{Step, StepState};

use super::super::{TestEvent, fail};
use super::{Scenario, Sent, listing, saga};
use crate::Saga;
use crate::guest::{Handler, SagaOf};

/// More answers than any scenario needs.
const MOST_ANSWERS: usize = 1000;

impl<H: Handler> Scenario<H> {
    /// Services answer every command that somebody waits for, undos included, as long as there are any; `None`: no answer comes.
    /// All of it is one action: `then_commands` shows what was sent since.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if it does not come to an end.
    #[track_caller]
    pub fn answer(mut self, service: impl Fn(&Sent) -> Option<TestEvent>) -> Self {
        self.begin();
        self.answer_all(&service);
        self.check_variations();
        self
    }

    #[track_caller]
    fn answer_all(&mut self, service: &dyn Fn(&Sent) -> Option<TestEvent>) {
        for _ in 0..MOST_ANSWERS {
            let answer = self.waiting().into_iter().find_map(|sent| Some((service(&sent)?, sent)));
            let Some((event, Sent { id, correlation, .. })) = answer else { return };
            self.deliver(event.answering(&id, &correlation));
            let (label, fate) = match self.fates.last() {
                Some(last) => last,
                None => return,
            };
            if let Some(problem) = fate.problem() {
                fail(format_args!("the answer {label} {problem}"));
            }
            if self.waiting().iter().any(|sent| sent.id == id) {
                fail(format_args!(
                    "the answer {label} {fate}, and its command is still waiting: does `correlate` name its key?"
                ));
            }
        }
        fail(format_args!(
            "after {MOST_ANSWERS} answers there are still commands that wait:\n{}",
            listing(&self.waiting())
        ));
    }

    /// The commands that wait for an answer, oldest first.
    fn waiting(&self) -> Vec<Sent> {
        let mut waiting = Vec::new();
        for key in self.host.instances.keys() {
            let Some(instance) = self.host.instance(key) else { continue };
            for step in instance.steps.iter().filter(|step| waits(step)) {
                let is_it = |sent: &Sent| sent.key == *key && sent.step.as_ref() == Some(&step.step);
                waiting.extend(self.sent.iter().rposition(is_it));
            }
        }
        waiting.sort_unstable();
        waiting.into_iter().filter_map(|place| self.sent.get(place).cloned()).collect()
    }
}

const fn waits(step: &Step) -> bool {
    !step.backing_off && matches!(step.state, StepState::Sent | StepState::Undoing)
}

impl<S: Saga> Scenario<SagaOf<S>> {
    /// Tells the story once with every command answered by `succeed`; it must end. Then once for each step of it, with that
    /// step's command answered by `refuse`, and hands each of these stories to `check`, with the step's name. Then once for
    /// each step with a deadline, with no answer to that one at all. Undos are always answered by `succeed`. Each story must
    /// end, with every step settled: nothing may be left waiting for ever.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if a story does not end.
    #[track_caller]
    pub fn for_each_failing_step(
        self,
        begin: TestEvent,
        succeed: impl Fn(&Sent) -> TestEvent,
        refuse: impl Fn(&Sent) -> TestEvent,
        check: impl Fn(&str, Self),
    ) {
        if !self.inputs.is_empty() {
            fail("`for_each_failing_step` tells its stories from the beginning: give it to a new scenario");
        }
        let happy = tell::<S>(&begin, &|sent| Some(succeed(sent)));
        happy.ended_or_fail("with every command answered");
        let mut steps: Vec<String> = Vec::new();
        for step in happy.sent.iter().filter_map(|sent| sent.step.as_ref()) {
            if !steps.contains(step) {
                steps.push(step.clone());
            }
        }
        for failing in &steps {
            let fails = |sent: &Sent| sent.step.as_ref() == Some(failing);
            let first = happy.sent.iter().find(|sent| fails(sent)).map(|sent| sent.id.clone());
            // Ids follow from what happened, so the command has the same one in each story; its undo has another.
            let is_it = |sent: &Sent| first.as_ref() == Some(&sent.id);
            let story = tell::<S>(&begin, &|sent| Some(if is_it(sent) { refuse(sent) } else { succeed(sent) }));
            story.ended_or_fail(&format!("with step `{failing}` refused"));
            story.check_variations();
            check(failing, story);

            let silent = |sent: &Sent| fails(sent) && !sent.id.contains(".undo");
            let answer = |sent: &Sent| (!silent(sent)).then(|| succeed(sent));
            let mut story = tell::<S>(&begin, &answer);
            while story.waiting_for_deadline(failing)
                && let Some(due) = story.clock.next()
            {
                story.fire_until(due);
                story.answer_all(&answer);
            }
            if !story.waiting().iter().any(silent) {
                story.ended_or_fail(&format!("with no answer to step `{failing}`"));
                story.check_variations();
            }
        }
    }

    /// Whether the step is still waited for and has a deadline.
    fn waiting_for_deadline(&self, name: &str) -> bool {
        self.host.instances.keys().filter_map(|key| self.host.instance(key)).any(|instance| {
            instance
                .steps
                .iter()
                .any(|step| step.step == name && step.state == StepState::Sent && step.within_ms.is_some())
        })
    }

    #[track_caller]
    fn ended_or_fail(&self, story: &str) {
        for key in self.host.instances.keys() {
            let Some(instance) = self.host.instance(key) else { continue };
            if !instance.status.has_ended() {
                fail(format_args!(
                    "{story}, `{key}` does not end: it is {}; what was sent:\n{}its history:\n{}",
                    instance.status,
                    listing(&self.sent),
                    super::history(&instance)
                ));
            }
        }
    }
}

/// Begins a story and plays the services until nobody waits.
#[track_caller]
fn tell<S: Saga>(begin: &TestEvent, service: &dyn Fn(&Sent) -> Option<TestEvent>) -> Scenario<SagaOf<S>> {
    let mut story = saga::<S>();
    story.begin();
    story.deliver(begin.clone());
    story.accepted_or_fail("the first");
    story.answer_all(service);
    story
}
