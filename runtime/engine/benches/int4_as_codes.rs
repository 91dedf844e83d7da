//! Writes a bundle of int4 weights as one of codes that stand for the same numbers, byte for byte the same weights:
//! what codebooks cost, whatever they hold, is the difference between the two.
//!
//! `cargo bench --workspace --bench int4_as_codes -- INT4.niwaki OUT.niwaki`

use niwaki::bundle::write::BundleWriter;
use niwaki::bundle::{Bundle, Verify};
use niwaki_kernels::{Codebook, MatrixFormat};
use std::error::Error;
use std::path::Path;

const USAGE: &str = "int4_as_codes INT4.niwaki OUT.niwaki";

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let (from, to) = arguments.next().zip(arguments.next()).ok_or(USAGE)?;
    let bundle = Bundle::open(Path::new(&from), Verify::Full)?;
    let linear = Codebook::new(std::array::from_fn(|code| code as i8 - 8))?;
    let mut writer = BundleWriter::create(Path::new(&to))?;
    for (id, entry) in bundle.weight_table().matrices.iter().enumerate() {
        let matrix = bundle.matrix(id).ok_or("no such matrix")?;
        let (name, rows, cols) = (&entry.name, matrix.rows(), matrix.cols());
        let mut out = if matrix.format() == MatrixFormat::INT4 {
            let codes = writer.begin_matrix(name, MatrixFormat::CODEBOOK4, rows, cols)?;
            codes.with_codebook(linear)
        } else {
            writer.begin_matrix(name, matrix.format(), rows, cols)?
        };
        out.write(matrix.bytes())?;
        out.finish()?;
    }
    for (id, entry) in bundle.weight_table().vectors.iter().enumerate() {
        writer.add_vector(&entry.name, bundle.vector(id).ok_or("no such vector")?)?;
    }
    let mut manifest = bundle.manifest().clone();
    manifest.weights = "codebook4, block 32".into();
    writer.finish(&manifest, bundle.graph())?;
    Ok(())
}
