//! Progress of long work. In: how much is done of how much. Out: on stderr a bar on a terminal, else a line every few
//! seconds. Never: colour, or stdout.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const PLAIN_LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress of one piece of work.
#[derive(Debug)]
pub struct Progress {
    label: &'static str,
    total: Option<u64>,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// Work of `total` steps; nothing if nobody knows how many.
    pub fn new(label: &'static str, total: Option<u64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| bar(label, total));
        Self { label, total, bar, last_line: Instant::now() }
    }

    /// How far the work is, and what to say about it.
    pub fn set(&mut self, done: u64, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(text());
        } else if self.last_line.elapsed() >= PLAIN_LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!("{}", plain_line(self.label, done, self.total, &text()));
        }
    }

    /// Something to know, above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away. What came of the work is for the caller to say.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(label: &'static str, total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template =
        if total.is_some() { "{prefix} [{bar:30}] {percent}% {msg} ({eta} left)" } else { "{prefix} {spinner} {msg}" };
    // The template is a constant; should it not parse, the default look serves too.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(label);
    bar
}

fn plain_line(label: &str, done: u64, total: Option<u64>, text: &str) -> String {
    match total.filter(|total| *total > 0) {
        Some(total) => format!("{label} {}% {text}", done.min(total).saturating_mul(100) / total),
        None => format!("{label} {text}"),
    }
}

/// A number with a comma between each three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// So many in that time, per second: `108k/s`, `950/s`.
pub fn rate(count: u64, time: Duration) -> String {
    let per_second = count as f64 / time.as_secs_f64().max(1e-3);
    if per_second >= 10_000.0 { format!("{:.0}k/s", per_second / 1000.0) } else { format!("{per_second:.0}/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let table = [(0, "0"), (999, "999"), (1000, "1,000"), (561_470, "561,470"), (1_234_567, "1,234,567")];
        for (number, text) in table {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn rates_and_lines_are_short() {
        assert_eq!(rate(561_470, Duration::from_millis(5200)), "108k/s");
        assert_eq!(rate(950, Duration::from_secs(1)), "950/s");
        assert_eq!(rate(0, Duration::ZERO), "0/s");
        assert_eq!(plain_line("publish", 50, Some(200), "x"), "publish 25% x");
        assert_eq!(plain_line("publish", 50, None, "x"), "publish x");
        assert_eq!(plain_line("publish", 5, Some(0), "x"), "publish x");
    }
}
