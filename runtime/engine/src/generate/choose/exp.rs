//! The exponential function with the same bits on every platform.

/// ln 2 with its low 32 bits zero, so that `n * LN2_HIGH` is exact, and what is missing.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Adding it rounds a small number to a whole one, which the low bits of the sum then hold.
const ROUND: f64 = 1.5 * (1u64 << 52) as f64;

/// `1 / k!`
const TERMS: [f64; 14] = {
    let mut terms = [1.0; 14];
    let (mut k, mut factorial) = (1, 1u64);
    while k < terms.len() {
        factorial *= k as u64;
        terms[k] = 1.0 / factorial as f64;
        k += 1;
    }
    terms
};

/// `e^x`, within 3 units in the last place; 0 below -708 and infinite above 709.
///
/// Platforms' own libraries differ in the last bits, which would make sampling differ between devices.
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, Taylor series for `e^r` by Estrin's scheme in plain IEEE operations, without
/// a branch, a call or a division: compilers compute several at once.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let within = if x < -708.0 { -708.0 } else { x };
    let within = if within > 709.0 { 709.0 } else { within };
    let shifted = within * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (within - n * LN2_HIGH) - n * LN2_LOW;
    let r2 = r * r;
    let r4 = r2 * r2;
    let r8 = r4 * r4;
    let pair = |k: usize| TERMS[k] + TERMS[k + 1] * r;
    let four = |k: usize| pair(k) + pair(k + 2) * r2;
    let sum = (four(0) + four(4) * r4) + (four(8) + pair(12) * r4) * r8;
    // n is in -1021..=1023: a normal exponent.
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let result = sum * power;
    let result = if x < -708.0 { 0.0 } else { result };
    if x > 709.0 { f64::INFINITY } else { result }
}

/// `base` to the power of `exponent`, for a normal `base > 0`.
pub(in crate::generate) fn power(base: f64, exponent: f64) -> f64 {
    exp(exponent * super::ln::ln(base))
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn its_bits_are_the_same_everywhere() {
        let bits = [-700.5, -23.25, -1.0, -0.1, 0.5, 88.0].map(|x| exp(x).to_bits());
        assert_eq!(
            bits,
            [
                0x00c4_ff47_5c68_ca02,
                0x3dd5_f7d7_80fb_4f71,
                0x3fd7_8b56_362c_ef38,
                0x3fec_f46d_99d5_2b3b,
                0x3ffa_6129_8e1e_069d,
                0x47df_1056_dc7b_f22c
            ]
        );
    }

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
        for (inside, outside, limit) in [
            (-708.0, (-708.0f64).next_down(), 0.0),
            (709.0, 709.0f64.next_up(), f64::INFINITY),
        ] {
            let expected = f64::exp(inside);
            assert!((exp(inside) - expected).abs() <= 4.0 * f64::EPSILON * expected);
            assert_eq!(exp(outside), limit);
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }
}
