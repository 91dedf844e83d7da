//! The scale search: every block's scale is the one with the least error, where errors count as strongly as their inputs
//! are driven.

use super::levels::Levels;
use super::matrix::{self, Panel};
use super::scale::{Factors, best_scale, round_scale};
use super::{BLOCK, QuantizeError, QuantizedRows, Quantizer, Target};
use crate::calibrate::{Statistics, Wanted};
use crate::onnx::FloatRows;

/// Rounds to nearest by the best scale. Without statistics all errors count alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScaleSearch;

impl Quantizer for ScaleSearch {
    fn name(&self) -> &'static str {
        "scale search"
    }

    fn wants(&self) -> Wanted {
        Wanted {
            square_sums: true,
            ..Wanted::default()
        }
    }

    fn quantize(
        &self,
        weights: &dyn FloatRows,
        statistics: Option<&Statistics>,
        target: Target,
    ) -> Result<QuantizedRows, QuantizeError> {
        let importance: Vec<f32> = match statistics.and_then(|known| known.square_sums.as_ref()) {
            Some(sums) if sums.sums().len() == weights.columns() => {
                sums.means().iter().map(|mean| *mean as f32).collect()
            }
            _ => vec![1.0; weights.columns()],
        };
        let codebook = matrix::codebook(weights, &importance, target)?;
        let levels = Levels::of(target.code, codebook.as_ref());
        let factors = Factors::of(&levels);
        let blocks = weights.columns().div_ceil(BLOCK);
        let important: Vec<_> = (0..blocks)
            .map(|index| matrix::block(&importance, index))
            .collect();
        matrix::quantize(weights, codebook, |panel: &mut Panel<'_>| {
            for row in 0..panel.rows() {
                for (index, importance) in important.iter().enumerate() {
                    let weights = matrix::block(panel.weights(row), index);
                    let scale = best_scale(&levels, &weights, importance, factors);
                    let scale = round_scale(scale, target.grid);
                    panel.set_scale(row, index, scale)?;
                    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    let length = (panel.weights(row).len() - index * BLOCK).min(BLOCK);
                    for (column, weight) in weights.iter().take(length).enumerate() {
                        let code = levels.code(weight * inverse);
                        panel.set_code(row, index * BLOCK + column, code);
                    }
                }
            }
            Ok(())
        })
    }
}
