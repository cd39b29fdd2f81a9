//! Dates and tables as people read them.

use std::time::SystemTime;

use tokenizer::strftime;

use crate::context::one_line;

/// `2026-11-21 14:05 UTC`.
pub(crate) fn utc_minute(time: SystemTime) -> String {
    strftime(time, "%Y-%m-%d %H:%M UTC").expect("the fields are known")
}

/// Longest name that values are aligned after; a name may come from a file and be of any length.
const MAX_NAME_WIDTH: usize = 80;

/// Lines of names and values, the values aligned.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let widths = rows.iter().map(|(name, _)| name.chars().count());
    let width = widths.max().unwrap_or(0).min(MAX_NAME_WIDTH);
    let line = |(name, value): &(&str, String)| {
        format!("{:width$}  {}\n", one_line(name), one_line(value))
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn values_are_aligned_up_to_a_width() {
        let of_two = |name: &str| table(&[("a", "1".to_owned()), (name, "2".to_owned())]);
        assert_eq!(of_two("bcd"), "a    1\nbcd  2\n");
        assert_eq!(of_two("b\nd"), "a    1\nb\u{fffd}d  2\n");
        let long = "n".repeat(70_000);
        assert_eq!(of_two(&long).len(), MAX_NAME_WIDTH + 4 + 70_000 + 4);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc_minute(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_795_269_900), "2026-11-21 14:05 UTC");
    }
}
