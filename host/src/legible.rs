//! Texts that others wrote (keys, labels, reasons) as a terminal may show them, and numbers as people read them. In: any text, any
//! number. Out: one line without controls, of bounded width. Pure. Never: changes a text that is legible and fits; `--json` has all of them as they are.

use std::borrow::Cow;

/// The text in one line: what would move the cursor, colour the screen or turn the direction of writing is written out.
#[must_use]
pub fn legible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_hidden(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// The same, of at most `width` characters, the last one a sign that there are more.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    // What is far behind the end need not be written out.
    let end = text.char_indices().nth(width + 1).map_or(text.len(), |(place, _)| place);
    let shown = legible(text.get(..end).unwrap_or_default());
    if shown.chars().count() <= width {
        return shown.into_owned();
    }
    shown.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `1234567` as `1,234,567`.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something, in the words for one or for more: `1 key is`, `2 keys are`.
#[must_use]
pub fn counted(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { more })
}

/// Seconds in the unit that people would use.
#[must_use]
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0 s".to_owned(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// Controls, line separators, and marks of direction.
pub(crate) fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (text, shown) in [
            ("o-1", "o-1"),
            ("Größe 1 \"ü\" \\", "Größe 1 \"ü\" \\"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{1b}[31mred\0\u{9b}", "\\u{1b}[31mred\\u{0}\\u{9b}"),
            ("safe\u{202e}fdp", "safe\\u{202e}fdp"),
        ] {
            assert_eq!(legible(text), shown);
        }
    }

    #[test]
    fn long_texts_end_in_a_sign() {
        assert_eq!(cut("abcd", 4), "abcd");
        assert_eq!(cut("abcde", 4), "abc…");
        assert_eq!(cut(&"ü".repeat(1024), 4), "üüü…");
        assert_eq!(cut("\u{1b}\u{1b}", 4), "\\u{…");
    }

    #[test]
    fn numbers_read_well() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        for (number, text) in [(0, "0 keys are"), (1, "1 key is"), (1234, "1,234 keys are")] {
            assert_eq!(counted(number, "key is", "keys are"), text);
        }
        for (seconds, text) in [(0.0, "0 s"), (0.25, "0.2 s"), (42.0, "42 s"), (600.0, "10 min"), (9000.0, "2 h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
