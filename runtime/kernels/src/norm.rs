//! Root-mean-square and layer normalisation of one group of columns.

use crate::lanes::{Lanes, Simd, fold, load_part, map, map2};

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
    let zero = simd.splat(0.0);
    match norm {
        Norm::Rms => {
            let squares = fold(simd, x, 0.0, zero, |sum, x| x.fma(x, sum)).sum();
            let factor = simd.splat(1.0 / (squares / count + epsilon).sqrt());
            map(simd, x, out, |x| x * factor);
        }
        Norm::Layer => {
            let mean = fold(simd, x, 0.0, zero, |sum, x| sum + x).sum() / count;
            let lanes = simd.splat(mean);
            let squares = fold(simd, x, mean, zero, |sum, x| {
                let x = x - lanes;
                x.fma(x, sum)
            });
            let factor = simd.splat(1.0 / (squares.sum() / count + epsilon).sqrt());
            map(simd, x, out, |x| (x - lanes) * factor);
        }
    }
    if let Some(weight) = weight {
        update(simd, weight, out, |out, weight| out * weight);
    }
    if let Some(bias) = bias {
        update(simd, bias, out, |out, bias| out + bias);
    }
}

/// `out[i] = f(out[i], x[i])`.
#[inline(always)]
pub(crate) fn update<S: Simd>(simd: S, x: &[f32], out: &mut [f32], f: impl Fn(S::F, S::F) -> S::F) {
    let (x, x_rest) = x.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    for (x, out) in x.iter().zip(out) {
        f(simd.load(out), simd.load(x)).store(out);
    }
    if !x_rest.is_empty() {
        let value = f(load_part(simd, out_rest, 0.0), load_part(simd, x_rest, 0.0));
        crate::lanes::store_part(value, out_rest);
    }
}

/// `a + scale * b`.
#[inline(always)]
pub(crate) fn add_scaled_row<S: Simd>(simd: S, a: &[f32], b: &[f32], scale: f32, out: &mut [f32]) {
    let scale = simd.splat(scale);
    map2(simd, a, b, out, |a, b| b.fma(scale, a));
}
