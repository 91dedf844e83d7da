//! Packing: from row-major values to the order that the kernels read.
//!
//! Groups of 16 rows do not depend on each other: a large matrix is packed piecewise, by runs of rows
//! that are multiples of 16, and the pieces are concatenated.

use crate::format::{Element, LayoutError, MatrixFormat, ROWS, ScaleType, quant_position};
use half::f16;

/// Packs `rows x cols` integers.
///
/// `q` is row-major, in the signed domain: -8 to 7 for int4, -128 to 127 for int8; with a codebook it holds
/// the codes, 0 to 15. `scales` and `zero_points` have one entry per row and block, row-major:
/// `rows * ceil(cols / block)`. A weight's value is `(q - zero_point) * scale`, or `codebook[q] * scale`.
/// Padding rows and columns weigh zero: their scales are 0, or the activations that they meet.
///
/// # Errors
/// If a count is wrong, or a value cannot be stored exactly (a scale that binary16 does not hold, an
/// integer out of range, a scale that is not finite).
pub fn pack_int(
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    q: &[i8],
    scales: &[f32],
    zero_points: Option<&[i8]>,
) -> Result<Vec<u8>, LayoutError> {
    if !format.is_quantized() {
        return Err(LayoutError::Element(format.element));
    }
    let size_bytes = format.checked_size(rows, cols)?;
    let blocks = cols.div_ceil(format.block);
    check_count("integers", rows.checked_mul(cols), q.len(), rows, cols)?;
    check_count("scales", rows.checked_mul(blocks), scales.len(), rows, cols)?;
    if zero_points.is_some() != format.zero_points {
        let (given, expected) = (zero_points.is_some(), format.zero_points);
        return Err(LayoutError::ZeroPoints { given, expected });
    }
    if let Some(zero_points) = zero_points {
        check_count(
            "zero points",
            rows.checked_mul(blocks),
            zero_points.len(),
            rows,
            cols,
        )?;
    }
    let limits = match format.element {
        Element::Int4 => -8..=7,
        Element::Codebook4 => 0..=15,
        _ => -128..=127,
    };
    for (what, values) in [("integer", q), ("zero point", zero_points.unwrap_or(&[]))] {
        if let Some(index) = values.iter().position(|value| !limits.contains(value)) {
            return Err(LayoutError::Value {
                what,
                value: values[index].to_string(),
                index,
            });
        }
    }
    let storable = |scale: &f32| match format.scale {
        ScaleType::F16 => f16::from_f32(*scale).to_f32().to_bits() == scale.to_bits(),
        ScaleType::F32 => true,
    };
    if let Some(index) = scales
        .iter()
        .position(|scale| !scale.is_finite() || !storable(scale))
    {
        return Err(LayoutError::Value {
            what: "scale",
            value: scales[index].to_string(),
            index,
        });
    }

    let mut bytes = vec![0; size_bytes];
    if format.element == Element::Int4 {
        // Padding is the integer zero, which is stored as 8.
        for tile in bytes.chunks_mut(format.tile_bytes()) {
            tile[format.quants_offset()..].fill(0x88);
        }
    }
    for row in 0..rows {
        let lane = row % ROWS;
        for block in 0..blocks {
            let tile_index = row / ROWS * blocks + block;
            let tile = &mut bytes[tile_index * format.tile_bytes()..][..format.tile_bytes()];
            let scale = scales[row * blocks + block];
            match format.scale {
                ScaleType::F16 => {
                    tile.as_chunks_mut::<2>().0[lane] = f16::from_f32(scale).to_le_bytes()
                }
                ScaleType::F32 => tile.as_chunks_mut::<4>().0[lane] = scale.to_le_bytes(),
            }
            let zero_point = zero_points.map_or(0, |zero_points| zero_points[row * blocks + block]);
            if format.zero_points {
                tile[format.scales_bytes() + lane] = zero_point as u8;
            }
            let quants = &mut tile[format.quants_offset()..];
            for k in 0..format.block {
                let column = block * format.block + k;
                // A padding column equals the zero point: it weighs zero.
                let q = if column < cols {
                    q[row * cols + column]
                } else {
                    zero_point
                };
                let position = quant_position(format.element, lane, k);
                let byte = &mut quants[position.byte];
                let code = match format.element {
                    Element::Int4 => (q + 8) as u8,
                    Element::Codebook4 => q as u8,
                    _ => {
                        *byte = q as u8;
                        continue;
                    }
                };
                if position.high {
                    *byte = *byte & 0x0f | code << 4;
                } else {
                    *byte = *byte & 0xf0 | code;
                }
            }
        }
    }
    Ok(bytes)
}

/// Packs `rows x cols` row-major floats; binary16 rounds to nearest even.
///
/// # Errors
/// If the format is not a float format, `values` has the wrong length, or one of them is not finite.
pub fn pack_float(
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> Result<Vec<u8>, LayoutError> {
    if format.is_quantized() {
        return Err(LayoutError::Element(format.element));
    }
    let size_bytes = format.checked_size(rows, cols)?;
    check_count("values", rows.checked_mul(cols), values.len(), rows, cols)?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(LayoutError::Value {
            what: "weight",
            value: values[index].to_string(),
            index,
        });
    }
    let mut bytes = vec![0; size_bytes];
    for row in 0..rows {
        for column in 0..cols {
            let index = (row / ROWS * cols + column) * ROWS + row % ROWS;
            let value = values[row * cols + column];
            match format.element {
                Element::F16 => {
                    bytes.as_chunks_mut::<2>().0[index] = f16::from_f32(value).to_le_bytes();
                }
                _ => bytes.as_chunks_mut::<4>().0[index] = value.to_le_bytes(),
            }
        }
    }
    Ok(bytes)
}

fn check_count(
    what: &'static str,
    expected: Option<usize>,
    actual: usize,
    rows: usize,
    cols: usize,
) -> Result<(), LayoutError> {
    let expected = expected.ok_or(LayoutError::TooLarge { rows, cols })?;
    if actual == expected {
        Ok(())
    } else {
        Err(LayoutError::Count {
            what,
            expected,
            actual,
        })
    }
}
