//! `millstream doctor`: what will hurt later, and what mends it. In: a server, with or without a host running. Out: findings, the worst
//! first; exit code 1 where one of them is an error or a warning, 0 where there are only notes, or none. Never: mends anything.

use clap::Args;

use super::{Fault, connect, output};
use crate::doctor::{self, Ask, Error, Finding, Severity};

/// Check server, streams and permissions before it matters.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// A server's monitoring address, such as http://127.0.0.1:8222, to see when it flushes to disk; may be given several times
    #[arg(long = "monitor", value_name = "URL")]
    monitors: Vec<String>,
    /// This is not the user of a host: leave out what a host needs of him
    #[arg(long)]
    not_a_host: bool,
}

impl Doctor {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        // A server that is too old is a finding like others, so it is not turned away before.
        let client = super::connected(connection).await?;
        let ask = Ask { monitors: self.monitors, as_host: !self.not_a_host };
        let facts = doctor::gather(&client, &ask).await.map_err(|error| match error {
            Error::Monitor { .. } => {
                Fault::usage(error).hint("name the address that nats-server was given with `http_port` or `-m`")
            }
            Error::Unreachable(_) => Fault::failed(error).hint("try `nats account info` against the same server"),
        })?;
        let findings = doctor::judge(&facts);
        for finding in &findings {
            match json {
                true => output::json(finding)?,
                false => output::line(&drawn(finding))?,
            }
        }
        if findings.is_empty() && !json {
            let (streams, handlers) = (facts.streams.len(), facts.handlers.len());
            eprintln!("nothing found: {streams} streams and {handlers} handlers are as they should be");
        }
        verdict(&findings)
    }
}

/// A finding for people: what, then why and what to do, each on a line that can be copied.
fn drawn(finding: &Finding) -> String {
    let Finding { severity, check, thing, problem, why, mend } = finding;
    let legible = |text: &str| output::legible(text).into_owned();
    format!(
        "{:<8}{} ({check})\n        {}\n        why:  {}\n        mend: {}\n",
        severity.in_words(),
        legible(thing),
        legible(problem),
        legible(why),
        legible(mend)
    )
}

fn verdict(findings: &[Finding]) -> Result<(), Fault> {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let told = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if errors + warnings == 0 {
        return Ok(());
    }
    let error = anyhow::anyhow!("found {} and {}", told(errors, "error"), told(warnings, "warning"));
    Err(Fault::failed(error).hint("do what stands after `mend:`, the first finding first, and look again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        let text = |text: &str| text.to_owned();
        let (thing, problem, why, mend) =
            (text("stream S"), text("it is full"), text("so"), text("nats stream edit S -f"));
        Finding { severity, check: "full", thing, problem, why, mend }
    }

    #[test]
    fn notes_are_no_failure() {
        assert!(verdict(&[]).is_ok() && verdict(&[finding(Severity::Note)]).is_ok());
        let both = [finding(Severity::Warning), finding(Severity::Error), finding(Severity::Error)];
        let fault = verdict(&both).unwrap_err();
        assert_eq!(fault.code(), 1);
        assert!(fault.to_string().starts_with("error: found 2 errors and 1 warning\nhint: "), "{fault}");
    }

    #[test]
    fn a_finding_is_a_paragraph() {
        assert_eq!(
            drawn(&finding(Severity::Warning)),
            "warning stream S (full)\n        it is full\n        why:  so\n        mend: nats stream edit S -f\n"
        );
    }
}
