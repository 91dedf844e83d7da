//! A bundle's weights as the floats that they stand for.

use niwaki_bundle::Bundle;
use niwaki_bundle::graph::{Graph, MatrixId};
use niwaki_bundle::write::{BundleWriter, WriteError};
use niwaki_kernels::{MatrixFormat, pack_float};
use std::path::Path;

/// Rows that are in memory at a time: a multiple of the kernels' groups of 16.
const ROWS: usize = 64;

/// Writes a bundle that computes the same function with float activations: every matrix holds the floats that `bundle`'s
/// codes and scales stand for. What the two do differently is what quantizing activations does.
///
/// # Errors
/// When the new bundle cannot be written.
pub fn write_float_form(bundle: &Bundle, path: &Path) -> Result<(), WriteError> {
    let mut writer = BundleWriter::create(path)?;
    let table = bundle.weight_table();
    for (id, entry) in table.matrices.iter().enumerate() {
        write_matrix(&mut writer, bundle, id, &entry.name)?;
    }
    for (id, entry) in table.vectors.iter().enumerate() {
        writer.add_vector(entry.name.clone(), bundle.vector(id).unwrap_or_default())?;
    }
    let graph: &Graph = bundle.graph();
    writer.finish(bundle.manifest(), graph)?;
    Ok(())
}

fn write_matrix(
    writer: &mut BundleWriter,
    bundle: &Bundle,
    id: MatrixId,
    name: &str,
) -> Result<(), WriteError> {
    // The table's matrices are the bundle's.
    let Some(matrix) = bundle.matrix(id) else {
        return Ok(());
    };
    let (rows, columns) = (matrix.rows(), matrix.cols());
    let mut output = writer.begin_matrix(name, MatrixFormat::F32, rows, columns)?;
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let mut values = vec![0.0; count * columns];
        for (index, row) in values.chunks_mut(columns).enumerate() {
            matrix.read_row(first + index, row);
        }
        // Its only error is a wrong number of values.
        let packed = pack_float(MatrixFormat::F32, count, columns, &values).unwrap_or_default();
        output.write(&packed)?;
    }
    output.finish()?;
    Ok(())
}
