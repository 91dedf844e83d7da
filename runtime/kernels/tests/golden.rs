//! One fixed workload whose result is written down here: the same on every CPU that ever runs it.
#![allow(clippy::expect_used)]

mod workload;

use niwaki_kernels::*;
use std::sync::Arc;
use workload::Numbers;

/// FNV-1a over the bits of the numbers.
struct Hash(u64);

impl Hash {
    fn add(&mut self, x: &[f32]) {
        for byte in x.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Every kernel, on numbers of its usual range.
fn workload_hash(kernels: &Kernels) -> u64 {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    let mut numbers = Numbers::new(2026);
    let mut vector = |count: usize, factor: f32| -> Vec<f32> {
        (0..count).map(|_| numbers.next() * factor).collect()
    };
    let (tokens, width) = (6, 176);
    let x = vector(tokens * width, 4.0);
    let other = vector(tokens * width, 1.0);
    let (rows, other) = (
        Rows::contiguous(&x, tokens, width),
        Rows::contiguous(&other, tokens, width),
    );
    let mut out = vec![0.0; tokens * width];
    let mut scratch = QuantizedRows::new();

    let base = [
        MatrixFormat::F32,
        MatrixFormat::F16,
        MatrixFormat::INT8,
        MatrixFormat::INT4,
    ];
    let variants = [Element::Int8, Element::Int4].map(|element| MatrixFormat {
        element,
        block: 16,
        scale: ScaleType::F32,
        zero_points: true,
    });
    for format in base.into_iter().chain(variants) {
        let bytes = if format.is_quantized() {
            let limit = if format.element == Element::Int4 {
                8.0
            } else {
                128.0
            };
            let blocks = usize::div_ceil(width, format.block);
            let q: Vec<i8> = vector(width * width, limit)
                .iter()
                .map(|x| *x as i8)
                .collect();
            let points: Vec<i8> = vector(width * blocks, limit)
                .iter()
                .map(|x| *x as i8)
                .collect();
            let scales: Vec<f32> = vector(width * blocks, 0.05)
                .iter()
                .map(|scale| half::f16::from_f32(*scale).to_f32())
                .collect();
            let points = format.zero_points.then_some(&points[..]);
            pack_int(format, width, width, &q, &scales, points).expect("packs")
        } else {
            pack_float(format, width, width, &vector(width * width, 0.1)).expect("packs")
        };
        let matrix = Matrix::new(format, width, width, &bytes).expect("is a matrix");
        let mut target = RowsMut::contiguous(&mut out, tokens, width);
        kernels.matmul(&matrix, &rows, Some(&x[..width]), &mut scratch, &mut target);
        hash.add(&out);
        matrix.read_row(17, &mut out[..width]);
        hash.add(&out[..width]);
    }

    let mut keep = |compute: &dyn Fn(&mut RowsMut<'_>)| {
        compute(&mut RowsMut::contiguous(&mut out, tokens, width));
        hash.add(&out);
    };
    keep(&|out| kernels.norm_rms(&rows, width, Some(&x[..width]), None, 1e-6, out));
    keep(&|out| kernels.norm_layer(&rows, 44, Some(&x[..44]), Some(&x[..width]), 1e-5, out));
    for activation in workload::ACTIVATIONS {
        keep(&|out| kernels.activation(activation, &rows, out));
        keep(&|out| kernels.gate(activation, &rows, &other, out));
    }
    keep(&|out| kernels.add_scaled(&rows, &other, 0.22, out));
    keep(&|out| kernels.scale(11.3, &rows, out));
    keep(&|out| kernels.softcap(2.5, &rows, out));
    let pairs = 20;
    let frequencies: Vec<f32> = (0..pairs).map(|i| 1.0 / (1.0 + i as f32 * 3.7)).collect();
    let (mut cos, mut sin) = (vec![0.0; tokens * pairs], vec![0.0; tokens * pairs]);
    for token in 0..tokens {
        let row = token * pairs..(token + 1) * pairs;
        let position = 1 + token * 20_011;
        rope_angles(
            position,
            &frequencies,
            1.2,
            &mut cos[row.clone()],
            &mut sin[row],
        );
    }
    let tables = RopeTables {
        cos: Rows::contiguous(&cos, tokens, pairs),
        sin: Rows::contiguous(&sin, tokens, pairs),
    };
    for layout in [PairLayout::Halves, PairLayout::Interleaved] {
        keep(&|out| kernels.rope(&rows, 44, layout, &tables, out));
    }

    for &element in KvElement::ALL {
        let kv = KvFormat {
            kv_heads: 2,
            head_dim: 44,
            element,
        };
        let mut pages = vec![vec![0; kv.page_bytes().expect("is small")]; 3];
        for position in 0..150 {
            let (key, value) = (vector(88, 1.0), vector(88, 1.0));
            let page = &mut pages[position / PAGE_TOKENS];
            kernels.write_kv(&kv, page, position % PAGE_TOKENS, &key, &value);
        }
        for (window, softcap) in [(None, None), (Some(100), Some(5.0))] {
            let options = AttentionOptions {
                kv,
                heads: 4,
                first_position: 150 - tokens,
                scale: 0.3,
                softcap,
                window,
                whole: None,
            };
            let mut target = RowsMut::contiguous(&mut out, tokens, width);
            let mut scratch = AttentionScratch::new();
            kernels.attention(&options, &rows, &pages, &mut scratch, &mut target);
            hash.add(&out);
        }
    }
    hash.0
}

#[test]
fn the_workload_gives_the_bits_that_were_written_down() {
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool = Arc::new(ThreadPool::new(threads));
            let kernels = Kernels::new(isa, pool).expect("is available");
            let hash = workload_hash(&kernels);
            assert_eq!(
                hash, 0xd4c0_f667_a242_0547,
                "{isa}, {threads} threads: {hash:#018x}"
            );
        }
    }
}

/// One row and several, of sizes that are no multiples of a block.
#[test]
fn products_of_codes_give_the_bits_that_were_written_down() {
    let (rows, cols) = (75, 330_usize);
    let mut numbers = Numbers::new(2027);
    let codebook = numbers.codebook();
    let codes: Vec<i8> = (0..rows * cols).map(|_| numbers.below(16) as i8).collect();
    let scales: Vec<f32> = (0..rows * cols.div_ceil(32))
        .map(|_| half::f16::from_f32(numbers.next() * 0.01).to_f32())
        .collect();
    let format = MatrixFormat::CODEBOOK4;
    let bytes = pack_int(format, rows, cols, &codes, &scales, None).expect("packs");
    let matrix = Matrix::with_codebook(codebook, rows, cols, &bytes).expect("is a matrix");
    let x: Vec<f32> = (0..7 * cols).map(|_| numbers.next() * 4.0).collect();
    for isa in Isa::available() {
        let kernels = Kernels::new(isa, Arc::new(ThreadPool::new(1))).expect("is available");
        let mut hash = Hash(0xcbf2_9ce4_8422_2325);
        for tokens in [1, 7] {
            let mut out = vec![0.0; tokens * rows];
            kernels.matmul(
                &matrix,
                &Rows::contiguous(&x[..tokens * cols], tokens, cols),
                None,
                &mut QuantizedRows::new(),
                &mut RowsMut::contiguous(&mut out, tokens, rows),
            );
            hash.add(&out);
        }
        assert_eq!(hash.0, 0xbf59_e47b_e931_6188, "{isa}: {:#018x}", hash.0);
    }
}
