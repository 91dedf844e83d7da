//! Numbers as people read them.

/// A size in decimal units: `940 B`, `12.8 MB`.
pub fn bytes(size_bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if size_bytes < 1000 {
        return format!("{size_bytes} B");
    }
    let mut size = size_bytes as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 and above would print as 1000.0 of the smaller unit.
    while size >= 999.95 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    let decimals = if size < 10.0 { 2 } else { 1 };
    format!("{size:.decimals$} {}", UNITS[unit])
}

/// A count with thin groups of three: `2 755 008`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// The change from `reference` to `value` in percent, with its sign: `+0.01 %`.
pub fn percent_change(value: f64, reference: f64) -> String {
    format!("{:+.2} %", (value / reference - 1.0) * 100.0)
}

/// Three digits that say something: `0.00891`, `1.32`, `4.10e-7`.
pub fn significant(value: f64) -> String {
    const DIGITS: i32 = 3;
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-5..=6).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let decimals = usize::try_from(DIGITS - 1 - magnitude).unwrap_or(0);
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, percent_change, significant};

    #[test]
    fn three_digits_of_a_number_are_told_whatever_its_size() {
        let cases = [
            (0.0, "0"),
            (0.008_912, "0.00891"),
            (0.000_041_26, "0.0000413"),
            (4.1e-7, "4.10e-7"),
            (1.317, "1.32"),
            (-12.34, "-12.3"),
            (1234.0, "1234"),
            (1.5e9, "1.50e9"),
            (f64::INFINITY, "inf"),
        ];
        for (value, text) in cases {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn sizes_keep_three_digits_and_change_unit_before_four() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_849_672, "12.8 MB"),
            (999_949, "999.9 kB"),
            (999_950, "1.00 MB"),
            (3_500_000_000, "3.50 GB"),
            (u64::MAX, "18446744.1 TB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text, "{size}");
        }
    }

    #[test]
    fn counts_are_grouped_by_three() {
        let cases = [
            (0, "0"),
            (512, "512"),
            (1000, "1 000"),
            (2_755_008, "2 755 008"),
        ];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn changes_carry_their_sign() {
        assert_eq!(percent_change(102.0, 100.0), "+2.00 %");
        assert_eq!(percent_change(99.0, 100.0), "-1.00 %");
    }
}
