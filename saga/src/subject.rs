//! Subjects, and the patterns that stand for several; the host and the fold ask the same questions here. In: a subject,
//! a pattern. Out: whether one is well-formed, and fits the other. Pure. Never: allocates.

/// Whether the subject is one of those the pattern stands for: `*` is one token, a last `>` one or more.
pub fn subject_matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether a message can be published under this subject.
pub fn is_subject(subject: &str) -> bool {
    let wrong = |letter: char| letter.is_whitespace() || letter.is_control() || matches!(letter, '*' | '>');
    subject.split('.').all(|token| !token.is_empty() && !token.contains(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("pay", "pay", true),
            ("pay", "pay.now", false),
            ("pay.now", "pay", false),
            ("pay.*", "pay.now", true),
            ("pay.*", "pay", false),
            ("pay.*", "pay.now.please", false),
            ("*.now", "pay.now", true),
            ("pay.>", "pay.now.please", true),
            ("pay.>", "pay", false),
            (">", "pay", true),
            ("", "pay", false),
        ];
        for (pattern, subject, expected) in cases {
            assert_eq!(subject_matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn subjects() {
        for subject in ["pay", "pay.now", "pay.C=2A", "$x"] {
            assert!(is_subject(subject), "{subject}");
        }
        for subject in ["", ".", "pay.", ".pay", "pay..now", "pay.*", "pay.>", "pay now", "pay\r\n", "a.b>c"] {
            assert!(!is_subject(subject), "{subject}");
        }
    }
}
