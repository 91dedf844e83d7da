//! Rotary position embedding (Su et al., 2021).

use crate::rows::Rows;

/// How a rotary embedding pairs the columns it rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairLayout {
    /// Column `i` with column `i + pairs`.
    Halves,
    /// Column `2 i` with column `2 i + 1`.
    Interleaved,
}

/// Cosine and sine, times `magnitude`, of `position * inverse_frequencies[i]` for each pair `i`.
///
/// # Panics
/// If `cos` and `sin` are not as long as `inverse_frequencies`.
pub fn rope_angles(
    position: usize,
    inverse_frequencies: &[f32],
    magnitude: f32,
    cos: &mut [f32],
    sin: &mut [f32],
) {
    assert_eq!(
        cos.len(),
        inverse_frequencies.len(),
        "length of the cosines"
    );
    assert_eq!(sin.len(), inverse_frequencies.len(), "length of the sines");
    let magnitude = f64::from(magnitude);
    for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(inverse_frequencies) {
        let (s, c) = sin_cos(position as f64 * f64::from(*frequency));
        *cos = (c * magnitude) as f32;
        *sin = (s * magnitude) as f32;
    }
}

/// pi / 2 rounded to f64, and what is missing.
const HALF_PI_HIGH: f64 = std::f64::consts::FRAC_PI_2;
const HALF_PI_LOW: f64 = 6.123_233_995_736_766e-17;

/// Sine and cosine in f64: reduction to `|r| <= pi / 4` by two fmas, then Taylor series.
///
/// The error is below 2e-16 for angles up to 2^31.
pub(crate) fn sin_cos(angle: f64) -> (f64, f64) {
    let turns = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = turns.mul_add(-HALF_PI_LOW, turns.mul_add(-HALF_PI_HIGH, angle));
    let square = r * r;
    // Horner over 1/n!: sin r = r - r^3/3! + ..., cos r = 1 - r^2/2! + ...
    let (mut sin, mut cos) = (1.0, 1.0);
    for n in (1..=8).rev() {
        let n = f64::from(2 * n);
        sin = (-square / (n * (n + 1.0))).mul_add(sin, 1.0);
        cos = (-square / (n * (n - 1.0))).mul_add(cos, 1.0);
    }
    sin *= r;
    match (turns as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Rotates every head of one row. `cos` and `sin` have one entry per pair; columns after the pairs pass.
#[inline(always)]
pub(crate) fn rotate_row(
    x: &[f32],
    head_dim: usize,
    layout: PairLayout,
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
) {
    let pairs = cos.len();
    for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        out[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
        match layout {
            PairLayout::Halves => {
                let (first, second) = x[..2 * pairs].split_at(pairs);
                let (out_first, out_second) = out[..2 * pairs].split_at_mut(pairs);
                for i in 0..pairs {
                    (out_first[i], out_second[i]) = rotate(first[i], second[i], cos[i], sin[i]);
                }
            }
            PairLayout::Interleaved => {
                let x = x[..2 * pairs].as_chunks::<2>().0;
                let out = out[..2 * pairs].as_chunks_mut::<2>().0;
                for (((x, out), cos), sin) in x.iter().zip(out).zip(cos).zip(sin) {
                    (out[0], out[1]) = rotate(x[0], x[1], *cos, *sin);
                }
            }
        }
    }
}

#[inline(always)]
fn rotate(first: f32, second: f32, cos: f32, sin: f32) -> (f32, f32) {
    (
        first.mul_add(cos, -(second * sin)),
        second.mul_add(cos, first * sin),
    )
}

/// Tables for several tokens: row `t` of `cos` and `sin` belongs to row `t` of the input.
#[derive(Clone, Copy, Debug)]
pub struct RopeTables<'a> {
    /// Cosines, `[tokens, pairs]`.
    pub cos: Rows<'a>,
    /// Sines, `[tokens, pairs]`.
    pub sin: Rows<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_and_cosine_agree_with_those_of_the_standard_library() {
        for step in 0..200_000 {
            let angle = f64::from(step) * 0.73;
            let (sin, cos) = sin_cos(angle);
            assert!((sin - angle.sin()).abs() < 2.3e-16, "sin {angle}");
            assert!((cos - angle.cos()).abs() < 2.3e-16, "cos {angle}");
        }
    }

    #[test]
    fn rounded_to_f32_they_are_the_nearest_numbers() {
        let (mut cos, mut sin) = ([0.0], [0.0]);
        for position in (0..1_000_000).step_by(997) {
            let frequency = 0.866_025_4;
            rope_angles(position, &[frequency], 1.0, &mut cos, &mut sin);
            let angle = position as f64 * f64::from(frequency);
            assert_eq!(
                (cos[0], sin[0]),
                (angle.cos() as f32, angle.sin() as f32),
                "{position}"
            );
        }
    }
}
