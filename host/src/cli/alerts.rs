//! `millstream alerts`: what somebody should look at. In: the alerts that hosts have raised. Out: a row for each, the oldest first; with
//! `--check`, exit code 1 if there are any. Never: raises or clears one.

use async_nats::jetstream;
use clap::Args;

use super::{Fault, connect, output};
use crate::board;
use crate::clock;
use crate::names;
use crate::overview::Alert;

/// List the alerts that are raised.
#[derive(Debug, Args)]
pub(super) struct Alerts {
    /// Only of these handlers.
    handlers: Vec<String>,
    /// Exit with 1 if there are any.
    #[arg(long)]
    check: bool,
}

impl Alerts {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let mut alerts = board::alerts(&jetstream).await?;
        alerts.retain(|alert| self.handlers.is_empty() || self.handlers.contains(&alert.handler));
        if json {
            alerts.iter().try_for_each(output::json)?;
        } else if alerts.is_empty() {
            eprintln!("no alerts");
        } else {
            output::line(&table(&alerts, clock::now()))?;
        }
        if self.check && !alerts.is_empty() {
            return Err(Fault::failed(anyhow::anyhow!("{}", summary(&alerts)))
                .hint("docs/alerts.md says what each means and what to do"));
        }
        Ok(())
    }
}

fn table(alerts: &[Alert], now: i64) -> String {
    let row = |alert: &Alert| {
        let since = output::duration((now - alert.since) as f64 / 1e9);
        let handler = names::alert_owner(&alert.handler).to_owned();
        vec![handler, alert.alert.clone(), since, alert.text.clone()]
    };
    output::table(&["HANDLER", "ALERT", "SINCE", "WHAT"], &[2], alerts.iter().map(row).collect())
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

    #[test]
    fn a_table_and_a_line_tell_of_them() {
        let alert = |handler: &str, alert: &str, text: &str| Alert {
            handler: handler.to_owned(),
            alert: alert.to_owned(),
            since: 0,
            text: text.to_owned(),
        };
        let one = [alert("chain", "stuck", "5 events wait\u{1b}[2J")];
        assert_eq!(
            table(&one, 42_000_000_000),
            "HANDLER  ALERT  SINCE  WHAT\nchain    stuck   42 s  5 events wait\\u{1b}[2J"
        );
        assert_eq!(summary(&one), "1 alert: chain stuck");
        let two = [alert("", "storage-near-limit", ""), alert("b", "lag", "")];
        assert_eq!(summary(&two), "2 alerts: MILLSTREAM_ACCOUNT storage-near-limit, b lag");
    }
}
