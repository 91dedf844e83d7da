//! Round to nearest: each block of 32 weights gets a scale from its own range and nothing else.

use super::{BLOCK, Bits, QuantizeError, QuantizedRows, Quantizer, ScaleGrid, Target};
use crate::calibrate::Statistics;
use crate::onnx::FloatRows;
use crate::panels::{PANEL_ROWS, panels};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// The quantizer that needs no calibration text.
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
        let (rows, columns) = (weights.rows(), weights.columns());
        let blocks = columns.div_ceil(BLOCK);
        let mut quantized = QuantizedRows {
            integers: vec![0; rows * columns],
            scales: vec![0.0; rows * blocks],
        };
        if quantized.integers.is_empty() {
            return Ok(quantized);
        }
        let integers = quantized.integers.par_chunks_mut(PANEL_ROWS * columns);
        let scales = quantized.scales.par_chunks_mut(PANEL_ROWS * blocks);
        let panels: Vec<Range<usize>> = panels(rows).collect();
        let of_panels: Vec<Result<f32, QuantizeError>> = panels
            .into_par_iter()
            .zip(integers.zip(scales))
            .map(|(panel, (integers, scales))| {
                quantize_panel(weights, panel, target, integers, scales)
            })
            .collect();
        let mut largest = 0.0f32;
        for of_panel in of_panels {
            largest = largest.max(of_panel?);
        }
        if largest > 0.0 && quantized.integers.iter().all(|integer| *integer == 0) {
            return Err(QuantizeError::TooSmall {
                matrix: weights.name().to_owned(),
                value: largest,
            });
        }
        Ok(quantized)
    }
}

/// Quantizes some rows, and gives the largest magnitude of their weights.
fn quantize_panel(
    weights: &dyn FloatRows,
    panel: Range<usize>,
    target: Target,
    integers: &mut [i8],
    scales: &mut [f32],
) -> Result<f32, QuantizeError> {
    let columns = weights.columns();
    let blocks = columns.div_ceil(BLOCK);
    let mut values = vec![0.0; panel.len() * columns];
    weights.read(panel.clone(), &mut values)?;
    weights.release(panel.clone());
    let mut largest = 0.0f32;
    for (index, row) in panel.enumerate() {
        let values = values[index * columns..][..columns].chunks(BLOCK);
        let integers = integers[index * columns..][..columns].chunks_mut(BLOCK);
        let scales = &mut scales[index * blocks..][..blocks];
        for ((values, integers), scale) in values.zip(integers).zip(scales) {
            let quantized = quantize_block(values, target, integers);
            let block = quantized.map_err(|fault| match fault {
                Fault::NotFinite => QuantizeError::NotFinite {
                    matrix: weights.name().to_owned(),
                    row,
                },
                Fault::TooLarge(value) => QuantizeError::TooLarge {
                    matrix: weights.name().to_owned(),
                    row,
                    value,
                },
            })?;
            *scale = block.scale;
            largest = largest.max(block.extreme.abs());
        }
    }
    Ok(largest)
}

/// What became of a block.
struct Block {
    scale: f32,
    /// The weight of the largest magnitude.
    extreme: f32,
}

enum Fault {
    NotFinite,
    TooLarge(f32),
}

/// Fills `integers` and gives the scale.
fn quantize_block(
    values: &[f32],
    Target { bits, grid }: Target,
    integers: &mut [i8],
) -> Result<Block, Fault> {
    let mut extreme = 0.0f32;
    for &value in values {
        if !value.is_finite() {
            return Err(Fault::NotFinite);
        }
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    let scale = match bits {
        Bits::Eight => round_scale(extreme.abs() / 127.0, grid),
        Bits::Four => {
            // Symmetric around zero, or with the extreme at -8, which leaves 16 levels in use but clips the other end.
            let candidates =
                [extreme.abs() / 7.0, extreme / -8.0].map(|scale| round_scale(scale, grid));
            let errors = candidates.map(|scale| squared_error(values, scale, bits));
            if errors[1] < errors[0] {
                candidates[1]
            } else {
                candidates[0]
            }
        }
    };
    if !scale.is_finite() {
        return Err(Fault::TooLarge(extreme));
    }
    for (&value, integer) in values.iter().zip(integers) {
        *integer = nearest(value, scale, bits) as i8;
    }
    Ok(Block { scale, extreme })
}

/// The nearest scale that the grid holds; infinite when it is out of range.
fn round_scale(scale: f32, grid: ScaleGrid) -> f32 {
    match grid {
        ScaleGrid::F16 => f16::from_f32(scale).to_f32(),
        // bf16 has fewer digits but more range than f16; what is too small for f16 to hold exactly loses digits twice.
        ScaleGrid::Bf16 => {
            let both = f16::from_f32(bf16::from_f32(scale).to_f32()).to_f32();
            bf16::from_f32(both).to_f32()
        }
    }
}

/// The integer nearest to `value / scale` in range, ties to even, as a float.
fn nearest(value: f32, scale: f32, bits: Bits) -> f32 {
    // Adding it leaves no room for digits after the point. The function that rounds is a call on x86-64 without SSE4.1.
    const ROUNDS: f32 = 12_582_912.0;
    if scale == 0.0 {
        return 0.0;
    }
    let (low, high) = match bits {
        Bits::Four => (-8.0, 7.0),
        Bits::Eight => (-127.0, 127.0),
    };
    // Limits are integers, so it is the same before and after rounding.
    (value / scale).clamp(low, high) + ROUNDS - ROUNDS
}

fn squared_error(values: &[f32], scale: f32, bits: Bits) -> f64 {
    values
        .iter()
        .map(|&value| {
            let error =
                f64::from(value) - f64::from(nearest(value, scale, bits)) * f64::from(scale);
            error * error
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_the_nearest_in_range_and_ties_go_to_even() {
        for bits in [Bits::Four, Bits::Eight] {
            let (low, high) = match bits {
                Bits::Four => (-8.0, 7.0),
                Bits::Eight => (-127.0f32, 127.0f32),
            };
            for step in -2600..=2600 {
                let value = step as f32 / 10.0 + if step % 3 == 0 { 0.05 } else { 0.0 };
                for value in [value, step as f32 * 0.5] {
                    let expected = value.round_ties_even().clamp(low, high);
                    assert_eq!(nearest(value, 1.0, bits), expected, "{value}");
                }
            }
        }
    }
}
