//! Floats that training left on a 4-bit grid, and are kept as the codes and scales that they are.
//!
//! Models that were trained or distilled for 4 bits (for llama.cpp's Q4_0: blocks of 32, an f16 scale) are often published as
//! floats. Each of their weights is an integer from -8 to 7 times its block's scale, perhaps rounded to the type that they are
//! stored in. Any other scale would round them a second time.

use super::levels::Block;
use super::matrix::{self, Panel};
use super::scale::{Factors, best_scale, round_scale};
use super::{BLOCK, QuantizeError, QuantizedRows, Quantizer, Target, levels::Levels};
use crate::calibrate::Statistics;
use crate::onnx::FloatRows;
use crate::panels::{PANEL_ROWS, panels};
use crate::plan::Code;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::Serialize;

/// Blocks that are looked at before all are.
const SAMPLED_ROWS: usize = 16;

/// A matrix of which fewer blocks lie on a grid was not trained for one.
const LEAST_SHARE: f64 = 0.9;

/// How far from an extreme's quotient a scale may lie, in units of f16's last place: what bf16 rounds away, with some to spare
/// where the unit changes.
const FAR_ULPS: i32 = 8;

/// How many blocks of a matrix lie on a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OnLattice {
    /// Blocks whose weights are integers from -8 to 7 times an f16.
    pub blocks: u64,
    /// All blocks that are not zero.
    pub of: u64,
}

impl OnLattice {
    fn is_trained_for(self) -> bool {
        self.of > 0 && self.blocks as f64 >= LEAST_SHARE * self.of as f64
    }
}

/// Whether a matrix was trained for a 4-bit grid, and how many of its blocks lie on one.
///
/// # Errors
/// When a weight cannot be read, or is not finite.
pub fn on_lattice(weights: &dyn FloatRows) -> Result<Option<OnLattice>, QuantizeError> {
    let rows = weights.rows();
    let sampled = rows.min(SAMPLED_ROWS);
    let mut found = OnLattice::default();
    for index in 0..sampled {
        let row = index * rows / sampled;
        found.add(count(weights, row..row + 1)?);
    }
    if !found.is_trained_for() {
        return Ok(None);
    }
    let panels: Vec<_> = panels(rows).collect();
    let counts: Vec<Result<OnLattice, QuantizeError>> = panels
        .into_par_iter()
        .map(|panel| count(weights, panel))
        .collect();
    let mut found = OnLattice::default();
    for panel in counts {
        found.add(panel?);
    }
    Ok(Some(found).filter(|found| found.is_trained_for()))
}

impl OnLattice {
    fn add(&mut self, other: OnLattice) {
        self.blocks += other.blocks;
        self.of += other.of;
    }
}

fn count(
    weights: &dyn FloatRows,
    rows: std::ops::Range<usize>,
) -> Result<OnLattice, QuantizeError> {
    let columns = weights.columns();
    let mut found = OnLattice::default();
    for first in rows.clone().step_by(PANEL_ROWS) {
        let part = first..rows.end.min(first + PANEL_ROWS);
        let values = matrix::read(weights, part.clone())?;
        weights.release(part);
        for row in values.chunks(columns.max(1)) {
            for index in 0..columns.div_ceil(BLOCK) {
                let block = matrix::block(row, index);
                if block.iter().any(|weight| *weight != 0.0) {
                    found.of += 1;
                    found.blocks += u64::from(lattice(&block).is_some());
                }
            }
        }
    }
    Ok(found)
}

/// Keeps the codes and scales of blocks that lie on a grid; others are rounded by the best scale.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepLattice;

impl Quantizer for KeepLattice {
    fn name(&self) -> &'static str {
        "kept codes"
    }

    fn quantize(
        &self,
        weights: &dyn FloatRows,
        _: Option<&Statistics>,
        target: Target,
    ) -> Result<QuantizedRows, QuantizeError> {
        let levels = Levels::of(
            match target.code {
                Code::Int8 => Code::Int8,
                Code::Int4 | Code::Codebook4 => Code::Int4,
            },
            None,
        );
        let blocks = weights.columns().div_ceil(BLOCK);
        matrix::quantize(weights, None, |panel: &mut Panel<'_>| {
            for row in 0..panel.rows() {
                for index in 0..blocks {
                    let weights = matrix::block(panel.weights(row), index);
                    let scale = lattice(&weights).unwrap_or_else(|| {
                        let factors = Factors::of(&levels);
                        best_scale(&levels, &weights, &[1.0; BLOCK], factors)
                    });
                    let scale = round_scale(scale, target.grid);
                    panel.set_scale(row, index, scale)?;
                    let length = (panel.weights(row).len() - index * BLOCK).min(BLOCK);
                    for (column, weight) in weights.iter().take(length).enumerate() {
                        let over = if scale == 0.0 { 0.0 } else { weight / scale };
                        panel.set_code(row, index * BLOCK + column, levels.code(over));
                    }
                }
            }
            Ok(())
        })
    }
}

/// The scale of a block that lies on a grid; zero for a block of zeros. Positive, if there is one that is.
fn lattice(weights: &Block) -> Option<f32> {
    let extreme = weights.iter().fold(0.0f32, |extreme, weight| {
        if weight.abs() > extreme.abs() {
            *weight
        } else {
            extreme
        }
    });
    if extreme == 0.0 {
        return Some(0.0);
    }
    // The largest scale first: of 2, 4 and 6 the codes are 1, 2 and 3.
    for step in 1..=8 {
        let near = f16::from_f32(extreme.abs() / step as f32);
        for ulps in (0..=FAR_ULPS).flat_map(|ulps| [ulps, -ulps]) {
            let Ok(bits) = u16::try_from(i32::from(near.to_bits()) + ulps) else {
                continue;
            };
            let scale = f16::from_bits(bits).to_f32();
            if !scale.is_normal() {
                continue;
            }
            for scale in [scale, -scale] {
                if is_on(weights, scale) {
                    return Some(scale);
                }
            }
        }
    }
    None
}

/// Whether all weights are integers from -8 to 7 times a scale, in one of the types that models are stored in.
fn is_on(weights: &Block, scale: f32) -> bool {
    let all = |stored: fn(f32) -> f32| {
        weights.iter().all(|weight| {
            let code = (weight / scale).round_ties_even();
            (-8.0..=7.0).contains(&code) && stored(code * scale) == *weight
        })
    };
    all(|x| x) || all(|x| f16::from_f32(x).to_f32()) || all(|x| bf16::from_f32(x).to_f32())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::onnx::Floats;
    use crate::quantize::ScaleGrid;
    use proptest::prelude::*;

    const INT4: Target = Target {
        code: Code::Int4,
        grid: ScaleGrid::F16,
    };

    fn stored(x: f32, as_type: usize) -> f32 {
        match as_type {
            0 => x,
            1 => f16::from_f32(x).to_f32(),
            _ => bf16::from_f32(x).to_f32(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_lies_on_a_grid_keeps_every_value(
            codes in prop::collection::vec(-8i8..=7, 2 * 64), scale in 0.001f32..2.0, as_type in 0usize..3,
        ) {
            let scales: Vec<f32> = (0..4).map(|i| f16::from_f32(scale * (1.0 + i as f32 / 7.0)).to_f32()).collect();
            let values: Vec<f32> = codes
                .iter()
                .enumerate()
                .map(|(at, code)| stored(f32::from(*code) * scales[at / BLOCK], as_type))
                .collect();
            let matrix = Floats::new("w", 64, values.clone());
            let found = on_lattice(&matrix).unwrap();
            prop_assume!(codes.chunks(BLOCK).all(|block| block.iter().any(|code| *code != 0)));
            prop_assert_eq!(found, Some(OnLattice { blocks: 4, of: 4 }));
            for code in [Code::Int4, Code::Int8] {
                let kept = KeepLattice.quantize(&matrix, None, Target { code, ..INT4 }).unwrap();
                for (at, value) in values.iter().enumerate() {
                    let back = f32::from(kept.codes[at]) * kept.scales[at / BLOCK];
                    prop_assert_eq!(stored(back, as_type), *value);
                }
            }
        }
    }

    #[test]
    fn codes_and_scales_are_those_that_the_weights_were_made_of() {
        // The extreme is -8, so no other scale does.
        let codes: Vec<i8> = (0..32).map(|i| (i % 16) as i8 - 8).collect();
        let scale = f16::from_f32(0.0371).to_f32();
        let values: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
        let matrix = Floats::new("w", 32, values);
        let kept = KeepLattice.quantize(&matrix, None, INT4).unwrap();
        assert_eq!((kept.codes, kept.scales), (codes, vec![scale]));
    }

    #[test]
    fn a_scale_that_bf16_moved_far_is_found() {
        // Of a block with one weight the scale is only known as far as bf16 holds the weight.
        for step in 0..2000 {
            let scale = f16::from_f32(0.9 + step as f32 * 0.0007).to_f32();
            for code in 1i8..=8 {
                let mut values = [0.0; BLOCK];
                values[3] = bf16::from_f32(-f32::from(code) * scale).to_f32();
                values[7] = bf16::from_f32(f32::from(code - 1) * scale).to_f32();
                assert!(lattice(&values).is_some(), "{scale} {code}");
            }
        }
    }

    #[test]
    fn weights_of_no_grid_are_not_taken_for_any() {
        let mut state = 1u32;
        let values: Vec<f32> = (0..64 * 64)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
            })
            .collect();
        assert_eq!(on_lattice(&Floats::new("w", 64, values)).unwrap(), None);
        assert_eq!(
            on_lattice(&Floats::new("w", 64, vec![0.0; 64 * 64])).unwrap(),
            None
        );
        // A grid of 8 bits is none of 4.
        let values = (0..64 * 64)
            .map(|i| ((i * 37 % 255) as f32 - 127.0) * 0.01)
            .collect();
        assert_eq!(on_lattice(&Floats::new("w", 64, values)).unwrap(), None);
    }

    #[test]
    fn some_blocks_may_lie_elsewhere() {
        let value = |i: usize| (i * 7 % 16) as f32 - 8.0;
        let mut values: Vec<f32> = (0..64 * 64).map(value).collect();
        values[5] = 0.123;
        let matrix = Floats::new("w", 64, values.clone());
        let found = on_lattice(&matrix).unwrap();
        assert_eq!(
            found,
            Some(OnLattice {
                blocks: 127,
                of: 128
            })
        );
        let kept = KeepLattice.quantize(&matrix, None, INT4).unwrap();
        assert!((f32::from(kept.codes[5]) * kept.scales[0] - 0.123).abs() < 0.6);
        assert_eq!(f32::from(kept.codes[40]) * kept.scales[1], values[40]);
    }
}
