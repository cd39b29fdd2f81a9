//! Numbers as people read them.

/// A whole number with spaces between groups of three: `4 915 200`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A number with three figures and a unit of thousand, million or billion: `4.92 M`.
#[must_use]
pub fn short(number: f64) -> String {
    // The next unit begins where rounding would give four figures.
    let (unit, suffix) = match number.abs() {
        x if x >= 999.5e6 => (1e9, " G"),
        x if x >= 999.5e3 => (1e6, " M"),
        x if x >= 999.5 => (1e3, " k"),
        _ => (1.0, ""),
    };
    let value = number / unit;
    let n_decimals = match value.abs() {
        _ if unit == 1.0 && value.fract() == 0.0 => 0,
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.n_decimals$}{suffix}")
}

/// A share in per cent with one decimal; a share below 1 is never shown as 100.0, nor one above 0 as 0.0.
#[must_use]
pub fn percent(share: f64) -> String {
    let per_cent = 100.0 * share;
    if share > 0.0 && per_cent < 0.05 {
        "<0.1 %".to_owned()
    } else if share < 1.0 && per_cent >= 99.95 {
        ">99.9 %".to_owned()
    } else {
        format!("{per_cent:.1} %")
    }
}

/// The ends of an interval in per cent: `78.2 to 84.0`. The lower end is rounded down and the upper one up.
#[must_use]
pub fn range(low: f64, high: f64) -> String {
    // A thousandth of the last decimal: an end that is a round number stays it.
    let slack = 1e-6;
    let down = ((low * 1000.0 + slack).floor() / 10.0).max(0.0);
    let up = ((high * 1000.0 - slack).ceil() / 10.0).min(100.0);
    format!("{down:.1} to {up:.1}")
}

/// A time: `42.3 s`, `7 min 05 s`, `1 h 12 min`, `3 d 04 h`; `unknown` when it is not finite.
#[must_use]
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    // A cast of a time beyond all bounds ends at the largest number.
    let whole = seconds.round().max(0.0) as u64;
    let (minutes, hours) = (whole.saturating_add(30) / 60, whole.saturating_add(1800) / 3600);
    if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if hours < 48 {
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    } else {
        format!("{} d {:02} h", hours / 24, hours % 24)
    }
}

/// Bytes in binary units: `15.6 GiB`.
#[must_use]
pub fn bytes(n_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n_bytes < 1024 {
        return format!("{n_bytes} B");
    }
    let mut value = n_bytes as f64 / 1024.0;
    let mut unit_idx = 0;
    while value >= 1023.95 && unit_idx + 1 < UNITS.len() {
        value /= 1024.0;
        unit_idx += 1;
    }
    format!("{value:.1} {}", UNITS[unit_idx])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(4_915_200), "4 915 200");
        assert_eq!((grouped(0), grouped(999)), ("0".to_owned(), "999".to_owned()));
        let numbers = [0.0, 7.0, 999.0, 999.6, 4_915_200.0, 12_345.0, 999_999.0, 2.5e9];
        let expected = ["0", "7", "999", "1.00 k", "4.92 M", "12.3 k", "1.00 M", "2.50 G"];
        assert_eq!(numbers.map(short), expected);
        let bytes = [12, 1536, 25_769_803_776, 1_048_575].map(bytes);
        assert_eq!(bytes, ["12 B", "1.5 KiB", "24.0 GiB", "1.0 MiB"]);
    }

    #[test]
    fn shares_are_never_rounded_to_all_or_nothing() {
        let shares = [0.0, 0.0001, 0.8234, 0.9999, 1.0].map(percent);
        assert_eq!(shares, ["0.0 %", "<0.1 %", "82.3 %", ">99.9 %", "100.0 %"]);
    }

    #[test]
    fn ranges_are_rounded_outwards() {
        assert_eq!(range(0.782_41, 0.839_11), "78.2 to 84.0");
        assert_eq!(range(0.0, 1.0), "0.0 to 100.0");
        assert_eq!(range(0.25, 0.75), "25.0 to 75.0");
    }

    #[test]
    fn times_have_fitting_units() {
        let times = [0.04, 59.9, 59.96, 425.2, 3599.6, 4321.0, 273_000.0, f64::INFINITY];
        let expected = [
            "0.0 s",
            "59.9 s",
            "1 min 00 s",
            "7 min 05 s",
            "1 h 00 min",
            "1 h 12 min",
            "3 d 04 h",
            "unknown",
        ];
        assert_eq!(times.map(duration), expected);
    }
}
