//! Root-mean-square and layer normalisation of one group of columns.

use crate::lanes::{Lanes, Simd, map, sum, update};

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// `x / sqrt(mean(x^2) + epsilon)` (Zhang & Sennrich, 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + epsilon)` (Ba et al., 2016).
    Layer,
}

/// Normalises `x` as one group; `weight` and `bias` are as long as `x`, or absent.
#[inline(always)]
pub(crate) fn normalize<S: Simd>(
    simd: S,
    norm: Norm,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    epsilon: f32,
    out: &mut [f32],
) {
    let count = x.len() as f32;
    match norm {
        Norm::Rms => {
            let squares = sum!(simd, 0.0, |sum, x| x.fma(x, sum));
            let factor = simd.splat(1.0 / (squares / count + epsilon).sqrt());
            map!(simd, out, |x| x * factor);
        }
        Norm::Layer => {
            let mean = sum!(simd, 0.0, |sum, x| sum + x) / count;
            let means = simd.splat(mean);
            let squares = sum!(simd, mean, |sum, x| (x - means).fma(x - means, sum));
            let factor = simd.splat(1.0 / (squares / count + epsilon).sqrt());
            map!(simd, out, |x| (x - means) * factor);
        }
    }
    if let Some(weight) = weight {
        update!(simd, out, |value, weight| value * weight);
    }
    if let Some(bias) = bias {
        update!(simd, out, |value, bias| value + bias);
    }
}
