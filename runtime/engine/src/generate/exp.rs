//! The exponential function with the same bits on every platform.

/// ln 2 with its low 32 bits zero, so that `n * LN2_HIGH` is exact, and what is missing.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// `e^x`, within 2 units in the last place; 0 below -708 and infinite above 709.
///
/// Platforms' own libraries differ in the last bits, which would make sampling differ between devices.
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, Taylor series for `e^r` by Horner's rule in plain IEEE operations.
pub(super) fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = 1.0 + sum * r / f64::from(k);
    }
    // n is in -1022..=1023: a normal exponent.
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_function() {
        for i in -70_000..=70_000 {
            let x = f64::from(i) / 100.0;
            let (found, expected) = (exp(x), x.exp());
            assert!(
                (found - expected).abs() <= 4.0 * f64::EPSILON * expected,
                "e^{x}: {found} {expected}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }
}
