//! Subjects and subject filters, by the rules of NATS, and the template that `publish` makes subjects from. In: text.
//! Out: whether it is one, what it matches, the subject of an event. Pure. A filter's `*` stands for one token, a last
//! `>` for one or more. Never: asks a server.

use millstream_saga::is_subject;
use std::fmt;

use serde_json::Value;

use crate::keys;

/// What a template, or a line that it is filled from, can have wrong about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The template cannot give a subject.
    #[error("subject template {template:?} {problem}")]
    Template {
        /// The template as it was given.
        template: String,
        /// What is wrong about it.
        problem: &'static str,
    },
    /// The field's path is empty or has an empty step.
    #[error("field {field:?} is not a path of names with dots between them")]
    Field {
        /// The path as it was given.
        field: String,
    },
    /// The event lacks a field that its subject is made from.
    #[error("no field {field:?} in {line}")]
    Missing {
        /// The field's path.
        field: String,
        /// The beginning of the event.
        line: String,
    },
    /// The event has that field, but it is no text, number or boolean.
    #[error("field {field:?} is {found}, not a text, number or boolean, in {line}")]
    NotScalar {
        /// The field's path.
        field: String,
        /// What it is.
        found: &'static str,
        /// The beginning of the event.
        line: String,
    },
}

/// A filter that matches what a subject transform with this destination makes, by the mapping functions of NATS.
pub fn made_by(destination: &str) -> String {
    let mut made = Vec::new();
    for token in destination.split('.') {
        let function = token.to_ascii_lowercase();
        let makes_one = ["partition", "wildcard"].iter().any(|name| function.contains(name));
        if token.contains("{{") && !makes_one {
            // Split and slice make as many tokens as there is text for.
            made.push(">");
            break;
        }
        made.push(if token.contains("{{") || token.starts_with('$') { "*" } else { token });
    }
    made.join(".")
}

/// Whether each subject that matches `inner` also matches `outer`.
pub fn covers(outer: &str, inner: &str) -> bool {
    let mut inner = inner.split('.');
    for token in outer.split('.') {
        match (token, inner.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            (_, Some(">")) => return false,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    inner.next().is_none()
}

/// Whether some subject matches both filters.
pub fn overlaps(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(token), Some(same)) if token == same => {}
            _ => return false,
        }
    }
}

/// Whether this is a filter. A `*` or `>` inside a longer token is refused: NATS would take it literally, its writer hardly did.
pub fn is_valid_filter(filter: &str) -> bool {
    let mut tokens = filter.split('.').peekable();
    while let Some(token) = tokens.next() {
        let legal = match token {
            "*" => true,
            ">" => tokens.peek().is_none(),
            _ => is_subject(token),
        };
        if !legal {
            return false;
        }
    }
    true
}

/// A path into a JSON event: names with dots between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    path: String,
}

impl Field {
    /// Takes a path such as `payload.customer`.
    pub fn parse(path: &str) -> Result<Self, Error> {
        if path.split('.').any(str::is_empty) {
            return Err(Error::Field { field: path.to_owned() });
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The scalar at this path as text; nothing if it is absent or null.
    pub fn text(&self, event: &Value) -> Result<Option<String>, Error> {
        let found = self.path.split('.').try_fold(event, |value, name| value.get(name));
        let not_scalar =
            |found| Err(Error::NotScalar { field: self.path.clone(), found, line: beginning_of(&event.to_string()) });
        match found {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(yes)) => Ok(Some(yes.to_string())),
            Some(Value::Array(_)) => not_scalar("an array"),
            Some(Value::Object(_)) => not_scalar("an object"),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.path)
    }
}

/// A subject with fields of the event in it: `fines.{aggregateId}`, `orders.{payload.customer}.{eventType}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    filter: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(Field),
}

impl Template {
    /// Takes a template apart and checks that it can only give legal subjects.
    pub fn parse(template: &str) -> Result<Self, Error> {
        let problem = |problem| Error::Template { template: template.to_owned(), problem };
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((literal, after)) = rest.split_once('{') {
            let (field, after) = after.split_once('}').ok_or_else(|| problem("has a \"{\" without a \"}\""))?;
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(Part::Field(
                Field::parse(field).map_err(|_| problem("has a field that is not a path of names"))?,
            ));
            rest = after;
        }
        parts.push(Part::Literal(rest.to_owned()));
        parts.retain(|part| *part != Part::Literal(String::new()));
        let literals = parts.iter().filter_map(|part| match part {
            Part::Literal(literal) => Some(literal),
            Part::Field(_) => None,
        });
        if literals.into_iter().any(|literal| literal.contains('}')) {
            return Err(problem("has a \"}\" without a \"{\""));
        }
        // Escaped fields are never empty and hold no dot: with a letter in their place, the shape is the subject's own.
        let shape = render_with(&parts, |_| Ok("x".to_owned()))?;
        if !is_subject(&shape) {
            return Err(problem("is not a subject: empty tokens, blanks, \"*\" and \">\" are not allowed"));
        }
        let filter = filter_of(&render_with(&parts, |_| Ok("{".to_owned()))?);
        Ok(Self { parts, filter })
    }

    /// The subject of one event.
    pub fn render(&self, event: &Value) -> Result<String, Error> {
        render_with(&self.parts, |field| {
            let text = field.text(event)?.ok_or_else(|| missing(field, event))?;
            Ok(keys::escape_token(&text).into_owned())
        })
    }

    /// The narrowest filter that matches each subject this template can give.
    pub fn filter(&self) -> &str {
        &self.filter
    }
}

fn render_with(parts: &[Part], token: impl Fn(&Field) -> Result<String, Error>) -> Result<String, Error> {
    let mut subject = String::with_capacity(64);
    for part in parts {
        match part {
            Part::Literal(literal) => subject.push_str(literal),
            Part::Field(field) => subject.push_str(&token(field)?),
        }
    }
    Ok(subject)
}

fn filter_of(marked: &str) -> String {
    let tokens: Vec<&str> = marked.split('.').map(|token| if token.contains('{') { "*" } else { token }).collect();
    tokens.join(".")
}

fn missing(field: &Field, event: &Value) -> Error {
    Error::Missing { field: field.path.clone(), line: beginning_of(&event.to_string()) }
}

/// As much of a line, or of a subject, as an error message bears.
pub(crate) fn beginning_of(line: &str) -> String {
    const LETTERS: usize = 120;
    let mut beginning: String = line.chars().take(LETTERS).collect();
    if beginning.len() < line.len() {
        beginning.push('…');
    }
    beginning
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use millstream_saga::subject_matches;

    use super::*;

    #[test]
    fn a_transform_makes_what_its_destination_says() {
        let table = [
            ("orders.{{partition(3,1)}}.{{wildcard(1)}}.placed", "orders.*.*.placed"),
            ("lanes.{{Partition(3, 1)}}.>", "lanes.*.>"),
            ("orders.$1.new", "orders.*.new"),
            ("orders.{{split(1,-)}}.new", "orders.>"),
            ("orders.new", "orders.new"),
        ];
        for (destination, expected) in table {
            assert_eq!(made_by(destination), expected, "{destination}");
        }
    }

    #[test]
    fn a_filter_matches_by_tokens() {
        let table = [
            ("orders.placed", "orders.placed", true),
            ("orders.placed", "orders.place", false),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders", false),
            ("orders.*", "orders.a.b", false),
            ("orders.>", "orders.a.b", true),
            ("orders.>", "orders", false),
            (">", "a", true),
            ("*", "a.b", false),
            ("*.b", "a.b", true),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b.d", false),
        ];
        for (filter, subject, expected) in table {
            assert_eq!(subject_matches(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn filters_overlap_and_cover() {
        let table = [
            ("a", "a", true, true),
            ("a.>", "a.b.c", true, true),
            ("a.>", "a.*", true, true),
            ("a.*", "a.>", true, false),
            ("a.*", "*.b", true, false),
            ("*.*", "a.*", true, true),
            (">", ">", true, true),
            (">", "a.>", true, true),
            ("a.>", "a", false, false),
            ("a.*.c", "a.b.*", true, false),
            ("a.*.c", "a.b.d", false, false),
            ("a.b", "*.b", true, false),
            ("*", ">", true, false),
        ];
        for (one, other, overlap, cover) in table {
            assert_eq!(overlaps(one, other), overlap, "{one} {other}");
            assert_eq!(overlaps(other, one), overlap, "{other} {one}");
            assert_eq!(covers(one, other), cover, "{one} covers {other}");
        }
    }

    #[test]
    fn filters_and_subjects_are_checked() {
        for filter in ["a", "a.b", "*", ">", "a.*.b.>", "ä.b", "$JS.API.>"] {
            assert!(is_valid_filter(filter), "{filter}");
        }
        for filter in ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", "a*", "a.b>", "a\n"] {
            assert!(!is_valid_filter(filter), "{filter:?}");
        }
        assert!(is_subject("a.b") && !is_subject("a.*") && !is_subject(">"));
    }

    #[test]
    fn a_template_is_filled_from_the_event() {
        let event =
            json!({"aggregateId": "S38735", "n": 7, "yes": true, "payload": {"customer": "a.b c"}, "empty": ""});
        let table = [
            ("fines.{aggregateId}", "fines.S38735", "fines.*"),
            ("fines", "fines", "fines"),
            ("{n}.{yes}", "7.true", "*.*"),
            ("o.{payload.customer}.placed", "o.a=2Eb=20c.placed", "o.*.placed"),
            ("o.c-{n}{yes}.x", "o.c-7true.x", "o.*.x"),
            ("o.{empty}", "o.=", "o.*"),
        ];
        for (template, subject, filter) in table {
            let template = Template::parse(template).unwrap();
            assert_eq!(template.render(&event).as_deref(), Ok(subject));
            assert_eq!(template.filter(), filter);
        }
    }

    #[test]
    fn a_bad_template_is_refused() {
        for template in
            ["", "a.{b", "a.{}", "a.{b..c}", "a.b}", "a..{b}", "a.*", "a.>.{b}", "a b.{c}", "{a}.", "a.{b}}"]
        {
            assert!(Template::parse(template).is_err(), "{template:?}");
        }
    }

    #[test]
    fn an_event_without_the_field_is_named() {
        let template = Template::parse("a.{b.c}").unwrap();
        let text = |event: Value| template.render(&event).unwrap_err().to_string();
        assert_eq!(text(json!({"b": 1})), r#"no field "b.c" in {"b":1}"#);
        assert_eq!(text(json!({"b": {"c": null}})), r#"no field "b.c" in {"b":{"c":null}}"#);
        assert!(text(json!({"b": {"c": []}})).starts_with(r#"field "b.c" is an array"#));
        assert!(text(json!({"long": "x".repeat(500)})).ends_with('…'));
    }

    proptest! {
        // Overlap and cover against their definitions, over all subjects of up to four tokens from three names.
        #[test]
        fn overlap_and_cover_agree_with_matching(one in "([ab*]\\.){0,2}[ab*>]", other in "([ab*]\\.){0,2}[ab*>]") {
            let mut subjects: Vec<String> = Vec::new();
            let mut longest = vec![String::new()];
            for _ in 0..4 {
                longest = longest.iter().flat_map(|start| ["a", "b", "c"].map(|token| format!("{start}.{token}"))).collect();
                subjects.extend(longest.iter().map(|subject| subject.trim_start_matches('.').to_owned()));
            }
            let both = subjects.iter().any(|s| subject_matches(&one, s) && subject_matches(&other, s));
            prop_assert_eq!(overlaps(&one, &other), both);
            let all = subjects.iter().filter(|s| subject_matches(&other, s)).all(|s| subject_matches(&one, s));
            prop_assert_eq!(covers(&one, &other), all);
        }
    }
}
