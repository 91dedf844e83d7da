//! Round to nearest: each block of 32 weights gets a scale from its own range and nothing else.

use super::codebook_fit;
use super::levels::{Block, Levels};
use super::matrix::{self, Panel};
use super::scale::round_scale;
use super::{BLOCK, Code, QuantizeError, QuantizedRows, Quantizer, Target};
use crate::calibrate::Statistics;
use crate::onnx::FloatRows;

/// The quantizer that needs no calibration text and next to no time.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundToNearest;

impl Quantizer for RoundToNearest {
    fn name(&self) -> &'static str {
        "RTN"
    }

    /// Block by block; the last block of a row may be shorter. Scales are rounded to the grid first and the weights by the
    /// rounded scale, so that no error hides in the storing of the scale.
    fn quantize(
        &self,
        weights: &dyn FloatRows,
        _: Option<&Statistics>,
        target: Target,
    ) -> Result<QuantizedRows, QuantizeError> {
        let codebook = (target.code == Code::Codebook4).then(codebook_fit::beginning);
        let levels = Levels::of(target.code, codebook.as_ref());
        let blocks = weights.columns().div_ceil(BLOCK);
        matrix::quantize(weights, codebook, |panel: &mut Panel<'_>| {
            for row in 0..panel.rows() {
                for index in 0..blocks {
                    let weights = matrix::block(panel.weights(row), index);
                    let scale = scale(&weights, &levels, target);
                    panel.set_scale(row, index, scale)?;
                    let length = (panel.weights(row).len() - index * BLOCK).min(BLOCK);
                    for (column, &weight) in weights.iter().take(length).enumerate() {
                        let code = levels.code(over(weight, scale));
                        panel.set_code(row, index * BLOCK + column, code);
                    }
                }
            }
            Ok(())
        })
    }
}

fn over(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { weight / scale }
}

/// The scale that brings the largest weight to an end of the levels.
fn scale(weights: &Block, levels: &Levels, target: Target) -> f32 {
    let extreme = weights.iter().fold(0.0f32, |extreme, weight| {
        if weight.abs() > extreme.abs() {
            *weight
        } else {
            extreme
        }
    });
    let (low, high) = levels.ends();
    // Which end leaves less error is tried out; -8 to 7 leaves 16 levels in use, but may clip.
    let candidates = match target.code {
        Code::Int8 => return round_scale(extreme.abs() / high, target.grid),
        Code::Int4 => [extreme.abs() / high, extreme / low],
        Code::Codebook4 => [extreme / high, extreme / low],
    };
    let candidates = candidates.map(|scale| round_scale(scale, target.grid));
    let errors = candidates.map(|scale| squared_error(weights, scale, levels));
    if errors[1] < errors[0] {
        candidates[1]
    } else {
        candidates[0]
    }
}

fn squared_error(weights: &Block, scale: f32, levels: &Levels) -> f64 {
    let rounded = levels.nearest(&weights.map(|weight| over(weight, scale)));
    let pairs = weights.iter().zip(rounded);
    pairs
        .map(|(&weight, level)| {
            let error = f64::from(weight) - f64::from(level) * f64::from(scale);
            error * error
        })
        .sum()
}
