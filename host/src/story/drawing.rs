//! A story for people. In: the story. Out: a tree with aligned columns. Pure. Never: a line of more than 120
//! characters, or a meaning that only colour carries.

use millstream_saga::{DEADLINE, RETRY};

use super::{Chapter, Deed, Kind, Outcome, Story};
use crate::clock;
use crate::legible::{cut, legible};
use crate::timers;

/// Widest line.
const WIDTH: usize = 120;

/// Widest id; `--json` has all of it.
const ID: usize = 26;

/// Widest name in the tree.
const NAME: usize = 32;

/// Widest key in the head.
const KEY: usize = 60;

/// A line of the tree.
struct Line {
    time: String,
    tree: String,
    told: String,
    id: String,
    tone: Tone,
}

/// How a line stands out on a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tone {
    Event,
    Trouble,
    Effect,
}

/// Draws it. `paint`: with colour.
#[must_use]
pub fn draw(story: &Story, paint: bool) -> String {
    let mut text = head(story);
    text.push('\n');
    text.push_str(&tree(story, paint));
    if !story.missing.is_empty() {
        text.push_str("\nnot found:\n");
        for sentence in &story.missing {
            for line in wrapped(sentence, WIDTH - 2) {
                text.push_str(&format!("  {line}\n"));
            }
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn head(story: &Story) -> String {
    let reason = story.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let mut modules: Vec<&str> = story.events.iter().map(|chapter| &*chapter.digest).collect();
    modules.dedup();
    let mut lines = vec![format!("{} {}  {}{reason}", story.handler, cut(&story.key, KEY), story.status)];
    if let Some(state) = &story.state {
        lines.push(format!("state        {}", state.get()));
    }
    lines.push(format!("correlation  {}", story.correlation));
    lines.push(format!("module       {}", modules.join(", then ")));
    if let Some(first) = story.events.first() {
        lines.push(format!("begun        {}", first.at));
    }
    if story.late > 0 {
        lines.push(format!("late events  {}", story.late));
    }
    let mut head = String::new();
    for line in lines {
        head.push_str(&cut(&line, WIDTH));
        head.push('\n');
    }
    head
}

fn tree(story: &Story, paint: bool) -> String {
    let begun = story.events.first().and_then(|chapter| clock::read(&chapter.at)).unwrap_or_default();
    let mut lines = vec![Line::title()];
    let mut module = story.events.first().map_or("", |chapter| &*chapter.digest);
    for (number, chapter) in story.events.iter().enumerate() {
        let is_last = number + 1 == story.events.len();
        let changed = (chapter.digest != module).then_some(&*chapter.digest);
        module = &chapter.digest;
        lines.push(event(chapter, is_last, begun, changed, &story.handler));
        for (number, deed) in chapter.effects.iter().enumerate() {
            let stem = if is_last { "   " } else { "│  " };
            let branch = if number + 1 == chapter.effects.len() { "└─" } else { "├─" };
            lines.push(effect(deed, &format!("{stem}{branch}"), begun, &story.handler));
        }
    }
    aligned(lines, paint)
}

impl Line {
    fn title() -> Self {
        let [time, tree, told, id] = ["TIME", "WHAT", "WHAT CAME OF IT", "ID"].map(str::to_owned);
        Self { time, tree, told, id, tone: Tone::Effect }
    }
}

fn event(chapter: &Chapter, is_last: bool, begun: i64, module: Option<&str>, handler: &str) -> Line {
    let branch = if is_last { "└─" } else { "├─" };
    let name = match &*chapter.event_type {
        timers::TYPE if chapter.event.ends_with(DEADLINE) => "(deadline)",
        timers::TYPE if chapter.event.ends_with(RETRY) => "(wait is over)",
        timers::TYPE if chapter.did.starts_with("resume") => "(resume)",
        timers::TYPE => "(timer)",
        name => name,
    };
    let module = module.map(|module| format!("; now module {module}")).unwrap_or_default();
    let trouble = ["no answer", "rejected", "late", "failed"].iter().any(|word| chapter.did.contains(word));
    Line {
        time: clock::read(&chapter.at).map(|at| offset(at - begun)).unwrap_or_default(),
        tree: format!("{branch} {}", cut(name, NAME)),
        told: format!("{}{module}", chapter.did),
        id: short(&chapter.event, handler),
        tone: if trouble { Tone::Trouble } else { Tone::Event },
    }
}

fn effect(deed: &Deed, branch: &str, begun: i64, handler: &str) -> Line {
    let name = match deed.kind {
        Kind::Timer => format!("timer {}", deed.name),
        Kind::Command | Kind::Undo | Kind::Event => deed.name.clone(),
    };
    let mut what = match (deed.kind, &deed.step) {
        (Kind::Undo, Some(step)) => format!("undo of {step}"),
        (_, Some(step)) => format!("step {step}"),
        (Kind::Timer, None) => deed.due.as_deref().map(|due| format!("due {}", second(due))).unwrap_or_default(),
        (Kind::Event, None) => "event".to_owned(),
        (Kind::Command | Kind::Undo, None) => "command".to_owned(),
    };
    if let Some(attempt) = deed.attempt.filter(|attempt| *attempt > 1) {
        what.push_str(&format!(" #{attempt}"));
    }
    let outcome = match &deed.outcome {
        Outcome::Answered { event_type, after_ms: Some(ms), .. } => {
            let after = if *ms < 1000 { format!("{ms} ms") } else { offset(ms * 1_000_000) };
            format!(": {event_type} after {}", after.trim_start_matches('+'))
        }
        Outcome::Answered { event_type, .. } => format!(": {event_type}"),
        Outcome::NoAnswer => ": no answer in time".to_owned(),
        Outcome::Waits if deed.kind == Kind::Timer => ", set".to_owned(),
        Outcome::Waits => ": waits for an answer".to_owned(),
        Outcome::Unknown => ": no answer found".to_owned(),
        Outcome::Sent => String::new(),
        Outcome::Fired => ", came".to_owned(),
        Outcome::Cancelled => ", taken back".to_owned(),
    };
    let place = match &deed.place {
        Some(place) if deed.step.is_none() => format!(" to {}", place.subject),
        None if deed.kind != Kind::Timer => " (in no stream)".to_owned(),
        _ => String::new(),
    };
    let trouble = deed.outcome == Outcome::NoAnswer || deed.kind == Kind::Undo;
    Line {
        time: deed.at.as_deref().and_then(clock::read).map(|at| offset(at - begun)).unwrap_or_default(),
        tree: format!("{branch} {}", cut(&name, NAME)),
        told: format!("{what}{outcome}{place}"),
        id: short(&deed.id, handler),
        tone: if trouble { Tone::Trouble } else { Tone::Effect },
    }
}

fn aligned(mut lines: Vec<Line>, paint: bool) -> String {
    let widest = |column: fn(&Line) -> &String, lines: &[Line]| {
        lines.iter().map(|line| column(line).chars().count()).max().unwrap_or_default()
    };
    let time = widest(|line| &line.time, &lines);
    let tree = widest(|line| &line.tree, &lines);
    let id = widest(|line| &line.id, &lines);
    let room = WIDTH.saturating_sub(time + tree + id + 6);
    for line in &mut lines {
        line.told = cut(&line.told, room);
    }
    let told = widest(|line| &line.told, &lines);
    let mut text = String::new();
    for line in &lines {
        let Line { time: at, tree: name, told: what, id: named, .. } = line;
        let (start, middle) = (format!("{at:>time$}  "), format!("{name:<tree$}  {what:<told$}"));
        let end = format!("  {named}");
        if paint {
            let (on, off) = match line.tone {
                Tone::Event => ("\u{1b}[1m", "\u{1b}[0m"),
                Tone::Trouble => ("\u{1b}[33m", "\u{1b}[0m"),
                Tone::Effect => ("", ""),
            };
            text.push_str(&format!("\u{1b}[2m{start}\u{1b}[0m{on}{middle}{off}\u{1b}[2m{end}\u{1b}[0m\n"));
        } else {
            text.push_str(format!("{start}{middle}{end}").trim_end());
            text.push('\n');
        }
    }
    text
}

/// Time since the beginning, in the unit that people would use.
fn offset(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { '-' } else { '+' };
    match nanoseconds.unsigned_abs() / 1_000_000 {
        ms if ms < 10_000 => format!("{sign}{}.{:03} s", ms / 1000, ms % 1000),
        ms if ms < 120_000 => format!("{sign}{}.{} s", ms / 1000, ms % 1000 / 100),
        ms if ms < 7_200_000 => format!("{sign}{} min", ms / 60_000),
        ms if ms < 172_800_000 => format!("{sign}{} h", ms / 3_600_000),
        ms => format!("{sign}{} d", ms / 86_400_000),
    }
}

/// An RFC 3339 time without its fraction.
fn second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

/// An id that one can tell apart: of the handler's own only the first eight of 32 digits.
fn short(id: &str, handler: &str) -> String {
    let own = id.strip_prefix(handler).and_then(|rest| rest.strip_prefix('.'));
    let short = match own.and_then(|rest| rest.split_at_checked(32)) {
        Some((digits, rest)) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            format!("{}{rest}", digits.get(..8).unwrap_or_default())
        }
        _ => id.to_owned(),
    };
    cut(&short, ID)
}

/// Lines of at most so many characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let text = legible(text);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            *line = cut(word, width);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(cut(word, width));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::story::telling::tests::sources;

    #[test]
    fn the_tree_is_aligned() {
        let expected = [
            "h o-1  compensated: no money",
            r#"state        {"cents":5}"#,
            "correlation  e1",
            "module       0123456789ab",
            "begun        2026-01-01T00:00:00.000Z",
            "",
        ];
        let text = draw(&sources().tell(), false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..6], expected);
        let trees: Vec<String> = lines[6..].iter().map(|line| line.chars().skip(10).collect()).collect();
        let words = |line: &str| {
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words(&trees[2]), ["│", "├─ timer abandoned", "due 2026-01-02T00:00:00Z, taken back", "h.ee"]);
        assert_eq!(words(&trees[3]), ["│", "└─ Reserve", "step reserve: Reserved after 5 ms", "h.aa"]);
        assert_eq!(words(&trees[5]), ["│", "└─ Charge", "step charge: no answer in time", "h.bb"]);
        assert_eq!(
            words(&trees[6]),
            ["├─ (deadline)", "step charge: no answer within 1 s, attempt 1", "h.bb.deadline"]
        );
        assert_eq!(words(&trees[8]), ["│", "└─ Charge", "step charge #2: Declined after 8 ms", "h.bb.2"]);
        assert_eq!(words(&trees[10]), ["│", "└─ Release", "undo of reserve: Released after 8 ms", "h.aa.undo"]);
        assert_eq!(words(&trees[11]), ["└─ Released", "step reserve undone; compensated", "r3"]);
        let column = |line: &str, text: &str| line.split(text).next().map(|before| before.chars().count());
        assert_eq!(column(lines[7], "begin"), column(lines[6], "WHAT CAME"), "{text}");
        assert_eq!(column(lines[7], "e1"), column(lines[6], "ID"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let mut sources = sources();
        let long = "very long ".repeat(30);
        sources.transitions[1].did.clone_from(&long);
        sources.transitions[0].event_type = "X".repeat(300);
        sources.transitions[2].event = "y".repeat(300);
        sources.instance.reason = Some(format!("a\nb {long}"));
        sources.key = "k\u{1b}".repeat(500);
        sources.gaps = vec![format!("\u{1b}[2J {long}")];
        let text = draw(&sources.tell(), false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let head = text.lines().next().unwrap();
        assert!(head.ends_with('…') && head.contains("…  compensated: a\\nb"), "{head}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn colour_changes_no_character() {
        let story = sources().tell();
        let painted = draw(&story, true);
        let mut plain = String::new();
        let mut rest = painted.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        plain.push_str(rest);
        let plain: Vec<&str> = plain.lines().map(str::trim_end).collect();
        assert_eq!(plain, draw(&story, false).lines().collect::<Vec<_>>());
        assert_ne!(painted, draw(&story, false));
    }

    #[test]
    fn ids_and_times_are_short_and_can_be_told_apart() {
        let digits = "0123456789abcdef0123456789abcdef";
        for (id, expected) in [
            (format!("h.{digits}"), "01234567"),
            (format!("h.{digits}.undo.2"), "01234567.undo.2"),
            (format!("x.{digits}"), "x.0123456789abcdef0123456…"),
            ("order-1".to_owned(), "order-1"),
            ("h.short".to_owned(), "h.short"),
        ] {
            assert_eq!(short(&id, "h"), expected);
        }
        for (ms, expected) in
            [(0, "+0.000 s"), (-5, "-0.005 s"), (12_345, "+12.3 s"), (300_000, "+5 min"), (86_400_000, "+24 h")]
        {
            assert_eq!(offset(ms * 1_000_000), expected);
        }
    }
}
