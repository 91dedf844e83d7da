//! Root-mean-square and layer normalisation of one group of columns.

use crate::lanes::{Lanes, Simd, map, sum, update};

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
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
    let NormFactor { mean, factor } = NormFactor::of(simd, norm, x, epsilon);
    let factor = simd.splat(factor);
    match mean {
        None => map!(simd, out, |x| x * factor),
        Some(mean) => {
            let mean = simd.splat(mean);
            map!(simd, out, |x| (x - mean) * factor);
        }
    }
    if let Some(weight) = weight {
        update!(simd, out, |value, weight| value * weight);
    }
    if let Some(bias) = bias {
        update!(simd, out, |value, bias| value + bias);
    }
}

/// What a normalisation takes from all columns of its group.
pub(crate) struct NormFactor {
    /// What is subtracted first, by layer normalisation.
    pub(crate) mean: Option<f32>,
    /// What the columns are multiplied by then.
    pub(crate) factor: f32,
}

impl NormFactor {
    #[inline(always)]
    pub(crate) fn of<S: Simd>(simd: S, norm: Norm, x: &[f32], epsilon: f32) -> Self {
        let count = x.len() as f32;
        let (mean, squares) = match norm {
            Norm::Rms => (None, sum!(simd, 0.0, |sum, x| x.fma(x, sum))),
            Norm::Layer => {
                let mean = sum!(simd, 0.0, |sum, x| sum + x) / count;
                let means = simd.splat(mean);
                let squares = sum!(simd, mean, |sum, x| (x - means).fma(x - means, sum));
                (Some(mean), squares)
            }
        };
        let factor = 1.0 / (squares / count + epsilon).sqrt();
        Self { mean, factor }
    }
}
