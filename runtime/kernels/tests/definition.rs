//! The kernels against plain f64 arithmetic: that they compute what they say, within rounding.
#![allow(clippy::expect_used)]

use niwaki_kernels::*;
use std::sync::Arc;

fn kernels() -> Kernels {
    Kernels::new(Isa::Scalar, Arc::new(ThreadPool::new(1))).expect("scalar code runs everywhere")
}

/// Numbers between -1 and 1 that look random and are the same everywhere.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(12345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*actual) - expected).abs();
        assert!(
            error <= tolerance,
            "element {index}: {actual} instead of {expected}"
        );
    }
}

#[test]
fn a_quantized_product_is_that_of_the_dequantized_operands() {
    let (rows, cols, tokens) = (37, 77_usize, 3);
    for (element, limit) in [(Element::Int4, 7.0), (Element::Int8, 127.0)] {
        for block in [16, 32] {
            for zero_points in [false, true] {
                let format = MatrixFormat {
                    element,
                    block,
                    scale: ScaleType::F16,
                    zero_points,
                };
                let blocks = cols.div_ceil(block);
                let q: Vec<i8> = numbers(rows * cols, 1)
                    .iter()
                    .map(|x| (x * limit).round() as i8)
                    .collect();
                let scales = vec![0.031_25; rows * blocks];
                let points: Vec<i8> = numbers(rows * blocks, 2)
                    .iter()
                    .map(|x| (x * 7.0) as i8)
                    .collect();
                let points = zero_points.then_some(&points[..]);
                let bytes = pack_int(format, rows, cols, &q, &scales, points).expect("packs");
                let matrix = Matrix::new(format, rows, cols, &bytes).expect("is a matrix");

                let x = numbers(tokens * cols, 3);
                let mut quantized = QuantizedRows::new();
                let mut out = vec![0.0; tokens * rows];
                let bias = numbers(rows, 4);
                kernels().matmul(
                    &matrix,
                    &Rows::contiguous(&x, tokens, cols),
                    Some(&bias),
                    &mut quantized,
                    &mut RowsMut::contiguous(&mut out, tokens, rows),
                );
                let mut expected = Vec::new();
                let mut weights = vec![0.0; cols];
                for token in 0..tokens {
                    let (a, d) = (quantized.values(token), quantized.scales(token));
                    for (row, bias) in bias.iter().enumerate() {
                        matrix.read_row(row, &mut weights);
                        let sum: f64 = (0..cols)
                            .map(|k| f64::from(weights[k]) * f64::from(a[k]) * f64::from(d[k / 32]))
                            .sum();
                        expected.push(sum + f64::from(*bias));
                    }
                }
                close(&out, &expected, 1e-4);
            }
        }
    }
}

#[test]
fn a_product_of_codes_is_that_of_their_values() {
    let (rows, cols, tokens) = (37, 77_usize, 3);
    // In no order, with both extremes, and one value twice.
    let values = [
        127, -3, 40, -127, 0, 9, -60, 18, -18, 96, -3, 1, -90, 60, 30, -35,
    ];
    let blocks = cols.div_ceil(32);
    let codes: Vec<i8> = numbers(rows * cols, 1)
        .iter()
        .map(|x| ((x + 1.0) * 8.0) as i8)
        .collect();
    let scales: Vec<f32> = (0..rows * blocks)
        .map(|i| [0.031_25, -0.062_5][i % 2])
        .collect();
    let format = MatrixFormat::CODEBOOK4;
    let bytes = pack_int(format, rows, cols, &codes, &scales, None).expect("packs");
    let codebook = Codebook::new(values).expect("has no -128");
    let matrix = Matrix::with_codebook(codebook, rows, cols, &bytes).expect("is a matrix");
    let x = numbers(tokens * cols, 3);
    let mut quantized = QuantizedRows::new();
    let mut out = vec![0.0; tokens * rows];
    kernels().matmul(
        &matrix,
        &Rows::contiguous(&x, tokens, cols),
        None,
        &mut quantized,
        &mut RowsMut::contiguous(&mut out, tokens, rows),
    );
    let mut expected = Vec::new();
    for token in 0..tokens {
        let (a, d) = (quantized.values(token), quantized.scales(token));
        for row in 0..rows {
            let weight = |k: usize| {
                let value = values[codes[row * cols + k] as usize];
                f64::from(value) * f64::from(scales[row * blocks + k / 32])
            };
            let term = |k: usize| weight(k) * f64::from(a[k]) * f64::from(d[k / 32]);
            expected.push((0..cols).map(term).sum());
        }
    }
    close(&out, &expected, 1e-3);
}

#[test]
fn quantized_activations_are_within_half_a_step() {
    let x = numbers(100, 5);
    let mut quantized = QuantizedRows::new();
    kernels().quantize(&Rows::contiguous(&x, 1, 100), 0, &mut quantized);
    for (k, x) in x.iter().enumerate() {
        let d = quantized.scales(0)[k / 32];
        let error = (f32::from(quantized.values(0)[k]) * d - x).abs();
        assert!(error <= d * 0.501, "element {k}: error {error}, step {d}");
    }
    assert!(quantized.values(0)[100..].iter().all(|q| *q == 0));
}

#[test]
fn refined_activations_are_within_half_a_smaller_step() {
    let mut x = numbers(100, 5);
    // Nothing is left of a block of zeros, and of what is too small for a scale.
    x[32..64].fill(0.0);
    x[64..96].fill(1e-38);
    let mut quantized = QuantizedRows::new();
    kernels().quantize(&Rows::contiguous(&x, 1, 100), 3, &mut quantized);
    let (values, scales) = (quantized.values(0), quantized.scales(0));
    let (second, first) = values.split_at(3 * 32);
    for k in 0..32 {
        let [d, e] = [scales[3], scales[0]];
        assert_eq!(e, d / 254.0);
        let error = (f32::from(first[k]) * d + f32::from(second[k]) * e - x[k]).abs();
        assert!(error <= e * 0.52, "element {k}: error {error}, step {e}");
    }
    assert!(values[32..96].iter().all(|q| *q == 0));
    assert!(first[32..96].iter().all(|q| *q == 0));
}

#[test]
fn a_product_of_refined_activations_is_that_of_both_terms() {
    let (rows, cols, tokens, refined) = (37, 141, 6, 2);
    let weights: Vec<i8> = numbers(rows * cols, 1)
        .iter()
        .map(|x| (x * 7.0).round() as i8)
        .collect();
    let x = numbers(tokens * cols, 3);
    let x = Rows::contiguous(&x, tokens, cols);
    for block in [16, 32] {
        let format = MatrixFormat {
            block,
            ..MatrixFormat::INT4
        };
        let scales = vec![0.031_25; rows * cols.div_ceil(block)];
        let bytes = pack_int(format, rows, cols, &weights, &scales, None).expect("packs");
        let matrix = Matrix::new(format, rows, cols, &bytes).expect("is a matrix");
        let product = |refined| {
            let mut quantized = QuantizedRows::new();
            kernels().quantize(&x, refined, &mut quantized);
            let mut out = vec![0.0; tokens * rows];
            let mut target = RowsMut::contiguous(&mut out, tokens, rows);
            kernels().matmul_quantized(&matrix, &quantized, None, &mut target);
            (out, quantized)
        };
        let (plain, _) = product(0);
        let (out, quantized) = product(refined);
        assert_ne!(out, plain);
        let mut expected = Vec::new();
        for token in 0..tokens {
            let (a, d) = (quantized.values(token), quantized.scales(token));
            let term = |k: usize| f64::from(a[k]) * f64::from(d[k / 32]);
            for row in weights.chunks(cols) {
                let sum = (0..cols).map(|k| {
                    let second = if k < 32 * refined { term(k) } else { 0.0 };
                    f64::from(row[k]) * 0.031_25 * (term(32 * refined + k) + second)
                });
                expected.push(sum.sum());
            }
        }
        close(&out, &expected, 1e-5);

        let asks = matrix.with_refined(refined).expect("has whole blocks");
        let (mut scratch, mut same) = (QuantizedRows::new(), vec![0.0; tokens * rows]);
        let mut target = RowsMut::contiguous(&mut same, tokens, rows);
        kernels().matmul(&asks, &x, None, &mut scratch, &mut target);
        assert_eq!(same, out);
        let error = matrix.with_refined(cols / 32 + 1).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "5 blocks of activations in two terms: this matrix can have at most 4"
        );
    }
}

#[test]
fn a_float_product_is_the_product() {
    let (rows, cols, tokens) = (33, 50, 6);
    let weights = numbers(rows * cols, 6);
    let x = numbers(tokens * cols, 7);
    for (format, tolerance) in [(MatrixFormat::F32, 1e-5), (MatrixFormat::F16, 2e-2)] {
        let bytes = pack_float(format, rows, cols, &weights).expect("packs");
        let matrix = Matrix::new(format, rows, cols, &bytes).expect("is a matrix");
        let mut out = vec![0.0; tokens * rows];
        kernels().matmul(
            &matrix,
            &Rows::contiguous(&x, tokens, cols),
            None,
            &mut QuantizedRows::new(),
            &mut RowsMut::contiguous(&mut out, tokens, rows),
        );
        let expected: Vec<f64> = (0..tokens * rows)
            .map(|i| {
                let (token, row) = (i / rows, i % rows);
                (0..cols)
                    .map(|k| f64::from(weights[row * cols + k]) * f64::from(x[token * cols + k]))
                    .sum()
            })
            .collect();
        close(&out, &expected, tolerance);
    }
}

#[test]
fn norms_are_the_formulas() {
    let (rows, width, group) = (2, 60, 20);
    let x = numbers(rows * width, 8);
    let (weight, bias) = (numbers(group, 9), numbers(width, 10));
    let input = Rows::contiguous(&x, rows, width);
    for layer in [false, true] {
        let mut out = vec![0.0; rows * width];
        let mut target = RowsMut::contiguous(&mut out, rows, width);
        if layer {
            kernels().norm_layer(&input, group, Some(&weight), Some(&bias), 1e-5, &mut target);
        } else {
            kernels().norm_rms(&input, group, Some(&weight), Some(&bias), 1e-5, &mut target);
        }
        let mut expected = Vec::new();
        for (index, x) in x.chunks(group).enumerate() {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let mean = if layer {
                x.iter().sum::<f64>() / group as f64
            } else {
                0.0
            };
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / group as f64;
            for (i, x) in x.iter().enumerate() {
                let bias = f64::from(bias[index % (width / group) * group + i]);
                expected.push((x - mean) / (square + 1e-5).sqrt() * f64::from(weight[i]) + bias);
            }
        }
        close(&out, &expected, 1e-5);
    }
}

#[test]
fn attention_is_the_softmax_weighted_mean_of_the_visible_values() {
    let (heads, kv_heads, head_dim, past, tokens) = (4, 2, 24, 130_usize, 3_usize);
    let positions = past + tokens;
    let keys = numbers(positions * kv_heads * head_dim, 11);
    let values = numbers(positions * kv_heads * head_dim, 12);
    let queries = numbers(tokens * heads * head_dim, 13);
    for (element, tolerance) in [
        (KvElement::F32, 2e-6),
        (KvElement::F16, 2e-3),
        (KvElement::I8, 2e-2),
    ] {
        for (window, whole) in [
            (None, false),
            (Some(1), false),
            (Some(70), false),
            (None, true),
        ] {
            for softcap in [None, Some(2.0)] {
                let kv = KvFormat {
                    kv_heads,
                    head_dim,
                    element,
                };
                let page_bytes = kv.page_bytes().expect("is small");
                let mut pages = vec![vec![0xff; page_bytes]; positions.div_ceil(PAGE_TOKENS)];
                for position in 0..positions {
                    let row = position * kv_heads * head_dim..(position + 1) * kv_heads * head_dim;
                    let (key, value) = (&keys[row.clone()], &values[row]);
                    kernels().write_kv(
                        &kv,
                        &mut pages[position / PAGE_TOKENS],
                        position % PAGE_TOKENS,
                        key,
                        value,
                    );
                }
                let options = AttentionOptions {
                    kv,
                    heads,
                    first_position: past,
                    scale: 0.7,
                    softcap,
                    window,
                    whole: whole.then_some(positions),
                };
                let mut out = vec![0.0; tokens * heads * head_dim];
                kernels().attention(
                    &options,
                    &Rows::contiguous(&queries, tokens, heads * head_dim),
                    &pages,
                    &mut AttentionScratch::new(),
                    &mut RowsMut::contiguous(&mut out, tokens, heads * head_dim),
                );
                let mut expected = Vec::new();
                for token in 0..tokens {
                    for head in 0..heads {
                        let query = &queries[(token * heads + head) * head_dim..][..head_dim];
                        let last = if whole { positions - 1 } else { past + token };
                        let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
                        let row = |x: &[f32], position: usize| -> Vec<f64> {
                            let start = (position * kv_heads + head / 2) * head_dim;
                            x[start..][..head_dim]
                                .iter()
                                .map(|x| f64::from(*x))
                                .collect()
                        };
                        let weights: Vec<f64> = (first..=last)
                            .map(|position| {
                                let key = row(&keys, position);
                                let dot: f64 =
                                    key.iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum();
                                let score = dot * 0.7;
                                softcap.map_or(score, |cap| {
                                    let cap = f64::from(cap);
                                    cap * (score / cap).tanh()
                                })
                            })
                            .map(f64::exp)
                            .collect();
                        let sum: f64 = weights.iter().sum();
                        for column in 0..head_dim {
                            let weighted: f64 = (first..=last)
                                .zip(&weights)
                                .map(|(position, weight)| weight * row(&values, position)[column])
                                .sum();
                            expected.push(weighted / sum);
                        }
                    }
                }
                close(&out, &expected, tolerance);
            }
        }
    }
}
