//! The scale of a block: where it may lie, and the one with the least error.

use super::ScaleGrid;
use super::levels::{Block, Levels};
use half::{bf16, f16};

/// So often is the best scale for the levels that it led to taken instead.
const REFITS: usize = 2;

/// What scales are tried: parts of the one that brings the largest weight to the end of the levels.
pub(crate) struct Factors {
    first: f32,
    step: f32,
    count: usize,
}

impl Factors {
    /// For codes of so few levels that cutting off the largest weights may pay.
    pub(crate) const FEW_LEVELS: Factors = Factors {
        first: 0.70,
        step: 0.02,
        count: 21,
    };
    /// The same range, for a first idea.
    pub(crate) const COARSE: Factors = Factors {
        first: 0.72,
        step: 0.05,
        count: 8,
    };
    /// For codes of many levels.
    pub(crate) const MANY_LEVELS: Factors = Factors {
        first: 0.94,
        step: 0.01,
        count: 8,
    };

    /// Those for a code.
    pub(crate) fn of(levels: &Levels) -> &'static Factors {
        match levels {
            Levels::Linear(low, _) if *low < -16.0 => &Factors::MANY_LEVELS,
            _ => &Factors::FEW_LEVELS,
        }
    }
}

/// The nearest scale that the grid holds; infinite when it is out of range.
pub(crate) fn round_scale(scale: f32, grid: ScaleGrid) -> f32 {
    match grid {
        ScaleGrid::F16 => f16::from_f32(scale).to_f32(),
        // bf16 has fewer digits but more range than f16; what is too small for f16 to hold exactly loses digits twice.
        ScaleGrid::Bf16 => {
            let both = f16::from_f32(bf16::from_f32(scale).to_f32()).to_f32();
            bf16::from_f32(both).to_f32()
        }
        // The inverse of a smaller one may be infinite.
        ScaleGrid::F32 if scale.abs() < f32::MIN_POSITIVE => 0.0,
        ScaleGrid::F32 => scale,
    }
}

/// The scale, not on any grid yet, with the least sum of `importance * (weight - scale * level)^2`, of those that were
/// tried: with every factor, and with the largest weight at either end. Zero for a block of zeros.
///
/// For given levels that error is least at `scale = sum(importance * weight * level) / sum(importance * level^2)`, and
/// then `(first sum)^2 / second sum` is what is taken away from the whole, so no error has to be computed.
pub(crate) fn best_scale(
    levels: &Levels,
    weights: &Block,
    importance: &Block,
    factors: &Factors,
) -> f32 {
    let extreme = weights.iter().fold(0.0f32, |extreme, weight| {
        if weight.abs() > extreme.abs() {
            *weight
        } else {
            extreme
        }
    });
    if extreme == 0.0 {
        return 0.0;
    }
    let mut driven = *weights;
    for (driven, importance) in driven.iter_mut().zip(importance) {
        *driven *= importance;
    }
    let fit = |scale: f32| -> Option<(f32, f32)> {
        let inverse = 1.0 / scale;
        let level = levels.nearest(&weights.map(|weight| weight * inverse));
        let product = sum(&driven, &level);
        let mut squares = level;
        for (square, importance) in squares.iter_mut().zip(importance) {
            *square *= importance;
        }
        let power = sum(&squares, &level);
        (power > 0.0).then(|| (product * product / power, product / power))
    };
    let (low, high) = levels.ends();
    let both = [extreme / low, extreme / high];
    let ends = if levels.is_symmetric() {
        &both[1..]
    } else {
        &both[..]
    };
    let mut best = (0.0, 0.0);
    for end in ends {
        for step in 0..factors.count {
            let factor = factors.first + factors.step * step as f32;
            if let Some(found) = fit(end * factor)
                && found.0 > best.0
            {
                best = found;
            }
        }
    }
    for _ in 0..REFITS {
        match fit(best.1) {
            Some(found) if found.0 > best.0 => best = found,
            _ => break,
        }
    }
    // Where nothing is important, the largest weight is as good as any.
    if best.1 == 0.0 { both[1] } else { best.1 }
}

/// The sum of products, in eight sums that are added at the end.
fn sum(a: &Block, b: &Block) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let four: [f32; 4] = std::array::from_fn(|lane| sums[lane] + sums[lane + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Code;

    fn error(levels: &Levels, weights: &Block, importance: &Block, scale: f32) -> f64 {
        let level = levels.nearest(&weights.map(|weight| weight / scale));
        let parts = weights.iter().zip(level).zip(importance);
        parts
            .map(|((weight, level), importance)| {
                let error = f64::from(*weight) - f64::from(level) * f64::from(scale);
                f64::from(*importance) * error * error
            })
            .sum()
    }

    #[test]
    fn the_scale_is_better_than_that_of_the_extreme_and_heeds_what_is_important() {
        let levels = Levels::of(Code::Int4, None);
        let weights: Block = std::array::from_fn(|i| ((i * 37 + 11) % 64) as f32 / 31.5 - 1.0);
        let even = [1.0; 32];
        let mut first = [0.01; 32];
        first[..4].fill(10.0);
        let scale = best_scale(&levels, &weights, &even, &Factors::FEW_LEVELS);
        let of_first = best_scale(&levels, &weights, &first, &Factors::FEW_LEVELS);
        let plain = 1.0 / 7.0;
        assert!(error(&levels, &weights, &even, scale) < error(&levels, &weights, &even, plain));
        assert!(
            error(&levels, &weights, &first, of_first) < error(&levels, &weights, &first, scale)
        );
    }

    #[test]
    fn blocks_of_zeros_and_of_unimportant_weights_have_a_scale() {
        let levels = Levels::of(Code::Int8, None);
        let factors = Factors::of(&levels);
        assert_eq!(best_scale(&levels, &[0.0; 32], &[1.0; 32], factors), 0.0);
        let scale = best_scale(&levels, &[0.5; 32], &[0.0; 32], factors);
        assert_eq!(scale, 0.5 / 127.0);
    }
}
