//! May this user do all that a host does. The server itself tells what a user may (`$SYS.REQ.USER.INFO`), so nothing is tried: what is
//! needed is compared with what is allowed. Pure. Never: judges what a user may do beyond that.

use super::facts::{Facts, Handler, Module, Rules, Stream, User};
use super::finding::Finding;
use crate::generation::Generation;
use crate::names;
use crate::subject;

/// What people and other hosts ask; a host that may not answer runs all the same.
const SERVICE: [&str; 4] = ["millstream.lag", "millstream.status", "millstream.explain", "$SRV.>"];

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if !facts.as_host {
        return Vec::new();
    }
    let Some(user) = &facts.user else { return Vec::new() };
    let mut findings = Vec::new();
    let inbox = format!("{}.>", user.inbox);
    for (needed, what) in publishes(facts) {
        findings.extend(missing(user, &user.publish, "publish", &needed, &what));
    }
    let answers = "answers to its own requests";
    findings.extend(missing(user, &user.subscribe, "subscribe", &inbox, answers));
    findings.extend(missing(
        user,
        &user.subscribe,
        "subscribe",
        "millstream.host.*",
        "being asked whether it is there",
    ));
    for subject in SERVICE {
        let finding = missing(user, &user.subscribe, "subscribe", subject, "questions to the NATS service");
        findings.extend(finding.map(|finding| Finding { severity: super::Severity::Warning, ..finding }));
    }
    if !user.answers && SERVICE.iter().all(|subject| is_allowed(&user.subscribe, subject)) {
        findings.push(
            Finding::warning("permission", format!("user {}", user.name), "he may not answer requests")
                .why("the NATS service `millstream` hears questions and says nothing")
                .mend("add `allow_responses: { max: 1, expires: \"1m\" }` to his permissions, then: nats-server --signal reload"),
        );
    }
    findings
}

fn missing(user: &User, rules: &Option<Rules>, verb: &str, needed: &str, what: &str) -> Option<Finding> {
    (!is_allowed(rules, needed)).then(|| {
        Finding::error("permission", format!("user {}", user.name), format!("he may not {verb} {needed}"))
            .why(format!("a host needs it for {what}"))
            .mend(format!("add \"{needed}\" to his {verb} permissions in the server's configuration, then: nats-server --signal reload"))
    })
}

/// Whether all of these subjects are allowed, and none denied.
fn is_allowed(rules: &Option<Rules>, needed: &str) -> bool {
    let Some(Rules { allow, deny }) = rules else { return true };
    let allowed = allow.is_empty() || allow.iter().any(|allowed| subject::covers(allowed, needed));
    allowed && !deny.iter().any(|denied| subject::overlaps(denied, needed))
}

/// What a host publishes, requests included, and for what.
fn publishes(facts: &Facts) -> Vec<(String, String)> {
    let mut needs = Needs(Vec::new());
    let looking = ["INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.INFO.*", "STREAM.MSG.GET.*", "DIRECT.GET.>"];
    needs.api("looking at streams", &looking);
    let watched =
        ["OBJ_MILLSTREAM_MODULES", "KV_MILLSTREAM_HANDLERS", "KV_MILLSTREAM_GENERATIONS", "KV_MILLSTREAM_HOSTS"];
    for bucket in watched {
        let watch = ["CONSUMER.CREATE.{}", "CONSUMER.CREATE.{}.>", "CONSUMER.DELETE.{}.*"];
        needs.api("modules, deployments, generations and hosts", &watch.map(|api| api.replace("{}", bucket)));
    }
    needs.add("flow control", "$JS.FC.>");
    needs.add("taking over generations", "$KV.MILLSTREAM_GENERATIONS.*");
    needs.add("alerts", "$KV.MILLSTREAM_ALERTS.>");
    needs.add("alerts", "millstream.events.MILLSTREAM_ACCOUNT.>");
    needs.add("saying how its handlers are", "$KV.MILLSTREAM_STATUS.>");
    needs.add("saying that it lives", "$KV.MILLSTREAM_HOSTS.*");
    needs.add("asking other hosts whether they are there", "millstream.host.*");
    needs.add("parked keys", "$KV.MILLSTREAM_REDRIVES.>");
    needs.api("parked keys", &["STREAM.PURGE.MILLSTREAM_DEAD", "STREAM.MSG.DELETE.MILLSTREAM_DEAD"]);
    let shared = ["OBJ_MILLSTREAM_MODULES", "KV_MILLSTREAM_HANDLERS", "KV_MILLSTREAM_STATUS", "KV_MILLSTREAM_HOSTS"];
    let later = ["KV_MILLSTREAM_GENERATIONS", "KV_MILLSTREAM_ALERTS", names::DEAD, names::EVENTS];
    for stream in shared.into_iter().chain(later) {
        needs.make(facts, "streams that all handlers share", stream);
    }
    for handler in &facts.handlers {
        needs.of_handler(facts, handler);
    }
    needs.0
}

struct Needs(Vec<(String, String)>);

impl Needs {
    fn add(&mut self, what: &str, subject: impl Into<String>) {
        let need = (subject.into(), what.to_owned());
        if !self.0.contains(&need) {
            self.0.push(need);
        }
    }

    fn api<S: AsRef<str>>(&mut self, what: &str, calls: &[S]) {
        for call in calls {
            self.add(what, format!("$JS.API.{}", call.as_ref()));
        }
    }

    /// A stream is made where it is missing, and only there.
    fn make(&mut self, facts: &Facts, what: &str, stream: &str) {
        if facts.stream(stream).is_none() {
            self.add(what, format!("$JS.API.STREAM.CREATE.{stream}"));
        }
    }

    fn of_handler(&mut self, facts: &Facts, handler: &Handler) {
        let name = handler.name.as_str();
        let what = format!("handler {name}");
        for subject in ["millstream.journal.{}.>", "millstream.events.{}.>", "millstream.dead.{}.>", "$KV.{}.>"] {
            self.add(&what, subject.replace("{}", name));
        }
        let journal = names::journal_stream(name);
        self.api(&what, &[format!("STREAM.PURGE.{journal}")]);
        self.make(facts, &what, &journal);
        self.make(facts, &what, &names::bucket_stream(name));
        self.add(&format!("promotions of {name}, and going back by itself"), format!("$KV.MILLSTREAM_HANDLERS.{name}"));
        self.api(&format!("promotions of {name}"), &[format!("STREAM.UPDATE.{}", names::bucket_stream(name))]);
        self.reading(handler, name, &what);
        for number in &handler.shadows {
            let shadow = Generation::shadow(name, *number).name();
            let what = format!("generation {number} of {name}");
            self.add(&what, format!("$KV.{shadow}.>"));
            let bucket = names::bucket_stream(&shadow);
            self.api(&what, &[format!("STREAM.UPDATE.{bucket}"), format!("STREAM.DELETE.{bucket}")]);
            self.make(facts, &what, &bucket);
            self.reading(handler, &shadow, &what);
        }
        if let Module::Known { sends, timers } = &handler.module {
            self.of_saga(facts, name, sends, *timers);
        }
    }

    /// Its consumers on the streams that it reads.
    fn reading(&mut self, handler: &Handler, consumer: &str, what: &str) {
        for input in &handler.inputs {
            let place = format!("{}.{consumer}", input.stream);
            let calls = ["CREATE", "INFO", "DELETE", "MSG.NEXT"];
            self.api(what, &calls.map(|call| format!("CONSUMER.{call}.{place}")));
            // With one subject filter, the request names it.
            self.api(what, &[format!("CONSUMER.CREATE.{place}.>")]);
            self.add(what, format!("$JS.ACK.{place}.>"));
        }
    }

    fn of_saga(&mut self, facts: &Facts, name: &str, sends: &[String], timers: bool) {
        for subject in sends {
            self.add(&format!("what {name} sends"), subject.as_str());
        }
        let holds = |stream: &&Stream| {
            let subjects = &stream.config.subjects;
            subjects.iter().any(|held| sends.iter().any(|sent| subject::overlaps(held, sent)))
        };
        let mut targets: Vec<&str> = facts.streams.iter().filter(holds).map(Stream::name).collect();
        if timers {
            self.add(&format!("timers of {name}"), names::timer_handler_subjects(name));
            self.make(facts, "timers", names::TIMERS);
            self.api("timers", &["STREAM.PURGE.MILLSTREAM_TIMERS"]);
            targets.push(names::TIMERS);
        }
        for stream in targets {
            let what = format!("looking in {stream} for what was sent before a crash");
            let calls = ["CONSUMER.CREATE.{}", "CONSUMER.INFO.{}.*", "CONSUMER.DELETE.{}.*", "CONSUMER.MSG.NEXT.{}.*"];
            self.api(&what, &calls.map(|call| call.replace("{}", stream)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Input;
    use super::*;
    use crate::doctor::facts;

    fn facts(publish: Option<Rules>, subscribe: Option<Rules>) -> Facts {
        let user = User { name: "host".into(), inbox: "_INBOX".into(), publish, subscribe, answers: true };
        let handler = Handler {
            shadows: vec![2],
            module: Module::Known { sends: vec!["commands.*".to_owned()], timers: true },
            inputs: vec![Input { stream: "ORDERS".to_owned(), ..Input::default() }],
            ..facts::handler("fulfilment")
        };
        Facts { user: Some(user), as_host: true, handlers: vec![handler], ..Facts::default() }
    }

    fn rules(allow: &[&str], deny: &[&str]) -> Option<Rules> {
        let owned = |subjects: &[&str]| subjects.iter().map(ToString::to_string).collect();
        Some(Rules { allow: owned(allow), deny: owned(deny) })
    }

    #[test]
    fn who_may_everything_lacks_nothing() {
        assert_eq!(judge(&facts(None, None)), []);
        assert_eq!(judge(&facts(rules(&[">"], &[]), rules(&[], &[]))), []);
    }

    #[test]
    fn each_need_that_is_not_covered_is_one_finding() {
        let all: Vec<String> = publishes(&facts(None, None)).into_iter().map(|(subject, _)| subject).collect();
        assert!(all.iter().any(|subject| subject == "$JS.API.CONSUMER.CREATE.ORDERS.fulfilment_g2"), "{all:?}");
        for left_out in &all {
            let allow: Vec<&str> = all.iter().filter(|subject| *subject != left_out).map(String::as_str).collect();
            let found = judge(&facts(rules(&allow, &[]), None));
            let problems: Vec<&str> = found.iter().map(|finding| finding.problem.as_str()).collect();
            assert_eq!(problems, [format!("he may not publish {left_out}")]);
        }
    }

    #[test]
    fn what_is_denied_is_not_allowed_and_a_part_is_not_enough() {
        let found = judge(&facts(rules(&[">"], &["commands.charge"]), None));
        assert_eq!(found.len(), 1, "{found:?}");
        let found = judge(&facts(
            None,
            rules(&["_INBOX.>", "millstream.host.*", "$SRV.>", "millstream.lag", "millstream.status"], &[]),
        ));
        let told: Vec<_> = found.iter().map(|finding| (finding.severity, finding.problem.as_str())).collect();
        assert_eq!(told, [(crate::doctor::Severity::Warning, "he may not subscribe millstream.explain")]);
    }

    #[test]
    fn nothing_is_said_of_a_user_who_is_no_host() {
        let facts = Facts { as_host: false, ..facts(rules(&["x"], &[]), None) };
        assert_eq!(judge(&facts), []);
    }
}
