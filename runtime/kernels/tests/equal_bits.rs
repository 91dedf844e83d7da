//! The arithmetic contract: every instruction set, any number of threads and any way of cutting the
//! input into calls give the same bits.
#![allow(clippy::expect_used)]

mod workload;

use niwaki_kernels::*;
use proptest::prelude::*;
use std::sync::Arc;
use workload::{Numbers, bits};

fn kernels(isa: Isa, threads: usize) -> Kernels {
    Kernels::new(isa, Arc::new(ThreadPool::new(threads))).expect("is available")
}

/// Compares what `compute` returns on every instruction set of this CPU, with 1 and 3 threads.
fn same_everywhere(compute: impl Fn(&Kernels) -> Vec<f32>) -> Vec<f32> {
    let expected = compute(&kernels(Isa::Scalar, 1));
    for isa in Isa::available() {
        for threads in [1, 3] {
            let actual = compute(&kernels(isa, threads));
            assert_eq!(
                bits(&actual),
                bits(&expected),
                "{isa} with {threads} threads"
            );
        }
    }
    expected
}

/// Activations that include zero blocks, subnormals and large numbers.
fn activations(numbers: &mut Numbers, count: usize) -> Vec<f32> {
    let kinds: Vec<u32> = (0..count.div_ceil(16)).map(|_| numbers.below(8)).collect();
    (0..count)
        .map(|i| {
            let x = numbers.next();
            match kinds[i / 16] {
                0 => 0.0,
                1 => x * 1e-38,
                2 => x * 1e-42,
                3 => x * 1e15,
                4 => x * 1e-10,
                _ => x * 3.0,
            }
        })
        .collect()
}

/// A scale that binary16 holds exactly: normal, subnormal, negative, zero and extreme ones.
fn scale(numbers: &mut Numbers, kind: ScaleType) -> f32 {
    let x = numbers.next();
    let scale = match numbers.below(6) {
        0 => 0.0,
        1 => x * 5e-7,
        2 => x * 65504.0,
        _ => x * 0.1,
    };
    match kind {
        ScaleType::F16 => half::f16::from_f32(scale).to_f32(),
        ScaleType::F32 => scale,
    }
}

/// A matrix and its bytes.
struct Packed {
    format: MatrixFormat,
    codebook: Option<Codebook>,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Packed {
    fn matrix(&self) -> Matrix<'_> {
        match self.codebook {
            Some(codebook) => Matrix::with_codebook(codebook, self.rows, self.cols, &self.bytes),
            None => Matrix::new(self.format, self.rows, self.cols, &self.bytes),
        }
        .expect("is a matrix")
    }
}

fn packed(numbers: &mut Numbers, format: MatrixFormat, rows: usize, cols: usize) -> Packed {
    let codes = format.element == Element::Codebook4;
    Packed {
        format,
        codebook: codes.then(|| numbers.codebook()),
        rows,
        cols,
        bytes: packed_bytes(numbers, format, rows, cols),
    }
}

fn packed_bytes(numbers: &mut Numbers, format: MatrixFormat, rows: usize, cols: usize) -> Vec<u8> {
    if !format.is_quantized() {
        let values: Vec<f32> = (0..rows * cols).map(|_| numbers.next()).collect();
        return pack_float(format, rows, cols, &values).expect("packs");
    }
    let blocks = cols.div_ceil(format.block);
    let integer = |numbers: &mut Numbers| match (format.element, numbers.below(4)) {
        (Element::Int4, 0) => -8,
        (Element::Int4, _) => numbers.below(16) as i8 - 8,
        (Element::Codebook4, _) => numbers.below(16) as i8,
        (_, 0) => -128,
        (_, 1) => 127,
        _ => numbers.below(256) as u8 as i8,
    };
    let q: Vec<i8> = (0..rows * cols).map(|_| integer(numbers)).collect();
    let scales: Vec<f32> = (0..rows * blocks)
        .map(|_| scale(numbers, format.scale))
        .collect();
    let points: Vec<i8> = (0..rows * blocks).map(|_| integer(numbers)).collect();
    let points = format.zero_points.then_some(&points[..]);
    pack_int(format, rows, cols, &q, &scales, points).expect("packs")
}

fn formats() -> impl Strategy<Value = MatrixFormat> {
    let elements = prop_oneof![
        3 => Just(Element::Int4),
        3 => Just(Element::Int8),
        3 => Just(Element::Codebook4),
        1 => Just(Element::F16),
        1 => Just(Element::F32),
    ];
    let blocks = prop_oneof![3 => Just(32_usize), 1 => Just(16)];
    let scales = prop_oneof![3 => Just(ScaleType::F16), 1 => Just(ScaleType::F32)];
    (elements, blocks, scales, prop::bool::weighted(0.3)).prop_map(
        |(element, block, scale, zero_points)| match element {
            Element::Codebook4 => MatrixFormat::CODEBOOK4,
            _ => MatrixFormat {
                element,
                block,
                scale,
                zero_points,
            },
        },
    )
}

/// Those that instruction sets have loops of their own for.
const USUAL_FORMATS: [MatrixFormat; 3] = [
    MatrixFormat::INT4,
    MatrixFormat::INT8,
    MatrixFormat::CODEBOOK4,
];

/// The product with the rows of activations in `x`, the same on every instruction set.
fn product_everywhere(matrix: &Matrix<'_>, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let tokens = x.len() / cols;
    same_everywhere(|kernels| {
        let mut out = vec![0.0; tokens * rows];
        kernels.matmul(
            matrix,
            &Rows::contiguous(x, tokens, cols),
            None,
            &mut QuantizedRows::new(),
            &mut RowsMut::contiguous(&mut out, tokens, rows),
        );
        out
    })
}

/// `x` as rows that are `gap` apart.
fn spread(x: &[f32], width: usize, gap: usize) -> Vec<f32> {
    let mut spread: Vec<f32> = x
        .chunks(width)
        .flat_map(|row| row.iter().copied().chain(vec![f32::NAN; gap]))
        .collect();
    spread.truncate(spread.len() - gap);
    spread
}

/// Wide enough that kernels which keep a part of the activations in a cache go over the weights twice.
#[test]
fn products_of_many_wide_rows() {
    let mut numbers = Numbers::new(7);
    let (rows, cols, tokens) = (67, 16_400, 31);
    let x = activations(&mut numbers, tokens * cols);
    for format in USUAL_FORMATS {
        let packed = packed(&mut numbers, format, rows, cols);
        let matrix = packed.matrix();
        same_everywhere(|kernels| {
            let mut out = vec![0.0; tokens * rows];
            kernels.matmul(
                &matrix,
                &Rows::contiguous(&x, tokens, cols),
                None,
                &mut QuantizedRows::new(),
                &mut RowsMut::contiguous(&mut out, tokens, rows),
            );
            out
        });
    }
}

/// More columns and more rows of activations than a kernel takes at once, and as many second terms as there may be.
#[test]
fn large_matrix_products() {
    let shapes = [
        (17, 1100, 5, 0),
        (40, 2090, 1, MAX_REFINED),
        (20, 1030, 71, MAX_REFINED),
        (16, 32, 130, 1),
    ];
    for format in USUAL_FORMATS {
        for (rows, cols, tokens, refined) in shapes {
            let mut numbers = Numbers::new(cols as u64);
            let packed = packed(&mut numbers, format, rows, cols);
            let matrix = packed.matrix();
            let x = activations(&mut numbers, tokens * cols);
            let product = |kernels: &Kernels, first: usize, count: usize| {
                let mut out = vec![0.0; count * rows];
                let x = Rows::contiguous(&x[first * cols..], count, cols);
                let mut quantized = QuantizedRows::new();
                kernels.quantize(&x, refined, &mut quantized);
                let mut target = RowsMut::contiguous(&mut out, count, rows);
                kernels.matmul_quantized(&matrix, &quantized, None, &mut target);
                out
            };
            let together = same_everywhere(|kernels| product(kernels, 0, tokens));
            let alone: Vec<f32> = (0..tokens)
                .flat_map(|token| product(&kernels(Isa::detect(), 1), token, 1))
                .collect();
            assert_eq!(
                bits(&alone),
                bits(&together),
                "{rows} x {cols}, {tokens} tokens"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn codes_give_the_bits_of_the_int8_weights_that_they_stand_for(
        rows in 1_usize..90,
        cols in 1_usize..300,
        tokens in 1_usize..41,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let codebook = numbers.codebook();
        let codes: Vec<i8> = (0..rows * cols).map(|_| numbers.below(16) as i8).collect();
        let values: Vec<i8> = codes.iter().map(|code| codebook.values()[*code as usize]).collect();
        let scales: Vec<f32> = (0..rows * cols.div_ceil(32))
            .map(|_| scale(&mut numbers, ScaleType::F16))
            .collect();
        let x = activations(&mut numbers, tokens * cols);
        let product = |matrix: Matrix<'_>| product_everywhere(&matrix, &x);
        let pack = |format, q: &[i8]| pack_int(format, rows, cols, q, &scales, None).expect("packs");
        let (codes, values) = (pack(MatrixFormat::CODEBOOK4, &codes), pack(MatrixFormat::INT8, &values));
        let codes = Matrix::with_codebook(codebook, rows, cols, &codes).expect("is a matrix");
        let values = Matrix::new(MatrixFormat::INT8, rows, cols, &values).expect("is a matrix");
        prop_assert_eq!(bits(&product(codes)), bits(&product(values)));
    }

    #[test]
    fn int4_weights_give_the_bits_of_codes_that_stand_for_them(
        rows in 1_usize..90,
        cols in 1_usize..300,
        tokens in 1_usize..41,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let bytes = packed_bytes(&mut numbers, MatrixFormat::INT4, rows, cols);
        let linear = Codebook::new(std::array::from_fn(|code| code as i8 - 8)).expect("fits");
        let codes = Matrix::with_codebook(linear, rows, cols, &bytes).expect("is a matrix");
        let int4 = Matrix::new(MatrixFormat::INT4, rows, cols, &bytes).expect("is a matrix");
        let x = activations(&mut numbers, tokens * cols);
        prop_assert_eq!(
            bits(&product_everywhere(&codes, &x)),
            bits(&product_everywhere(&int4, &x))
        );
    }

    #[test]
    fn matrix_products(
        format in formats(),
        rows in 1_usize..90,
        cols in prop_oneof![3 => 1_usize..200, 1 => 200_usize..700],
        tokens in 1_usize..41,
        refined in prop_oneof![1 => Just(0), 1 => 1_usize..8],
        gap in 0_usize..5,
        with_bias: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let refined = refined.min(cols / 32);
        let packed = packed(&mut numbers, format, rows, cols);
        let matrix = packed.matrix();
        let x = activations(&mut numbers, tokens * cols);
        let x = spread(&x, cols, gap);
        let bias: Vec<f32> = (0..rows).map(|_| numbers.next()).collect();
        let bias = with_bias.then_some(&bias[..]);
        let stride = cols + gap;
        let product = |kernels: &Kernels, first: usize, count: usize| {
            let mut out = vec![7.0; count * (rows + gap)];
            let x = Rows::new(&x[first * stride..], count, stride, cols);
            let mut quantized = QuantizedRows::new();
            kernels.quantize(&x, refined, &mut quantized);
            let x = if format.is_quantized() {
                MatmulInput::Quantized(&quantized)
            } else {
                MatmulInput::Float(&x)
            };
            let mut target = RowsMut::new(&mut out, count, rows + gap, rows);
            kernels.matmul_add(&matrix, x, bias, None, &mut target);
            out
        };
        let together = same_everywhere(|kernels| product(kernels, 0, tokens));
        let alone: Vec<f32> = (0..tokens)
            .flat_map(|token| product(&kernels(Isa::detect(), 1), token, 1))
            .collect();
        prop_assert_eq!(bits(&alone), bits(&together));
        for row in together.chunks(rows + gap) {
            prop_assert!(row[rows..].iter().all(|gap| *gap == 7.0), "wrote outside of the columns");
        }
    }

    #[test]
    fn quantization(tokens in 1_usize..5, cols in 1_usize..130, refined in 0_usize..4, seed: u64) {
        let refined = refined.min(cols / 32);
        let x = activations(&mut Numbers::new(seed), tokens * cols);
        same_everywhere(|kernels| {
            let mut quantized = QuantizedRows::new();
            kernels.quantize(&Rows::contiguous(&x, tokens, cols), refined, &mut quantized);
            (0..tokens)
                .flat_map(|row| {
                    let values = quantized.values(row).iter().map(|q| f32::from(*q));
                    values.chain(quantized.scales(row).iter().copied()).collect::<Vec<_>>()
                })
                .collect()
        });
    }

    #[test]
    fn what_is_quantized_as_it_is_computed(
        tokens in 1_usize..5,
        width in prop_oneof![4 => 1_usize..130, 1 => 2000_usize..5000],
        refined in 0_usize..4,
        with_bias: bool,
        layer: bool,
        activation in proptest::sample::select(workload::ACTIVATIONS.to_vec()),
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let refined = refined.min(width / 32);
        // Squares stay finite.
        let a: Vec<f32> = (0..tokens * width)
            .map(|_| numbers.next() * [1.0, 10.0, 120.0, 1e-3, 1e-39][numbers.below(5) as usize])
            .collect();
        let b: Vec<f32> = (0..tokens * width).map(|_| numbers.next()).collect();
        let (a, b) = (Rows::contiguous(&a, tokens, width), Rows::contiguous(&b, tokens, width));
        let weight: Vec<f32> = (0..width).map(|_| numbers.next()).collect();
        let bias = with_bias.then_some(&weight[..]);
        let norm = if layer { Norm::Layer } else { Norm::Rms };
        let integers = |quantized: &QuantizedRows| -> Vec<f32> {
            (0..tokens)
                .flat_map(|row| {
                    let values = quantized.values(row).iter().map(|q| f32::from(*q));
                    values.chain(quantized.scales(row).iter().copied()).collect::<Vec<_>>()
                })
                .collect()
        };
        let in_two_steps = same_everywhere(|kernels| {
            let mut all = Vec::new();
            let mut keep = |compute: &dyn Fn(&mut RowsMut<'_>)| {
                let mut out = vec![0.0; tokens * width];
                compute(&mut RowsMut::contiguous(&mut out, tokens, width));
                let mut quantized = QuantizedRows::new();
                kernels.quantize(&Rows::contiguous(&out, tokens, width), refined, &mut quantized);
                all.extend(integers(&quantized));
            };
            match norm {
                Norm::Rms => keep(&|out| kernels.norm_rms(&a, width, Some(&weight), bias, 1e-5, out)),
                Norm::Layer => keep(&|out| kernels.norm_layer(&a, width, None, bias, 1e-5, out)),
            }
            keep(&|out| kernels.gate(activation, &a, &b, out));
            all
        });
        let at_once = same_everywhere(|kernels| {
            let mut quantized = QuantizedRows::new();
            let weight = (!layer).then_some(&weight[..]);
            kernels.quantize_norm(norm, &a, weight, bias, 1e-5, refined, &mut quantized);
            let mut all = integers(&quantized);
            kernels.quantize_gate(activation, &a, &b, refined, &mut quantized);
            all.extend(integers(&quantized));
            all
        });
        prop_assert_eq!(bits(&in_two_steps), bits(&at_once));
    }

    #[test]
    fn a_product_and_the_sum_after_it(
        format in formats(),
        rows in 1_usize..90,
        cols in 1_usize..100,
        tokens in 1_usize..20,
        scale in prop_oneof![Just(1.0_f32), Just(0.22)],
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let packed = packed(&mut numbers, format, rows, cols);
        let matrix = packed.matrix();
        let x = activations(&mut numbers, tokens * cols);
        let x = Rows::contiguous(&x, tokens, cols);
        let residual = activations(&mut numbers, tokens * rows);
        let residual = Rows::contiguous(&residual, tokens, rows);
        let in_two_steps = same_everywhere(|kernels| {
            let (mut product, mut out) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
            let mut target = RowsMut::contiguous(&mut product, tokens, rows);
            kernels.matmul(&matrix, &x, None, &mut QuantizedRows::new(), &mut target);
            let product = Rows::contiguous(&product, tokens, rows);
            let mut target = RowsMut::contiguous(&mut out, tokens, rows);
            kernels.add_scaled(&residual, &product, scale, &mut target);
            out
        });
        let at_once = same_everywhere(|kernels| {
            let mut quantized = QuantizedRows::new();
            kernels.quantize(&x, 0, &mut quantized);
            let x = if format.is_quantized() {
                MatmulInput::Quantized(&quantized)
            } else {
                MatmulInput::Float(&x)
            };
            let mut out = vec![7.0; tokens * rows];
            let mut target = RowsMut::contiguous(&mut out, tokens, rows);
            let residual = Residual { rows: &residual, scale };
            kernels.matmul_add(&matrix, x, None, Some(residual), &mut target);
            out
        });
        prop_assert_eq!(bits(&in_two_steps), bits(&at_once));
    }

    #[test]
    fn norms(
        tokens in 1_usize..4,
        groups in 1_usize..4,
        group in 1_usize..70,
        layer: bool,
        whole: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let width = groups * group;
        let x: Vec<f32> = (0..tokens * width).map(|_| numbers.next() * 50.0).collect();
        let len = if whole { width } else { group };
        let weight: Vec<f32> = (0..len).map(|_| numbers.next()).collect();
        same_everywhere(|kernels| {
            let mut out = vec![0.0; tokens * width];
            let x = Rows::contiguous(&x, tokens, width);
            let mut rows = RowsMut::contiguous(&mut out, tokens, width);
            if layer {
                kernels.norm_layer(&x, group, Some(&weight), Some(&weight), 1e-6, &mut rows);
            } else {
                kernels.norm_rms(&x, group, Some(&weight), None, 1e-6, &mut rows);
            }
            out
        });
    }

    #[test]
    fn elementwise_functions(width in 1_usize..100, tokens in 1_usize..3, seed: u64) {
        let mut numbers = Numbers::new(seed);
        let a: Vec<f32> = (0..tokens * width)
            .map(|_| {
                let x = numbers.next();
                x * [1.0, 10.0, 120.0, 1e-3, 1e-39][numbers.below(5) as usize]
            })
            .collect();
        let b: Vec<f32> = (0..tokens * width).map(|_| numbers.next()).collect();
        let (a, b) = (Rows::contiguous(&a, tokens, width), Rows::contiguous(&b, tokens, width));
        same_everywhere(|kernels| {
            let mut all = Vec::new();
            let mut keep = |compute: &dyn Fn(&mut RowsMut<'_>)| {
                let mut out = vec![0.0; tokens * width];
                compute(&mut RowsMut::contiguous(&mut out, tokens, width));
                all.extend(out);
            };
            for activation in workload::ACTIVATIONS {
                keep(&|out| kernels.activation(activation, &a, out));
                keep(&|out| kernels.gate(activation, &a, &b, out));
            }
            keep(&|out| kernels.add_scaled(&a, &b, 0.3, out));
            keep(&|out| kernels.scale(0.7, &a, out));
            keep(&|out| kernels.softcap(30.0, &a, out));
            all
        });
    }

    #[test]
    fn rotation(
        heads in 1_usize..4,
        pairs in 0_usize..40,
        rest in 0_usize..20,
        interleaved: bool,
        position in 0_usize..100_000,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let head_dim = 2 * pairs + rest.max(1);
        let x: Vec<f32> = (0..heads * head_dim).map(|_| numbers.next()).collect();
        let frequencies: Vec<f32> = (0..pairs).map(|_| numbers.next().abs()).collect();
        let (mut cos, mut sin) = (vec![0.0; pairs], vec![0.0; pairs]);
        rope_angles(position, &frequencies, 1.5, &mut cos, &mut sin);
        let layout = if interleaved { PairLayout::Interleaved } else { PairLayout::Halves };
        same_everywhere(|kernels| {
            let mut out = vec![0.0; heads * head_dim];
            let tables = RopeTables {
                cos: Rows::contiguous(&cos, 1, pairs),
                sin: Rows::contiguous(&sin, 1, pairs),
            };
            let x = Rows::contiguous(&x, 1, heads * head_dim);
            let mut rows = RowsMut::contiguous(&mut out, 1, heads * head_dim);
            kernels.rope(&x, head_dim, layout, &tables, &mut rows);
            out
        });
    }

    #[test]
    fn attention(
        kv_heads in 1_usize..3,
        shared in 1_usize..9,
        head_dim in 1_usize..100,
        past in prop_oneof![4 => 0_usize..200, 1 => 500_usize..700],
        tokens in prop_oneof![1 => Just(1_usize), 2 => 1_usize..20],
        element in prop_oneof![Just(KvElement::F32), Just(KvElement::F16), Just(KvElement::I8)],
        window in prop_oneof![Just(None), (1_usize..150).prop_map(Some)],
        softcap in prop_oneof![Just(None), Just(Some(20.0_f32))],
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let heads = kv_heads * shared;
        let kv = KvFormat { kv_heads, head_dim, element };
        let positions = past + tokens;
        let page_bytes = kv.page_bytes().expect("is small");
        // What was never written must not matter, so it is NaN.
        let mut pages = vec![vec![0xff; page_bytes]; positions.div_ceil(PAGE_TOKENS)];
        let mut queries = Vec::new();
        let write = |kernels: &Kernels, pages: &mut [Vec<u8>], numbers: &mut Numbers, position: usize| {
            let key: Vec<f32> = (0..kv_heads * head_dim).map(|_| numbers.next() * 4.0).collect();
            let value: Vec<f32> = (0..kv_heads * head_dim).map(|_| numbers.next()).collect();
            let page = &mut pages[position / PAGE_TOKENS];
            kernels.write_kv(&kv, page, position % PAGE_TOKENS, &key, &value);
        };
        let attend = |kernels: &Kernels, pages: &[Vec<u8>], queries: &[f32], first: usize, whole: Option<usize>| {
            let count = queries.len() / (heads * head_dim);
            let mut out = vec![0.0; queries.len()];
            let options =
                AttentionOptions { kv, heads, first_position: first, scale: 0.3, softcap, window, whole };
            let queries = Rows::contiguous(queries, count, heads * head_dim);
            let mut rows = RowsMut::contiguous(&mut out, count, heads * head_dim);
            let mut scratch = AttentionScratch::new();
            kernels.attention(&options, &queries, pages, &mut scratch, &mut rows);
            out
        };
        let fastest = kernels(Isa::detect(), 1);
        for position in 0..past {
            write(&fastest, &mut pages, &mut numbers, position);
        }
        let mut one_by_one = Vec::new();
        for position in past..positions {
            write(&fastest, &mut pages, &mut numbers, position);
            let query: Vec<f32> = (0..heads * head_dim).map(|_| numbers.next()).collect();
            one_by_one.extend(attend(&fastest, &pages, &query, position, None));
            queries.extend(query);
        }
        let together = same_everywhere(|kernels| attend(kernels, &pages, &queries, past, None));
        prop_assert_eq!(bits(&one_by_one), bits(&together));
        let last = &queries[(tokens - 1) * heads * head_dim..];
        let alone = same_everywhere(|kernels| attend(kernels, &pages, last, positions - 1, None));
        prop_assert_eq!(bits(&alone), bits(&together[together.len() - last.len()..]));
        let cut = tokens / 2;
        let (first, second) = queries.split_at(cut * heads * head_dim);
        let mut chunks = attend(&fastest, &pages, first, past, None);
        chunks.extend(attend(&fastest, &pages, second, past + cut, None));
        prop_assert_eq!(bits(&chunks), bits(&together));
        if window.is_none() {
            // Seen as a whole, a row sees what the last one does, wherever it is.
            let whole = same_everywhere(|kernels| attend(kernels, &pages, &queries, past, Some(positions)));
            prop_assert_eq!(bits(&alone), bits(&whole[whole.len() - last.len()..]));
            let moved = attend(&fastest, &pages, &queries, 0, Some(positions));
            prop_assert_eq!(bits(&moved), bits(&whole));
        }
    }

    #[test]
    fn pages_of_the_cache(
        kv_heads in 1_usize..3,
        head_dim in 1_usize..100,
        slots in prop::collection::vec(0_usize..PAGE_TOKENS, 1..6),
        element in prop_oneof![Just(KvElement::F32), Just(KvElement::F16), Just(KvElement::I8)],
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let kv = KvFormat { kv_heads, head_dim, element };
        let width = kv_heads * head_dim;
        let rows: Vec<_> = slots
            .iter()
            .map(|slot| (*slot, activations(&mut numbers, width), activations(&mut numbers, width)))
            .collect();
        same_everywhere(|kernels| {
            let mut page = KvPage::new(kv.page_bytes().expect("is small")).expect("is small");
            for (slot, key, value) in &rows {
                kernels.write_kv(&kv, page.as_mut(), *slot, key, value);
            }
            page.as_ref().iter().map(|byte| f32::from(*byte)).collect()
        });
    }
}
