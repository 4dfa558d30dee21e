//! Nanoseconds since 1970 in, text out. A calendar crate would double the size of a small module for these few lines.
//! Never: reads a clock.

const MILLISECONDS_PER_DAY: i64 = 86_400_000;

/// UTC as RFC 3339 with milliseconds, the rest cut off.
pub fn rfc3339(nanoseconds: i64) -> String {
    let milliseconds = nanoseconds.div_euclid(1_000_000);
    let (year, month, day) = civil(milliseconds.div_euclid(MILLISECONDS_PER_DAY));
    let of_day = milliseconds.rem_euclid(MILLISECONDS_PER_DAY);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, millisecond) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Days since 1970 to year, month, day. Counts in eras of 400 years of 146,097 days, each year beginning with March, so that
/// the leap day comes last (Howard Hinnant, "chrono-compatible low-level date algorithms").
const fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_442_018_818_771_000_000, "2015-09-12T00:46:58.771Z"),
            (951_782_400_999_999_999, "2000-02-29T00:00:00.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ];
        for (nanoseconds, expected) in cases {
            assert_eq!(rfc3339(nanoseconds), expected);
        }
    }

    #[test]
    fn agrees_with_a_calendar_library_from_1678_to_2261() {
        for day in -106_000..106_000_i64 {
            let nanoseconds = (day * 86_400 + day.rem_euclid(86_400)) * 1_000_000_000 + 7_000_000;
            let theirs = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap();
            assert_eq!(rfc3339(nanoseconds), format!("{theirs:.3}"));
        }
    }
}
