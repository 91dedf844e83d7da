//! Zeros in the stored tensors.

use super::measure::{Importance, Importances};
use super::selection::{Pattern, scores, select};
use super::{PruneError, PruneReport, PrunedMatrix};
use crate::onnx::FloatRows;
use crate::onnx::{
    ChannelRows, DataType, Matrix, OnnxError, OnnxModel, Producers, Spool,
    proto::{GraphProto, ModelProto, NodeProto, TensorProto},
};
use crate::plan::LeftNode;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};

/// Rows that are in memory as floats at a time where they are compared row by row.
const PANEL_ROWS: usize = 256;

/// A projection of the graph and the matrix that it multiplies with.
struct Product<'a> {
    node: &'a NodeProto,
    rows: ChannelRows,
    norms: Option<&'a [f32]>,
}

pub(super) fn rewrite(
    model: &OnnxModel,
    importances: &Importances,
    pattern: Pattern,
) -> Result<(OnnxModel, PruneReport), PruneError> {
    let graph = model.graph();
    let producers = Producers::of(graph);
    let mut report = PruneReport::default();
    let mut products = vec![];
    let mut needed_whole = HashSet::new();
    for node in &graph.node {
        match (
            constant_matrix(model, &producers, node)?,
            importances.get(node.name_or_output()),
        ) {
            (Some(rows), Some(Importance::Magnitude)) => products.push(Product {
                node,
                rows,
                norms: None,
            }),
            (Some(rows), Some(Importance::Driven(norms))) if norms.len() == rows.columns() => {
                products.push(Product {
                    node,
                    rows,
                    norms: Some(norms),
                });
            }
            (Some(_), Some(Importance::Driven(_) | Importance::Unknown)) => {
                report.left.push(LeftNode {
                    node: node.label(),
                    reason: "what it is multiplied with was not measured".to_owned(),
                });
            }
            (Some(rows), None) => {
                needed_whole.insert(rows.matrix.value().to_owned());
            }
            (None, Some(_)) => report.left.push(LeftNode {
                node: node.label(),
                reason: "its weights are not plain floats: prune before quantizing".to_owned(),
            }),
            (None, None) => {}
        }
    }
    let mut spool = Spool::new().map_err(PruneError::Spool)?;
    let mut taken = 0;
    let mut written: HashMap<String, Tensor> = HashMap::new();
    for product in &products {
        let name = product.rows.matrix.value();
        if needed_whole.contains(name) {
            report.left.push(LeftNode {
                node: product.node.label(),
                reason: "an embedding or the output head has the same weights".to_owned(),
            });
            continue;
        }
        if !written.contains_key(name) {
            let (tensor, pruned, count) = prune(product, pattern, &mut spool)?;
            taken += count;
            written.insert(name.to_owned(), tensor);
            report.pruned.push(pruned);
        }
    }
    if taken == 0 {
        return Err(nothing(&report, pattern));
    }
    let data = spool.finish().map_err(PruneError::Spool)?;
    let proto = ModelProto {
        graph: Some(with_tensors(graph, &written, &data)),
        ..model.proto().clone()
    };
    Ok((model.derive(proto)?, report))
}

/// Why no weight became zero.
fn nothing(report: &PruneReport, pattern: Pattern) -> PruneError {
    let reason = match (report.pruned.is_empty(), report.left.first()) {
        (false, _) => format!(
            "a sparsity of {} is less than one weight of what is compared",
            pattern.sparsity()
        ),
        (true, Some(left)) => {
            let others = match report.left.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!("{}{others}: {}", left.node, left.reason)
        }
        (true, None) => "there are no projections inside its layers".to_owned(),
    };
    PruneError::NothingPruned { reason }
}

/// The matrix of a node that multiplies by a constant one, or looks up its rows.
fn constant_matrix(
    model: &OnnxModel,
    producers: &Producers<'_>,
    node: &NodeProto,
) -> Result<Option<ChannelRows>, OnnxError> {
    let lookup = node.is("Gather");
    let product = node.is("MatMul") || node.is("Gemm") || node.is_microsoft("FusedMatMul");
    let Some(name) = node
        .input_name(usize::from(product))
        .filter(|_| product || lookup)
    else {
        return Ok(None);
    };
    let transposed = node.int("transB").unwrap_or(0) != 0;
    let channel_axis = usize::from(product && !transposed);
    let matrix = Matrix::behind(model, producers, name)?;
    Ok(matrix.map(|matrix| ChannelRows::new(matrix, channel_axis, 1.0)))
}

/// A pruned tensor in the spool.
struct Tensor {
    data_type: DataType,
    dims: Vec<i64>,
    range: std::ops::Range<usize>,
}

/// The pruned tensor, what was done, and how many weights were taken.
fn prune(
    product: &Product<'_>,
    pattern: Pattern,
    spool: &mut Spool,
) -> Result<(Tensor, PrunedMatrix, usize), PruneError> {
    let Product { node, rows, norms } = product;
    let (count, columns) = (rows.rows(), rows.columns());
    // Wanda compares within a row. Magnitudes are compared within the matrix; groups lie within rows anyway.
    let panel_rows = match (norms, pattern) {
        (None, Pattern::Unstructured(_)) => count.max(1),
        _ => PANEL_ROWS,
    };
    let group = if norms.is_some() {
        columns
    } else {
        panel_rows * columns
    };
    let stored = rows.matrix.stored();
    let element_bytes = stored.data.len() / (count * columns).max(1);
    let mut data = stored.data.to_vec();
    let mut values = vec![];
    let (mut taken, mut zeros) = (0usize, 0u64);
    let (mut power, mut lost) = (0.0f64, 0.0f64);
    for first in (0..count).step_by(panel_rows) {
        let panel = first..(first + panel_rows).min(count);
        values.clear();
        values.resize(panel.len() * columns, 0.0);
        rows.read(panel, &mut values)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(PruneError::NotFinite {
                matrix: rows.matrix.name().to_owned(),
                row: first + at / columns.max(1),
            });
        }
        let scores = scores(&values, columns, *norms);
        for (index, scores) in scores.chunks(group.max(1)).enumerate() {
            select(scores, columns, pattern, |at| {
                let at = index * group + at;
                let to = rows.stored_index(first + at / columns, at % columns) * element_bytes;
                data[to..to + element_bytes].fill(0);
                lost += f64::from(values[at]).powi(2);
                values[at] = 0.0;
                taken += 1;
            });
        }
        power += values
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>();
        zeros += values.iter().filter(|value| **value == 0.0).count() as u64;
    }
    rows.release(0..count);
    let tensor = Tensor {
        data_type: stored.data_type,
        dims: stored.dims.iter().map(|dim| *dim as i64).collect(),
        range: spool.append(&data).map_err(PruneError::Spool)?,
    };
    let total = power + lost;
    Ok((
        tensor,
        PrunedMatrix {
            node: node.label(),
            rows: count,
            columns,
            zeros,
            relative_error: if total > 0.0 {
                (lost / total).sqrt()
            } else {
                0.0
            },
        },
        taken,
    ))
}

/// The graph with the pruned tensors in place of those that the values of the same names held.
fn with_tensors(graph: &GraphProto, written: &HashMap<String, Tensor>, data: &Bytes) -> GraphProto {
    let replace = |value: &str, tensor: &mut TensorProto| {
        if let Some(pruned) = written.get(value) {
            *tensor = TensorProto {
                name: tensor.name.clone(),
                dims: pruned.dims.clone(),
                data_type: Some(pruned.data_type as i32),
                raw_data: Some(data.slice(pruned.range.clone())),
                ..TensorProto::default()
            };
        }
    };
    let mut graph = graph.clone();
    for tensor in &mut graph.initializer {
        let name = tensor.name().to_owned();
        replace(&name, tensor);
    }
    for node in graph.node.iter_mut().filter(|node| node.is("Constant")) {
        let value = node.output.first().cloned().unwrap_or_default();
        for attribute in &mut node.attribute {
            attribute
                .t
                .iter_mut()
                .for_each(|tensor| replace(&value, tensor));
        }
    }
    graph
}
