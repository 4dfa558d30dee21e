//! Names for NATS: any text in, a legal key of a KV bucket or a legal subject token out, and back again. Pure. Never:
//! loses anything.
//!
//! One rule. The UTF-8 bytes outside `[A-Za-z0-9_/.-]`, and `=` itself, become `=XX` (upper-case hex). A dot is escaped
//! where it would make an empty token (first, last, after another dot), and everywhere in a subject token. The `_` of a
//! leading `_kv`, which NATS reserves, is escaped too. The empty text is a lone `=`. So usual ids (`C42`,
//! `order-1.line-2`, UUIDs) stay as they are.

use std::borrow::Cow;

/// What a name can have wrong about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text has an escape that is broken, or is not in the one form that escaping gives.
    #[error("key {key:?} is not an escaped name: this text would be escaped as {expected:?}")]
    NotCanonical {
        /// What was to be unescaped.
        key: String,
        /// How its meaning is written.
        expected: String,
    },
    /// An `=` is not followed by two hex digits.
    #[error("key {key:?} has an \"=\" that two hex digits do not follow")]
    BrokenEscape {
        /// What was to be unescaped.
        key: String,
    },
    /// The escaped bytes are no text.
    #[error("key {key:?} is not UTF-8 when unescaped")]
    NotText {
        /// What was to be unescaped.
        key: String,
    },
}

/// The key of a KV bucket that stands for this text.
pub fn escape(key: &str) -> Cow<'_, str> {
    escape_with(key, Dots::Separate)
}

/// The single subject token that stands for this text: as [`escape`], and every dot is escaped.
pub fn escape_token(text: &str) -> Cow<'_, str> {
    escape_with(text, Dots::Escaped)
}

/// The text that [`escape`] turned into this key. Anything that it would never give is refused, so two keys never mean one text.
pub fn unescape(key: &str) -> Result<String, Error> {
    unescape_with(key, Dots::Separate)
}

/// The text that [`escape_token`] turned into this token.
pub fn unescape_token(token: &str) -> Result<String, Error> {
    unescape_with(token, Dots::Escaped)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dots {
    Separate,
    Escaped,
}

fn escape_with(text: &str, dots: Dots) -> Cow<'_, str> {
    if text.is_empty() {
        return Cow::Borrowed("=");
    }
    // The usual id costs one look at each byte.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_');
    let reserved = text.starts_with("_kv");
    if !reserved && text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    let mut before = b'.';
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        let keep = match byte {
            b'.' => dots == Dots::Separate && before != b'.' && bytes.peek().is_some(),
            _ => plain(byte) && !(reserved && at == 0),
        };
        if keep {
            escaped.push(char::from(byte));
        } else {
            push_escape(&mut escaped, byte);
        }
        before = byte;
    }
    if escaped.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(escaped) }
}

fn push_escape(escaped: &mut String, byte: u8) {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 });
    escaped.push('=');
    escaped.push(digit(byte >> 4));
    escaped.push(digit(byte & 15));
}

fn unescape_with(key: &str, dots: Dots) -> Result<String, Error> {
    let bytes = if key == "=" { Vec::new() } else { unescaped_bytes(key)? };
    let text = String::from_utf8(bytes).map_err(|_| Error::NotText { key: key.to_owned() })?;
    let expected = escape_with(&text, dots);
    if expected != key {
        return Err(Error::NotCanonical { key: key.to_owned(), expected: expected.into_owned() });
    }
    Ok(text)
}

fn unescaped_bytes(key: &str) -> Result<Vec<u8>, Error> {
    let broken = || Error::BrokenEscape { key: key.to_owned() };
    let mut text = Vec::with_capacity(key.len());
    let mut bytes = key.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            text.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
        text.push(u8::try_from(high * 16 + low).map_err(|_| broken())?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_ids_stay_as_they_are() {
        for id in
            ["C42", "order-1.line-2", "6f1c2f0e-8f53-4b43-9a39-3a3a0a3c1a11", "a/b_c", "_k", "x._kv", "0", "a.b.c"]
        {
            assert!(matches!(escape(id), Cow::Borrowed(same) if same == id), "{id}");
        }
    }

    #[test]
    fn each_rule_has_its_example() {
        let table = [
            ("", "=", "="),
            ("=", "=3D", "=3D"),
            ("a b", "a=20b", "a=20b"),
            (".", "=2E", "=2E"),
            ("..", "=2E=2E", "=2E=2E"),
            (".a", "=2Ea", "=2Ea"),
            ("a.", "a=2E", "a=2E"),
            ("a..b", "a.=2Eb", "a=2E=2Eb"),
            ("a...b", "a.=2E=2Eb", "a=2E=2E=2Eb"),
            ("a.b", "a.b", "a=2Eb"),
            ("_kv", "=5Fkv", "=5Fkv"),
            ("_kvx.y", "=5Fkvx.y", "=5Fkvx=2Ey"),
            ("é", "=C3=A9", "=C3=A9"),
            ("*", "=2A", "=2A"),
            (">", "=3E", "=3E"),
            ("#en.wikipedia|Talk:X", "=23en.wikipedia=7CTalk=3AX", "=23en=2Ewikipedia=7CTalk=3AX"),
        ];
        for (text, key, token) in table {
            assert_eq!(escape(text), key);
            assert_eq!(escape_token(text), token);
            assert_eq!(unescape(key).as_deref(), Ok(text));
            assert_eq!(unescape_token(token).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_escaping_never_gives_is_refused() {
        for key in [
            "", "a=", "a=2", "a=zz", "=C3", "=41", "a=2e b", "=2e", "a=2Eb", "a b", ".a", "a..b", "_kv", "==", "é",
            "=2Fa",
        ] {
            assert!(unescape(key).is_err(), "{key:?} was taken");
        }
        assert!(unescape_token("a.b").is_err());
        assert!(unescape_token("a=2Eb").is_ok());
    }

    fn is_legal(key: &str) -> bool {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte);
        !key.is_empty()
            && key.bytes().all(legal)
            && key.split('.').all(|token| !token.is_empty())
            && !key.starts_with("_kv")
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC*|[._kv=a]{0,9}|(?s).{0,20}") {
            let key = escape(&text);
            prop_assert!(is_legal(&key), "{key}");
            prop_assert_eq!(unescape(&key), Ok(text.clone()));
            let token = escape_token(&text);
            prop_assert!(is_legal(&token) && !token.contains('.'), "{token}");
            prop_assert_eq!(unescape_token(&token), Ok(text.clone()));
        }

        #[test]
        fn two_texts_have_two_keys(one in "[._kv=A2E]{0,6}", other in "[._kv=A2E]{0,6}") {
            prop_assert_eq!(one == other, escape(&one) == escape(&other));
            prop_assert_eq!(one == other, escape_token(&one) == escape_token(&other));
        }

        #[test]
        fn what_is_taken_is_canonical(key in "[._kv=A2E3D]{0,8}") {
            if let Ok(text) = unescape(&key) {
                prop_assert_eq!(escape(&text), key);
            }
        }
    }
}
