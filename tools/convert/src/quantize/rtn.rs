//! Round to nearest: each block of 32 weights gets a scale from its own range and nothing else.

use half::{bf16, f16};

use super::{BLOCK, Bits, QuantizeError, QuantizedRows, Quantizer, ScaleGrid, WeightRows};

/// The quantizer that needs no calibration text.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundToNearest;

impl Quantizer for RoundToNearest {
    fn name(&self) -> &'static str {
        "RTN"
    }

    fn quantize(
        &self,
        rows: &WeightRows<'_>,
        bits: Bits,
        grid: ScaleGrid,
    ) -> Result<QuantizedRows, QuantizeError> {
        quantize_rows(rows, bits, grid)
    }
}

/// Quantizes rows block by block; the last block of a row may be shorter. Scales are rounded to the grid first and the
/// weights by the rounded scale, so that no error hides in the storing of the scale.
///
/// # Errors
/// When a weight is not finite, or too large for a scale on the grid.
pub fn quantize_rows(
    rows: &WeightRows<'_>,
    bits: Bits,
    grid: ScaleGrid,
) -> Result<QuantizedRows, QuantizeError> {
    let mut quantized = QuantizedRows {
        integers: vec![0; rows.values.len()],
        scales: Vec::with_capacity(rows.values.len().div_ceil(BLOCK)),
    };
    if rows.columns == 0 {
        return Ok(quantized);
    }
    let pairs = rows
        .values
        .chunks(rows.columns)
        .zip(quantized.integers.chunks_mut(rows.columns));
    for (row, (values, integers)) in (rows.first_row..).zip(pairs) {
        for (values, integers) in values.chunks(BLOCK).zip(integers.chunks_mut(BLOCK)) {
            let scale =
                quantize_block(values, bits, grid, integers).map_err(|fault| match fault {
                    Fault::NotFinite => QuantizeError::NotFinite {
                        matrix: rows.name.to_owned(),
                        row,
                    },
                    Fault::TooLarge(value) => QuantizeError::TooLarge {
                        matrix: rows.name.to_owned(),
                        row,
                        value,
                    },
                })?;
            quantized.scales.push(scale);
        }
    }
    Ok(quantized)
}

enum Fault {
    NotFinite,
    TooLarge(f32),
}

/// Fills `integers` and gives the scale.
fn quantize_block(
    values: &[f32],
    bits: Bits,
    grid: ScaleGrid,
    integers: &mut [i8],
) -> Result<f32, Fault> {
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
        *integer = nearest(value, scale, bits);
    }
    Ok(scale)
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

fn nearest(value: f32, scale: f32, bits: Bits) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    let rounded = (value / scale).round_ties_even();
    match bits {
        Bits::Four => rounded.clamp(-8.0, 7.0) as i8,
        Bits::Eight => rounded.clamp(-127.0, 127.0) as i8,
    }
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
