//! exp, tanh, erf and the activations made of them.
//!
//! The polynomials are minimax fits made for this crate; `docs/arithmetic.md` states them and their
//! errors.

use crate::lanes::Lanes;

/// Elementwise functions of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    GeluErf,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    GeluSigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

/// ln 2 rounded to f32, and what is missing.
const LN2_HIGH: f32 = std::f32::consts::LN_2;
const LN2_LOW: f32 = -1.904_654_2e-9;

/// `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`, lowest power first.
const EXP: [f32; 5] = [
    0.5,
    0.166_665_18,
    0.041_666_206,
    0.008_368_954,
    0.001_395_059_4,
];

/// `erf(x) / x` as a polynomial in `x^2`, for `|x| < 0.9`, lowest power first.
const ERF_NEAR: [f32; 7] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376_126_35,
    0.112_837_195,
    -0.026_860_753,
    0.005_204_436,
    -0.000_818_192_43,
    8.538_828e-5,
];

/// `ln(1 - erf(x))` for `0.9 <= x <= 4`, lowest power first.
const ERF_FAR: [f32; 8] = [
    0.000_170_554_88,
    -1.129_495_1,
    -0.633_386_6,
    -0.108_236_65,
    0.025_091_518,
    -0.004_160_534_6,
    0.000_432_304_57,
    -2.090_969e-5,
];

/// Horner's rule, one fma per coefficient.
#[inline(always)]
fn polynomial<V: Lanes, const N: usize>(x: V, coefficients: &[f32; N]) -> V {
    let mut value = x.all(coefficients[N - 1]);
    for coefficient in coefficients[..N - 1].iter().rev() {
        value = value.fma(x, x.all(*coefficient));
    }
    value
}

/// `n` and `e^r - 1`, where `x = n ln 2 + r` and `n` is integral.
#[inline(always)]
fn reduced_exp<V: Lanes>(x: V) -> (V, V) {
    let n = (x * x.all(std::f32::consts::LOG2_E)).round();
    let r = n.fma(x.all(-LN2_LOW), n.fma(x.all(-LN2_HIGH), x));
    (n, (r * r).fma(polynomial(r, &EXP), r))
}

/// `e^x`: 0 below about -103.97, infinite above about 88.72.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    let (n, e) = reduced_exp(x.max(x.all(-104.0)).min(x.all(89.0)));
    // 2^n in two factors: n can be outside of the normal exponents.
    let half = (n * x.all(0.5)).round();
    (e + x.all(1.0)) * half.pow2() * (n - half).pow2()
}

/// `tanh x = t / (t + 2)` with `t = e^(2x) - 1`, on the magnitude.
#[inline(always)]
pub(crate) fn tanh<V: Lanes>(x: V) -> V {
    // tanh 10 rounds to 1.
    let magnitude = x.abs().min(x.all(10.0));
    let (n, e) = reduced_exp(magnitude + magnitude);
    let power = n.pow2();
    let t = e.fma(power, power - x.all(1.0));
    (t / (t + x.all(2.0))).copysign(x)
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<V: Lanes>(x: V) -> V {
    // erf 4 rounds to 1.
    let magnitude = x.abs().min(x.all(4.0));
    let near = magnitude * polynomial(magnitude * magnitude, &ERF_NEAR);
    let far = x.all(1.0) - exp(polynomial(magnitude, &ERF_FAR));
    magnitude.if_less(x.all(0.9), near, far).copysign(x)
}

/// `x / (1 + e^(-factor x))`.
#[inline(always)]
fn sigmoid_weighted<V: Lanes>(x: V, factor: f32) -> V {
    x / (exp(x * x.all(-factor)) + x.all(1.0))
}

#[inline(always)]
pub(crate) fn silu<V: Lanes>(x: V) -> V {
    sigmoid_weighted(x, 1.0)
}

#[inline(always)]
pub(crate) fn gelu_erf<V: Lanes>(x: V) -> V {
    let half = x * x.all(0.5);
    half.fma(erf(x * x.all(std::f32::consts::FRAC_1_SQRT_2)), half)
}

#[inline(always)]
pub(crate) fn gelu_tanh<V: Lanes>(x: V) -> V {
    /// sqrt(2 / pi).
    const FACTOR: f32 = 0.797_884_6;
    let half = x * x.all(0.5);
    let inner = (x * x).fma(x.all(0.044_715), x.all(1.0)) * (x * x.all(FACTOR));
    half.fma(tanh(inner), half)
}

#[inline(always)]
pub(crate) fn gelu_sigmoid<V: Lanes>(x: V) -> V {
    sigmoid_weighted(x, 1.702)
}

#[inline(always)]
pub(crate) fn relu<V: Lanes>(x: V) -> V {
    x.max(x.all(0.0))
}

#[inline(always)]
pub(crate) fn relu_squared<V: Lanes>(x: V) -> V {
    let positive = relu(x);
    positive * positive
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn softcap<V: Lanes>(x: V, cap: f32) -> V {
    tanh(x / x.all(cap)) * x.all(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Simd;
    use crate::scalar::Scalar;

    /// The largest error of `function` over `from..=to`, in units of the last place of the exact value.
    fn worst_ulp(
        function: impl Fn(<Scalar as Simd>::F) -> <Scalar as Simd>::F,
        exact: impl Fn(f64) -> f64,
        from: f32,
        to: f32,
    ) -> f64 {
        let mut worst: f64 = 0.0;
        const STEPS: usize = 100_000;
        for step in 0..STEPS {
            let x = from + (to - from) * (step as f32 / STEPS as f32);
            let mut lanes = [0.0; 16];
            function(Scalar.splat(x)).store(&mut lanes);
            let expected = exact(f64::from(x));
            let magnitude = (expected.abs() as f32).max(f32::MIN_POSITIVE);
            let ulp = f64::from(magnitude.next_up() - magnitude);
            worst = worst.max((f64::from(lanes[0]) - expected).abs() / ulp);
        }
        worst
    }

    fn value(function: impl Fn(<Scalar as Simd>::F) -> <Scalar as Simd>::F, x: f32) -> f32 {
        let mut lanes = [0.0; 16];
        function(Scalar.splat(x)).store(&mut lanes);
        lanes[0]
    }

    /// erf by its Taylor series, which converges for every argument.
    fn exact_erf(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exp_is_within_the_documented_error() {
        let worst = worst_ulp(exp, f64::exp, -87.0, 88.7);
        assert!(worst < 1.1, "{worst} ulp");
        let worst = worst_ulp(exp, f64::exp, -1.0, 1.0);
        assert!(worst < 1.1, "{worst} ulp");
    }

    #[test]
    fn exp_reaches_its_limits() {
        assert_eq!(value(exp, 0.0), 1.0);
        assert_eq!(value(exp, 89.0), f32::INFINITY);
        assert_eq!(value(exp, f32::MAX), f32::INFINITY);
        assert_eq!(value(exp, -104.0), 0.0);
        assert_eq!(value(exp, f32::NEG_INFINITY), 0.0);
        assert!(value(exp, -103.0) > 0.0);
    }

    #[test]
    fn tanh_is_within_the_documented_error() {
        for (from, to) in [(-12.0, 12.0), (-1e-3, 1e-3), (0.0, 1e-30)] {
            let worst = worst_ulp(tanh, f64::tanh, from, to);
            assert!(worst < 2.5, "{worst} ulp from {from} to {to}");
        }
        assert_eq!(value(tanh, 1e30), 1.0);
        assert_eq!(value(tanh, -1e30), -1.0);
        assert_eq!(value(tanh, -0.0).to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    fn erf_is_within_the_documented_error() {
        for (from, to) in [(-4.5, 4.5), (-1e-3, 1e-3)] {
            let worst = worst_ulp(erf, exact_erf, from, to);
            assert!(worst < 2.5, "{worst} ulp from {from} to {to}");
        }
        assert_eq!(value(erf, 1e30), 1.0);
        assert_eq!(value(erf, -1e30), -1.0);
    }

    #[test]
    fn activations_at_extreme_inputs_are_their_limits() {
        for function in [silu, gelu_erf, gelu_tanh, gelu_sigmoid, relu] {
            assert_eq!(value(function, 300.0), 300.0);
            assert_eq!(value(function, -300.0), 0.0);
            assert_eq!(value(function, 0.0), 0.0);
        }
        assert_eq!(value(relu_squared, 3.0), 9.0);
        assert_eq!(value(|x| softcap(x, 30.0), 1e9), 30.0);
    }
}
