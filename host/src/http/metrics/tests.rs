//! Which handlers a host tells, and how the text stands. That a real parser takes it is tested with the whole program.

use super::*;
use crate::lag::Lag;
use crate::numbers::{Latency, Numbers, Rates};
use crate::overview::Alert;

fn handler(name: &str, host: &str, ago: Option<f64>) -> Handler {
    let lag = Lag {
        stream: "ORDERS".to_owned(),
        events: 7,
        seconds: 1.5,
        rates: Some(Rates { in_rate: 2.0, out_rate: 3.0, trend: -1.0, eta_seconds: Some(7.0) }),
        ..Lag::default()
    };
    let mut buckets = Latency::default().buckets;
    buckets[0] = 3;
    buckets[14] = 1;
    Handler {
        handler: name.to_owned(),
        host: host.to_owned(),
        state: if ago.is_some_and(|ago| ago < 5.0) { "running" } else { "not-reporting" }.to_owned(),
        reported_seconds_ago: ago,
        lag: vec![lag],
        numbers: Numbers { since: 1, latency: Latency { buckets, sum: 9_000_000 }, ..Numbers::default() },
        ..Handler::default()
    }
}

fn text(overview: &Overview) -> String {
    render(Some(overview), &Own { host: "here".to_owned(), ..Own::default() }, Format::Text)
}

#[test]
fn a_handler_is_told_by_its_own_host_and_one_that_nobody_reports_by_all() {
    let handlers = vec![
        handler("mine", "here", Some(1.0)),
        handler("theirs", "there", Some(1.0)),
        handler("dead", "there", Some(12.0)),
        handler("new", "", None),
    ];
    let text = text(&Overview { handlers, ..Overview::default() });
    let lag = |line: &&str| line.starts_with("millstream_handler_lag_events{");
    assert_eq!(
        text.lines().filter(lag).collect::<Vec<_>>(),
        [
            r#"millstream_handler_lag_events{handler="mine",host="here",stream="ORDERS"} 7"#,
            r#"millstream_handler_lag_events{handler="dead",host="",stream="ORDERS"} 7"#,
            r#"millstream_handler_lag_events{handler="new",host="",stream="ORDERS"} 7"#,
        ]
    );
    assert!(
        text.contains("millstream_handler_state{handler=\"dead\",host=\"\",state=\"not-reporting\"} 1\n"),
        "{text}"
    );
    assert_eq!(text.matches("_decide_latency_seconds_count{").count(), 1, "what a dead host measured is of yesterday");
}

#[test]
fn a_histogram_adds_up() {
    let text = text(&Overview { handlers: vec![handler("mine", "here", Some(1.0))], ..Overview::default() });
    let name = "millstream_handler_decide_latency_seconds";
    let labels = r#"handler="mine",host="here""#;
    for line in [
        format!("{name}_bucket{{{labels},le=\"0.00025\"}} 3"),
        format!("{name}_bucket{{{labels},le=\"0.05\"}} 3"),
        format!("{name}_bucket{{{labels},le=\"5\"}} 3"),
        format!("{name}_bucket{{{labels},le=\"+Inf\"}} 4"),
        format!("{name}_sum{{{labels}}} 9"),
        format!("{name}_count{{{labels}}} 4"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn what_others_wrote_cannot_leave_its_label() {
    let hostile = Handler { label: "a\"} 1\nevil{x=\"\\".to_owned(), ..handler("mine", "here", Some(1.0)) };
    let text = text(&Overview { handlers: vec![hostile], ..Overview::default() });
    let line = text.lines().find(|line| line.starts_with("millstream_handler_info{")).unwrap();
    assert!(line.contains(r#"label="a\"} 1\nevil{x=\"\\""#), "{line}");
    assert!(!text.lines().any(|line| line.starts_with("evil")));
}

#[test]
fn a_server_that_does_not_answer_leaves_no_number_behind() {
    let text = render(None, &Own::default(), Format::OpenMetrics);
    assert!(text.contains("\nmillstream_overview_success 0\n") && text.ends_with("# EOF\n"), "{text}");
    assert!(!text.contains("handler=\""), "{text}");
    assert!(text.contains("# TYPE millstream_handler_events counter\n"), "{text}");
}

#[test]
fn alerts_are_told_where_their_handler_is() {
    let alert = |handler: &str| Alert { handler: handler.to_owned(), alert: "stuck".to_owned(), ..Alert::default() };
    let handlers = vec![handler("mine", "here", Some(1.0)), handler("theirs", "there", Some(1.0))];
    let alerts = vec![alert("mine"), alert("theirs"), alert("")];
    let text = text(&Overview { time: 4_000_000_000, handlers, alerts, ..Overview::default() });
    let told: Vec<&str> =
        text.lines().filter(|line| line.starts_with("millstream_alert_raised_age_seconds{")).collect();
    assert_eq!(
        told,
        [
            r#"millstream_alert_raised_age_seconds{handler="mine",host="here",alert="stuck"} 4"#,
            r#"millstream_alert_raised_age_seconds{handler="",host="",alert="stuck"} 4"#,
        ]
    );
}

#[test]
fn a_thousand_handlers_are_told_within_a_tenth_of_a_second() {
    let handlers = (0..1000).map(|number| handler(&format!("handler-{number}"), "here", Some(1.0))).collect();
    let overview = Overview { handlers, ..Overview::default() };
    let begun = std::time::Instant::now();
    let text = text(&overview);
    let took = begun.elapsed();
    println!("1,000 handlers: {} lines, {} KiB in {took:?}", text.lines().count(), text.len() >> 10);
    assert!(took < Duration::from_millis(100), "{took:?}");
}
