//! Methods beside each other, by the error that they are to make small.

use super::noise;
use crate::calibrate::{Observer, Statistics, Wanted};
use crate::onnx::Floats;
use crate::plan::Code;
use crate::quantize::levels::Levels;
use crate::quantize::{
    BLOCK, Gptq, QuantizeError, QuantizedRows, Quantizer, RoundToNearest, ScaleGrid, ScaleSearch,
    Target, quantize_in_reach,
};
use half::f16;
use proptest::prelude::*;

const CODES: [Code; 3] = [Code::Int4, Code::Codebook4, Code::Int8];

fn target(code: Code) -> Target {
    Target {
        code,
        grid: ScaleGrid::F16,
    }
}

/// A text in which some columns are driven more than others, and columns go together.
fn rows(columns: usize, tokens: usize) -> Vec<f32> {
    let own = noise(columns * tokens, 5);
    let shared = noise(tokens, 6);
    let row = |token: usize| {
        let own = &own[token * columns..][..columns];
        let shared = shared[token];
        own.iter().enumerate().map(move |(column, x)| {
            let strength = if column % 11 == 0 { 5.0 } else { 0.3 };
            strength * (x + 0.8 * shared)
        })
    };
    (0..tokens).flat_map(row).collect()
}

fn statistics(columns: usize, rows: &[f32]) -> Statistics {
    let wanted = Wanted {
        square_sums: true,
        gram: true,
        ..Wanted::default()
    };
    let mut statistics = Statistics::new(columns, wanted).unwrap();
    statistics.observe(rows);
    statistics.finish();
    statistics
}

/// The values that codes and scales stand for.
fn values(quantized: &QuantizedRows, columns: usize) -> Vec<f32> {
    let blocks = columns.div_ceil(BLOCK);
    let code = |code: i8| match &quantized.codebook {
        Some(codebook) => f32::from(codebook.values()[usize::try_from(code).unwrap()]),
        None => f32::from(code),
    };
    quantized
        .codes
        .iter()
        .enumerate()
        .map(|(at, q)| {
            let scale = quantized.scales[at / columns * blocks + at % columns / BLOCK];
            code(*q) * scale
        })
        .collect()
}

/// The mean square of what the products are wrong by.
fn error(weights: &[f32], quantized: &QuantizedRows, columns: usize, text: &[f32]) -> f64 {
    let differences: Vec<f32> = weights
        .iter()
        .zip(values(quantized, columns))
        .map(|(weight, value)| weight - value)
        .collect();
    let mut sum = 0.0;
    for x in text.chunks(columns) {
        for row in differences.chunks(columns) {
            let product: f32 = row.iter().zip(x).map(|(a, b)| a * b).sum();
            sum += f64::from(product).powi(2);
        }
    }
    sum / (text.len() / columns * weights.len() / columns) as f64
}

#[test]
fn feedback_is_better_than_a_search_and_a_search_than_rounding() {
    for (columns, name) in [(96, "whole blocks"), (81, "a short last block")] {
        let text = rows(columns, 400);
        let (seen, unseen) = text.split_at(300 * columns);
        let statistics = statistics(columns, seen);
        let weights = noise(48 * columns, 7);
        let matrix = Floats::new("w", columns, weights.clone());
        for code in [Code::Int4, Code::Codebook4] {
            let of = |quantizer: &dyn Quantizer| {
                let quantized = quantizer.quantize(&matrix, Some(&statistics), target(code));
                error(&weights, &quantized.unwrap(), columns, unseen)
            };
            let (rtn, search, gptq) = (of(&RoundToNearest), of(&ScaleSearch), of(&Gptq::USUAL));
            assert!(search < 0.9 * rtn, "{name}, {code:?}: {search} {rtn}");
            assert!(gptq < 0.8 * search, "{name}, {code:?}: {gptq} {search}");
        }
    }
}

#[test]
fn a_codebook_is_better_than_integers() {
    let columns = 128;
    let text = rows(columns, 200);
    let statistics = statistics(columns, &text);
    let weights = noise(64 * columns, 8);
    let matrix = Floats::new("w", columns, weights.clone());
    for quantizer in [&ScaleSearch as &dyn Quantizer, &Gptq::USUAL] {
        let [linear, codebook] = [Code::Int4, Code::Codebook4].map(|code| {
            let quantized = quantizer.quantize(&matrix, Some(&statistics), target(code));
            error(&weights, &quantized.unwrap(), columns, &text)
        });
        assert!(
            codebook < 0.95 * linear,
            "{}: {codebook} {linear}",
            quantizer.name()
        );
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let columns = 150;
    let statistics = statistics(columns, &rows(columns, 200));
    let matrix = Floats::new("w", columns, noise(200 * columns, 9));
    for quantizer in [
        &RoundToNearest as &dyn Quantizer,
        &ScaleSearch,
        &Gptq::USUAL,
    ] {
        for code in CODES {
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                pool.install(|| quantizer.quantize(&matrix, Some(&statistics), target(code)))
            };
            assert_eq!(on(1).unwrap(), on(3).unwrap(), "{}", quantizer.name());
        }
    }
}

#[test]
fn without_statistics_every_method_gives_something_near() {
    let columns = 64;
    let weights = noise(32 * columns, 10);
    let matrix = Floats::new("w", columns, weights.clone());
    for quantizer in [
        &RoundToNearest as &dyn Quantizer,
        &ScaleSearch,
        &Gptq::USUAL,
    ] {
        for (code, most) in CODES.into_iter().zip([0.08, 0.08, 0.003]) {
            let quantized = quantizer.quantize(&matrix, None, target(code)).unwrap();
            for (weight, value) in weights.iter().zip(values(&quantized, columns)) {
                assert!(
                    (weight - value).abs() < most,
                    "{}: {weight} {value}",
                    quantizer.name()
                );
            }
        }
    }
}

#[test]
fn pruned_weights_stay_zero() {
    let columns = 96;
    let statistics = statistics(columns, &rows(columns, 200));
    let mut weights = noise(64 * columns, 13);
    for (at, weight) in weights.iter_mut().enumerate() {
        if at * 7 % 3 == 0 {
            *weight = 0.0;
        }
    }
    let matrix = Floats::new("w", columns, weights.clone());
    for quantizer in [&ScaleSearch as &dyn Quantizer, &Gptq::USUAL] {
        for code in CODES {
            let quantized = quantizer
                .quantize(&matrix, Some(&statistics), target(code))
                .unwrap();
            for (weight, value) in weights.iter().zip(values(&quantized, columns)) {
                assert!(
                    *weight != 0.0 || value == 0.0,
                    "{}, {code:?}",
                    quantizer.name()
                );
            }
        }
    }
}

#[test]
fn a_text_that_drives_nothing_is_no_reason_to_fail() {
    let columns = 64;
    let statistics = statistics(columns, &vec![0.0; columns * 10]);
    let matrix = Floats::new("w", columns, noise(16 * columns, 11));
    for quantizer in [&ScaleSearch as &dyn Quantizer, &Gptq::USUAL] {
        for code in CODES {
            let quantized = quantizer
                .quantize(&matrix, Some(&statistics), target(code))
                .unwrap();
            assert!(
                quantized
                    .scales
                    .iter()
                    .all(|scale| scale.is_finite() && *scale != 0.0)
            );
        }
    }
}

#[test]
fn blocks_out_of_reach_of_f16_get_wide_scales_and_none_becomes_zero() {
    let columns = 64;
    for out_of_reach in [1e-12f32, 3e8] {
        let mut weights = noise(16 * columns, 12);
        for weight in &mut weights[3 * columns..3 * columns + BLOCK] {
            *weight *= out_of_reach;
        }
        let matrix = Floats::new("w", columns, weights.clone());
        for quantizer in [
            &RoundToNearest as &dyn Quantizer,
            &ScaleSearch,
            &Gptq::USUAL,
        ] {
            for code in CODES {
                let refused = quantizer.quantize(&matrix, None, target(code)).unwrap_err();
                let named = matches!(
                    refused,
                    QuantizeError::TooSmall { row: 3, .. } | QuantizeError::TooLarge { row: 3, .. }
                );
                assert!(named, "{refused}");
                let (quantized, used) =
                    quantize_in_reach(quantizer, &matrix, None, target(code)).unwrap();
                assert_eq!(used.grid, ScaleGrid::F32);
                let values = values(&quantized, columns);
                let block = 3 * columns..3 * columns + BLOCK;
                let largest = weights[block.clone()]
                    .iter()
                    .fold(0.0f32, |a, b| a.max(b.abs()));
                for (weight, value) in weights[block.clone()].iter().zip(&values[block]) {
                    assert!((weight - value).abs() < 0.2 * largest, "{weight} {value}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn codes_and_scales_are_those_of_their_format(
        rows in 1usize..40, columns in 1usize..100, seed: u32, spread in 0.01f32..100.0,
    ) {
        let weights: Vec<f32> = noise(rows * columns, seed).iter().map(|x| x * spread).collect();
        let matrix = Floats::new("w", columns, weights);
        let text = noise(columns * 20, seed ^ 1);
        let statistics = statistics(columns, &text);
        for quantizer in [&RoundToNearest as &dyn Quantizer, &ScaleSearch, &Gptq::USUAL] {
            for code in CODES {
                let quantized = quantizer.quantize(&matrix, Some(&statistics), target(code)).unwrap();
                let limits = match code {
                    Code::Int4 => -8..=7,
                    Code::Codebook4 => 0..=15,
                    Code::Int8 => -127..=127,
                };
                prop_assert_eq!(quantized.codebook.is_some(), code == Code::Codebook4);
                prop_assert_eq!(quantized.codes.len(), rows * columns);
                prop_assert_eq!(quantized.scales.len(), rows * columns.div_ceil(BLOCK));
                prop_assert!(quantized.codes.iter().all(|code| limits.contains(code)));
                prop_assert!(quantized.scales.iter().all(|scale| f16::from_f32(*scale).to_f32() == *scale));
            }
        }
    }

    #[test]
    fn no_other_level_is_nearer(x in -300.0f32..300.0, values: [i8; 16]) {
        let values = values.map(|value| value.max(-127));
        let levels = Levels::table(values);
        let [nearest] = levels.nearest(&[x]);
        for value in values {
            prop_assert!((nearest - x).abs() <= (f32::from(value) - x).abs());
        }
    }
}
