//! Does anybody run what is deployed, and can it be run at all. Pure.

use super::facts::{Facts, Handler, Module};
use super::finding::Finding;
use crate::hint;
use crate::legible::counted;
use crate::registry::Desired;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    facts.handlers.iter().flat_map(|handler| told(facts, handler)).collect()
}

fn told(facts: &Facts, handler: &Handler) -> Vec<Finding> {
    let name = &handler.name;
    let thing = || format!("handler {name}");
    let mut findings = Vec::new();
    if let Module::Unusable(reason) = &handler.module {
        findings.push(
            Finding::error("module", thing(), format!("its module cannot be run: {reason}"))
                .why("a host that starts or takes over cannot run it")
                .mend(format!("millstream deploy MODULE.wasm --name {name}, or: millstream rollback {name}")),
        );
    }
    if let Some((fault, hint)) = &handler.fault {
        findings.push(Finding::error("inputs", thing(), fault.as_str()).why("it decides nothing").mend(hint.as_str()));
    }
    if let Some(reason) = &handler.lost_ledger {
        let (reason, hint) = hint::split(reason);
        findings.push(
            Finding::error("lost-ledger", thing(), reason)
                .why("no host can begin it again; whoever runs it goes on")
                .mend(hint.unwrap_or_default()),
        );
    } else if let Some(reason) = &handler.stopped {
        let (reason, hint) = hint::split(reason);
        findings.push(
            Finding::error("stopped", thing(), reason)
                .why("it decides nothing until somebody mends that")
                .mend(hint.map_or_else(|| format!("millstream rollback {name}"), str::to_owned)),
        );
    }
    if handler.letters_gone > 0 {
        let gone = counted(handler.letters_gone, "dead letter was", "dead letters were");
        findings.push(
            Finding::error("letters-gone", thing(), format!("{gone} removed by hand"))
                .why("documents lack their events, and later ones of their keys must not be taken up without them")
                .mend(format!("millstream rebuild {name}")),
        );
    }
    let is_looked_after = facts.hosts.iter().any(|host| host.looks_after(name));
    if handler.desired == Desired::Running && !is_looked_after {
        let problem = match facts.hosts.len() {
            0 => "no host runs it: no host is there".to_owned(),
            hosts => format!("no host runs it: none of {hosts} looks after it"),
        };
        findings.push(
            Finding::error("not-running", thing(), problem)
                .why("its events wait, and its timers are late")
                .mend("millstream run"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts;
    use crate::registry::Host;

    fn handler() -> Handler {
        facts::handler("spend")
    }

    fn checks(handler: Handler, hosts: &[&[&str]]) -> Vec<&'static str> {
        let host = |handlers: &&[&str]| Host {
            name: "h".to_owned(),
            handlers: handlers.iter().map(ToString::to_string).collect(),
            ..Host::default()
        };
        let facts = Facts { handlers: vec![handler], hosts: hosts.iter().map(host).collect(), ..Facts::default() };
        judge(&facts).into_iter().map(|finding| finding.check).collect()
    }

    #[test]
    fn what_should_run_has_a_host_that_looks_after_it() {
        assert_eq!(checks(handler(), &[]), ["not-running"]);
        assert_eq!(checks(handler(), &[&["other"]]), ["not-running"]);
        assert_eq!(checks(handler(), &[&["other"], &[]]), [""; 0]);
        assert_eq!(checks(Handler { desired: Desired::Paused, ..handler() }, &[]), [""; 0]);
        let broken =
            Handler { module: Module::Unusable("x".into()), fault: Some(("y".into(), "z".into())), ..handler() };
        assert_eq!(checks(broken, &[&[]]), ["module", "inputs"]);
        assert_eq!(checks(Handler { stopped: Some("x; hint: y".into()), ..handler() }, &[&[]]), ["stopped"]);
        assert_eq!(checks(Handler { letters_gone: 2, ..handler() }, &[&[]]), ["letters-gone"]);
        let (lost, stopped) = (Some("x; hint: y".into()), Some("x; hint: y".into()));
        assert_eq!(checks(Handler { lost_ledger: lost, stopped, ..handler() }, &[&[]]), ["lost-ledger"]);
    }
}
