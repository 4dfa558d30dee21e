//! Is the server itself fit: version, JetStream, flushing to disk, clock. Pure.

use super::facts::{Facts, Flushing};
use super::finding::Finding;
use crate::clock;
use crate::legible::duration;

/// Atomic batches and schedules exist from here on.
const OLDEST: (u32, u32) = (2, 12);

/// Clocks of hosts and servers that are kept by NTP differ by less, milliseconds.
const USUAL_SKEW: f64 = 250.0;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let server = &facts.server;
    let mut findings = Vec::new();
    if server.numbers.is_some_and(|numbers| numbers < OLDEST) {
        let problem = format!("it is {}, and 2.12 is the oldest that will do", server.version);
        findings.push(
            Finding::error("server-version", "server", problem)
                .why("atomic batches and message schedules are missing: nothing can be promoted, no timer can be set")
                .mend("stop it, and start nats-server 2.12 or later with the same configuration and store_dir"),
        );
    }
    if let Some(reason) = &server.no_jetstream {
        findings.push(
            Finding::error("jetstream", "server", format!("JetStream cannot be used: {reason}"))
                .why("streams, documents and journals are all kept by JetStream")
                .mend("nats-server -js, or `jetstream: enabled` for this account in the server's configuration"),
        );
    }
    findings.extend(flushing(facts));
    findings.extend(skew(facts));
    for (what, reason) in &facts.unseen {
        findings.push(
            Finding::note("unseen", what.as_str(), format!("this user cannot look at it: {reason}"))
                .why("what is wrong with it is not told here")
                .mend("run `millstream doctor` as a user with the permissions of deploy/nats-server.conf"),
        );
    }
    findings
}

/// With several replicas, no single machine can lose what was acknowledged.
fn flushing(facts: &Facts) -> Option<Finding> {
    let at_risk = |stream: &&super::facts::Stream| stream.config.num_replicas <= 1;
    if facts.server.no_jetstream.is_some() || !facts.streams.iter().any(|stream| at_risk(&stream)) {
        return None;
    }
    let why = "an acknowledged event, record or document can be lost by a power cut or a crash of the operating system";
    if facts.server.flushing.is_empty() {
        return Some(
            Finding::note("sync-interval", "server", "when it flushes to disk cannot be seen over NATS")
                .why(format!("unless `sync_interval` is `always`, {why}"))
                .mend("millstream doctor --monitor http://HOST:8222 (the server's monitoring port)"),
        );
    }
    facts.server.flushing.iter().find_map(|(address, flushing)| match flushing {
        Flushing::Always => None,
        Flushing::Every(interval) => {
            let problem = format!("it flushes to disk every {}", duration(interval.as_secs_f64()));
            Some(
                Finding::warning("sync-interval", format!("server {address}"), problem)
                    .why(format!("streams have one replica, so {why}"))
                    .mend("put `sync_interval: always` into `jetstream { }` of the server's configuration, and start it again"),
            )
        }
    })
}

fn skew(facts: &Facts) -> Option<Finding> {
    let clock = facts.server.clock?;
    let apart = clock.ahead.abs() - clock.uncertain;
    if apart <= USUAL_SKEW {
        return None;
    }
    let direction = if clock.ahead > 0.0 { "ahead of" } else { "behind" };
    let problem = format!("its clock is {} {direction} this machine's", duration(clock.ahead.abs() / 1000.0));
    let finding = match apart * 1e6 > clock::SKEW as f64 {
        true => Finding::error("clock-skew", "server", problem),
        false => Finding::warning("clock-skew", "server", problem),
    };
    Some(
        finding
            .why("timers and deadlines come early or late by as much, and ages that people read are wrong")
            .mend("timedatectl set-ntp true (on both machines)"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::facts::{Clock, Server, Stream};
    use super::super::finding::Severity;
    use super::*;

    fn told(server: Server) -> Vec<(&'static str, Severity)> {
        let facts = Facts { server, streams: vec![Stream::default()], ..Facts::default() };
        judge(&facts).into_iter().map(|finding| (finding.check, finding.severity)).collect()
    }

    fn sound() -> Server {
        let flushing = vec![("a".to_owned(), Flushing::Always)];
        Server { numbers: Some((2, 12)), flushing, clock: Some(Clock::default()), ..Server::default() }
    }

    #[test]
    fn a_server_that_will_do_is_not_blamed() {
        assert_eq!(told(sound()), []);
        assert_eq!(told(Server { numbers: Some((2, 9)), ..sound() }), [("server-version", Severity::Error)]);
        let none = Some("off".to_owned());
        assert_eq!(told(Server { no_jetstream: none, ..sound() }), [("jetstream", Severity::Error)]);
    }

    #[test]
    fn flushing_is_judged_where_it_is_seen_and_matters() {
        assert_eq!(told(Server { flushing: Vec::new(), ..sound() }), [("sync-interval", Severity::Note)]);
        let every =
            vec![("a".to_owned(), Flushing::Always), ("b".to_owned(), Flushing::Every(Duration::from_secs(120)))];
        let server = Server { flushing: every, ..sound() };
        assert_eq!(told(server.clone()), [("sync-interval", Severity::Warning)]);
        let mut three = Stream::default();
        three.config.num_replicas = 3;
        assert_eq!(judge(&Facts { server, streams: vec![three], ..Facts::default() }), []);
    }

    #[test]
    fn clocks_may_differ_by_what_cannot_be_measured_and_a_little() {
        let clock = |ahead, uncertain| Server { clock: Some(Clock { ahead, uncertain }), ..sound() };
        for (ahead, uncertain, expected) in [
            (250.0, 0.0, None),
            (-900.0, 700.0, None),
            (-260.0, 1.0, Some(Severity::Warning)),
            (10_200.0, 300.0, Some(Severity::Warning)),
            (10_400.0, 300.0, Some(Severity::Error)),
        ] {
            assert_eq!(told(clock(ahead, uncertain)).first().map(|told| told.1), expected, "{ahead} {uncertain}");
        }
    }
}
