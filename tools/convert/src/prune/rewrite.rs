//! The pruned weights in the stored tensors.

use super::measure::Verdict;
use super::products::{QUANTIZED, Reads, Weighted};
use super::selection::{Pattern, scores, select};
use super::{PruneError, PruneReport, PrunedMatrix};
use crate::onnx::{
    ChannelRows, DataType, FloatRows, OnnxModel, Place, Spool, change_graphs, for_each_stored,
    proto::{GraphProto, ModelProto, TensorProto},
};
use crate::plan::LeftNode;
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Rows that are in memory as floats at a time where they are compared row by row.
const PANEL_ROWS: usize = 256;

/// What becomes of each product.
pub(super) enum Verdicts {
    /// By the nodes of the projections inside the layers; what other nodes multiply by is an embedding's or the head's.
    OfNodes(BTreeMap<String, Verdict>),
    /// Where layers are not known: all by magnitude, but what gives the model's results.
    ByMagnitude,
}

impl Verdicts {
    fn on(&self, weighted: &Weighted<'_>) -> Option<&Verdict> {
        match self {
            Verdicts::OfNodes(verdicts) => verdicts.get(weighted.node.name_or_output()),
            Verdicts::ByMagnitude if weighted.is_head => None,
            Verdicts::ByMagnitude => Some(&Verdict::Magnitude),
        }
    }

    /// Why a product without a verdict is not pruned.
    fn spares(&self) -> &'static str {
        match self {
            Verdicts::OfNodes(_) => "it is the embedding or the output head",
            Verdicts::ByMagnitude => "it gives what the model answers",
        }
    }
}

/// A product that is pruned.
struct Product<'a> {
    label: String,
    place: &'a Place,
    rows: &'a ChannelRows,
    verdict: &'a Verdict,
}

pub(super) fn rewrite(
    model: &OnnxModel,
    all: &[Weighted<'_>],
    verdicts: &Verdicts,
    pattern: Pattern,
) -> Result<(OnnxModel, PruneReport), PruneError> {
    let mut report = PruneReport::default();
    let mut products = vec![];
    let mut needed_whole = HashSet::new();
    let mut met = HashSet::new();
    for weighted in all {
        let label = weighted.node.label();
        let verdict = verdicts.on(weighted);
        let left = |reason: &str| LeftNode {
            node: label.clone(),
            reason: reason.to_owned(),
        };
        if verdict.is_some() {
            met.insert(weighted.node.name_or_output());
        }
        let place = weighted.place.as_ref();
        match (&weighted.reads, place, verdict) {
            (Reads::Product(_), Some(_), Some(Verdict::Unknown(reason))) => {
                report.left.push(left(reason));
            }
            (Reads::Product(rows), Some(place), Some(verdict)) => products.push(Product {
                label,
                place,
                rows,
                verdict,
            }),
            (Reads::Product(_), Some(place), None) => {
                needed_whole.insert(place);
                report.spared.push(left(verdicts.spares()));
            }
            (Reads::Table(is_large), place, _) => {
                needed_whole.extend(place);
                if *is_large {
                    report.spared.push(left("its rows are looked up"));
                }
            }
            (Reads::Otherwise(reason), place, verdict) => {
                needed_whole.extend(place);
                if let (Some(reason), Some(_)) = (reason, verdict) {
                    report.left.push(left(reason));
                }
            }
            (Reads::Product(_), None, _) => {}
        }
    }
    if let Verdicts::OfNodes(verdicts) = verdicts {
        let unmet = verdicts.keys().filter(|node| !met.contains(node.as_str()));
        report.left.extend(unmet.map(|node| LeftNode {
            node: format!("{node:?}"),
            reason: QUANTIZED.to_owned(),
        }));
    }
    let mut spool = Spool::new().map_err(PruneError::Spool)?;
    let mut taken = 0;
    let mut written: HashMap<&Place, Tensor> = HashMap::new();
    for product in &products {
        if needed_whole.contains(product.place) {
            report.left.push(LeftNode {
                node: product.label.clone(),
                reason: "an embedding or the output head has the same weights".to_owned(),
            });
            continue;
        }
        if !written.contains_key(product.place) {
            let (tensor, pruned, count) = prune(product, pattern, &mut spool)?;
            taken += count;
            written.insert(product.place, tensor);
            report.pruned.push(pruned);
        }
    }
    if taken == 0 {
        return Err(nothing(&report, pattern));
    }
    let data = spool.finish().map_err(PruneError::Spool)?;
    let mut proto: ModelProto = model.proto().clone();
    if let Some(main) = &mut proto.graph {
        change_graphs(main, &mut |number, graph| {
            replace_tensors(number, graph, &written, &data);
        });
    }
    Ok((model.derive(proto)?, report))
}

/// Why no weight became zero.
fn nothing(report: &PruneReport, pattern: Pattern) -> PruneError {
    let left: Vec<&LeftNode> = report.left.iter().chain(&report.spared).collect();
    let reason = match (report.pruned.is_empty(), left.first()) {
        (false, _) => format!(
            "a sparsity of {} is less than one weight of what is compared",
            pattern.sparsity()
        ),
        (true, Some(first)) => {
            let others = match left.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!("{}{others}: {}", first.node, first.reason)
        }
        (true, None) => "it multiplies by no weights".to_owned(),
    };
    PruneError::NothingPruned { reason }
}

/// A pruned tensor in the spool.
struct Tensor {
    data_type: DataType,
    range: std::ops::Range<usize>,
}

/// The pruned tensor, what was done, and how many weights were taken.
fn prune(
    product: &Product<'_>,
    pattern: Pattern,
    spool: &mut Spool,
) -> Result<(Tensor, PrunedMatrix, usize), PruneError> {
    let rows = product.rows;
    let (count, columns) = (rows.rows(), rows.columns());
    let norms = match product.verdict {
        Verdict::Driven(norms) => Some(norms.as_slice()),
        _ => None,
    };
    let updated = match product.verdict {
        Verdict::Updated(updated) => Some(updated),
        _ => None,
    };
    // Wanda compares within a row. Magnitudes are compared within the matrix; groups lie within rows anyway.
    let panel_rows = match (product.verdict, pattern) {
        (Verdict::Magnitude, Pattern::Unstructured(_)) => count.max(1),
        _ => PANEL_ROWS,
    };
    let group = if norms.is_some() {
        columns
    } else {
        panel_rows * columns
    };
    let stored = rows.matrix.stored();
    let mut data = stored.data.to_vec();
    let mut values = vec![];
    let mut new = vec![];
    let (mut taken, mut zeros) = (0usize, 0u64);
    let (mut power, mut lost) = (0.0f64, 0.0f64);
    for first in (0..count).step_by(panel_rows) {
        let panel = first..(first + panel_rows).min(count);
        values.clear();
        values.resize(panel.len() * columns, 0.0);
        rows.read(panel.clone(), &mut values)?;
        check_finite(rows, first, &values)?;
        new.clone_from(&values);
        if let Some(updated) = updated {
            updated.read(panel, &mut new)?;
            check_finite(rows, first, &new)?;
            let gone = |(old, new): (&f32, &f32)| *old != 0.0 && *new == 0.0;
            taken += values.iter().zip(&new).filter(|pair| gone(*pair)).count();
        } else {
            let scores = scores(&values, columns, norms);
            for (index, scores) in scores.chunks(group.max(1)).enumerate() {
                select(scores, columns, pattern, |at| {
                    new[index * group + at] = 0.0;
                    taken += 1;
                });
            }
        }
        for (index, (old, new)) in values.iter().zip(&new).enumerate() {
            if old.to_bits() != new.to_bits() {
                let at = rows.stored_index(first + index / columns, index % columns);
                store(&mut data, at, stored.data_type, *new);
            }
            power += f64::from(*old).powi(2);
            lost += f64::from(old - new).powi(2);
            zeros += u64::from(*new == 0.0);
        }
    }
    rows.release(0..count);
    let tensor = Tensor {
        data_type: stored.data_type,
        range: spool.append(&data).map_err(PruneError::Spool)?,
    };
    Ok((
        tensor,
        PrunedMatrix {
            node: product.label.clone(),
            rows: count,
            columns,
            zeros,
            relative_error: if power > 0.0 {
                (lost / power).sqrt()
            } else {
                0.0
            },
        },
        taken,
    ))
}

fn check_finite(rows: &ChannelRows, first: usize, values: &[f32]) -> Result<(), PruneError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(PruneError::NotFinite {
            matrix: rows.matrix.name().to_owned(),
            row: first + at / rows.columns().max(1),
        }),
    }
}

/// Stores a weight as element `at` of a tensor of 16- or 32-bit floats.
fn store(data: &mut [u8], at: usize, data_type: DataType, value: f32) {
    match data_type {
        DataType::Float16 => {
            data[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
        DataType::Bfloat16 => {
            data[2 * at..2 * at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        }
        _ => data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes()),
    }
}

/// Puts the pruned tensors in place of those that the values of the same names hold in a graph.
fn replace_tensors(
    number: usize,
    graph: &mut GraphProto,
    written: &HashMap<&Place, Tensor>,
    data: &Bytes,
) {
    for_each_stored(graph, |value, tensor| {
        let place = Place {
            graph: number,
            value: value.to_owned(),
        };
        if let Some(pruned) = written.get(&place) {
            *tensor = TensorProto {
                name: tensor.name.clone(),
                dims: tensor.dims.clone(),
                data_type: Some(pruned.data_type as i32),
                raw_data: Some(data.slice(pruned.range.clone())),
                ..TensorProto::default()
            };
        }
    });
}
