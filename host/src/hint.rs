//! Sentences that end in what to do next: `what is the matter; hint: what to do`. Hosts write them whole, commands show both parts.
//! Pure. Never: makes a hint up.

/// Stands between the two.
const SIGN: &str = "; hint: ";

/// What is the matter, and what to do about it, where that is said.
#[must_use]
pub(crate) fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(SIGN).map_or((text, None), |(matter, hint)| (matter, Some(hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_told_from_its_hint() {
        assert_eq!(split("no; hint: try; hint: again"), ("no", Some("try; hint: again")));
        assert_eq!(split("no hint"), ("no hint", None));
    }
}
