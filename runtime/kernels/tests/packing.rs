//! Packing, reading back, and what is refused.
#![allow(clippy::expect_used)]

mod workload;

use niwaki_kernels::*;
use proptest::prelude::*;
use workload::{Numbers, bits};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_packed_row_reads_back_as_its_values(
        int4: bool,
        half_block: bool,
        wide_scales: bool,
        zero_points: bool,
        rows in 1_usize..50,
        cols in 1_usize..100,
        seed: u64,
    ) {
        let format = MatrixFormat {
            element: if int4 { Element::Int4 } else { Element::Int8 },
            block: if half_block { 16 } else { 32 },
            scale: if wide_scales { ScaleType::F32 } else { ScaleType::F16 },
            zero_points,
        };
        let mut numbers = Numbers::new(seed);
        let limit = if int4 { 16 } else { 256 };
        let mut integers = |count: usize| -> Vec<i8> {
            (0..count).map(|_| (numbers.below(limit) as i32 - limit as i32 / 2) as i8).collect()
        };
        let blocks = cols.div_ceil(format.block);
        let (q, points) = (integers(rows * cols), integers(rows * blocks));
        let scales: Vec<f32> = (0..rows * blocks)
            .map(|_| half::f16::from_f32(numbers.next()).to_f32())
            .collect();
        let points = zero_points.then_some(&points[..]);
        let bytes = pack_int(format, rows, cols, &q, &scales, points).expect("packs");
        prop_assert_eq!(Some(bytes.len()), format.size_bytes(rows, cols));
        let matrix = Matrix::new(format, rows, cols, &bytes).expect("is a matrix");
        let mut row_values = vec![0.0; cols];
        for row in 0..rows {
            matrix.read_row(row, &mut row_values);
            let expected: Vec<f32> = (0..cols)
                .map(|k| {
                    let block = row * blocks + k / format.block;
                    let point = points.map_or(0, |points| i32::from(points[block]));
                    (i32::from(q[row * cols + k]) - point) as f32 * scales[block]
                })
                .collect();
            prop_assert_eq!(bits(&row_values), bits(&expected));
        }
        // Row groups packed piece by piece are the whole.
        let cut = 16.min(rows);
        let mut pieces = Vec::new();
        for part in [0..cut, cut..rows] {
            let points = points.map(|points| &points[part.start * blocks..part.end * blocks]);
            let q = &q[part.start * cols..part.end * cols];
            let scales = &scales[part.start * blocks..part.end * blocks];
            pieces.extend(pack_int(format, part.len(), cols, q, scales, points).expect("packs"));
        }
        prop_assert_eq!(pieces, bytes);
    }

    #[test]
    fn a_packed_row_of_codes_reads_back_as_its_values(
        rows in 1_usize..50,
        cols in 1_usize..100,
        seed: u64,
    ) {
        let format = MatrixFormat::CODEBOOK4;
        let mut numbers = Numbers::new(seed);
        let codebook = numbers.codebook();
        let codes: Vec<i8> = (0..rows * cols).map(|_| numbers.below(16) as i8).collect();
        let blocks = cols.div_ceil(32);
        let scales: Vec<f32> = (0..rows * blocks)
            .map(|_| half::f16::from_f32(numbers.next()).to_f32())
            .collect();
        let bytes = pack_int(format, rows, cols, &codes, &scales, None).expect("packs");
        prop_assert_eq!(Some(bytes.len()), MatrixFormat::INT4.size_bytes(rows, cols));
        let matrix = Matrix::with_codebook(codebook, rows, cols, &bytes).expect("is a matrix");
        let mut row_values = vec![0.0; cols];
        for row in 0..rows {
            matrix.read_row(row, &mut row_values);
            let expected: Vec<f32> = (0..cols)
                .map(|k| {
                    let value = codebook.values()[codes[row * cols + k] as usize];
                    f32::from(value) * scales[row * blocks + k / 32]
                })
                .collect();
            prop_assert_eq!(bits(&row_values), bits(&expected));
        }
    }

    /// What int4 weights are packed to are codes of their values.
    #[test]
    fn the_bytes_of_int4_weights_are_codes_of_a_linear_codebook(
        rows in 1_usize..50,
        cols in 1_usize..100,
        seed: u64,
    ) {
        let mut numbers = Numbers::new(seed);
        let q: Vec<i8> = (0..rows * cols).map(|_| numbers.below(16) as i8 - 8).collect();
        let scales = vec![0.25; rows * cols.div_ceil(32)];
        let bytes = pack_int(MatrixFormat::INT4, rows, cols, &q, &scales, None).expect("packs");
        let linear = Codebook::new(std::array::from_fn(|code| code as i8 - 8)).expect("fits");
        let int4 = Matrix::new(MatrixFormat::INT4, rows, cols, &bytes).expect("is a matrix");
        let codes = Matrix::with_codebook(linear, rows, cols, &bytes).expect("is a matrix");
        let (mut expected, mut found) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            int4.read_row(row, &mut expected);
            codes.read_row(row, &mut found);
            prop_assert_eq!(bits(&found), bits(&expected));
        }
    }

    #[test]
    fn packed_floats_read_back(half: bool, rows in 1_usize..40, cols in 1_usize..40, seed: u64) {
        let mut numbers = Numbers::new(seed);
        let values: Vec<f32> = (0..rows * cols).map(|_| numbers.next()).collect();
        let format = if half { MatrixFormat::F16 } else { MatrixFormat::F32 };
        let bytes = pack_float(format, rows, cols, &values).expect("packs");
        let matrix = Matrix::new(format, rows, cols, &bytes).expect("is a matrix");
        let mut row_values = vec![0.0; cols];
        for (row, values) in values.chunks(cols).enumerate() {
            matrix.read_row(row, &mut row_values);
            let round = |x: &f32| if half { half::f16::from_f32(*x).to_f32() } else { *x };
            prop_assert_eq!(bits(&row_values), bits(&values.iter().map(round).collect::<Vec<_>>()));
        }
    }
}

#[test]
fn the_first_tile_of_an_int4_matrix_is_laid_out_as_documented() {
    let mut q = vec![0; 16 * 32];
    q[2 * 32] = -8; // row 2, column 0: low half of byte 8 of the first chunk
    q[2 * 32 + 13] = 7; // row 2, column 13: chunk 1, high half of byte 2 * 4 + 1
    let bytes = pack_int(MatrixFormat::INT4, 16, 32, &q, &[1.0; 16], None).expect("packs");
    assert_eq!(bytes.len(), 32 + 256);
    assert_eq!(bytes[..2], half::f16::ONE.to_le_bytes());
    assert_eq!(bytes[32 + 2 * 4], 0x80);
    assert_eq!(bytes[32 + 64 + 2 * 4 + 1], 0xf8);
    let touched = bytes[32..].iter().filter(|byte| **byte != 0x88).count();
    assert_eq!(touched, 2);
}

#[test]
fn codes_lie_where_int4_weights_do() {
    let mut codes = vec![0; 16 * 32];
    codes[2 * 32] = 1;
    codes[2 * 32 + 13] = 15;
    let format = MatrixFormat::CODEBOOK4;
    let bytes = pack_int(format, 16, 32, &codes, &[-1.0; 16], None).expect("packs");
    assert_eq!(bytes.len(), 32 + 256);
    assert_eq!(bytes[..2], half::f16::NEG_ONE.to_le_bytes());
    assert_eq!(bytes[32 + 2 * 4], 0x01);
    assert_eq!(bytes[32 + 64 + 2 * 4 + 1], 0xf0);
    let touched = bytes[32..].iter().filter(|byte| **byte != 0).count();
    assert_eq!(touched, 2);
}

#[test]
fn sizes_that_overflow_are_refused() {
    for format in [
        MatrixFormat::F32,
        MatrixFormat::F16,
        MatrixFormat::INT8,
        MatrixFormat::INT4,
    ] {
        for (rows, cols) in [(usize::MAX, 1), (1, usize::MAX), (1 << 33, 1 << 33)] {
            assert_eq!(format.size_bytes(rows, cols), None, "{format:?}");
            let error = Matrix::new(format, rows, cols, &[]).err();
            assert_eq!(error, Some(LayoutError::TooLarge { rows, cols }));
        }
    }
    let kv = KvFormat {
        kv_heads: usize::MAX,
        head_dim: 64,
        element: KvElement::F16,
    };
    assert_eq!(kv.page_bytes(), None);
    let kv = KvFormat {
        kv_heads: 1,
        head_dim: usize::MAX,
        element: KvElement::F16,
    };
    assert_eq!(kv.page_bytes(), None);
}

#[test]
fn wrong_lengths_and_formats_are_refused() {
    let format = MatrixFormat::INT8;
    let expected = 544;
    for actual in [0, 543, 545] {
        let error = Matrix::new(format, 3, 20, &vec![0; actual]).err();
        assert_eq!(
            error,
            Some(LayoutError::Length {
                rows: 3,
                cols: 20,
                expected,
                actual
            })
        );
    }
    for (rows, cols) in [(0, 5), (usize::MAX, 0)] {
        let error = Matrix::new(format, rows, cols, &[]).err();
        assert_eq!(error, Some(LayoutError::Empty { rows, cols }));
    }
    let odd = MatrixFormat {
        block: 24,
        ..format
    };
    assert_eq!(
        Matrix::new(odd, 3, 20, &[]).err(),
        Some(LayoutError::Block(24))
    );
    assert_eq!(odd.size_bytes(3, 20), None);
    let count =
        |result: Result<Vec<u8>, LayoutError>| matches!(result, Err(LayoutError::Count { .. }));
    assert!(count(pack_int(format, 3, 20, &[0; 59], &[1.0; 3], None)));
    assert!(count(pack_int(format, 3, 20, &[0; 60], &[1.0; 4], None)));
    assert!(count(pack_float(MatrixFormat::F32, 3, 20, &[0.0; 61])));
    let float = pack_int(MatrixFormat::F16, 1, 1, &[0], &[1.0], None);
    assert_eq!(float, Err(LayoutError::Element(Element::F16)));
    let points = pack_int(format, 1, 1, &[0], &[1.0], Some(&[0]));
    assert_eq!(
        points,
        Err(LayoutError::ZeroPoints {
            given: true,
            expected: false
        })
    );
}

#[test]
fn what_a_format_cannot_hold_exactly_is_refused() {
    let error = pack_int(MatrixFormat::INT4, 1, 2, &[7, 8], &[1.0], None).err();
    let value = "8".to_owned();
    assert_eq!(
        error,
        Some(LayoutError::Value {
            what: "integer",
            value,
            index: 1
        })
    );
    for scale in [0.1, 1e-9, 1e6, f32::NAN] {
        let error = pack_int(MatrixFormat::INT4, 1, 1, &[1], &[scale], None).err();
        assert!(
            matches!(
                error,
                Some(LayoutError::Value {
                    what: "scale",
                    index: 0,
                    ..
                })
            ),
            "{scale}"
        );
    }
}

#[test]
fn a_codebook_without_codes_and_codes_without_a_codebook_are_refused() {
    let format = MatrixFormat::CODEBOOK4;
    assert_eq!(
        Matrix::new(format, 3, 20, &[0; 288]).err(),
        Some(LayoutError::Codebook {
            given: false,
            expected: true
        })
    );
    let mut values = [0; 16];
    values[3] = -128;
    assert_eq!(
        Codebook::new(values).err(),
        Some(LayoutError::Value {
            what: "codebook value",
            value: "-128".to_owned(),
            index: 3
        })
    );
    values[3] = -127;
    let codebook = Codebook::new(values).expect("has no -128");
    let length = Matrix::with_codebook(codebook, 3, 20, &[0; 287]).err();
    assert!(matches!(length, Some(LayoutError::Length { .. })));
    let empty = Matrix::with_codebook(codebook, 0, 20, &[]).err();
    assert!(matches!(empty, Some(LayoutError::Empty { .. })));
}

#[test]
fn codes_have_one_format() {
    let format = MatrixFormat::CODEBOOK4;
    let others = [
        MatrixFormat {
            block: 16,
            ..format
        },
        MatrixFormat {
            scale: ScaleType::F32,
            ..format
        },
        MatrixFormat {
            zero_points: true,
            ..format
        },
    ];
    for other in others {
        let points = other.zero_points.then_some(&[0_i8][..]);
        let error = pack_int(other, 1, 1, &[0], &[1.0], points).err();
        assert_eq!(error, Some(LayoutError::CodebookFormat), "{other:?}");
        assert_eq!(other.size_bytes(1, 1), None, "{other:?}");
    }
    for code in [-1, 16] {
        let error = pack_int(format, 1, 1, &[code], &[1.0], None).err();
        let what = "integer";
        assert!(
            matches!(error, Some(LayoutError::Value { what: found, .. }) if found == what),
            "{code}"
        );
    }
}
