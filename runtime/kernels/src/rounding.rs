//! Rounding of activations to the levels of a quantized export, for runs that reproduce another runtime.
//!
//! Niwaki itself quantizes activations per block inside its matrix products; these functions are for graphs
//! that carry an export's own quantizers. They are off the fast path, so there is one definition, in scalar code.

use crate::rows::{Rows, RowsMut};

/// ONNX `DynamicQuantizeLinear` followed by dequantization: 256 levels between the smallest and the largest value
/// of all rows, zero among them.
pub fn round_dynamic(x: &Rows<'_>, out: &mut RowsMut<'_>) {
    let (mut low, mut high) = (0.0f32, 0.0f32);
    for row in 0..x.rows() {
        for &value in x.row(row) {
            low = low.min(value);
            high = high.max(value);
        }
    }
    let scale = (high - low) / 255.0;
    if scale == 0.0 {
        for row in 0..x.rows() {
            out.row(row).fill(0.0);
        }
        return;
    }
    let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0);
    for row in 0..x.rows() {
        for (out, &value) in out.row(row).iter_mut().zip(x.row(row)) {
            let level = ((value / scale).round_ties_even() + zero).clamp(0.0, 255.0);
            *out = (level - zero) * scale;
        }
    }
}

/// ONNX `QuantizeLinear` followed by `DequantizeLinear`: levels `(q - zero_point) * scale` for `q` in `low..=high`.
/// `scales` has one entry for all columns, or one for each.
pub fn round_static(
    scales: &[f32],
    zero_point: i32,
    low: i32,
    high: i32,
    x: &Rows<'_>,
    out: &mut RowsMut<'_>,
) {
    let (zero, low, high) = (zero_point as f32, low as f32, high as f32);
    for row in 0..x.rows() {
        let scales = scales.iter().cycle();
        for ((out, &value), &scale) in out.row(row).iter_mut().zip(x.row(row)).zip(scales) {
            let level = ((value / scale).round_ties_even() + zero).clamp(low, high);
            *out = (level - zero) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_levels_span_the_values_of_all_rows() {
        let x = [-1.0, 0.0, 0.1, 1.55];
        let mut out = [9.0; 4];
        round_dynamic(
            &Rows::new(&x, 2, 2, 2),
            &mut RowsMut::new(&mut out, 2, 2, 2),
        );
        let scale = 2.55f32 / 255.0;
        for (out, x) in out.iter().zip(x) {
            assert!((out - x).abs() <= scale / 2.0 + 1e-6, "{out} for {x}");
        }
        assert_eq!(out[1], 0.0);
    }

    #[test]
    fn static_levels_saturate() {
        let x = [10.0, -10.0, 0.26];
        let mut out = [0.0; 3];
        round_static(
            &[0.1],
            0,
            -8,
            7,
            &Rows::new(&x, 1, 3, 3),
            &mut RowsMut::new(&mut out, 1, 3, 3),
        );
        assert_eq!(out, [0.7, -0.8, 0.3].map(|v: f32| (v * 10.0).round() * 0.1));
    }
}
