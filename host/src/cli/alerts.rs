//! `millstream alerts`: what somebody should look at. In: the alerts that hosts have raised, with figures of now. Out: a row for each,
//! the oldest first, and a word where no host watches; with `--check`, exit code 1 for either. Never: raises or clears one.

use async_nats::jetstream;
use clap::Args;

use super::{Fault, connect, output, versions};
use crate::names;
use crate::overview::{self, Alert, Overview};

/// List the alerts that are raised.
#[derive(Debug, Args)]
pub(super) struct Alerts {
    /// Only of these handlers.
    handlers: Vec<String>,
    /// Exit with 1 if there are any, or no host watches.
    #[arg(long)]
    check: bool,
}

impl Alerts {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let mut overview = overview::read(&jetstream).await?;
        let is_known = |name: &&String| {
            **name == names::alert_owner("") || overview.handlers.iter().any(|handler| handler.handler == **name)
        };
        if let Some(unknown) = self.handlers.iter().find(|name| !is_known(name)) {
            return Err(versions::not_deployed(unknown));
        }
        let is_asked = |alert: &Alert| self.handlers.iter().any(|name| name == names::alert_owner(&alert.handler));
        overview.alerts.retain(|alert| self.handlers.is_empty() || is_asked(alert));
        let (alerts, blind) = (&overview.alerts, nobody_watches(&overview));
        if json {
            alerts.iter().try_for_each(output::json)?;
        } else if !alerts.is_empty() {
            output::line(&table(alerts, overview.time))?;
        } else if blind.is_none() {
            eprintln!("no alerts");
        }
        let told: Vec<String> =
            (!alerts.is_empty()).then(|| summary(alerts)).into_iter().chain(blind.clone()).collect();
        if self.check && !told.is_empty() {
            let hint = if blind.is_some() { BLIND } else { "docs/alerts.md says what each means and what to do" };
            return Err(Fault::failed(anyhow::anyhow!("{}", told.join("; "))).hint(hint));
        }
        if let Some(blind) = blind {
            eprintln!("warning: {blind}\nhint: {BLIND}");
        }
        Ok(())
    }
}

/// What to do where nobody watches.
const BLIND: &str =
    "start a host with `millstream run`; `millstream lag --max-lag 1000 --max-age 30s` checks without one";

/// Alerts are raised and cleared by hosts; where there is none, what is listed is what there was.
fn nobody_watches(overview: &Overview) -> Option<String> {
    if !overview.hosts.is_empty() {
        return None;
    }
    let last = overview.handlers.iter().filter_map(|handler| handler.reported_seconds_ago).reduce(f64::min);
    let since = last.map_or("no host has ever reported".to_owned(), |ago| {
        format!("the last word of a host is {} old", output::duration(ago))
    });
    Some(format!("no host watches, so no alert is raised or cleared: {since}"))
}

/// What is the matter stands last and whole, for it may end in a hint.
fn table(alerts: &[Alert], now: i64) -> String {
    let row = |alert: &Alert| {
        let since = output::duration((now - alert.since) as f64 / 1e9);
        vec![names::alert_owner(&alert.handler).to_owned(), alert.alert.clone(), since]
    };
    let table = output::table(&["HANDLER", "ALERT", "SINCE"], &[2], alerts.iter().map(row).collect());
    let texts = std::iter::once("WHAT".into()).chain(alerts.iter().map(|alert| output::legible(&alert.text)));
    let lines: Vec<String> = table.lines().zip(texts).map(|(line, text)| format!("{line}  {text}")).collect();
    lines.join("\n")
}

/// All of them in a line.
pub(super) fn summary(alerts: &[Alert]) -> String {
    let told = alerts.iter().map(|alert| format!("{} {}", names::alert_owner(&alert.handler), alert.alert));
    let (count, told) = (alerts.len(), told.collect::<Vec<_>>().join(", "));
    format!("{count} alert{}: {}", if count == 1 { "" } else { "s" }, output::cut(&told, 200))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::Handler;

    #[test]
    fn a_table_and_a_line_tell_of_them() {
        let alert = |handler: &str, alert: &str, text: &str| Alert {
            handler: handler.to_owned(),
            alert: alert.to_owned(),
            since: 0,
            text: text.to_owned(),
            ..Alert::default()
        };
        let one = [alert("chain", "stuck", "5 events wait\u{1b}[2J")];
        assert_eq!(
            table(&one, 42_000_000_000),
            "HANDLER  ALERT  SINCE  WHAT\nchain    stuck   42 s  5 events wait\\u{1b}[2J"
        );
        let long = [alert("chain", "failing", &format!("{}; hint: look", "why ".repeat(100)))];
        assert!(table(&long, 0).ends_with("; hint: look"), "it is not cut");
        assert_eq!(summary(&one), "1 alert: chain stuck");
        let two = [alert("", "storage-near-limit", ""), alert("b", "lag", "")];
        assert_eq!(summary(&two), "2 alerts: MILLSTREAM_ACCOUNT storage-near-limit, b lag");
    }

    #[test]
    fn where_no_host_is_nobody_watches() {
        let mut overview = Overview::default();
        let never = "no host watches, so no alert is raised or cleared: no host has ever reported";
        assert_eq!(nobody_watches(&overview).as_deref(), Some(never), "nothing is deployed");
        overview.handlers =
            vec![Handler::default(), Handler { reported_seconds_ago: Some(42.0), ..Handler::default() }];
        let told = "no host watches, so no alert is raised or cleared: the last word of a host is 42 s old";
        assert_eq!(nobody_watches(&overview).as_deref(), Some(told));
        overview.handlers.truncate(1);
        assert_eq!(nobody_watches(&overview).as_deref(), Some(never));
        overview.hosts = vec!["h1".to_owned()];
        assert_eq!(nobody_watches(&overview), None);
    }
}
