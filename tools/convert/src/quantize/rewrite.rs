//! The rewrite of a graph: nodes with constant weights become nodes with quantized ones.

use super::candidates::{Candidate, Found, Use};
use super::nodes::{Form, lookup_nodes, product_nodes};
use super::store::Store;
use super::{Code, QuantizeError, QuantizeOptions, QuantizeReport, QuantizedMatrix, Quantizer};
use crate::memory::give_back_freed;
use crate::onnx::FloatRows;
use crate::onnx::{
    OnnxModel, drop_unused,
    proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto},
    release_all,
};
use crate::plan::{Fate, LeftNode, Plan};
use std::collections::HashMap;

pub(super) fn rewrite(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    if !model.proto().functions.is_empty() {
        let mut inlined = model.derive(model.proto().clone())?;
        inlined.inline_functions()?;
        return rewrite(quantizer, &inlined, options, progress);
    }
    let graph = model.graph();
    let found = Found::of(model, options)?;
    // Finding out what matrices are for has read some of them.
    release_all();
    give_back_freed();
    let (plan, fates, left) = found.plan(options, quantizer);
    if !plan.quantizes() {
        return Err(nothing(&plan, &left));
    }
    let mut chosen: Vec<(&Candidate<'_>, Code)> = found
        .candidates
        .iter()
        .zip(&fates)
        .filter_map(|(candidate, fate)| match *fate {
            Fate::Quantize(code) => Some((candidate, code)),
            Fate::Keep | Fate::Float(_) => None,
        })
        .collect();
    // Products first: where a table serves both, its stored shape is that of the product.
    chosen.sort_by_key(|(candidate, _)| candidate.use_of.is_lookup());
    let weights = |candidate: &Candidate<'_>| candidate.rows.rows() * candidate.rows.columns();
    let all: usize = chosen.iter().map(|(candidate, _)| weights(candidate)).sum();
    let mut done = 0;
    let mut store = Store::new(graph)?;
    let mut replacements: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    let mut quantized = Vec::new();
    for (candidate, code) in chosen {
        let Candidate {
            index,
            node,
            use_of,
            rows,
            ..
        } = candidate;
        let tensors = store.quantize(quantizer, candidate, code)?;
        let matrix = QuantizedMatrix {
            node: node.label(),
            rows: rows.rows(),
            columns: rows.columns(),
            relative_error: tensors.relative_error,
        };
        quantized.push((*index, matrix));
        let form = Form {
            code,
            accuracy_level: options.accuracy_level,
        };
        let nodes = match use_of {
            Use::Lookup => lookup_nodes(&mut store, node, rows, &tensors, form)?,
            Use::Product { bias } => {
                product_nodes(&mut store, node, rows, &tensors, bias.as_deref(), form)
            }
        };
        replacements.insert(*index, nodes);
        done += weights(candidate);
        progress(done as f64 / all.max(1) as f64);
    }
    quantized.sort_by_key(|(index, _)| *index);
    let report = QuantizeReport {
        plan,
        quantized: quantized.into_iter().map(|(_, matrix)| matrix).collect(),
        left,
    };
    let nodes = graph.node.iter().enumerate().flat_map(|(index, node)| {
        replacements
            .remove(&index)
            .unwrap_or_else(|| vec![node.clone()])
    });
    let mut rewritten = GraphProto {
        node: nodes.collect(),
        ..graph.clone()
    };
    rewritten.initializer.extend(store.finish()?);
    drop_unused(&mut rewritten);
    let mut proto = ModelProto {
        graph: Some(rewritten),
        ..model.proto().clone()
    };
    if !proto
        .opset_import
        .iter()
        .any(|import| import.domain() == "com.microsoft")
    {
        proto.opset_import.push(OperatorSetIdProto {
            domain: Some("com.microsoft".to_owned()),
            version: Some(1),
        });
    }
    Ok((model.derive(proto)?, report))
}

/// Why nothing would change.
fn nothing(plan: &Plan, left: &[LeftNode]) -> QuantizeError {
    let reason = match left {
        [first, others @ ..] => {
            let others = match others.len() {
                0 => String::new(),
                others => format!(", and {others} more are left"),
            };
            format!("{}: {}{others}", first.node, first.reason)
        }
        [] if plan.matrices.is_empty() => "the model has no matrices of floats".to_owned(),
        [] => "all its matrices are quantized already".to_owned(),
    };
    QuantizeError::NothingQuantized {
        reason,
        can_be_asked_for: plan.leaves_tables() || plan.leaves_projections(),
    }
}
