//! Spans of time on the command line. In: `30s`, `5m`, `1h 30m`, `2d`. Out: nanoseconds. Pure. Never: a guess at a unit that is not there.

/// Nanoseconds, none of them negative.
pub(super) fn nanoseconds(text: &str) -> Result<i64, String> {
    let whole = text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok());
    let whole = whole.and_then(|days| days.checked_mul(24)).map(|hours| format!("{hours}h"));
    let span: jiff::SignedDuration =
        whole.as_deref().unwrap_or(text).parse().map_err(|error: jiff::Error| error.to_string())?;
    let nanoseconds = i64::try_from(span.as_nanos()).map_err(|error| error.to_string())?;
    if nanoseconds >= 0 { Ok(nanoseconds) } else { Err("less than nothing".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_unit() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h 30m", 5400), ("2d", 172_800), ("0s", 0)] {
            assert_eq!(nanoseconds(text), Ok(seconds * 1_000_000_000), "{text}");
        }
        for text in ["", "30", "s", "-5s", "1000000d", "99999999999999999999d", "soon"] {
            assert!(nanoseconds(text).is_err(), "{text}");
        }
    }
}
