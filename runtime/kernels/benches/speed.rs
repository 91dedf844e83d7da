//! Speed of each kernel on each instruction set of this CPU, one thread, relative to scalar code.
//!
//! `cargo bench --workspace --bench speed`
//!
//! With three arguments, the name of a kernel, that of an ISA and a number, it makes that many calls and
//! measures nothing: for counting instructions from outside.

use niwaki_kernels::*;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Median seconds of one call, for each set of kernels: they take turns, so that what else the machine
/// does disturbs all of them alike.
fn seconds(kernels: &[Kernels], mut call: impl FnMut(&Kernels)) -> Vec<f64> {
    let mut times = vec![Vec::new(); kernels.len()];
    let start = Instant::now();
    while times[0].len() < 5
        || (start.elapsed() < Duration::from_millis(400) && times[0].len() < 500)
    {
        for (kernels, times) in kernels.iter().zip(&mut times) {
            let start = Instant::now();
            call(kernels);
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.iter_mut().map(median).collect()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

/// A named kernel, the number of steps it does, and what a step is.
struct Case<'a> {
    name: &'static str,
    steps: usize,
    unit: &'static str,
    call: Box<dyn FnMut(&Kernels) + 'a>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (rows, cols) = (1024, 2048);
    let x = numbers(64 * cols);
    let q4: Vec<i8> = (0..rows * cols).map(|i| (i * 31 % 16) as i8 - 8).collect();
    let codes: Vec<i8> = q4.iter().map(|q| q + 8).collect();
    let codebook = Codebook::new(std::array::from_fn(|code| 16 * (code as i8 - 8) + 1))?;
    let q8: Vec<i8> = (0..rows * cols)
        .map(|i| (i * 31 % 255) as u8 as i8)
        .collect();
    let scales = vec![0.0625; rows * cols / 32];
    let floats = numbers(rows * cols);
    let packed = [
        (
            "int4",
            MatrixFormat::INT4,
            pack_int(MatrixFormat::INT4, rows, cols, &q4, &scales, None)?,
        ),
        (
            "codebook4",
            MatrixFormat::CODEBOOK4,
            pack_int(MatrixFormat::CODEBOOK4, rows, cols, &codes, &scales, None)?,
        ),
        (
            "int8",
            MatrixFormat::INT8,
            pack_int(MatrixFormat::INT8, rows, cols, &q8, &scales, None)?,
        ),
        (
            "f16",
            MatrixFormat::F16,
            pack_float(MatrixFormat::F16, rows, cols, &floats)?,
        ),
        (
            "f32",
            MatrixFormat::F32,
            pack_float(MatrixFormat::F32, rows, cols, &floats)?,
        ),
    ];
    // Larger than caches: what decoding a model is like. One packed group, again and again.
    let wide_rows = 64 * 1024;
    let group = &packed[0].2[..packed[0].2.len() * 16 / rows];
    let wide = group.repeat(wide_rows / 16);
    let mut cases = Vec::new();
    let matrix_of = |format, rows, bytes| match format {
        MatrixFormat::CODEBOOK4 => Matrix::with_codebook(codebook, rows, cols, bytes),
        _ => Matrix::new(format, rows, cols, bytes),
    };
    for (name, format, bytes) in &packed {
        let matrix = matrix_of(*format, rows, bytes)?;
        for tokens in [1, 64] {
            let x = Rows::contiguous(&x, tokens, cols);
            let (mut scratch, mut out) = (QuantizedRows::new(), vec![0.0; tokens * rows]);
            cases.push(Case {
                name: format!("{name} matmul, {tokens} rows").leak(),
                steps: tokens * rows * cols,
                unit: "multiply-add",
                call: Box::new(move |kernels| {
                    let mut out = RowsMut::contiguous(&mut out, tokens, rows);
                    kernels.matmul(&matrix, &x, None, &mut scratch, &mut out);
                }),
            });
        }
    }
    let row = Rows::contiguous(&x, 1, cols);
    for (name, format) in [
        ("int4 from memory, 1 row", MatrixFormat::INT4),
        ("codebook4 from memory, 1 row", MatrixFormat::CODEBOOK4),
    ] {
        let matrix = matrix_of(format, wide_rows, &wide)?;
        let (mut scratch, mut wide_out) = (QuantizedRows::new(), vec![0.0; wide_rows]);
        cases.push(Case {
            name,
            steps: wide_rows * cols,
            unit: "multiply-add",
            call: Box::new(move |kernels| {
                let mut out = RowsMut::contiguous(&mut wide_out, 1, wide_rows);
                kernels.matmul(&matrix, &row, None, &mut scratch, &mut out);
            }),
        });
    }
    let mut scratch = QuantizedRows::new();
    let quantize = Box::new(move |kernels: &Kernels| kernels.quantize(&row, 0, &mut scratch));
    cases.push(Case {
        name: "quantize",
        steps: cols,
        unit: "element",
        call: quantize,
    });
    let mut out = vec![0.0; cols];
    let norm = Box::new(move |kernels: &Kernels| {
        kernels.norm_rms(
            &row,
            cols,
            None,
            None,
            1e-6,
            &mut RowsMut::contiguous(&mut out, 1, cols),
        );
    });
    cases.push(Case {
        name: "RMS norm",
        steps: cols,
        unit: "element",
        call: norm,
    });
    for (name, activation) in [
        ("gate silu", Activation::Silu),
        ("gate gelu erf", Activation::GeluErf),
        ("gate gelu tanh", Activation::GeluTanh),
    ] {
        let mut out = vec![0.0; cols];
        let gate = Box::new(move |kernels: &Kernels| {
            let mut out = RowsMut::contiguous(&mut out, 1, cols);
            kernels.gate(activation, &row, &row, &mut out);
        });
        cases.push(Case {
            name,
            steps: cols,
            unit: "element",
            call: gate,
        });
    }
    let (kv_heads, head_dim, positions) = (2, 64, 1024);
    let (key, value) = (numbers(kv_heads * head_dim), numbers(kv_heads * head_dim));
    let writer = Kernels::new(Isa::detect(), Arc::new(ThreadPool::new(1)))?;
    for (name, element) in [
        ("attention f16, 1024 keys", KvElement::F16),
        ("attention f32, 1024 keys", KvElement::F32),
        ("attention i8, 1024 keys", KvElement::I8),
    ] {
        let kv = KvFormat {
            kv_heads,
            head_dim,
            element,
        };
        let page_bytes = kv.page_bytes().ok_or("too large")?;
        let mut pages = vec![vec![0; page_bytes]; positions / PAGE_TOKENS];
        for position in 0..positions {
            let page = &mut pages[position / PAGE_TOKENS];
            writer.write_kv(&kv, page, position % PAGE_TOKENS, &key, &value);
        }
        let options = AttentionOptions {
            kv,
            heads: 8,
            first_position: positions - 1,
            scale: 0.125,
            softcap: None,
            window: None,
            whole: None,
        };
        let width = 8 * head_dim;
        let query = Rows::contiguous(&x, 1, width);
        let mut scratch = AttentionScratch::new();
        let mut out = vec![0.0; width];
        cases.push(Case {
            name,
            steps: 8 * positions * head_dim * 2,
            unit: "multiply-add",
            call: Box::new(move |kernels| {
                let mut out = RowsMut::contiguous(&mut out, 1, width);
                kernels.attention(&options, &query, &pages, &mut scratch, &mut out);
            }),
        });
    }
    // Cargo adds `--bench`.
    let arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let arguments: Vec<String> = arguments.collect();
    if let [name, isa, calls] = &arguments[..] {
        let isa = Isa::from_name(isa).ok_or("no such ISA")?;
        let kernels = Kernels::new(isa, Arc::new(ThreadPool::new(1)))?;
        let case = cases
            .iter_mut()
            .find(|case| case.name == name)
            .ok_or("no such kernel")?;
        (0..calls.parse()?).for_each(|_| (case.call)(&kernels));
        return Ok(());
    }
    println!(
        "{:<30}{:<12}{:>9}  {:<18}{:>8}",
        "kernel", "ISA", "steps/ns", "step", "ratio"
    );
    let kernels = Isa::available()
        .into_iter()
        .map(|isa| Kernels::new(isa, Arc::new(ThreadPool::new(1))))
        .collect::<Result<Vec<_>, _>>()?;
    for case in &mut cases {
        let times = seconds(&kernels, &mut case.call);
        for (kernels, time) in kernels.iter().zip(&times) {
            let (ratio, speed) = (times[0] / time, case.steps as f64 / time * 1e-9);
            println!(
                "{:<30}{:<12}{speed:>9.3}  {:<18}{ratio:>8.1}",
                case.name,
                kernels.isa().name(),
                case.unit
            );
        }
    }
    Ok(())
}
