//! The natural logarithm with the same bits on every platform.

/// `ln x` of a normal `x > 0`, within a few units in the last place; minus infinity of 0.
///
/// `x = 2^n m` with `m` in sqrt(1/2)..sqrt(2), and `ln m = 2 artanh((m - 1) / (m + 1))` by its series, in plain IEEE
/// operations.
pub(super) fn ln(x: f64) -> f64 {
    if x <= 0.0 {
        return f64::NEG_INFINITY;
    }
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut n = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits(bits & MANTISSA | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        (n, m) = (n + 1, m / 2.0);
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (1..12).rev() {
        sum = (sum + 1.0 / f64::from(2 * k + 1)) * square;
    }
    f64::from(n) * std::f64::consts::LN_2 + (2.0 * s + 2.0 * s * sum)
}

#[cfg(test)]
mod tests {
    use super::ln;

    #[test]
    fn it_is_the_logarithm() {
        for i in 1..=200_000 {
            for x in [
                f64::from(i) / 1000.0,
                f64::from(i) * 1e9,
                1e-200 * f64::from(i),
            ] {
                let expected = x.ln();
                let error = (ln(x) - expected).abs();
                assert!(
                    error <= 4.0 * f64::EPSILON * expected.abs().max(1e-3),
                    "{x}: {error}"
                );
            }
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
    }

    #[test]
    fn its_bits_are_the_same_everywhere() {
        let bits = [1e-300, 0.3, 1.5, 128_000.0].map(|x| ln(x).to_bits());
        assert_eq!(
            bits,
            [
                0xc085_9634_47f8_7fb5,
                0xbff3_4378_fcbd_a720,
                0x3fd9_f323_ecbf_984c,
                0x4027_8502_9c55_7929,
            ]
        );
    }
}
