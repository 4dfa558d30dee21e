//! The drains as a picture. In: all runs. Out: an SVG with a bar for each row, readable on light and on dark ground.

use std::fmt::Write as _;

use crate::figures::middle;
use crate::report::Drains;

const WIDTH: f64 = 720.0;
const LABELS: f64 = 150.0;
const FIGURES: f64 = 170.0;
const BAR: f64 = 22.0;
const STEP: f64 = 30.0;

/// Draws median rates, each group with the share of its floor.
pub(crate) fn svg(drains: &[Drains], title: &str) -> String {
    let rate = |runs: &[crate::world::Run]| middle(runs.iter().map(crate::world::Run::rate)).0;
    let most = drains.iter().map(|drains| rate(&drains.bare)).fold(1.0, f64::max);
    let mut bars = String::new();
    let mut y = 44.0;
    for drains in drains {
        let _ = write!(bars, r#"<text class="group" x="0" y="{:.0}">{} keys</text>"#, y + 14.0, drains.spread.name());
        y += 24.0;
        let floor = rate(&drains.bare);
        for (name, runs, class) in [
            ("bare drain (floor)", &drains.bare, "floor"),
            ("native", &drains.native, "ours"),
            ("wasm", &drains.wasm, "ours"),
            ("get, put, ack", &drains.plain, "plain"),
        ] {
            let rate = rate(runs);
            let width = ((WIDTH - LABELS - FIGURES) * rate / most).max(1.0);
            let middle = y + BAR / 2.0 + 4.5;
            let _ = write!(
                bars,
                r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{name}</text><rect class="{class}" x="{LABELS}" y="{y:.0}" width="{width:.1}" height="{BAR}"/><text x="{:.1}" y="{middle:.0}">{:.0}k/s, {:.2} of the floor</text>"#,
                LABELS - 10.0,
                LABELS + width + 8.0,
                rate / 1e3,
                rate / floor,
            );
            y += STEP;
        }
        y += 12.0;
    }
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y:.0}" width="{width}" height="{y:.0}" role="img" aria-label="{title}">"#,
            "<style>text{{font:13px system-ui,sans-serif;fill:#1f2328}}.title{{font-size:15px;font-weight:600}}.group{{font-weight:600}}",
            ".floor{{fill:#9aa4af}}.ours{{fill:#0f766e}}.plain{{fill:#b45309}}",
            "@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.floor{{fill:#6e7781}}.ours{{fill:#2dd4bf}}.plain{{fill:#f59e0b}}}}</style>",
            r#"<text class="title" x="0" y="18">{title}</text>{bars}</svg>"#,
            "\n"
        ),
        width = WIDTH,
        y = y,
        title = title,
        bars = bars,
    )
}
